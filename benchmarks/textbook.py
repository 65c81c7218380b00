"""The textbook side of the benchmarks: images augmented one by one with Pillow, in a DataLoader with two workers."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sapper.encoders import Encoder

BATCH = 256

JITTER = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
REFERENCE = transforms.Compose(
    [transforms.RandomHorizontalFlip(), JITTER, transforms.RandomGrayscale(0.2), transforms.ToTensor()]
)
SIMCLR = transforms.Compose([transforms.RandomResizedCrop(32), REFERENCE])


def noise(count: int, seed: int = 0) -> Tensor:
    """Images to work on, uint8 (count, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def head(features: int, classes: int) -> nn.Sequential:
    """The paper's head without its dropout."""
    layers = [nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, classes)]
    return nn.Sequential(*layers)


class PerSample(Dataset[Any]):
    """``draw(picture)`` of each image, one by one."""

    def __init__(self, images: Tensor, draw: Callable[[Image.Image], Any]):
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.draw = draw

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> Any:
        return self.draw(self.pictures[row])


def forward(encoder: Encoder, images: Tensor) -> Tensor:
    """Features of a batch in torch's usual memory layout, for an encoder whose weights lie that way."""
    return encoder.backbone((images - encoder.mean) / encoder.std)


def loader(dataset: PerSample) -> DataLoader[Any]:
    """Batches from two workers that stay alive, so that starting them is not timed.

    Their work begins and ends with an iteration over the whole: nothing that was prepared while something else was
    timed comes for free, and nothing is prepared beside it. With more cores than workers that would be unfair: the
    textbook could prepare the next batches while it computes.
    """
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
