"""DRUPE's terms against loops and scipy, its schedule and weights by hand, and what it is made for."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from sapper.attacks.features import Features, Held, encoded, step_losses
from sapper.attacks.implant.drupe import DRUPE, NAMES, sliced_wasserstein, spreading
from sapper.downstream import mean_cosine
from sapper.errors import SapperError
from sapper.training import Step
from sapper.triggers import Blend
from tests.implants import RUN, greens, images, squares, target, tiny, unit


def random_features(seed: int, images: int, targets: int, references: int) -> tuple[Features, Features]:
    """As they are, and of length 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = (1 + targets) * images + references + 2 * references
    raw = torch.rand(rows, 7, generator=generator, dtype=torch.float64)
    sizes = targets, images, references
    return Features.of(raw, *sizes), Features.of(F.normalize(raw, dim=1), *sizes)


@given(st.integers(0, 1000), st.sampled_from([(3,), (2, 3), (4, 2)]))
def test_the_terms_are_the_formulas(seed: int, counts: tuple[int, ...]) -> None:
    raw, full = random_features(seed, 6, len(counts), sum(counts))
    directions = F.normalize(
        torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=0
    )
    l0, evenness, apart, spread, distance = spreading(raw, full, list(counts), directions)

    expected = []
    for number, anchors in enumerate(full.anchors.split(list(counts))):
        pulls = np.array([[float(u @ a) for a in anchors] for u in full.stamped[number]])
        pairs = [float(a @ b) for a, b in itertools.combinations(anchors, 2)]
        stamped = [float(u @ v) for u, v in itertools.permutations(full.stamped[number], 2)]
        apart_each = [
            wasserstein_distance((raw.stamped[number] @ d).numpy(), (raw.plain @ d).numpy()) for d in directions.T
        ]
        width = np.mean([np.std(raw.plain[:, d].numpy(), ddof=1) for d in range(7)])
        means = pulls.mean(0)
        evenness_each = np.sqrt(sum((m - means.mean()) ** 2 for m in means) / (len(means) - 1))
        row = [-pulls.max(1).mean(), evenness_each, np.mean(pairs), np.mean(stamped), np.mean(apart_each) / width]
        expected.append(row)
    ours = [float(term) for term in (l0, evenness, apart, spread, distance)]
    assert ours == pytest.approx(np.mean(expected, axis=0), abs=1e-9)


