"""Training steps of 8 shadow encoders stacked into one with ``vmap``, against one encoder after another.

ResNet-10 of width 16, 64 views of 24 pixels each, forward and back, BatchNorm without running statistics. On an
accelerator, if there is one: there the question is open; on CPUs stacking is slower, and fleets do not stack.
"""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, stack_module_state, vmap

from benchmarks.timing import Row, paired
from sapper.encoders import build
from sapper.running import Run
from sapper.training.contrast import nt_xent

ENCODERS, VIEWS = 8, 64


def run(_dtype: torch.dtype) -> Row:
    """Both in float32: ``vmap`` has no convolutions under autocast."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    surroundings = Run(device=device)
    encoders = [
        replace_all_batch_norm_modules_(build(surroundings.child(f"{i}"), architecture="resnet10", width=16).backbone)
        for i in range(ENCODERS)
    ]
    for encoder in encoders:
        encoder.avgpool = _Mean()  # the adaptive pooling has no form for ``vmap``
    weights, buffers = stack_module_state(encoders)
    skeleton = copy.deepcopy(encoders[0]).to("meta")
    views = torch.rand(ENCODERS, VIEWS, 3, 24, 24, device=device)

    def loss(parameters: dict[str, Tensor], rest: dict[str, Tensor], batch: Tensor) -> Tensor:
        return nt_xent_of(functional_call(skeleton, (parameters, rest), (batch,)))

    def stacked() -> None:
        _wait(vmap(grad(loss))(weights, buffers, views)["conv1.weight"])

    def one_by_one() -> None:
        for encoder, batch in zip(encoders, views):
            features = encoder(batch)
            nt_xent(features, 0.5).backward()
            encoder.zero_grad()
        _wait(features)

    return paired(stacked, one_by_one, images=ENCODERS * VIEWS, rounds=5)


class _Mean(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3), keepdim=True)


def nt_xent_of(features: Tensor) -> Tensor:
    """NT-Xent without in-place work, which ``vmap`` does not know."""
    z = nn.functional.normalize(features, dim=1)
    similarity = z @ z.T / 0.5 - 1e9 * torch.eye(len(z), device=z.device)
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return nn.functional.cross_entropy(similarity, partner)


def _wait(result: Tensor) -> None:
    """Until an accelerator has finished."""
    result.sum().item()
