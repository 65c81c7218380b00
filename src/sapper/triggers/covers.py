"""Rectangles as masks, and sets of masks that cover a patch wherever it lies."""

import torch
from torch import Tensor

from sapper.errors import SapperError

Spans = tuple[list[tuple[int, int]], int]
"""Starts and ends along one axis, and its length."""


def rectangles(down: Spans, across: Spans) -> Tensor:
    """Every span of rows crossed with every span of columns, bool (n·m, height, width)."""
    rows, columns = inside(*down), inside(*across)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def inside(bounds: list[tuple[int, int]], length: int) -> Tensor:
    """Which of so many places lie in each span, bool (n, length)."""
    place, edges = torch.arange(length), torch.tensor(bounds)
    return (place >= edges[:, :1]) & (place < edges[:, 1:])


def axis_masks(side: int, patch: int, count: int) -> list[tuple[int, int]]:
    """Starts and ends of at most ``count`` masks along ``side`` pixels; any ``patch`` pixels in a row lie under one.

    Raises ``SapperError`` when the patch is larger than the side.
    """
    if patch > side:
        what, remedy = f"a patch of {patch} pixels does not fit an image of {side}", f"choose it at most {side}"
        raise SapperError(what, where="patch", remedy=remedy)
    stride = -(-(side - patch + 1) // count)
    mask = patch + stride - 1
    return [(min(start, side - mask), min(start, side - mask) + mask) for start in range(0, side - patch + 1, stride)]


def covering(images: Tensor, patch: int, count: int) -> Tensor:
    """The R-covering set for images of this size, bool (M, H, W)."""
    down, across = ((axis_masks(side, patch, count), side) for side in images.shape[-2:])
    return rectangles(down, across)
