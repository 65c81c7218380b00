"""What inversions of triggers share: masks and patterns that are optimized, and the smallest ones that succeeded.

Many aims (classes, restarts) are optimized as one batch. Their parameters are independent and Adam works on each
element by itself, so that each aim goes the way it would go alone; those that are finished leave the batch.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sapper.downstream import extract, mean_cosine
from sapper.encoders import Encoder
from sapper.running import Run
from sapper.samples import Change, Samples, at_once, in_memory
from sapper.triggers import Mask
from sapper.triggers.searching import start, unit


@dataclass
class Triggers:
    """For each aim the smallest successful trigger so far; its norm is infinite where there is none.

    ``masks`` (N, H, W) and ``patterns`` (N, 3, H, W) in [0, 1], ``norms`` ‖m‖₁ and ``success`` (N,).
    """

    masks: Tensor
    patterns: Tensor
    norms: Tensor
    success: Tensor

    @staticmethod
    def none(count: int, size: tuple[int, int], device: torch.device) -> "Triggers":
        """Before anything was tried."""
        return Triggers(
            masks=torch.ones(count, *size, device=device),
            patterns=torch.zeros(count, 3, *size, device=device),
            norms=torch.full((count,), math.inf, device=device),
            success=torch.zeros(count, device=device),
        )

    def improve(self, rows: Tensor, masks: Tensor, patterns: Tensor, success: Tensor, enough: float) -> Tensor:
        """Keep those of ``masks`` that succeed and are smaller than what is known for ``rows``; which ones, bool."""
        norms = masks.flatten(1).sum(1)
        better = (success >= enough) & (norms < self.norms[rows])
        chosen = rows[better]
        self.masks[chosen], self.patterns[chosen] = masks[better], patterns[better]
        self.norms[chosen], self.success[chosen] = norms[better], success[better]
        return better

    def mask(self, row: int) -> Mask:
        """One of them by itself."""
        return Mask(mask=self.masks[row].cpu(), pattern=self.patterns[row].cpu())

    def smallest(self, classes: int, restarts: int) -> "Triggers":
        """Of the ``restarts`` of each class the one with the smallest norm."""
        rows = self.norms.view(classes, restarts).argmin(1) + torch.arange(classes, device=self.norms.device) * restarts
        return Triggers(self.masks[rows], self.patterns[rows], self.norms[rows], self.success[rows])


def shrink(optimizer: torch.optim.Optimizer, weights: list[Tensor], rows: Tensor) -> list[Tensor]:
    """The weights of some of the aims, with their moments in the optimizer."""
    kept = [weight.detach()[rows].requires_grad_() for weight in weights]
    for old, new in zip(weights, kept):
        carry(optimizer, old, new, rows)
    optimizer.param_groups[0]["params"] = kept
    return kept


def carry(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor, rows: Tensor) -> None:
    """What the optimizer knows of some rows of ``old``, it knows of ``new``, which has these alone."""
    state = optimizer.state.pop(old)
    optimizer.state[new] = {name: value[rows] if value.ndim else value for name, value in state.items()}


class CostRule(Protocol):
    """When λ is raised and lowered: parameters that methods which search a smallest mask have in common."""

    @property
    def patience(self) -> int: ...
    @property
    def cost(self) -> float: ...
    @property
    def raise_by(self) -> float: ...
    @property
    def lower_by(self) -> float: ...
    @property
    def early_stop(self) -> int: ...


@dataclass
class CostSchedule:
    """λ of each aim and what it depends on, as vectors: good and bad steps in a row, and whether λ ever moved."""

    cost: Tensor
    good: Tensor
    bad: Tensor
    idle: Tensor
    raised: Tensor
    lowered: Tensor

    @staticmethod
    def start(count: int, device: torch.device) -> "CostSchedule":
        """λ = 0 everywhere."""
        zeros = [torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3)]
        never = [torch.zeros(count, dtype=torch.bool, device=device) for _ in range(2)]
        return CostSchedule(torch.zeros(count, device=device), *zeros, *never)

    def follow(self, succeeded: Tensor, improved: Tensor, method: CostRule) -> Tensor:
        """Count this step, change λ; which aims are finished, bool."""
        self.idle = torch.where(improved, 0, self.idle + 1)
        self.good = torch.where(succeeded, self.good + 1, 0)
        self.bad = torch.where(succeeded, 0, self.bad + 1)
        up, down = self.good >= method.patience, (self.bad >= method.patience) & (self.cost > 0)
        first = up & (self.cost == 0)
        self.raised |= up & ~first
        self.lowered |= down
        grown = torch.where(first, method.cost, self.cost * method.raise_by)
        self.cost = torch.where(up, grown, torch.where(down, self.cost / method.lower_by, self.cost))
        self.good = torch.where(up, 0, self.good)
        self.bad = torch.where(down, 0, self.bad)
        return self.raised & self.lowered & (self.idle >= method.early_stop)

    def take(self, rows: Tensor) -> "CostSchedule":
        """The schedule of some of the aims."""
        return CostSchedule(*(getattr(self, field.name)[rows] for field in fields(self)))


class MaskSearch(CostRule, Protocol):
    """What searches of a smallest mask have in common beyond λ: the steps, and the share of hits that is a success."""

    @property
    def steps(self) -> int: ...
    @property
    def minibatches(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def success(self) -> float: ...


Descend = Callable[[torch.optim.Optimizer, list[Tensor], Tensor, Tensor, Tensor], Tensor]
"""A step of Adam: (optimizer, weights, aims that are left, λ of each, uint8 images) → the share that hits each aim."""


def smallest_masks(descend: Descend, count: int, pixels: Tensor, method: MaskSearch, run: Run, name: str) -> Triggers:
    """The smallest successful trigger of each of ``count`` aims, on uint8 images (N, 3, H, W) drawn at random.

    Neural Cleanse's search: λ rises while a mask succeeds and falls while it does not; whatever is finished leaves.
    """
    size = pixels.shape[2], pixels.shape[3]
    weights = start(count, size, run.child("start"))
    optimizer = torch.optim.Adam(weights, lr=method.learning_rate, betas=(0.5, 0.9))
    best, schedule = Triggers.none(count, size, run.device), CostSchedule.start(count, run.device)
    pixels, generator = pixels.to(run.device), run.child("batches").generator()
    active = torch.arange(count, device=run.device)
    with run.progress.bar(f"trigger inversion ({name})", method.steps) as bar:
        for _ in range(method.steps):
            hits = torch.zeros(len(active), device=run.device)
            for _ in range(method.minibatches):
                rows = torch.randint(len(pixels), (method.batch,), generator=generator).to(run.device)
                hits += descend(optimizer, weights, active, schedule.cost, pixels[rows])
            masks, patterns = (unit(weight.detach()) for weight in weights)
            success = hits / method.minibatches
            improved = best.improve(active, masks.squeeze(1), patterns, success, method.success)
            finished = schedule.follow(success >= method.success, improved, method)
            bar.advance(1, f"{len(active)} of {count} left")
            if finished.any():
                active, schedule = active[~finished], schedule.take(~finished)
                weights = shrink(optimizer, weights, ~finished)
            if len(active) == 0:
                break
    return best


CONSISTENT = 1.4826
"""Makes the median absolute deviation of a normal sample its standard deviation."""


def anomaly_index(norms: list[float], least: float = 1e-6) -> tuple[float | None, int | None]:
    """How many deviations the smallest finite norm lies below the median of the finite ones, and whose it is.

    None where fewer than three are finite. A deviation counts as ``least`` at least. Where that is a millionth of a
    pixel and all others are equal, the index of a smaller norm is huge, that of an equal one 0.
    """
    finite = [norm for norm in norms if math.isfinite(norm)]
    if len(finite) < 3:
        return None, None
    median = statistics.median(finite)
    deviation = CONSISTENT * statistics.median(abs(norm - median) for norm in finite)
    return (median - min(finite)) / max(deviation, least), norms.index(min(finite))


def encode(encoder: Encoder, images: Tensor, run: Run) -> Tensor:
    """Features, float (N, D), of float images (N, 3, H, W), with gradients.

    Of more images than memory is meant for (``in_memory``) in chunks, of which each is computed once more for its
    gradient.
    """
    most = in_memory(images)
    with run.autocast():
        if len(images) <= most:
            return encoder(images).float()
        parts = [checkpoint(encoder, chunk, use_reentrant=False).float() for chunk in images.split(most)]
        return torch.cat(parts)


def groups(count: int, images: Tensor) -> list[slice]:
    """``count`` aims in groups: as many as are fast at once with gradients, each on all of the images (N, 3, H, W)."""
    several = max(1, at_once(images) // len(images))
    return [slice(start, min(start + several, count)) for start in range(0, count, several)]


SMALLEST = 1e-6
"""A spread below this is rounding."""

NEAR, NEIGHBORS = 1 / 16, 4
"""The share of ordinary images that are compared with the changed ones, and how many there are at least."""


def spread_of(features: Tensor) -> float:
    """1 − the mean cosine of two of the features, float (N, D); infinite where that is not a number."""
    spread = 1 - float(mean_cosine(F.normalize(features, dim=1)))
    return math.inf if math.isnan(spread) else max(SMALLEST, spread)


def neighborhood(plain: Tensor, changed: Tensor) -> float:
    """The spread of those plain images that are nearest to where the changed ones lie; features (N, D) and (M, D)."""
    point = F.normalize(F.normalize(changed, dim=1).mean(0), dim=0)
    count = max(NEIGHBORS, round(len(plain) * NEAR))
    nearest = (F.normalize(plain, dim=1) @ point).topk(min(count, len(plain))).indices
    return spread_of(plain[nearest])


def measurable(features: Tensor) -> bool:
    """Whether normalized features (N, D) of ``extract`` have length 1.

    Those of an encoder whose features are not finite, or too long or too short for a norm, do not.
    """
    return bool(((features.norm(dim=1) - 1).abs() < 0.01).all())


UNMEASURABLE = "features of ordinary images cannot be measured"

ALIKE = 0.9
"""Features with this cosine or more are said to lie at one point."""


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """What a change does to the features of ordinary images.

    ``spread``: 1 − the mean cosine of two changed images' features; ``spread_before`` of the images as they are.
    ``gathered``: the share of changed images whose features lie at one point (``ALIKE``), the direction of their mean;
    ``there_before``: the share of images as they are that lie there, too.
    """

    spread_before: float
    spread: float
    gathered: float
    there_before: float
    images: int


@torch.no_grad()
def collapse(encoder: Encoder, change: Change, images: Samples, run: Run) -> Collapse | None:
    """Measure a change on two samples or more; none where features are not ``measurable``."""
    before, after = (extract(encoder, images, run, each) for each in (None, change))
    if not measurable(before) or not measurable(after):
        return None
    point = F.normalize(after.mean(0), dim=0)
    return Collapse(
        spread_before=1 - float(mean_cosine(before)),
        spread=max(0.0, 1 - float(mean_cosine(after))),
        gathered=float((after @ point >= ALIKE).double().mean()),
        there_before=float((before @ point >= ALIKE).double().mean()),
        images=len(images),
    )
