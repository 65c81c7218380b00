"""Whose checkpoint is this? From tensors by name to an architecture and the weights for it.

Frameworks wrap a backbone differently, and name it differently: MoCo's ``module.encoder_q.``, solo-learn's
``backbone.``, BadEncoder's ``f.f.`` with numbers for layers. What they share is the backbone's own names and shapes. So
these are looked for behind whatever prefix (``choosing``), and brought to the names that torchvision or timm have.
What neither names nor shapes tell comes from the program that is recognized (``programs``), or is taken and told.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sapper.encoders.backbones import (
    CIFAR_MEAN,
    CIFAR_STD,
    Pixels,
    import_open_clip,
    own_pixels,
)
from sapper.encoders.choosing import Candidate, Choice, Shapes, behind, candidates, choose, others
from sapper.encoders.names import ARCHITECTURES, PREACT, Stem
from sapper.encoders.options import ACTIVATIONS, Opening
from sapper.encoders.programs import Notes, Program, program_of
from sapper.errors import SapperError

Weights = dict[str, Tensor]

TRANSFORMERS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}
"""timm's words for vision transformers of a width and a depth."""

CLIP_RESNETS = {(3, 4, 6, 3): "RN50", (3, 4, 23, 3): "RN101"}

MOST_NAMES = 4
"""How many names of tensors an error lists."""

OTHERWISE = "say the architecture with --arch, such as --arch timm:NAME"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A backbone that was recognized: what ``build`` needs, its ``weights`` by its own names, and whose it is.

    ``names``: for each of the weights its name in the file. ``pixels``: the images it is made for; ``normalization``
    where mean and deviation are from, none where they are a guess. ``assumed``: what nothing told, what was taken
    instead, why, and which option says otherwise. ``told``: what else a user should know of how it was recognized.
    ``others``: what the file's other networks are, by their prefixes.
    """

    architecture: str
    weights: Weights
    names: dict[str, str]
    prefix: str
    source: str
    pixels: Pixels
    normalization: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    width: int = 64
    stem: Stem = "imagenet"
    assumed: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_size(self) -> int:
        return self.pixels.size


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A backbone behind its prefix, before it is known what network it is."""

    weights: Weights
    names: dict[str, str]
    family: str
    program: Program
    opening: Opening
    where: str

    def unknown(self, what: str) -> SapperError:
        return SapperError(what, where=self.where, remedy=OTHERWISE)

    def renamed(self, rename: Callable[[str], str]) -> "_Found":
        """The same with other names."""
        new = {name: rename(name) for name in self.weights}
        if len(set(new.values())) < len(new):
            raise self.unknown("two of its tensors come to one name")
        weights = {new[name]: value for name, value in self.weights.items()}
        return replace(self, weights=weights, names={new[name]: file for name, file in self.names.items()})


def recognize(
    tensors: Weights, where: str, opening: Opening = Opening(), notes: Notes | None = None, optimizer: Shapes = ()
) -> Layout:
    """The backbone among ``tensors`` (by their names in the file ``where``).

    ``notes``, ``optimizer``: what else the file says (``sources.Weights``). Raises ``SapperError`` when no backbone is
    known, when several are there and nothing tells which is meant, or when an option is for another kind of network.
    """
    found, odd = candidates(tensors)
    choice = choose(found, tensors, where, opening.prefix, optimizer)
    if choice is None and odd:
        prefix, channels = next(iter(odd.items()))
        raise not_rgb(channels, f"{where}{f': {prefix}' if prefix else ''}")
    if choice is None:
        what = f"no backbone that is known by its names is in it: {len(tensors)} tensors, {shortened(tensors)}"
        raise SapperError(what, where=where, remedy=OTHERWISE)
    prefix, family = choice.candidate.prefix, choice.candidate.family
    inside = behind(prefix, tensors)
    family = _closer(family, inside)
    backbone = _Found(
        weights=inside,
        names={name: f"{prefix}{name}" for name in inside},
        family=family,
        program=program_of(prefix, family, tensors, notes or {}),
        opening=opening,
        where=where,
    )
    layout = RECOGNIZERS[family](backbone)
    _check_options(opening, family, where)
    return _with(layout, choice, prefix, found)


