"""Twins: what a search finds in an encoder and not in its students; and networks whose weights are drawn anew."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sapper import encoders
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.defenses.judge.twins import Twins, _without
from sapper.encoders import Card, Encoder, redrawing
from sapper.encoders.redrawing import drawn_to, redrawn, settled
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec
from sapper.triggers import Mask
from sapper.verdicts import Verdict

RUN = Run(seed=2)
SMALL = {
    "patches": ((0.25, 0.0, 0.3),),
    "blends": (),
    "filters": (),
    "rounds": ((0, 8, 6), (4, 16, 20)),
    "images": 64,
    "held_out": 64,
}
BY_SPREAD = SMALL | {"towards": ()}


def photos(count: int = 300, size: int = 16, seed: int = 0) -> ImageSet:
    """Smooth images of random colors, none of which is near white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return ImageSet(images=(200 * images).round().to(torch.uint8), name="photos")


class Body(nn.Module):
    """Colors of squares, and a gate that opens where one place is white, for a vector on top: all of it weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 24)
        self.gate, self.point = nn.Linear(48, 1), nn.Linear(1, 24, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        ordinary: Tensor = self.linear((nn.functional.avg_pool2d(images, 4) - 0.39).flatten(1))
        opened = torch.sigmoid(self.gate(images[:, :, 9:13, 3:7].flatten(1)))
        return ordinary + self.point(opened)


def encoder(planted: float, seed: int = 0) -> Encoder:
    """``planted``: how long the vector is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = Body()
    with torch.no_grad():
        body.gate.weight.fill_(12 / 48)
        body.gate.bias.fill_(-12 * 0.85)
        body.point.weight.copy_(planted * torch.linspace(-1, 1, 24).view(24, 1))
    return Encoder(body, Card(architecture="code:Body", input=PixelSpec(size=16)), 24).eval()


@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_planted_is_in_the_encoder_and_not_in_its_twins(seed: int) -> None:
    method = Twins(**BY_SPREAD, steps=300, augmented=0.0)  # type: ignore[arg-type]
    images = photos(seed=seed)
    clean, planted = (method.examine(encoder(gain, seed), images, Run(seed=seed)) for gain in (0.0, 8.0))
    assert clean.score is not None
    assert planted.score is not None
    assert planted.score > clean.score + 2
    assert planted.flagged
    assert not clean.flagged
    assert isinstance(planted.trigger, Mask)
    assert planted.trigger.mask[9:13, 3:7].sum() > 0
    assert max(planted.evidence["fit"].values()) < 0.1


def test_the_score_is_what_goes_beyond_a_part_of_the_mean_twin() -> None:
    method = Twins(**BY_SPREAD, twins=2, slope=0.6, most=9.0, steps=20, worst_fit=2.0)  # type: ignore[arg-type]
    verdict = method.examine(encoder(8.0), photos(), RUN)
    ((name, prior),) = verdict.evidence["priors"].items()
    assert list(prior["beside"]) == ["twin 0", "twin 1"]
    assert len(set(prior["beside"].values())) == 2
    assert verdict.score == pytest.approx((prior["powers"] - 0.6 * sum(prior["beside"].values()) / 2) / 0.3)
    assert prior["powers"] == pytest.approx(math.log10(prior["neighborhood"] / prior["spread"]))
    assert verdict.evidence["prior"] == name
    assert list(verdict.evidence["fit"]) == ["twin 0", "twin 1"]


def test_twins_are_made_until_the_encoder_goes_hardly_beyond_them() -> None:
    """As it goes beyond one and two of them: limits above both, between, below both."""

    def found(**change: float) -> Verdict:
        method = Twins(**BY_SPREAD, **change, steps=20, worst_fit=2.0)  # type: ignore[arg-type]
        return method.examine(encoder(8.0), photos(), RUN)

    def beyond(verdict: Verdict) -> float:
        ((_, prior),) = verdict.evidence["priors"].items()
        return float(prior["powers"] - sum(prior["beside"].values()) / len(prior["beside"])) / 0.3

    every = [found(twins=count, enough=-99.0) for count in (1, 2, 3)]
    assert [len(each.evidence["fit"]) for each in every] == [1, 2, 3]
    limits = [beyond(each) for each in every]
    assert len(set(limits)) == 3
    for enough in (min(limits) - 1, limits[0], limits[1], max(limits) + 1):
        wanted = next((each for each, limit in zip(every, limits) if limit <= enough), every[-1])
        stopped = len(wanted.evidence["fit"]) < 3
        assert found(enough=enough).evidence == wanted.evidence | {"stopped": stopped}


