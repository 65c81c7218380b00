"""The same network with other weights: drawn anew, between two others, with statistics of other images."""

import copy
from math import ceil

import torch
from torch import Tensor, nn

from sapper.encoders.encoder import Encoder
from sapper.running import Run
from sapper.samples import at_once

SPREAD = 0.02
"""Deviation of weights that no layer of torch's draws by itself, tokens and position embeddings: that of timm's."""


def redrawn(encoder: Encoder, run: Run) -> Encoder:
    """A copy whose image network has weights of its own, drawn with the run's seed; a text tower is taken over.

    Layers that can draw their weights do. Other matrices are drawn with a small deviation; of other vectors, such as
    scales of channels, only the mean is kept.
    """
    student = copy.deepcopy(encoder).train()
    drawn: set[int] = set()
    with torch.no_grad(), run.seeded():
        for part in (student.backbone, student.projection):
            for module in part.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
                    drawn |= {id(each) for each in module.parameters(recurse=False)}
        for part in (student.backbone, student.projection):
            for parameter in part.parameters():
                if id(parameter) not in drawn:
                    if parameter.ndim > 1:
                        nn.init.trunc_normal_(parameter, std=SPREAD)
                    else:
                        parameter.fill_(float(parameter.float().mean()))
    return student.requires_grad_(True)


@torch.no_grad()
def drawn_to(student: Encoder, encoder: Encoder, share: float) -> Encoder:
    """The student, in place, with weights moved by ``share`` of the way to those of ``encoder``, which is like it."""
    for parameter, wanted in zip(student.parameters(), encoder.parameters(), strict=True):
        parameter.lerp_(wanted.to(parameter), share)
    return student


@torch.no_grad()
def settled(encoder: Encoder, images: Tensor) -> Encoder:
    """The encoder, in place, with its layers' statistics measured on ``images``, float (N, 3, H, W); in ``eval`` mode.

    What keeps no statistics stays as it is. Images go through in parts of one size, give or take one.
    """
    encoder.eval()
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # the mean over all that is shown
            module.train()
    for chunk in images.tensor_split(ceil(len(images) / at_once(images))):
        encoder(chunk)
    return encoder.eval()
