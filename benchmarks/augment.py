"""The batched augmentation against torchvision's pipeline on PIL images, one by one, as BadEncoder's code has it."""

import torch
from torch import Tensor
from torchvision import transforms

from benchmarks.timing import Row, paired
from sapper.augment import Augmentation
from sapper.images import to_float

COUNT, SIZE = 256, 32

COLORS = [
    transforms.RandomHorizontalFlip(p=0.5),
    transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
    transforms.RandomGrayscale(p=0.2),
    transforms.ToTensor(),
]
VIEW = transforms.Compose([transforms.RandomResizedCrop(SIZE), *COLORS])
REFERENCE = transforms.Compose(COLORS)


def run() -> list[Row]:
    images = torch.randint(
        0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return [
        compare(images, Augmentation.SIMCLR, VIEW, f"SimCLR view, {COUNT} images of {SIZE}x{SIZE}"),
        compare(images, Augmentation.REFERENCE, REFERENCE, f"augmented reference, {COUNT} images of {SIZE}x{SIZE}"),
    ]


def compare(images: Tensor, augmentation: Augmentation, pipeline: transforms.Compose, name: str) -> Row:
    """Both from bytes in memory to a batch of floats."""
    generator = torch.Generator().manual_seed(0)
    arrays = list(images.permute(0, 2, 3, 1).numpy())
    to_pil = transforms.ToPILImage()
    return paired(
        lambda: augmentation(to_float(images), generator),
        lambda: torch.stack([pipeline(to_pil(array)) for array in arrays]),
        name=name,
    )
