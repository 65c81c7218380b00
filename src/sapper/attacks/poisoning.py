"""What poisons share: how many rows, which ones, what is done to them, and the mark on what comes out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sapper.attacks.contracts import Poisoned
from sapper.attacks.target import Target, TargetPlan
from sapper.downstream import AnyHead
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import Change, ImageSet, Samples, to_float
from sapper.triggers import Patch, RandomPatch, Trigger

MARK = "POISONED"
"""In the name of every data set that an attack has been at."""


def poison_count(rate: float, samples: Samples, targets: tuple[Target, ...]) -> int:
    """How many rows ``rate`` of the set is, rounded, for each target. Raises ``SapperError`` if that is none."""
    if not targets:
        raise SapperError("an attack needs at least one target", where="target", remedy="add a [[target]] section")
    return selected(rate, len(samples))


def selected(rate: float, size: int) -> int:
    """How many of ``size`` samples a rate is, rounded. Raises ``SapperError`` if that is none."""
    count = round(rate * size)
    if count == 0:
        what = f"a rate of {rate:g} selects none of {size} samples"
        raise SapperError(what, where="rate", remedy=f"choose at least {1 / size:.2g}")
    return count


def draw(candidates: Tensor, count: int, what: str, run: Run) -> Tensor:
    """``count`` of the rows ``candidates`` at random, ascending. Raises ``SapperError`` if there are fewer ``what``."""
    check_enough(count, len(candidates), what)
    return candidates[torch.randperm(len(candidates), generator=run.generator())[:count]].sort().values


def check_enough(count: int, there: int, what: str) -> None:
    """Raises ``SapperError`` if there are fewer than ``count`` of ``what``."""
    if count > there:
        said = f"the rate asks for {count} {what}, and there are {there}"
        raise SapperError(said, where="rate", remedy=f"choose at most {there / count:.2g} times as much")


def images_of(samples: Samples) -> ImageSet:
    """The set, if it is one of images. Raises ``SapperError`` for another, and for one with canvases."""
    if not isinstance(samples, ImageSet):
        raise samples.error("this attack poisons images", "name a set of images")
    if samples.canvases is not None:
        raise samples.error("some of its images have canvases already", "poison a clean set")
    return samples


def rows_of_class(samples: Samples, class_name: str) -> Tensor:
    """The rows of a target's class in the pre-training set, whose labels the attacker alone looks at.

    The class is found by its name, since a task may number its classes otherwise.
    """
    if class_name not in samples.classes:
        what = f"there is no class {class_name!r} in it, whose samples the attacker poisons"
        raise samples.error(what, "choose a target whose class is in the pre-training set")
    return (samples.targets() == samples.classes.index(class_name)).nonzero().squeeze(1)


def stamp_class(
    samples: Samples,
    targets: tuple[Target, ...],
    rate: float,
    trigger_of: Callable[[Target, Run], Trigger],
    run: Run,
    by: str,
) -> Poisoned:
    """Stamp the share ``rate`` of the set, images of a target's class, for each target."""
    images, count = images_of(samples), poison_count(rate, samples, targets)
    pixels, taken = images.images.clone(), torch.zeros(len(images), dtype=torch.bool)
    for target in targets:
        part = run.child(f"target {target.name}")
        candidates = rows_of_class(images, target.class_name)
        rows = draw(candidates[~taken[candidates]], count, unpoisoned(target.class_name), part)
        pixels[rows] = stamped(images.images[rows], trigger_of(target, part))
        taken[rows] = True
    return marked(images, taken.nonzero().squeeze(1), by, images=pixels)


def check_stamp_class(samples: Samples, classes: Sequence[str], rate: float) -> None:
    """Raises ``SapperError`` for what ``stamp_class`` cannot do. ``classes``: the name of each target's class."""
    images, left = images_of(samples), dict[str, int]()
    for name in classes:
        count, there = selected(rate, len(images)), left.get(name, len(rows_of_class(images, name)))
        check_enough(count, there, unpoisoned(name))
        left[name] = there - count


def unpoisoned(class_name: str) -> str:
    """What is drawn from, in words."""
    return f"unpoisoned images of class {class_name!r}"


def stamped(images: Tensor, trigger: Change) -> Tensor:
    """uint8 images (N, 3, H, W) with a trigger, rounded to whole values again."""
    return torch.cat([(trigger(to_float(part)) * 255).round().to(torch.uint8) for part in images.split(500)])


def scattered(target: Target | TargetPlan, within: tuple[float, float], run: Run) -> RandomPatch:
    """The patch of a target at a place of its own in each image. Raises ``SapperError`` for another trigger."""
    trigger = patch_of(target)
    return RandomPatch(size=trigger.size, color=trigger.color, within=within, key_seed=run.child("places").seed)


def patch_of(target: Target | TargetPlan) -> Patch | RandomPatch:
    """The patch of a target. Raises ``SapperError`` for another trigger."""
    trigger = target.trigger
    if not isinstance(trigger, Patch | RandomPatch):
        what = f"target {target.name!r} has the trigger {trigger.kind!r}, and this attack places a patch"
        raise SapperError(what, where="trigger.kind", remedy="choose random_patch or patch")
    return trigger


class PlacesPatches:
    """For attacks that place the patch of each target themselves, ``within`` that part of an image's sides."""

    within: tuple[float, float]

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for a trigger that is no patch, or does not fit."""
        for plan in plans:
            placed = scattered(plan, self.within, Run())
            if plan.side is not None:
                placed.ranges(plan.side, plan.side)


def marked(samples: Samples, rows: Tensor, by: str, **content: Any) -> Poisoned:
    """The set with ``content`` in the place of its own; name and provenance say that it is poisoned, and by what."""
    said = f"{MARK} by {by}: {len(rows)} of {len(samples)} samples."
    provenance = f"{samples.provenance} {said}".strip()
    return Poisoned(
        samples=replace(samples, **content, name=f"{samples.name}-{MARK}", provenance=provenance), rows=rows
    )
