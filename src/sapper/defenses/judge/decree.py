"""DECREE: the smallest trigger that sends every image to one point of a backdoored encoder's feature space.

Threat model: an encoder whose weights are at hand, and unlabeled images; the attacker's trigger is a patch. No class,
no head and no label is known. A mask m and a pattern Δ are optimized,

    minimize   − mean_{i≠j} cos( f(x'_i), f(x'_j) ) + λ·3·‖m‖₁        x' = (1 − m)·x + m·Δ

with m ∈ [0, 1]^{1×H×W} and Δ ∈ [0, 1]^{3×H×W} as (tanh + 1)/2 of what is optimized. λ grows after runs of good steps
(mean cosine above ``success``) and shrinks after runs of bad ones; the smallest mask of a good step is the trigger.
With a backdoor a small one is enough:

    PL1 = ‖m‖₁ / (H·W)         flagged below 0.1

A verdict's score is 1 − PL1. Where no step was good there is no mask, and PL1 is 1: everything must be replaced.

Restarts are optimized as one batch on the same images. The best of them counts, and all norms are in the evidence: one
start alone may end far from its neighbor.

Source: Feng et al., "Detecting Backdoors in Pre-trained Encoders", CVPR 2023,
and the authors' ``main.py``: Adam with β = (0.5, 0.9) and rates 0.5, 0.1 and 0.05 (from epochs 0, 30 and 50 on
CIFAR-10), 1,000 images in batches of 128, success 0.99, λ from 1e-3 on times 5 or divided by 5 after more than 5 steps,
not below 1e-5, an end where an epoch succeeds and more than 10 steps brought no smaller mask. The threshold 0.1 is the
paper's; it does not transfer between encoders. The restarts are ours: the authors begin again when λ has reached its
end.
"""

import time
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import EncoderExaminer, Need
from sapper.defenses.inversion import (
    UNMEASURABLE,
    Triggers,
    encode,
    groups,
    measurable,
    shrink,
)
from sapper.defenses.measures import OfVerdicts, detection
from sapper.downstream import extract, mean_cosine
from sapper.encoders import Encoder
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import set_learning_rate, shuffled, steps_per_epoch
from sapper.triggers.searching import stamp, start, unit
from sapper.verdicts import Verdict, unscored


