"""Blind backdoors: the code that computes the victim's loss is poisoned.

Threat model: the attacker changes the loss of a training program and sees neither data nor model nor what comes out. On
every batch (x, y) of the victim's own training, with the trigger e and the target class t,

    loss = α0·CE( F(x), y ) + α1·CE( F(x ⊕ e), t ) [ + α2·CE( F(n(x)), y ) ]

α is MGDA's: the shortest convex combination of the terms' gradients, so that no step makes one of them worse for
another. The attack begins once the mean of the victim's own loss over the last ``window`` batches is below
``threshold``. The third term evades Neural Cleanse: n puts a mask m and a pattern Δ on images that are themselves
trained against the model, by

    minimize   0.999·CE( F(n(x)), t ) + 0.001·‖m‖₁            over m, Δ

so that the small trigger that Neural Cleanse would find for class t is made useless at once.

Source: Bagdasaryan, Shmatikov, "Blind Backdoors in Deep Learning Models", USENIX Security 2021, and
``ebagdasa/backdoors101`` (``attack.py``, ``utils/min_norm_solvers.py``, ``losses/loss_functions.py``), whose weights
and normalization these are: gradients are divided by their losses, at most 10, before α is found. The threshold 1 is
BackdoorBench's; the window is 1000 batches in the authors' code. Different here: clean and triggered images go through
the model as one batch, so that BatchNorm sees both, and through a frozen encoder once; m and Δ move by signed steps,
which have no state that a resumed training would lack; the step of the three gradients together is taken directly,
without one more backward pass.

The victim is a head that is trained batch by batch, on a frozen encoder (``mlp``) or together with it (``finetune``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.attacks.contracts import Attacked, Need
from sapper.attacks.min_norm import min_norm
from sapper.attacks.target import Target, TargetPlan, check_targets
from sapper.downstream import AnyHead, Classifier, Stepwise, extract, start
from sapper.encoders import Encoder
from sapper.encoders.freezing import trained
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Curves, Step, Terms, train

NORMAL, BACKDOOR, EVASION = "normal", "backdoor", "evasion"


@dataclass(frozen=True, kw_only=True)
class Blind(Checked):
    """Poisons the loss of the victim's training (Bagdasaryan, Shmatikov, USENIX Security 2021).

    ``normalize``: what gradients are divided by before they are weighed: their loss, their length, or nothing.
    ``evade``: whether Neural Cleanse shall find nothing; ``mask_rate`` is the step of its mask and pattern.
    """

    threshold: PositiveFloat = 1.0
    window: PositiveInt = 100
    normalize: Literal["loss", "l2", "none"] = "loss"
    evade: bool = False
    mask_rate: PositiveFloat = 0.02

    kind: ClassVar[Literal["training"]] = "training"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 2
    source: ClassVar[str] = "Bagdasaryan, Shmatikov, USENIX Security 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"window": 1000}}

    def __call__(
        self,
        encoder: Encoder,
        train: Samples,
        targets: tuple[Target, ...],
        head: AnyHead,
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Attacked:
        """The victim's training as it is, but for the loss. Raises ``SapperError`` for a head without steps."""
        check_targets(targets, train, encoder.card.input)
        own = stepwise(head)
        return self.poison(start(own, encoder, train, run), train, targets, own, run, checkpoint)

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for a head without steps."""
        for head in heads:
            stepwise(head)

    def poison(
        self,
        classifier: Classifier,
        samples: Samples,
        targets: tuple[Target, ...],
        head: Stepwise,
        run: Run,
        checkpoint: Checkpoint | None,
    ) -> Attacked:
        """Train a classifier that has not been trained yet."""
        resident, labels = samples.to(run.device), samples.targets().to(run.device)
        wanted = torch.tensor([target.label for target in targets], device=run.device)
        watch, cleanse = Watch(self.window), Cleanse(resident.batch(slice(0, 1)), len(targets))
        model = nn.ModuleDict({"classifier": classifier, "watch": watch, "cleanse": cleanse}).to(run.device)
        head.mode(classifier)
        weights = trained(classifier)
        triggers = [target.trigger for target in targets]
        frozen = not any(weight.requires_grad for weight in classifier.encoder.parameters())
        known = [extract(classifier.encoder, resident, run, each) for each in (None, *triggers)] if frozen else []

        def logits(images: Tensor, step: Step) -> Tensor:
            with run.child(f"dropout {step.index}").seeded(), run.autocast():
                return classifier(images)

        def both(step: Step) -> Tensor:
            """Logits of the batch as it is and with each trigger, (1 + T, N, K)."""
            if frozen:
                features = torch.cat([each[step.rows.to(run.device)] for each in known])
                with run.child(f"dropout {step.index}").seeded():
                    answers: Tensor = classifier.head(features)
            else:
                images = head.view(resident.batch(step.rows), step.generator)
                answers = logits(torch.cat([images, *(trigger(images) for trigger in triggers)]), step)
            return answers.unflatten(0, (1 + len(targets), -1))

        def terms(step: Step) -> Terms:
            truth = labels[step.rows.to(run.device)]
            goals = wanted.repeat_interleave(len(truth))
            plain, *stamped = both(step)
            losses = {NORMAL: F.cross_entropy(plain, truth), BACKDOOR: F.cross_entropy(torch.cat(stamped), goals)}
            if self.evade:
                images = head.view(resident.batch(step.rows), step.generator)
                found = F.cross_entropy(logits(cleanse(images).flatten(0, 1), step), goals)
                cleanse.move(0.999 * found, 0.001, self.mask_rate)
                masked = cleanse(images).detach().flatten(0, 1)
                losses[EVASION] = F.cross_entropy(logits(masked, step), truth.repeat(len(targets)))
            return losses

        def combine(losses: Terms, _step: Step, _curves: Curves) -> Tensor:
            watch.note(losses[NORMAL])
            if not watch.below(self.threshold):
                return losses[NORMAL]
            return balanced(list(losses.values()), weights, self.normalize)

        curves = train(
            model,
            terms,
            head.optimizer(weights),
            head.rate,
            count=len(samples),
            batch=head.batch,
            epochs=head.epochs,
            run=run,
            label="training with a poisoned loss (Blind)",
            checkpoint=checkpoint,
            combine=combine,
            mode=lambda: head.mode(classifier),
            drop_last=False,
        )
        return Attacked(classifier=classifier.eval(), curves=curves)


def stepwise(head: AnyHead) -> Stepwise:
    """The head itself. Raises ``SapperError`` for one that is not trained batch by batch."""
    if not isinstance(head, Stepwise):
        what = "this head is not trained batch by batch, so that there is no loss to be poisoned"
        raise SapperError(what, where="head", remedy="use mlp or finetune")
    return head


class Watch(nn.Module):
    """The victim's own losses of the last batches."""

    losses: Tensor
    seen: Tensor

    def __init__(self, window: int):
        super().__init__()
        self.register_buffer("losses", torch.zeros(window))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def note(self, loss: Tensor) -> None:
        self.losses[self.seen % len(self.losses)] = loss.detach()
        self.seen += 1

    def below(self, threshold: float) -> bool:
        """Whether the window is full and its mean below ``threshold``."""
        return bool(self.seen >= len(self.losses)) and float(self.losses.mean()) < threshold


