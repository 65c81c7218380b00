"""Priors: changes of one kind, many at once, that searches for a trigger optimize side by side.

Squares and blends are stamps of a mask and a pattern, color filters a matrix each. What they have in common is
``Prior``: a change of images for each row of ``weights``, some of them taken, moved to the places around.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sapper.running import Run
from sapper.triggers import Colors, Mask, Trigger, filtered
from sapper.triggers.searching import unit


class Prior(Protocol):
    """Changes of one kind that are optimized together. ``weights``: what is optimized, one row for each."""

    weights: Tensor

    @property
    def count(self) -> int: ...

    def apply(self, images: Tensor, rows: Tensor) -> Tensor:
        """Float images (N, 3, H, W) in [0, 1] under the changes in ``rows``: (len(rows), N, 3, H, W)."""
        ...

    def take(self, rows: Tensor) -> "Prior":
        """Some of the changes, as new leaves."""
        ...

    def around(self, number: int) -> "Prior":
        """The changes, then all of them again at each of the places around them: nearer ones in each round, 1, 2, …

        Only the changes where they have no place.
        """
        ...

    def keep_plain(self) -> None:
        """Change the gradients so that what is of one color stays so."""

    def trigger(self) -> Trigger:
        """The first change."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that tells its changes from others of the kind, by name."""
        ...

    def restored(self, tensors: Mapping[str, Tensor]) -> "Prior":
        """Changes of this kind, as ``tensors`` told them. Raises ``LookupError`` for a name that is missing."""
        ...


@dataclass
class Stamp:
    """x' = (1 − m)·x + m·θ with given masks m, float (P, 1, H, W): patches and blends.

    ``plain`` bool (P,): which of them begin in one color.
    """

    masks: Tensor
    weights: Tensor
    plain: Tensor

    @staticmethod
    def patches(side: int, size: tuple[int, int], run: Run, *, coarse: bool = False) -> "Stamp":
        """Squares half a side apart pixel by pixel, in one color a quarter of it; half of it, too, if ``coarse``."""
        by_pixel, in_one_color = (_squares(side, size, step) for step in _apart(side, coarse))
        return Stamp.of(by_pixel, in_one_color, run)

    @staticmethod
    def places(side: int, size: tuple[int, int], *, coarse: bool = False) -> int:
        """How many ``patches`` there are."""
        counts = (math.prod(len(_places(length, side, step)) for length in size) for step in _apart(side, coarse))
        return sum(counts)

    @staticmethod
    def blends(alpha: float, count: int, size: tuple[int, int], run: Run) -> "Stamp":
        """The whole image, with weight ``alpha``."""
        masks = torch.full((count, 1, *size), alpha)
        return Stamp.of(masks, masks, run)

    @staticmethod
    def of(by_pixel: Tensor, in_one_color: Tensor, run: Run) -> "Stamp":
        """Patterns for the first masks, drawn around gray; and for the others, drawn from all colors."""
        generator, size = run.generator(), by_pixel.shape[2:]
        pixels = torch.rand(len(by_pixel), 3, *size, generator=generator) - 0.5
        colors = 4 * torch.rand(len(in_one_color), 3, 1, 1, generator=generator) - 2
        weights = torch.cat((pixels, colors.expand(-1, -1, *size)))
        plain = torch.arange(len(weights)) >= len(by_pixel)
        masks = torch.cat((by_pixel, in_one_color))
        return Stamp(masks.to(run.device), weights.to(run.device).requires_grad_(), plain.to(run.device))

    @property
    def count(self) -> int:
        return len(self.weights)

    def apply(self, images: Tensor, rows: Tensor) -> Tensor:
        masks, patterns = self.masks[rows].unsqueeze(1), unit(self.weights[rows]).unsqueeze(1)
        return torch.lerp(images.unsqueeze(0), patterns, masks)

    def take(self, rows: Tensor) -> "Stamp":
        rows = rows.to(self.weights.device)
        return Stamp(self.masks[rows], self.weights.detach()[rows].requires_grad_(), self.plain[rows])

    def around(self, number: int) -> "Stamp":
        if bool((self.masks > 0).all()):
            return self
        step = max(1, int((self.masks[0] > 0).any(1).sum()) >> number + 1)
        moved = [self._moved(down, right) for down in (0, -step, step) for right in (0, -step, step)]
        masks, weights = (torch.cat(parts) for parts in zip(*moved))
        return Stamp(masks, weights, self.plain.repeat(len(moved)))

    def _moved(self, down: int, right: int) -> tuple[Tensor, Tensor]:
        """Masks and weights, moved by so many pixels; what would leave the image stays."""
        leaves = _leaves(self.masks.amax((1, 3)), down) | _leaves(self.masks.amax((1, 2)), right)
        masks, weights = (
            torch.where(leaves.view(-1, 1, 1, 1), each, each.roll((down, right), (2, 3)))
            for each in (self.masks, self.weights)
        )
        return masks, weights

    def keep_plain(self) -> None:
        gradients = self.weights.grad
        if gradients is not None:
            means = gradients.mean((2, 3), keepdim=True).expand_as(gradients)
            self.weights.grad = torch.where(self.plain.view(-1, 1, 1, 1), means, gradients)

    def tensors(self) -> dict[str, Tensor]:
        return {"masks": self.masks, "weights": self.weights.detach(), "plain": self.plain}

    def restored(self, tensors: Mapping[str, Tensor]) -> "Stamp":
        masks, weights, plain = (tensors[name].to(self.weights.device) for name in ("masks", "weights", "plain"))
        return Stamp(masks, weights.requires_grad_(), plain)

    def trigger(self) -> Mask:
        return Mask(mask=self.masks[0, 0].cpu(), pattern=unit(self.weights[0].detach()).cpu())


