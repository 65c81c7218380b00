"""Neural Cleanse on 10 classes and a ResNet-18 of width 16: all classes in one batch against one after another.

A batch holds 32 images for every class; the textbook takes a class's 32 images at a time. No class ends early.
"""

import torch
from torch import nn

from benchmarks.textbook import noise
from benchmarks.timing import Row, paired
from sapper.defenses.judge.neural_cleanse import NeuralCleanse
from sapper.encoders import build
from sapper.running import Run
from sapper.samples import ImageSet

CLASSES, STEPS = 10, 2


def run(dtype: torch.dtype) -> Row:
    """Both in ``dtype``: they differ in nothing but the batch."""
    surroundings = Run(seed=0, dtype=dtype)
    encoder = build(surroundings, width=16).eval().requires_grad_(False)
    classifier = nn.Sequential(encoder, nn.Linear(encoder.feature_size, CLASSES).requires_grad_(False))
    images = ImageSet(images=noise(512), name="noise")
    method = NeuralCleanse(steps=STEPS, minibatches=1)

    def textbook() -> None:
        for label in range(CLASSES):
            method.invert(lambda x, first=label: classifier(x).roll(-first, 1), images, 1, surroundings)  # type: ignore[misc]

    seen = STEPS * method.batch * CLASSES
    return paired(lambda: method.invert(classifier, images, CLASSES, surroundings), textbook, images=seen, rounds=3)
