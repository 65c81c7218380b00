"""SimCLR's augmentation on a whole batch at once, each image with random parameters of its own.

The paper: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020, without the blur, as usual for small images and as in BadEncoder's code. It does what torchvision does
with float images one by one: ``RandomResizedCrop`` (antialiased), ``RandomHorizontalFlip``,
``RandomApply([ColorJitter])`` with the four changes in a random order per image, ``RandomGrayscale``.

Drawing the parameters (``Augmentation.sample``) is apart from using them (``apply``).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from sapper.samples import ImageSet, to_float

ASPECT_RATIO = (3 / 4, 4 / 3)  # width / height of a crop, torchvision's default
CROP_TRIES = 10  # as in torchvision
# Images cropped at once: few enough for the intermediate results to stay in a processor's cache.
CROP_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What happens to each of N images.

    ``boxes``     int64 (N, 4): top, left, height and width of the crop in pixels; or none, for no crop.
    ``flip``      bool (N,): mirror left and right.
    ``jitter``    bool (N,): change the colors.
    ``factors``   float32 (N, 4): the factors of brightness, contrast, saturation and hue.
    ``order``     int64 (N, 4): a permutation of 0…3, the indices into ``factors`` in the order of the changes.
    ``grayscale`` bool (N,): drop the colors, last of all.
    """

    boxes: Tensor | None
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    grayscale: Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random augmentation of float images in [0, 1], (N, 3, H, W); the range stays, and the shape if ``size`` is 0.

    ``crop``      range of a crop's share of the image area; none: no crop.
    ``size``      height and width of a crop's result in pixels; 0: those of the image.
    ``flip``      probability of mirroring left and right.
    ``jitter``    strengths of brightness, contrast, saturation and hue, as of torchvision's ``ColorJitter``.
    ``jitter_p``  probability of changing the colors.
    ``grayscale`` probability of dropping them.
    """

    crop: tuple[float, float] | None = (0.08, 1.0)
    size: int = 0
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grayscale: float = 0.2

    SIMCLR: ClassVar["Augmentation"]  # a view in SimCLR pre-training
    REFERENCE: ClassVar["Augmentation"]  # BadEncoder's augmented reference inputs: the same without the crop

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The images, each augmented at random; ``images`` itself is left alone.

        Random numbers come from the generator's own device: a CPU generator draws the same for images on any device.
        """
        count, _, height, width = images.shape
        views = (self.size, self.size) if self.size else (height, width)
        return apply(images, self.sample(count, (height, width), generator), views)

    @torch.no_grad()
    def views(self, images: ImageSet, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The images of a set at ``rows``, each augmented at random; an image with a canvas is cropped from that."""
        if images.canvases is None or self.crop is None:
            return self(images.batch(rows), generator)
        canvases, of = images.canvases, images.canvases.of[rows]
        small, large = (of < 0).nonzero().squeeze(1), (of >= 0).nonzero().squeeze(1)
        sizes = torch.tensor(images.size).repeat(len(rows), 1)
        sizes[large] = canvases.sizes[of[large]]
        parameters = self.sample(len(rows), sizes, generator)
        boxes, size = cast(Tensor, parameters.boxes), (self.size, self.size) if self.size else images.size
        pixels = to_float(canvases.pixels[of[large].to(canvases.pixels.device)])
        crops = pixels.new_empty(len(rows), 3, *size)
        for where, whole in ((small, images.batch(rows[small])), (large, pixels)):
            if len(where):
                crops[where.to(crops.device)] = resized_crop(whole, boxes[where.to(boxes.device)], size)
        return apply(crops, replace(parameters, boxes=None))

    def sample(self, count: int, size: tuple[int, int] | Tensor, generator: torch.Generator) -> Parameters:
        """Parameters for ``count`` images of ``size`` (height, width), on the generator's device.

        ``size`` may be int64 (count, 2), a size for each.
        """
        *strengths, hue = self.jitter
        ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths] + [(-hue, hue)]
        return Parameters(
            boxes=None if self.crop is None else _sample_boxes(_sizes(count, size, generator), self.crop, generator),
            flip=_uniform((count,), 0, 1, generator) < self.flip,
            jitter=_uniform((count,), 0, 1, generator) < self.jitter_p,
            factors=torch.stack([_uniform((count,), *bounds, generator) for bounds in ranges], dim=1).float(),
            order=_uniform((count, 4), 0, 1, generator).argsort(dim=1),
            grayscale=_uniform((count,), 0, 1, generator) < self.grayscale,
        )


Augmentation.SIMCLR = Augmentation()
Augmentation.REFERENCE = Augmentation(crop=None)


@torch.no_grad()
def apply(images: Tensor, parameters: Parameters, size: tuple[int, int] | None = None) -> Tensor:
    """The images with these parameters applied, crops resized to ``size``; ``images`` itself is left alone."""
    boxes, factors = parameters.boxes, parameters.factors.to(images)
    images = images.clone() if boxes is None else resized_crop(images, boxes, size)
    rows = _rows(parameters.flip, images)
    images[rows] = images[rows].flip(-1)
    for step in range(4):
        for index, adjust in enumerate(ADJUSTMENTS):
            rows = _rows(parameters.jitter & (parameters.order[:, step] == index), images)
            images[rows] = adjust(images[rows], factors[rows, index])
    rows = _rows(parameters.grayscale, images)
    images[rows] = to_grayscale(images[rows])  # one channel, written to all three
    return images


def _rows(mask: Tensor, images: Tensor) -> Tensor:
    """The indices where ``mask`` holds, for use on ``images``. Found before the move, so that no accelerator waits."""
    return mask.nonzero().squeeze(1).to(images.device)


# --- random parameters --------------------------------------------------------------------------------------------


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform in [low, high), float64: in float32 the largest number below 1 times a size can round up to the size."""
    draw = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * draw


def _sizes(count: int, size: tuple[int, int] | Tensor, generator: torch.Generator) -> Tensor:
    return torch.as_tensor(size, device=generator.device).expand(count, 2)


def _sample_boxes(sizes: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Crops as torchvision's ``RandomResizedCrop.get_params`` draws them, int64 (N, 4), of images of ``sizes`` (N, 2).

    Area and logarithm of the aspect ratio are uniform, height and width are rounded to pixels. The first of ten tries
    that fits into the image is placed uniformly; if none fits, the largest central crop within the aspect ratios.
    """
    count, (height, width) = len(sizes), sizes.unsqueeze(2).unbind(1)
    area = height * width * _uniform((count, CROP_TRIES), *scale, generator)
    narrowest, widest = ASPECT_RATIO
    ratio = _uniform((count, CROP_TRIES), math.log(narrowest), math.log(widest), generator).exp()
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = fits.int().argmax(dim=1, keepdim=True)
    height, width, h, w = (
        height.squeeze(1),
        width.squeeze(1),
        h.gather(1, first).squeeze(1),
        w.gather(1, first).squeeze(1),
    )
    top = (_uniform((count,), 0, 1, generator) * (height - h + 1)).floor()
    left = (_uniform((count,), 0, 1, generator) * (width - w + 1)).floor()

    boxes = torch.stack((top, left, h, w), dim=1).long()
    return torch.where(fits.any(dim=1, keepdim=True), boxes, _central_boxes(height, width))


def _central_boxes(height: Tensor, width: Tensor) -> Tensor:
    """The largest central crops whose aspect ratio is allowed."""
    narrowest, widest = ASPECT_RATIO
    h = torch.minimum(height, (width.double() / narrowest).round().long())
    w = torch.minimum(width, (height.double() * widest).round().long())
    return torch.stack(((height - h) // 2, (width - w) // 2, h, w), dim=1)


# --- geometry -----------------------------------------------------------------------------------------------------


def resized_crop(images: Tensor, boxes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Each image's box (top, left, height, width) of ``boxes`` (N, 4), brought to ``size`` (the image's by default).

    Bilinear and antialiased, as torchvision's ``resized_crop``.
    """
    size = size or (images.shape[2], images.shape[3])
    parts = zip(images.split(CROP_CHUNK), boxes.to(images.device).split(CROP_CHUNK))
    # Under autocast the matrix products would round the pixels to bfloat16.
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([_resized_crop(part, part_boxes, size) for part, part_boxes in parts])


def _resized_crop(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolation is separable: a matrix for the rows of each image and one for its columns."""
    count, channels, height, width = images.shape
    top, left, crop_height, crop_width = boxes.unbind(dim=1)
    rows = _interpolation(top, crop_height, height, size[0]).to(images.dtype)
    columns = _interpolation(left, crop_width, width, size[1]).to(images.dtype)
    images = images.reshape(count, channels * height, width) @ columns.transpose(1, 2)
    images = rows.unsqueeze(1) @ images.view(count, channels, height, size[1])
    return images.clamp_(0, 1)  # two weights can add up to a little more than 1


def _interpolation(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Weights (N, size, pixels) of each of ``pixels`` input pixels (last) in each output pixel (middle).

    The ``length`` pixels from ``start`` on are brought to ``size``; nothing outside of them has a weight. A weight
    falls linearly with the distance from the output pixel's center, to zero at one pixel, input or output, whichever
    is the larger.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    pixel, scale = torch.arange(pixels, device=start.device), length / size
    center = (torch.arange(size, device=start.device).unsqueeze(1) + 0.5) * scale - 0.5  # pixels are areas
    weights = (1 - (pixel - start - center).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights *= (pixel >= start) & (pixel < start + length)
    return weights / weights.sum(dim=2, keepdim=True)


# --- color: images (N, 3, H, W) and a factor for each, (N,) -------------------------------------------------------


def to_grayscale(images: Tensor) -> Tensor:
    """Luminance (N, 1, H, W), with torchvision's weights."""
    red, green, blue = images.unbind(dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """From black (0) over the image itself (1) to brighter."""
    return images.mul(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """From the mean luminance of the image (0) over the image itself (1) to more contrast."""
    mean = to_grayscale(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(mean, images, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """From grayscale (0) over the image itself (1) to stronger colors."""
    return _blend(to_grayscale(images), images, factor)


def _blend(zero: Tensor, one: Tensor, factor: Tensor) -> Tensor:
    """From ``zero`` at factor 0 through ``one`` at factor 1 and beyond."""
    factor = factor.view(-1, 1, 1, 1)
    return torch.addcmul(zero * (1 - factor), one, factor).clamp_(0, 1)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by ``factor`` of the color circle; saturation and value in HSV stay.

    HSV's value is the largest channel, chroma the largest minus the smallest, and hue the place on a circle of length
    6 with red at 0, green at 2 and blue at 4. How far a hue is from red follows from the channels alone, and green
    minus blue says on which side. Back again, a channel has the full value up to a distance of 1 from its own hue,
    value minus chroma from a distance of 2 on, and is linear between. (A rotation in YIQ is another augmentation.)
    """
    red, green, blue = images.unbind(dim=1)
    value = red.maximum(green).maximum(blue)
    chroma = value - red.minimum(green).minimum(blue)
    # In gray pixels chroma and numerator are 0: any hue will do, but not a division by 0.
    from_red = 2 + ((green - red) + (blue - value)) / chroma.clamp_min(1e-12)
    hue = from_red.copysign_(green - blue) + 6 * factor.view(-1, 1, 1)
    own = torch.arange(0, 6, 2, dtype=images.dtype, device=images.device).view(3, 1, 1)
    # 3 - |remainder - 3| is the distance on the circle; its excess over 1 is the share of chroma to take away.
    excess = (hue.unsqueeze(1) - own).remainder_(6).sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(value.unsqueeze(1), excess, chroma.unsqueeze(1), value=-1)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
