"""An architecture that the user says, or the file: where its weights stand in the file, and by which names."""

import math
import re
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sapper.encoders import code, sources
from sapper.encoders.backbones import Pixels, own_pixels, sketch
from sapper.encoders.encoder import Encoder
from sapper.encoders.names import check_trusted
from sapper.encoders.options import ACTIVATIONS, Opening
from sapper.encoders.recognition import choosing, families, layouts, timms
from sapper.encoders.recognition.layouts import Configured, Layout
from sapper.encoders.recognition.programs import program_of
from sapper.errors import SapperError
from sapper.samples import PixelSpec

Tensors = dict[str, Tensor]


def as_said(
    said: str, tensors: Tensors, weights: sources.Weights, opening: Opening, where: str, configured: Configured
) -> tuple[Layout, Tensors]:
    """The layout of a library's model, wherever its weights stand in the file; and what has no place in it."""
    pixels = own_pixels(said)
    size = opening.size or configured.size or pixels.size
    arguments = configured.arguments | _arguments(opening)
    net = sketch(said, "imagenet", size, arguments)
    prefix, why = prefix_of(said, net, tensors, weights, opening, where)
    inside = choosing.behind(prefix, tensors)
    _check_channels(net, inside, where)
    moved, names, lost = _moved(said, inside, net)
    told = [f"of several networks in the file that of {prefix!r}: {why}"] if why else []
    told += _resized(inside, moved, opening, where)
    known = {each.prefix: each.family for each in choosing.candidates(tensors)[0]}
    program = program_of(prefix, known.get(prefix, "said"), tensors, weights.notes)
    normalization = f"{program.name}'s: {program.why}" if program.pixels else None
    mean, std = program.pixels or (pixels.mean, pixels.std)
    layout = Layout(
        architecture=said,
        arguments=arguments,
        pixels=Pixels(size, mean, std),
        normalization=normalization,
        weights=moved,
        names={name: f"{prefix}{file}" for name, file in names.items()},
        prefix=prefix,
        source=f"as {said}",
        told=tuple(told),
        others=choosing.others(prefix, choosing.candidates(tensors)[0]),
    )
    return layout, {name: inside[name] for name in lost}


def as_code(
    uri: str, tensors: Tensors, weights: sources.Weights, opening: Opening, where: str, configured: Configured
) -> tuple[Encoder, Layout]:
    """The network that the user's own function returns, and where its weights stand in the file.

    Raises ``SapperError`` for options that are for networks of libraries, and for code that is not trusted.
    """
    check_trusted(uri, trust_code=opening.trust_code)
    for name in ("heads", "patch", "pool", "activation", "stem"):
        if getattr(opening, name) is not None:
            what = f"--{name} says nothing about a network of your own"
            raise SapperError(what, where=where, remedy=f"leave --{name} out: your function makes it as it is")
    sized = opening if opening.size is not None else replace(opening, size=configured.size)
    encoder = code.wrapped(code.made_by(uri), uri, sized)
    if encoder.text is not None or not isinstance(encoder.projection, nn.Identity):
        what, remedy = "it returns an encoder with a projection or a text tower", "return the network alone"
        raise SapperError(what, where=uri, remedy=remedy)
    spec = encoder.card.pixels
    spec = replace(spec, mean=configured.mean or spec.mean, std=configured.std or spec.std)
    encoder = Encoder(encoder.backbone, replace(encoder.card, input=spec), encoder.feature_size)
    prefix, why = prefix_of(uri, encoder.backbone, tensors, weights, opening, where)
    inside = choosing.behind(prefix, tensors)
    chosen = [f"of several networks in the file that of {prefix!r}: {why}"] if why else []
    layout = Layout(
        architecture=encoder.card.architecture,
        weights=inside,
        names={name: f"{prefix}{name}" for name in inside},
        prefix=prefix,
        source=code.LAYOUT,
        pixels=Pixels(spec.size, spec.mean, spec.std),
        normalization=code.UNNORMALIZED if spec == PixelSpec(size=spec.size) else f"as {uri} has it",
        told=(f"the network is what {uri} returns", *chosen),
        others=choosing.others(prefix, choosing.candidates(tensors)[0]),
    )
    return encoder, layout


def _arguments(opening: Opening) -> dict[str, Any]:
    """Options as arguments of timm's models."""
    pool = {"avg": {"global_pool": "avg"}, "token": {"global_pool": "token"}}
    return {
        **({"num_heads": opening.heads} if opening.heads is not None else {}),
        **({"patch_size": opening.patch} if opening.patch is not None else {}),
        **({"act_layer": ACTIVATIONS[opening.activation]} if opening.activation is not None else {}),
        **(pool[opening.pool] if opening.pool is not None else {}),
    }


