"""Batched augmentation does to each image what torchvision does, and draws its parameters as torchvision does."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare, ks_2samp
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as tv

from sapper.augment import ADJUSTMENTS, Augmentation, Parameters, apply, resized_crop

TV_ADJUSTMENTS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
SIZES = [(32, 32), (24, 40), (33, 17), (8, 8)]
CLOSE = {"rtol": 0, "atol": 1e-5}  # a pixel's position between its neighbors is known to float32 precision of the size


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=generator(seed))


def smooth_images(count: int) -> Tensor:
    """Soft blobs of color over the whole range."""
    coarse = noise(count, size=(4, 4), seed=9)
    return F.interpolate(coarse, size=(32, 32), mode="bicubic").sub(0.5).mul(1.5).add(0.5).clamp(0, 1)


def torchvision_one_by_one(images: Tensor, parameters: Parameters) -> Tensor:
    """The textbook version of ``apply``."""
    return torch.stack([_torchvision_one(image, parameters, row) for row, image in enumerate(images)])


def _torchvision_one(image: Tensor, parameters: Parameters, row: int) -> Tensor:
    if parameters.boxes is not None:
        top, left, height, width = parameters.boxes[row].tolist()
        image = tv.resized_crop(image, top, left, height, width, list(image.shape[1:]), antialias=True)
    if parameters.flip[row]:
        image = tv.horizontal_flip(image)
    if parameters.jitter[row]:
        for index in parameters.order[row].tolist():
            image = TV_ADJUSTMENTS[index](image, parameters.factors[row, index].item())
    if parameters.grayscale[row]:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    return image


# --- the same parameters give the same images -----------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augmentation", [Augmentation.SIMCLR, Augmentation.REFERENCE], ids=["simclr", "reference"])
def test_apply_is_torchvision_image_by_image(augmentation: Augmentation, size: tuple[int, int]) -> None:
    images = noise(100, size)
    parameters = augmentation.sample(len(images), size, generator(1))
    torch.testing.assert_close(apply(images, parameters), torchvision_one_by_one(images, parameters), **CLOSE)


@pytest.mark.parametrize("to", [None, (24, 24), (7, 50), (1, 1)], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_resized_crop_is_torchvisions(size: tuple[int, int], to: tuple[int, int] | None) -> None:
    images, result = noise(100, size), list(to or size)
    boxes = Augmentation(crop=(0.001, 1.0)).sample(len(images), size, generator()).boxes
    assert boxes is not None
    expected = [tv.resized_crop(image, *box, result, antialias=True) for image, box in zip(images, boxes.tolist())]
    torch.testing.assert_close(resized_crop(images, boxes, to), torch.stack(expected), **CLOSE)


def test_views_can_be_smaller_than_images() -> None:
    assert Augmentation(size=20)(noise(5), generator()).shape == (5, 3, 20, 20)


def test_crop_of_the_whole_image_is_the_image() -> None:
    images = noise(3)
    assert torch.equal(resized_crop(images, torch.tensor([0, 0, 32, 32]).expand(3, 4)), images)


@pytest.mark.parametrize("index", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_adjustments_are_torchvisions(index: int) -> None:
    # Coarse steps make equal channels frequent: gray, black, white and pure colors, where HSV has its special cases.
    images = torch.cat([noise(50), noise(50, seed=1).mul(3).floor() / 2, 0.5 + 1e-6 * noise(10)])
    factors = torch.linspace(0, 2, len(images)) if index < 3 else torch.linspace(-0.5, 0.5, len(images))
    expected = [TV_ADJUSTMENTS[index](image, factor) for image, factor in zip(images, factors.tolist())]
    torch.testing.assert_close(ADJUSTMENTS[index](images, factors), torch.stack(expected), rtol=0, atol=2e-6)


def test_double_precision_agrees_to_its_precision() -> None:
    images = noise(50).double()
    parameters = Augmentation(crop=None).sample(50, (32, 32), generator())
    single = apply(images.float(), parameters).double()
    torch.testing.assert_close(apply(images, parameters), single, **CLOSE)


# --- the promises to the caller -------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [Augmentation.SIMCLR, Augmentation.REFERENCE], ids=["simclr", "reference"])
def test_shape_and_range_stay_and_the_input_is_left_alone(augmentation: Augmentation) -> None:
    images = noise(300).round()  # only 0 and 1: whatever exceeds the range shows
    before = images.clone()
    result = augmentation(images, generator())
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(images, before)


def test_the_seed_decides() -> None:
    images = noise(20)
    first, again, other = (Augmentation.SIMCLR(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_views_from_one_generator_differ() -> None:
    images, randomness = noise(20), generator()
    assert not torch.equal(Augmentation.SIMCLR(images, randomness), Augmentation.SIMCLR(images, randomness))


def test_autocast_does_not_round_the_pixels() -> None:
    images = noise(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Augmentation.SIMCLR(images, generator())
    assert torch.equal(inside, Augmentation.SIMCLR(images, generator()))


def test_everything_turned_off_changes_nothing() -> None:
    images = noise(20)
    assert torch.equal(Augmentation(crop=None, flip=0, jitter_p=0, grayscale=0)(images, generator()), images)


@pytest.mark.parametrize("count", [1, 2])
def test_small_batches(count: int) -> None:
    assert Augmentation.SIMCLR(noise(count), generator()).shape == (count, 3, 32, 32)


# --- the parameters are distributed as torchvision's ----------------------------------------------------------------
# Seeds are fixed, so nothing here fails by chance.

DRAWS = 5000


def same_distribution(ours: Tensor, theirs: Tensor) -> bool:
    return bool(ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 0.01)


BOX_QUANTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "area": lambda box: box[:, 2] * box[:, 3],
    "ratio": lambda box: box[:, 3] / box[:, 2],
    "top": lambda box: box[:, 0],
    "left": lambda box: box[:, 1],
    "bottom": lambda box: box[:, 0] + box[:, 2],
    "right": lambda box: box[:, 1] + box[:, 3],
}


@pytest.fixture(scope="module", params=[(32, 32), (60, 90)], ids=["32x32", "60x90"])
def boxes(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    size, scale = request.param, (0.08, 1.0)
    ours = Augmentation(crop=scale).sample(DRAWS, size, generator()).boxes
    assert ours is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.empty(3, *size)
        theirs = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)]
    return ours.float(), torch.tensor(theirs).float()


@pytest.mark.parametrize("quantity", BOX_QUANTITIES)
def test_boxes_are_distributed_as_torchvisions(boxes: tuple[Tensor, Tensor], quantity: str) -> None:
    ours, theirs = map(BOX_QUANTITIES[quantity], boxes)
    assert same_distribution(ours, theirs)


def test_boxes_lie_inside_the_image(boxes: tuple[Tensor, Tensor]) -> None:
    ours, theirs = boxes
    assert bool((ours[:, :2] >= 0).all())
    assert bool((ours[:, 2:] >= 1).all())
    assert bool(((ours[:, :2] + ours[:, 2:]).amax(dim=0) <= (theirs[:, :2] + theirs[:, 2:]).amax(dim=0)).all())


@pytest.mark.parametrize("size", [(20, 60), (60, 20), (20, 22)])
def test_where_no_crop_fits_the_box_is_torchvisions_central_one(size: tuple[int, int]) -> None:
    scale = [1.5, 2.0]  # larger than the image
    ours = Augmentation(crop=(1.5, 2.0)).sample(4, size, generator()).boxes
    theirs = RandomResizedCrop.get_params(torch.empty(3, *size), scale, [3 / 4, 4 / 3])
    assert ours is not None
    assert ours.tolist() == [list(theirs)] * 4


def test_jitter_factors_and_order_are_distributed_as_torchvisions() -> None:
    jitter = (0.4, 0.3, 1.2, 0.1)  # a strength above 1 is cut off at the factor 0
    parameters = Augmentation(jitter=jitter).sample(DRAWS, (32, 32), generator())
    transform = ColorJitter(*jitter)
    ranges = (transform.brightness, transform.contrast, transform.saturation, transform.hue)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    theirs = torch.tensor([factors for _, *factors in draws])
    for index in range(4):
        assert same_distribution(parameters.factors[:, index], theirs[:, index])

    orders, counts = parameters.order.unique(dim=0, return_counts=True)
    assert orders.sort(dim=1).values.unique(dim=0).tolist() == [[0, 1, 2, 3]]
    assert len(orders) == 24
    assert chisquare(counts.numpy()).pvalue > 0.01


def test_shares_of_flipped_jittered_and_gray_images() -> None:
    parameters = Augmentation.SIMCLR.sample(100_000, (32, 32), generator())
    chosen = {"flip": (parameters.flip, 0.5), "jitter": (parameters.jitter, 0.8), "gray": (parameters.grayscale, 0.2)}
    for mask, probability in chosen.values():
        assert mask.float().mean().item() == pytest.approx(probability, abs=0.004)
    # Each is drawn on its own: two happen together as often as chance has it.
    both = parameters.flip & parameters.jitter & parameters.grayscale
    assert both.float().mean().item() == pytest.approx(0.5 * 0.8 * 0.2, abs=0.004)


# --- all of it ------------------------------------------------------------------------------------------------------


def composed(with_crop: bool) -> transforms.Compose:
    """torchvision's pipeline, for one image at a time."""
    crop = [transforms.RandomResizedCrop(32, antialias=True)] if with_crop else []
    return transforms.Compose(
        [
            *crop,
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
        ]
    )


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda images: images.mean(dim=(1, 2, 3)),
    "std": lambda images: images.std(dim=(1, 2, 3)),
    "colorfulness": lambda images: images.std(dim=1).mean(dim=(1, 2)),
    "red minus blue": lambda images: (images[:, 0] - images[:, 2]).mean(dim=(1, 2)),
    "right minus left": lambda images: (images[..., 16:] - images[..., :16]).mean(dim=(1, 2, 3)),
    "detail": lambda images: images.diff(dim=3).abs().mean(dim=(1, 2, 3)),
    **{
        f"pixel quantile {share}": lambda images, share=share: images.flatten(1).quantile(share, dim=1)
        for share in (0.05, 0.25, 0.5, 0.75, 0.95)
    },
}


@pytest.mark.parametrize("with_crop", [True, False], ids=["simclr", "reference"])
def test_augmented_images_are_distributed_as_torchvisions(with_crop: bool) -> None:
    images = smooth_images(1000)
    ours = (Augmentation.SIMCLR if with_crop else Augmentation.REFERENCE)(images, generator())
    pipeline = composed(with_crop)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.stack([pipeline(image) for image in images])
    different = [name for name, of in STATISTICS.items() if not same_distribution(of(ours), of(theirs))]
    assert different == []
