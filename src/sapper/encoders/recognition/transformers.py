"""Vision transformers in the names of the programs that train them: timm's, DINOv2's, transformers', CLIP's."""

import math
import re
from typing import Any

import torch
from torch import Tensor

from sapper.encoders.backbones import Pixels, import_open_clip, own_pixels
from sapper.encoders.options import ACTIVATIONS
from sapper.encoders.recognition.layouts import Backbone, Layout, Weights, pixels_of
from sapper.errors import SapperError

SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
"""timm's words for vision transformers of a width and a depth."""

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
"""Heads of each attention of the usual vision transformers, by width: ViT-Ti, S, B, L, H, g, and DINOv2's g."""


def clip(found: Backbone) -> Layout:
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
    told = () if said else (f"{assumed}(use --activation {other} if it was the other)",)
    if not halves:
        told = (*told, "normalization: OpenAI's; some of open_clip's models have another (use --mean and --std then)")
    return Layout(
        architecture=architecture,
        pixels=own_pixels(architecture),
        normalization="CLIP's",
        weights=weights,
        names=found.names,
        prefix="",
        source="CLIP's vision transformer",
        assumed=told,
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


def hf_transformer(found: Backbone) -> Layout:
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


def transformer(found: Backbone) -> Layout:
    """timm's names, which DINO, DINOv2, MAE and MoCo v3 share."""
    chunked = found.renamed(lambda name: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name))  # DINOv2 in training
    return _vision_transformer(dict(chunked.weights), dict(chunked.names), chunked, {})


def _vision_transformer(weights: Weights, names: dict[str, str], found: Backbone, arguments: dict[str, Any]) -> Layout:
    """A plain vision transformer as timm builds it, of the sizes that the weights have."""
    told: tuple[str, ...] = ()
    if "register_tokens" in weights and {"cls_token", "pos_embed"} <= weights.keys():
        weights, names = _with_registers(weights, names)
        told = ("a vision transformer with register tokens",)
    linear = weights["patch_embed.proj.weight"].ndim == 2
    width, patch = _patches(weights, found)
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    size, separate = _size(weights, patch, found)
    parts = _parts(weights, width)
    name, own = _timm_name(width, depth, patch, size, parts)
    if own.pop("dinov2", False):  # which has these by its name
        parts = {part: value for part, value in parts.items() if part not in DINOV2}
    heads, assumed = _heads(weights, width, found)
    arguments = arguments | own | parts
    if heads != HEADS.get(width) or "embed_dim" in own:
        arguments["num_heads"] = heads
    if separate and "cls_token" in weights:
        arguments["no_embed_class"] = True
    pooled, more = _pooling(weights, found)
    arguments |= pooled
    if found.opening.activation is not None:
        arguments["act_layer"] = ACTIVATIONS[found.opening.activation]
    elif found.program.pixels is None:
        more = (*more, "activation: GELU; the weights do not tell (use --activation quickgelu if it was that)")
    if linear:
        more = (*more, "the order of a patch's numbers: channels, rows, columns; the weights do not tell")
    pixels, normalization = pixels_of(found.program, own_pixels(f"timm:{name}"))
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


def _patches(weights: Weights, found: Backbone) -> tuple[int, int]:
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


def _size(weights: Weights, patch: int, found: Backbone) -> tuple[int, bool]:
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


def _resampled(weights: Weights, side: int, size: int, patch: int, separate: bool, found: Backbone) -> Tensor:
    """Positions for other images, as timm resamples them."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    if size % patch:
        near = patch * max(1, round(size / patch))
        what, remedy = f"{size} pixels are no multiple of patches of {patch}", f"say --size {near}"
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
    word = SIZES.get((width, depth))
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


def _heads(weights: Weights, width: int, found: Backbone) -> tuple[int, tuple[str, ...]]:
    """How many heads each attention has: no shape tells, but for that of a normalization of queries."""
    said, known = found.opening.heads, found.program.heads.get(width)
    if said is not None:
        if said < 1 or width % said:
            what = f"{said} heads cannot share {width} channels"
            raise SapperError(what, where=f"{found.where}: --heads", remedy="give a number that divides them")
        return said, ()
    each = weights.get("blocks.0.attn.q_norm.weight")
    if each is not None and each.ndim == 1 and width % each.shape[0] == 0:
        return width // each.shape[0], ()
    if known is not None:
        return known, ()
    if width not in HEADS and width % 64:
        what = f"how many heads its attention has is not known: its {width} channels are no multiple of 64"
        raise SapperError(what, where=found.where, remedy="say it with --heads")
    heads = HEADS.get(width, width // 64)
    if found.program.pixels is not None and width in HEADS:  # a program that is known, with the usual heads
        return heads, ()
    why = f"{width // heads} channels each, as in most vision transformers; the weights do not tell"
    return heads, (f"heads: {heads}, {why} (use --heads if it has another number)",)


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


def _pooling(weights: Weights, found: Backbone) -> tuple[dict[str, Any], tuple[str, ...]]:
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
    option = f" (use --pool {other} if it was trained with that)" if possible else ""
    return arguments, (f"features: {taken}; the weights do not tell{option}",)
