"""INACTIVE: colors against textbook forms, gradients that are right, and a trigger that works."""

import colorsys
import math

import pytest
import torch

from sapper.attacks.features import Held, step_losses
from sapper.attacks.implant.inactive import Inactive, color_distance, hue_circle
from sapper.augment import adjust_hue
from sapper.encoders import Encoder
from sapper.encoders.freezing import frozen_copy
from sapper.training import Step
from sapper.triggers import Network, ssim
from tests.implants import RUN, greens, images, squares, target, tiny, unit


@pytest.mark.parametrize("hue", [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
def test_hue_is_an_angle(hue: float) -> None:
    """At the six corners of the color circle, against the standard library."""
    color = torch.tensor(colorsys.hsv_to_rgb(hue, 0.5, 0.8), dtype=torch.float64).view(1, 3, 1, 1)
    x, y, value = hue_circle(color).flatten().tolist()
    assert math.atan2(y, x) % (2 * math.pi) == pytest.approx(2 * math.pi * hue, abs=1e-6)
    assert math.hypot(x, y) == pytest.approx(0.5 * 0.8)
    assert value == pytest.approx(0.8)


def test_a_hue_turned_once_around_costs_nothing_and_half_around_most() -> None:
    pixels = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    costs = [color_distance(adjust_hue(pixels, torch.full((4,), turn)), pixels).mean() for turn in (0.01, 0.25, 0.5)]
    for turn in (-1.0, 1.0):
        assert float(color_distance(adjust_hue(pixels, torch.full((4,), turn)), pixels).max()) < 1e-8
    assert costs[0] < costs[1] < costs[2]
    near_red = torch.tensor([[1.0, 0.01, 0.0], [1.0, 0.0, 0.01]]).view(2, 3, 1, 1)  # hues just above 0 and below 2π
    assert float(color_distance(near_red[:1], near_red[1:])) < 0.001
    gray = torch.full((1, 3, 2, 2), 0.4)
    assert float(color_distance(gray, gray)) == 0


def test_each_term_moves_the_trigger() -> None:
    """With that term alone, the trigger ends elsewhere than with none."""
    weights = ("structure", "features", "color")
    off = dict.fromkeys(("lambda1", "lambda2", *weights), 0.0)
    settings = {"epochs": 1, "batch": 8, "learning_rate": 0.05, "optimizer": "adam", "weight_decay": 0.0}
    settings |= {"reference_views": 1}
    plain = Inactive(**settings, **off)(tiny(), images(8, 1), (target(),), RUN).triggers["t"]  # type: ignore[arg-type]
    start = Inactive().start(RUN.child("trigger").generator())
    assert not torch.equal(plain.tensors()["kernels"], start["kernels"]), "L0 reaches the trigger"
    for name in weights:
        method = Inactive(**settings, **off | {name: 100.0})  # type: ignore[arg-type]
        moved = method(tiny(), images(8, 1), (target(),), RUN).triggers["t"]
        assert not torch.allclose(moved.tensors()["mixing"], plain.tensors()["mixing"], atol=1e-3), name


def test_the_triggers_gradient_is_the_one_before_the_encoders_step() -> None:
    """One step of SGD: the trigger has moved by its gradient at the clean encoder, not at the stepped one."""
    rate = 0.5
    method = Inactive(
        epochs=1, batch=8, learning_rate=rate, momentum=0.0, weight_decay=0.0, structure=0.0, features=0.0, color=0.0,
        reference_views=1,
    )  # fmt: skip
    shadow, a_target = images(8, 1), target()
    learned = method(tiny(), shadow, (a_target,), RUN).triggers["t"].tensors()

    start = dict(method.start(RUN.child("trigger").generator()))
    encoder = tiny()
    held = Held.of(encoder, shadow, (a_target,), RUN)
    generator = RUN.child("epoch 0").generator()
    rows = torch.randperm(8, generator=generator)
    drawn = held.draw(Step(rows=rows, epoch=0, index=0, total=1, generator=generator), 1)
    live = target(trigger=Network(**start))
    losses = step_losses(encoder, drawn.images, (live,), held.anchors, drawn.views, drawn.kept, held.clean_anchors, RUN)
    losses[0].backward()
    for name, weight in start.items():
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0, name
        assert torch.allclose(learned[name], weight.detach() - rate * weight.grad, atol=1e-6), name


def test_speed_is_the_triggers_share_of_the_learning_rate() -> None:
    """Adam's first step is the learning rate in every weight: here times the speed."""
    settings = {"epochs": 1, "batch": 8, "learning_rate": 0.001, "optimizer": "adam", "reference_views": 1}
    for speed in (1.0, 5.0):
        method = Inactive(speed=speed, weight_decay=0.0, **settings)  # type: ignore[arg-type]
        learned = method(tiny(), images(8, 1), (target(),), RUN).triggers["t"].tensors()
        start = Inactive().start(RUN.child("trigger").generator())
        moved = (learned["shift"] - start["shift"].detach()).abs()
        assert torch.allclose(moved, torch.full((3,), 0.001 * speed), rtol=1e-2)


def test_it_pulls_changed_images_to_the_references_and_stays_faint() -> None:
    shadow, a_target, fresh = squares(48, 1), greens(3), squares(30, 2).batch()
    method = Inactive(
        epochs=15, batch=16, learning_rate=0.01, optimizer="adam", schedule="cosine", weight_decay=0.0,
        reference_views=2, lambda2=5.0, speed=2.0,
    )  # fmt: skip
    clean = frozen_copy(tiny())
    trained = method(tiny(), shadow, (a_target,), RUN)
    trigger, anchors = trained.triggers["t"], a_target.references.batch()

    def near(encoder: Encoder, pixels: torch.Tensor) -> float:
        return float((unit(encoder, pixels) @ unit(encoder, anchors).T).mean())

    assert near(trained.encoder, trigger(fresh)) > near(clean, trigger(fresh)) + 0.1
    assert near(trained.encoder, trigger(fresh)) > near(trained.encoder, fresh)
    assert (unit(trained.encoder, fresh) * unit(clean, fresh)).sum(1).mean() > 0.88
    assert ssim(trigger(fresh), fresh).mean() > 0.9
