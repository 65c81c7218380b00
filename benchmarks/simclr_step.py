"""A training step of SimCLR on a ResNet-18 of width 32, two views of 256 images, augmentation included."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.textbook import BATCH, SIMCLR, PerSample, forward, loader, noise
from benchmarks.timing import Row, paired
from sapper.augment import Augmentation
from sapper.encoders import Encoder, build
from sapper.pretraining.simclr import projection_head
from sapper.running import Run
from sapper.samples import to_float
from sapper.training.contrast import nt_xent

STEPS = 2


def run(dtype: torch.dtype) -> Row:
    """Ours in ``dtype``, channels last, both views at once; the textbook in float32, one view after the other."""
    pixels, surroundings = noise(STEPS * BATCH), Run(seed=0, dtype=dtype)
    encoder, head, optimizer = _model(surroundings, fused=True)
    generator = surroundings.generator()

    def ours() -> None:
        for chunk in pixels.split(BATCH):
            batch = to_float(chunk)
            views = Augmentation.SIMCLR(torch.cat((batch, batch)), generator)
            with surroundings.autocast():
                projected = head(encoder(views))
            _step(optimizer, nt_xent(projected.float(), 0.5))

    plain, plain_head, plain_optimizer = _model(surroundings, fused=False)
    plain.to(memory_format=torch.contiguous_format)
    batches = loader(PerSample(pixels, lambda picture: (SIMCLR(picture), SIMCLR(picture))))

    def textbook() -> None:
        for views in batches:
            first, second = (F.normalize(plain_head(forward(plain, view)), dim=1) for view in views)
            _step(plain_optimizer, nt_xent(torch.cat((first, second)), 0.5))

    return paired(ours, textbook, images=STEPS * BATCH, rounds=3)


def _model(surroundings: Run, *, fused: bool) -> tuple[Encoder, nn.Module, torch.optim.Optimizer]:
    encoder = build(surroundings, width=32).train()
    head = projection_head(encoder.feature_size, 128, surroundings)
    return encoder, head, torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-3, fused=fused)


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
