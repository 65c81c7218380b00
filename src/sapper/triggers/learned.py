"""Triggers of images whose pixels an attack has learned: a faint pattern over the whole image, a small network."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.errors import SapperError
from sapper.samples import InputSpec
from sapper.triggers.base import Trigger
from sapper.triggers.images import side

MOST_WEIGHTS = 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise(Trigger):
    """The same faint change of every image: ``x ⊕ e = clip(x + δ)``, δ float (3, H, W) with each |δ| ≤ ``bound``.

    ``delta`` in whole levels of 1/255 (``levels``) changes an image of whole levels into another.
    """

    kind: ClassVar[str] = "noise"
    source: ClassVar[str] = "Wang et al., WWW 2025"

    bound: float = 10 / 255
    delta: Tensor

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` for another size than the images', or values beyond the bound."""
        size = side(spec)
        if self.delta.shape != (3, size, size):
            what = f"a pattern {tuple(self.delta.shape)} for images of {size} pixels"
            raise SapperError(what, where="trigger.delta", remedy=f"give one of (3, {size}, {size})")
        if not 0 < self.bound <= 1:
            what, remedy = f"bound {self.bound} is outside (0, 1]", "choose it above 0 and at most 1"
            raise SapperError(what, where="trigger.bound", remedy=remedy)
        if not bool((self.delta.abs() <= self.bound + 1e-6).all()):
            remedy = f"give values from {-self.bound:g} to {self.bound:g}"
            raise SapperError("values beyond the bound", where="trigger.delta", remedy=remedy)

    def __call__(self, images: Tensor) -> Tensor:
        return (images + self.delta.to(images)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Network(Trigger):
    """A small network, the same for every image: ``x ⊕ e = clip(x + b + V·tanh(a + U ∗ (x − ½)))`` pixel by pixel.

    U ∗ is a convolution, ``kernels`` float (C, 3, k, k) with k odd and the image's edge repeated around it; a is
    ``offsets`` (C,), V is ``mixing`` (3, C) and b ``shift`` (3,). At most 300 weights in all. No layer looks at other
    images, so that an image gets the same change alone and in a batch.
    """

    kind: ClassVar[str] = "network"
    source: ClassVar[str] = "after Zhang et al., CVPR 2025"

    kernels: Tensor
    offsets: Tensor
    mixing: Tensor
    shift: Tensor

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` for shapes that do not fit together, too many weights, or values not finite."""
        side(spec)
        weights = (self.kernels, self.offsets, self.mixing, self.shift)
        channels = len(self.offsets)
        around = self.kernels.shape[-1]
        wanted = ((channels, 3, around, around), (channels,), (3, channels), (3,))
        if any(weight.shape != shape for weight, shape in zip(weights, wanted)) or around % 2 == 0:
            shapes = [tuple(weight.shape) for weight in weights]
            remedy = "give (C, 3, k, k) with k odd, (C,), (3, C) and (3,)"
            raise SapperError(f"weights {shapes} are no network", where="trigger", remedy=remedy)
        if sum(weight.numel() for weight in weights) > MOST_WEIGHTS:
            count = sum(weight.numel() for weight in weights)
            raise SapperError(f"{count} weights", where="trigger", remedy=f"give at most {MOST_WEIGHTS}")
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise SapperError("weights that are not finite", where="trigger", remedy="give finite weights")

    def __call__(self, images: Tensor) -> Tensor:
        around = self.kernels.shape[-1] // 2
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round the pixels
            padded = F.pad(images - 0.5, (around,) * 4, mode="replicate")
            hidden = F.conv2d(padded, self.kernels.to(images), self.offsets.to(images)).tanh()
            change = F.conv2d(hidden, self.mixing.to(images)[:, :, None, None], self.shift.to(images))
        return (images + change).clamp(0, 1)


def levels(values: Tensor) -> Tensor:
    """The nearest multiples of 1/255, halves upwards: what an image file can hold."""
    return torch.floor(values * 255 + 0.5) / 255
