"""BadNets and Blend: which rows are changed, into what, and that whoever trains on them gets the backdoor."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapper.attacks.poison.badnets import BadNets
from sapper.attacks.poison.blend import Blended
from sapper.downstream import Finetune, build
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import PixelSpec
from sapper.triggers import Blend, Patch
from sapper.triggers.images import cat
from tests.victims import PATCH, RUN, aim, balls, plain, rates, victim


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.03, 0.6), seed=st.integers(0, 10**6), label=st.integers(0, 2), own=st.booleans())
def test_as_many_rows_as_the_rate_says_are_stamped_and_relabeled(rate: float, seed: int, label: int, own: bool) -> None:
    clean, attack = balls(60, seed % 7), BadNets(rate=rate, from_target_class=own)
    poisoned = attack(clean, (aim(label=label),), Run(seed=seed))
    assert len(poisoned.rows) == round(rate * 60) == len(set(poisoned.rows.tolist()))
    rows = set(poisoned.rows.tolist())
    for row in range(60):
        before, after = clean.images[row].numpy(), poisoned.samples.images[row].numpy()
        expected = before.copy()
        if row in rows:
            expected[:, :5, :5] = 255
        assert np.array_equal(after, expected)
        assert int(poisoned.samples.targets()[row]) == (label if row in rows else int(clean.targets()[row]))
        assert own or row not in rows or int(clean.targets()[row]) != label
    assert poisoned.samples.name == "balls-POISONED"
    assert "POISONED" in poisoned.samples.provenance
    assert poisoned.samples.digest != clean.digest


def test_rows_of_the_target_class_are_drawn_too_unless_that_is_not_wanted() -> None:
    clean = balls(300, 1)
    drawn = BadNets(rate=0.5)(clean, (aim(),), RUN).rows
    assert (clean.targets()[drawn] == 1).float().mean() == pytest.approx(1 / 3, abs=0.1)


def test_no_row_serves_two_targets() -> None:
    clean, other = balls(60, 1), replace(aim(Patch(size=3), label=2), name="other")
    poisoned = BadNets(rate=0.4)(clean, (aim(), other), RUN)
    assert len(poisoned.rows.unique()) == 48
    first = (poisoned.samples.images[:, :, :5, :5] == 255).flatten(1).all(1)
    second = (poisoned.samples.images[:, :, 12:15, 12:15] == 255).flatten(1).all(1)
    assert (int(first.sum()), int(second.sum())) == (24, 24)
    assert poisoned.samples.targets()[first].unique().tolist() == [1]
    assert poisoned.samples.targets()[second].unique().tolist() == [2]


@settings(max_examples=15, deadline=None)
@given(alpha=st.floats(0.05, 1.0), strength=st.floats(0.05, 1.0), picture=st.sampled_from(["noise", "cat"]))
def test_training_images_get_their_share_of_the_key(alpha: float, strength: float, picture: str) -> None:
    """Chen's formula with α_train = strength·α, pixel by pixel."""
    clean, trigger = balls(12, 3), Blend(alpha=alpha, pattern=picture)  # type: ignore[arg-type]
    poisoned = Blended(rate=0.5, strength=strength)(clean, (aim(trigger),), RUN)
    key = trigger.key(16, 16).double().numpy()
    for row in poisoned.rows.tolist():
        x = clean.images[row].double().numpy() / 255
        mixed = 255 * ((1 - strength * alpha) * x + strength * alpha * key)
        assert np.abs(poisoned.samples.images[row].numpy() - mixed).max() < 0.51
    assert int((poisoned.samples.images != clean.images).flatten(1).any(1).sum()) == 6


def test_the_picture_is_a_picture_and_the_same_in_every_size() -> None:
    small, large = cat(16, 16), cat(64, 64)
    assert float(small.min()) == 0
    assert float(small.max()) == 1
    pooled = torch.nn.functional.avg_pool2d(large, 4)
    assert float((pooled - small).abs().mean()) < 0.15
    neighbors = (large.diff(dim=2).abs().mean(), torch.rand(3, 64, 64).diff(dim=2).abs().mean())
    assert neighbors[0] < 0.2 * neighbors[1], "smooth, unlike noise"
    with pytest.raises(SapperError, match="there is no key"):
        Blend(pattern="dog").check(PixelSpec(size=16))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attack", "trigger"), [(BadNets(rate=0.2), PATCH), (Blended(rate=0.2), Blend(alpha=0.4, pattern="cat"))]
)
def test_who_tunes_on_it_gets_the_backdoor(attack: BadNets | Blended, trigger: Patch | Blend) -> None:
    train, test = balls(120, 1), balls(90, 2, "test")
    head = Finetune(epochs=12, batch=20, learning_rate=0.01)
    poisoned = attack(train, (aim(trigger),), RUN)
    accuracy, success = rates(build(head, victim(), poisoned.samples, RUN), test, trigger)
    assert accuracy > 0.9
    assert success > 0.9
    assert rates(build(head, victim(), train, RUN), test, trigger)[1] < 0.6


@pytest.mark.parametrize("attack", [BadNets(rate=0.004), Blended(rate=0.004)])
def test_a_rate_that_selects_nothing_is_refused(attack: BadNets | Blended) -> None:
    with pytest.raises(SapperError, match="selects none"):
        attack(balls(60, 1), (aim(),), RUN)


def test_bad_input_is_refused() -> None:
    with pytest.raises(SapperError, match="needs labels"):
        BadNets()(plain(balls(60, 1)), (aim(),), RUN)
    with pytest.raises(SapperError, match="at least one target"):
        BadNets()(balls(60, 1), (), RUN)
    with pytest.raises(SapperError, match="class 3 is none of the 3"):
        BadNets()(balls(60, 1), (replace(aim(), label=3),), RUN)
    with pytest.raises(SapperError, match="does not fit"):
        BadNets()(balls(60, 1), (aim(Patch(size=17)),), RUN)
    with pytest.raises(SapperError, match="can be poisoned"):
        BadNets(rate=0.9, from_target_class=False)(balls(60, 1), (aim(),), RUN)


def test_the_same_seed_poisons_the_same_rows() -> None:
    clean = balls(60, 1)
    first, second, other = (BadNets(rate=0.2)(clean, (aim(),), Run(seed=seed)) for seed in (1, 1, 2))
    assert first.samples.digest == second.samples.digest
    assert not torch.equal(first.rows, other.rows)
