"""Untrained copies: what a search finds in an encoder and not in its architecture."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sapper import encoders
from sapper.defenses.inversion import spread_of
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.defenses.judge.untrained import Untrained
from sapper.encoders import Card, Encoder
from sapper.encoders.redrawing import redrawn, settled
from sapper.running import Run
from sapper.samples import PixelSpec
from sapper.tensors import KeptIn
from sapper.triggers import Mask
from tests.test_twins import RUN, SMALL, encoder, photos

METHOD = Untrained(**SMALL, copies=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_planted_is_in_the_encoder_and_not_in_its_copies(seed: int) -> None:
    images = photos(seed=seed)
    clean, planted = (METHOD.examine(encoder(gain, seed), images, Run(seed=seed)) for gain in (0.0, 8.0))
    assert clean.score is not None
    assert planted.score is not None
    assert planted.score > clean.score + 2
    assert planted.flagged
    assert not clean.flagged
    assert isinstance(planted.trigger, Mask)
    assert planted.trigger.mask[9:13, 3:7].sum() > 0


def test_what_an_architecture_does_by_itself_is_no_score() -> None:
    """A network that looks at one place only: any square there decides, whatever the weights are."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(48, 24)

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.linear(images[:, :, 8:12, 4:8].flatten(1) - 0.39)
            return features

    with torch.random.fork_rng():
        torch.manual_seed(3)
        narrow = Encoder(Narrow(), Card(architecture="code:Narrow", input=PixelSpec(size=16)), 24).eval()
    by_itself = MultiPrior(**SMALL, threshold=2.0).examine(narrow, photos(), RUN)  # type: ignore[arg-type]
    beside = METHOD.examine(narrow, photos(), RUN)
    assert by_itself.flagged
    assert not beside.flagged
    assert beside.score is not None
    assert abs(beside.score) < 1


def test_the_score_is_the_excess_over_the_mean_copy() -> None:
    verdict = METHOD.examine(encoder(8.0), photos(), RUN)
    ((name, prior),) = verdict.evidence["priors"].items()
    assert verdict.score == pytest.approx((prior["powers"] - sum(prior["beside"]) / 2) / 0.3)
    assert prior["powers"] == pytest.approx(math.log10(prior["neighborhood"] / prior["spread"]))
    assert verdict.evidence["prior"] == name
    assert len(set(prior["beside"])) == 2
    theirs = MultiPrior(**SMALL).examine(encoder(8.0), photos(), RUN)  # type: ignore[arg-type]
    assert prior["powers"] == theirs.evidence["priors"][name]["powers"]


def test_its_parts_together_say_what_it_says() -> None:
    both = replace(METHOD, patches=((0.25, 0.0, 0.3), (0.375, 0.0, 0.2)))
    whole = both.examine(encoder(8.0), photos(), RUN)
    parts = [part.examine(encoder(8.0), photos(), RUN) for part in both.parts()]
    scores = [part.score for part in parts if part.score is not None]
    assert whole.score == max(scores)
    joined = parts[0].evidence["priors"] | parts[1].evidence["priors"]
    assert whole.evidence["priors"] == joined


def test_the_encoder_stays_as_it_is_and_what_is_kept_is_the_same(tmp_path: Path) -> None:
    subject = encoder(8.0)
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    plain = METHOD.examine(subject, photos(), RUN)
    keeping = replace(RUN, kept=KeptIn(tmp_path))
    assert [METHOD.examine(subject, photos(), keeping).evidence for _ in range(2)] == [plain.evidence] * 2
    assert len(list(tmp_path.iterdir())) == 3
    assert all(torch.equal(value, before[name]) for name, value in subject.state_dict().items())


def test_features_that_are_none_give_no_score() -> None:
    flat = encoder(0.0)
    with torch.no_grad():
        flat.backbone.linear.weight.zero_()  # type: ignore[union-attr, operator]
    verdict = METHOD.examine(flat, photos(), RUN)
    assert verdict.score is None
    assert "cannot be told apart" in verdict.evidence["why"]


def test_a_copy_that_says_nothing_is_told() -> None:
    class Constant(nn.Module):
        """Features that only what was learned tells apart: a copy has none."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(48))

        def forward(self, images: Tensor) -> Tensor:
            centred = self.scale - self.scale.mean()
            return torch.nn.functional.avg_pool2d(images, 4).flatten(1) * centred + 1

    subject = Encoder(Constant(), Card(architecture="code:Constant", input=PixelSpec(size=16)), 48).eval()
    with torch.no_grad():
        subject.backbone.scale.copy_(torch.linspace(-5, 5, 48))  # type: ignore[union-attr, operator]
    verdict = METHOD.examine(subject, photos(), RUN)
    assert verdict.score is None
    assert "an untrained copy says nothing" in verdict.evidence["why"]


def test_statistics_of_a_copy_are_those_of_the_images() -> None:
    """Mean and variance over all images by hand; what has no statistics stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    card = Card(architecture="code:Body", input=PixelSpec(size=4, mean=(0, 0, 0), std=(1, 1, 1)))
    subject, images = Encoder(body, card, 80), torch.rand(6, 3, 4, 4)
    weights = body[0].weight.detach().clone()
    settled(subject, images)
    with torch.no_grad():
        inner = body[0](images)
    assert torch.allclose(body[1].running_mean, inner.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(body[1].running_var, inner.var((0, 2, 3), unbiased=True), atol=1e-6)
    assert torch.equal(body[0].weight, weights)
    assert not any(module.training for module in subject.modules())
    with torch.no_grad():
        assert torch.equal(subject(images), subject(images))


def test_a_deep_copy_tells_images_apart_by_its_statistics() -> None:
    """Without them a VGG of random weights makes nearly one feature of all images."""
    images = torch.rand(32, 3, 32, 32)
    copy = redrawn(encoders.build(RUN, architecture="vgg11", width=4).eval(), RUN).eval().requires_grad_(False)
    before = spread_of(copy(images))
    after = spread_of(settled(copy, images)(images))
    assert after > 10 * before
