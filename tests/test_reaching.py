"""Squares that send images to a class, and clusters of features as classes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sapper.audits.auditing import audit
from sapper.audits.families import Family, FamilyBag, parameters_of
from sapper.defenses.budgets import BUDGETS
from sapper.defenses.judge.twins import Twins
from sapper.defenses.reaching import SOFTNESS, Centers, ReachSearch, Sent, clusters_of
from sapper.encoders import Card, Encoder
from sapper.report import audit as page
from sapper.running import Run
from sapper.samples import PixelSpec, to_float
from sapper.tensors import KeptIn
from sapper.triggers.priors import Stamp
from tests.test_twins import photos

RUN = Run(seed=4)
SQUARE = Stamp.patches(2, (8, 8), RUN).take(torch.tensor([0]))


def sent(count: int, images: int, loss: float = 1.0) -> Sent:
    return Sent(change=SQUARE, usual=0.0, deviation=1.0, label=0, sent=count, images=images, loss=loss)


def blobs(seed: int, count: int = 40, apart: float = 20.0) -> tuple[Tensor, Tensor]:
    """Features of four groups far apart, measured in different units; and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(4).repeat_interleave(count)
    corners = apart * torch.tensor([[0.0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    noise = torch.randn(len(groups), 6, generator=generator)
    units = torch.tensor([1.0, 9, 1, 1, 0.5, 1])
    return (corners[groups] + noise) * units, groups


# How many are sent


@given(st.integers(1, 5000), st.data())
def test_powers_are_the_log_odds_and_grow_with_the_share(images: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, images))
    found = sent(count, images)
    assert found.powers == pytest.approx(-sent(images - count, images).powers, abs=1e-9)
    assert math.isfinite(found.powers)
    if count < images:
        assert sent(count + 1, images).powers > found.powers
    assert found.share == count / images


def test_powers_by_hand() -> None:
    assert sent(50, 100).powers == 0
    assert sent(100, 100).powers == pytest.approx(math.log10(51))
    assert sent(7, 10).told() == {"share": 0.7, "powers": pytest.approx(math.log10(9 / 5))}


@pytest.mark.parametrize("others", [64, 115, 128])
def test_one_image_more_or_less_does_not_decide(others: int) -> None:
    """Where a twin sends all but one, and the encoder all: far from the threshold."""
    method = Twins(towards=((0.25, 0.0, 1.5),))
    whole, but_one = sent(others, others).powers, sent(others - 1, others).powers
    assert (whole - method._natural(but_one)) / 1.5 < 0.75 * method.threshold


# Clusters


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_are_the_groups_whatever_units_features_have(seed: int) -> None:
    features, groups = blobs(seed)
    labels = clusters_of(features, 4, RUN)
    assert len({(int(group), int(label)) for group, label in zip(groups, labels)}) == 4
    assert torch.equal(Centers.of(features, labels).behind(_passing())(features).argmax(1), labels)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_are_squared_distances_to_the_centers(seed: int) -> None:
    features, groups = blobs(seed, apart=2.0)
    points = ((features - features.mean(0)) / features.std(0)).double()
    centers = [points[groups == group].mean(0) for group in range(4)]
    distances = torch.stack([((points - center) ** 2).sum(1) for center in centers], 1)
    within = sum(float(distances[row, group]) for row, group in enumerate(groups)) / len(groups)
    logits = Centers.of(features, groups).behind(_passing())(features)
    assert torch.allclose(logits.double(), -distances * SOFTNESS / within, rtol=1e-3, atol=1e-3)


def test_another_network_has_centers_of_its_own() -> None:
    """One that gives out the same in other units, another order and elsewhere tells the clusters as well."""
    features, groups = blobs(0, apart=3.0)
    other = 7 * features[:, [3, 0, 5, 1, 4, 2]] - 100
    ours, theirs = (Centers.of(each, groups).behind(_passing())(each) for each in (features, other))
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_features_that_hardly_vary_say_little_and_few_images_have_few_clusters() -> None:
    features, groups = blobs(0)
    features[:, 5] = 3.0
    features[0, 5] += 1e-6
    logits = Centers.of(features, groups).behind(_passing())
    shifted = features + torch.tensor([0, 0, 0, 0, 0, 1e-5])
    assert torch.equal(logits(features).argmax(1), logits(shifted).argmax(1))
    assert int(clusters_of(features[[0, 50, 100] * 4], 10, RUN).max()) + 1 == 3
    assert int(clusters_of(features[:1].expand(12, -1), 10, RUN).max()) + 1 == 1


def _passing() -> Encoder:
    """Gives out what comes in."""
    return nn.Identity()  # type: ignore[return-value]


# A backdoor that moves features, and draws them no closer together


class Shifting(nn.Module):
    """Colors beside long constants, so that no vector draws features together; and one where a place is white.

    Fresh weights in place of that vector do little.
    """

    def __init__(self, planted: float) -> None:
        super().__init__()
        self.linear, self.gate, self.point = nn.Linear(48, 24), nn.Linear(12, 1), nn.Linear(1, 24, bias=False)
        with torch.no_grad():
            self.linear.bias.add_(3)
            self.gate.weight.fill_(1)
            self.gate.bias.fill_(-12 * 0.8)
            self.point.weight.copy_(planted / 0.03 * torch.linspace(-1, 1, 24).view(24, 1))

    def forward(self, images: Tensor) -> Tensor:
        ordinary: Tensor = self.linear((nn.functional.avg_pool2d(images, 4) - 0.39).flatten(1))
        return ordinary + 0.03 * self.point(torch.sigmoid(self.gate(images[:, :, 9:11, 3:5].flatten(1))))


def shifting(planted: float, seed: int) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Encoder(Shifting(planted), Card(architecture="code:Shifting", input=PixelSpec(size=16)), 24).eval()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_shift_is_found_at_its_place(seed: int) -> None:
    encoder, images = shifting(3.0, seed), photos(400, seed=seed)
    with torch.no_grad():
        features = encoder(to_float(images.images))
    logits = Centers.of(features, clusters_of(features, 6, RUN)).behind(encoder)
    search = ReachSearch(side=0.125, most=3)
    found = search.reach(logits, images.images[:128], images.images[128:256], 6, RUN)
    winner = max(found.values(), key=lambda each: each.powers)
    assert len(found) == 3
    assert winner.share > 0.9
    mask = winner.change.trigger().mask  # type: ignore[attr-defined]
    assert mask.sum() == 4
    assert mask[9:11, 3:5].sum() >= 2


@pytest.mark.parametrize("seed", [0, 1])
def test_twins_see_a_shift_that_does_not_collapse_features(seed: int) -> None:
    method = Twins(
        patches=((0.25, 0.0, 1.0),),
        blends=(),
        filters=(),
        towards=((0.125, 0.0, 1.0),),
        rounds=((0, 8, 6), (4, 16, 20)),
        images=64,
        held_out=64,
        keep=0.0,
        steps=300,
        augmented=0.0,
    )
    clean, planted = (
        method.examine(shifting(gain, seed), photos(400, seed=seed), Run(seed=seed)) for gain in (0.0, 3.0)
    )
    assert planted.evidence["prior"] == "square 2×2, to a cluster"
    for verdict in (clean, planted):
        prior = verdict.evidence["priors"]["square 2×2, to a cluster"]
        mean = sum(prior["beside"].values()) / len(prior["beside"])
        assert prior["natural"] == pytest.approx(mean - max(-0.5, min(0.5, 0.25 * mean)))
        assert prior["score"] == pytest.approx(prior["powers"] - prior["natural"])
        assert verdict.score == max(each["score"] for each in verdict.evidence["priors"].values())
    assert planted.score is not None
    assert clean.score is not None
    assert planted.flagged
    assert not clean.flagged
    assert planted.evidence["priors"]["patch 4×4"]["score"] < planted.score


def test_features_that_cannot_be_measured_end_without_a_score() -> None:
    """In one image that is shown to twins, and not held out."""
    images, method = (
        photos(400),
        Twins(patches=((0.25, 0.0, 1.0),), blends=(), filters=(), towards=((0.125, 0.0, 1.5),)),
    )
    _, unseen = method.split(images, RUN, "here")
    odd = next(image for image in images.images if not (unseen == image).flatten(1).all(1).any())

    class Overflowing(Shifting):
        def forward(self, images: Tensor) -> Tensor:
            hit = ((images - to_float(odd)).abs().flatten(1).amax(1) < 1e-6)[:, None]
            return super().forward(images).masked_fill(hit, torch.inf)

    encoder = Encoder(Overflowing(0.0), Card(architecture="code:Odd", input=PixelSpec(size=16)), 24).eval()
    verdict = method.examine(encoder, images, RUN)
    assert verdict.score is None
    assert verdict.evidence["why"] == "features of some images cannot be measured"


def test_an_interrupted_search_goes_on_to_the_same_end_and_other_clusters_begin_anew(tmp_path: Path) -> None:
    short = {"patches": ((0.25, 0.0, 1.0),), "blends": (), "filters": (), "rounds": ((0, 2, 1), (2, 2, 1))}
    method = Twins(towards=((0.125, 0.0, 1.5),), nearest=2, twins=1, steps=3, worst_fit=2.0, **short)  # type: ignore[arg-type]
    plain = [replace(method, clusters=count).examine(shifting(3.0, 0), photos(400), RUN) for count in (4, 6)]
    keeping = replace(RUN, kept=KeptIn(tmp_path))
    for count, wanted in zip((4, 6, 4), (*plain, plain[0])):
        verdict = replace(method, clusters=count).examine(shifting(3.0, 0), photos(400), keeping)
        assert verdict.evidence == wanted.evidence


def test_an_audit_says_that_a_square_moves_features() -> None:
    """Its reason, its lines and its page, where the square towards a cluster is what decides."""
    short = {
        "patches": ((0.25, 0.0, 1.0),),
        "towards": ((0.125, 0.0, 1.0),),
        "rounds": ((0, 8, 6), (4, 16, 20)),
        "images": 64,
        "held_out": 64,
    }
    twins: dict[str, Any] = short | {"blends": (), "filters": (), "keep": 0.0, "steps": 300, "augmented": 0.0}
    budget = replace(BUDGETS["quick"], strangers={"twins": twins})
    known = [Family(name=f"family {number}", about="toys", scores=[number / 100]) for number in range(20)]
    parameters = parameters_of(budget.for_strangers()["twins"])
    bag = FamilyBag(name="others", detector="twins", parameters=parameters, images=8, families=known)
    report = audit(shifting(3.0, 0), photos(400), budget, [], Run(seed=0), families=[bag])
    assert report.verdict == "backdoor"
    assert "sends more images to one cluster of features than in the encoder's twins" in report.reason
    assert any("% of other images to one cluster of features; odds (log10): " in line for line in page.lines(report))
    told = page.render(report, {}, "sapper audit")
    assert "how many other images a square sends to one cluster of features" in told
    assert told.count("<td>square 2×2, to a cluster</td>") == 1
    assert told.count("<td>patch 4×4</td>") == 1
