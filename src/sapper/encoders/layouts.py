"""Whose checkpoint is this? From tensors by name to an architecture and the weights for it.

Frameworks wrap a backbone differently, and name it differently: MoCo's ``module.encoder_q.``, solo-learn's
``backbone.``, BadEncoder's ``f.f.`` with numbers for layers. What they share is the backbone's own names and shapes: so
these are looked for, behind whatever prefix. Where several backbones are in a file, the prefix tells which is meant: a
query's, not that of the key which follows it.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sapper.encoders.names import ARCHITECTURES, Stem
from sapper.errors import SapperError

Weights = dict[str, Tensor]

FOLLOWERS = {"k", "key", "momentum", "target", "ema", "student"}
"""Words in names of backbones that follow another by a moving average; and DINO's student, whose teacher is used."""

FIRSTS = {
    "conv1.weight": r"layer1\.0\.conv1\.weight",
    "0.weight": r"\d+\.0\.conv1\.weight",
    "patch_embed.proj.weight": r"blocks\.0\.attn\.qkv\.weight",
}
"""First layers of ResNets by names, ResNets by numbers and transformers, and a pattern of the blocks that follow."""

PROGRAMS = {
    # what a prefix ends with: whose layout it is; the first that fits
    "encoder_q.": "MoCo",
    "base_encoder.": "MoCo v3",
    "online_encoder.net.": "BYOL",
    "online_network.encoder.": "BYOL",
    "teacher.backbone.": "DINO",
    "_feature_blocks.": "VISSL",
    "f.f.": "SimCLR as in BadEncoder",
    "f.": "SimCLR as in DECREE",
    "visual.": "CLIP",
    "backbone.": "SimCLR, solo-learn or lightly",
}

TRANSFORMERS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}
"""timm's words for vision transformers of a width and a depth."""

CLIP_RESNETS = {(3, 4, 6, 3): "RN50", (3, 4, 23, 3): "RN101"}

MOST_NAMES = 4
"""How many names of tensors an error lists."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A backbone that was recognized: what ``build`` needs, its ``weights`` by its own names, and whose it is."""

    architecture: str
    input_size: int
    weights: Weights
    source: str
    width: int = 64
    stem: Stem = "imagenet"


def recognize(tensors: Weights, where: str) -> Layout:
    """The backbone among ``tensors`` (by their names in the file ``where``).

    Raises ``SapperError`` when none is known, or when several are there and nothing tells which is meant.
    """
    remedy = "say the architecture with --arch, such as --arch timm:NAME"
    found = {prefix: first for first, block in FIRSTS.items() for prefix in _prefixes(first, block, tensors)}
    prefix = _meant(list(found), where)
    if prefix is None:
        what = f"no backbone that is known by its names is in it: {len(tensors)} tensors, {shortened(tensors)}"
        raise SapperError(what, where=where, remedy=remedy)
    weights = _behind(prefix, tensors)
    source = next((program for end, program in PROGRAMS.items() if prefix.endswith(end)), "a state dict")
    if found[prefix] == "patch_embed.proj.weight":
        return _transformer(weights, source, where)
    return _resnet(_by_name(weights, where) if found[prefix] == "0.weight" else weights, source, where)


def fitting(tensors: Weights, state: Mapping[str, Tensor], where: str) -> Weights:
    """Of ``tensors`` those that a backbone with the state dict ``state`` takes, whatever their prefix.

    Counters of batch normalization that old files lack begin at 0. Raises ``SapperError`` when something is missing or
    has another shape or a type that does not fit; what the backbone does not know is left out.
    """
    first = next(iter(state))
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    matches = {prefix: sum(f"{prefix}{name}" in tensors for name in state) for prefix in prefixes}
    most = max(matches.values(), default=0)
    best = [prefix for prefix, count in matches.items() if count == most]
    if 2 * most < len(state):  # another architecture, in whose parts a name of ours stands more than once
        best = sorted(best, key=len)[:1]
    weights = _behind(_meant(best, where) or "", tensors)
    wanted = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    for name in wanted.keys() & weights.keys():
        theirs, ours = weights[name], wanted[name]
        if theirs.shape != ours.shape:
            wrong.append(f"{name} is {_shape(theirs)}, not {_shape(ours)}")
        elif theirs.is_floating_point() != ours.is_floating_point():
            wrong.append(f"{name} is {theirs.dtype}, not {ours.dtype}")
    if wrong:
        what = f"the weights do not fit the architecture, at {len(wrong)} of {len(wanted)} places: {shortened(wrong)}"
        raise SapperError(what, where=where, remedy="say another architecture with --arch")
    zero = torch.tensor(0)
    return {name: weights[name] if name in wanted or _is_count(weights.get(name)) else zero for name in state}


