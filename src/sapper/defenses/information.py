"""Mutual information by a small network: how much one variable tells of another, from samples of both.

    I(X; Y)  ≥  E_{p(x,y)}[ T(x, y) ]  −  log E_{p(x) p(y)}[ exp T(x, y) ]        for every function T

The bound of Donsker and Varadhan; T is trained to make it large. Source: Belghazi et al., "Mutual Information Neural
Estimation", ICML 2018. The network, an MLP with two hidden layers of 64, and Adam at 5e-3 are ours.
"""

import math

import torch
from torch import Tensor, nn

from sapper.running import Run

HIDDEN, RATE, BATCH = 64, 5e-3, 256
LAST = 0.25
"""The share of the steps, at the end, over whose mean the estimate is taken."""


def mutual_information(one: Tensor, other: Tensor, steps: int, run: Run) -> float:
    """The estimate in nats, 0 or more, from float rows (N, A) and (N, B) that belong together."""
    device, generator = one.device, run.generator()
    with run.seeded():
        net = nn.Sequential(
            nn.Linear(one.shape[1] + other.shape[1], HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
        ).to(device)
    one, other = _scaled(one), _scaled(other)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    bounds = []
    with run.progress.bar("mutual information", steps) as bar:
        for _ in range(steps):
            rows, strangers = (torch.randperm(len(one), generator=generator)[:BATCH].to(device) for _ in range(2))
            bound = donsker_varadhan(
                net(torch.cat((one[rows], other[rows]), 1)), net(torch.cat((one[rows], other[strangers]), 1))
            )
            optimizer.zero_grad(set_to_none=True)
            (-bound).backward()
            optimizer.step()
            bounds.append(float(bound.detach()))
            bar.advance()
    last = bounds[-max(1, round(LAST * steps)) :]
    return max(0.0, sum(last) / len(last))


def donsker_varadhan(joint: Tensor, apart: Tensor) -> Tensor:
    """The bound, from T on pairs that belong together (N, 1) and on pairs that do not (M, 1); a scalar."""
    return joint.mean() - (apart.flatten().logsumexp(0) - math.log(len(apart)))


def _scaled(values: Tensor) -> Tensor:
    """Each column with mean 0 and deviation 1, that T need not learn scales."""
    return (values - values.mean(0)) / values.std(0, correction=0).clamp_min(1e-6)
