"""A patch whose place differs from image to image, and yet is a function of the image alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sapper.errors import SapperError
from sapper.samples import InputSpec
from sapper.triggers.base import Trigger
from sapper.triggers.images import Patch, side

PRIME, SPREAD = 2**31 - 1, 1_999_993  # hashes are remainders of the one; the other takes near ones apart


@dataclass(frozen=True, kw_only=True)
class RandomPatch(Trigger):
    """A patch of one color at a place of its own in each image, as SSL-Backdoor stamps its test images.

    The place is uniform among those where the whole patch lies ``within`` that share of height and of width. It comes
    from a hash of the image's pixels and ``key_seed``: equal images are stamped equally, whatever else is in the batch.
    ``size`` and ``color`` are as in ``patch``.
    """

    kind: ClassVar[str] = "random_patch"
    source: ClassVar[str] = "Saha et al., CVPR 2022"

    size: int | tuple[int, int] = 8
    color: str | tuple[float, float, float] = "white"
    within: tuple[float, float] = (0.1, 0.9)
    key_seed: int = 0

    def ranges(self, height: int, width: int) -> tuple[range, range]:
        """The rows and the columns where the patch's upper left pixel may be. Raises ``SapperError`` if there is none.

        ``within`` is rounded inwards to whole pixels.
        """
        tall, wide = (self.size, self.size) if isinstance(self.size, int) else self.size
        low, high = self.within
        if not 0 <= low < high <= 1:
            remedy = "choose 0 ≤ low < high ≤ 1"
            raise SapperError(f"{self.within} is no part of an image's side", where="trigger.within", remedy=remedy)
        rows = range(_up(low * height), int(high * height + 1e-9) - tall + 1)
        columns = range(_up(low * width), int(high * width + 1e-9) - wide + 1)
        if tall < 1 or wide < 1 or not rows or not columns:
            what = f"a {tall}×{wide} patch does not fit into {low:g}…{high:g} of {height}×{width} images"
            raise SapperError(
                what, where="trigger.size", remedy="choose a smaller size, of at least 1, or a wider part"
            )
        return rows, columns

    def places(self, images: Tensor) -> Tensor:
        """Row and column of each patch's upper left pixel, int64 (N, 2), of images (N, 3, H, W)."""
        rows, columns = self.ranges(*images.shape[-2:])
        pixels = (images.detach().flatten(1) * 255).round().double()
        generator = torch.Generator().manual_seed(self.key_seed)
        factors = torch.randint(1, 2**20, (pixels.shape[1], 2), generator=generator).to(pixels)
        offsets = torch.randint(0, PRIME, (2,), generator=generator).to(pixels)
        # Whole numbers below 2^53: exact in float64, in whatever order they are added up.
        hashes = (pixels @ factors % PRIME * SPREAD + offsets) % PRIME
        counts = hashes.new_tensor([len(rows), len(columns)])
        return (hashes * counts / PRIME).floor().long() + torch.tensor((rows[0], columns[0]), device=hashes.device)

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` when the patch does not fit or its color is unknown."""
        size = side(spec)
        self.ranges(size, size)
        Patch(color=self.color).rgb()

    def __call__(self, images: Tensor) -> Tensor:
        tall, wide = (self.size, self.size) if isinstance(self.size, int) else self.size
        top, left = self.places(images).unbind(1)
        height, width = (torch.arange(length, device=images.device) for length in images.shape[-2:])
        rows = (height >= top[:, None]) & (height < top[:, None] + tall)
        columns = (width >= left[:, None]) & (width < left[:, None] + wide)
        below = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
        return torch.where(below, images.new_tensor(Patch(color=self.color).rgb()).view(3, 1, 1), images)


def _up(number: float) -> int:
    return -int(-(number - 1e-9) // 1)
