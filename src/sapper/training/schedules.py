"""Learning rates over the steps of a training."""

from math import cos, pi

import torch


def warm_cosine(progress: float, warmup: float) -> float:
    """Factor on the learning rate: linear up to 1 over the first ``warmup`` share, then half a cosine to 0.

    ``progress`` and ``warmup`` in [0, 1].
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + cos(pi * (progress - warmup) / max(1e-12, 1 - warmup)))


def part_done(index: int, total: int) -> float:
    """How much of a training is done in step ``index``, from 0 on, of ``total``; in (0, 1): no rate is zero."""
    return (index + 1) / (total + 1)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
