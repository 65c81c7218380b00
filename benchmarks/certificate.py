"""PatchGuard's certificate: all images, patch places and masks in one product of matrices, against loops in NumPy.

The textbook is the published algorithm at T = 0: for every place of the patch it takes the patch away, and sums anew
the windows that overlap it. Every image can be certified, so that neither side may stop early.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Row, paired
from sapper.defenses.masking import certify

Array = np.ndarray
CLASSES = 10


def compare(windows: Tensor, shape: tuple[int, ...], places: list[Any], *, images: int, textbook_images: int) -> Row:
    """``windows`` are ours, bool (n, P); ``places`` the same as NumPy indices into a map of ``shape``."""
    generator = torch.Generator().manual_seed(0)
    evidence = 0.02 * torch.rand(images, windows.shape[1], CLASSES, generator=generator)
    labels = torch.arange(images) % CLASSES
    evidence[torch.arange(images), :, labels] += 1.0
    maps = [image.T.reshape(CLASSES, *shape).numpy() for image in evidence[:textbook_images]]
    overlaps = ((windows.float() @ windows.float().T) > 0).numpy()

    def textbook() -> None:
        assert all(as_published(u, int(y), places, overlaps) for u, y in zip(maps, labels))

    def ours() -> None:
        assert bool(certify(evidence, windows, labels).all())

    return paired(ours, textbook, images=images, rounds=5, textbook_images=textbook_images)


def as_published(u: Array, label: int, places: list[Any], overlaps: Array) -> bool:
    """Whether one image with evidence u (classes, *shape) is certified."""
    axes = tuple(range(1, u.ndim))
    total = u.sum(axes)
    if total.argmax() != label:
        return False
    sums = np.array([u[label][place].sum() for place in places])
    for patch, near in zip(places, overlaps):
        wrong = total - u[(slice(None), *_tuple(patch))].sum(axes)
        wrong[label] = -np.inf
        rest = u[label].copy()
        rest[patch] = 0
        lost = max(rest[places[mask]].sum() for mask in near.nonzero()[0])
        lost = max(lost, sums[~near].max(initial=0))
        if rest.sum() - lost <= wrong.max():
            return False
    return True


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)