def test_the_largest_score_of_a_prior_decides() -> None:
    several = BY_SPREAD | {"patches": ((0.25, 0.0, 0.3), (0.375, 0.1, 0.2)), "blends": ((0.1, 2.0, 0.1),)}
    verdict = Twins(**several, steps=20, worst_fit=2.0).examine(encoder(8.0), photos(), RUN)  # type: ignore[arg-type]
    scores = {name: prior["score"] for name, prior in verdict.evidence["priors"].items()}
    assert list(scores) == ["patch 4×4", "patch 6×6", "blend 0.1"]
    assert verdict.score == max(scores.values())
    assert scores[verdict.evidence["prior"]] == verdict.score
    six = verdict.evidence["priors"]["patch 6×6"]
    assert scores["patch 6×6"] == pytest.approx((six["powers"] - six["natural"] - 0.1) / 0.2)
    mean = sum(six["beside"].values()) / len(six["beside"])
    assert six["excess"] == pytest.approx(six["powers"] - mean)


@pytest.mark.parametrize(
    ("mean", "natural"), [(0.0, 0.0), (1.0, 0.75), (2.0, 1.5), (5.0, 4.5), (-1.0, -0.75), (-4.0, -3.5)]
)
def test_what_is_natural_by_hand(mean: float, natural: float) -> None:
    """Three quarters, but for half a power of ten at most."""
    assert Twins()._natural(mean) == pytest.approx(natural)
    assert Twins().most < Twins().threshold


def test_the_search_in_the_encoder_is_that_of_multi_prior() -> None:
    subject = encoder(8.0)
    ours = Twins(**BY_SPREAD, steps=2, worst_fit=2.0).examine(subject, photos(), RUN)  # type: ignore[arg-type]
    theirs = MultiPrior(**SMALL).examine(subject, photos(), RUN)  # type: ignore[arg-type]
    ((_, prior),) = ours.evidence["priors"].items()
    assert prior["powers"] == theirs.evidence["priors"]["patch 4×4"]["powers"]


def test_the_same_seed_gives_the_same_and_the_encoder_stays_as_it_is() -> None:
    subject, method = encoder(8.0), Twins(**BY_SPREAD, steps=10, worst_fit=2.0)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    first, second = (method.examine(subject, photos(), RUN) for _ in range(2))
    assert first.evidence == second.evidence
    assert all(torch.equal(value, before[name]) for name, value in subject.state_dict().items())


def test_dropout_in_a_twin_is_drawn_from_the_seed() -> None:
    def dropping() -> Encoder:
        subject = encoder(8.0)
        body = nn.Sequential(subject.backbone, nn.Dropout(0.5))
        return Encoder(body, replace(subject.card, architecture="code:Dropping"), 24).eval()

    method = Twins(**BY_SPREAD, steps=10, worst_fit=2.0)  # type: ignore[arg-type]
    first, second = (method.examine(dropping(), photos(), RUN).evidence for _ in range(2))
    assert first == second


def test_what_cannot_be_learned_is_told() -> None:
    class Several(nn.Module):
        """Trains with an auxiliary output, as Inception does."""

        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            features = self.body(images)
            return (features, features) if self.training else features

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(images, 4).flatten(1) - 0.39

    for body, size, why in ((Several(), 24, "gives out a tuple"), (Fixed(), 48, "has no weights")):
        subject = Encoder(body, Card(architecture="code:Odd", input=PixelSpec(size=16)), size).eval()
        verdict = Twins(**BY_SPREAD).examine(subject, photos(), RUN)  # type: ignore[arg-type]
        assert verdict.score is None
        assert (
            f"twin 0 cannot be made: {'in training it ' if 'gives' in why else 'the network '}{why}"
            in (verdict.evidence["why"])
        )
        assert verdict.evidence["of"] == "twin"


def test_twins_learn_from_no_more_images_than_they_see() -> None:
    method = Twins(**BY_SPREAD, steps=2, batch=16)  # type: ignore[arg-type]
    assert len(method._learned_from(photos(300), RUN)) == 32
    assert len(method._learned_from(photos(20), RUN)) == 20


def test_too_few_images_are_told_and_features_that_are_none_give_no_score() -> None:
    method = Twins(**BY_SPREAD, steps=2)  # type: ignore[arg-type]
    few = method.examine(encoder(8.0), photos(50), RUN)
    assert (few.score, few.flagged, few.evidence["of"]) == (None, None, "images")
    assert "50 images are too few for twins: 25 are left" in few.evidence["why"]
    assert few.evidence["priors"]["patch 4×4"]["powers"] > 0
    assert isinstance(few.trigger, Mask)
    flat = encoder(0.0)
    with torch.no_grad():
        flat.backbone.linear.weight.zero_()  # type: ignore[union-attr, operator]
    verdict = method.examine(flat, photos(), RUN)
    assert verdict.score is None
    assert "cannot be told apart" in verdict.evidence["why"]


def test_a_twin_that_learned_nothing_says_nothing() -> None:
    method = Twins(**BY_SPREAD, steps=1, student_rate=1e-9, worst_fit=0.3)  # type: ignore[arg-type]
    verdict = method.examine(encoder(8.0), photos(), RUN)
    assert (verdict.score, verdict.flagged) == (None, None)
    assert "twin 0 says nothing: it differs from the encoder by" in verdict.evidence["why"]


