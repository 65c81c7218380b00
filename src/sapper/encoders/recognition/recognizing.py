"""From a file's tensors to an encoder: the backbone is recognized, or built as the user said, and filled."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from sapper.encoders import sources
from sapper.encoders.backbones import Pixels, blueprint, build, last_linear, own_pixels, sketch
from sapper.encoders.encoder import Encoder
from sapper.encoders.names import OWN
from sapper.encoders.options import ACTIVATIONS, Opening
from sapper.encoders.recognition import choosing, families, filling, layouts, timms, wrappers
from sapper.encoders.recognition.layouts import Layout, UnknownNetworkError
from sapper.encoders.recognition.programs import program_of
from sapper.errors import SapperError
from sapper.files import sha256
from sapper.running import Run

Tensors = dict[str, Tensor]

ASSUMED = "assumed from the architecture; say --mean, --std and --size if it was trained otherwise"


@dataclass(frozen=True)
class Found:
    """An encoder with its own normalization, where that is from, and what is known of its file."""

    encoder: Encoder
    normalization: str
    about: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Configured:
    """What a configuration beside the weights says: of images, where that is from, and the network's ``arguments``."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    size: int | None = None
    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


def recognized(
    weights: sources.Weights, run: Run, opening: Opening, where: str, configured: Configured = Configured()
) -> Found:
    """The encoder whose weights these are: recognized by names and shapes, or of the architecture that was said.

    Raises ``SapperError`` when it is not known which network is meant, or when a part of it would be left out.
    """
    tensors = wrappers.unwrapped(weights.tensors)
    weights = replace(
        weights,
        unread={wrappers.without_words(name): why for name, why in weights.unread.items()},
        left_out={wrappers.without_words(name): what for name, what in weights.left_out.items()},
    )
    if opening.architecture is not None and opening.architecture not in OWN:
        layout, lost = _as_said(opening.architecture, tensors, weights, opening, where, configured)
    else:
        layout, lost = _by_itself(tensors, weights, opening, where, configured)
    size = opening.size or layout.input_size
    if layout.architecture in OWN:
        size = layout.input_size  # the network takes any; what is shown to it is said later
    if not layout.architecture.startswith("open_clip:"):
        # Shapes first: a small file may name a network that fills the memory.
        plan = blueprint(layout.architecture, layout.width, layout.stem, size, layout.arguments)
        _fit(layout, plan, lost, weights, opening, where)
    encoder = build(
        run,
        architecture=layout.architecture,
        width=layout.width,
        stem=layout.stem,
        input_size=size,
        mean=configured.mean or layout.pixels.mean,
        std=configured.std or layout.pixels.std,
        arguments=layout.arguments,
    )
    taken, left = _fit(layout, encoder.backbone.state_dict(), lost, weights, opening, where)
    encoder.backbone.load_state_dict(taken)
    source = f"from {configured.source}" if configured.mean and configured.std else layout.normalization
    left |= _beside([name for name in tensors if not name.startswith(layout.prefix)], layout)
    known = {
        "left_out": [*filling.told(left), *_not_tensors(weights, layout.prefix)],
        "assumed": list(layout.assumed),
        "recognized": list(layout.told),
    }
    shown = {name: value for name, value in known.items() if value}
    prefix = {"prefix": layout.prefix} if layout.prefix else {}
    return Found(encoder, source or ASSUMED, about(weights, layout.source) | prefix | shown)


def _beside(names: list[str], layout: Layout) -> dict[str, str]:
    """What stands outside of the backbone's prefix, by name: other networks, and the rest."""
    found = {}
    for name in names:
        prefix = next((prefix for prefix in layout.others if name.startswith(prefix)), None)
        found[name] = f"{layout.others[prefix]} {prefix!r}" if prefix is not None else filling.beside(name)
    return found


def _not_tensors(weights: sources.Weights, prefix: str) -> list[str]:
    """What else is in the file, in words."""
    unread = [f"{name}: {why}" for name, why in sorted(weights.unread.items()) if not name.startswith(prefix)]
    return [*(f"{name}: {what}" for name, what in sorted(weights.left_out.items())), *unread]


