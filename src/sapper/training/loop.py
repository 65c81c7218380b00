"""The one epoch loop. A method says what a batch's losses are; everything else about a training is here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sapper.errors import SapperError
from sapper.running import Run
from sapper.training.batches import shuffled, steps_per_epoch
from sapper.training.checkpoint import Checkpoint, Curves, note
from sapper.training.schedules import set_learning_rate

Terms = Mapping[str, Tensor]
"""Named losses of a batch, scalars. Each becomes a curve: its mean over an epoch's steps."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a training: the batch's ``rows`` (int64 (B,), on the CPU), and where in the training it is.

    ``epoch`` and ``index`` (over all epochs) from 0 on; ``total`` steps in all. ``generator``: the epoch's randomness.
    """

    rows: Tensor
    epoch: int
    index: int
    total: int
    generator: torch.Generator

    @property
    def done(self) -> float:
        """The share of all steps that were done before this one, in [0, 1)."""
        return self.index / self.total


def weighted(weights: Mapping[str, float]) -> Callable[[Terms, Step, Curves], Tensor]:
    """For ``train``: minimize Σ weight·term. A term without a weight is shown and not minimized."""

    def combine(terms: Terms, _step: Step, _curves: Curves) -> Tensor:
        parts = [weight * terms[name] for name, weight in weights.items()]
        return sum(parts[1:], start=parts[0])

    return combine


def plain_sum(terms: Terms, _step: Step, _curves: Curves) -> Tensor:
    """For ``train``: minimize the sum of all terms."""
    first, *others = terms.values()
    return sum(others, start=first)


def train(
    model: nn.Module,
    terms: Callable[[Step], Terms],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[Step], float],
    *,
    count: int,
    batch: int,
    epochs: int,
    run: Run,
    label: str,
    checkpoint: Checkpoint | None = None,
    combine: Callable[[Terms, Step, Curves], Tensor] = plain_sum,
    mode: Callable[[], object] | None = None,
    after_step: Callable[[Step], None] | None = None,
    after_epoch: Callable[[], Mapping[str, float]] | None = None,
    order: Callable[[int], torch.Generator] | None = None,
    drop_last: bool = True,
) -> Curves:
    """Train ``model`` in place for ``epochs`` over rows 0…``count``-1, in random batches; the curves of all terms.

    ``terms(step)`` gives the batch's named losses, ``combine(terms, step, curves)`` the one number that is minimized,
    from the curves of finished epochs if it wants. ``rate(step)`` is the learning rate, the same for all parameters.
    ``mode`` is called before every epoch and puts the model into its training mode (``model.train`` by default).
    ``after_step`` is for what follows the optimizer (a moving average, a clamp), ``after_epoch`` for further values on
    the curves. ``order``: the generator of an epoch, by default seeded from the run and the epoch's number, so that a
    training that goes on from a ``checkpoint`` ends as one that was never interrupted.

    ``model`` holds all that the checkpoint must keep; ``optimizer`` may have a part of its parameters.
    Raises ``SapperError`` when a loss is not finite.
    """
    done, curves = checkpoint.restore(model, optimizer) if checkpoint else (0, {})
    steps = steps_per_epoch(count, batch) if drop_last else math.ceil(count / batch)
    with run.progress.bar(label, epochs * steps, done * steps) as bar:
        for epoch in range(done, epochs):
            (mode or model.train)()
            generator = order(epoch) if order else run.child(f"epoch {epoch}").generator()
            sums: dict[str, Tensor] = {}
            for number, rows in enumerate(shuffled(count, batch, generator, drop_last=drop_last)):
                step = Step(
                    rows=rows, epoch=epoch, index=epoch * steps + number, total=epochs * steps, generator=generator
                )
                set_learning_rate(optimizer, rate(step))
                losses = terms(step)
                loss = combine(losses, step, curves)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if after_step:
                    after_step(step)
                for name, value in losses.items():
                    sums[name] = sums[name] + value.detach() if name in sums else value.detach()
                bar.advance()
            means = {name: float(total / steps) for name, total in sums.items()}
            _check(means, label, epoch)
            note(curves, means | dict(after_epoch() if after_epoch else {}))
            bar.advance(0, ", ".join(f"{name} {series[-1]:.3f}" for name, series in curves.items()))
            if checkpoint:
                checkpoint.save(model, optimizer, epoch + 1, curves)
    return curves


def _check(means: Mapping[str, float], label: str, epoch: int) -> None:
    for name, value in means.items():
        if not math.isfinite(value):
            what = f"the training diverged: {name} is not finite in epoch {epoch + 1}"
            raise SapperError(what, where=label, remedy="lower its learning_rate")
