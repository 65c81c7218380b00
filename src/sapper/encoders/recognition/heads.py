"""The classifier that stands behind an encoder in its file: its last linear layer, where that is all there is."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sapper.encoders.encoder import Head

CLASSIFIER = "a classifier or head"
"""What ``filling`` calls it."""

OF_PRETRAINING = ("queue", "prototypes", "prediction head", "projection head", "temperature", "copy or teacher")
"""Words for what stands beside an encoder that was trained without classes: there, a last linear layer has none."""


def head_of(
    tensors: Mapping[str, Tensor], left: Mapping[str, str], features: int, names: tuple[str, ...]
) -> Head | None:
    """The linear layer (K, features) among what was left out of a file; none where it is not the only thing behind.

    ``left``: why each tensor was left out (``filling``). ``names`` of the classes, where the file's surroundings say
    them; those of another number are of something else.
    """
    if any(word in why for why in left.values() for word in OF_PRETRAINING):
        return None
    own = {name: tensors[name] for name, why in left.items() if why == CLASSIFIER and name in tensors}
    weights = [name for name, value in own.items() if value.ndim > 1]
    if len(weights) != 1 or own[weights[0]].shape[1:] != (features,) or len(own[weights[0]]) < 2:
        return None
    weight = own.pop(weights[0]).float()
    biases = [value for value in own.values() if value.shape == weight.shape[:1]]
    if len(biases) != len(own) or len(biases) > 1:
        return None
    bias = biases[0].float() if biases else torch.zeros(len(weight))
    if not weight.isfinite().all() or not bias.isfinite().all():
        return None
    return Head(weight, bias, weights[0], names if len(names) == len(weight) else ())
