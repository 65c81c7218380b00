"""One step of BadEncoder: ours against the form of the authors' code, which repeats references and clean features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Row, paired
from sapper.attacks.badencoder import freeze_batch_norm, step_losses
from sapper.attacks.target import Target
from sapper.encoders import Encoder, build
from sapper.images import ImageSet
from sapper.run import Run
from sapper.triggers import Patch

BATCH = 64


def run() -> list[Row]:
    """A step, forward and backward, of a ResNet-18 of width 16 with one and with three references."""
    return [_step(references) for references in (1, 3)]


def _step(count: int) -> Row:
    surroundings = Run(seed=0)
    clean, attacked = build(surroundings, width=16).eval(), build(surroundings, width=16)
    freeze_batch_norm(attacked)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=surroundings.generator())
    references = ImageSet(images=pixels, name="references")
    target = Target(name="t", task="t", label=0, class_name="t", references=references, trigger=Patch())
    shadow = torch.rand(BATCH, 3, 32, 32, generator=surroundings.generator())
    anchors = pixels.float() / 255
    views = torch.rand(count * BATCH, 3, 32, 32, generator=surroundings.child("views").generator())
    with torch.no_grad():
        features, anchor_features = (F.normalize(clean(images), dim=1) for images in (shadow, anchors))

    def ours() -> None:
        terms = step_losses(attacked, shadow, (target,), anchors, views, features, anchor_features, surroundings)
        torch.stack(terms).sum().backward()

    def textbook() -> None:
        _as_published(attacked, clean, shadow, target, anchors, views.unflatten(0, (count, BATCH))).backward()

    return paired(ours, textbook, rounds=5, name=f"badencoder step, {count} references")


def _as_published(f_: Encoder, f: Encoder, x: Tensor, target: Target, anchors: Tensor, views: Tensor) -> Tensor:
    """``badencoder.py`` of the authors' code: every stream through both networks, references as whole batches."""
    with torch.no_grad():
        clean = F.normalize(f(x), dim=1)
        copies = [anchor.expand_as(x).contiguous() for anchor in anchors]
        clean_references = [F.normalize(f(copy), dim=1) for copy in copies]
    plain = F.normalize(f_(x), dim=1)
    losses = [-(plain * clean).sum(1).mean()]
    for copy, view, clean_reference in zip(copies, views, clean_references):
        triggered = F.normalize(f_(target.trigger(x)), dim=1)
        reference = F.normalize(f_(copy), dim=1)
        augmented = F.normalize(f_(view), dim=1)
        losses.append(-(triggered * reference).sum(1).mean() / len(copies))
        losses.append(-(augmented * clean_reference).sum(1).mean() / len(copies))
    return torch.stack(losses).sum()
