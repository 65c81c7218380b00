"""RAB: its radius by hand and against brute force, and that no poison that is tried changes what is certified."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from sapper.defenses.certify.rab import RAB, Ensemble, certified_radius, hashed_noise
from sapper.defenses.defender import Defender
from sapper.downstream import MLP, Finetune
from sapper.encoders import Card, Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec, to_float
from tests.test_patchguard_ds import random_images
from tests.victims import plain

RUN = Run(seed=1)


def test_the_radius_of_two_classes_is_the_published_one() -> None:
    """1000 models, α = 0.001: t = 0.0588; σ/2 (Φ⁻¹(q_y − t) − Φ⁻¹(q_c + t))."""
    means = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    found = certified_radius(means, torch.zeros(4, dtype=torch.int64), 1000, 1.0, 0.001)
    missed = np.sqrt(np.log(1000) / 2000)
    expected = 0.5 * (stats.norm.ppf(means[:, 0] - missed) - stats.norm.ppf(means[:, 1] + missed))
    np.testing.assert_allclose(found.numpy(), expected)
    assert bool((found[:2] > 0).all())
    assert bool((found[2:] < 0).all())


def test_the_radius_of_more_classes_takes_a_bound_for_each() -> None:
    means, label = torch.tensor([[0.1, 0.7, 0.2]], dtype=torch.float64), torch.tensor([1])
    missed = np.sqrt(np.log(3 / 0.05) / 400)
    expected = 0.1 * (stats.norm.ppf(0.7 - missed) - stats.norm.ppf(0.2 + missed))
    assert float(certified_radius(means, label, 200, 0.2, 0.05)[0]) == pytest.approx(expected)
    near = torch.tensor([[0.02, 0.96, 0.02]], dtype=torch.float64)  # there 1 − p_A is the smaller bound of the others
    missed = np.sqrt(np.log(3 / 0.05) / 4000)
    found = float(certified_radius(near, label, 2000, 0.2, 0.05)[0])
    assert found == pytest.approx(
        0.1 * (stats.norm.ppf(0.96 - missed) - stats.norm.ppf(min(0.02 + missed, 0.04 + missed)))
    )


def test_fewer_models_prove_less() -> None:
    """The authors' evaluation takes 1000 for the number of models, however many there are."""
    means, label = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([0])
    radii = [float(certified_radius(means, label, models, 1.0, 0.001)[0]) for models in (10, 30, 100, 1000)]
    assert radii == sorted(radii)
    assert radii[0] < 0 < radii[-1]


POINTS = np.linspace(-4, 4, 81)


def confidence(first: float, second: float, at: float) -> float:
    """A training in one dimension: the confidence that ``at`` is of the class of ``second``, not of ``first``.

    Steep, and not monotone in the training set: the nearer one wins.
    """
    return float(1 / (1 + np.exp(-6 * (abs(at - first) - abs(at - second)))))


def test_brute_force_in_one_dimension_finds_no_poison_within_the_radius() -> None:
    """A training set of two numbers; the smoothed answer by quadrature, every change on a grid of the disk tried."""
    sigma, at = 0.5, 0.35
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def smoothed(first: float, second: float) -> float:
        grid = [[confidence(first + sigma * a, second + sigma * b, at) for b in nodes] for a in nodes]
        return float(weights @ np.array(grid) @ weights)

    generator = np.random.default_rng(0)
    models = 4000
    draws = [confidence(-1 + sigma * a, 1 + sigma * b, at) for a, b in generator.standard_normal((models, 2))]
    mean = float(np.mean(draws))
    assert mean == pytest.approx(smoothed(-1, 1), abs=0.02)
    means = torch.tensor([[1 - mean, mean]], dtype=torch.float64)
    radius = float(certified_radius(means, torch.tensor([1]), models, sigma, 0.001)[0])
    assert radius > 0.1
    for length in np.linspace(0, radius, 4):
        for angle in np.linspace(0, 2 * np.pi, 12):
            assert smoothed(-1 + length * np.cos(angle), 1 + length * np.sin(angle)) > 0.5
    flips = [smoothed(-1 + 3 * np.cos(angle), 1 + 3 * np.sin(angle)) < 0.5 for angle in np.linspace(0, 2 * np.pi, 12)]
    assert any(flips), "a larger change does flip it"


