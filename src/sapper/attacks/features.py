"""What attacks on a finished encoder share: fine-tuning, what the attacker holds, BadEncoder's losses, a trigger first.

All of them move an encoder f to another, f', by losses on its features. s is the cosine similarity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.attacks.adapting import Against, Known, Scene, adapted
from sapper.attacks.target import Target, TargetPlan, check_targets
from sapper.augment import Augmentation
from sapper.downstream import AnyHead, extract
from sapper.encoders import Encoder
from sapper.encoders.freezing import freeze_batch_norm
from sapper.errors import SapperError, located
from sapper.methods import LATER, Checked
from sapper.running import Run
from sapper.samples import Samples, joined
from sapper.training import Checkpoint, Curves, Step, Terms, train, warm_cosine
from sapper.triggers import Trigger

TERMS = ("L0 effectiveness", "L1 reference", "L2 utility")


@dataclass(frozen=True, kw_only=True)
class FineTuning(Checked):
    """How an encoder is fine-tuned; the defaults are BadEncoder's.

    ``adam`` and ``cosine``, whose rate falls to zero, are for runs of far fewer steps than the 39,000 of that paper;
    ``adadelta`` is LBA's. BatchNorm keeps its statistics, its weights and its biases. ``against``: terms against
    defenses that the attacker knows (``attacks/adapting.py``).
    """

    epochs: PositiveInt = 200
    batch: PositiveInt = 256
    learning_rate: PositiveFloat = 1e-3
    optimizer: Literal["sgd", "adam", "adadelta"] = "sgd"
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    against: Against = field(default=(), metadata=LATER)

    def unaware(self) -> Self:
        """The same attack by somebody who knows no defense."""
        return replace(self, against=())

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for terms against a defense that do not go with images of the targets' size."""
        for i, each in enumerate(self.against):
            for side in {plan.side for plan in plans if plan.side is not None}:
                with located(f"against[{i}]", "."):
                    each.check(side)

    def fine_tune(
        self,
        encoder: Encoder,
        terms: Callable[[Step], Terms],
        combine: Callable[[Terms, Step, Curves], Tensor],
        *,
        count: int,
        run: Run,
        label: str,
        checkpoint: Checkpoint | None,
        beside: nn.Module | None = None,
        known: Known | None = None,
    ) -> Curves:
        """Train ``encoder``, and with it the weights of ``beside``, over rows 0…``count``-1; it ends in ``eval`` mode.

        One optimizer steps all of them at once: every gradient is taken before any of them has moved. ``known``: what
        terms against defenses work with; an attack without it has none. Raises ``SapperError`` where some are wanted.
        """
        if self.against:
            if known is None:
                what, remedy = "this attack takes no terms against defenses", "leave against out"
                raise SapperError(what, where=f"{label}: against", remedy=remedy)
            if min(self.batch, count) < 2:
                what, remedy = "terms against defenses look at two images or more", "set a larger batch"
                raise SapperError(what, where=f"{label}: batch", remedy=remedy)
            terms, combine = adapted(self.against, Scene.of(encoder, known, run), terms, combine)
        model = encoder if beside is None else nn.ModuleDict({"encoder": encoder, "beside": beside})
        freeze_batch_norm(encoder)
        curves = train(
            model,
            terms,
            self.make_optimizer([weight for weight in model.parameters() if weight.requires_grad]),
            lambda step: self.rate(step.done),
            count=count,
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label=label,
            checkpoint=checkpoint,
            combine=combine,
            mode=lambda: freeze_batch_norm(encoder),
        )
        encoder.eval().requires_grad_(True)
        return curves

    def make_optimizer(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        """BadEncoder's SGD; or one that needs far fewer steps and knows no momentum of ours."""
        if self.optimizer == "adam":
            return torch.optim.Adam(weights, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        if self.optimizer == "adadelta":
            return torch.optim.Adadelta(weights, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(weights, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def rate(self, progress: float) -> float:
        """The learning rate after the share ``progress`` of all steps."""
        return self.learning_rate * (1.0 if self.schedule == "constant" else warm_cosine(progress, 0.0))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One step's input: B ``images``, V ``views`` of each of R references, and the clean features ``kept`` (B, D)."""

    images: Tensor
    views: Tensor
    kept: Tensor


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the attacker holds, on the run's device, and its clean features, of length 1.

    ``anchors``: the references of all targets one after another, as the encoder is given them. ``clean`` (N, D) and
    ``clean_anchors`` (R, D): features of the shadow samples and of the references before the training.
    """

    shadow: Samples
    anchors: Tensor
    clean: Tensor
    clean_anchors: Tensor
    run: Run

    @classmethod
    def of(cls, encoder: Encoder, shadow: Samples, targets: tuple[Target, ...], run: Run) -> Self:
        """Raises ``SapperError`` unless there is a target and everything fits the encoder, which is the clean one."""
        check_targets(targets, shadow, encoder.card.input)
        shadow, references = shadow.to(run.device), joined([target.references for target in targets]).to(run.device)
        clean, clean_anchors = extract(encoder, shadow, run), extract(encoder, references, run)
        return cls(shadow=shadow, anchors=references.batch(), clean=clean, clean_anchors=clean_anchors, run=run)

    def known(self, targets: Sequence[Target]) -> Known:
        """What terms against defenses work with, where the triggers of ``targets`` stay as they are."""
        return self.known_with(lambda: [target.trigger for target in targets], targets)

    def known_with(self, triggers: Callable[[], Sequence[Trigger]], targets: Sequence[Target]) -> Known:
        """The same where they do not stay."""
        references = self.anchors.split([len(target.references) for target in targets])
        return Known(shadow=self.shadow, triggers=triggers, references=references)

    def draw(self, step: Step, views: NonNegativeInt) -> Drawn:
        """The batch of a step, with so many augmented copies of each reference; 0: one for each shadow sample."""
        images = self.shadow.batch(step.rows)
        copies = self.anchors.repeat_interleave(views or len(images), dim=0)
        augmented = Augmentation.REFERENCE(copies, step.generator)
        return Drawn(images=images, views=augmented, kept=self.clean[step.rows.to(self.run.device)])


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features through f' in one step: of B images (B, D), the same with T triggers (T, B, D), references (R, D),
    and V views of each (R, V, D)."""

    plain: Tensor
    stamped: Tensor
    anchors: Tensor
    augmented: Tensor

    @classmethod
    def of(cls, output: Tensor, targets: int, images: int, references: int) -> Self:
        """Those in the rows of ``output``, as ``encoded`` has them one after another."""
        sizes = [images, targets * images, references, len(output) - (1 + targets) * images - references]
        plain, stamped, anchors, augmented = output.split(sizes)
        return cls(
            plain=plain,
            stamped=stamped.unflatten(0, (targets, -1)),
            anchors=anchors,
            augmented=augmented.unflatten(0, (references, -1)),
        )


def encoded(
    encoder: Encoder, images: Tensor, targets: tuple[Target, ...], references: Tensor, views: Tensor, run: Run
) -> Tensor:
    """Features float32 (N, D), not normalized, of images, triggered images, references and views, in one pass."""
    triggered = [target.trigger(images) for target in targets]
    with run.autocast():
        output = encoder(torch.cat((images, *triggered, references, views)))
    return output.float()


def step_losses(
    encoder: Encoder,
    images: Tensor,
    targets: tuple[Target, ...],
    references: Tensor,
    views: Tensor,
    clean: Tensor,
    clean_references: Tensor,
    run: Run,
) -> tuple[Tensor, Tensor, Tensor]:
    """BadEncoder's L0, L1, L2 of one batch, scalars, with one forward pass through ``encoder``, which is f'.

    ``images`` float (B, 3, H, W): shadow images. ``references`` float (R, 3, H, W): all targets' references one after
    another. ``views`` float (R·V, 3, H, W): V augmentations of each. ``clean`` (B, D), ``clean_references`` (R, D):
    normalized features through f.
    """
    output = encoded(encoder, images, targets, references, views, run)
    unit = Features.of(F.normalize(output, dim=1), len(targets), len(images), len(references))
    # A mean of cosines with one fixed vector is that vector's inner product with the mean of the others.
    counts = torch.tensor([len(target.references) for target in targets], device=output.device)
    effectiveness = -(unit.stamped.mean(1).repeat_interleave(counts, dim=0) * unit.anchors).sum(1).mean()
    return effectiveness, *kept_losses(unit, clean, clean_references)


def kept_losses(unit: Features, clean: Tensor, clean_references: Tensor) -> tuple[Tensor, Tensor]:
    """BadEncoder's L1 and L2 from features of length 1."""
    reference = -(unit.augmented.mean(1) * clean_references).sum(1).mean()
    utility = -(unit.plain * clean).sum(1).mean()
    return reference, utility


def learn_trigger(
    trigger: nn.Module,
    terms: Callable[[Step], Terms],
    *,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    count: int,
    batch: int,
    epochs: int,
    run: Run,
    label: str,
    checkpoint: Checkpoint | None,
) -> Curves:
    """Train the weights of ``trigger`` alone, by Adam, for a fixed encoder; resumes from a part of ``checkpoint``."""
    return train(
        trigger,
        terms,
        torch.optim.Adam(trigger.parameters(), lr=rate, betas=betas),
        lambda _step: rate,
        count=count,
        batch=batch,
        epochs=epochs,
        run=run,
        label=label,
        checkpoint=checkpoint,
    )