def _fit(
    layout: Layout,
    state: Mapping[str, Tensor],
    lost: Tensors,
    weights: sources.Weights,
    opening: Opening,
    where: str,
) -> tuple[Tensors, dict[str, str]]:
    prefix, own = layout.prefix, {name.split(".")[0] for name in state}
    inner = {name.removeprefix(prefix): why for name, why in weights.unread.items() if name.startswith(prefix)}
    for name, what in weights.left_out.items():  # what is no tensor, under names of the network's own layers
        if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in own:
            inner[name.removeprefix(prefix)] = what
    return filling.fitting(
        layout.weights,
        state,
        where,
        names=layout.names,
        classifiers=_classifiers(layout.architecture),
        unread=inner,
        lost=lost,
        leave_out=[name.removeprefix(prefix) for name in opening.leave_out],
    )


def _classifiers(architecture: str) -> tuple[str, ...]:
    """Layers that a library's model of that name ends with, and an encoder does without."""
    scheme, _, name = architecture.partition(":")
    if scheme == "torchvision":
        return (last_linear(name),)
    if scheme != "timm":
        return ()
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    layers = config.classifier if config is not None else None
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def _by_itself(
    tensors: Tensors, weights: sources.Weights, opening: Opening, where: str, configured: Configured
) -> tuple[Layout, Tensors]:
    """The layout by names and shapes; or by the architecture that the file itself names."""
    if "num_heads" in configured.arguments and opening.heads is None:
        opening = replace(opening, heads=configured.arguments["num_heads"])
    named = _named(weights) if opening.architecture is None else None
    if named is not None and _by_timm(weights):  # names and shapes may be those of a plainer network
        with suppress(SapperError):
            return _as_named(named, tensors, weights, opening, where, configured)
    try:
        layout = families.recognize(tensors, where, opening, weights.notes, weights.optimizer)
    except UnknownNetworkError as error:
        if named is None:
            raise _with_unread(error, weights) from error
        return _as_named(named, tensors, weights, opening, where, configured)
    if opening.architecture is not None:
        layout = replace(layout, architecture=opening.architecture)
    if named is not None and f"timm:{named}" != layout.architecture and named != layout.architecture:
        told = f"the file names its architecture {named}; its names and shapes are those of {layout.architecture}"
        layout = replace(layout, assumed=(*layout.assumed, told))
    return layout, {}


def _as_named(
    named: str, tensors: Tensors, weights: sources.Weights, opening: Opening, where: str, configured: Configured
) -> tuple[Layout, Tensors]:
    """The layout of the model of timm's that the file names. Raises ``SapperError`` if the weights do not fit it."""
    layout, lost = _as_said(f"timm:{named}", tensors, weights, opening, where, configured)
    plan = blueprint(layout.architecture, layout.width, layout.stem, layout.input_size, layout.arguments)
    _fit(layout, plan, lost, weights, opening, where)
    source = layout.normalization or f"from timm's configuration of {named}, which the file names"
    told = (f"the file names its architecture: {named}, a model of timm's", *layout.told)
    return replace(layout, told=told, normalization=source), lost


def _with_unread(error: SapperError, weights: sources.Weights) -> SapperError:
    """The error, and that there are tensors which nobody could read, if there are."""
    if not weights.unread:
        return error
    name, why = next(iter(sorted(weights.unread.items())))
    what = f"{error.what}; {len(weights.unread)} more could not be read, such as {name} ({why})"
    return SapperError(what, where=error.where, remedy=error.remedy)


def _named(weights: sources.Weights) -> str | None:
    """The model of timm's that a checkpoint says it is."""
    import timm

    said = [weights.notes.get(key) for key in ("arch", "args.model", "args.arch", "hyper_parameters.backbone.name")]
    models = set(timm.list_models())
    return next((str(name) for name in said if name in models), None)


def _by_timm(weights: sources.Weights) -> bool:
    """Whether timm's own training wrote it."""
    return {"arch", "args.model"} <= weights.notes.keys() and weights.notes["arch"] == weights.notes["args.model"]


# an architecture that was said


def _as_said(
    said: str, tensors: Tensors, weights: sources.Weights, opening: Opening, where: str, configured: Configured
) -> tuple[Layout, Tensors]:
    """The layout of a library's model, wherever its weights stand in the file; and what has no place in it."""
    pixels = own_pixels(said)
    size = opening.size or configured.size or pixels.size
    arguments = configured.arguments | _arguments(opening)
    net = sketch(said, "imagenet", size, arguments)
    prefix, why = _prefix(said, net, tensors, weights, opening, where)
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


def _prefix(
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


def about(weights: sources.Weights, layout: str, revision: str | None = None) -> dict[str, Any]:
    """What is known of a file, for a card's origin."""
    known: dict[str, Any] = {"file": weights.path.name, "sha256": sha256(weights.path), "layout": layout}
    return known | ({"revision": revision} if revision else {})