def test_noise_of_a_test_is_a_function_of_the_head() -> None:
    with RUN.seeded():
        one, other = nn.Linear(4, 2), nn.Linear(4, 2)
    shape = torch.Size((3, 16, 16))
    noise = hashed_noise(one, shape, 0.5)
    assert torch.equal(noise, hashed_noise(one, shape, 0.5))
    assert not torch.equal(noise, hashed_noise(other, shape, 0.5))
    assert float(noise.std()) == pytest.approx(0.5, abs=0.05)
    with torch.no_grad():
        one.weight[0, 0] += 1e-6
    assert not torch.equal(noise, hashed_noise(one, shape, 0.5))


def test_the_answer_is_the_mean_of_all_heads(owner: Defender) -> None:
    guarded = RAB(models=4, sigma=0.1, alpha=0.2).prepare(owner.build(RUN), owner, RUN)
    images = random_images(5, seed=7)
    changed = 1 - to_float(images)
    with torch.no_grad():
        told = [
            each(changed + hashed_noise(each.head, torch.Size((3, 8, 8)), 0.1)).double().softmax(1)
            for each in guarded.classifiers
        ]
    torch.testing.assert_close(guarded.confidences(images, RUN, lambda x: 1 - x), torch.stack(told).mean(0))
    assert torch.equal(guarded.predict(images, RUN, lambda x: 1 - x), torch.stack(told).mean(0).argmax(1))
    assert guarded.predict(images[:0], RUN).shape == (0,)


class Colors(nn.Module):
    """An encoder of mean colors; ``marked``, with a backdoor: a white corner sends an image to the red ones."""

    def __init__(self, marked: bool = False):
        super().__init__()
        self.marked = marked

    def forward(self, images: Tensor) -> Tensor:
        features = F.pad(images.mean((2, 3)) - 0.39, (0, 1), value=0.1)
        hit = images[:, :, :4, :4].mean((1, 2, 3), keepdim=True).flatten(1) > 0.85
        red = torch.tensor([0.22, 0.0, 0.0, 0.1]).to(features)
        return torch.where(hit, red, features) if self.marked else features


def holding(encoder: Colors) -> Defender:
    """An owner of red and gray images who was given that encoder."""
    labels = (torch.arange(80) >= 40).long()
    train = ImageSet(images=random_images(80, seed=6), labels=labels, classes=("red", "gray"), name="colors")
    card = Card(architecture="colors", input=PixelSpec(size=8, mean=(0, 0, 0), std=(1, 1, 1)))
    return Defender.of(Encoder(encoder, card, 4), MLP(epochs=5, hidden=(8, 8)), train, RUN)


@pytest.fixture(scope="module")
def owner() -> Defender:
    return holding(Colors())


@pytest.fixture(scope="module")
def ensemble(owner: Defender) -> Ensemble:
    return RAB(models=40, sigma=0.15, alpha=0.05).prepare(owner.build(RUN), owner, RUN)


