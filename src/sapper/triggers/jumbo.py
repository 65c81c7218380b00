"""Jumbo learning's attacks: random triggers of many kinds, so that who has seen them knows what a backdoor looks like.

    x' = (1 − α)·x + α·Δ   inside of a square, x elsewhere

The square's side is 2, 3, 4 or 5 pixels, or the whole image, each as often; α is uniform in [0.2, 0.6] for a small
square, and 1 where that exceeds 0.5, and uniform in [0.05, 0.2] for the whole image. Δ is noise, uniform in
[−e, 1 + e] and cut to [0, 1], with e uniform in [0, 1]: from gray noise to pure colors. Place and target class are
uniform; from 5 to 50 % of the training images are stamped, relabeled and *added*.

Source: Xu et al., "Detecting AI Trojans Using Meta Neural Analysis", IEEE S&P 2021, and the authors'
``cifar10_cnn_model.py``. There the last row and column are never part of a square; here they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SIDES = (2, 3, 4, 5)
"""Of small squares; besides them, the whole image."""


@dataclass(frozen=True)
class Jumbo:
    """One random attack. ``mask`` bool (H, W); ``pattern`` float (3, H, W) in [0, 1]; ``rate`` of added images."""

    mask: Tensor
    pattern: Tensor
    alpha: float
    target: int
    rate: float

    def __call__(self, images: Tensor) -> Tensor:
        """Stamp float images (N, 3, H, W) in [0, 1]."""
        mask, pattern = self.mask.to(images.device), self.pattern.to(images)
        return torch.where(mask, torch.lerp(images, pattern, self.alpha), images)


def draw(size: tuple[int, int], classes: int, generator: torch.Generator) -> Jumbo:
    """A random attack on a task of that many classes, with images of that size (height, width)."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    height, width = size
    kind = number(len(SIDES) + 1)
    mask = torch.ones(height, width, dtype=torch.bool)
    alpha = uniform(0.05, 0.2)
    if kind < len(SIDES):
        side = min(SIDES[kind], height, width)
        top, left = number(height - side + 1), number(width - side + 1)
        mask[:] = False
        mask[top : top + side, left : left + side] = True
        alpha = uniform(0.2, 0.6)
        alpha = 1.0 if alpha > 0.5 else alpha
    beyond = uniform(0, 1)
    noise = torch.rand(3, height, width, generator=generator)
    pattern = (noise * (1 + 2 * beyond) - beyond).clamp(0, 1)
    return Jumbo(mask, pattern, alpha, target=number(classes), rate=uniform(0.05, 0.5))