def not_rgb(channels: int, where: str) -> SapperError:
    """An encoder of gray or of many-channel images."""
    what = f"it takes images of {channels} channel{'s' if channels > 1 else ''}, not RGB"
    function = "give a function of your own that makes its channels from RGB and returns the network"
    remedy = f"{function}: package.module:function --trust-code --size N"
    return SapperError(what, where=where, remedy=remedy)


def _closer(family: str, inside: Weights) -> str:
    """The family by more than its first layers."""
    if family == "resnet" and "attnpool.c_proj.weight" in inside:
        return "clip-resnet"
    if family == "resnet" and "bn1.weight" not in inside and "conv2.weight" not in inside:
        return "preact"
    if family == "resnet" and any(re.match(r"layer\d\.\d+\.shortcut\.", name) for name in inside):
        return "shortcut"
    return family


OPTIONS = {
    "stem": ("resnet", "numbered", "shortcut", "hf-resnet"),
    "heads": ("transformer", "hf-transformer"),
    "patch": ("transformer", "hf-transformer"),
    "pool": ("transformer", "hf-transformer"),
    "activation": ("transformer", "hf-transformer", "clip"),
}
"""For which families an option of ``Opening`` is."""


def _check_options(opening: Opening, family: str, where: str) -> None:
    for name, families in OPTIONS.items():
        if getattr(opening, name) is not None and family not in families:
            what = f"--{name} says nothing about this kind of network"
            raise SapperError(what, where=where, remedy=f"leave --{name} out")


def _with(layout: Layout, choice: Choice, prefix: str, found: list[Candidate]) -> Layout:
    """The layout with how its prefix was chosen."""
    told = []
    if choice.why is not None:
        told.append(f"of several networks in the file that of {prefix!r}: {choice.why}")
    if choice.equal:
        told.append(f"the same network also stands behind {', '.join(map(repr, choice.equal))}")
    return replace(layout, prefix=prefix, told=(*told, *layout.told), others=others(prefix, found, choice.equal))


def shortened(names: Iterable[str]) -> str:
    """The first names of many."""
    known = sorted(names)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return ", ".join(known[:MOST_NAMES]) + more


def _pixels(program: Program, default: Pixels, *, small: bool = False) -> tuple[Pixels, str | None]:
    """The images a network takes, and where their normalization is from; none where it is a guess."""
    known = program.small if small and program.small else program.pixels
    if known is None:
        return default, None
    return Pixels(default.size, *known), f"{program.name}'s: {program.why}"


# ResNets


def _resnet(found: _Found) -> Layout:
    """torchvision's ResNets of any width; and timm's with squeeze-and-excitation."""
    weights, opening = found.weights, found.opening
    first = weights["conv1.weight"]
    depth = _depth(weights)
    kind = "Bottleneck" if "layer1.0.conv3.weight" in weights else "BasicBlock"
    known: dict[tuple[str, tuple[int, ...]], str] = {
        (block, layers): name for name, (block, layers) in ARCHITECTURES.items()
    }
    width, kernel = first.shape[0], first.shape[-1]
    plain = weights.get("layer1.0.conv2.weight", first).shape[:2] == (width, width)  # neither wide nor in groups
    if (kind, depth) not in known or kernel not in (3, 7) or not plain:
        what = f"it is a ResNet that is not known: blocks {depth}, {kind}, first convolution {shape(first)}"
        raise found.unknown(what)
    stem, assumed = _stem(found, kernel)
    pixels, normalization = _pixels(found.program, own_pixels(known[kind, depth], stem), small=stem != "imagenet")
    architecture = known[kind, depth]
    arguments: dict[str, Any] = {}
    told: tuple[str, ...] = ()
    if any(re.match(r"layer\d\.\d+\.se\.", name) for name in weights):
        architecture, arguments, weights = _squeezing(found, architecture, width, stem)
        told = (f"a ResNet with squeeze-and-excitation, opened as {architecture}",)
    return Layout(
        architecture=architecture,
        arguments=arguments,
        width=width,
        stem=stem,
        pixels=pixels,
        normalization=normalization,
        weights=weights,
        names=found.names,
        prefix="",
        source=found.program.name,
        assumed=assumed if opening.stem is None else (),
        told=told,
    )