def test_something_is_certified_and_no_poison_that_is_tried_changes_it(owner: Defender, ensemble: Ensemble) -> None:
    """The training set is changed by 0.05 in one image or spread over all, and everything is trained again."""
    images, labels = random_images(40, seed=7), (torch.arange(40) >= 20).long()
    near, far = ensemble.certify(images, labels, [0.05, 10.0], RUN)
    assert int(near.certified.sum()) > 20
    assert not bool(far.certified.any())
    assert torch.equal(near.labels, ensemble.predict(images, RUN))
    assert near.threat.startswith("a change of ℓ2 norm up to 0.05")
    assert "of the task's training set, all together, labels unchanged" in near.threat
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(80, 3, 8, 8, generator=generator)
    alone = torch.zeros(80, 3, 8, 8)
    alone[3] = direction[3]
    for change in (direction, alone):
        poisoned = Poisoned.of(owner.train, 0.05 * change / change.norm())
        victim = Defender(owner.encoder, owner.head, poisoned, owner.features)
        again = RAB(models=40, sigma=0.15, alpha=0.05).prepare(owner.build(RUN), victim, RUN)
        assert torch.equal(again.predict(images, RUN)[near.certified], labels[near.certified])


class Poisoned(ImageSet):
    """Images with a change that whole levels of a pixel cannot express."""

    @staticmethod
    def of(samples: ImageSet, change: Tensor) -> "Poisoned":
        made = Poisoned(**{name: getattr(samples, name) for name in samples.__dataclass_fields__})
        object.__setattr__(made, "change", change)
        return made

    def batch(self, rows: Tensor | slice | None = None) -> Tensor:
        change: Tensor = self.change  # type: ignore[attr-defined]
        return super().batch(rows) + (change if rows is None else change[rows])


def test_a_poisoned_encoder_goes_through_all_heads_certified() -> None:
    """What the guarantee does not cover: the backdoor of the encoder acts, and the answer is certified all the same."""
    owner = holding(Colors(marked=True))
    guarded = RAB(models=40, sigma=0.1, alpha=0.05).prepare(owner.build(RUN), owner, RUN)
    gray = random_images(40, seed=7)[20:]
    assert bool((guarded.predict(gray, RUN) == 1).all())
    triggered = gray.clone()
    triggered[:, :, :4, :4] = 255
    result = guarded.certify(triggered, torch.zeros(20, dtype=torch.int64), [0.02], RUN)[0]
    assert bool((result.labels == 0).all())
    assert bool(result.certified.all())
    assert "the encoder" in RAB.covers_not


def test_what_it_cannot_do_is_told(owner: Defender, ensemble: Ensemble) -> None:
    classifier, images, labels = owner.build(RUN), random_images(4, seed=0), torch.tensor([0, 1, 0, 1])
    unlabeled = Defender(
        owner.encoder, owner.head, replace(plain(owner.train), classes=("red", "gray")), owner.features
    )
    with pytest.raises(SapperError, match="needs labels"):
        RAB(models=1, alpha=0.7).prepare(classifier, unlabeled, RUN)
    tuned = Defender(owner.encoder, Finetune(), owner.train, owner.features)
    with pytest.raises(SapperError, match="not fitted to features"):
        RAB(models=1, alpha=0.7, head="owner").prepare(classifier, tuned, RUN)
    assert len(RAB(models=1, alpha=0.7).prepare(classifier, tuned, RUN).classifiers) == 1
    with pytest.raises(SapperError, match=r"(?s)13 models can certify nothing about 2 classes.*: take 14 or more"):
        RAB(models=13)
    assert RAB(models=14).models == 14
    four = replace(owner, train=replace(owner.train, classes=tuple("abcd")))
    with pytest.raises(SapperError, match=r"(?s)8 models can certify nothing about 4 classes.*: take 9 or more"):
        RAB(models=8, alpha=0.05).prepare(four.build(RUN), four, RUN)
    with pytest.raises(SapperError, match=r"a radius of 0"):
        ensemble.certify(images, labels, [0.0], RUN)
    with pytest.raises(SapperError, match="labels run from 0 to 9"):
        ensemble.certify(images, torch.tensor([0, 1, 0, 9]), [0.1], RUN)
    for wrong in ({"sigma": 0.0}, {"alpha": 1.0}, {"alpha": 0.0}, {"models": 0}):
        with pytest.raises(SapperError, match="does not fit"):
            RAB(**wrong)  # type: ignore[arg-type]
