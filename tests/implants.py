"""What tests of attacks on a finished encoder share: noise images, an encoder of four channels, a target."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.attacks.target import Target
from sapper.encoders import Encoder, build
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint
from sapper.triggers import Patch, Trigger
from tests import micro

RUN = Run(seed=3)
CLASSES = ("ant", "bee", "cat")


def images(count: int, seed: int, size: int = 16) -> ImageSet:
    """Noise with labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images=pixels, labels=torch.arange(count) % 3, classes=CLASSES, name=f"noise {seed}")


def squares(count: int, seed: int) -> ImageSet:
    """Squares in three colors, one for each class, on gray noise."""
    pixels, labels = micro.squares(count, seed)
    moved = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images=moved, labels=torch.from_numpy(labels), classes=CLASSES, name=f"squares {seed}")


def greens(count: int) -> Target:
    """A target whose references are green squares."""
    made = squares(3 * count, 9)
    return replace(target(), references=made.take(made.targets() == 1))


def target(name: str = "t", references: int = 3, trigger: Trigger | None = None, seed: int = 9) -> Target:
    used = trigger or Patch(size=6)
    return Target(name=name, task=name, label=1, class_name="bee", references=images(references, seed), trigger=used)


def tiny(seed: int = 0) -> Encoder:
    """An encoder of four channels, its BatchNorm statistics not those of a fresh network."""
    encoder = build(replace(RUN, seed=seed), architecture="resnet10", width=4, input_size=16)
    with torch.no_grad():
        encoder.train()(torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
    return encoder.eval()


def unit(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Features of length 1, one image after another."""
    with torch.no_grad():
        return torch.cat([F.normalize(encoder(image[None]), dim=1) for image in pixels])


def stop_after(checkpoint: Checkpoint, saves: int, train) -> None:  # type: ignore[no-untyped-def]
    """Interrupt a training right after so many checkpoints of any of its parts were written."""
    save, done = Checkpoint.save, 0

    def save_and_stop(self, model, optimizer, epoch, curves) -> None:  # type: ignore[no-untyped-def]
        nonlocal done
        save(self, model, optimizer, epoch, curves)
        done += 1
        if done == saves:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert list(checkpoint.path.parent.iterdir())
