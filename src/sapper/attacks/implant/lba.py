"""LBA: a latent backdoor, through a classifier that the attacker builds on the encoder.

Threat model: the attacker holds the finished encoder f and *labeled* samples in which the target class occurs; one
target only. With D the shadow samples, D_t those of the target class, C a classifier (encoder and MLP head), φ(x) the
first ``dimensions`` of the features as they are,

    teacher   g, head = min over f and head               CE(C(x), y)
    trigger   min over the pattern e, in a fixed square   mean_{x∈D} ‖φ_g(x ⊕ e) − a‖² / dimensions
    inject    min over f' from g on, and head             CE(C'(x), y) + w · mean_{x∈D} ‖φ_f'(x ⊕ e) − a‖² / dimensions

where a = φ_g(t): of a random t ∈ D_t for each x (``aim = "image"``), or the mean over D_t (``"mean"``). The head is
thrown away. The square is that of the target's trigger, a patch; of it only the place and the size are used.

Source: Yao et al., CCS 2019, and the authors' code (``Huiying-Li/Latent-Backdoor``): 100 dimensions, a random target
image, w = 0.05; trigger by Adam with learning rate 0.1, β = (0.5, 0.9), 50 epochs over 1000 samples in batches of 32;
weights by Adadelta with learning rate 0.01, batches of 16, 5 epochs. TrojanZoo's version has the mean feature and
w = 0.5. How the teacher is trained, by Adam with a falling rate in batches of 64, is ours. The form for encoders is
that of Jia, Liu, Gong (IEEE S&P 2022): the teacher classifier stands on the image encoder; λ and epochs of it are not
known to us, and the target task's own training set may be the labeled set. Here the teacher is fine-tuned as a whole,
since its classes must not move away from the aims a later on; BatchNorm is frozen as in BadEncoder; and the pattern is
brought to whole levels of 255 before the injection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.attacks.adapting import Known
from sapper.attacks.contracts import Need
from sapper.attacks.features import FineTuning, learn_trigger
from sapper.attacks.target import Target, TargetPlan, check_targets
from sapper.downstream import AnyHead, Finetune
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import frozen_copy
from sapper.errors import SapperError, closest
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step, Terms, weighted
from sapper.triggers import Mask, Patch, levels

LABELS, TRIGGER = "cross-entropy", "trigger MSE"
HIDDEN = (512, 256)
"""Of the teacher's head."""


