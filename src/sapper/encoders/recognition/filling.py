"""Putting a file's tensors into a network, so that none of the network's own is lost on the way.

An audit of another network than the file's is worse than none. So what is left over inside the backbone, under names of
its own layers, refuses the file. What stands beside it, heads and copies and what belongs to a training, is left out by
rule, and told.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from sapper.encoders.recognition.layouts import OTHERWISE, shape, shortened
from sapper.encoders.sources import check_finite
from sapper.errors import SapperError

Tensors = dict[str, Tensor]

HEADS = (
    # beginnings of names beside a backbone's own, and what they are
    (r"(mask_token|masked_embed)$", "a mask token, for pre-training alone"),
    (r"(decoder\w*|mim_head|lm_head)(\.|$)", "a decoder, for pre-training alone"),
    (r"(queue(_\w+)?|memory_bank\w*|feature_bank\w*)(\.|$)", "a queue of earlier features"),
    (r"(prototypes?\w*|center|centroids?)(\.|$)", "prototypes of a pre-training"),
    (r"(logit_scale|logit_bias|temperature)$", "a temperature of a contrastive loss"),
    (r"(predictor\w*|prediction\w*|pred|q_head)\.", "a prediction head"),
    (r"(projector\w*|projection\w*|proj|proj_head|g)\.", "a projection head"),
    (r"(mlp|contrastive|dino|ibot|cls|seg|aux|clip|rec|recon)_head\.", "a projection head"),
    (r"(fc\d?|linear\d?|classifier|heads?\d?|head_\w+|logits?|last_linear|output)\.", "a classifier or head"),
    (r"pooler\.", "a pooler behind the features"),
    (r"(callbacks|loops|optimizer\w*|lr_schedulers?|hyper_parameters)\.", "a record of the training"),
    (r"(epoch|step|global_step|n_averaged|num_updates|loss|best_\w+|acc\w*)$", "a record of the training"),
)
"""What an encoder is without, by rule."""

AROUND = (
    # the same behind other prefixes, where more is known by a single word
    (r"(^|[._])(k|key|momentum|target|ema|t|m|slow|teacher|student)\.", "a copy or teacher of the encoder"),
    (r"(^|\.)(transformer|token_embedding|positional_embedding|ln_final|text\w*)(\.|$)", "a text tower"),
    (r"(^|\.)(callbacks|loops|lr_schedulers?)\.", "a record of the training"),
)

CONSTANTS = ("relative_position_index", "attn_mask", "relative_coords_table", "position_ids", "num_batches_tracked")
"""Ends of names of buffers of whole numbers that follow from a network's sizes, or only count."""

PARAMETERS = ("weight", "bias", "gamma", "beta", "weight_orig")
"""Last words of what layers compute with."""

ODD = "of a number format that no layer has"

ORDINARY = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)
"""Number formats that a network's weights come in."""


def fitting(
    tensors: Tensors,
    state: Mapping[str, Tensor],
    where: str,
    *,
    names: Mapping[str, str] | None = None,
    classifiers: Collection[str] = (),
    unread: Mapping[str, str] | None = None,
    lost: Mapping[str, Tensor] | None = None,
    leave_out: Collection[str] = (),
) -> tuple[Tensors, dict[str, str]]:
    """Of ``tensors`` those that a network with the state dict ``state`` takes; and what is left out, by name.

    ``names``: how the file calls each. ``classifiers``: layers that its architecture has and an encoder is without.
    ``unread``: names of what the file holds and nobody could read, and why. ``lost``: what has no place under the
    network's names, by the file's. ``leave_out``: what the user says that the network does not use.

    Counters of batch normalization that old files lack begin at 0. Raises ``SapperError`` when something is missing,
    has another shape or type, is not finite, or when something of the network itself would be left out.
    """
    names, unread, lost = names or {}, unread or {}, lost or {}
    wanted = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    wrong = {name: f"{name} is missing{_but(unread.get(name))}" for name in wanted if name not in tensors}
    for name in wanted.keys() & tensors.keys():
        theirs, ours = tensors[name], wanted[name]
        if theirs.shape != ours.shape:
            wrong[name] = f"{name} is {shape(theirs)}, not {shape(ours)}"
        elif theirs.is_floating_point() != ours.is_floating_point():
            wrong[name] = f"{name} is {theirs.dtype}, not {ours.dtype}"
    if wrong:
        told = shortened(wrong.values())
        what = f"the weights do not fit the architecture, at {len(wrong)} of {len(wanted)} places: {told}"
        raise SapperError(what, where=where, **_side_by_side(list(wrong), wanted, tensors, names))
    rest = {name: tensors.get(name) for name in [*tensors, *unread] if name not in state} | dict(lost)
    left = {name: _why(name, value, state, classifiers, leave_out) for name, value in rest.items()}
    left |= {name: unread[name] for name, why in left.items() if why == ODD and name in unread}
    kept = [name for name, why in left.items() if why is None]
    if kept:
        count = "1 tensor" if len(kept) == 1 else f"{len(kept)} tensors"
        what = f"{count} of the network would be left out: {shortened(names.get(name, name) for name in kept)}"
        remedy = f"{OTHERWISE}; or, if the network does not use them, --leave-out NAME"
        raise SapperError(f"{what}. What would be audited is not the file's network", where=where, remedy=remedy)
    check_finite({name: tensors[name] for name in wanted}, where)
    zero = torch.tensor(0)
    taken = {name: tensors[name] if name in wanted or _is_count(tensors.get(name)) else zero for name in state}
    return taken, {names.get(name, name): why for name, why in left.items() if why is not None}


