"""CTRL's trigger: a faint pattern of colors at chosen frequencies, all over the image."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sapper.errors import SapperError
from sapper.samples import InputSpec
from sapper.triggers.base import Trigger
from sapper.triggers.images import side

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # luminance Y = RED·r + GREEN·g + BLUE·b (ITU-R BT.601)
U, V = 0.492, 0.877  # U = 0.492·(b − Y), V = 0.877·(r − Y)


@dataclass(frozen=True, kw_only=True)
class Frequency(Trigger):
    """``x ⊕ e``: RGB → YUV, DCT, ``magnitude`` more on chosen coefficients of U and V, and all the way back, clipped.

    The DCT is the orthonormal DCT-II of windows of ``window`` pixels, or of the image where that is smaller; what is
    left of the image beside whole windows stays. ``magnitude`` is on the scale of pixels from 0 to 255,
    ``coefficients`` are (row, column) within a window. The defaults are CTRL's code's; in 32×32 images without
    clipping they cost a PSNR of 31.9 dB. Brightness Y stays: images made gray have no trigger.

    All steps but the clipping are linear, so the trigger adds one and the same pattern to every image.
    """

    kind: ClassVar[str] = "frequency"
    source: ClassVar[str] = "Li et al., ICCV 2023"

    magnitude: float = 100.0
    window: int = 32
    coefficients: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))

    def pattern(self, height: int, width: int) -> Tensor:
        """What is added to an image, float64 (3, H, W). Raises ``SapperError`` for coefficients outside a window."""
        size = min(self.window, height, width)
        if size < 1 or not self.coefficients:
            what, remedy = "no coefficient of a window of at least one pixel", "name a window and coefficients"
            raise SapperError(what, where="trigger.coefficients", remedy=remedy)
        spectrum = torch.zeros(size, size, dtype=torch.float64)
        for row, column in self.coefficients:
            if not (0 <= row < size and 0 <= column < size):
                what = f"there is no coefficient ({row}, {column}) in a window of {size}×{size}"
                raise SapperError(what, where="trigger.coefficients", remedy=f"choose them from 0 to {size - 1}")
            spectrum[row, column] = self.magnitude / 255
        basis = dct(size)
        chroma = torch.zeros(height, width, dtype=torch.float64)
        down, across = height // size, width // size
        chroma[: down * size, : across * size] = (basis.T @ spectrum @ basis).repeat(down, across)
        red, blue = chroma / V, chroma / U
        return torch.stack((red, -(RED * red + BLUE * blue) / GREEN, blue))  # Y does not change

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` when a coefficient is outside the window."""
        size = side(spec)
        self.pattern(size, size)

    def __call__(self, images: Tensor) -> Tensor:
        return (images + self.pattern(*images.shape[-2:]).to(images)).clamp(0, 1)


def dct(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix, float64 (size, size): row k is cos(π·(i + ½)·k / size), of length 1."""
    place = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (place + 0.5) * place.unsqueeze(1)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
