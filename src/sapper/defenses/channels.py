"""Channels of BatchNorm layers, which repairs weigh and prune one by one."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sapper.defenses.repairing import answers, apart
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet

LOOKED = 512
"""Images by which a pruned network is judged."""


def norms(encoder: Encoder, method: str, *, within: nn.Module | None = None) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorm layers of the image network by name, or those ``within`` a part of it.

    Raises ``SapperError`` for a network that has none.
    """
    some = set((encoder.backbone if within is None else within).modules())
    found = {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module in some and module.affine
    }
    if not found:
        what = f"{method} prunes channels of BatchNorm, and {encoder.card.architecture} has none there"
        raise SapperError(what, where="repair", remedy="take another repair, such as distillation")
    return found


@torch.no_grad()
def prune(layers: Mapping[str, nn.BatchNorm2d], gone: Mapping[str, Tensor], *, bias: bool) -> None:
    """Set the weight of channels that are ``gone``, bool (C,) by layer, to zero, and with ``bias`` their bias, too."""
    for name, rows in gone.items():
        layers[name].weight[rows] = 0
        if bias:
            layers[name].bias[rows] = 0


def drift(encoder: Encoder, images: ImageSet, wanted: Tensor, run: Run) -> float:
    """1 − the mean cosine of the features of the first ``LOOKED`` images with ``wanted`` (≥ LOOKED, D)."""
    encoder.eval()
    size = images.at_once(gradients=False)
    some = images.take(torch.arange(min(LOOKED, len(images))))
    features = torch.cat([answers(encoder, batch, run) for batch in some.batches(size)])
    return float(apart(features, wanted[: len(features)]))
