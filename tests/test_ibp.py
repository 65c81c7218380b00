"""Interval bounds: they hold, they are the textbook's, and no patch changes what is certified."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sapper.defenses.certify.ibp import (
    IBP,
    Bounded,
    Normalize,
    all_corners,
    bounds,
    growth,
    least_margins,
    margins,
    network,
    proven,
    under_patch,
)
from sapper.defenses.defender import Defender
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from sapper.samples.images import PIXELS
from tests.victims import plain

RUN = Run(seed=1)
MEAN, STD = torch.full((1, 3, 1, 1), 0.4), torch.full((1, 3, 1, 1), 0.25)


def net(kind: str, size: int = 6, classes: int = 3, seed: int = 0) -> nn.Sequential:
    with Run(seed=seed).seeded():
        return network(kind, 1, (size, size), classes, MEAN, STD).eval().requires_grad_(False)  # type: ignore[arg-type]


def dense(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """An affine layer as a matrix and an offset, from what it makes of every unit vector."""
    zero = layer(torch.zeros(1, *shape)).flatten()
    count = int(torch.tensor(shape).prod())
    columns = layer(torch.eye(count).view(count, *shape)).flatten(1) - zero
    return columns.T, zero


def textbook(layers: nn.Sequential, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """l' = W⁺ l + W⁻ u + b and u' = W⁺ u + W⁻ l + b, layer by layer, for one input."""
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            lower, upper = lower.clamp_min(0), upper.clamp_min(0)
            continue
        shape = layer(lower).shape
        matrix, offset = dense(layer, tuple(lower.shape[1:]))
        above, below = matrix.clamp_min(0), matrix.clamp_max(0)
        low, high = lower.flatten(), upper.flatten()
        lower, upper = (
            (above @ low + below @ high + offset).view(shape),
            (above @ high + below @ low + offset).view(shape),
        )
    return lower, upper


@settings(deadline=None, max_examples=15)
@given(kind=st.sampled_from(["mlp", "cnn"]), seed=st.integers(0, 1000), spread=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_hold_what_random_points_give_and_are_the_textbooks(kind: str, seed: int, spread: float) -> None:
    model, generator = net(kind, size=5, seed=seed), torch.Generator().manual_seed(seed)
    middle = torch.rand(1, 3, 5, 5, generator=generator)
    radius = spread * torch.rand(1, 3, 5, 5, generator=generator)
    with torch.no_grad():
        out, reach = bounds(model, (middle, radius))
        corners = (torch.rand(100, 3, 5, 5, generator=generator) < 0.5).float()
        inside = torch.cat([corners, torch.rand(100, 3, 5, 5, generator=generator)])
        answers = model(middle + radius * (2 * inside - 1))
        low, high = textbook(model, middle - radius, middle + radius)
    assert bool((answers >= out - reach - 1e-5).all())
    assert bool((answers <= out + reach + 1e-5).all())
    torch.testing.assert_close(out - reach, low, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out + reach, high, atol=1e-4, rtol=1e-4)


def test_a_linear_networks_bounds_are_reached() -> None:
    """Of one affine map interval bounds are exact, so a wider or a narrower one is wrong."""
    model, generator = nn.Sequential(Normalize(MEAN, STD), nn.Flatten(), nn.Linear(12, 2)), RUN.generator()
    middle, radius = torch.rand(1, 3, 2, 2, generator=generator), torch.rand(1, 3, 2, 2, generator=generator)
    with torch.no_grad():
        out, reach = bounds(model, (middle, radius))
        sign = model[2].weight.sign().view(2, 3, 2, 2)
        for c in range(2):
            torch.testing.assert_close((out + reach)[0, c], model(middle + sign[c] * radius)[0, c])
            torch.testing.assert_close((out - reach)[0, c], model(middle - sign[c] * radius)[0, c])


def test_an_unknown_layer_has_no_bounds() -> None:
    with pytest.raises(AssertionError, match="no bounds for Sigmoid"):
        bounds(nn.Sequential(nn.Sigmoid()), (torch.zeros(1, 2), torch.zeros(1, 2)))


@pytest.mark.parametrize("reach", [1.0, 0.2])
def test_an_interval_is_open_under_the_patch_alone(reach: float) -> None:
    images = torch.rand(2, 3, 5, 4, generator=RUN.generator())
    corners = torch.tensor([[[0, 0], [2, 1]], [[3, 2], [1, 0]]])
    middle, radius = under_patch(images, corners, 2, reach)
    assert middle.shape == radius.shape == (2, 2, 3, 5, 4)
    for i, at, c, row, column in product(range(2), range(2), range(3), range(5), range(4)):
        top, left = corners[i, at].tolist()
        value = float(images[i, c, row, column])
        covered = top <= row < top + 2 and left <= column < left + 2
        low, high = (max(0.0, value - reach), min(1.0, value + reach)) if covered else (value, value)
        assert float(middle[i, at, c, row, column] - radius[i, at, c, row, column]) == pytest.approx(low, abs=1e-6)
        assert float(middle[i, at, c, row, column] + radius[i, at, c, row, column]) == pytest.approx(high, abs=1e-6)


def test_the_places_are_all_there() -> None:
    assert all_corners((4, 5), 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert all_corners((3, 3), 3).tolist() == [[0, 0]]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_margins_are_those_of_the_loops_and_no_wider_than_bounds_of_logits(kind: str) -> None:
    model, images = net(kind), torch.rand(2, 3, 6, 6, generator=RUN.generator())
    labels, corners = torch.tensor([2, 0]), torch.tensor([[[0, 0], [3, 2], [1, 4]]]).expand(2, -1, -1)
    interval = under_patch(images, corners, 2)
    found = margins(model, interval, labels)
    assert found.shape == (2, 3, 3)
    last = model[-1]
    for i, at in product(range(2), range(3)):
        point = interval[0][i, at].unsqueeze(0), interval[1][i, at].unsqueeze(0)
        middle, radius = bounds(model[:-1], point)
        out, reach = bounds(model, point)
        y = int(labels[i])
        for c in range(3):
            weight = last.weight[y] - last.weight[c]
            expected = float(weight @ middle[0] + last.bias[y] - last.bias[c] - weight.abs() @ radius[0])
            assert float(found[i, at, c]) == pytest.approx(expected, abs=1e-4)
            if c != y:
                assert float(found[i, at, c]) >= float(out[0, y] - reach[0, y] - out[0, c] - reach[0, c]) - 1e-4
        assert float(found[i, at, y]) == 0


def test_an_image_is_proven_where_all_margins_at_all_places_are_above_zero() -> None:
    least = torch.tensor([[[0.0, 2, 1], [0, 1, 3]], [[0, 2, 1], [0, -0.1, 3]], [[0, 2, 1], [0, 1e-6, 3]]])
    assert proven(least, torch.zeros(3, dtype=torch.int64)).tolist() == [[True, True], [True, False], [True, False]]


def test_a_few_images_at_a_time_give_the_same_margins_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    learning, dice = net("cnn", size=9).requires_grad_(True), torch.Generator().manual_seed(3)
    images, labels = torch.rand(5, 3, 9, 9, generator=dice), torch.randint(3, (5,), generator=dice)
    corners = torch.randint(6, (5, 4, 2), generator=dice)
    found = []
    for pixels in (2**19, 8 * 81):  # all at once, two at a time
        monkeypatch.setitem(PIXELS, "cpu", pixels)
        least = least_margins(learning, images, corners, labels, 3, 0.7)
        learning.zero_grad()
        least.square().sum().backward()
        found.append(
            [least.detach(), *(weight.grad.clone() for weight in learning.parameters() if weight.grad is not None)]
        )
    whole = margins(learning, under_patch(images, corners, 3, 0.7), labels).amin(1)
    torch.testing.assert_close(found[0][0], whole.detach(), rtol=0, atol=0)
    assert len(found[0]) > 10
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_the_patch_grows_into_the_training() -> None:
    """The authors' 200 epochs: nothing for 10, all from the 130th on."""
    assert [growth(epoch / 200) for epoch in (0, 10, 130, 199)] == [0, pytest.approx(0), pytest.approx(1), 1]
    assert growth(70 / 200) == pytest.approx(0.5)


