"""TrojanNN: a finished classifier is retrained on inputs that were read out of it, with a trigger made for one neuron.

Threat model: the attacker gets the victim's finished classifier, changes it, and publishes it. It holds no training
data. Its steps, with h the layers from the chosen one on and a(x) their inputs, the neurons:

    1. choose      neurons j with the largest Σ_i |w_ij| into the layer that follows
    2. trigger     Δ = argmin ( v − a_j((1 − m)·x̄ + m·Δ) )²       for each of them; the one driven furthest is taken
    3. inputs      x_k = argmin CE( h(a(x)), k ) + τ·TV(x)         from a mean image x̄, several for each class k
    4. retrain h   CE( h(a(x_k)), k ) + λ·CE( h(a(x_k ⊕ Δ)), t )

Source: Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks", NDSS 2018, and
``PurduePAML/TrojanNN`` (choice of neurons, ascent under a mask, one reversed input per class from an average image
with denoising, retraining of the layers behind). v = 100 is BackdoorBench's. Ours: the mask m is what the target's
trigger covers, and how much; x̄ is the color that the encoder's normalization takes for the mean, since no other image
is at hand; ``per_class`` inputs start from x̄ with smooth noise, where the paper has thousands of classes and one
input each; denoising is a term of the loss; all neurons are searched as one batch, and all inputs as another; Adam
instead of plain gradient steps. The layers before the chosen one stay as they are, so that retraining works on neurons
that are computed once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.attacks.contracts import Attacked, Need
from sapper.attacks.target import Target, check_targets
from sapper.downstream import AnyHead, Classifier, build
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.run import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step, Terms, train, warm_cosine, weighted
from sapper.triggers import Mask, Trigger

TERMS = ("reversed", "reversed with trigger")


@dataclass(frozen=True, kw_only=True)
class TrojanNN(Checked):
    """Retrains a finished classifier without data, with a trigger made for one of its neurons (Liu et al., NDSS 2018).

    ``layer``: the neurons are the inputs of the head's linear layer of that number; 0: the encoder's features.
    ``neurons``: how many are tried. ``value``: what a neuron is driven to. ``per_class``: reversed inputs of each
    class. ``denoising`` is τ, ``weight`` is λ; ``epochs``, ``batch`` and ``learning_rate`` are the retraining's.
    """

    layer: NonNegativeInt = 0
    neurons: PositiveInt = 8
    value: PositiveFloat = 100.0
    trigger_steps: PositiveInt = 200
    per_class: PositiveInt = 20
    input_steps: PositiveInt = 150
    step: PositiveFloat = 0.05
    denoising: NonNegativeFloat = 1.0
    weight: PositiveFloat = 1.0
    epochs: PositiveInt = 60
    batch: PositiveInt = 50
    learning_rate: PositiveFloat = 1e-3
    smooth: Annotated[float, Field(ge=0, le=1)] = 0.3

    kind: ClassVar[Literal["training"]] = "training"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "one target"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Liu et al., NDSS 2018"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __call__(
        self,
        encoder: Encoder,
        train: Samples,
        targets: tuple[Target, ...],
        head: AnyHead,
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Attacked:
        """The victim builds its classifier on ``train``; the attacker, who sees none of it, retrains the head."""
        check_targets(targets, train, encoder.card.input)
        target = targets[0]
        mask = covered(target.trigger, encoder.card.input_size)
        classifier = build(head, encoder, train, run.child("victim"))
        return self.trojan(classifier, target, mask.to(run.device), len(train.classes), run, checkpoint)

    def trojan(
        self, victim: Classifier, target: Target, mask: Tensor, classes: int, run: Run, checkpoint: Checkpoint | None
    ) -> Attacked:
        """The finished classifier with a backdoor; ``mask`` float (H, W). Its head is trained in place."""
        before, after = divided(victim.head, self.layer)
        front = Classifier(victim.encoder, before).eval()
        mean = victim.encoder.mean.expand(1, 3, *mask.shape).clone()
        trigger = self.make_trigger(front, after, mean, mask, run)
        inputs, labels = self.reverse(victim, mean, classes, run)
        with torch.no_grad():
            plain, stamped = (
                torch.cat([front(part) for part in images.split(500)]) for images in (inputs, trigger(inputs))
            )
        wanted = torch.full_like(labels, target.label)

        def terms(step: Step) -> Terms:
            rows = step.rows.to(run.device)
            losses = (
                F.cross_entropy(after(plain[rows]), labels[rows]),
                F.cross_entropy(after(stamped[rows]), wanted[rows]),
            )
            return dict(zip(TERMS, losses))

        curves = train(
            after.requires_grad_(True),
            terms,
            torch.optim.Adam(after.parameters(), lr=self.learning_rate, fused=True),
            lambda step: self.learning_rate * warm_cosine(step.done, 0.0),
            count=len(labels),
            batch=self.batch,
            epochs=self.epochs,
            run=run.child("retraining"),
            label="retraining (TrojanNN)",
            checkpoint=checkpoint,
            combine=weighted(dict(zip(TERMS, (1.0, self.weight)))),
            mode=after.eval,
            drop_last=False,
        )
        return Attacked(classifier=victim.eval(), curves=curves, triggers={target.name: trigger})

    def make_trigger(self, front: nn.Module, after: nn.Sequential, mean: Tensor, mask: Tensor, run: Run) -> Mask:
        """A pattern under ``mask`` that drives one neuron; ``front`` gives the neurons (N, D) of images."""
        chosen = strongest(after, self.neurons)
        rows = torch.arange(len(chosen), device=chosen.device)
        noise = torch.rand(len(chosen), *mean.shape[1:], generator=run.child("trigger").generator()).to(mean)

        def driven(patterns: Tensor) -> Tensor:
            activations: Tensor = front(torch.lerp(mean, patterns, mask))
            return activations[rows, chosen]

        patterns = descend(noise, lambda x: (self.value - driven(x)).square().sum(), self.step, self.trigger_steps)
        with torch.no_grad():
            best = (driven(patterns) - front(mean)[0, chosen]).argmax()
        return Mask(mask=mask.cpu(), pattern=patterns[best].cpu())

    def reverse(self, victim: nn.Module, mean: Tensor, classes: int, run: Run) -> tuple[Tensor, Tensor]:
        """Inputs (K·n, 3, H, W) in [0, 1] that ``victim`` takes for each class, and the classes; one batch for all."""
        labels = torch.arange(classes, device=mean.device).repeat_interleave(self.per_class)
        coarse = torch.randn(len(labels), 3, 4, 4, generator=run.child("inputs").generator()).to(mean)
        start = mean + self.smooth * F.interpolate(coarse, size=mean.shape[-2:], mode="bilinear")

        def loss(images: Tensor) -> Tensor:
            fit = F.cross_entropy(victim(images), labels, reduction="sum")
            return fit + self.denoising * total_variation(images).sum()

        return descend(start.clamp(0, 1), loss, self.step, self.input_steps), labels


def covered(trigger: Trigger, size: int) -> Tensor:
    """How much a trigger covers each pixel, float (H, W) in [0, 1]: what a black and a white image no longer differ by.

    Raises ``SapperError`` for one that covers nothing.
    """
    black, white = torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)
    mask = (1 - (trigger(white) - trigger(black))).mean(1)[0].clamp(0, 1)
    if float(mask.max()) == 0:
        what = "this trigger covers no pixel, and there is nothing that a pattern could be made for"
        raise SapperError(what, where="target.trigger", remedy="choose a patch or a blend")
    return mask


def divided(head: nn.Module, layer: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The parts of a head before its linear layer of that number, and from it on.

    Raises ``SapperError`` for a head that has none.
    """
    parts = list(head) if isinstance(head, nn.Sequential) else []
    places = [place for place, part in enumerate(parts) if isinstance(part, nn.Linear)]
    if layer >= len(places):
        what = f"the head has {len(places)} linear layers, number {layer} is to be retrained"
        raise SapperError(what, where="attack.layer", remedy="choose another layer, or a head such as mlp or linear")
    return nn.Sequential(*parts[: places[layer]]), nn.Sequential(*parts[places[layer] :])


def strongest(after: nn.Sequential, count: int) -> Tensor:
    """The inputs of the first layer with the largest Σ|w|, int64 (count,), or all if there are no more."""
    weight = after[0].weight
    assert isinstance(weight, Tensor)
    sums = weight.detach().abs().sum(0)
    return sums.topk(min(count, len(sums))).indices


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighboring pixels, down and across, of each image: (N,)."""
    down, across = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return down.flatten(1).mean(1) + across.flatten(1).mean(1)


def descend(start: Tensor, loss: Callable[[Tensor], Tensor], rate: float, steps: int) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] that Adam finds from ``start`` on; ``loss`` is a sum over the images."""
    images = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=rate)
    for _ in range(steps):
        (images.grad,) = torch.autograd.grad(loss(images), [images])
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()
