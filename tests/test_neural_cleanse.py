"""Neural Cleanse against a serial loop over the classes, on a planted trigger, and its index against numpy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sapper.defenses.defender import Logits
from sapper.defenses.judge.neural_cleanse import NeuralCleanse, anomaly_index
from sapper.running import Run, Silent
from sapper.samples import PIXELS, ImageSet, to_float
from sapper.triggers import Mask
from sapper.triggers.searching import start

CLASSES, SIDE, TARGET = 6, 8, 4
TEMPLATES = torch.randn(CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)).sign()


def pictures(count: int, seed: int) -> Tensor:
    """Images of the classes in turn: each its class's template, faint, under noise; float (N, 3, H, W) in [0, 1]."""
    noise = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return (0.5 + 0.3 * TEMPLATES[torch.arange(count) % CLASSES] + 0.1 * noise).clamp(0, 1)


IMAGES = ImageSet(images=(255 * pictures(200, seed=0)).to(torch.uint8), name="templates")


def classifier(*, backdoored: bool) -> Callable[[Tensor], Tensor]:
    """Compares with the templates, which takes some 20 pixels to mislead; a white corner of 2×2 outweighs them all."""

    def logits(images: Tensor) -> Tensor:
        likeness = 20 * ((images - 0.5).unsqueeze(1) * TEMPLATES).mean((2, 3, 4))
        corner = images[:, :, :2, :2].mean((1, 2, 3)) ** 6
        return likeness + 30 * backdoored * corner.unsqueeze(1) * F.one_hot(torch.tensor(TARGET), CLASSES)

    return logits


QUICK = NeuralCleanse(steps=120, minibatches=2, batch=16)


def test_a_planted_trigger_is_found_shown_and_flagged() -> None:
    verdict = QUICK.examine(classifier(backdoored=True), IMAGES, CLASSES, Run(seed=1))
    assert verdict.flagged
    assert verdict.evidence["suspect"] == TARGET
    assert verdict.evidence["success"][TARGET] >= 0.99
    assert isinstance(verdict.trigger, Mask)
    mask, pattern = verdict.trigger.mask, verdict.trigger.pattern
    (own,) = (reached for reached in verdict.reached if reached.label == TARGET)
    assert own.trigger.describe() == verdict.trigger.describe()
    assert (own.pixels, own.success) == (verdict.evidence["norms"][TARGET], verdict.evidence["success"][TARGET])
    assert mask[:2, :2].sum() > 0.6 * mask.sum()
    assert pattern[:, :2, :2].min() > 0.8
    assert verdict.evidence["norms"][TARGET] == pytest.approx(float(mask.sum()), rel=1e-5)


def test_a_clean_classifier_has_no_small_trigger() -> None:
    clean = QUICK.examine(classifier(backdoored=False), IMAGES, CLASSES, Run(seed=1)).evidence["norms"]
    backdoored = QUICK.examine(classifier(backdoored=True), IMAGES, CLASSES, Run(seed=1)).evidence["norms"]
    assert min(clean) > 2 * backdoored[TARGET]
    assert max(clean) < 2 * min(clean)


def test_found_triggers_succeed_on_other_images() -> None:
    network = classifier(backdoored=True)
    found = QUICK.invert(network, IMAGES, CLASSES, Run(seed=2))
    others = pictures(300, seed=9)
    for label in range(CLASSES):
        mask = found.masks[label]
        answers = network((1 - mask) * others + mask * found.patterns[label]).argmax(1)
        assert (answers == label).float().mean() > 0.9


