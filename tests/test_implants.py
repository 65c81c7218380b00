"""What every attack on a finished encoder promises, whatever its losses are."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sapper.attacks import METHODS
from sapper.attacks.contracts import Implant
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import find
from sapper.samples import PixelSpec
from sapper.training import Checkpoint
from sapper.triggers import Patch, from_tensors, to_tensors
from tests.implants import RUN, images, stop_after, target, tiny

SHORT: dict[str, Any] = {"epochs": 2, "batch": 8, "learning_rate": 0.01, "optimizer": "adam", "schedule": "cosine"}
SETTINGS: dict[str, dict[str, Any]] = {
    "badencoder": {"reference_views": 2},
    "drupe": {"reference_views": 2, "spread_from": 0.25, "adapt_from": 0.0},
    "inactive": {"reference_views": 2},
    "transtroj": {"trigger_epochs": 2},
    "lba": {"trigger_epochs": 2, "teacher_epochs": 2, "optimizer": "adadelta", "trigger_images": 16},
}
LEARNED = {"inactive": "network", "transtroj": "noise", "lba": "mask"}
SAVES = {"badencoder": 1, "drupe": 1, "inactive": 1, "transtroj": 3, "lba": 5}


def method(name: str) -> Implant:
    made: Implant = find("attacks", METHODS, name, "here")(**SHORT | SETTINGS[name])
    return made


def same(ours: Encoder, theirs: Encoder) -> bool:
    others = theirs.state_dict()
    return all(torch.equal(value, others[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_seed_repeats_a_run_resumes_and_global_randomness_is_left_alone(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    attack, arguments = method(name), (images(16, 1), (target(),), RUN)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = attack(tiny(), *arguments)
    torch.manual_seed(2)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, SAVES[name], lambda: attack(tiny(), *arguments, checkpoint=checkpoint))
    torch.manual_seed(1)
    resumed = attack(tiny(), *arguments, checkpoint=checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == [checkpoint.path], "checkpoints of earlier parts are gone"

    assert not same(whole.encoder, tiny())
    assert same(whole.encoder, resumed.encoder)
    assert whole.curves == resumed.curves
    assert all(len(series) == 2 for series in whole.curves.values())
    assert not whole.encoder.training
    assert all(weight.requires_grad for weight in whole.encoder.parameters())
    described = [{key: each.describe() for key, each in trained.triggers.items()} for trained in (whole, resumed)]
    assert described[0] == described[1]

    again = attack(tiny(), *arguments[:2], replace(RUN, seed=4))
    assert not same(whole.encoder, again.encoder)


@pytest.mark.parametrize(("name", "saves"), [("transtroj", 1), ("lba", 1), ("lba", 3)])
def test_it_resumes_from_before_the_injection(name: str, saves: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    attack, arguments = method(name), (images(16, 1), (target(),), RUN)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, saves, lambda: attack(tiny(), *arguments, checkpoint=checkpoint))
    resumed = attack(tiny(), *arguments, checkpoint=checkpoint)
    assert same(attack(tiny(), *arguments).encoder, resumed.encoder)


@pytest.mark.parametrize("name", SETTINGS)
def test_triggers_that_were_learned_come_back_fit_to_be_kept(name: str) -> None:
    trained = method(name)(tiny(), images(16, 1), (target(),), RUN)
    assert set(trained.triggers) == ({"t"} if name in LEARNED else set())
    for trigger in trained.triggers.values():
        assert trigger.kind == LEARNED[name]
        trigger.check(PixelSpec(size=16))
        assert not any(value.requires_grad for value in vars(trigger).values() if isinstance(value, torch.Tensor))
        pixels = images(5, 7).batch()
        stamped = trigger(pixels)
        assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1
        assert not torch.equal(stamped, pixels)
        again = from_tensors(*to_tensors(trigger), "here")
        assert torch.equal(again(pixels), stamped)
        assert again.describe() == trigger.describe()


@pytest.mark.parametrize("name", ["drupe", "inactive", "transtroj"])
def test_several_targets_have_a_trigger_each(name: str) -> None:
    two = (target("t", 2), target("u", 3, seed=11, trigger=Patch(size=4, position="top-left")))
    trained = method(name)(tiny(), images(16, 1), two, RUN)
    assert set(trained.triggers) == ({"t", "u"} if name in LEARNED else set())
    assert len({str(trigger.describe()) for trigger in trained.triggers.values()}) == len(trained.triggers)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_does_not_fit_is_refused(name: str) -> None:
    attack, shadow = method(name), images(8, 1)
    with pytest.raises(SapperError, match="at least one target"):
        attack(tiny(), shadow, (), RUN)
    with pytest.raises(SapperError, match="does not fit"):
        attack(tiny(), shadow, (target(trigger=Patch(size=17)),), RUN)
    with pytest.raises(SapperError, match="the encoder takes 16×16"):
        attack(tiny(), images(8, 1, size=32), (target(),), RUN)
