"""Derandomized smoothing: its votes, both rules against everything an attacker can do, and what it learns."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapper.defenses.certify.derandomized_smoothing import DerandomizedSmoothing, certify, winners
from sapper.defenses.certify.patchguard_ds import PatchGuardDS
from sapper.defenses.defender import Defender
from sapper.defenses.masking import column_windows
from sapper.defenses.views import blocks, column_bands
from sapper.downstream import Finetune, Linear, extract
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import to_float
from sapper.triggers import Blend
from tests.test_patchguard_ds import BLACK, owner, random_images, redness
from tests.victims import plain

RUN = Run(seed=1)

__all__ = ["owner"]


def ballots(images: int, views: int, classes: int, seed: int) -> Tensor:
    """Random votes in which the class 1 leads, by more or less."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.full((images, 1, classes), 0.3)
    chances[:, :, 1] = 0.5 + 0.5 * torch.rand(images, 1, generator=generator)
    return torch.rand(images, views, classes, generator=generator) < chances


def answer(votes: list[tuple[bool, ...]]) -> int:
    counts = [sum(column) for column in zip(*votes)]
    return counts.index(max(counts))


def flipped(votes: list[tuple[bool, ...]], touched: list[int], label: int) -> bool:
    """Whether some votes of the touched views make another answer, all of them tried."""
    choices = list(product((False, True), repeat=len(votes[0])))
    for told in product(choices, repeat=len(touched)):
        attacked = list(votes)
        for view, vote in zip(touched, told):
            attacked[view] = vote
        if answer(attacked) != label:
            return True
    return False


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    views=st.integers(5, 9),
    size=st.integers(1, 3),
    classes=st.integers(2, 3),
    label=st.integers(0, 1),
)
def test_the_rule_of_places_is_what_an_attacker_who_tries_all_votes_finds(
    seed: int, views: int, size: int, classes: int, label: int
) -> None:
    votes, touched = ballots(3, views, classes, seed), column_windows(views, size)
    labels = torch.full((3,), label)
    by_place = certify(votes, touched, labels, "places")
    by_counts = certify(votes, touched, labels, "counts")
    for row, ballot in enumerate(votes.tolist()):
        known = [tuple(vote) for vote in ballot]
        places = [window.nonzero().flatten().tolist() for window in touched]
        assert bool(by_place[row]) == (not any(flipped(known, place, label) for place in places))
    assert bool((by_counts <= by_place).all()), "the published rule certifies no more"


@given(seed=st.integers(0, 10**6), views=st.integers(4, 30), size=st.integers(1, 4), classes=st.integers(2, 5))
def test_the_rule_of_counts_is_the_published_one(seed: int, views: int, size: int, classes: int) -> None:
    """The two classes of most votes, the first of equal ones first, are 2Δ apart, or exactly that far and in order."""
    votes = ballots(20, views, classes, seed)
    labels = winners(votes)
    expected = []
    for counts in votes.sum(1).tolist():
        first, second = sorted(range(classes), key=lambda c: (-counts[c], c))[:2]
        lead = counts[first] - counts[second] - 2 * min(size, views)
        expected.append(lead > 0 or (lead == 0 and first < second))
    assert certify(votes, column_windows(views, size), labels, "counts").tolist() == expected
    assert labels.tolist() == [answer([tuple(vote) for vote in ballot]) for ballot in votes.tolist()]
    wrong = (labels + 1) % classes
    for rule in ("counts", "places"):
        assert not certify(votes, column_windows(views, size), wrong, rule).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", ["bands", "blocks"])
@pytest.mark.parametrize(("side", "patch"), [(1, 1), (2, 3), (3, 2), (4, 5), (2, 6)])
def test_a_patch_touches_the_views_that_show_a_pixel_of_it(parts: str, side: int, patch: int) -> None:
    method = DerandomizedSmoothing(parts=parts, side=side, patch=patch)  # type: ignore[arg-type]
    guarded = method.guard(redness, BLACK, (7, 8))
    touched = guarded.touched(patch)
    expected = []
    for top, left in product(range(7 - patch + 1), range(8 - patch + 1)):
        pixels = set(product(range(top, top + patch), range(left, left + patch)))
        starts = [(0, column) for column in range(8)] if parts == "bands" else list(product(range(7), range(8)))
        shown = [
            {((row + i) % 7, (column + j) % 8) for i in range(7 if parts == "bands" else side) for j in range(side)}
            for row, column in starts
        ]
        expected.append([bool(pixels & some) for some in shown])
    assert touched.tolist() == expected
    across, down = min(8, side + patch - 1), min(7, side + patch - 1)
    assert int(touched.sum(1).amax()) == (across if parts == "bands" else across * down)


def test_a_view_votes_for_every_class_of_which_it_is_confident() -> None:
    images = random_images(5, seed=2)
    guarded = DerandomizedSmoothing(side=3, patch=2, threshold=0.3).guard(redness, BLACK, (8, 8))
    votes = guarded.votes(images, RUN)
    seen = column_bands(8, 8, 3)
    for start in range(8):
        view = torch.where(seen[start], to_float(images), torch.zeros(()))
        assert torch.equal(votes[:, start], redness(view).softmax(1) >= 0.3)
    assert torch.equal(guarded.predict(images, RUN), votes.sum(1).argmax(1))
    assert guarded.predict(images[:0], RUN).shape == (0,)