MOST_LINES = 8
"""How many names of tensors a table of an error shows."""


def _side_by_side(
    wrong: Collection[str], wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, Any]:
    """What to do where weights do not fit: the names that are wrong, and beside them those of the file.

    Those of one shape stand beside one another, those with the same last word first. Where that pairs most of them,
    names may be all that differs.
    """
    ours = [name for name in wanted if name in wrong]
    free = {
        name: value
        for name, value in tensors.items()
        if (name not in wanted or name in wrong) and not name.endswith("num_batches_tracked")
    }
    pairs = []
    for name in ours:
        alike = [other for other, value in free.items() if value.shape == wanted[name].shape]
        match = next((other for other in alike if _last(other) == _last(name)), alike[0] if alike else None)
        if match is not None:
            free.pop(match)
        pairs.append((name, match))
    rows = [(f"{name} {shape(wanted[name])}", names.get(match, match) if match else "–") for name, match in pairs]
    rows += [("–", f"{names.get(name, name)} {shape(value)}") for name, value in free.items()]
    shown = rows[:MOST_LINES]
    left = max(len("the network wants"), *(len(row[0]) for row in shown))
    lines = [f"{'the network wants':{left}}   the file has", *(f"{ours:{left}}   {theirs}" for ours, theirs in shown)]
    if len(rows) > len(shown):
        lines.append(f"… and {len(rows) - len(shown)} more")
    remedy = "say another architecture with --arch"
    if 2 * sum(match is not None and match != name for name, match in pairs) > len(pairs):
        remedy = f"if only names differ, --keys OLD=NEW, or --keys FILE.json with an object of them; else {remedy}"
    return {"remedy": remedy, "lines": lines}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _but(why: str | None) -> str:
    return f" (it is {why})" if why else ""


def _why(
    name: str, value: Tensor | None, state: Mapping[str, Tensor], classifiers: Collection[str], said: Collection[str]
) -> str | None:
    """Why a tensor that the network does not take may be left out; none where it may not be."""
    if any(name == begin or name.startswith(f"{begin.rstrip('.')}.") for begin in said):
        return "what was said to be left out"
    if any(name.startswith(f"{layer}.") for layer in classifiers):
        return "a classifier or head"
    if name.endswith(CONSTANTS) and (value is None or not value.is_floating_point()):
        return "constants"
    own = {other.split(".")[0] for other in state}
    if name.split(".")[0] in own:
        return None
    for pattern, what in HEADS:
        if re.match(pattern, name):
            return what
    odd = value is None or value.dtype not in ORDINARY
    return ODD if odd and name.split(".")[-1] not in PARAMETERS else None


def _is_count(value: Tensor | None) -> bool:
    return value is not None and value.ndim == 0


def beside(name: str) -> str:
    """What a tensor outside of the backbone's prefix is, by its name."""
    inner = [name[at:] for at in (0, *(match.end() for match in re.finditer(r"\.", name)))]
    around = (what for pattern, what in AROUND if re.search(pattern, name))
    heads = (what for part in inner for pattern, what in HEADS if re.match(pattern, part))
    return next(around, None) or next(heads, None) or "something beside the encoder"


def told(left: Mapping[str, str]) -> list[str]:
    """What was left out, in words: ``4 tensors of a projection head (head.0.bias …)``."""
    counts = Counter(left.values())
    found = []
    for what, count in counts.items():
        first = min(name for name, why in left.items() if why == what)
        found.append(f"{count} tensor{'s' if count > 1 else ''}: {what} ({first}{' …' if count > 1 else ''})")
    return found
