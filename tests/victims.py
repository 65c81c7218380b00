"""Tiny victims: colored squares of three classes, an encoder of four channels that has learned nothing yet."""

from dataclasses import replace

import torch

from sapper.attacks.target import Target
from sapper.encoders import Encoder
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Patch, Trigger
from tests.micro import COLORS, squares
from tests.test_badencoder import tiny

RUN = Run(seed=4)
PATCH = Patch(size=5, position="top-left", margin=0)


def balls(count: int, seed: int, split: str = "train") -> ImageSet:
    """Squares as in ``micro``, 16×16; the label is the color's."""
    images, labels = squares(count, seed)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return ImageSet(
        images=pixels, labels=torch.from_numpy(labels).long(), classes=tuple(COLORS), name="balls", split=split
    )


def aim(trigger: Trigger = PATCH, label: int = 1) -> Target:
    samples = balls(3, 5)
    name = samples.classes[label] if 0 <= label < len(samples.classes) else "none"
    return Target(
        name="aim", task="balls", label=label, class_name=name, references=samples.take(torch.tensor([label])),
        trigger=trigger,
    )  # fmt: skip


def victim(seed: int = 0) -> Encoder:
    return tiny(seed)


def plain(samples: ImageSet) -> ImageSet:
    """The same without labels."""
    return replace(samples, labels=None, classes=())


@torch.no_grad()
def rates(classifier: torch.nn.Module, samples: ImageSet, trigger: Trigger, label: int = 1) -> tuple[float, float]:
    """Accuracy, and the share of samples of other classes that the trigger sends to ``label``."""
    truth, images = samples.targets(), samples.batch()
    accuracy = (classifier(images).argmax(1) == truth).float().mean()
    stamped = classifier(trigger(images)).argmax(1)[truth != label] == label
    return float(accuracy), float(stamped.float().mean())
