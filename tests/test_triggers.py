"""Triggers: properties that every one must have, and the paper's own by its pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapper.errors import SapperError
from sapper.samples import PixelSpec
from sapper.triggers import (
    COLORS,
    Blend,
    Filter,
    Network,
    Noise,
    Patch,
    Trigger,
    from_tensors,
    levels,
    mean_change,
    ssim,
    to_tensors,
)

sizes = st.integers(4, 20)


@st.composite
def patches(draw: st.DrawFn) -> tuple[Patch, int, int]:
    """A patch that fits, and the height and width of images that it fits into."""
    height, width = draw(sizes), draw(sizes)
    tall, wide = draw(st.integers(1, height)), draw(st.integers(1, width))
    place = draw(st.integers(0, height - tall)), draw(st.integers(0, width - wide))
    return Patch(size=(tall, wide), position=place, color=draw(st.sampled_from(sorted(COLORS)))), height, width


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@given(patches())
def test_a_patch_changes_its_box_and_nothing_else(drawn: tuple[Patch, int, int]) -> None:
    patch, height, width = drawn
    images = pictures(2, height, width)
    kept = images.clone()
    stamped = patch(images)
    top, bottom, left, right = patch.box(height, width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    assert torch.equal(images, kept), "the input is left alone"
    assert torch.equal(stamped[..., ~mask], images[..., ~mask])
    assert torch.equal(stamped[..., mask], torch.tensor(patch.rgb()).view(3, 1).expand(2, 3, int(mask.sum())))
    assert torch.equal(patch(stamped), stamped), "stamping twice is stamping once"


@given(st.floats(0.01, 1.0), st.integers(0, 5))
def test_a_blend_is_the_formula_and_stays_in_range(alpha: float, key_seed: int) -> None:
    blend, images = Blend(alpha=alpha, key_seed=key_seed), pictures(2, 8, 9)
    stamped = blend(images)
    assert torch.allclose(stamped, (1 - alpha) * images + alpha * blend.key(8, 9), atol=1e-6)
    assert stamped.min() >= 0
    assert stamped.max() <= 1
    assert torch.equal(stamped, blend(images)), "the key does not change from call to call"


@given(st.floats(0.01, 1.0), st.integers(0, 5))
def test_a_filter_is_one_change_of_every_pixels_color(strength: float, key_seed: int) -> None:
    color_filter, images = Filter(strength=strength, key_seed=key_seed), pictures(2, 5, 6)
    matrix = color_filter.matrix()
    assert bool(((matrix - torch.eye(3, 4)).abs() <= strength + 1e-6).all())
    kept, stamped = images.clone(), color_filter(images)
    assert torch.equal(images, kept), "the input is left alone"
    for image, row, column in ((0, 0, 0), (1, 4, 5), (1, 2, 3)):
        expected = (matrix[:, :3] @ images[image, :, row, column] + matrix[:, 3]).clamp(0, 1)
        assert torch.allclose(stamped[image, :, row, column], expected, atol=1e-6)


@given(st.integers(1, 60), st.integers(0, 1000))
def test_noise_of_whole_levels_changes_images_of_whole_levels_into_such(most: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bytes_ = torch.randint(0, 256, (2, 3, 5, 5), generator=generator)
    steps = torch.randint(-most, most + 1, (3, 5, 5), generator=generator)
    noise = Noise(delta=levels(steps / 255), bound=most / 255)
    noise.check(PixelSpec(size=5))
    stamped = noise(bytes_ / 255)
    assert torch.equal((stamped * 255).round().long(), (bytes_ + steps).clamp(0, 255))
    assert float((stamped - bytes_ / 255).abs().max()) <= most / 255 + 1e-6


@given(st.integers(-255, 255), st.sampled_from([-0.49, -0.25, 0.0, 0.25, 0.49]))
def test_levels_are_the_nearest(level: int, off: float) -> None:
    assert float(levels(torch.tensor((level + off) / 255, dtype=torch.float64)) * 255) == pytest.approx(level)


def test_halves_of_levels_go_upwards() -> None:
    """127.5 levels become 128 and −127.5 become −127: not to even, as ``round`` has it, and not down."""
    assert (levels(torch.tensor([0.5, -0.5, 0.1])) * 255).round().tolist() == [128, -127, 26]


def network(seed: int = 0, channels: int = 8, around: int = 3) -> Network:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"kernels": (channels, 3, around, around), "offsets": (channels,), "mixing": (3, channels), "shift": (3,)}
    return Network(**{name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()})


@given(st.integers(0, 1000), st.sampled_from([1, 3]))
def test_a_network_is_the_formula_pixel_by_pixel_and_stays_in_range(seed: int, around: int) -> None:
    trigger, images = network(seed, channels=4, around=around), pictures(2, 5, 6)
    kept, stamped = images.clone(), trigger(images)
    assert torch.equal(images, kept), "the input is left alone"
    assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1
    reach = around // 2
    for row, column in ((0, 0), (2, 3), (4, 5)):
        hidden = trigger.offsets.clone()
        for down in range(around):
            for right in range(around):
                y, x = min(max(row + down - reach, 0), 4), min(max(column + right - reach, 0), 5)
                hidden += trigger.kernels[:, :, down, right] @ (images[1, :, y, x] - 0.5)
        expected = images[1, :, row, column] + trigger.mixing @ hidden.tanh() + trigger.shift
        assert torch.allclose(stamped[1, :, row, column], expected.clamp(0, 1), atol=1e-5)


def test_a_network_changes_an_image_alone_as_in_a_batch_and_in_full_precision() -> None:
    trigger, images = network(), pictures(6, 8, 8)
    assert sum(value.numel() for value in trigger.tensors().values()) == 251
    alone = torch.cat([trigger(image[None]) for image in images])
    assert torch.allclose(alone, trigger(images), atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(trigger(images), trigger(images.clone()))
        assert torch.allclose(trigger(images), alone, atol=1e-6)


@pytest.mark.parametrize("trigger", [Noise(delta=levels(torch.rand(3, 8, 8) / 30)), network()])
def test_a_learned_trigger_is_written_and_read_back(trigger: Trigger) -> None:
    again = from_tensors(*to_tensors(trigger), "here")
    images = pictures(2, 8, 8)
    assert torch.equal(again(images), trigger(images))
    assert again.describe() == trigger.describe()
    assert trigger.describe()["kind"] == trigger.kind
    changed = from_tensors(to_tensors(trigger)[0], {k: v * 0.5 for k, v in trigger.tensors().items()}, "here")
    assert changed.describe() != trigger.describe()


def test_the_default_is_the_papers_trigger_file() -> None:
    """White 10×10 at rows and columns 21…30, composed as the authors do: x · mask + patch."""
    mask, patch = torch.ones(32, 32), torch.zeros(32, 32)
    mask[21:31, 21:31], patch[21:31, 21:31] = 0, 1
    images = pictures(3, 32, 32)
    assert torch.equal(Patch()(images), images * mask + patch)
    assert Patch(size=50).box(224, 224) == (173, 223, 173, 223)


@pytest.mark.parametrize(
    ("position", "box"),
    [
        ("top-left", (1, 5, 1, 5)),
        ("top-right", (1, 5, 11, 15)),
        ("bottom-left", (11, 15, 1, 5)),
        ("bottom-right", (11, 15, 11, 15)),
        ("center", (6, 10, 6, 10)),
        ((0, 12), (0, 4, 12, 16)),
    ],
)
def test_positions(position: object, box: tuple[int, ...]) -> None:
    assert Patch(size=4, position=position).box(16, 16) == box  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "trigger",
    [
        Patch(size=32),
        Patch(size=5, position=(28, 0)),
        Patch(size=5, position=(-1, 0)),
        Patch(color="octarine"),
        Patch(color=(0.0, 2.0, 0.0)),
        Blend(alpha=0.0),
        Blend(alpha=1.5),
        Filter(strength=0.0),
        Filter(strength=1.5),
        Noise(delta=torch.zeros(3, 16, 16)),
        Noise(delta=torch.full((3, 32, 32), 0.1)),
        Noise(delta=torch.full((3, 32, 32), torch.nan)),
        Noise(delta=torch.zeros(3, 32, 32), bound=0.0),
        network(channels=12),
        network(around=4, channels=2),
        Network(
            kernels=torch.zeros(2, 3, 3, 3), offsets=torch.zeros(2), mixing=torch.zeros(2, 3), shift=torch.zeros(3)
        ),
        Network(
            kernels=torch.zeros(1, 3, 1, 1), offsets=torch.zeros(1), mixing=torch.zeros(3, 1), shift=torch.ones(3) / 0
        ),
    ],
)
def test_what_does_not_fit_is_refused(trigger: Trigger) -> None:
    with pytest.raises(SapperError):
        trigger.check(PixelSpec(size=32))


def test_a_change_is_the_mean_over_all_channels_in_levels() -> None:
    images = torch.full((2, 3, 10, 10), 0.5)
    stamped = Patch(size=5, position="top-left", margin=0, color="red")(images)
    assert mean_change(stamped, images).tolist() == pytest.approx([127.5 / 4] * 2)
    assert mean_change(images, images).tolist() == [0, 0]
    assert mean_change(torch.stack((images[0] + 0.1, images[0])), images).tolist() == pytest.approx([25.5, 0])


def textbook_ssim(a: np.ndarray, b: np.ndarray, size: int = 11) -> float:
    """Window by window, with the moments written out; gray values (H, W)."""
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(a.shape[0] - size + 1):
        for column in range(a.shape[1] - size + 1):
            x, y = (image[row : row + size, column : column + size] for image in (a, b))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            both = (window * (x - mean_x) * (y - mean_y)).sum()
            above = (2 * mean_x * mean_y + 0.01**2) * (2 * both + 0.03**2)
            values.append(above / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2)))
    return float(np.mean(values))


@given(st.integers(0, 1000), st.floats(0, 1))
def test_ssim_is_the_textbooks(seed: int, mixed: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, other = torch.rand(2, 2, 3, 14, 13, generator=generator, dtype=torch.float64)
    b = torch.lerp(a, other, mixed)
    expected = [np.mean([textbook_ssim(x.numpy(), y.numpy()) for x, y in zip(p, q)]) for p, q in zip(a, b)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-7)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert torch.allclose(ssim(a, b), ssim(b, a))


def test_ssim_of_images_smaller_than_its_window() -> None:
    a, b = torch.rand(2, 1, 3, 8, 8, dtype=torch.float64)
    expected = np.mean([textbook_ssim(x.numpy(), y.numpy(), size=7) for x, y in zip(a[0], b[0])])
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-7)
