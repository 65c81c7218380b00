"""Poison frogs: one training image, correctly labeled, that lies where the chosen test image lies.

Threat model: the attacker adds an image to the downstream training set. People look at it and label it as what it
shows, the base class b. It knows the encoder f, which the victim keeps frozen, and cannot touch the test image x_t,
which shall be classified as b, too. With f the normalized features that the head is given, and pixels from 0 to 255,

    p = argmin ‖f(x) − f(x_t)‖ + β/2·‖x − b‖²           β = β0·(D / dim x)²

by forward–backward splitting from x = b on: a step of size λ down the first term, the exact minimum of the second
around it, pixels cut to their range,

    x̂ = x − λ·∇‖f(x) − f(x_t)‖        x ← clip( (x̂ + λβ·b) / (1 + λβ) )

A step that makes the objective rise is undone, and halves λ. The poison is rounded to whole pixel values before anybody
trains on it. Each chosen image has its own poison and its own head, trained from scratch.

Source: Shafahi et al., "Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks", NeurIPS 2018, and
``ashafahi/inceptionv3-transferLearn-poison`` (``util_one_shot_kill_attack.py``): the gradient is the norm's, not its
square's; λ starts at 500·255, β0 = 0.25, at most 1500 steps, one poison among 900 images of either of two classes, the
base the image of its class that is nearest to x_t. The code compares with the mean objective of 40 steps and halves in
some of them only; here every rise counts. There f is InceptionV3 with features that are not normalized, and D = 2048;
fewer features than training images, as small encoders have, leave the head less room for a single poison. All chosen
images are worked on as one batch, each with a step size of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.attacks.contracts import Hits, Need
from sapper.attacks.poisoning import marked
from sapper.attacks.target import TargetPlan
from sapper.downstream import AnyHead, build, extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, Samples, joined


@dataclass(frozen=True, kw_only=True)
class FeatureCollision(Checked):
    """One clean-label poison for each chosen test image (Shafahi et al., NeurIPS 2018).

    ``base``: the class that chosen images shall get; ``victim``: the class that they are of. The task has these two
    classes. ``inputs``: how many are chosen. ``per_class``: training images of each of the two. ``beta`` is β0,
    ``step`` is λ at first.
    """

    base: NonNegativeInt = 0
    victim: NonNegativeInt = 1
    inputs: PositiveInt = 100
    per_class: PositiveInt = 900
    beta: NonNegativeFloat = 0.25
    step: PositiveFloat = 500.0 * 255
    steps: PositiveInt = 1500

    kind: ClassVar[Literal["targeted"]] = "targeted"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Shafahi et al., NeurIPS 2018"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __call__(self, encoder: Encoder, train: Samples, test: Samples, head: AnyHead, run: Run) -> Hits:
        """Poison for each of ``inputs`` images of ``test``, and a head for each, beside one without its poison.

        Raises ``SapperError`` for a head that trains the encoder.
        """
        self.check_plan((), [head])
        ours = self.pair(train, run, self.per_class)
        theirs = self.pair(test, run, len(test))
        chosen = theirs.take(theirs.targets() == 1).sample(self.inputs, run.child("inputs").generator())
        features, aims = extract(encoder, ours, run), extract(encoder, chosen, run)
        base = self.nearest(features, ours.targets(), aims)
        poisons = self.collide(encoder, ours.take(base), aims, run)
        seen, truth = extract(encoder, theirs, run), theirs.targets()
        hit: list[Tensor] = []
        before: list[Tensor] = []
        accuracy: list[Tensor] = []
        accuracy_before: list[Tensor] = []
        for row, stolen in enumerate(extract(encoder, poisons, run)):
            part = run.child(f"input {row}")
            together = joined([ours, poisons.take(torch.tensor([row]))])
            poisoned = marked(together, torch.tensor([len(ours)]), type(self).__name__).samples
            if head.seeded or row == 0:
                clean = build(head, encoder, ours, part, features).head
            fooled = build(head, encoder, poisoned, part, torch.cat((features, stolen[None]))).head
            for module, hits, right in ((fooled, hit, accuracy), (clean, before, accuracy_before)):
                with torch.no_grad():
                    hits.append(module(aims[row : row + 1]).argmax(1).cpu()[0] == 0)
                    right.append((module(seen).argmax(1).cpu() == truth).float().mean())
        return Hits(
            hit=torch.stack(hit),
            before=torch.stack(before),
            accuracy=torch.stack(accuracy),
            accuracy_before=torch.stack(accuracy_before),
        )

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for a head that is not fitted to the features of a frozen encoder."""
        for head in heads:
            if head.kind != "fitted":
                what = "feature_collision needs an encoder that the victim keeps frozen, and a head that it trains"
                raise SapperError(what, where="head", remedy="use a head such as linear or mlp")

    def check_samples(self, samples: Samples, classes: Sequence[str]) -> None:
        """Raises ``SapperError`` unless base and victim are two classes of ``samples``."""
        there = set(samples.targets().unique().tolist())
        if self.base == self.victim or not {self.base, self.victim} <= there:
            what = f"base {self.base} and victim {self.victim} must be two classes with samples"
            raise samples.error(what, f"choose two of the {len(samples.classes)} classes, numbered from 0")

    def pair(self, samples: Samples, run: Run, count: int) -> ImageSet:
        """Up to ``count`` images of each of the two classes: 0 is the base class, 1 the other.

        Raises ``SapperError`` for a set that is of no images, or has not got both classes.
        """
        if not isinstance(samples, ImageSet):
            raise samples.error("feature_collision poisons images, and these are none", "name a set of images")
        self.check_samples(samples, ())
        labels, parts = samples.targets(), []
        both = [(labels == wanted).nonzero().squeeze(1) for wanted in (self.base, self.victim)]
        names = (samples.classes[self.base], samples.classes[self.victim])
        for label, rows in enumerate(both):
            order = torch.randperm(len(rows), generator=run.child(f"{samples.split} {label}").generator())[:count]
            part = samples.take(rows[order])
            parts.append(replace(part, labels=torch.full_like(part.targets(), label), classes=names))
        return joined(parts)

    def nearest(self, features: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
        """For each chosen image the row of the base class with the nearest features, int64 (T,)."""
        rows = (labels == 0).nonzero().squeeze(1)
        return rows[(aims @ features[rows.to(features.device)].T).argmax(1).cpu()]

    def collide(self, encoder: Encoder, base: ImageSet, aims: Tensor, run: Run) -> ImageSet:
        """The poisons, rounded, in the order of ``aims`` (T, D); ``base`` has an image for each."""
        resident, made = base.to(run.device), []
        for rows in torch.arange(len(base)).split(resident.at_once()):
            images = 255 * resident.batch(rows)
            beta = self.beta * (aims.shape[1] / images[0].numel()) ** 2
            found = split_forward_backward(encoder, images, aims[rows.to(run.device)], beta, self.step, self.steps, run)
            made.append(found.round().to(torch.uint8))
        return replace(base, images=torch.cat(made).to(base.images.device))


def split_forward_backward(
    encoder: Encoder, base: Tensor, aims: Tensor, beta: float, step: float, steps: int, run: Run
) -> Tensor:
    """Images (T, 3, H, W), 0…255, from ``base`` on, whose normalized features are near ``aims`` (T, D)."""

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        """Objective (T,) and gradient of its first term."""
        inputs = images.detach().requires_grad_(True)
        with run.autocast():
            features = F.normalize(encoder(inputs / 255).float(), dim=1)
        distance = (features - aims).norm(dim=1)
        (slope,) = torch.autograd.grad(distance.sum(), [inputs])
        return distance.detach() + beta / 2 * (images - base).flatten(1).square().sum(1), slope

    images, rate = base.clone(), torch.full((len(base), 1, 1, 1), step, device=base.device)
    objective, slope = look(images)
    with run.progress.bar("poisons", steps) as bar:
        for _ in range(steps):
            moved = (images - rate * slope + rate * beta * base) / (1 + rate * beta)
            moved = moved.clamp(0, 255)
            reached, steeper = look(moved)
            better = reached < objective
            objective = torch.where(better, reached, objective)
            keep = better.view(-1, 1, 1, 1)
            images, slope = torch.where(keep, moved, images), torch.where(keep, steeper, slope)
            rate = torch.where(keep, rate, rate / 2)
            bar.advance()
    return images