def spots(count: int, seed: int, size: int = 8) -> ImageSet:
    """Images full of their class's color on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(60, 140, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    noise[torch.arange(count), labels] += 110
    return ImageSet(images=noise, labels=labels, classes=("r", "g", "b"), name="spots")


def owner(train: ImageSet) -> Defender:
    encoder = nn.Module()
    encoder.mean, encoder.std = MEAN, STD
    return Defender(encoder, None, train, torch.empty(0))  # type: ignore[arg-type]


def attacks(images: Tensor, patch: int) -> Tensor:
    """Every place crossed with a patch of every corner of the color cube, uint8 (L·8, N, 3, H, W)."""
    made = []
    for (top, left), color in product(all_corners((images.shape[2], images.shape[3]), patch).tolist(), CUBE):
        attacked = images.clone()
        attacked[:, :, top : top + patch, left : left + patch] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
        made.append(attacked)
    return torch.stack(made)


CUBE = list(product((0, 255), repeat=3))


LEARNED = {
    "mlp, all places": IBP(network="mlp", places="all", patch=2, epochs=30, batch=24, learning_rate=0.005),
    "mlp, four places": IBP(network="mlp", places=4, patch=2, epochs=30, batch=24, learning_rate=0.005),
    "cnn, four places": IBP(network="cnn", width=1, places=4, patch=2, epochs=40, batch=24, learning_rate=0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LEARNED)
def test_what_it_learned_is_certified_and_no_patch_that_is_tried_changes_it(case: str) -> None:
    method = LEARNED[case]
    trained = method.fit(owner(spots(96, seed=0)), RUN)
    test = spots(30, seed=5)
    guarded = method.guard(trained)
    results = guarded.certify(test.images, test.targets(), [1, 2, 6], RUN)
    counts = [int(result.certified.sum()) for result in results]
    assert counts == sorted(counts, reverse=True)
    assert counts[1] > 10
    assert torch.equal(guarded.predict(test.images, RUN), results[1].labels)
    certified = results[1].certified
    attacked = attacks(test.images[certified], 2).flatten(0, 1)
    answers = guarded.predict(attacked, RUN).view(-1, int(certified.sum()))
    assert bool((answers == test.targets()[certified]).all())


def test_training_on_the_worst_is_what_certifies() -> None:
    """The same network, trained on the images as they are, is certified for fewer."""
    robust = IBP(network="mlp", places="all", patch=3, epochs=30, batch=24, learning_rate=0.005)
    train, test = spots(96, seed=0), spots(60, seed=5)
    natural = net("mlp", size=8).requires_grad_(True)
    images, labels = train.batch(), train.targets()
    optimizer = torch.optim.Adam(natural.parameters(), lr=0.005)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(natural(images), labels).backward()
        optimizer.step()
    certified = [
        int(Bounded(each, 3).certify(test.images, test.targets(), [3], RUN)[0].certified.sum())
        for each in (robust.fit(owner(train), RUN), natural.requires_grad_(False))
    ]
    assert certified[0] > certified[1]


def test_exhaustive_search_of_one_pixel_finds_no_counter_example() -> None:
    """Images of 4×4 with a patch of one pixel: all places, all colors of a grid of five levels a channel."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (40, 3, 4, 4), generator=generator)
    noise[20:] = (noise[20:] + spots(20, seed=1, size=4).images) // 2
    images = noise.to(torch.uint8)
    method = IBP(network="mlp", places="all", patch=1, epochs=12, batch=24, learning_rate=0.005)
    guarded = method.guard(method.fit(owner(spots(96, seed=0, size=4)), RUN))
    labels = guarded.predict(images, RUN)
    certified = guarded.certify(images, labels, [1], RUN)[0].certified
    assert 0 < int(certified.sum()) < 40
    flipped = torch.zeros(40, dtype=torch.bool)
    for (top, left), color in product(all_corners((4, 4), 1).tolist(), product((0, 64, 128, 191, 255), repeat=3)):
        attacked = images.clone()
        attacked[:, :, top, left] = torch.tensor(color, dtype=torch.uint8)
        flipped |= guarded.predict(attacked, RUN) != labels
    assert bool(flipped.any())
    assert not bool((flipped & certified).any())