def _is_count(value: Tensor | None) -> bool:
    return value is not None and value.ndim == 0


def shortened(names: Iterable[str]) -> str:
    """The first names of many."""
    known = sorted(names)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return ", ".join(known[:MOST_NAMES]) + more


def _prefixes(first: str, block: str, tensors: Weights) -> Iterable[str]:
    """What stands before a layer ``first`` that takes images of three channels, where a block follows it."""
    for name, value in tensors.items():
        if (name == first or name.endswith(f".{first}")) and value.ndim == 4 and value.shape[1] == 3:
            prefix = name.removesuffix(first)
            if any(re.fullmatch(re.escape(prefix) + block, other) for other in tensors):
                yield prefix


def _meant(prefixes: list[str], where: str) -> str | None:
    """The one backbone that leads; none where there is none."""
    leaders = [each for each in prefixes if not FOLLOWERS & set(re.split(r"[._]", each))] or prefixes
    if len(leaders) > 1:
        what = f"there are {len(leaders)} backbones in it: {', '.join(repr(each) for each in sorted(leaders))}"
        raise SapperError(what, where=where, remedy="save the one that you mean in a file of its own")
    return leaders[0] if leaders else None


def _behind(prefix: str, tensors: Weights) -> Weights:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _by_name(weights: Weights, where: str) -> Weights:
    """A ResNet's children by number, as in ``nn.Sequential(*children)``, under torchvision's names again.

    The children are convolution, normalization, ReLU, perhaps max-pooling, and four layers: the number of the first
    layer tells whether there is a pooling.
    """
    layers = sorted({int(name.split(".")[0]) for name in weights if re.fullmatch(r"\d+\.0\.conv1\.weight", name)})
    pooled = layers[0] == 4
    if layers[0] not in (3, 4) or pooled != (weights["0.weight"].shape[-1] == 7):
        what = "it is a ResNet by numbers, with another stem than 3×3 without and 7×7 with max-pooling"
        raise SapperError(what, where=where, remedy="save its state dict by names")
    names = {"0": "conv1", "1": "bn1"} | {str(number): f"layer{i + 1}" for i, number in enumerate(layers)}
    return {
        f"{names[number]}.{rest}": value
        for name, value in weights.items()
        for number, _, rest in [name.partition(".")]
        if number in names
    }


def _resnet(weights: Weights, source: str, where: str) -> Layout:
    """torchvision's ResNets of any width; and CLIP's, which open_clip builds."""
    first = weights["conv1.weight"]
    blocks = Counter(
        int(match[1]) for name in weights if (match := re.fullmatch(r"layer(\d)\.\d+\.conv1\.weight", name))
    )
    depth = tuple(blocks[layer] for layer in sorted(blocks))
    if "attnpool.c_proj.weight" in weights and depth in CLIP_RESNETS:
        return Layout(
            architecture=f"open_clip:{CLIP_RESNETS[depth]}", input_size=224, weights=weights, source="CLIP's ResNet"
        )
    kind = "Bottleneck" if "layer1.0.conv3.weight" in weights else "BasicBlock"
    known: dict[tuple[str, tuple[int, ...]], str] = {
        (block, layers): name for name, (block, layers) in ARCHITECTURES.items()
    }
    width, kernel = first.shape[0], first.shape[-1]
    plain = weights.get("layer1.0.conv2.weight", first).shape[:2] == (width, width)  # neither wide nor in groups
    if (kind, depth) not in known or kernel not in (3, 7) or not plain:
        what = f"it is a ResNet that is not known: blocks {depth}, {kind}, first convolution {_shape(first)}"
        raise SapperError(what, where=where, remedy="say the architecture with --arch, such as --arch timm:NAME")
    small = kernel == 3
    return Layout(
        architecture=known[kind, depth],
        width=width,
        stem="cifar" if small else "imagenet",
        input_size=32 if small else 224,
        weights=weights,
        source=source,
    )


def _transformer(weights: Weights, source: str, where: str) -> Layout:
    """timm's plain vision transformers, which DINO, MAE and MoCo v3 share the names of."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    places = weights.get("pos_embed")
    tokens = places.shape[1] - 1 if places is not None and places.ndim == 3 else 0
    size = patch * math.isqrt(max(0, tokens))
    name = f"vit_{TRANSFORMERS.get((width, depth))}_patch{patch}_{size}"
    import timm

    if name not in timm.list_models():
        what = f"it is a vision transformer that is not known: width {width}, depth {depth}, patches of {patch}"
        raise SapperError(what, where=where, remedy="say the architecture with --arch, such as --arch timm:NAME")
    return Layout(architecture=f"timm:{name}", input_size=size, weights=weights, source=source)


def _shape(tensor: Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape) or "a number"