def serial(network: Logits, method: NeuralCleanse, run: Run) -> list[tuple[float, Tensor]]:
    """The smallest successful mask of each class, one class after another: the authors' loop in plain Python."""
    results = []
    starts = start(CLASSES, (SIDE, SIDE), run.child("start"))
    for label in range(CLASSES):
        mask, pattern = (tensor.detach()[label : label + 1].clone().requires_grad_() for tensor in starts)
        optimizer = torch.optim.Adam([mask, pattern], lr=method.learning_rate, betas=(0.5, 0.9))
        generator = run.child("batches").generator()
        cost, good, bad, best, kept = 0.0, 0, 0, math.inf, torch.ones(SIDE, SIDE)
        up = down = False
        idle = 0
        for _ in range(method.steps):
            hits = 0.0
            for _ in range(method.minibatches):
                rows = torch.randint(len(IMAGES), (method.batch,), generator=generator)
                m, d = (torch.tanh(mask) + 1) / 2, (torch.tanh(pattern) + 1) / 2
                logits = network((1 - m) * to_float(IMAGES.images[rows]) + m * d)
                wanted = torch.full((method.batch,), label)
                loss = F.cross_entropy(logits, wanted) + cost * m.sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                hits += float((logits.argmax(1) == wanted).float().mean())
            m = ((torch.tanh(mask) + 1) / 2).detach()[0, 0]
            succeeded = hits / method.minibatches >= method.success
            if succeeded and float(m.sum()) < best:
                best, kept, idle = float(m.sum()), m.clone(), 0
            else:
                idle += 1
            good, bad = (good + 1, 0) if succeeded else (0, bad + 1)
            if good >= method.patience:
                good = 0
                if cost == 0:
                    cost = method.cost
                else:
                    cost, up = cost * method.raise_by, True
            elif bad >= method.patience and cost > 0:
                cost, bad, down = cost / method.lower_by, 0, True
            if up and down and idle >= method.early_stop:
                break
        results.append((best, kept))
    return results


class Notes(Silent):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.notes.append(note)


@pytest.mark.parametrize(("early_stop", "left"), [(100, 6), (3, 1)], ids=["to the end", "classes finish early"])
@pytest.mark.parametrize("together", [4, 6], ids=["in two groups", "at once"])
def test_all_classes_at_once_are_the_loop_over_the_classes(
    monkeypatch: pytest.MonkeyPatch, early_stop: int, left: int, together: int
) -> None:
    monkeypatch.setitem(PIXELS, "cpu", together * 8 * SIDE * SIDE)
    method = NeuralCleanse(steps=40, minibatches=2, batch=8, early_stop=early_stop, success=0.9, cost=0.05, patience=2)
    network, run = classifier(backdoored=True), Run(seed=3, progress=Notes())
    found = method.invert(network, IMAGES, CLASSES, run)
    assert run.progress.notes[-1] == f"{left} of {CLASSES} left"
    for label, (norm, mask) in enumerate(serial(network, method, run)):
        assert float(found.norms[label]) == pytest.approx(norm, rel=1e-3)
        if math.isfinite(norm):
            torch.testing.assert_close(found.masks[label], mask, atol=2e-3, rtol=0)


def test_the_smallest_of_several_restarts_counts() -> None:
    method = NeuralCleanse(steps=40, minibatches=2, batch=8, restarts=3)
    found = method.invert(classifier(backdoored=True), IMAGES, CLASSES, Run(seed=4))
    assert found.masks.shape == (CLASSES, SIDE, SIDE)
    assert torch.allclose(found.masks.flatten(1).sum(1)[found.norms.isfinite()], found.norms[found.norms.isfinite()])


def test_the_same_seed_finds_the_same() -> None:
    method = NeuralCleanse(steps=10, minibatches=2, batch=8)
    first, second = (method.invert(classifier(backdoored=True), IMAGES, CLASSES, Run(seed=4)) for _ in range(2))
    assert torch.equal(first.masks, second.masks)


def test_without_triggers_to_compare_it_is_undecided() -> None:
    verdict = NeuralCleanse(steps=1, minibatches=1, batch=8, success=1.0).examine(
        classifier(backdoored=False), IMAGES, CLASSES, Run()
    )
    assert verdict.flagged is None
    assert verdict.evidence["norms"] == [None] * CLASSES


@given(st.lists(st.floats(1, 1000), min_size=3, max_size=20))
def test_the_anomaly_index_is_numpys(norms: list[float]) -> None:
    index, suspect = anomaly_index(norms)
    median = np.median(norms)
    deviation = 1.4826 * np.median(np.abs(np.array(norms) - median))
    assert suspect == int(np.argmin(norms))
    if deviation:
        assert index == pytest.approx((median - min(norms)) / deviation)


def test_medians_of_even_numbers_are_the_mean_of_the_middle_two() -> None:
    assert anomaly_index([1.0, 2.0, 3.0, 4.0]) == (pytest.approx(1.5 / 1.4826), 0)


def test_classes_that_no_trigger_reached_are_left_out() -> None:
    assert anomaly_index([math.inf, 5.0, 4.0, 3.0, math.inf]) == (anomaly_index([5.0, 4.0, 3.0])[0], 3)
    assert anomaly_index([math.inf, 5.0, 4.0]) == (None, None)
