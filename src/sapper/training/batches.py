"""Batches of rows in random order."""

from collections.abc import Iterator

import torch
from torch import Tensor


def shuffled(count: int, batch: int, generator: torch.Generator, *, drop_last: bool = True) -> Iterator[Tensor]:
    """Rows 0…count-1 in random order, int64 batches.

    A last incomplete batch is left out with ``drop_last``, unless it is the only one.
    """
    order = torch.randperm(count, generator=generator)
    for start in range(0, count, batch):
        rows = order[start : start + batch]
        if len(rows) == batch or not drop_last or count < batch:
            yield rows


def steps_per_epoch(count: int, batch: int) -> int:
    """How many batches ``shuffled`` yields with ``drop_last``."""
    return max(1, count // batch)
