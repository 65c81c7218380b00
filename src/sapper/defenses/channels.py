"""Channels of BatchNorm layers, which repairs weigh and prune one by one."""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sapper.defenses.repairing import answers, apart
from sapper.defenses.stages import watched
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet

LOOKED = 512
"""Images by which a pruned network is judged."""

SHORTCUTS = ("downsample", "shortcut")
"""In the names of layers beside the convolutions, which carry what comes from before."""

Layer = nn.BatchNorm2d | nn.Conv2d
"""What can give nothing for a channel: a scale and a shift, or a filter and its bias, of zero."""


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
def prune(layers: Mapping[str, Layer], gone: Mapping[str, Tensor], *, bias: bool) -> None:
    """Set the weight of channels that are ``gone``, bool (C,) by layer, to zero, and with ``bias`` their bias, too."""
    for name, rows in gone.items():
        layer = layers[name]
        layer.weight[rows] = 0
        if bias and layer.bias is not None:
            layer.bias[rows] = 0


def dormant_first(means: Mapping[str, Tensor], at_once: float) -> Iterator[dict[str, Tensor]]:
    """Which channels to prune, bool (C,) by layer: in every step the share ``at_once`` of all more, to the last one.

    Those with the smallest of the ``means``, float (C,) by layer, go first.
    """
    places = [(name, channel) for name, mean in means.items() for channel in range(len(mean))]
    order = torch.cat(list(means.values())).argsort(stable=True)
    gone = {name: torch.zeros(len(mean), dtype=torch.bool) for name, mean in means.items()}
    for part in order.split(max(1, round(at_once * len(order)))):
        gone = {name: rows.clone() for name, rows in gone.items()}
        for place in part.tolist():
            name, channel = places[place]
            gone[name][channel] = True
        yield gone


def weights_of(layers: Mapping[str, Layer]) -> dict[str, dict[str, Tensor]]:
    """Copies of the layers' states, for ``put_back``."""
    return {name: copy.deepcopy(layer.state_dict()) for name, layer in layers.items()}


def put_back(layers: Mapping[str, Layer], kept: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give the layers the states that they had."""
    for name, state in kept.items():
        layers[name].load_state_dict(dict(state))


def drift(encoder: Encoder, images: ImageSet, wanted: Tensor, run: Run) -> float:
    """1 − the mean cosine of the features of the first ``LOOKED`` images with ``wanted`` (≥ LOOKED, D)."""
    encoder.eval()
    size = images.at_once()
    some = images.take(torch.arange(min(LOOKED, len(images))))
    features = torch.cat([answers(encoder, batch, run) for batch in some.batches(size)])
    return float(apart(features, wanted[: len(features)]))


@torch.no_grad()
def activations(encoder: Encoder, layers: Mapping[str, nn.Module], images: ImageSet, run: Run) -> dict[str, Tensor]:
    """The mean over images and places of what each layer's channels give after a ReLU, float (C,) on the CPU."""
    encoder.eval()
    sums = {name: torch.tensor(0.0, dtype=torch.float64) for name in layers}
    for batch in images.batches(images.at_once()):
        with watched(list(layers.values())) as seen:
            answers(encoder, batch, run)
        for name, output in zip(layers, seen):
            sums[name] = sums[name] + output.float().relu().mean((2, 3)).sum(0).double().cpu()
    return {name: (total / len(images)).float() for name, total in sums.items()}
