"""Triggers: properties that every one must have, and the paper's own by its pixels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapper.errors import SapperError
from sapper.samples import PixelSpec
from sapper.triggers import COLORS, Blend, Filter, Patch, Trigger

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
    ],
)
def test_what_does_not_fit_is_refused(trigger: Trigger) -> None:
    with pytest.raises(SapperError):
        trigger.check(PixelSpec(size=32))