def _depth(weights: Weights) -> tuple[int, ...]:
    blocks = Counter(
        int(match[1]) for name in weights if (match := re.fullmatch(r"layer(\d)\.\d+\.conv1\.weight", name))
    )
    return tuple(blocks[layer] for layer in sorted(blocks))


def _stem(found: _Found, kernel: int) -> tuple[Stem, tuple[str, ...]]:
    """What stands before the first layer. Of a 3×3 convolution nothing tells whether max-pooling follows."""
    said = found.opening.stem
    if said is not None and (said == "imagenet") != (kernel == 7):
        what = f"its first convolution is {kernel}×{kernel}, and --stem {said} has another"
        raise SapperError(what, where=found.where, remedy="leave --stem out, or say cifar or cifar-pool for 3×3")
    if kernel == 7:
        return "imagenet", ()
    certain = found.family == "shortcut"  # these programs have no pooling
    note = "stem: no max-pooling behind the 3×3 convolution, as SimCLR has it for CIFAR-10; the weights do not tell"
    return said or "cifar", () if certain else (f"{note} (--stem cifar-pool says otherwise)",)


def _squeezing(found: _Found, architecture: str, width: int, stem: Stem) -> tuple[str, dict[str, Any], Weights]:
    """timm's ResNet with squeeze-and-excitation branches, whose linear layers are 1×1 convolutions there."""
    name, weights = f"timm:se{architecture}", dict(found.weights)
    keys = [key for key in weights if re.match(r"layer\d\.\d+\.se\.", key)]
    import timm

    if name.removeprefix("timm:") not in timm.list_models() or width != 64 or stem != "imagenet":
        what = (
            f"it has squeeze-and-excitation branches, and timm has no such {architecture} (width {width}, stem {stem})"
        )
        raise SapperError(f"{what}: {shortened(keys)}", where=found.where, remedy=BY_CODE)
    if all(re.search(r"\.se\.fc[12]\.(weight|bias)$", key) for key in keys):  # timm's own names
        return name, {}, weights
    ratios = set()
    for key in keys:
        match = re.fullmatch(r"(layer\d\.\d+\.se)\.fc\.([02])\.weight", key)
        if match is None or weights[key].ndim != 2:
            raise found.unknown(f"it has squeeze-and-excitation branches of another kind: {shortened(keys)}")
        moved = f"{match[1]}.fc{1 if match[2] == '0' else 2}.weight"
        weights[moved] = weights.pop(key)[:, :, None, None]
        found.names[moved] = found.names.pop(key)
        ratios.add(min(weights[moved].shape[:2]) / max(weights[moved].shape[:2]))
    if len(ratios) != 1:
        what = f"its squeeze-and-excitation branches are not of one ratio: {shortened(keys)}"
        raise SapperError(what, where=found.where, remedy=BY_CODE)
    return name, {"se_ratio": ratios.pop()}, weights


BY_CODE = "give the network as a function of your own: package.module:function --trust-code"


