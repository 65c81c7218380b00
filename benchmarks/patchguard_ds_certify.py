"""Mask-DS's certificate for a 10×10 patch: 32 bands of 4 columns, windows of 13 that wrap around, 10 classes."""

import torch

from benchmarks.certificate import compare
from benchmarks.timing import Row
from sapper.defenses.masking import column_windows


def run(_dtype: torch.dtype) -> Row:
    """In float32, whatever the number format."""
    windows = column_windows(32, 13)
    return compare(windows, (32,), [row.nonzero()[0] for row in windows.numpy()], images=4000, textbook_images=100)