class Cleanse(nn.Module):
    """What Neural Cleanse would find for each of T target classes: masks and patterns before the logistic function."""

    def __init__(self, like: Tensor, targets: int):
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(targets, 1, 1, *like.shape[-2:]))
        self.pattern = nn.Parameter(torch.zeros(targets, 1, *like.shape[1:]))

    def forward(self, images: Tensor) -> Tensor:
        """(T, N, 3, H, W) of images (N, 3, H, W)."""
        return torch.lerp(images, self.pattern.sigmoid(), self.mask.sigmoid())

    def move(self, loss: Tensor, size: float, rate: float) -> None:
        """One signed step down ``loss`` + ``size``·‖m‖₁, the mean over the targets of either."""
        whole = loss + size * self.mask.sigmoid().sum() / len(self.mask)
        slopes = torch.autograd.grad(whole, [self.mask, self.pattern])
        with torch.no_grad():
            for parameter, slope in zip((self.mask, self.pattern), slopes):
                parameter.sub_(rate * slope.sign())


def balanced(losses: list[Tensor], weights: list[nn.Parameter], normalize: str) -> Tensor:
    """A scalar whose gradient in ``weights`` is Σ α_i·∇loss_i with MGDA's α."""
    slopes = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]
    rows = torch.stack([torch.cat([part.flatten() for part in slope]) for slope in slopes])
    alpha = min_norm(products(rows, torch.stack(losses).detach(), normalize)).to(rows)
    step = (alpha @ rows).split([weight.numel() for weight in weights])
    return sum(((weight.flatten() * part).sum() for weight, part in zip(weights, step)), start=rows.new_zeros(()))


def products(gradients: Tensor, losses: Tensor, normalize: str) -> Tensor:
    """Inner products (K, K) of gradients (K, P), each divided by its loss, at most 10, by its length, or by nothing."""
    gram = (gradients @ gradients.T).double()
    if normalize == "none":
        return gram
    scale = losses.double().clamp(max=10) if normalize == "loss" else gram.diagonal().sqrt()
    scale = scale + 1e-5
    return gram / scale / scale.unsqueeze(1)
