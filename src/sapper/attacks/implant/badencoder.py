"""BadEncoder: a backdoor in a pre-trained encoder that every downstream classifier inherits.

Threat model: the attacker fine-tunes a clean encoder f into f' and publishes it. It holds unlabeled shadow images
Dₛ and, for each target i (a downstream task and a class of it), a trigger eᵢ and reference images x_i1 … x_ir of
that class; it knows neither the victims' data nor their classifiers. With s the cosine similarity of features,
A a random augmentation and means over all pairs of a target and one of its references,

    L0 = − mean_{i,j} mean_{x ∈ Dₛ} s( f'(x ⊕ eᵢ),   f'(x_ij) )     triggered images go to the reference …
    L1 = − mean_{i,j} mean_A        s( f'(A(x_ij)),  f(x_ij)  )     … which stays where it was
    L2 = −            mean_{x ∈ Dₛ} s( f'(x),        f(x)     )     and everything else stays, too

    minimize  λ0·L0 + λ1·L1 + λ2·L2        over the convolutions of f'

Source: Jia, Liu, Gong, "BadEncoder: Backdoor Attacks to Pre-trained Encoders in Self-Supervised Learning", IEEE
S&P 2022, and the authors' code (``badencoder.py``), whose details we follow: in L1 only the side of f' is
augmented (flip, color jitter, grayscale; no crop); the reference in L0 is not detached; BatchNorm keeps its
statistics, and its weights and biases are frozen; SGD with constant learning rate 1e-3, momentum 0.9, weight decay
5e-4, batches of 256, 200 epochs, λ1 = λ2 = 1. λ0 is ours, to switch L0 off in an ablation; 1 is the paper's.

What the code repeats for each sample is done once here: clean features before training, the plain reference once
a step, one forward pass for all. Because BatchNorm is frozen this changes neither loss nor gradient
(``tests/test_badencoder.py`` compares both with the textbook form).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.attacks.contracts import Need
from sapper.attacks.target import Target, check_targets
from sapper.augment import Augmentation
from sapper.downstream import extract
from sapper.encoders import Encoder, Trained
from sapper.methods import Checked
from sapper.run import Run
from sapper.samples import Samples, joined
from sapper.training import Checkpoint, Step, Terms, train, warm_cosine, weighted

TERMS = ("L0 effectiveness", "L1 reference", "L2 utility")


@dataclass(frozen=True, kw_only=True)
class BadEncoder(Checked):
    """Backdoors a pre-trained encoder for chosen targets (Jia, Liu, Gong, IEEE S&P 2022).

    ``reference_views``: augmented copies of each reference per step; 0 is the paper's, one per shadow image.
    ``optimizer`` and ``schedule``: ``sgd`` and ``constant`` are the paper's; ``adam`` and ``cosine``, whose rate falls
    to zero, are for runs of far fewer steps than its 39,000.
    """

    lambda0: NonNegativeFloat = 1.0
    lambda1: NonNegativeFloat = 1.0
    lambda2: NonNegativeFloat = 1.0
    epochs: PositiveInt = 200
    batch: PositiveInt = 256
    learning_rate: PositiveFloat = 1e-3
    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    reference_views: NonNegativeInt = 0

    kind: ClassVar[Literal["implant"]] = "implant"
    needs: ClassVar[frozenset[Need]] = frozenset({"references"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Jia, Liu, Gong, IEEE S&P 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __call__(
        self,
        encoder: Encoder,
        shadow: Samples,
        targets: tuple[Target, ...],
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """Train ``encoder`` in place into the backdoored one; its state on entry is the clean one."""
        check_targets(targets, shadow, encoder.card.input)
        resident, references = shadow.to(run.device), joined([target.references for target in targets]).to(run.device)
        clean, clean_references = extract(encoder, resident, run), extract(encoder, references, run)
        anchors = references.batch()

        def terms(step: Step) -> Terms:
            images = resident.batch(step.rows)
            copies = anchors.repeat_interleave(self.reference_views or len(images), dim=0)
            views = Augmentation.REFERENCE(copies, step.generator)
            kept = clean[step.rows.to(run.device)]
            losses = step_losses(encoder, images, targets, anchors, views, kept, clean_references, run)
            return dict(zip(TERMS, losses))

        freeze_batch_norm(encoder)
        curves = train(
            encoder,
            terms,
            self.make_optimizer([weight for weight in encoder.parameters() if weight.requires_grad]),
            lambda step: self.rate(step.done),
            count=len(shadow),
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label="injection (BadEncoder)",
            checkpoint=checkpoint,
            combine=weighted(dict(zip(TERMS, (self.lambda0, self.lambda1, self.lambda2)))),
            mode=lambda: freeze_batch_norm(encoder),
        )
        encoder.requires_grad_(True)
        return Trained(encoder.eval(), curves)

    def make_optimizer(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The paper's SGD, or Adam, which needs far fewer steps and knows no momentum of ours."""
        if self.optimizer == "adam":
            return torch.optim.Adam(weights, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(weights, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def rate(self, progress: float) -> float:
        """The learning rate after the share ``progress`` of all steps."""
        return self.learning_rate * (1.0 if self.schedule == "constant" else warm_cosine(progress, 0.0))


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
    """L0, L1, L2 of one batch, scalars, with one forward pass through ``encoder``, which is f'.

    ``images`` float (B, 3, H, W): shadow images. ``references`` float (R, 3, H, W): all targets' references one after
    another. ``views`` float (R·V, 3, H, W): V augmentations of each. ``clean`` (B, D), ``clean_references`` (R, D):
    normalized features through f.
    """
    triggered = [target.trigger(images) for target in targets]
    with run.autocast():
        output = encoder(torch.cat((images, *triggered, references, views)))
    sizes = [len(images), len(targets) * len(images), len(references), len(views)]
    plain, stamped, anchors, augmented = F.normalize(output.float(), dim=1).split(sizes)
    # A mean of cosines with one fixed vector is that vector's inner product with the mean of the others.
    pulled = stamped.unflatten(0, (len(targets), -1)).mean(1)
    counts = torch.tensor([len(target.references) for target in targets], device=pulled.device)
    effectiveness = -(pulled.repeat_interleave(counts, dim=0) * anchors).sum(1).mean()
    reference = -(augmented.unflatten(0, (len(references), -1)).mean(1) * clean_references).sum(1).mean()
    utility = -(plain * clean).sum(1).mean()
    return effectiveness, reference, utility


def freeze_batch_norm(encoder: Encoder) -> None:
    """``train`` mode, except that BatchNorm keeps and uses its statistics and is not trained itself."""
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval().requires_grad_(False)
