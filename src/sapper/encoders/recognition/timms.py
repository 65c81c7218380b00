"""timm's models from tensors under names that timm knows: its own, its older ones, and the original programs'.

timm brings foreign names to its own by a filter that each of its model files has. Here the filter alone is used, and it
is watched: what goes into it and has no effect on what comes out would be lost without a word.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]

FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What timm's model files call their filters."""


MOST_TRIED = 500
"""Tensors whose effect is tried one by one; of more than that each counts as one without effect."""


def renamed(tensors: Tensors, net: nn.Module, name: str) -> tuple[Tensors, dict[str, str], list[str]]:
    """The tensors by timm's names for the model ``name``: with what the file calls them, and what has no effect.

    Raises whatever timm's filters raise for tensors that are not this model's.
    """
    convert = _filter_of(name)
    if convert is None:
        return dict(tensors), {key: key for key in tensors}, []
    out = _converted(convert, tensors, net)
    places = {_place(value): key for key, value in tensors.items()}
    names = {key: places.get(_place(value), key) for key, value in out.items()}
    claimed = set(names.values())
    unclaimed = [key for key in tensors if key not in claimed]
    few = len(unclaimed) <= MOST_TRIED
    lost = [key for key in unclaimed if not (few and _matters(key, convert, tensors, net, out))]
    return out, names, lost


def matches(tensors: Tensors, net: nn.Module, name: str | None) -> int:
    """How many of the network's weights are among the tensors; ``name`` of a model of timm's, for its filter."""
    convert = _filter_of(name) if name is not None else None
    try:
        out = dict(tensors) if convert is None else _converted(convert, tensors, net)
    except Exception:  # a filter that stumbles over names that are not its own
        out = dict(tensors)
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    return sum(key in out and out[key].shape == value.shape for key, value in state.items())


def _filter_of(name: str) -> Callable[..., Any] | None:
    """The filter of the file that a model of timm's is built in."""
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(name).__module__]
    return next((found for each in FILTERS if (found := getattr(module, each, None)) is not None), None)


def _converted(convert: Callable[..., Any], tensors: Mapping[str, Tensor], net: nn.Module) -> Tensors:
    try:
        found = convert(dict(tensors), net)
    except TypeError:  # some take no model
        found = convert(dict(tensors))
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def _place(value: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers lie, and how many: a tensor and its other shapes have one place."""
    return value.data_ptr(), value.numel()


def _matters(key: str, convert: Callable[..., Any], tensors: Tensors, net: nn.Module, out: Tensors) -> bool:
    """Whether what comes out of the filter depends on a tensor: it is changed, and what comes out is compared."""
    value = tensors[key]
    changed = tensors | {key: ~value if value.dtype == torch.bool else value + 1}
    other = _converted(convert, changed, net)
    return other.keys() != out.keys() or any(
        other[name].shape != out[name].shape or not torch.equal(other[name], out[name]) for name in out
    )
