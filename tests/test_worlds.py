"""The embedded worlds: reproducible, disjoint, balanced, and hard for a linear model of the raw pixels."""

from functools import cache

import numpy as np
import pytest
import torch

from sapper.datasets import worlds
from sapper.datasets.worlds import canvas, digits
from sapper.errors import SapperError
from sapper.samples import ImageSet

SIZES = {"objects": (8000, 2000, 10), "signs": (5600, 2800, 14), "digits": (5000, 2000, 10)}
Split = tuple[ImageSet, ImageSet]


@cache
def made(name: str, split: str) -> ImageSet:
    return worlds.make(name, split)


@pytest.fixture(params=worlds.NAMES)
def world(request: pytest.FixtureRequest) -> Split:
    return made(request.param, "train"), made(request.param, "test")


def test_sizes_and_types(world: Split) -> None:
    train, test = world
    assert (len(train), len(test), len(train.classes)) == SIZES[train.name]
    for part in world:
        assert part.images.dtype == torch.uint8
        assert part.size == (32, 32)
        assert part.targets().dtype == torch.int64
        assert "version" in part.provenance
    assert (train.split, test.split, train.classes) == ("train", "test", test.classes)


def test_same_pixels_every_time(world: Split) -> None:
    test = world[1]
    rng_state = torch.get_rng_state()
    assert worlds.make(test.name, "test").digest == test.digest
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_no_image_twice(world: Split) -> None:
    pixels = [image.numpy().tobytes() for part in world for image in part.images]
    assert len(set(pixels)) == len(pixels)


def test_classes_are_balanced_and_mixed(world: Split) -> None:
    for part in world:
        counts = part.targets().bincount()
        assert counts.min() == counts.max()
        start = part.targets()[: len(part) // 4].bincount(minlength=len(part.classes))
        assert start.min() > 0.5 * start.float().mean()


def test_pictures_use_the_range(world: Split) -> None:
    for part in world:
        values = part.images.float() / 255
        assert values.min() == 0
        assert values.max() == 1
        assert 0.3 < values.mean() < 0.6
        # Almost every single picture has contrast as well.
        spread = values.flatten(1).std(dim=1)
        assert spread.quantile(0.01) > 0.04


@pytest.mark.slow
def test_raw_pixels_do_not_tell_the_class(world: Split) -> None:
    """One-vs-rest ridge regression on standardized pixels, fit on the whole train split."""
    train, test = world
    mean, std = train.images.float().mean(0), train.images.float().std(0)
    x, y = (((part.images - mean) / std).flatten(1) for part in world)
    wanted = torch.nn.functional.one_hot(train.targets()).float()
    gram = x.T @ x + 0.3 * len(x) * torch.eye(x.shape[1])
    weights = torch.linalg.solve(gram, x.T @ (wanted - wanted.mean(0)))
    accuracy = ((y @ weights).argmax(1) == test.targets()).float().mean().item()
    assert accuracy <= 0.45


def test_no_handwritten_digit_serves_both_splits() -> None:
    train, test = set(digits.source_rows("train").tolist()), set(digits.source_rows("test").tolist())
    assert not train & test
    assert train | test == set(range(1797))
    for split, rows in (("train", train), ("test", test)):
        groups = made("digits", split).groups
        assert groups is not None
        assert set(groups.tolist()) <= rows


def test_unknown_names_are_explained() -> None:
    with pytest.raises(SapperError, match="objects"):
        worlds.make("object", "train")
    with pytest.raises(SapperError, match="train or test"):
        worlds.make("objects", "validation")


def test_distances_are_signed_and_true() -> None:
    frame = canvas.whole_picture(2)
    square = canvas.polygon([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])(frame)
    x, y = np.abs(frame.x) - 0.5, np.abs(frame.y) - 0.5
    true = np.where((x > 0) & (y > 0), np.hypot(x, y), np.maximum(x, y))
    np.testing.assert_allclose(square, true, atol=1e-5)
    area = canvas.cover(canvas.disc(0.8)(frame), frame.pixel).sum(axis=(1, 2)) * (2 / canvas.SIZE) ** 2
    np.testing.assert_allclose(area, np.pi * 0.8**2, rtol=0.01)
