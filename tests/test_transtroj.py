"""TransTroj: its loss by loops, a trigger of whole levels within its bound, and features that reach the goal."""

import pytest
import torch
import torch.nn.functional as F

from sapper.attacks.implant.transtroj import TransTroj, effect
from sapper.triggers import Noise
from tests.implants import RUN, images, target, tiny, unit


def test_the_effect_is_the_mean_cosine_with_each_targets_goal() -> None:
    generator = torch.Generator().manual_seed(4)
    features = F.normalize(torch.randn(2, 5, 7, generator=generator), dim=2)
    goals = F.normalize(torch.randn(2, 7, generator=generator), dim=1)
    expected = [-F.cosine_similarity(row, goal, dim=0) for rows, goal in zip(features, goals) for row in rows]
    assert float(effect(features, goals)) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-6)


def test_the_trigger_moves_features_of_the_clean_encoder_and_the_weights_finish_it() -> None:
    shadow, a_target, fresh = images(48, 1), target(), images(32, 2).batch()
    goal = F.normalize(unit(tiny(), a_target.references.batch()).mean(0), dim=0)
    method = TransTroj(epochs=15, batch=16, learning_rate=0.01, optimizer="adam", schedule="cosine", trigger_epochs=10)
    trained = method(tiny(), shadow, (a_target,), RUN)
    trigger = trained.triggers["t"]
    assert isinstance(trigger, Noise)
    untouched, clean = unit(tiny(), fresh) @ goal, unit(tiny(), trigger(fresh)) @ goal
    random = Noise(delta=trigger.delta.flatten()[torch.randperm(3 * 256)].view(3, 16, 16), bound=trigger.bound)
    assert clean.mean() > untouched.mean()
    assert clean.mean() > (unit(tiny(), random(fresh)) @ goal).mean(), "not any pattern would do"
    attacked = unit(trained.encoder, trigger(fresh)) @ goal
    assert attacked.mean() > clean.mean()
    assert (unit(trained.encoder, fresh) * unit(tiny(), fresh)).sum(1).mean() > 0.9


def test_the_trigger_is_what_an_image_file_holds() -> None:
    method = TransTroj(epochs=1, batch=8, epsilon=3, trigger_epochs=3)
    trigger = method(tiny(), images(8, 1), (target(),), RUN).triggers["t"]
    assert isinstance(trigger, Noise)
    steps = trigger.delta * 255
    assert torch.equal(steps, steps.round())
    assert float(steps.abs().max()) <= 3
    assert len(steps.unique()) > 2
    shadow = images(4, 5)
    stamped = trigger(shadow.batch()) * 255
    assert torch.allclose(stamped, stamped.round(), atol=1e-3)
    expected = (shadow.images.int() + steps.int()).clamp(0, 255)
    assert torch.equal(stamped.round().int(), expected)


def test_a_larger_weight_keeps_clean_features_closer() -> None:
    ends = []
    for weight in (0.0, 100.0):
        settings = {"epochs": 4, "batch": 16, "learning_rate": 0.01, "optimizer": "adam", "trigger_epochs": 1}
        ends.append(TransTroj(utility=weight, **settings)(tiny(), images(32, 1), (target(),), RUN).curves)  # type: ignore[arg-type]
    assert ends[1]["utility"][-1] < ends[0]["utility"][-1]
    assert ends[0]["effect"][-1] < ends[1]["effect"][-1]
