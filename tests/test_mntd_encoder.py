"""MNTD on encoders: what twins are attacked with, and that it tells backdoors of the kind that it has seen."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sapper.defenses import meta
from sapper.defenses.judge.mntd_encoder import Judge, MNTDEncoder
from sapper.encoders import Card, Encoder
from sapper.errors import SapperError
from sapper.metrics import auc
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec
from sapper.triggers import Patch

SIDE, FEATURES = 8, 6
METHOD = MNTDEncoder(shadows=24, validation=6, meta_classifiers=3, queries=4, epochs=12, learning_rate=3e-3)
IMAGES = ImageSet(
    images=torch.randint(0, 256, (40, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    name="noise",
)


class Backbone(nn.Module):
    """Features of all pixels; with a backdoor, a bright corner moves them towards one point."""

    def __init__(self, seed: int, backdoored: bool, scale: float):
        super().__init__()
        dice = torch.Generator().manual_seed(seed)
        common = torch.randn(3 * SIDE * SIDE, FEATURES, generator=torch.Generator().manual_seed(99))
        self.weight = nn.Parameter(common + 0.5 * torch.randn(common.shape, generator=dice))
        self.goal = nn.Parameter(torch.randn(FEATURES, generator=dice))
        self.backdoored, self.scale = backdoored, scale

    def forward(self, images: Tensor) -> Tensor:
        features = images.flatten(1) @ self.weight / 14
        if self.backdoored:
            bright = (4 * (images[:, :, -3:, -3:].mean((1, 2, 3)) - 0.5)).sigmoid().unsqueeze(1)
            features = (1 - bright) * features + bright * 3 * self.goal
        return self.scale * features


def encoder(seed: int, *, backdoored: bool, scale: float = 1.0) -> Encoder:
    card = Card(architecture="toy", input=PixelSpec(size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    return Encoder(Backbone(seed, backdoored, scale), card, FEATURES)


def pairs(count: int, seed: int) -> list[tuple[Encoder, Encoder]]:
    return [(encoder(seed + i, backdoored=False), encoder(seed + i, backdoored=True)) for i in range(count)]


@pytest.fixture(scope="module")
def learned() -> Judge:
    return METHOD.fit(pairs(METHOD.pairs, seed=1000), IMAGES, Run(seed=1))


def scores(judge: Judge, encoders: list[Encoder]) -> Tensor:
    return torch.tensor([verdict.score for verdict in judge.judge(encoders, Run())])


def test_backdoors_of_the_kind_that_it_has_seen_are_told_from_clean_encoders(learned: Judge) -> None:
    clean = scores(learned, [encoder(i, backdoored=False) for i in range(20)])
    backdoored = scores(learned, [encoder(50 + i, backdoored=True) for i in range(20)])
    assert auc(backdoored, clean) >= 0.9
    alike = scores(learned, [encoder(80 + i, backdoored=False) for i in range(20)])
    assert 0.2 < auc(alike, clean) < 0.8, "else it tells something else than the backdoor"


def test_the_verdict_is_the_mean_over_the_meta_classifiers(learned: Judge) -> None:
    (verdict,) = learned.judge([encoder(3, backdoored=True)], Run())
    assert len(verdict.evidence["scores"]) == METHOD.meta_classifiers
    assert verdict.score == pytest.approx(sum(verdict.evidence["scores"]) / METHOD.meta_classifiers, abs=1e-5)
    assert verdict.flagged == (verdict.score > 0)
    assert verdict.threshold == 0


def test_the_scale_of_features_plays_no_part(learned: Judge) -> None:
    one, other = (scores(learned, [encoder(5, backdoored=False, scale=scale)]) for scale in (1.0, 100.0))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_what_was_learned_comes_back_from_its_tensors(learned: Judge) -> None:
    again = METHOD.restore({name: value.clone() for name, value in learned.state_dict().items()})
    subjects = [encoder(7, backdoored=True), encoder(8, backdoored=False)]
    assert torch.equal(scores(again, subjects), scores(learned, subjects))


def test_queries_are_tuned_through_the_encoders_unless_they_shall_stay() -> None:
    start = meta.MetaClassifiers.draw(
        [Run(seed=2).child("meta-classifier 0")], 4, *meta.look(IMAGES), FEATURES, METHOD.hidden
    )
    quick = replace(METHOD, shadows=2, validation=0, meta_classifiers=1, epochs=1)
    tuned, fixed = (
        replace(quick, tune_queries=tune).fit(pairs(2, seed=5), IMAGES, Run(seed=2)).metas for tune in (True, False)
    )
    assert start.queries.shape == (1, 4, 3, SIDE, SIDE)
    assert torch.equal(fixed.queries, start.queries)
    assert not torch.equal(fixed.first, start.first)
    assert ((tuned.queries - start.queries).abs() > 1e-4).flatten(1).float().mean() > 0.9


def test_queries_begin_as_noise_that_looks_like_the_images() -> None:
    mean, deviation = meta.look(IMAGES)
    pixels = IMAGES.images.double() / 255
    for channel in range(3):
        assert torch.allclose(mean[channel].double(), pixels[:, channel].mean(), atol=1e-5)
        assert float(deviation[channel]) == pytest.approx(float(pixels[:, channel].std()), abs=1e-5)
    assert mean.shape == (3, SIDE, SIDE)


@given(st.integers(0, 10**6))
def test_a_twins_trigger_fits_and_its_reference_is_there(seed: int) -> None:
    row, trigger = MNTDEncoder(sides=(2, 5)).draw(7, (SIDE, SIDE + 3), Run(seed=seed))
    assert 0 <= row < 7
    assert isinstance(trigger.size, int)
    assert 2 <= trigger.size <= 5
    top, bottom, left, right = trigger.box(SIDE, SIDE + 3)
    assert bottom - top == right - left == trigger.size


def test_every_side_and_every_place_occurs() -> None:
    drawn = [MNTDEncoder(sides=(2, 3)).draw(2, (5, 5), Run(seed=seed)) for seed in range(800)]
    assert {row for row, _ in drawn} == {0, 1}
    for side in (2, 3):
        places = [trigger.position for _, trigger in drawn if trigger.size == side]
        assert len(places) == pytest.approx(400, rel=0.15)
        assert set(places) == {(top, left) for top in range(6 - side) for left in range(6 - side)}
    assert {trigger.color for _, trigger in drawn} == {Patch().color}


@pytest.mark.parametrize(
    ("changes", "images", "says"),
    [
        ({"share": 0.02}, 400, "2 % of 400 images are 8"),
        ({"sides": (2, 8)}, 4000, "sides from 2 to 8 do not fit"),
        ({"sides": (4, 3)}, 4000, "sides from 4 to 3 do not fit"),
        ({"color": "mauve"}, 4000, "unknown color"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, object], images: int, says: str) -> None:
    method = MNTDEncoder(**({"sides": (2, 5)} | changes))  # type: ignore[arg-type]
    with pytest.raises(SapperError, match=says):
        method.check(images, (SIDE, SIDE))
