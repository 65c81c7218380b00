"""One SimCLR view of each image: ours on a batch, the textbook one image after another."""

import torch

from benchmarks.textbook import BATCH, SIMCLR, PerSample, loader, noise
from benchmarks.timing import Row, paired
from sapper.augment import Augmentation
from sapper.samples import to_float

BATCHES = 8


def run(_dtype: torch.dtype) -> Row:
    """Pixels are augmented in float32 whatever the number format of the network is."""
    pixels, generator = noise(BATCHES * BATCH), torch.Generator().manual_seed(0)
    batches = loader(PerSample(pixels, SIMCLR))

    def ours() -> None:
        for chunk in pixels.split(BATCH):
            Augmentation.SIMCLR(to_float(chunk), generator)

    def textbook() -> None:
        for _ in batches:
            pass

    return paired(ours, textbook, images=BATCHES * BATCH, rounds=15)