def _moved(said: str, inside: Tensors, net: nn.Module) -> tuple[Tensors, dict[str, str], list[str]]:
    """The tensors by the network's names, with those of the file, and what has no effect."""
    scheme, _, name = said.partition(":")
    if scheme != "timm":
        return dict(inside), {key: key for key in inside}, []
    try:
        return timms.renamed(inside, net, name)
    except Exception:  # a filter that stumbles over names that are not its own
        return dict(inside), {key: key for key in inside}, []


def prefix_of(
    said: str, net: nn.Module, tensors: Tensors, weights: sources.Weights, opening: Opening, where: str
) -> tuple[str, str | None]:
    """Behind which prefix most of the network's weights stand, and why that one of several."""
    scheme, _, name = said.partition(":")
    wanted = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    if opening.prefix is not None:
        dotted = opening.prefix if opening.prefix.endswith(".") or not opening.prefix else f"{opening.prefix}."
        if not any(name.startswith(dotted) for name in tensors):
            what, remedy = f"no name in it begins with {dotted!r}", f"names are {layouts.shortened(tensors)}"
            raise SapperError(what, where=f"{where}: --prefix", remedy=remedy)
        return dotted, "as was said"
    filtered = name if scheme == "timm" else None
    counts = {
        prefix: timms.matches(choosing.behind(prefix, tensors), net, filtered)
        for prefix in _prefixes(tensors, len(wanted))
    }
    most = max(counts.values(), default=0)
    if 2 * most < len(wanted):  # another architecture: what is missing is told where it is filled
        return min((prefix for prefix, count in counts.items() if count == most), key=len, default=""), None
    equal = [prefix for prefix, count in counts.items() if count == most]
    inner = [each for each in equal if not any(other != each and other.startswith(each) for other in equal)]
    best = [choosing.Candidate(prefix, "said") for prefix in inner]  # timm's filters strip some prefixes themselves
    choice = choosing.choose(best, tensors, where, None, weights.optimizer)
    assert choice is not None  # there is at least one
    return choice.candidate.prefix, choice.why


def _prefixes(tensors: Tensors, parameters: int) -> list[str]:
    """Beginnings of names that at least half as many tensors share as the network has."""
    counts: dict[str, int] = {"": len(tensors)}
    for name in tensors:
        for match in re.finditer(r"\.", name):
            begin = name[: match.end()]
            counts[begin] = counts.get(begin, 0) + 1
    return [prefix for prefix, count in counts.items() if 2 * count >= parameters]


def _check_channels(net: nn.Module, inside: Tensors, where: str) -> None:
    """Raises ``SapperError`` for a file whose first convolution is not of RGB."""
    first = next((name for name, value in net.state_dict().items() if value.ndim == 4 and value.shape[1] == 3), None)
    theirs = inside.get(first) if first else None
    if first and theirs is not None and theirs.ndim == 4 and theirs.shape[1] != 3:
        raise families.not_rgb(theirs.shape[1], f"{where}: {first}")


def _resized(inside: Tensors, moved: Tensors, opening: Opening, where: str) -> list[str]:
    """What timm's filter has brought to another size. Raises ``SapperError`` where the user has not asked for that."""
    memory = {value.untyped_storage().data_ptr() for value in inside.values()}
    numbers = {value.numel() for value in inside.values()}
    changed = [
        name
        for name, value in moved.items()
        if re.search(r"pos_embed|rel_pos|relative_position|patch_embed", name)
        and value.untyped_storage().data_ptr() not in memory
        and (inside[name].numel() != value.numel() if name in inside else value.numel() not in numbers)
    ]
    first = inside.get("patch_embed.proj.weight")
    if "patch_embed.proj.weight" in changed and first is not None:
        patch = first.shape[-1] if first.ndim == 4 else math.isqrt(first.shape[1] // 3)
        raise SapperError(f"its patches have {patch} pixels on a side", where=where, remedy=f"say --patch {patch}")
    if changed and opening.size is None:
        places = inside.get("pos_embed")
        side = math.isqrt(max(0, places.shape[1] - 1)) if places is not None and places.ndim == 3 else 0
        size = f"{side * first.shape[-1]}" if side and first is not None and first.ndim == 4 else "N"
        what = f"it is of another size of images: {layouts.shortened(changed)}"
        raise SapperError(what, where=where, remedy=f"say --size {size}")
    return [f"resampled for {opening.size} pixels: {layouts.shortened(changed)}"] if changed else []