def _shortcut(found: _Found) -> Layout:
    """pytorch-cifar's, SupContrast's, lightly's: torchvision's names, but for ``shortcut``."""
    return _resnet(found.renamed(lambda name: re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", name)))


def _preact(found: _Found) -> Layout:
    """Pre-activation ResNets: each block's first normalization takes what comes into it."""
    weights = found.weights
    first, depth = weights["conv1.weight"], _depth(weights)
    kind = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    known: dict[tuple[str, tuple[int, ...]], str] = {(block, layers): name for name, (block, layers) in PREACT.items()}
    if (kind, depth) not in known or first.shape[-1] != 3:
        what = f"it is a ResNet without a first normalization that is not known: blocks {depth}, {kind}, {shape(first)}"
        raise found.unknown(what)
    pixels, normalization = _pixels(found.program, Pixels(32, CIFAR_MEAN, CIFAR_STD), small=True)
    return Layout(
        architecture=known[kind, depth],
        arguments={"last_norm": True} if "bn.weight" in weights else {},
        width=first.shape[0],
        stem="cifar",
        pixels=pixels,
        normalization=normalization,
        weights=weights,
        names=found.names,
        prefix="",
        source=found.program.name,
    )


def _numbered(found: _Found) -> Layout:
    """A ResNet's children by number, as in ``nn.Sequential(*children)``, under torchvision's names again.

    The children are convolution, normalization, perhaps ReLU and max-pooling (or nothing in its place), and four
    layers: the number of the first layer tells which.
    """
    weights = found.weights
    layers = sorted({int(name.split(".")[0]) for name in weights if re.fullmatch(r"\d+\.0\.conv1\.weight", name)})
    kernel = weights["0.weight"].shape[-1]
    if layers[0] not in (2, 3, 4) or (kernel == 7 and layers[0] != 4):
        what = "it is a ResNet by numbers, with another stem than 3×3 and 7×7 with max-pooling"
        raise SapperError(what, where=found.where, remedy="save its state dict by names")
    if layers[0] < 4 and found.opening.stem == "cifar-pool":
        what = "its layers are numbered without a max-pooling between them"
        raise SapperError(what, where=found.where, remedy="leave --stem out")
    names = {"0": "conv1", "1": "bn1"} | {str(number): f"layer{i + 1}" for i, number in enumerate(layers)}

    def rename(name: str) -> str:
        number, _, rest = name.partition(".")
        return f"{names[number]}.{rest}" if number in names else name

    layout = _shortcut(found.renamed(rename))
    return layout if layers[0] == 4 else replace(layout, assumed=())


def _hf_resnet(found: _Found) -> Layout:
    """Hugging Face transformers' ResNet."""

    def rename(name: str) -> str:
        name = re.sub(r"^embedder\.embedder\.convolution\.", "conv1.", name)
        name = re.sub(r"^embedder\.embedder\.normalization\.", "bn1.", name)
        stage = re.match(r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)$", name)
        if stage is None:
            return name
        rest = stage[3].replace("shortcut.convolution.", "downsample.0.")
        rest = rest.replace("shortcut.normalization.", "downsample.1.")
        inner = re.match(r"^layer\.(\d+)\.(convolution|normalization)\.(.*)$", rest)
        if inner:
            rest = f"{'conv' if inner[2] == 'convolution' else 'bn'}{int(inner[1]) + 1}.{inner[3]}"
        return f"layer{int(stage[1]) + 1}.{stage[2]}.{rest}"

    return _resnet(found.renamed(rename))


def _clip_resnet(found: _Found) -> Layout:
    """CLIP's ResNets, which open_clip builds."""
    depth = _depth(found.weights)
    if depth not in CLIP_RESNETS:
        raise found.unknown(f"it is a ResNet of CLIP's that is not known: blocks {depth}")
    architecture = f"open_clip:{CLIP_RESNETS[depth]}"
    return Layout(
        architecture=architecture,
        pixels=own_pixels(architecture),
        normalization="CLIP's",
        weights=found.weights,
        names=found.names,
        prefix="",
        source="CLIP's ResNet",
    )


# vision transformers


def _clip(found: _Found) -> Layout:
    """CLIP's vision transformers, which open_clip builds."""
    weights = found.weights
    width, _, patch, _ = weights["conv1.weight"].shape
    depth = len({name.split(".")[2] for name in weights if name.startswith("transformer.resblocks.")})
    places = weights.get("positional_embedding")
    features = weights.get("proj")
    if places is None or features is None or places.ndim != 2 or features.ndim != 2:
        raise found.unknown("it is a vision transformer with CLIP's names, and not whole")
    size = patch * math.isqrt(places.shape[0] - 1)
    name = _clip_name(width, depth, patch, size, features.shape[-1])
    if name is None:
        what = f"it is a CLIP vision transformer that is not known: width {width}, depth {depth}, patches of {patch}"
        raise SapperError(what, where=found.where, remedy="say it with --arch open_clip:NAME")
    halves = all(value.dtype == torch.float16 for value in weights.values() if value.is_floating_point())
    said = found.opening.activation
    quick = said == "quickgelu" if said else halves
    why = "in half precision, as OpenAI's" if halves else "not in half precision, as OpenAI's would be"
    other = "gelu" if quick else "quickgelu"
    assumed = f"activation: {'QuickGELU' if quick else 'GELU'}, since the weights are {why}; they do not tell "
    architecture = f"open_clip:{name}-quickgelu" if quick else f"open_clip:{name}"
    return Layout(
        architecture=architecture,
        pixels=own_pixels(architecture),
        normalization="CLIP's",
        weights=weights,
        names=found.names,
        prefix="",
        source="CLIP's vision transformer",
        assumed=() if said else (f"{assumed}(--activation {other} says otherwise)",),
    )


def _clip_name(width: int, depth: int, patch: int, size: int, features: int) -> str | None:
    """open_clip's name for a plain vision transformer of these sizes that also has a QuickGELU form."""
    open_clip = import_open_clip()
    wanted = {"width": width, "layers": depth, "patch_size": patch, "image_size": size}
    models = open_clip.list_models()
    for name in models:
        config = open_clip.get_model_config(name)
        if f"{name}-quickgelu" in models and config["vision_cfg"] == wanted and config["embed_dim"] == features:
            return str(name)
    return None


def _hf_transformer(found: _Found) -> Layout:
    """Hugging Face transformers' ViT, and its DINOv2."""

    def rename(name: str) -> str:
        for theirs, ours in HF_NAMES:
            name = re.sub(theirs, ours, name)
        return name

    renamed = found.renamed(rename)
    weights, names = dict(renamed.weights), dict(renamed.names)
    for name in [name for name in weights if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in weights for part in parts):
            whole = name.replace(".query.", ".qkv.")
            weights[whole] = torch.cat([weights.pop(part) for part in parts])
            names[whole] = ", ".join(names.pop(part) for part in parts)
    eps = {} if "blocks.0.ls1.gamma" in weights else {"norm_eps": 1e-12}  # ViT's; DINOv2's is timm's
    return _vision_transformer(weights, names, renamed, eps)


HF_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
"""Hugging Face transformers' names and timm's, as regular expressions; in this order."""


def _transformer(found: _Found) -> Layout:
    """timm's names, which DINO, DINOv2, MAE and MoCo v3 share."""
    chunked = found.renamed(lambda name: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name))  # DINOv2 in training
    return _vision_transformer(dict(chunked.weights), dict(chunked.names), chunked, {})


def _vision_transformer(weights: Weights, names: dict[str, str], found: _Found, arguments: dict[str, Any]) -> Layout:
    """A plain vision transformer as timm builds it, of the sizes that the weights have."""
    told: tuple[str, ...] = ()
    if "register_tokens" in weights and {"cls_token", "pos_embed"} <= weights.keys():
        weights, names = _with_registers(weights, names)
        told = ("a vision transformer with register tokens",)
    width, patch = _patches(weights, found)
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    size, separate = _size(weights, patch, found)
    parts = _parts(weights, width)
    name, own = _timm_name(width, depth, patch, size, parts)
    if own.pop("dinov2", False):  # which has these by its name
        parts = {part: value for part, value in parts.items() if part not in DINOV2}
    heads, assumed = _heads(width, found)
    arguments = arguments | own | parts
    if heads != width // 64 or "embed_dim" in own:
        arguments["num_heads"] = heads
    if separate and "cls_token" in weights:
        arguments["no_embed_class"] = True
    pooled, more = _pooling(weights, found)
    arguments |= pooled
    if found.opening.activation is not None:
        arguments["act_layer"] = ACTIVATIONS[found.opening.activation]
    pixels, normalization = _pixels(found.program, own_pixels(f"timm:{name}"))
    said = found.opening.size
    if said is not None and said != size:
        weights["pos_embed"] = _resampled(weights, size // patch, said, patch, separate, found)
        told += (f"positions resampled from {size} to {said} pixels",)
        size = said
    pixels = Pixels(size, pixels.mean, pixels.std)
    return Layout(
        architecture=f"timm:{name}",
        arguments=arguments,
        pixels=pixels,
        normalization=normalization,
        weights=weights,
        names=names,
        prefix="",
        source=found.program.name,
        assumed=(*assumed, *more),
        told=told,
    )


def _with_registers(weights: Weights, names: dict[str, str]) -> tuple[Weights, dict[str, str]]:
    """DINOv2's registers: timm adds the first position to the class token, and has positions of patches alone."""
    weights, names = dict(weights), dict(names)
    places = weights["pos_embed"]
    weights["reg_token"], names["reg_token"] = weights.pop("register_tokens"), names.pop("register_tokens")
    weights["cls_token"] = weights["cls_token"] + places[:, :1]
    weights["pos_embed"] = places[:, 1:]
    return weights, names


def _patches(weights: Weights, found: _Found) -> tuple[int, int]:
    """Width, and the side of a patch. Old programs keep the first layer as a matrix, whose rows are patches."""
    first = weights["patch_embed.proj.weight"]
    said = found.opening.patch
    if first.ndim == 2:
        side = math.isqrt(first.shape[1] // 3)
        if 3 * side * side != first.shape[1]:
            raise found.unknown(f"its patches have {first.shape[1]} numbers, which no square of RGB has")
        weights["patch_embed.proj.weight"] = first.reshape(first.shape[0], 3, side, side)
        first = weights["patch_embed.proj.weight"]
    if said is not None and said != first.shape[-1]:
        what = f"its patches have {first.shape[-1]} pixels on a side, not {said}"
        raise SapperError(what, where=found.where, remedy="leave --patch out")
    return first.shape[0], first.shape[-1]


def _size(weights: Weights, patch: int, found: _Found) -> tuple[int, bool]:
    """The side of its images, and whether positions are of patches alone."""
    places = weights.get("pos_embed")
    count = places.shape[1] if places is not None and places.ndim == 3 else 0
    with_class = "cls_token" in weights and "reg_token" not in weights
    for tokens, separate in ((count - 1, False), (count, True)) if with_class else ((count, True),):
        side = math.isqrt(max(tokens, 0))
        if side > 0 and side * side == tokens:
            return patch * side, separate
    what = f"it is a vision transformer that is not known: {count} positions are no square of patches of {patch} pixels"
    raise SapperError(what, where=found.where, remedy="say --arch timm:NAME with --size, and --patch if it has others")


def _resampled(weights: Weights, side: int, size: int, patch: int, separate: bool, found: _Found) -> Tensor:
    """Positions for other images, as timm resamples them."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    if size % patch:
        what, remedy = f"{size} pixels are no multiple of patches of {patch}", f"say --size {patch * (size // patch)}"
        raise SapperError(what, where=f"{found.where}: --size", remedy=remedy)
    new, before = (size // patch, size // patch), int("cls_token" in weights and not separate)
    places = weights["pos_embed"].float()
    moved: Tensor = resample_abs_pos_embed(places, list(new), [side, side], num_prefix_tokens=before)
    return moved


DINOV2 = ("init_values", "reg_tokens", "no_embed_class")
"""What timm's models called DINOv2 have by that name."""


def _timm_name(width: int, depth: int, patch: int, size: int, parts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """timm's name for it, or the nearest with what differs."""
    import timm

    models = timm.list_models()
    word = TRANSFORMERS.get((width, depth))
    registers = f"_reg{parts['reg_tokens']}" if "reg_tokens" in parts else ""
    if "init_values" in parts and f"vit_{word}_patch{patch}{registers}_dinov2" in models:
        return f"vit_{word}_patch{patch}{registers}_dinov2", {"dinov2": True}
    if f"vit_{word}_patch{patch}_{size}" in models:
        return f"vit_{word}_patch{patch}_{size}", {}
    if f"vit_{word}_patch{patch}_224" in models:
        return f"vit_{word}_patch{patch}_224", {}  # of another size of images, which the card has
    if word is not None:
        return f"vit_{word}_patch16_224", {"patch_size": patch}
    return "vit_base_patch16_224", {"patch_size": patch, "embed_dim": width, "depth": depth}


def _heads(width: int, found: _Found) -> tuple[int, tuple[str, ...]]:
    """How many heads each attention has: no shape tells."""
    said, known = found.opening.heads, found.program.heads.get(width)
    if said is not None:
        if width % said:
            what = f"{said} heads cannot share {width} channels"
            raise SapperError(what, where=f"{found.where}: --heads", remedy="give a number that divides them")
        return said, ()
    if known is not None:
        return known, ()
    if width % 64:
        what = f"how many heads its attention has is not known: its {width} channels are no multiple of 64"
        raise SapperError(what, where=found.where, remedy="say it with --heads")
    if found.program.pixels is not None:  # a program that is known, and has 64 channels a head
        return width // 64, ()
    why = "64 channels each, as in most vision transformers; the weights do not tell"
    return width // 64, (f"heads: {width // 64}, {why} (--heads says otherwise)",)


def _parts(weights: Weights, width: int) -> dict[str, Any]:
    """Parts that only some vision transformers have."""
    parts: dict[str, Any] = {}
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    if hidden is not None and hidden.shape[0] != 4 * width:
        parts["mlp_ratio"] = hidden.shape[0] / width
    if "blocks.0.ls1.gamma" in weights:
        parts["init_values"] = 1e-5
    if "blocks.0.attn.q_norm.weight" in weights:
        parts["qk_norm"] = True
    if "blocks.0.attn.qkv.bias" not in weights:
        parts["qkv_bias"] = False
    if "norm_pre.weight" in weights:
        parts["pre_norm"] = True
    if "reg_token" in weights:
        parts |= {"reg_tokens": weights["reg_token"].shape[1], "no_embed_class": True}
    if "cls_token" not in weights:
        parts["class_token"] = False
    return parts


def _pooling(weights: Weights, found: _Found) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What its features are: the class token's, or the mean of the patches' where a normalization of that is there."""
    said = found.opening.pool
    after = "fc_norm.weight" in weights
    pool = said or ("avg" if after or "cls_token" not in weights else "token")
    if pool == "token" and (after or "cls_token" not in weights):
        what = "it has no class token" if not after else "its last normalization is of the patches' mean"
        raise SapperError(what, where=f"{found.where}: --pool", remedy="leave --pool out")
    if after:
        return {"global_pool": "avg", "fc_norm": True}, ()
    arguments: dict[str, Any] = {} if pool == "token" else {"global_pool": "avg", "fc_norm": False}
    if said or (pool == "token" and found.program.pixels is not None and found.program.name != "MAE"):
        return arguments, ()
    taken, other = ("the class token's", "avg") if pool == "token" else ("the mean of the patches'", "token")
    possible = pool == "token"
    option = f" (--pool {other} says otherwise)" if possible else ""
    return arguments, (f"features: {taken}; the weights do not tell{option}",)


def shape(tensor: Tensor) -> str:
    """As 64×3×7×7."""
    return "×".join(str(side) for side in tensor.shape) or "a number"


RECOGNIZERS: Mapping[str, Callable[[_Found], Layout]] = {
    "resnet": _resnet,
    "shortcut": _shortcut,
    "preact": _preact,
    "numbered": _numbered,
    "hf-resnet": _hf_resnet,
    "clip-resnet": _clip_resnet,
    "clip": _clip,
    "transformer": _transformer,
    "hf-transformer": _hf_transformer,
}
