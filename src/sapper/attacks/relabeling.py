"""What poisonings of a labeled training set share: rows are drawn, get the trigger, and get the target's label."""

from collections.abc import Callable

import torch
from torch import Tensor

from sapper.attacks.contracts import Poisoned
from sapper.attacks.poisoning import draw, images_of, marked, poison_count, stamped
from sapper.attacks.target import Target
from sapper.running import Run
from sapper.samples import Change, ImageSet, PixelSpec, Samples


def relabel(
    samples: Samples,
    targets: tuple[Target, ...],
    rate: float,
    run: Run,
    *,
    from_target_class: bool,
    change: Callable[[Target], Change],
    by: str,
) -> Poisoned:
    """``rate`` of all rows for each target, drawn at random, with ``change(target)`` made to them and its label.

    No row serves two targets. ``from_target_class``: whether rows of a target's own class may be drawn for it. ``by``:
    the attack's name. Raises ``SapperError`` where the rate selects nothing, or more rows than there are.
    """
    count, images = poison_count(rate, samples, targets), images_of(samples)
    labels, pixels = images.targets().clone(), images.images.clone()
    free, taken = torch.ones(len(images), dtype=torch.bool), list[Tensor]()
    for target in targets:
        _check(images, target)
        allowed = free if from_target_class else free & (labels != target.label)
        part = run.child(f"rows {target.name}")
        rows = draw(allowed.nonzero().squeeze(1), count, "images that can be poisoned", part)
        pixels[rows] = stamped(pixels[rows], change(target))
        labels[rows], free[rows] = target.label, False
        taken.append(rows)
    return marked(images, torch.cat(taken).sort().values, by, images=pixels, labels=labels)


def _check(images: ImageSet, target: Target) -> None:
    """Raises ``SapperError`` for a class that the task does not have, or a trigger that does not fit."""
    if not 0 <= target.label < len(images.classes):
        what = f"class {target.label} is none of the {len(images.classes)} classes"
        raise images.error(f"{what}, target {target.name!r}", "name a class of the task")
    if images.classes[target.label] != target.class_name:
        what = f"class {target.label} is {images.classes[target.label]}, not {target.class_name}: another set's classes"
        raise images.error(f"{what}, target {target.name!r}", "attack a task of the set that is poisoned")
    target.trigger.check(PixelSpec(size=images.size[0]))