def test_many_views_of_many_images_are_those_of_one() -> None:
    """576 blocks: more than are looked at together; the trigger is stamped before the view is cut."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 255, (3, 3, 24, 24), dtype=torch.uint8, generator=generator)
    guarded = DerandomizedSmoothing(parts="blocks", side=5).guard(lambda x: x.mean((2, 3)) * 50, BLACK, (24, 24))
    blend = Blend(alpha=0.3)
    votes = guarded.votes(images, RUN, blend)
    views = torch.where(blocks(24, 24, 5).unsqueeze(1), blend(to_float(images))[1], torch.zeros(()))
    assert torch.equal(votes[1], (views.mean((2, 3)) * 50).softmax(1) >= 0.2)


@pytest.mark.parametrize(("parts", "rule"), [("bands", "counts"), ("bands", "places"), ("blocks", "places")])
def test_no_patch_that_is_tried_changes_a_certified_answer(parts: str, rule: str) -> None:
    method = DerandomizedSmoothing(side=2, patch=2, parts=parts, rule=rule)  # type: ignore[arg-type]
    guarded, images = method.guard(redness, BLACK, (8, 8)), random_images(40, seed=3)
    labels = (torch.arange(40) >= 20).long()
    result, larger = guarded.certify(images, labels, [2, 5], RUN)
    assert 0 < result.certified.sum() < 40
    assert larger.certified.sum() < result.certified.sum()
    assert result.threat == "one 2×2 patch anywhere"
    kept, truth = images[result.certified], labels[result.certified]
    assert torch.equal(result.labels[result.certified], truth)
    for top, left in product(range(7), range(7)):
        for color in product((0, 255), repeat=3):
            attacked = kept.clone()
            attacked[:, :, top : top + 2, left : left + 2] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
            assert torch.equal(guarded.predict(attacked, RUN), truth)


@pytest.mark.parametrize("training", ["as-is", "head", "encoder"])
def test_it_learns_bands_as_patchguard_does(owner: Defender, training: str) -> None:
    settings = {"training": training, "epochs": 3, "batch": 16, "views": 2}
    ours = DerandomizedSmoothing(side=2, patch=2, **settings).prepare(owner.build(RUN), owner, RUN)  # type: ignore[arg-type]
    theirs = PatchGuardDS(band=2, patch=2, **settings).prepare(owner.build(RUN), owner, RUN)  # type: ignore[arg-type]
    images = random_images(12, seed=7)
    assert torch.equal(ours.votes(images, RUN), theirs.evidence(images, RUN) >= 0.2)


def test_an_owner_who_fits_no_head_has_a_linear_one_on_the_own_encoder(owner: Defender) -> None:
    tuner = replace(owner, head=Finetune(epochs=2, batch=16))
    classifier = tuner.build(RUN)
    learned = DerandomizedSmoothing(side=2, patch=2, training="head", views=2).learned(
        classifier, tuner, lambda images, _: images, RUN, "derandomized_smoothing"
    )
    assert learned.encoder is classifier.encoder is not tuner.encoder
    features = extract(classifier.encoder, tuner.train, RUN)
    fitted = Linear().fit(torch.cat([features, features]), tuner.train.targets().repeat(2), 2, RUN)
    assert torch.equal(learned.head(features).argmax(1), fitted(features).argmax(1))


def test_a_trained_classifier_is_certified_for_something(owner: Defender) -> None:
    images, labels = random_images(60, seed=7), (torch.arange(60) >= 30).long()
    counts = {}
    for training in ("as-is", "encoder"):
        method = DerandomizedSmoothing(side=2, patch=1, training=training, epochs=60, batch=16, threshold=0.6)  # type: ignore[arg-type]
        guarded = method.prepare(owner.build(RUN), owner, RUN)
        counts[training] = int(guarded.certify(images, labels, [1], RUN)[0].certified.sum())
    assert counts["encoder"] > max(5, counts["as-is"])


def test_what_it_cannot_do_is_told(owner: Defender) -> None:
    classifier = owner.build(RUN)
    with pytest.raises(SapperError, match="a patch of 8 pixels covers images of 8"):
        DerandomizedSmoothing(patch=8).prepare(classifier, owner, RUN)
    with pytest.raises(SapperError, match="a side of 8 pixels covers images of 8"):
        DerandomizedSmoothing(patch=2, side=8).prepare(classifier, owner, RUN)
    unlabeled = Defender(owner.encoder, owner.head, plain(owner.train), owner.features)
    with pytest.raises(SapperError, match="needs labels"):
        DerandomizedSmoothing(patch=2, training="head").learned(
            classifier, unlabeled, lambda images, _: images, RUN, "derandomized_smoothing"
        )
    guarded = DerandomizedSmoothing(patch=2).prepare(classifier, owner, RUN)
    images = random_images(4, seed=0)
    with pytest.raises(SapperError, match="labels run from 0 to 9, there are 2 classes"):
        guarded.certify(images, torch.tensor([0, 1, 0, 9]), [2], RUN)
    with pytest.raises(SapperError, match="a patch of 8 pixels on images of 8×8"):
        guarded.certify(images, torch.tensor([0, 1, 0, 1]), [8], RUN)
    for threshold in (0.0, 1.1):
        with pytest.raises(SapperError, match="does not fit"):
            DerandomizedSmoothing(threshold=threshold)
