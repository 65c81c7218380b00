"""What the tests of self-supervised pre-trainings share: tiny images, and the steps of a training from outside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.augment import Augmentation
from sapper.encoders import Encoder, build
from sapper.pretraining.two_views import TwoViews
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint, shuffled

RUN = Run(seed=5)


def tiny(seed: int = 0) -> Encoder:
    return build(Run(seed=seed), architecture="resnet10", width=4, input_size=16)


def clouds(count: int = 48) -> ImageSet:
    """Images that differ in colors and coarse shapes."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return ImageSet(images=(F.interpolate(coarse, size=16, mode="bilinear") * 255).to(torch.uint8), name="clouds")


def batches(method: TwoViews, data: ImageSet) -> Iterator[tuple[Tensor, torch.Generator]]:
    """The views (2N, 3, H, W) of every step of ``method(…, data, RUN)``, and what its step draws from next."""
    augmentation = Augmentation(crop=(method.crop_scale, 1.0), size=method.view_size, jitter=method.jitter)
    for epoch in range(method.epochs):
        generator = RUN.child(f"epoch {epoch}").generator()
        for rows in shuffled(len(data), method.batch, generator):
            batch = data.images[rows] / 255
            yield augmentation(torch.cat((batch, batch)), generator), generator


def state_after(method: Any, data: ImageSet, folder: Path) -> dict[str, Tensor]:
    """What the checkpoint of a finished training of ``tiny()`` holds of the model, by name."""
    checkpoint = Checkpoint(folder / "finished.safetensors")
    method(tiny(), data, RUN, checkpoint)
    tensors = safetensors.torch.load_file(checkpoint.path)
    return {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}


def close(state: dict[str, Tensor], prefix: str, network: torch.nn.Module) -> None:
    """The checkpoint's tensors below ``prefix`` are those of a network that another program trained."""
    for name, value in network.state_dict().items():
        torch.testing.assert_close(state[f"{prefix}.{name}"], value, rtol=2e-4, atol=2e-5, msg=name)
