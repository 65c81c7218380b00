"""From a file's tensors to an encoder: the backbone is recognized, or built as the user said, and filled."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sapper.encoders import sources
from sapper.encoders.backbones import blueprint, build, last_linear
from sapper.encoders.encoder import Encoder
from sapper.encoders.keys import new_names
from sapper.encoders.names import OWN, is_code
from sapper.encoders.options import Opening
from sapper.encoders.recognition import families, filling, wrappers
from sapper.encoders.recognition.heads import head_of
from sapper.encoders.recognition.layouts import Configured, Layout, UnknownNetworkError
from sapper.encoders.recognition.said import as_code, as_said
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


def recognized(
    weights: sources.Weights, run: Run, opening: Opening, where: str, configured: Configured = Configured()
) -> Found:
    """The encoder whose weights these are: recognized by names and shapes, or of the architecture that was said.

    Raises ``SapperError`` when it is not known which network is meant, or when a part of it would be left out.
    """
    weights, told = _renamed(weights, opening, where)
    tensors, lost = weights.tensors, dict[str, Tensor]()
    if opening.architecture is not None and is_code(opening.architecture):
        encoder, layout = as_code(opening.architecture, tensors, weights, opening, where, configured)
    elif opening.architecture is not None and opening.architecture not in OWN:
        layout, lost = as_said(opening.architecture, tensors, weights, opening, where, configured)
        encoder = _built(layout, lost, weights, run, opening, where, configured)
    else:
        layout, lost = _by_itself(tensors, weights, opening, where, configured)
        encoder = _built(layout, lost, weights, run, opening, where, configured)
    taken, left = _fit(layout, encoder.backbone.state_dict(), lost, weights, opening, where)
    encoder.backbone.load_state_dict(taken)
    source = f"from {configured.source}" if configured.mean and configured.std else layout.normalization
    left |= _beside([name for name in tensors if not name.startswith(layout.prefix)], layout)
    encoder.head = head_of(tensors, left, encoder.feature_size, configured.classes)
    known = {
        "left_out": [*filling.told(left), *_not_tensors(weights, layout.prefix)],
        "head": [] if encoder.head is None else [f"{len(encoder.head.bias)} classes, {encoder.head.name}"],
        "assumed": list(layout.assumed),
        "recognized": [*told, *layout.told],
    }
    shown = {name: value for name, value in known.items() if value}
    prefix = {"prefix": layout.prefix} if layout.prefix else {}
    return Found(encoder, source or ASSUMED, about(weights, layout.source) | prefix | shown)


def _renamed(weights: sources.Weights, opening: Opening, where: str) -> tuple[sources.Weights, list[str]]:
    """The file's content by the names that the network has: without what tools put around them, and as was said."""
    tensors = wrappers.unwrapped(weights.tensors)
    unread = {wrappers.without_words(name): why for name, why in weights.unread.items()}
    left_out = {wrappers.without_words(name): what for name, what in weights.left_out.items()}
    plain = replace(weights, tensors=tensors, unread=unread, left_out=left_out)
    if not opening.keys:
        return plain, []
    new = new_names(list(dict.fromkeys([*tensors, *unread, *left_out])), opening.keys, where)
    changed = sum(name != new[name] for name in tensors)
    named = replace(
        plain,
        tensors={new[name]: value for name, value in tensors.items()},
        unread={new[name]: why for name, why in unread.items()},
        left_out={new[name]: what for name, what in left_out.items()},
    )
    return named, [f"names of {changed} tensors changed as was said (--keys)"]


def _built(
    layout: Layout,
    lost: Tensors,
    weights: sources.Weights,
    run: Run,
    opening: Opening,
    where: str,
    configured: Configured,
) -> Encoder:
    """The layout's network, not yet filled. Raises ``SapperError`` where the weights do not fit it."""
    size = opening.size or layout.input_size
    if layout.architecture in OWN:
        size = layout.input_size  # the network takes any; what is shown to it is said later
    if not layout.architecture.startswith("open_clip:"):
        # Shapes first: a small file may name a network that fills the memory.
        plan = blueprint(layout.architecture, layout.width, layout.stem, size, layout.arguments)
        _fit(layout, plan, lost, weights, opening, where)
    return build(
        run,
        architecture=layout.architecture,
        width=layout.width,
        stem=layout.stem,
        input_size=size,
        mean=configured.mean or layout.pixels.mean,
        std=configured.std or layout.pixels.std,
        arguments=layout.arguments,
    )


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
    layout, lost = as_said(f"timm:{named}", tensors, weights, opening, where, configured)
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
    return SapperError(what, where=error.where, remedy=error.remedy, lines=error.lines)


def _named(weights: sources.Weights) -> str | None:
    """The model of timm's that a checkpoint says it is."""
    import timm

    said = [weights.notes.get(key) for key in ("arch", "args.model", "args.arch", "hyper_parameters.backbone.name")]
    models = set(timm.list_models())
    return next((str(name) for name in said if name in models), None)


def _by_timm(weights: sources.Weights) -> bool:
    """Whether timm's own training wrote it."""
    return {"arch", "args.model"} <= weights.notes.keys() and weights.notes["arch"] == weights.notes["args.model"]


def about(weights: sources.Weights, layout: str, revision: str | None = None) -> dict[str, Any]:
    """What is known of a file, for a card's origin."""
    known: dict[str, Any] = {"file": weights.path.name, "sha256": sha256(weights.path), "layout": layout}
    return known | ({"revision": revision} if revision else {})
