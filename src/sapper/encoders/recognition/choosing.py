"""Which of the networks in a file is the encoder that is meant?

Trainings keep more than one: a copy that follows the other by a moving average, a teacher, one network under two names.
Equal tensors are one network. Where a program's own way tells which is used afterwards, that one is meant; then the one
that the optimizer trained; then the one whose name does not say that it follows. Else the user chooses.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sapper.errors import SapperError

Tensors = dict[str, Tensor]
Shapes = tuple[tuple[int, ...], ...]

FAMILIES = {
    # what it is called here: its first layer, and a layer of the blocks behind it
    "resnet": ("conv1.weight", r"layer1\.0\.conv1\.weight"),
    "numbered": ("0.weight", r"[234]\.0\.conv1\.weight"),
    "transformer": ("patch_embed.proj.weight", r"blocks\.0\.(?:0\.)?attn\.qkv\.weight"),
    "clip": ("conv1.weight", r"transformer\.resblocks\.0\.attn\.in_proj_weight"),
    "hf-resnet": (
        "embedder.embedder.convolution.weight",
        r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
    ),
    "hf-transformer": (
        "embeddings.patch_embeddings.projection.weight",
        r"encoder\.layer\.0\.attention\.attention\.query\.weight",
    ),
    "vgg": ("features.0.weight", r"features\.1\.running_var"),
    "wide": ("conv1.weight", r"block1\.layer\.0\.conv1\.weight"),
    "mobile": ("conv1.weight", r"layers\.0\.conv1\.weight"),
}
"""Backbones that are known by their names, behind whatever prefix."""

FOLLOWERS = {"k", "key", "momentum", "target", "ema", "t", "m", "slow"}
"""Words in names of networks that follow another by a moving average."""

PREFERRED = (
    # the one that is used, the other, and whose way that is
    (r"(^|\.)teacher\.(module\.)?backbone\.", r"(^|\.)student\.(module\.)?backbone\.", "DINO's teacher, as DINO uses"),
    (r"^target_encoder\.(module\.)?$", r"^encoder\.(module\.)?$", "I-JEPA's target encoder, as its evaluation uses"),
    (r"^state_dict_ema\.", r"^state_dict\.", "the averaged copy, as timm loads"),
    (r"^model_ema\.", r"^model\.", "the averaged copy, as torchvision's training evaluates"),
)


@dataclass(frozen=True)
class Candidate:
    """A backbone in a file: what stands before its names, and its family."""

    prefix: str
    family: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The backbone that is meant, or none that is known. ``why``: how it was chosen where there were more.

    ``equal``: prefixes of the same tensors.
    """

    candidate: Candidate
    why: str | None = None
    equal: tuple[str, ...] = ()


def candidates(tensors: Tensors) -> tuple[list[Candidate], dict[str, int]]:
    """All backbones in it that take three channels; for the others by prefix how many they take."""
    found, odd = [], {}
    for family, (first, block) in FAMILIES.items():
        blocks = re.compile(rf"((?:.*\.)?){block}")
        followed = {match[1] for name in tensors if (match := blocks.fullmatch(name))}
        for name, value in tensors.items():
            if name != first and not name.endswith(f".{first}"):
                continue
            prefix = name.removesuffix(first)
            linear = family == "transformer" and value.ndim == 2  # patches as rows, as in old programs
            if prefix not in followed or not (value.ndim == 4 or linear):
                continue
            if linear or value.shape[1] == 3:
                found.append(Candidate(prefix, family))
            else:
                odd[prefix] = value.shape[1]
    return sorted(found, key=lambda each: len(each.prefix)), odd


def others(prefix: str, found: list[Candidate], equal: tuple[str, ...] = ()) -> dict[str, str]:
    """What the other networks in a file are to the one behind ``prefix``, by their prefixes."""
    known = {}
    for each in found:
        if each.prefix in equal:
            known[each.prefix] = "the same network again, as"
        elif each.prefix != prefix and not prefix.startswith(each.prefix):
            follows = FOLLOWERS & set(_words(each.prefix))
            known[each.prefix] = "a copy that follows the encoder," if follows else "another network,"
    return known


