"""Triggers of poisons: a patch whose place is a function of the image, and a pattern of frequencies."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from torch import Tensor

from sapper.augment import to_grayscale
from sapper.errors import SapperError
from sapper.samples import PixelSpec, to_float
from sapper.triggers import Frequency, RandomPatch, from_tensors, to_tensors
from sapper.triggers.frequency import dct


def pictures(count: int, height: int, width: int, seed: int = 0, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return to_float(torch.randint(low, high, (count, 3, height, width), generator=generator, dtype=torch.uint8))


@st.composite
def random_patches(draw: st.DrawFn) -> tuple[RandomPatch, int, int]:
    """A patch that fits, and the height and width of images that it fits into."""
    height, width = draw(st.integers(8, 24)), draw(st.integers(8, 24))
    low, high = draw(st.sampled_from([(0.0, 1.0), (0.1, 0.9), (0.25, 0.75)]))
    size = (draw(st.integers(1, height // 2 - 1)), draw(st.integers(1, width // 2 - 1)))
    return RandomPatch(size=size, color="red", within=(low, high), key_seed=draw(st.integers(0, 2**56))), height, width


@settings(max_examples=50, deadline=None)
@given(random_patches(), st.integers(0, 1000))
def test_a_random_patch_is_whole_within_its_part_and_nothing_else_changes(
    drawn: tuple[RandomPatch, int, int], seed: int
) -> None:
    trigger, height, width = drawn
    images = pictures(4, height, width, seed, high=255) * 0.9  # no pixel of pure red
    before, stamped = images.clone(), trigger(images)
    assert torch.equal(images, before), "the input is left alone"
    (tall, wide), (low, high) = trigger.size, trigger.within  # type: ignore[misc]
    for image, result, (top, left) in zip(images, stamped, trigger.places(images).tolist()):
        assert low * height <= top + 1e-6
        assert top + tall <= high * height + 1e-6
        assert low * width <= left + 1e-6
        assert left + wide <= high * width + 1e-6
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + tall, left : left + wide] = True
        assert torch.equal(result[:, ~mask], image[:, ~mask])
        assert torch.equal(result[:, mask], torch.tensor([1.0, 0.0, 0.0]).view(3, 1).expand(3, int(mask.sum())))


def test_equal_images_are_stamped_equally_whatever_the_batch() -> None:
    trigger, images = RandomPatch(size=4), pictures(60, 16, 16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    stamped = trigger(images)
    assert torch.equal(trigger(images[order]), stamped[order])
    assert torch.equal(torch.cat([trigger(image[None]) for image in images]), stamped)
    assert torch.equal(replace(trigger, key_seed=0)(images), stamped)
    assert not torch.equal(replace(trigger, key_seed=1)(images), stamped)
    assert torch.equal(trigger.places(images.double()), trigger.places(images))


def test_places_are_spread_evenly_over_all_that_there_are() -> None:
    """Chi-squared over the 9×9 places of 4 pixels within 2…14 of 16, rows and columns independent."""
    trigger = RandomPatch(size=4, within=(0.125, 0.875), key_seed=3)
    places = trigger.places(pictures(8100, 16, 16)) - 2
    counts = torch.bincount(places[:, 0] * 9 + places[:, 1], minlength=81)
    assert len(counts) == 81
    statistic = float(((counts - 100) ** 2 / 100).sum())
    assert statistic < 80 + 5 * math.sqrt(2 * 80)


def test_one_changed_pixel_moves_the_patch() -> None:
    trigger, image = RandomPatch(size=2, within=(0.0, 1.0)), pictures(1, 16, 16)
    variants = image.repeat(200, 1, 1, 1)
    variants[:, 0, 0, 0] = torch.arange(200) / 255
    assert len(trigger.places(variants).unique(dim=0)) > 100


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        (RandomPatch(size=9, within=(0.25, 0.75)), "does not fit"),
        (RandomPatch(size=0), "does not fit"),
        (RandomPatch(size=2, within=(0.9, 0.1)), "no part of an image"),
        (RandomPatch(size=2, color="beige"), "unknown color"),
        (Frequency(coefficients=((16, 0),)), "no coefficient"),
        (Frequency(coefficients=()), "no coefficient"),
        (Frequency(window=0), "no coefficient"),
    ],
)
def test_what_does_not_fit_is_told(trigger: RandomPatch | Frequency, said: str) -> None:
    with pytest.raises(SapperError, match=said):
        trigger.check(PixelSpec(size=16))


# --- frequencies ----------------------------------------------------------------------------------------------------

TO_YUV = np.array([[0.299, 0.587, 0.114], [0, 0, 0], [0, 0, 0]])
TO_YUV[1] = 0.492 * (np.array([0, 0, 1]) - TO_YUV[0])
TO_YUV[2] = 0.877 * (np.array([1, 0, 0]) - TO_YUV[0])


def step_by_step(image: np.ndarray, trigger: Frequency) -> np.ndarray:
    """The trigger as its definition says, window by window, with scipy's DCT; (3, H, W) in [0, 1]."""
    yuv = np.einsum("ij,jhw->ihw", TO_YUV, image * 255)
    height, width = image.shape[1:]
    size = min(trigger.window, height, width)
    for channel in (1, 2):
        for top in range(0, height - size + 1, size):
            for left in range(0, width - size + 1, size):
                window = yuv[channel, top : top + size, left : left + size]
                spectrum = dctn(window, norm="ortho")
                for row, column in trigger.coefficients:
                    spectrum[row, column] += trigger.magnitude
                yuv[channel, top : top + size, left : left + size] = idctn(spectrum, norm="ortho")
    return np.clip(np.einsum("ij,jhw->ihw", np.linalg.inv(TO_YUV), yuv) / 255, 0, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 20), st.integers(6, 20), st.integers(2, 9), st.floats(-300, 300), st.data())
