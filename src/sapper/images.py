"""Images in memory: one uint8 tensor for a whole data set, so that no hot path runs per-sample Python."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sapper.errors import SapperError

Change = Callable[[Tensor], Tensor]
"""Float images (N, 3, H, W) in [0, 1] to others of the same shape and range: a trigger, a mask, a band."""


PIXELS = {"cpu": 2**19, "cuda": 2**23}
"""Pixels of which an encoder may keep all activations for gradients at once.

For a ResNet-50 in float32 that is 1 GB on a CPU (10 images of 224×224, which is also fastest, 512 of 32×32), and
16 GB on an accelerator.
"""


def at_once(images: Tensor, *, gradients: bool) -> int:
    """How many images of that size, (…, 3, H, W), go through an encoder at once; 8 times as many without gradients."""
    most = PIXELS["cpu" if images.device.type == "cpu" else "cuda"] // (images.shape[-2] * images.shape[-1])
    return max(1, most if gradients else 8 * most)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A set of images with, if there are any, labels.

    ``images``  uint8 (N, 3, H, W), 0…255.
    ``labels``  int64 (N,), each in 0…len(classes)-1, or none.
    ``classes`` class names in label order; empty where there are no labels.
    ``groups``  int64 (N,), or none: images of one group are near-duplicates (the frames of a GTSRB track).
    ``name``, ``split``, ``provenance``: what it is called and where it comes from, for reports.
    ``notes``   sentences for the user about what was passed over when it was read.

    Raises ``SapperError`` when shapes, dtypes or label ranges do not fit together.
    """

    images: Tensor
    name: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    groups: Tensor | None = None
    split: str = ""
    provenance: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise self._error(f"images must be uint8 (N, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if len(self) == 0:
            raise self._error("there is no image in it")
        for what, values in (("labels", self.labels), ("groups", self.groups)):
            if values is not None and (values.dtype != torch.int64 or values.shape != (len(self),)):
                raise self._error(f"{what} must be int64 ({len(self)},), got {values.dtype} {tuple(values.shape)}")
        if self.labels is not None and not (0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes)):
            lowest, highest = int(self.labels.min()), int(self.labels.max())
            raise self._error(f"labels run from {lowest} to {highest}, but there are {len(self.classes)} classes")

    def _error(self, what: str) -> SapperError:
        return SapperError(what, where=f"data set {self.name!r} {self.split}".rstrip())

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def targets(self) -> Tensor:
        """The labels, int64 (N,). Raises ``SapperError`` where the set has none."""
        if self.labels is None:
            what, remedy = (
                "this needs labels, and the set has none",
                "name one with labels, such as a folder of classes",
            )
            raise SapperError(what, where=f"data set {self.name!r}", remedy=remedy)
        return self.labels

    def take(self, rows: Tensor) -> "ImageSet":
        """The images at ``rows`` (int64 indices or a boolean mask), in that order."""
        return replace(
            self,
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def without(self, rows: Tensor) -> "ImageSet":
        """All images but those at the int64 indices ``rows``."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[rows] = False
        return self.take(keep)

    def sample(self, count: int, generator: torch.Generator) -> "ImageSet":
        """``count`` distinct images drawn at random; all of them, in their order, if there are no more."""
        if count >= len(self):
            return self
        return self.take(torch.randperm(len(self), generator=generator)[:count])

    def held_out(self, share: float, generator: torch.Generator) -> tuple["ImageSet", "ImageSet"]:
        """The set in two parts: the rest, and about ``share`` of it held out; a group stays on one side."""
        keys = torch.arange(len(self)) if self.groups is None else self.groups
        names = keys.unique()
        chosen = names[torch.randperm(len(names), generator=generator)[: max(1, round(share * len(names)))]]
        mask = torch.isin(keys, chosen)
        return self.take(~mask), replace(self.take(mask), split=f"held out of {self.split}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, labels and groups: what the Store and the report know the set by."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for values in (self.images, self.labels, self.groups):
            sha.update(b"-" if values is None else values.contiguous().numpy().data)
        return sha.hexdigest()

    @cached_property
    def pixels_digest(self) -> str:
        """SHA-256 of shape and pixels alone: the same photos, whatever is known of them."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        sha.update(self.images.contiguous().numpy().data)
        return sha.hexdigest()


def check_pixels(images: Tensor, labels: Tensor | None = None) -> None:
    """Raises ``SapperError`` unless ``images`` are uint8 (N, 3, H, W), and ``labels``, if given, int64 (N,)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        what = f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        raise SapperError(what, where="images", remedy="give pixels from 0 to 255")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
        what = f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
        raise SapperError(what, where="labels", remedy="give one for each image")


def to_float(images: Tensor) -> Tensor:
    """uint8 images 0…255 as float32 in [0, 1]; the layout in memory is kept."""
    return images.to(torch.float32).div_(255)
