"""Multi-prior inversion from 16 starts on a ResNet-10 of width 16: one batch against one start after another.

Both take the same steps of 4 images for each start, as the first round of a quick audit does.
"""

import torch

from benchmarks.textbook import noise
from benchmarks.timing import Row, paired
from sapper.defenses.collapsing import collapse_losses
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.defenses.racing import descend
from sapper.encoders import build
from sapper.running import Run
from sapper.samples import to_float
from sapper.triggers.priors import Stamp

STARTS, IMAGES, STEPS = 16, 4, 4


def run(dtype: torch.dtype) -> Row:
    """Both in ``dtype``: they differ in nothing but the batch."""
    surroundings = Run(seed=0, dtype=dtype)
    encoder = build(surroundings, architecture="resnet10", width=16).eval().requires_grad_(False)
    method, pixels = MultiPrior(), to_float(noise(IMAGES))
    together = Stamp.patches(8, (32, 32), surroundings).take(torch.arange(STARTS))
    alone = [together.take(torch.tensor([row])) for row in range(STARTS)]

    def descended(stamp: Stamp) -> None:
        optimizer = torch.optim.Adam([stamp.weights], lr=method.learning_rate, betas=(0.5, 0.9))
        for _ in range(STEPS):
            descend(stamp, collapse_losses(encoder, surroundings), pixels)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def textbook() -> None:
        for stamp in alone:
            descended(stamp)

    return paired(lambda: descended(together), textbook, images=STARTS * IMAGES * STEPS, rounds=5)
