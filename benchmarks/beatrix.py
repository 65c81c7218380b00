"""Beatrix's deviations of 64 images with maps of 64 channels on 16 places, orders 1 to 8: batches against a plain loop.

The textbook takes an image and an order at a time; both have the same bounds of 10 classes.
"""

import torch

from benchmarks.timing import Row, paired
from sapper.defenses.judge.beatrix import TINY, Beatrix, Bounds

IMAGES, CHANNELS, PLACES, CLASSES = 64, 64, 16, 10


def run(_dtype: torch.dtype) -> Row:
    """Both in float32, in which Gram matrices are taken whatever the format of the network."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(CLASSES, 10, CHANNELS, PLACES, generator=generator)
    maps, labels = torch.rand(IMAGES, CHANNELS, PLACES, generator=generator), torch.arange(IMAGES) % CLASSES
    known = Bounds.of(clean, Beatrix(per_class=10))
    upper = torch.ones(CHANNELS, CHANNELS, dtype=torch.bool).triu()

    def textbook() -> list[float]:
        found = []
        for image, label in zip(maps, labels):
            scaled, total = image / known.scale.unsqueeze(1), 0.0
            for order, low, high in zip(known.orders, known.low, known.high):
                product = scaled**order @ (scaled**order).T
                numbers = (product.sign() * product.abs() ** (1 / order))[upper]
                below = torch.relu(low[label] - numbers) / (low[label].abs() + TINY)
                above = torch.relu(numbers - high[label]) / (high[label].abs() + TINY)
                total += float((below + above).mean())
            found.append(total / len(known.orders))
        return found

    assert torch.allclose(known.deviation(maps, labels), torch.tensor(textbook()), rtol=1e-3)
    return paired(lambda: known.deviation(maps, labels), textbook, images=IMAGES, rounds=9)