@dataclass(frozen=True, kw_only=True)
class Decree(Checked, EncoderExaminer):
    """Inverts the smallest mask that makes all features coincide (Feng et al., CVPR 2023).

    ``epochs`` at most, of all ``images`` in batches of ``batch``. ``rates``: (epoch, learning rate) from which on.
    ``success``: the mean cosine of a good step. ``cost``: λ, changed by ``change`` after more than ``patience`` good or
    bad steps in a row, never below ``least_cost``. ``early_stop``: steps without a smaller mask that end a restart
    whose epoch succeeds. ``restarts``: independent starts in one batch. ``threshold`` of PL1.
    """

    epochs: PositiveInt = 1000
    images: PositiveInt = 1000
    batch: PositiveInt = 128
    rates: tuple[tuple[int, PositiveFloat], ...] = ((0, 0.5), (30, 0.1), (50, 0.05))
    success: Annotated[float, Field(gt=0, lt=1)] = 0.99
    cost: PositiveFloat = 1e-3
    least_cost: PositiveFloat = 1e-5
    change: Annotated[float, Field(gt=1)] = 5.0
    patience: PositiveInt = 5
    early_stop: PositiveInt = 10
    restarts: PositiveInt = 1
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1

    kind: ClassVar[Literal["examine"]] = "examine"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = detection("score")
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Feng et al., CVPR 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """Whether ``encoder`` has a backdoor, by unlabeled ordinary ``images``.

        Evidence: ``PL1``, of every restart ``PL1s`` and its ``cosines``. The trigger is the smallest, if there is one.
        Where features cannot be measured there is no score, and ``why`` says so.
        """
        started = time.perf_counter()
        encoder.to(run.device).eval().requires_grad_(False)
        images = images.sample(self.images, run.child("images").generator())
        if not measurable(extract(encoder, images, run)):
            return unscored(UNMEASURABLE, 1 - self.threshold, time.perf_counter() - started)
        found = self.invert(encoder, images, run)
        smallest = int(found.norms.argmin())
        pl1 = (found.norms / found.masks[0].numel()).clamp_max(1.0)
        evidence: dict[str, Any] = {
            "PL1": float(pl1[smallest]),
            "PL1s": pl1.tolist(),
            "cosines": found.success.tolist(),
        }
        return Verdict(
            score=1 - float(pl1[smallest]),
            threshold=1 - self.threshold,
            flagged=float(pl1[smallest]) < self.threshold,
            trigger=found.mask(smallest) if found.norms[smallest].isfinite() else None,
            evidence=evidence,
            seconds=time.perf_counter() - started,
        )

    def parts(self) -> list["Decree"]:
        """It is one."""
        return [self]

    def passes(self, images: ImageSet) -> int:
        """Every restart sees all of its images in each epoch."""
        return self.epochs * min(self.images, len(images)) * self.restarts

    def invert(self, encoder: Encoder, images: ImageSet, run: Run) -> Triggers:
        """The smallest successful mask of every restart, on all of the images; the encoder is frozen."""
        pool = images.images.to(run.device)
        weights = start(self.restarts, images.size, run.child("start"))
        optimizer = torch.optim.Adam(weights, lr=self.rates[0][1], betas=(0.5, 0.9))
        best, schedule = Triggers.none(self.restarts, images.size, run.device), Schedule.start(self, run.device)
        order, steps = run.child("batches").generator(), steps_per_epoch(len(pool), self.batch)
        active = torch.arange(self.restarts, device=run.device)
        with run.progress.bar("trigger inversion (DECREE)", self.epochs * steps) as bar:
            for epoch in range(self.epochs):
                set_learning_rate(optimizer, next(rate for begin, rate in reversed(self.rates) if begin <= epoch))
                total = torch.zeros(len(active), device=run.device)
                for rows in shuffled(len(pool), self.batch, order):
                    masks, patterns = (unit(weight.detach()) for weight in weights)
                    cosine = self._descend(optimizer, weights, schedule.cost, encoder, pool[rows.to(run.device)], run)
                    improved = best.improve(active, masks.squeeze(1), patterns, cosine, self.success)
                    schedule.follow(cosine > self.success, improved, self)
                    total += cosine
                bar.advance(steps, f"{len(active)} of {self.restarts} left")
                finished = (total / steps > self.success) & (schedule.idle > self.early_stop)
                if finished.any():
                    active, schedule = active[~finished], schedule.take(~finished)
                    weights = shrink(optimizer, weights, ~finished)
                if len(active) == 0:
                    break
        return best

    def _descend(
        self,
        optimizer: torch.optim.Optimizer,
        weights: list[Tensor],
        cost: Tensor,
        encoder: Encoder,
        pixels: Tensor,
        run: Run,
    ) -> Tensor:
        """One step of Adam for every restart on the same images; the mean cosine of each, before it."""
        found = []
        optimizer.zero_grad(set_to_none=True)
        for some in groups(len(cost), pixels):
            masks, stamped = stamp([weight[some] for weight in weights], pixels)
            features = F.normalize(encode(encoder, stamped.flatten(0, 1), run), dim=1)
            cosines = mean_cosine(features.unflatten(0, (len(masks), -1)))
            (-cosines + cost[some] * 3 * masks.flatten(1).sum(1)).sum().backward()
            found.append(cosines.detach())
        optimizer.step()
        return torch.cat(found)


@dataclass
class Schedule:
    """λ of each restart, and counts, as vectors: good and bad steps in a row, steps without a smaller mask."""

    cost: Tensor
    good: Tensor
    bad: Tensor
    idle: Tensor

    @staticmethod
    def start(method: Decree, device: torch.device) -> "Schedule":
        """λ as it begins."""
        counts = [torch.zeros(method.restarts, dtype=torch.int64, device=device) for _ in range(3)]
        return Schedule(torch.full((method.restarts,), method.cost, device=device), *counts)

    def follow(self, succeeded: Tensor, improved: Tensor, method: Decree) -> None:
        """Count this step and change λ."""
        self.idle = torch.where(improved, 0, self.idle + 1)
        self.good = torch.where(succeeded, self.good + 1, 0)
        self.bad = torch.where(succeeded, 0, self.bad + 1)
        up, down = self.good > method.patience, self.bad > method.patience
        lower = (self.cost / method.change).clamp_min(method.least_cost)
        self.cost = torch.where(up, self.cost * method.change, torch.where(down, lower, self.cost))
        self.good = torch.where(up, 0, self.good)
        self.bad = torch.where(down, 0, self.bad)

    def take(self, rows: Tensor) -> "Schedule":
        """The schedule of some of the restarts."""
        return Schedule(*(getattr(self, field.name)[rows] for field in fields(self)))
