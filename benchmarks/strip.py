"""STRIP on a ResNet-18 of width 16, 16 inputs and 20 overlays: blends in one batch against one after another.

The textbook is the published loop: for every input and every overlay a blend in 8-bit arithmetic, and for every input
the classifier's answers to its blends, whose entropy is computed over the classes.
"""

import numpy as np
import torch
from torch import nn

from benchmarks.textbook import noise
from benchmarks.timing import Row, paired
from sapper.defenses.screen.strip import STRIP
from sapper.encoders import build
from sapper.running import Run
from sapper.samples import ImageSet

INPUTS, OVERLAYS, CLASSES = 16, 20, 10


def run(dtype: torch.dtype) -> Row:
    """Both in ``dtype``."""
    surroundings = Run(seed=0, dtype=dtype)
    encoder = build(surroundings, width=16).eval().requires_grad_(False)
    classifier = nn.Sequential(encoder, nn.Linear(encoder.feature_size, CLASSES).requires_grad_(False))
    images, overlays = noise(INPUTS, seed=1), noise(OVERLAYS, seed=2)
    clean = ImageSet(images=torch.cat((overlays, noise(1, seed=3))), name="noise")
    screener = STRIP(overlays=OVERLAYS, false_rejections=0.5, held_out=1).prepare(classifier, clean, surroundings)

    @torch.no_grad()
    def textbook() -> None:
        backgrounds = images.permute(0, 2, 3, 1).numpy()
        for background in backgrounds:
            bits = 0.0
            for overlay in overlays.permute(0, 2, 3, 1).numpy():
                blend = np.minimum(background.astype(np.uint16) + overlay, 255).astype(np.uint8)
                pixels = torch.from_numpy(blend).permute(2, 0, 1)[None].float() / 255
                with surroundings.autocast():
                    answer = classifier(pixels)[0].float().softmax(0).numpy()
                bits -= float(np.nansum(answer * np.log2(answer)))

    return paired(lambda: screener.scores(images), textbook, images=INPUTS, rounds=3)
