"""Networks, or parts of them, that a training leaves alone."""

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """The module as it is now, in ``eval`` mode, with weights that never change."""
    return copy.deepcopy(module).eval().requires_grad_(False)


def freeze_batch_norm(module: nn.Module) -> None:
    """``train`` mode, except that BatchNorm keeps and uses its statistics and is not trained itself."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.eval().requires_grad_(False)


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that have gradients."""
    return [weight for weight in module.parameters() if weight.requires_grad]