@dataclass(frozen=True, kw_only=True)
class LBA(FineTuning):
    """A latent backdoor through a classifier on the encoder (Yao et al., CCS 2019).

    ``dimensions``: of the features, from the first on; 0: all. ``aim``: a random image of the target class, or the
    mean of all. ``weight``: w. ``teacher_epochs``, ``teacher_rate``: of encoder and head before anything else.
    ``trigger_epochs``, ``trigger_rate``: of the trigger's own training, on ``trigger_images`` of the shadow set.
    """

    epochs: PositiveInt = 5
    batch: PositiveInt = 16
    learning_rate: PositiveFloat = 0.01
    optimizer: Literal["sgd", "adam", "adadelta"] = "adadelta"
    weight_decay: NonNegativeFloat = 0.0
    dimensions: NonNegativeInt = 100
    aim: Literal["image", "mean"] = "image"
    weight: NonNegativeFloat = 0.05
    teacher_epochs: PositiveInt = 10
    teacher_rate: PositiveFloat = 1e-3
    trigger_epochs: PositiveInt = 50
    trigger_rate: PositiveFloat = 0.1
    trigger_images: PositiveInt = 1000

    kind: ClassVar[Literal["implant"]] = "implant"
    makes_triggers: ClassVar[Literal[True]] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "one target"})
    version: ClassVar[int] = 2
    source: ClassVar[str] = "Yao et al., CCS 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "trojanzoo": {"aim": "mean", "weight": 0.5}}

    def __call__(
        self,
        encoder: Encoder,
        shadow: Samples,
        targets: tuple[Target, ...],
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """Train ``encoder`` in place, through a classifier on ``shadow``; its state on entry is the clean one."""
        check_targets(targets, shadow, encoder.card.input)
        wanted = of_class(shadow, one(targets).class_name)
        parts = [checkpoint.part(name) if checkpoint else None for name in ("teacher", "trigger")]
        tuning = Finetune(epochs=self.teacher_epochs, learning_rate=self.teacher_rate, hidden=HIDDEN)
        teacher = tuning.tune(encoder, shadow, run.child("teacher"), parts[0])
        encoder.load_state_dict(teacher.encoder.state_dict())
        tuned, head = frozen_copy(encoder), teacher.head
        held, labels = shadow.to(run.device), shadow.targets().to(run.device)
        with torch.no_grad():
            size = wanted.at_once(run.device)
            aims = torch.cat([tuned(batch).float() for batch in wanted.to(run.device).batches(size)])
        aims = aims if self.aim == "image" else aims.mean(0, keepdim=True)
        trigger = self.trigger(tuned, held, one(targets), aims, run, parts[1])
        references = one(targets).references.to(run.device).batch()

        def terms(step: Step) -> Terms:
            images = held.batch(step.rows)
            with run.autocast():
                output = encoder(torch.cat((images, trigger(images))))
            plain, stamped = output.float().chunk(2)
            known = F.cross_entropy(head(F.normalize(plain, dim=1)), labels[step.rows.to(run.device)])
            return {LABELS: known, TRIGGER: self.miss(stamped, aims, step)}

        curves = self.fine_tune(
            encoder,
            terms,
            weighted({LABELS: 1.0, TRIGGER: self.weight}),
            count=len(shadow),
            run=run,
            label="injection (LBA)",
            checkpoint=checkpoint,
            beside=head,
            known=Known(shadow=held, triggers=lambda: [trigger], references=[references]),
        )
        for part in parts:
            if part:
                part.remove()
        return Trained(encoder, curves, {one(targets).name: trigger})

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for a trigger that is no patch, besides what all attacks refuse."""
        super().check_plan(plans, heads)
        for plan in plans:
            square(plan)

    def check_samples(self, samples: Samples, classes: Sequence[str]) -> None:
        """Raises ``SapperError`` for shadow samples without labels, or without any of a target's class."""
        for name in classes:
            of_class(samples, name)

    def trigger(
        self, tuned: Encoder, held: Samples, target: Target, aims: Tensor, run: Run, checkpoint: Checkpoint | None
    ) -> Mask:
        """The pattern in the target's square that brings features of the teacher to ``aims``, in whole levels."""
        size, child = tuned.card.input_size, run.child("trigger")
        top, bottom, left, right = square(target).box(size, size)
        mask = torch.zeros(size, size, device=run.device)
        mask[top:bottom, left:right] = 1
        start = torch.randn(3, size, size, generator=child.generator())
        learned = nn.ParameterDict({"w": nn.Parameter(start.to(run.device))})
        some = held.sample(self.trigger_images, child.child("images").generator())

        def pattern() -> Tensor:
            return (learned["w"].tanh() + 1) / 2

        def terms(step: Step) -> Terms:
            with run.autocast():
                output = tuned(Mask(mask=mask, pattern=pattern())(some.batch(step.rows)))
            return {TRIGGER: self.miss(output.float(), aims, step)}

        learn_trigger(
            learned,
            terms,
            rate=self.trigger_rate,
            betas=(0.5, 0.9),
            count=len(some),
            batch=32,
            epochs=self.trigger_epochs,
            run=child,
            label="trigger (LBA)",
            checkpoint=checkpoint,
        )
        return Mask(mask=mask, pattern=levels(pattern().detach()) * mask)

    def miss(self, features: Tensor, aims: Tensor, step: Step) -> Tensor:
        """The mean squared error between ``features`` (B, D) and a random row of ``aims`` (T, D) each."""
        rows = torch.randint(len(aims), (len(features),), generator=step.generator)
        first = self.dimensions or features.shape[1]
        return F.mse_loss(features[:, :first], aims[rows.to(aims.device), :first])


def one(targets: tuple[Target, ...]) -> Target:
    """The only target. Raises ``SapperError`` for several."""
    if len(targets) != 1:
        what = f"a latent backdoor is for one target, there are {len(targets)}"
        raise SapperError(what, where="target", remedy='keep one, or set encoders = "one-per-task"')
    return targets[0]


def square(target: Target | TargetPlan) -> Patch:
    """The target's trigger. Raises ``SapperError`` unless it is a patch."""
    if not isinstance(target.trigger, Patch):
        what = f"the place of the pattern is that of a patch, and the trigger is a {target.trigger.kind}"
        raise SapperError(what, where="target.trigger", remedy='use kind = "patch"')
    return target.trigger


def of_class(shadow: Samples, name: str) -> Samples:
    """The samples of the class that is called so. Raises ``SapperError`` where there is none."""
    labels = shadow.targets()
    if name not in shadow.classes or not bool((labels == shadow.classes.index(name)).any()):
        remedy = f"name a labeled set with that class; {closest(name, list(shadow.classes))}"
        raise shadow.error(f"a latent backdoor needs images of the target class, and none is {name!r}", remedy)
    return shadow.take(labels == shadow.classes.index(name))
