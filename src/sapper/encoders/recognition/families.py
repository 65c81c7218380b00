"""Whose checkpoint is this? From tensors by name to an architecture and the weights for it.

Frameworks wrap a backbone differently, and name it differently: MoCo's ``module.encoder_q.``, solo-learn's
``backbone.``, BadEncoder's ``f.f.`` with numbers for layers. What they share is the backbone's own names and shapes. So
these are looked for behind whatever prefix (``choosing``), and a recognizer of their family tells what network it is.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from sapper.encoders.code import EXAMPLE
from sapper.encoders.options import Opening
from sapper.encoders.recognition import resnets, small_nets, transformers
from sapper.encoders.recognition.choosing import Candidate, Choice, Shapes, behind, candidates, choose, others
from sapper.encoders.recognition.layouts import (
    BY_CODE,
    OR_OWN,
    Backbone,
    Layout,
    UnknownNetworkError,
    Weights,
    shortened,
)
from sapper.encoders.recognition.programs import Notes, program_of
from sapper.errors import SapperError


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
        raise UnknownNetworkError(what, where=where, remedy=OR_OWN, lines=EXAMPLE)
    prefix, family = choice.candidate.prefix, choice.candidate.family
    inside = behind(prefix, tensors)
    family = _closer(family, inside)
    backbone = Backbone(
        weights=inside,
        names={name: f"{prefix}{name}" for name in inside},
        family=family,
        program=program_of(prefix, family, tensors, notes or {}),
        opening=opening,
        where=where,
    )
    _check_options(opening, family, where)
    _check_dilation(prefix, family, tensors, where)
    try:
        layout = RECOGNIZERS[family](backbone)
    except (LookupError, ArithmeticError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        what = "its shapes are those of no network"
        raise UnknownNetworkError(what, where=where, remedy=OR_OWN, lines=EXAMPLE) from error
    if not backbone.program.certain and opening.mean is None:
        told = f"normalization: {layout.normalization} (use --mean and --std if it was another)"
        layout = replace(layout, assumed=(*layout.assumed, told))
    return _with(layout, choice, prefix, found)


def not_rgb(channels: int, where: str) -> SapperError:
    """An encoder of gray or of many-channel images."""
    what = f"it takes images of {channels} channel{'s' if channels > 1 else ''}, not RGB"
    function = "give a function of your own that makes its channels from RGB and returns the network"
    remedy = f"{function}: --arch package.module:function --trust-code --size N"
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


def _check_dilation(prefix: str, family: str, tensors: Weights, where: str) -> None:
    """Refuse a ResNet of a segmentation network: its last layers are dilated, which no shape tells."""
    before = prefix.removesuffix("backbone.")
    beside = re.compile(re.escape(before) + r"(aux_classifier|decode_head|classifier\.0\.convs)\.")
    if prefix != before and family in OPTIONS["stem"] and any(beside.match(name) for name in tensors):
        what = (
            "it is the backbone of a segmentation network, whose last layers are dilated; the weights do not tell how"
        )
        raise SapperError(what, where=where, remedy=BY_CODE)


def _with(layout: Layout, choice: Choice, prefix: str, found: list[Candidate]) -> Layout:
    """The layout with how its prefix was chosen."""
    told = []
    if choice.why is not None:
        told.append(f"of several networks in the file that of {prefix!r}: {choice.why}")
    if choice.equal:
        told.append(f"the same network also stands behind {', '.join(map(repr, choice.equal))}")
    return replace(layout, prefix=prefix, told=(*told, *layout.told), others=others(prefix, found, choice.equal))


RECOGNIZERS: Mapping[str, Callable[[Backbone], Layout]] = {
    "resnet": resnets.resnet,
    "shortcut": resnets.shortcut,
    "preact": resnets.preact,
    "numbered": resnets.numbered,
    "hf-resnet": resnets.hf_resnet,
    "clip-resnet": resnets.clip_resnet,
    "clip": transformers.clip,
    "transformer": transformers.transformer,
    "hf-transformer": transformers.hf_transformer,
    "vgg": small_nets.vgg,
    "wide": small_nets.wide,
    "mobile": small_nets.mobile,
}