def side_of(share: float, size: tuple[int, int]) -> int:
    """Of a square, in pixels, for images of that height and width."""
    return max(1, round(share * min(size)))


def joined(stamps: Sequence[Stamp]) -> Stamp:
    """All of their changes, of images of one size."""
    return Stamp(
        torch.cat([each.masks for each in stamps]),
        torch.cat([each.weights.detach() for each in stamps]).requires_grad_(),
        torch.cat([each.plain for each in stamps]),
    )


@dataclass
class Filter:
    """x' = clip((I + A)·x + b) for each pixel's color, with A and b within ``strength``; weights (P, 3, 4)."""

    strength: float
    weights: Tensor

    @staticmethod
    def start(strength: float, count: int, run: Run) -> "Filter":
        """Filters that are drawn at random."""
        draws = torch.randn(count, 3, 4, generator=run.generator())
        return Filter(strength, draws.to(run.device).requires_grad_())

    @property
    def count(self) -> int:
        return len(self.weights)

    def matrices(self) -> Tensor:
        """(I + A, b), float (P, 3, 4)."""
        return torch.eye(3, 4, device=self.weights.device) + self.strength * torch.tanh(self.weights)

    def apply(self, images: Tensor, rows: Tensor) -> Tensor:
        return filtered(images, self.matrices()[rows])

    def around(self, number: int) -> "Filter":
        return self

    def keep_plain(self) -> None:
        """A filter has no pixels of its own."""

    def take(self, rows: Tensor) -> "Filter":
        return Filter(self.strength, self.weights.detach()[rows.to(self.weights.device)].requires_grad_())

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights.detach()}

    def restored(self, tensors: Mapping[str, Tensor]) -> "Filter":
        return Filter(self.strength, tensors["weights"].to(self.weights.device).requires_grad_())

    def trigger(self) -> Colors:
        return Colors(matrix=self.matrices()[0].detach().cpu())


def _apart(side: int, coarse: bool) -> tuple[int, int]:
    """How far apart squares begin, pixel by pixel and in one color."""
    return side // 2, side // 2 if coarse else side // 4


def _squares(side: int, size: tuple[int, int], step: int) -> Tensor:
    """Masks of squares so many pixels apart, and along the far edges; float (P, 1, H, W)."""
    masks = []
    for top in _places(size[0], side, step):
        for left in _places(size[1], side, step):
            mask = torch.zeros(1, *size)
            mask[:, top : top + side, left : left + side] = 1
            masks.append(mask)
    return torch.stack(masks)


def _places(length: int, side: int, step: int) -> Sequence[int]:
    return sorted({*range(0, length - side + 1, max(1, step)), length - side})


def _leaves(covered: Tensor, step: int) -> Tensor:
    """Which masks, that cover these of L rows or columns, float (P, L), leave the image by that step; bool (P,)."""
    edge = covered[:, covered.shape[1] - step :] if step > 0 else covered[:, : -min(step, 0)]
    return (edge > 0).any(1)
