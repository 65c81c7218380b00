"""The same network with other weights: drawn anew, between two others, with statistics of other images."""

import copy
from math import ceil

import torch
from torch import Tensor, nn

from sapper.encoders.encoder import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import at_once

SPREAD = 0.02
"""Deviation of weights that no layer of torch's draws by itself, tokens and position embeddings: that of timm's."""


def redrawn(encoder: Encoder, run: Run) -> Encoder:
    """A copy whose image network has weights of its own, drawn with the run's seed; a text tower is taken over.

    Layers that can draw their weights do. Other matrices are drawn with a small deviation; of other vectors, such as
    scales of channels, only the mean is kept. Raises ``SapperError`` for a network that cannot be copied.
    """
    try:
        student = copy.deepcopy(encoder).train()
    except RuntimeError as error:
        what = f"the network cannot be copied: {str(error).splitlines()[0]}"
        raise SapperError(what, where="encoder", remedy="build it without weights that are computed") from error
    drawn: set[int] = set()
    with torch.no_grad(), run.seeded():
        for part in (student.backbone, student.projection):
            for module in part.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    before = [(each, each.clone()) for each in module.parameters(recurse=False)]
                    reset()
                    drawn |= {id(each) for each, old in before if not torch.equal(each, old)}
        for part in (student.backbone, student.projection):
            for parameter in part.parameters():
                if id(parameter) not in drawn and parameter.is_floating_point():
                    if parameter.ndim > 1:
                        nn.init.trunc_normal_(parameter, std=SPREAD)
                    else:
                        parameter.fill_(float(parameter.float().mean()))
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return student


@torch.no_grad()
def drawn_to(student: Encoder, encoder: Encoder, share: float) -> Encoder:
    """The student, in place, with weights moved by ``share`` of the way to those of ``encoder``.

    Raises ``SapperError`` where it has other weights than the encoder.
    """
    ours, theirs = list(student.parameters()), list(encoder.parameters())
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        what = f"a network of its card, {encoder.card.architecture}, has other weights than the encoder"
        raise SapperError(what, where="encoder", remedy="open it with a factory that builds what it is")
    for parameter, wanted in zip(ours, theirs):
        if parameter.is_floating_point():
            parameter.lerp_(wanted.to(parameter), share)
    return student


@torch.no_grad()
def settled(encoder: Encoder, images: Tensor) -> Encoder:
    """The encoder, in place, with its layers' statistics measured on ``images``, float (N, 3, H, W); in ``eval`` mode.

    What keeps no statistics stays as it is. Images go through in parts of one size, give or take one, and of two or
    more, since one image alone may have no variance.
    """
    encoder.eval()
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # the mean over all that is shown
            module.train()
    parts = max(1, min(ceil(len(images) / at_once(images)), len(images) // 2))
    for chunk in images.tensor_split(parts):
        encoder(chunk)
    return encoder.eval()