def test_a_trigger_is_seen_by_the_network() -> None:
    images = spots(6, seed=1).images
    guarded = Bounded(net("mlp", size=8), 2)
    changed = guarded.predict(images, RUN, lambda x: 1 - x)
    assert torch.equal(changed, guarded.net(1 - to_float(images)).argmax(1))
    assert guarded.predict(images[:0], RUN).shape == (0,)


def test_what_it_cannot_do_is_told() -> None:
    with pytest.raises(SapperError, match="a patch of 8 pixels covers images of 8"):
        IBP(patch=8).prepare(None, owner(spots(6, seed=0)), RUN)  # type: ignore[arg-type]
    with pytest.raises(SapperError, match="needs labels"):
        IBP(patch=2).fit(owner(plain(spots(6, seed=0))), RUN)
    guarded, test = Bounded(net("mlp", size=8), 2), spots(3, seed=0)
    with pytest.raises(SapperError, match="a patch of 8 pixels on images of 8×8"):
        guarded.certify(test.images, test.targets(), [8], RUN)
    with pytest.raises(SapperError, match="labels run from 0 to 5, there are 3 classes"):
        guarded.certify(test.images, torch.tensor([0, 1, 5]), [2], RUN)
    with pytest.raises(SapperError, match="must be uint8"):
        guarded.predict(to_float(test.images), RUN)
    for wrong in ({"places": 0}, {"places": "some"}, {"network": "resnet"}):
        with pytest.raises(SapperError, match="does not fit"):
            IBP(**wrong)  # type: ignore[arg-type]