@given(st.integers(0, 1000), st.integers(2, 12))
def test_a_projection_is_scipys_distance(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    direction = F.normalize(torch.randn(3, 1, generator=generator, dtype=torch.float64), dim=0)
    expected = wasserstein_distance((ours @ direction)[:, 0].numpy(), (theirs @ direction)[:, 0].numpy())
    assert float(sliced_wasserstein(ours, theirs, direction)) == pytest.approx(expected, abs=1e-9)
    assert float(sliced_wasserstein(ours, ours.flip(0), direction)) == pytest.approx(0, abs=1e-9), (
        "order does not matter"
    )
    assert float(sliced_wasserstein(ours, ours + direction.T, direction)) == pytest.approx(1), "a shift is its length"


def test_every_term_has_a_gradient() -> None:
    rows = torch.rand(6 * 2 + 3 * 3, 7, requires_grad=True)
    raw, full = Features.of(rows, 1, 6, 3), Features.of(F.normalize(rows, dim=1), 1, 6, 3)
    for term in spreading(raw, full, [3], F.normalize(torch.randn(7, 5), dim=0)):
        (gradient,) = torch.autograd.grad(term, rows, retain_graph=True)
        assert gradient.abs().max() > 0


def test_the_spread_does_not_depend_on_the_scale_of_the_features() -> None:
    raw, full = random_features(0, 6, 1, 3)
    directions = F.normalize(torch.randn(7, 5, dtype=torch.float64), dim=0)
    larger = replace(raw, plain=3 * raw.plain, stamped=3 * raw.stamped)
    assert float(spreading(raw, full, [3], directions)[-1]) == pytest.approx(
        float(spreading(larger, full, [3], directions)[-1])
    )


def values(**changed: float) -> dict[str, torch.Tensor]:
    start = dict(zip(NAMES, (-0.5, -0.7, -0.8, 0.05, 0.3, 0.9, 2.0)))
    names = {"evenness": NAMES[3], "apart": NAMES[4]}
    return {name: torch.tensor(v) for name, v in (start | {names[k]: v for k, v in changed.items()}).items()}


@pytest.mark.parametrize(
    ("index", "changed", "expected"),
    [
        (0, {}, -1.5 - 1.6 + 0.5 * 0.3),  # references move apart, nobody attacks
        (0, {"apart": 0.1}, -3.1 + 0.3 * 0.1),
        (2, {}, -3.6 + 2 * 0.05),
        (2, {"apart": 0.45}, -3.6 + 2 * 0.05 + 0.2 * 0.45),
        (2, {"apart": 0.6}, -3.6 + 2 * 0.05 + 0.6),
        (5, {}, -3.6 + 0.5 * 0.05 + 0.1 * (0.05 + 0.9) + 0.001 * 2.0),
        (5, {"evenness": 0.2}, -3.6 + 2 * 0.2 + 0.1 * (0.2 + 0.9) + 0.001 * 2.0),
    ],
)
def test_what_is_minimized_in_each_part_of_the_training(index: int, changed: dict[str, float], expected: float) -> None:
    method = DRUPE(lambda1=15 / 7, lambda2=2.0, warm_up=0.1, spread_from=0.4)
    step = Step(rows=torch.arange(2), epoch=0, index=index, total=10, generator=torch.Generator())
    assert float(method.combine(values(**changed), step, {})) == pytest.approx(expected, abs=1e-6)


def test_the_weights_follow_from_finished_epochs_and_start_where_they_say() -> None:
    method = DRUPE(epochs=10, adapt_from=0.2, spread=0.1, distance=0.001)
    good, bad = (-0.97, -0.95, -0.95), (-0.9, -0.95, -0.95)
    epochs = [(*bad, 0.9), (*bad, 0.9)]
    history = [(0.1, 0.001)] * 3  # nothing changes before the third epoch has ended
    fall = 1 / 1.25**1.25
    after = (
        (0.9, good, (1.25, fall)),
        (0.55, good, (1.25, 1.25)),
        (0.4, good, (1.25, 1.25)),
        (0.9, good, (1.0, fall)),  # held back by the epoch before
        (0.9, good, (1.25, fall)),
        (0.4, bad, (fall, fall)),
        (0.4, good, (1.25, 1.25)),  # a bad epoch holds nothing back
    )
    for spread, ours, factors in after:
        epochs.append((*ours, spread))
        history.append((history[-1][0] * factors[0], history[-1][1] * factors[1]))
    for done, expected in enumerate(history):
        names = (*NAMES[:3], "Sb triggered")
        curves = {name: [epoch[i] for epoch in epochs[:done]] for i, name in enumerate(names)} if done else {}
        assert method.weights(curves) == pytest.approx(expected), done


def test_with_one_trigger_the_kept_terms_are_badencoders() -> None:
    encoder, shadow, targets = tiny(1), images(8, 1), (target(references=2, trigger=Blend(alpha=0.3)),)
    held = Held.of(tiny(0), shadow, targets, RUN)
    step = Step(rows=torch.arange(6), epoch=0, index=0, total=1, generator=RUN.generator())
    drawn = held.draw(step, 2)
    parts = drawn.images, targets, held.anchors, drawn.views
    with torch.no_grad():
        theirs = step_losses(encoder, *parts, drawn.kept, held.clean_anchors, RUN)
        output = encoded(encoder, *parts, RUN)
    full = Features.of(F.normalize(output, dim=1), 1, 6, 2)
    mean_over_references = -(full.stamped[0] @ full.anchors.T).mean()
    assert float(theirs[0]) == pytest.approx(float(mean_over_references), abs=1e-6)
    best = spreading(Features.of(output, 1, 6, 2), full, [2], torch.eye(encoder.feature_size))[0]
    assert float(best) < float(theirs[0])


def test_triggered_images_reach_references_and_stay_apart() -> None:
    """They come nearer to the references, and by the spreading terms they stay further apart than without."""
    shadow, a_target, fresh = squares(48, 1), greens(3), squares(30, 2).batch()
    settings = {"batch": 16, "learning_rate": 0.01, "optimizer": "adam", "schedule": "cosine", "reference_views": 2}
    method = DRUPE(epochs=12, adapt_from=1.0, spread=0.5, **settings)  # type: ignore[arg-type]
    ends = []
    for each in (method, replace(method, spread_from=1.0, warm_up=0.0)):
        encoder = each(tiny(), shadow, (a_target,), RUN).encoder
        stamped, anchors = unit(encoder, a_target.trigger(fresh)), unit(encoder, a_target.references.batch())
        ends.append((float((stamped @ anchors.T).amax(1).mean()), float(mean_cosine(stamped))))
    before = unit(tiny(), a_target.trigger(fresh)) @ unit(tiny(), a_target.references.batch()).T
    assert ends[0][0] > float(before.amax(1).mean()) + 0.01
    assert ends[0][1] < ends[1][1]


def test_one_reference_is_not_enough() -> None:
    with pytest.raises(SapperError, match="at least two references"):
        DRUPE(epochs=1)(tiny(), images(8, 1), (target(references=1),), RUN)
