"""The same network with other weights: for students of an encoder whose architecture nobody but its author can name."""

import copy

import torch
from torch import nn

from sapper.encoders.encoder import Encoder
from sapper.running import Run

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
