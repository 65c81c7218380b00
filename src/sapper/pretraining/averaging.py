"""The moving average of a network: the target of BYOL, the key encoder of MoCo."""

import copy
from math import cos, pi

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A copy of a network whose parameters follow the original's, θ' ← m·θ' + (1 − m)·θ. No gradient goes through it.

    Only parameters are averaged. The statistics of its BatchNorm are its own: they follow its own forward passes, which
    are in ``train`` mode while the model that holds it is.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        output: Tensor = self.network(views)
        return output

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """One step towards ``network``, of the share 1 − ``momentum``."""
        for own, other in zip(self.network.parameters(), network.parameters()):
            own.lerp_(other, 1 - momentum)


def momentum_at(done: float, first: float, last: float) -> float:
    """The momentum after the share ``done`` of all steps: from ``first`` to ``last`` by half a cosine."""
    return last - (last - first) * (cos(pi * done) + 1) / 2
