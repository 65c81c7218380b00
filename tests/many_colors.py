"""Ten classes that a tiny network learns in a second: a square of one of ten colors, anywhere on gray noise."""

import numpy as np
import torch

from sapper import encoders
from sapper.attacks.poison.badnets import BadNets
from sapper.attacks.target import Target
from sapper.downstream import Classifier, Finetune, build
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Patch

SIZE, SIDE = 16, 7
COLORS = torch.tensor(
    [
        *([220, 40, 40], [40, 200, 60], [50, 60, 230], [230, 220, 40], [220, 50, 220]),
        *([40, 210, 220], [245, 245, 245], [10, 10, 10], [240, 130, 20], [110, 60, 20]),
    ],
    dtype=torch.uint8,
)
CLASSES = ("red", "green", "blue", "yellow", "pink", "cyan", "white", "black", "orange", "brown")
TRIGGER = Patch(size=3, position="bottom-right", margin=0, color="magenta")


def colors(count: int, seed: int) -> ImageSet:
    """``count`` images 16×16 with their classes in turn."""
    random = np.random.default_rng(seed)
    pixels = torch.from_numpy(random.integers(90, 150, (count, 3, SIZE, SIZE), dtype=np.uint8))
    labels = torch.arange(count) % len(CLASSES)
    for image, label, (top, left) in zip(pixels, labels, random.integers(0, SIZE - SIDE, (count, 2))):
        image[:, top : top + SIDE, left : left + SIDE] = COLORS[label].view(3, 1, 1)
    return ImageSet(images=pixels, labels=labels, classes=CLASSES, name="colors")


def aim(label: int) -> Target:
    own = colors(20, 5)
    references = own.take(own.targets() == label)
    return Target(
        name="aim",
        task="colors",
        label=label,
        class_name=CLASSES[label],
        references=references,
        trigger=TRIGGER,
    )


def trained(train: ImageSet, seed: int, epochs: int = 10) -> Classifier:
    """A classifier that is trained with its encoder, from scratch."""
    run = Run(seed=seed)
    encoder = encoders.build(run, architecture="resnet10", width=8, input_size=SIZE)
    head = Finetune(epochs=epochs, batch=50, learning_rate=1e-2, batch_norm="trained", hidden=(16,))
    return build(head, encoder, train, run).requires_grad_(False)


def poisoned(train: ImageSet, label: int, seed: int, rate: float = 0.15) -> ImageSet:
    """BadNets."""
    samples = BadNets(rate=rate)(train, (aim(label),), Run(seed=seed)).samples
    assert isinstance(samples, ImageSet)
    return samples
