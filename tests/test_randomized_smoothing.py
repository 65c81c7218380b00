"""Smoothing's bounds against scipy and against everything tiny cases allow; the method where the truth is known."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sapper.defenses.certify.randomized_smoothing import RandomizedSmoothing
from sapper.defenses.defender import Defender
from sapper.defenses.smoothing import (
    Ablation,
    Gaussian,
    ablated_loss,
    gaussian_radius,
    hoeffding,
    lower_bounds,
    noised_heads,
)
from sapper.downstream import Linear
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import to_float
from sapper.triggers import Blend
from tests.test_patchguard_ds import BLACK, owner, random_images, redness
from tests.victims import plain

RUN = Run(seed=1)

__all__ = ["owner"]


@given(draws=st.integers(1, 2000), share=st.floats(0, 1), alpha=st.sampled_from([0.3, 0.05, 0.001]))
def test_the_bound_of_a_share_is_clopper_and_pearsons(draws: int, share: float, alpha: float) -> None:
    hits = round(share * draws)
    bound = float(lower_bounds(torch.tensor([hits]), draws, alpha)[0])
    exact = stats.binomtest(hits, draws).proportion_ci(confidence_level=1 - 2 * alpha, method="exact").low
    assert bound == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("chance", [0.02, 0.5, 0.77, 0.999])
def test_the_bound_is_above_the_truth_no_more_often_than_promised(chance: float) -> None:
    """Summed over all that can be counted in 60 draws."""
    counts = torch.arange(61)
    above = (lower_bounds(counts, 60, 0.05) > chance).numpy()
    assert stats.binom.pmf(counts.numpy(), 60, chance)[above].sum() <= 0.05


def test_hoeffdings_distance() -> None:
    assert hoeffding(1000, 0.001) == pytest.approx(0.0587694, abs=1e-6)  # √(ln 1000 / 2000)
    assert hoeffding(4, np.exp(-2)) == pytest.approx(0.5)


def test_a_radius_by_hand() -> None:
    lower, upper = torch.tensor([0.9, 0.9, 0.5, 0.3, 0.0]).double(), torch.tensor([0.1, 0.3, 0.5, 0.7, 1.0]).double()
    found = gaussian_radius(lower, upper, 0.5)
    expected = 0.25 * (stats.norm.ppf(lower.numpy()) - stats.norm.ppf(upper.numpy()))
    np.testing.assert_allclose(found.numpy(), expected)
    assert float(found[0]) == pytest.approx(0.5 * 1.2815515655)
    assert float(found[2]) == 0
    assert float(found[4]) == -torch.inf
    certified = [Gaussian(0.5).certified(lower, radius).tolist() for radius in (0.64, 0.65)]
    assert certified == [[True, True, False, False, False], [False] * 5]


def test_a_half_line_loses_its_majority_just_beyond_its_radius() -> None:
    """F(z) = P(z + noise < t): the bound is tight there, so a larger radius is wrong."""
    sigma, edge = 0.7, 1.0
    for z in np.linspace(-1, 0.99, 9):
        lower = torch.tensor([stats.norm.cdf((edge - z) / sigma)])
        radius = float(gaussian_radius(lower, 1 - lower, sigma)[0])
        assert stats.norm.cdf((edge - (z + radius - 1e-6)) / sigma) > 0.5
        assert stats.norm.cdf((edge - (z + radius + 1e-6)) / sigma) < 0.5


def chances(table: dict[tuple[int | None, ...], bool], image: tuple[int, ...], keep: float) -> float:
    """With which probability a function of what is left of an image says yes, over all that ablation can leave."""
    total = 0.0
    for kept in product((False, True), repeat=len(image)):
        chance = float(np.prod([keep if each else 1 - keep for each in kept]))
        total += chance * table[tuple(value if each else None for value, each in zip(image, kept))]
    return total


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), keep=st.floats(0.05, 0.9), bias=st.floats(0.5, 1.0))
def test_no_change_of_pixels_takes_the_majority_where_ablation_certifies(seed: int, keep: float, bias: float) -> None:
    """Images of three pixels of three values, a random function of what is left, all changes of one pixel or two."""
    random = np.random.default_rng(seed)
    image = (0, 0, 0)
    table = {key: bool(random.random() < bias) for key in product((None, 0, 1, 2), repeat=3)}
    before = chances(table, image, keep)
    noise = Ablation(keep, BLACK)
    for pixels in (1, 2):
        for changed in combinations(range(3), pixels):
            for values in product((0, 1, 2), repeat=pixels):
                other = list(image)
                for place, value in zip(changed, values):
                    other[place] = value
                after = chances(table, tuple(other), keep)
                assert abs(after - before) <= ablated_loss(keep, pixels) + 1e-9
                if bool(noise.certified(torch.tensor([before]).double(), pixels)[0]):
                    assert after > 0.5


def test_ablations_bound_is_reached() -> None:
    """By a function that says yes wherever it sees the pixel as it was, and else no."""
    table = {key: key[0] == 0 for key in product((None, 0, 1), repeat=2)}
    assert chances(table, (0, 0), 0.3) - chances(table, (1, 0), 0.3) == pytest.approx(ablated_loss(0.3, 1))
    assert ablated_loss(0.3, 2) == pytest.approx(0.51)


def test_noise_is_what_it_is_called() -> None:
    images = torch.full((400, 3, 4, 4), 0.5)
    drawn = Gaussian(0.2)(images, RUN.generator()) - images
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(0.2, abs=0.01)
    left = Ablation(0.3, torch.tensor([0.1, 0.2, 0.3]))(images, RUN.generator())
    kept = (left == 0.5).all(1)
    assert bool((left.movedim(1, -1)[~kept] == torch.tensor([0.1, 0.2, 0.3])).all())
    assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.02)


WEIGHT = torch.tensor([1.0, -1.0, 0.0])
"""A linear classifier of two classes: is the image more red than green? Smoothed, it answers as it is."""


def linear(images: Tensor) -> Tensor:
    score = (images.mean((2, 3)) @ WEIGHT.to(images)).unsqueeze(1)
    return torch.cat([score, torch.zeros_like(score)], 1)


def distance(images: Tensor) -> Tensor:
    """How far, in ℓ2, each image is from where that classifier changes its mind: |w·x| / ‖w‖."""
    pixels = images.shape[-1] * images.shape[-2]
    return linear(to_float(images))[:, 0].abs() / (WEIGHT.norm() / pixels**0.5)


def test_a_linear_classifiers_radii_are_below_the_truth_and_near_it() -> None:
    images = random_images(80, seed=3)
    truth, labels = distance(images), linear(to_float(images)).argmax(1)
    guarded = RandomizedSmoothing(draws=400, sigma=0.5).guard(linear, BLACK)
    radii = [0.05, 0.2, 0.4, 0.7, 2.0]
    results = guarded.certify(images, labels, radii, RUN)
    for radius, result in zip(radii, results):
        assert bool((truth[result.certified] > radius).all()), "a smaller change flips the answer"
        assert torch.equal(result.labels[result.certified], labels[result.certified])
    counts = [int(result.certified.sum()) for result in results]
    assert counts == sorted(counts, reverse=True)
    assert counts[2] > 0.5 * int((truth > 0.4).sum()) > 0
    assert counts[-1] == 0, "400 draws prove no more than 2.1 σ"
    assert results[1].threat.startswith("a change of ℓ2 norm up to 0.2, pixel values in [0, 1], to the image; with a")
    wrong = guarded.certify(images, 1 - labels, [0.05], RUN)[0]
    assert not bool(wrong.certified[truth > 0.2].any())


def test_ablation_certifies_pixels_and_no_change_that_is_tried_takes_the_majority() -> None:
    images, labels = random_images(40, seed=3), (torch.arange(40) >= 20).long()
    method = RandomizedSmoothing(noise="ablation", keep=0.08, draws=300)
    guarded = method.guard(redness, BLACK)
    one, four, many = guarded.certify(images, labels, [1, 4, 9], RUN)
    assert int(one.certified.sum()) > int(four.certified.sum()) > 0
    assert int(many.certified.sum()) == 0, "0.92⁹ is less than a half"
    assert one.threat.startswith("a change of up to 1 pixels, to anything, to the image")
    kept, truth = images[four.certified], labels[four.certified]
    for color in product((0, 255), repeat=3):
        attacked = kept.clone()
        attacked[:, :, 3:5, 3:5] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
        assert torch.equal(guarded.predict(attacked, RUN), truth)


def test_votes_are_counted_under_as_many_draws() -> None:
    seen: list[Tensor] = []

    def watch(images: Tensor) -> Tensor:
        seen.append(images)
        return redness(images)

    images = random_images(3, seed=0)
    guarded = RandomizedSmoothing(draws=500, sigma=0.1).guard(watch, BLACK)
    votes = guarded.votes(images, RUN, Blend(alpha=0.3))
    views = torch.cat(seen)
    assert views.shape == (1500, 3, 8, 8)
    answers = redness(views).argmax(1).view(-1, 3)
    assert votes.tolist() == [[int((answers[:, i] == c).sum()) for c in range(2)] for i in range(3)]
    noise = views.view(500, 3, 3, 8, 8) - Blend(alpha=0.3)(to_float(images))
    assert float(noise.std()) == pytest.approx(0.1, abs=0.002)
    assert len(noise[:, 0, 0, 0, 0].unique()) > 490
    again = RandomizedSmoothing(draws=500, sigma=0.1).guard(redness, BLACK).votes(images, RUN, Blend(alpha=0.3))
    assert torch.equal(votes, again)
    assert guarded.predict(images[:0], RUN).shape == (0,)


def test_a_backdoored_function_keeps_its_backdoor_and_is_certified_around_it() -> None:
    """Within the radius the answer stays; a white square sends it to class 1, certified there, too: not its honesty."""

    def backdoored(images: Tensor) -> Tensor:
        hit = images[:, :, :4, :4].mean((1, 2, 3)) > 0.9
        return redness(images) + 1000 * hit.unsqueeze(1) * torch.tensor([0.0, 1.0])

    images = random_images(20, seed=3)[:10]
    triggered = images.clone()
    triggered[:, :, :4, :4] = 255
    guarded = RandomizedSmoothing(draws=200, sigma=0.1).guard(backdoored, BLACK)
    clean = guarded.certify(images, torch.zeros(10, dtype=torch.int64), [0.05], RUN)[0]
    stamped = guarded.certify(triggered, torch.ones(10, dtype=torch.int64), [0.05], RUN)[0]
    assert bool(clean.certified.all())
    assert bool(stamped.certified.all())


def test_a_head_that_has_seen_noise_is_certified_for_more(owner: Defender) -> None:
    images, labels = random_images(60, seed=7), (torch.arange(60) >= 30).long()
    counts = {}
    for training in ("as-is", "head"):
        method = RandomizedSmoothing(sigma=0.5, draws=100, training=training)  # type: ignore[arg-type]
        guarded = method.prepare(owner.build(RUN), owner, RUN)
        counts[training] = int(guarded.certify(images, labels, [0.1], RUN)[0].certified.sum())
    assert counts["head"] > max(5, counts["as-is"])


@pytest.mark.slow
def test_training_and_input_are_smoothed_together(owner: Defender) -> None:
    images, labels = random_images(40, seed=7), (torch.arange(40) >= 20).long()
    method = RandomizedSmoothing(smoothed="training-set", sigma=0.1, draws=60)
    guarded = method.prepare(owner.build(RUN), owner, RUN)
    near, far = guarded.certify(images, labels, [0.02, 0.5], RUN)
    assert int(near.certified.sum()) > 10
    assert int(far.certified.sum()) == 0, "60 draws prove no more than 1.2 σ"
    assert "to all training images and the image together" in near.threat
    assert torch.equal(guarded.predict(images, RUN), near.labels)
    assert torch.equal(method.prepare(owner.build(RUN), owner, RUN).votes(images, RUN), guarded.votes(images, RUN))


def test_every_head_is_fitted_to_noise_of_its_own(owner: Defender) -> None:
    first, second = noised_heads(owner, Linear(iterations=20), Gaussian(0.2), 2, RUN, "heads")
    again, _ = noised_heads(owner, Linear(iterations=20), Gaussian(0.2), 2, RUN, "heads")
    states = [each.head.state_dict() for each in (first, second, again)]
    assert all(torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert not any(torch.equal(value, states[1][name]) for name, value in states[0].items())
    own = RUN.child("model 0")
    noisy = Gaussian(0.2)(to_float(owner.train.images), own.child("noise").generator())
    with torch.no_grad():
        features = torch.nn.functional.normalize(owner.encoder(noisy).float(), dim=1)
    expected = Linear(iterations=20).fit(features, owner.train.targets(), 2, own.child("head")).state_dict()
    for name, value in states[0].items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    "wrong",
    [{"sigma": 0.0}, {"sigma": -1.0}, {"alpha": 0.0}, {"alpha": 1.0}, {"keep": 0.0}, {"keep": 1.0}, {"draws": 0}],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SapperError, match="does not fit") as caught:
        RandomizedSmoothing(**wrong)  # type: ignore[arg-type]
    assert caught.value.where == f"RandomizedSmoothing.{next(iter(wrong))}"


def test_what_it_cannot_do_is_told(owner: Defender) -> None:
    images, labels = random_images(4, seed=0), torch.tensor([0, 1, 0, 1])
    guarded = RandomizedSmoothing(draws=3).guard(redness, BLACK)
    pixels = RandomizedSmoothing(draws=3, noise="ablation").guard(redness, BLACK)
    for radius in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SapperError, match="a radius of") as caught:
            guarded.certify(images, labels, [0.1, radius], RUN)
        assert caught.value.where == "radii"
    with pytest.raises(SapperError, match=r"a radius of 1.5 pixels"):
        pixels.certify(images, labels, [1.5], RUN)
    with pytest.raises(SapperError, match="labels run from 0 to 9, there are 2 classes"):
        guarded.certify(images, torch.tensor([0, 1, 0, 9]), [0.1], RUN)
    with pytest.raises(SapperError, match="must be uint8"):
        guarded.predict(to_float(images), RUN)
    unlabeled = Defender(owner.encoder, owner.head, plain(owner.train), owner.features)
    with pytest.raises(SapperError, match="needs labels"):
        noised_heads(unlabeled, Linear(), Gaussian(0.1), 1, RUN, "heads")
    with pytest.raises(SapperError, match="nothing to train on noise before"):
        RandomizedSmoothing(smoothed="training-set", training="head").prepare(owner.build(RUN), owner, RUN)
