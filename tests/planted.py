"""Tasks of ten classes that a tiny network learns in seconds, and BadNets on them."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from sapper import encoders
from sapper.attacks.poison.badnets import BadNets
from sapper.attacks.target import Target
from sapper.downstream import Classifier, Finetune, build
from sapper.experiment.streams import Stream
from sapper.experiment.tasks import Part
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
TRIGGER = Patch(size=4, position="bottom-right", margin=0, color="magenta")


def colors(count: int, seed: int) -> ImageSet:
    """``count`` images 16×16 with their classes in turn: a square of one of ten colors, anywhere on gray noise."""
    random = np.random.default_rng(seed)
    pixels = torch.from_numpy(random.integers(90, 150, (count, 3, SIZE, SIZE), dtype=np.uint8))
    labels = torch.arange(count) % len(CLASSES)
    for image, label, (top, left) in zip(pixels, labels, random.integers(0, SIZE - SIDE, (count, 2))):
        image[:, top : top + SIDE, left : left + SIDE] = COLORS[label].view(3, 1, 1)
    return ImageSet(images=pixels, labels=labels, classes=CLASSES, name="colors")


def gratings(count: int, seed: int) -> ImageSet:
    """``count`` images 16×16 with their classes in turn: gray waves of five directions and two lengths, with noise.

    No small patch looks like one of these classes.
    """
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % len(CLASSES)
    angle, pace = labels % 5 * math.pi / 5, torch.where(labels < 5, 1.0, 2.1) * math.pi / 3
    phase = 2 * math.pi * torch.rand(count, generator=generator)
    down, right = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    along = angle.cos().view(-1, 1, 1) * right + angle.sin().view(-1, 1, 1) * down
    waves = torch.sin(pace.view(-1, 1, 1) * along + phase.view(-1, 1, 1))
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    pixels = (127 + 100 * waves.unsqueeze(1) + 30 * noise).clamp(0, 255).to(torch.uint8)
    return ImageSet(images=pixels, labels=labels, classes=CLASSES, name="gratings")


Task = Callable[[int, int], ImageSet]


def training_set(task: Task, label: int | None = None) -> ImageSet:
    """500 images; with a ``label`` a fifth of them is stamped and relabeled (BadNets)."""
    train = task(500, 1)
    if label is None:
        return train
    target = Target(
        name="aim",
        task=train.name,
        label=label,
        class_name=CLASSES[label],
        references=train.take(train.targets() == label),
        trigger=TRIGGER,
    )
    samples = BadNets(rate=0.2)(train, (target,), Run(seed=label)).samples
    assert isinstance(samples, ImageSet)
    return samples


@cache
def trained(task: Task, seed: int, label: int | None = None) -> Classifier:
    """A classifier that is trained on that set together with its encoder, from scratch."""
    run = Run(seed=seed)
    encoder = encoders.build(run, architecture="resnet10", width=8, input_size=SIZE)
    head = Finetune(epochs=10, batch=50, learning_rate=1e-2, batch_norm="trained", hidden=(16,))
    return build(head, encoder, training_set(task, label), run).requires_grad_(False)


def as_they_come(task: Task, triggered: float = 0.1) -> ImageSet:
    """300 images without labels, of which a tenth has the trigger."""
    return Stream(images=Part.whole(task(300, 2)), triggered=triggered)({"aim": TRIGGER}, Run(seed=0))
