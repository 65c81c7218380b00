"""One training on several processes: each takes its share of every batch through the encoder.

All processes draw the same batches and the same views, with the same seeds. Inside ``in_shares`` the encoder f takes
rows of its own share alone, and what it gives is gathered. So whatever follows (heads, losses, optimizers) sees the
whole batch on every process, as if there were one:

    f(x) = gather_r f(x_r)        dL/dθ = Σ_r dL_r/dθ        BatchNorm: mean and variance over all shares

So the losses are those of one process, up to the order in which floats are added, whatever the method is. The encoder
is most of the work, and only it is divided.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sapper.running import Run


@contextmanager
def in_shares(encoder: nn.Module, run: Run) -> Iterator[None]:
    """Divide the encoder's batches between the ``run``'s processes; does nothing where there is one.

    The processes are those of torch's default group, each with the same encoder on its own device.
    """
    if run.processes == 1:
        yield
        return
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    before = [type(module) for module in norms]
    rows: list[int] = []

    def divide(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        batch, *rest = inputs
        rows.append(len(batch))
        return batch.tensor_split(run.processes)[dist.get_rank()], *rest

    def gather(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return _Gather.apply(output, rows.pop(), run.processes)

    hooks = [encoder.register_forward_pre_hook(divide), encoder.register_forward_hook(gather)]
    hooks += [weight.register_post_accumulate_grad_hook(_add_up) for weight in encoder.parameters()]
    for module in norms:
        module.__class__ = _SharedNorm
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, kind in zip(norms, before):
            module.__class__ = kind


def _add_up(weight: Tensor) -> None:
    """The gradient of all shares."""
    assert weight.grad is not None
    dist.all_reduce(weight.grad)


class _Gather(torch.autograd.Function):
    """The outputs of all shares. The loss is the same on every process, so each needs its own rows' gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, rows: int, processes: int) -> Tensor:
        own, (most, few) = output.contiguous(), (-(-rows // processes), rows // processes)
        longer = rows % processes
        counts = [most if rank < longer else few for rank in range(processes)]
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(own)
        filled = torch.cat((own, own.new_zeros(most - len(own), *own.shape[1:])))
        parts = [torch.empty_like(filled) for _ in range(processes)]
        dist.all_gather(parts, filled)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.start : ctx.start + ctx.count].contiguous(), None, None


class _Sum(torch.autograd.Function):
    """The sum over all shares, and of its gradients."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        whole = value.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone()
        dist.all_reduce(whole)
        return whole


class _SharedNorm(_BatchNorm):
    """BatchNorm over the rows of all shares while it trains."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        places = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        values = input.float()
        count = values.new_tensor(values.numel() / values.shape[1])
        dist.all_reduce(count)
        mean = _Sum.apply(values.sum(places)) / count
        centered = values - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(places)) / count
        self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        output = centered / (variance + self.eps).sqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as the layer that this one stands for has them."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance, part)
