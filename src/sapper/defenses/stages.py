"""Where one looks into a network: its stages, and their attention maps."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from sapper.encoders import Encoder
from sapper.errors import SapperError

GROUPS = 4
"""Into how many stages a network is divided that is one row of blocks."""

LAYER = re.compile(r"layer\d+")
CONTAINERS, ROWS = ("stages", "layers"), ("blocks", "resblocks")
"""What libraries call a network's stages one after another, and a transformer's blocks."""


def parts(encoder: Encoder) -> list[list[nn.Module]]:
    """The stages of a network, from its input on, each as the blocks that it is made of.

    They are a ResNet's ``layer1`` …, what other networks call ``stages`` or ``layers``, or a transformer's blocks in
    four groups. Raises ``SapperError`` for a network that has none of these.
    """
    backbone = encoder.backbone
    layers = [module for name, module in backbone.named_children() if LAYER.fullmatch(name)]
    if layers:
        return [[layer] for layer in layers]
    for name, module in backbone.named_modules():
        end = name.rpartition(".")[2]
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 1:
            if end in CONTAINERS:
                return [[stage] for stage in module]
            if end in ROWS and len(module) >= GROUPS:
                ends = [round(group * len(module) / GROUPS) for group in range(GROUPS + 1)]
                return [list(module)[start:end] for start, end in pairwise(ends)]
    what, remedy = f"{encoder.card.architecture} has no stages that are known here", "take another repair"
    raise SapperError(what, where="repair", remedy=remedy)


def stages(encoder: Encoder) -> list[nn.Module]:
    """What gives each stage's output."""
    return [part[-1] for part in parts(encoder)]


def check_attention(encoder: Encoder) -> None:
    """Raises ``SapperError`` where the maps of a network's stages are not known, or do not have channels first."""
    parts(encoder)
    if getattr(encoder.backbone, "output_fmt", "NCHW") != "NCHW":
        what = f"attention maps of {encoder.card.architecture} are not known here: its channels come last"
        raise SapperError(what, where="attention", remedy="leave attention and information out")


def stage_of(encoder: Encoder) -> dict[nn.Module, int]:
    """To which stage each module of the image network belongs: 0 before the first, then 1, 2, …, as it is run through.

    What is behind the last stage belongs to it.
    """
    inside = {
        module: number for number, part in enumerate(parts(encoder), 1) for each in part for module in each.modules()
    }
    found, now = dict[nn.Module, int](), 0
    for module in encoder.backbone.modules():
        if not list(module.children()):
            now = max(now, inside.get(module, now))
            found[module] = inside.get(module, now)
    return found | {encoder.projection: max(inside.values())}


@contextmanager
def watched(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What the modules give in forward passes, one after another."""
    seen: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _m, _i, output: seen.append(output)) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def attention(output: Tensor) -> Tensor:
    """Where a stage looks: Σ over channels of its squares, of length 1 for each image; float (N, places).

    ``output``: feature maps (N, C, H, W), or tokens (N, T, C). As in Zagoruyko, Komodakis, "Paying More Attention to
    Attention", ICLR 2017, with p = 2.
    """
    squares = output.float().square()
    return F.normalize((squares.sum(1) if output.ndim == 4 else squares.sum(2)).flatten(1), dim=1)
