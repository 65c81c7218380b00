"""Mask-BN's certificate in the published setting: a map of 22×22 places, windows of 6×6, 10 classes."""

import torch

from benchmarks.certificate import compare
from benchmarks.timing import Row
from sapper.defenses.masking import square_windows

SIDE, WINDOW = 22, 6


def run(_dtype: torch.dtype) -> Row:
    """In float32, whatever the number format."""
    starts = range(SIDE - WINDOW + 1)
    places = [(slice(top, top + WINDOW), slice(left, left + WINDOW)) for top in starts for left in starts]
    return compare(square_windows(SIDE, SIDE, WINDOW), (SIDE, SIDE), places, images=128, textbook_images=4)
