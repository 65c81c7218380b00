"""What searches for a trigger optimize: masks and patterns of free shape, and how they are stamped."""

import torch
from torch import Tensor

from sapper.running import Run
from sapper.samples import to_float


def start(count: int, size: tuple[int, int], run: Run) -> list[Tensor]:
    """Masks (count, 1, H, W) and patterns (count, 3, H, W) before tanh, drawn so that both are uniform in (0, 1)."""
    generator = run.generator()
    shapes = ((count, 1, *size), (count, 3, *size))
    draws = [torch.rand(shape, generator=generator).clamp(1e-3, 1 - 1e-3) for shape in shapes]
    return [torch.atanh(2 * draw - 1).to(run.device).requires_grad_() for draw in draws]


def unit(weight: Tensor) -> Tensor:
    """What is optimized, as a mask or a pattern in [0, 1]."""
    return (torch.tanh(weight) + 1) / 2


def stamp(weights: list[Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """x' = (1 − m)·x + m·Δ for every aim: masks (aims, 1, 1, H, W), images (aims, N, 3, H, W) of uint8 (N, 3, H, W)."""
    return mixed(weights, to_float(pixels))


def mixed(weights: list[Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The same of float images in [0, 1]."""
    masks, patterns = (unit(weight).unsqueeze(1) for weight in weights)
    return masks, (1 - masks) * images + masks * patterns
