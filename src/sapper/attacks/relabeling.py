"""What poisonings of a labeled training set share: rows are drawn, get the trigger, and get the target's label."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from sapper.attacks.contracts import Poisoned
from sapper.attacks.target import Target
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import Change, ImageSet, PixelSpec, Samples

S = TypeVar("S", bound=Samples)


def relabel(
    samples: Samples,
    targets: tuple[Target, ...],
    rate: float,
    run: Run,
    *,
    from_target_class: bool,
    change: Callable[[Target], Change],
) -> Poisoned:
    """``rate`` of all rows for each target, drawn at random, with ``change(target)`` made to them and its label.

    No row serves two targets. ``from_target_class``: whether rows of a target's own class may be drawn for it.
    Raises ``SapperError`` where the rate selects nothing, or more rows than there are.
    """
    if not targets:
        raise SapperError("an attack needs at least one target", where="target", remedy="add a [[target]] section")
    labels = samples.targets().clone()
    poisoned, free = samples, torch.ones(len(samples), dtype=torch.bool)
    taken = []
    for target in targets:
        rows = _draw(samples, target, rate, free if from_target_class else free & (labels != target.label), run)
        poisoned = changed(poisoned, rows, change(target))
        labels[rows], free[rows] = target.label, False
        taken.append(rows)
    rows = torch.cat(taken).sort().values
    return Poisoned(samples=marked(replace(poisoned, labels=labels), len(rows)), rows=rows)


def changed(samples: S, rows: Tensor, change: Change) -> S:
    """The set with a change made to some rows, rounded to whole pixel values.

    Raises ``SapperError`` for a set of something else than images.
    """
    if not isinstance(samples, ImageSet):
        raise samples.error("this attack changes pixels, and these are no images", "name a set of images")
    images = samples.images.clone()
    for part in rows.split(samples.at_once(gradients=False)):
        images[part] = (255 * change(samples.batch(part))).round().clamp(0, 255).to(torch.uint8)
    return replace(samples, images=images)


def marked(samples: S, count: int) -> S:
    """The set under a name that says that there is poison in it, so that nobody takes it for the original."""
    told = f"{samples.provenance} POISONED by sapper: {count} of {len(samples)} samples.".strip()
    return replace(samples, name=f"{samples.name}-POISONED", provenance=told)


def _draw(samples: Samples, target: Target, rate: float, allowed: Tensor, run: Run) -> Tensor:
    """Sorted rows for one target, int64 (P,), of those ``allowed``, bool (N,)."""
    if not 0 <= target.label < len(samples.classes):
        what = f"class {target.label} is none of the {len(samples.classes)} classes"
        raise samples.error(f"{what}, target {target.name!r}", "name a class of the task")
    if isinstance(samples, ImageSet):
        target.trigger.check(PixelSpec(size=samples.size[0]))
    count, pool = round(rate * len(samples)), allowed.nonzero().squeeze(1)
    if count == 0:
        raise samples.error(f"a rate of {rate} of {len(samples)} samples selects none", "raise rate")
    if count > len(pool):
        raise samples.error(f"a rate of {rate} asks for {count} samples, {len(pool)} can be poisoned", "lower rate")
    order = torch.randperm(len(pool), generator=run.child(f"rows {target.name}").generator())
    return pool[order[:count]].sort().values