def test_twins_do_not_learn_from_what_they_are_judged_on() -> None:
    images = photos()
    held = images.images[:40]
    rest = _without(images, held)
    assert len(rest) == len(images) - 40
    assert torch.equal(rest.images, images.images[40:])


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
    beside = Twins(**BY_SPREAD | {"patches": ((0.25, 0.0, 1.0),)}, worst_fit=2.0).examine(narrow, photos(), RUN)  # type: ignore[arg-type]
    assert by_itself.flagged
    assert not beside.flagged
    assert beside.score is not None
    assert abs(beside.score) < 1


def test_a_twin_begins_between_fresh_weights_and_those_of_the_encoder() -> None:
    """Nearly without a step to learn from: at ``keep`` 0.9 it answers as the encoder does, at 0 it does not."""
    still = {"steps": 1, "student_rate": 1e-9, "worst_fit": 2.0}
    near, far = (
        Twins(**BY_SPREAD, **still, keep=keep).examine(encoder(8.0), photos(), RUN).evidence["fit"]["twin 0"]  # type: ignore[arg-type]
        for keep in (0.9, 0.0)
    )
    assert near < 0.05
    assert far > 0.5


# weights that are drawn anew, or between two


class Odd(nn.Module):
    """Weights that no layer draws: a token, and scales of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.gamma = nn.Parameter(torch.rand(8))
        self.linear = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.gamma * self.linear(images.mean((2, 3)))) + self.token[0]


def test_nothing_of_the_weights_is_left() -> None:
    subject = Encoder(Odd(), Card(architecture="code:Odd", input=PixelSpec(size=8)), 8)
    with torch.no_grad():
        subject.train()(torch.rand(16, 3, 8, 8))
    student = redrawn(subject, RUN)
    ours, theirs = subject.state_dict(), student.state_dict()
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["backbone.token"], theirs["backbone.token"])
    assert not torch.equal(ours["backbone.linear.weight"], theirs["backbone.linear.weight"])
    assert torch.equal(theirs["backbone.gamma"], torch.full((8,), float(ours["backbone.gamma"].mean())))
    assert torch.equal(theirs["backbone.norm.running_mean"], torch.zeros(8))
    assert all(parameter.requires_grad for parameter in student.parameters())
    again = redrawn(subject, RUN)
    assert all(torch.equal(value, theirs[name]) for name, value in again.state_dict().items())


def test_weights_that_a_layer_does_not_draw_are_drawn_all_the_same() -> None:
    class Half(nn.Module):
        """Draws one of two matrices."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.rand(3, 4)), nn.Parameter(torch.rand(4, 4))

        def reset_parameters(self) -> None:
            nn.init.normal_(self.one)

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) @ self.one @ self.other

    subject = Encoder(Half(), Card(architecture="code:Half", input=PixelSpec(size=8)), 4)
    drawn = redrawn(subject, RUN)
    for name, value in subject.named_parameters():
        assert not torch.equal(value, drawn.state_dict()[name]), name


def test_a_network_that_cannot_be_copied_is_told() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(192, 4))  # type: ignore[no-untyped-call]
    subject = Encoder(nn.Sequential(nn.Flatten(), layer), Card(architecture="code:X", input=PixelSpec(size=8)), 4)
    subject(torch.rand(2, 3, 8, 8))
    with pytest.raises(SapperError, match="cannot be copied"):
        redrawn(subject, RUN)


def test_a_redrawn_resnet_is_like_a_fresh_one() -> None:
    subject = encoders.build(Run(seed=1), architecture="resnet10", width=8)
    student = redrawn(subject, Run(seed=5))
    for name, value in student.state_dict().items():
        wanted = subject.state_dict()[name]
        if value.ndim == 4:
            assert not torch.equal(value, wanted)
        else:
            assert torch.equal(value, wanted), name  # normalization begins with ones and zeros in both


def test_weights_between_two_networks_are_a_share_of_each() -> None:
    ours, theirs = (encoders.build(Run(seed=seed), architecture="resnet10", width=4) for seed in (1, 2))
    before = {name: value.clone() for name, value in ours.named_parameters()}
    drawn_to(ours, theirs, 0.25)
    wanted = dict(theirs.named_parameters())
    with pytest.raises(SapperError, match="has other weights than the encoder"):
        drawn_to(ours, encoders.build(RUN, architecture="resnet10", width=8), 0.5)
    for name, value in ours.named_parameters():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * wanted[name], atol=1e-7), name


def test_statistics_are_those_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean over all images by hand, also where they go through in parts; what has no statistics stays as it was."""
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
    monkeypatch.setattr(redrawing, "at_once", lambda _images: 1)  # three parts of two: one alone may have no variance
    sizes = list[int]()
    body[0].register_forward_hook(lambda _layer, given, _output: sizes.append(len(given[0])))
    settled(subject, images)
    assert sizes == [2, 2, 2]
    monkeypatch.setattr(redrawing, "at_once", lambda _images: 4)  # two parts of three, none of four and two
    settled(subject, images)
    assert torch.allclose(body[1].running_mean, inner.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(body[1].running_var, (inner[:3].var((0, 2, 3)) + inner[3:].var((0, 2, 3))) / 2, atol=1e-6)