def test_frequencies_equal_the_definition(
    height: int, width: int, window: int, magnitude: float, data: st.DataObject
) -> None:
    size = min(window, height, width)
    place = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))
    coefficients = tuple(data.draw(st.lists(place, min_size=1, max_size=3, unique=True)))
    trigger = Frequency(magnitude=magnitude, window=window, coefficients=coefficients)
    images = pictures(2, height, width, seed=height * width).double()
    for image, ours in zip(images, trigger(images)):
        np.testing.assert_allclose(ours.numpy(), step_by_step(image.numpy(), trigger), atol=1e-9)


def test_the_matrix_is_the_orthonormal_dct() -> None:
    window = torch.rand(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = dct(12)
    np.testing.assert_allclose((basis @ window @ basis.T).numpy(), dctn(window.numpy(), norm="ortho"), atol=1e-12)
    torch.testing.assert_close(basis @ basis.T, torch.eye(12, dtype=torch.float64))


def test_its_cost_is_a_psnr_of_32_db_and_the_known_amplitudes() -> None:
    pattern = Frequency().pattern(32, 32) * 255
    assert 10 * math.log10(255**2 / float(pattern.square().mean())) == pytest.approx(31.9, abs=0.1)
    assert all(float(channel.abs().max()) <= most for channel, most in zip(pattern, (14.3, 12.3, 25.5)))
    half = Frequency(magnitude=50).pattern(32, 32) * 255
    assert 10 * math.log10(255**2 / float(half.square().mean())) == pytest.approx(38, abs=0.1)


def test_gray_images_have_no_trigger() -> None:
    images = pictures(8, 32, 32, low=40, high=216)  # nothing is clipped
    stamped = Frequency()(images)
    assert (stamped - images).abs().max() > 0.05
    torch.testing.assert_close(to_grayscale(stamped), to_grayscale(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("trigger", [RandomPatch(size=(2, 3), color=(0.1, 0.2, 0.3)), Frequency(magnitude=3.0)])
def test_they_are_written_and_read_back(trigger: RandomPatch | Frequency) -> None:
    import json

    plain, tensors = to_tensors(trigger)
    assert from_tensors(json.loads(json.dumps(plain)), tensors, "here") == trigger