def behind(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def choose(
    found: list[Candidate], tensors: Tensors, where: str, prefix: str | None = None, optimizer: Shapes = ()
) -> Choice | None:
    """The backbone that is meant; none where there is none. ``prefix``: what the user said.

    Raises ``SapperError`` when several are there and nothing tells, or none stands behind the user's prefix.
    """
    if prefix is not None:
        return _said(found, prefix, where)
    if not found:
        return None
    groups = _equal(found, tensors)
    leaders = list(groups)
    why = None
    if len(leaders) > 1:
        narrowed = _narrowed(leaders, tensors, optimizer)
        if narrowed is None:
            raise _several(leaders, where)
        leaders, why = narrowed
    return Choice(candidate=leaders[0], why=why, equal=tuple(each.prefix for each in groups[leaders[0]][1:]))


def _narrowed(leaders: list[Candidate], tensors: Tensors, optimizer: Shapes) -> tuple[list[Candidate], str] | None:
    """The one of several that is meant, and why; none where nothing tells."""
    for used, other, why in PREFERRED:
        first = [each for each in leaders if re.search(used, each.prefix)]
        rest = [each for each in leaders if each not in first]
        if len(first) == 1 and all(re.search(other, each.prefix) and _alike(each, first[0], tensors) for each in rest):
            return first, why
    trained = _trained(leaders, tensors, optimizer)
    if len(trained) == 1:
        return trained, "the one that the optimizer trained"
    alone = [each for each in leaders if not FOLLOWERS & set(_words(each.prefix))]
    if len(alone) == 1 and all(_alike(each, alone[0], tensors) for each in leaders):
        return alone, "the others follow it, by their names"
    students = [each for each in alone if "student" in _words(each.prefix)]
    teachers = [each for each in alone if "teacher" in _words(each.prefix)]
    distilled = len(students) == 1 and len(students) + len(teachers) == len(alone)
    if distilled and not any(_alike(each, students[0], tensors) for each in teachers):  # else one may be an average
        return students, "the student of a distillation, whose teacher is another network"
    return None


def _alike(one: Candidate, other: Candidate, tensors: Tensors) -> bool:
    """Whether two are networks of the same names and shapes, as what follows another by an average is."""
    shapes = [{name: value.shape for name, value in _network(each, tensors).items()} for each in (one, other)]
    return shapes[0] == shapes[1]


def _words(prefix: str) -> list[str]:
    return re.split(r"[._]", prefix)


def _said(found: list[Candidate], prefix: str, where: str) -> Choice:
    dotted = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    exact = [each for each in found if each.prefix == dotted] or [
        each for each in found if each.prefix.startswith(dotted)
    ]
    if len(exact) != 1:
        there = ", ".join(repr(each.prefix) for each in exact or found) or "none"
        what = f"{len(exact)} known backbones stand behind {prefix!r}; in the file: {there}"
        raise SapperError(what, where=f"{where}: --prefix", remedy="name one of them, or say --arch as well")
    return Choice(candidate=exact[0], why="as was said" if len(found) > 1 else None)


def _several(leaders: list[Candidate], where: str) -> SapperError:
    prefixes = sorted(repr(each.prefix) for each in leaders)
    what = f"there are {len(leaders)} backbones in it, and nothing tells which is meant: {', '.join(prefixes)}"
    return SapperError(what, where=where, remedy=f"say which, as --prefix {prefixes[0].strip(chr(39))}")


def _equal(found: list[Candidate], tensors: Tensors) -> dict[Candidate, list[Candidate]]:
    """Networks with the same tensors in groups, by their first."""
    groups: dict[Candidate, list[Candidate]] = {}
    for each in found:
        own = _network(each, tensors)
        for first in groups:
            if first.family == each.family and _same(own, _network(first, tensors)):
                groups[first].append(each)
                break
        else:
            groups[each] = [each]
    return groups


def _same(ours: Tensors, theirs: Tensors) -> bool:
    """Bit by bit: that also holds for formats in which nothing can be compared."""
    return ours.keys() == theirs.keys() and all(
        (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape)
        and torch.equal(_bytes(value), _bytes(theirs[name]))
        for name, value in ours.items()
    )


def _bytes(value: Tensor) -> Tensor:
    return value.detach().contiguous().flatten().view(torch.uint8)


def _network(candidate: Candidate, tensors: Tensors) -> Tensors:
    """A candidate's tensors without heads beside it: those of the layers that its family has."""
    inside = behind(candidate.prefix, tensors)
    return {name: value for name, value in inside.items() if re.match(LAYERS[candidate.family], name)}


LAYERS = {
    "resnet": r"(conv|bn|layer)\d*\.",
    "numbered": r"[0-7]\.",
    "transformer": r"(patch_embed|blocks|norm|cls_token|pos_embed)",
    "clip": r"(conv1|ln_|transformer|class_embedding|positional_embedding)",
    "hf-resnet": r"(embedder|encoder)\.",
    "hf-transformer": r"(embeddings|encoder|layernorm)",
    "vgg": r"features\.",
    "wide": r"(conv1|block\d|bn1)\.",
    "mobile": r"(conv|bn|layers)\d*\.",
    "said": "",
}


def _shapes(candidate: Candidate, tensors: Tensors) -> list[tuple[int, ...]]:
    """Shapes of its parameters; statistics of normalization are none."""
    return [
        tuple(value.shape)
        for name, value in _network(candidate, tensors).items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]


def _trained(leaders: list[Candidate], tensors: Tensors, optimizer: Shapes) -> list[Candidate]:
    """Those whose parameters' shapes are all among the optimizer's; of more than one those with the most."""
    shapes = {each: Counter(_shapes(each, tensors)) for each in leaders}
    inside = {each: own.total() for each, own in shapes.items() if own <= Counter(optimizer)}
    most = max(inside.values(), default=0)
    return [each for each, count in inside.items() if count == most]
