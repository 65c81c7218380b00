"""Images in memory: one uint8 tensor for a whole data set, so that no hot path runs per-sample Python."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.errors import SapperError
from sapper.samples.base import Samples
from sapper.samples.specs import InputSpec, PixelSpec

Change = Callable[[Tensor], Tensor]
"""Float images (N, 3, H, W) in [0, 1] to others of the same shape and range: a trigger, a mask, a band."""


PIXELS = {"cpu": 2**19, "cuda": 2**23}
"""Pixels of which an encoder may keep all activations at once.

For a ResNet-50 in float32 that is 1 GB on a CPU (10 images of 224×224, 512 of 32×32), and 16 GB on an accelerator.
"""

CACHED = 2**17
"""Pixels whose activations the caches of a CPU hold: 128 images of 32×32.

With 512 a forward pass takes half as long again (ResNet-10 and ResNet-18 of width 16, one thread of an AMD EPYC).
"""

FEW = 10
"""Images that go through an encoder together, if memory allows, however large: its weights are read once for them."""


def in_memory(images: Tensor, device: torch.device | None = None) -> int:
    """How many images of that size, (…, 3, H, W), memory is meant for in an encoder at once.

    ``device``: where the encoder is, if it is not where the images are.
    """
    kind = "cpu" if (device or images.device).type == "cpu" else "cuda"
    return max(1, int(PIXELS[kind] // (images.shape[-2] * images.shape[-1])))


def at_once(images: Tensor, device: torch.device | None = None) -> int:
    """The same, but on a CPU no more than are fast."""
    most = in_memory(images, device)
    if (device or images.device).type != "cpu":
        return most
    return min(most, max(FEW, CACHED // (images.shape[-2] * images.shape[-1])))


@dataclass(frozen=True, kw_only=True)
class Canvases:
    """Larger pictures behind some of N images, which are shrunken copies of them. Training draws its crops from these.

    ``of``     int64 (N,): which picture each image has; -1 for none.
    ``pixels`` uint8 (P, 3, H, W): the pictures, each in the upper left of its place; the rest is 0.
    ``sizes``  int64 (P, 2): their heights and widths.
    """

    of: Tensor
    pixels: Tensor
    sizes: Tensor

    def take(self, rows: Tensor) -> "Canvases | None":
        """Those of the images at ``rows``; none if none of them has one."""
        of = self.of[rows]
        used, numbers = of[of >= 0].unique(return_inverse=True)
        of = of.masked_scatter(of >= 0, numbers)
        pixels = self.pixels[used.to(self.pixels.device)]
        return Canvases(of=of, pixels=pixels, sizes=self.sizes[used]) if len(used) else None


@dataclass(frozen=True, kw_only=True)
class ImageSet(Samples):
    """A set of images: ``images`` uint8 (N, 3, H, W), 0…255, and what all ``Samples`` have.

    ``canvases``: larger pictures behind some of them, if there are any.
    """

    images: Tensor
    canvases: Canvases | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise self.error(f"images must be uint8 (N, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        super().__post_init__()

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def batch(self, rows: Tensor | slice | None = None) -> Tensor:
        """Images as float32 (n, 3, H, W) in [0, 1]: those at ``rows``, or all."""
        if isinstance(rows, Tensor):
            rows = rows.to(self.images.device)
        return to_float(self.images if rows is None else self.images[rows])

    def at_once(self, device: torch.device | None = None) -> int:
        """How many of these images go through an encoder at once."""
        return at_once(self.images, device)

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` unless an encoder that takes ``spec`` takes these images."""
        if not isinstance(spec, PixelSpec):
            raise self.error(f"these are images, the encoder takes {spec.modality}", "name another set or encoder")
        if self.size != (spec.size, spec.size):
            what = f"images are {self.size[0]}×{self.size[1]}, the encoder takes {spec.size}×{spec.size}"
            raise self.error(what, "load them with the encoder's size")

    def to(self, device: torch.device) -> Self:
        """The same images on that device."""
        larger = self.canvases and replace(self.canvases, pixels=self.canvases.pixels.to(device))
        return replace(self, images=self.images.to(device), canvases=larger)

    def _content(self, rows: Tensor) -> dict[str, Any]:
        larger = self.canvases and self.canvases.take(rows)
        return {"images": self.images[rows.to(self.images.device)], "canvases": larger}

    def _joined(self, others: Sequence[Self]) -> dict[str, Any]:
        sets = [self, *others]
        return {"images": torch.cat([each.images for each in sets]), "canvases": _joined_canvases(sets)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, labels and groups: what the Store and the report know the set by."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for values in (self.images, self.labels, self.groups):
            sha.update(b"-" if values is None else values.cpu().contiguous().numpy().data)
        if self.canvases is not None:
            for values in (self.canvases.of, self.canvases.sizes, self.canvases.pixels):
                sha.update(repr(tuple(values.shape)).encode())
                sha.update(values.cpu().contiguous().numpy().data)
        return sha.hexdigest()

    @cached_property
    def pixels_digest(self) -> str:
        """SHA-256 of shape and pixels alone: the same photos, whatever is known of them."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        return sha.hexdigest()


def _joined_canvases(sets: Sequence[ImageSet]) -> Canvases | None:
    """The canvases of the sets one after another, all in places of the largest size."""
    there = [each.canvases for each in sets if each.canvases is not None]
    if not there:
        return None
    height, width = (max(each.pixels.shape[side] for each in there) for side in (2, 3))
    pixels = [F.pad(each.pixels, (0, width - each.pixels.shape[3], 0, height - each.pixels.shape[2])) for each in there]
    of, count = [], 0
    for each in sets:
        if each.canvases is None:
            of.append(torch.full((len(each),), -1))
        else:
            of.append(torch.where(each.canvases.of < 0, -1, each.canvases.of + count))
            count += len(each.canvases.pixels)
    return Canvases(of=torch.cat(of), pixels=torch.cat(pixels), sizes=torch.cat([each.sizes for each in there]))


def only_images(samples: Samples, who: str) -> ImageSet:
    """The set itself. Raises ``SapperError`` for samples of another kind, which ``who`` cannot learn from."""
    if not isinstance(samples, ImageSet):
        raise samples.error(f"{who} learns from images alone", "name a set of images")
    return samples


def check_pixels(images: Tensor, labels: Tensor | None = None) -> None:
    """Raises ``SapperError`` unless ``images`` are uint8 (N, 3, H, W), and ``labels``, if given, int64 (N,)."""
    if not isinstance(images, Tensor):
        what = f"images must be a tensor, uint8 (N, 3, H, W), got {type(images).__name__}"
        raise SapperError(what, where="images", remedy="of an ImageSet give .images, of an array torch.from_numpy(…)")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        what = f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        raise SapperError(what, where="images", remedy=_pixels_remedy(images))
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
        what = f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
        raise SapperError(what, where="labels", remedy="give one for each image")


def _pixels_remedy(images: Tensor) -> str:
    """What to do with a tensor that is no uint8 (N, 3, H, W)."""
    if images.dtype != torch.uint8:
        return "give pixels from 0 to 255"
    if images.ndim == 4 and images.shape[3] == 3:
        return "put the channels first: images.permute(0, 3, 1, 2)"
    if images.ndim == 3:
        return "give a batch: images[None] for one image, images.unsqueeze(1).expand(-1, 3, -1, -1) for gray ones"
    if images.ndim == 4 and images.shape[1] == 1:
        return "give three channels: images.expand(-1, 3, -1, -1) for gray ones"
    return "give three channels, red, green and blue"


def to_float(images: Tensor) -> Tensor:
    """uint8 images 0…255 as float32 in [0, 1]; the layout in memory is kept."""
    return images.to(torch.float32).div_(255)
