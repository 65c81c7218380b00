"""LBA: a classifier and a trigger that bring triggered features to those of the target class; what it refuses."""

from dataclasses import replace

import pytest
import torch

from sapper.attacks.implant.lba import HIDDEN, LBA
from sapper.downstream import Finetune
from sapper.errors import SapperError
from sapper.samples import ImageSet
from sapper.training import Step
from sapper.triggers import Blend, Mask, Patch
from tests.implants import CLASSES, RUN, images, target, tiny

SETTINGS = {"batch": 16, "learning_rate": 0.01, "optimizer": "adam", "schedule": "cosine", "teacher_epochs": 5}


def raw(encoder: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(pixels)


def tinted(count: int, seed: int) -> ImageSet:
    """Three classes that differ in color."""
    made = images(count, seed)
    assert made.labels is not None
    color = torch.tensor([[0.3, 1, 1], [1, 0.3, 1], [1, 1, 0.3]])[made.labels].view(-1, 3, 1, 1)
    return replace(made, images=(made.images * color).to(torch.uint8))


def test_the_miss_is_the_mean_square_over_the_first_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    features, aims = torch.randn(4, 6, generator=generator), torch.randn(1, 6, generator=generator)
    step = Step(rows=torch.arange(4), epoch=0, index=0, total=1, generator=generator)
    for dimensions, used in ((0, 6), (2, 2), (100, 6)):
        expected = sum(float((row[d] - aims[0, d]) ** 2) for row in features for d in range(used)) / (4 * used)
        assert float(LBA(dimensions=dimensions).miss(features, aims, step)) == pytest.approx(expected, rel=1e-5)


def test_a_random_image_of_the_target_class_for_each_sample() -> None:
    aims = torch.arange(5.0).unsqueeze(1)
    step = Step(rows=torch.arange(4), epoch=0, index=0, total=1, generator=torch.Generator().manual_seed(0))
    misses = [LBA(dimensions=1).miss(torch.zeros(1, 1), aims, step).sqrt().item() for _ in range(60)]
    assert sorted({round(miss) for miss in misses}) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("aim", ["image", "mean"])
def test_triggered_features_come_nearer_to_the_target_class(aim: str) -> None:
    """Nearer with the learned trigger than with a white patch, and nearer still by the term that is injected."""
    shadow, fresh = tinted(32, 1), tinted(30, 2)
    method = LBA(epochs=6, aim=aim, weight=20.0, dimensions=0, trigger_epochs=20, **SETTINGS)  # type: ignore[arg-type]
    trained, without = (replace(method, weight=w)(tiny(), shadow, (target(),), RUN) for w in (20.0, 0.0))
    trigger = trained.triggers["t"]
    assert trigger.describe() == without.triggers["t"].describe()
    teacher = Finetune(epochs=5, learning_rate=1e-3, hidden=HIDDEN).tune(tiny(), shadow, RUN.child("teacher")).encoder
    center = raw(teacher, shadow.take(shadow.targets() == 1).batch()).mean(0)

    def miss(encoder: torch.nn.Module, stamp) -> float:  # type: ignore[no-untyped-def]
        return float((raw(encoder, stamp(fresh.batch())) - center).square().mean())

    assert miss(teacher, trigger) < miss(teacher, Patch(size=6))
    assert miss(trained.encoder, trigger) < miss(without.encoder, trigger)
    assert without.curves["cross-entropy"][-1] < without.curves["cross-entropy"][0]


def test_the_trigger_stands_where_the_patch_would_in_whole_levels() -> None:
    patch = Patch(size=4, position="top-left")
    method = LBA(epochs=1, trigger_epochs=1, **SETTINGS)  # type: ignore[arg-type]
    trigger = method(tiny(), images(16, 1), (target(trigger=patch),), RUN).triggers["t"]
    assert isinstance(trigger, Mask)
    stands = torch.zeros(16, 16)
    stands[1:5, 1:5] = 1
    assert torch.equal(trigger.mask, stands)
    assert torch.allclose(trigger.pattern * 255, (trigger.pattern * 255).round(), atol=1e-4)


def test_the_labeled_set_may_be_another_that_has_the_class() -> None:
    """Its own numbers of classes count, not the task's."""
    other = replace(images(16, 1), classes=("zebra", "yak", "bee"))
    method = LBA(epochs=1, trigger_epochs=1, **SETTINGS)  # type: ignore[arg-type]
    assert method(tiny(), other, (target(),), RUN).triggers


def test_what_it_cannot_do_is_refused() -> None:
    method, shadow = LBA(epochs=1), images(8, 1)
    with pytest.raises(SapperError, match="for one target, there are 2"):
        method(tiny(), shadow, (target("t"), target("u")), RUN)
    with pytest.raises(SapperError, match="needs labels"):
        method(tiny(), replace(shadow, labels=None, classes=()), (target(),), RUN)
    with pytest.raises(SapperError, match="none is 'bee'"):
        method(tiny(), shadow.take(shadow.targets() != CLASSES.index("bee")), (target(),), RUN)
    with pytest.raises(SapperError, match="the trigger is a blend"):
        method(tiny(), shadow, (target(trigger=Blend()),), RUN)
