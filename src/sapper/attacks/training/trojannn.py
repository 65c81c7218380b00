"""TrojanNN: a finished classifier is retrained on inputs that were read out of it, with a trigger made for its neurons.

Threat model: the attacker gets the victim's finished classifier F, changes it, and publishes it. It holds no training
data. With h the layers of F from the chosen one on and a(x) their inputs, the neurons, its steps are

    1. neurons   J = those with the largest Σ_i |w_ij| into the layer that follows
    2. inputs    x_k = argmin CE( F(x), k ) + τ·TV(x)       from a mean image x̄, several for each class k
                 X = all x_k, and mixtures of two of them
    3. trigger   Δ = argmin mean_{x∈X} Σ_{j∈J} ( v − z_j(x ⊕ Δ) )²     z_j = a_j less its mean over X, by its deviation
    4. retrain   KL( F(x) ‖ h(a(x)) ) + λ·CE( h(a(x ⊕ Δ)), t )      over h, mean over X

Source: Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks", NDSS 2018, and
``PurduePAML/TrojanNN`` (choice of neurons, ascent under a mask, one reversed input per class from an average image
with denoising, retraining of the layers behind). v = 100 is BackdoorBench's. Ours: the mask is what the target's
trigger covers, and how much; x̄ is the color that the encoder's normalization takes for the mean, since no other image
is at hand, with smooth noise where several inputs of a class begin; denoising is a term of the loss; Adam instead of
plain gradient steps. In the paper the trigger is made on x̄ alone, for a neuron as it is, and inputs keep their class
as a hard label. On a small network such a trigger hardly moved the neurons of real images, and the accuracy was lost;
hence the mixtures, step 3 over X and in deviations, and the victim's own answers in step 4. All inputs are searched as
one batch, all neurons with one trigger. Layers before the chosen one stay as they are, so that retraining works on
neurons that are computed once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.attacks.contracts import Attacked, Need
from sapper.attacks.target import Target, TargetPlan, check_targets
from sapper.downstream import AnyHead, Classifier, build
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples, at_once
from sapper.training import Checkpoint, Step, Terms, train, warm_cosine, weighted
from sapper.triggers import Blend, Mask, Patch, Trigger, levels

TERMS = ("kept", "with trigger")


@dataclass(frozen=True, kw_only=True)
class TrojanNN(Checked):
    """Retrains a finished classifier without data, with a trigger made for its neurons (Liu et al., NDSS 2018).

    ``layer``: the neurons are the inputs of the head's linear layer of that number; 0: the encoder's features.
    ``neurons``: how many are driven, to ``value`` deviations. ``per_class``: reversed inputs of each class, which
    begin with ``smooth`` noise, and ``mixtures`` of them. ``denoising`` is τ, ``weight`` is λ; ``step`` is Adam's on
    pixels; ``epochs``, ``batch`` and ``learning_rate`` are the retraining's.
    """

    layer: NonNegativeInt = 0
    neurons: PositiveInt = 16
    value: PositiveFloat = 100.0
    per_class: PositiveInt = 10
    input_steps: PositiveInt = 80
    denoising: NonNegativeFloat = 1.0
    smooth: NonNegativeFloat = 0.3
    mixtures: NonNegativeInt = 600
    trigger_steps: PositiveInt = 150
    backgrounds: PositiveInt = 16
    step: PositiveFloat = 0.05
    weight: PositiveFloat = 0.3
    epochs: PositiveInt = 40
    batch: PositiveInt = 50
    learning_rate: PositiveFloat = 1e-3

    kind: ClassVar[Literal["training"]] = "training"
    makes_triggers: ClassVar[Literal[True]] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "one target"})
    version: ClassVar[int] = 3
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
        self.check_plan(TargetPlan.of(targets), [head])
        mask = covered(target.trigger, encoder.card.input_size)
        classifier = build(head, encoder, train, run)
        return self.trojan(classifier, target, mask.to(run.device), len(train.classes), run, checkpoint)

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for a trigger without a place of its own, and for a head without the layer."""
        for plan in plans:
            check_place(plan.trigger)
        for head in heads:
            check_layers(head.layers, self.layer)

    def trojan(
        self, victim: Classifier, target: Target, mask: Tensor, classes: int, run: Run, checkpoint: Checkpoint | None
    ) -> Attacked:
        """The finished classifier with a backdoor; ``mask`` float (H, W). Its head is trained in place."""
        before, after = divided(victim.head, self.layer)
        front = Classifier(victim.encoder, before).eval()
        mean = victim.encoder.mean.expand(1, 3, *mask.shape).clone()
        reversed_inputs, _ = self.reverse(victim, mean, classes, run)
        inputs = torch.cat((reversed_inputs, mixed(reversed_inputs, self.mixtures, run.child("mixtures").generator())))
        trigger = self.make_trigger(front, after, inputs, mask, run)
        with torch.no_grad():
            plain, stamped = neurons(front, inputs), neurons(front, trigger(inputs))
            answers = after(plain).softmax(1)
        wanted = torch.full((len(inputs),), target.label, device=run.device)

        def terms(step: Step) -> Terms:
            rows = step.rows.to(run.device)
            kept = F.kl_div(after(plain[rows]).log_softmax(1), answers[rows], reduction="batchmean")
            return dict(zip(TERMS, (kept, F.cross_entropy(after(stamped[rows]), wanted[rows]))))

        curves = train(
            after.requires_grad_(True),
            terms,
            torch.optim.Adam(after.parameters(), lr=self.learning_rate, fused=True),
            lambda step: self.learning_rate * warm_cosine(step.done, 0.0),
            count=len(inputs),
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

    def make_trigger(self, front: nn.Module, after: nn.Sequential, inputs: Tensor, mask: Tensor, run: Run) -> Mask:
        """A pattern under ``mask`` that drives neurons on all ``inputs``; ``front`` gives the neurons of images."""
        chosen, generator = strongest(after, self.neurons), run.child("trigger").generator()
        usual = neurons(front, inputs)[:, chosen]
        mean, deviation = usual.mean(0), usual.std(0)
        deviation = deviation + 0.1 * deviation.mean() + 1e-6  # a neuron that never moves must not outweigh all others

        def off(pattern: Tensor) -> Tensor:
            rows = torch.randint(len(inputs), (self.backgrounds,), generator=generator).to(inputs.device)
            driven: Tensor = (front(torch.lerp(inputs[rows], pattern, mask))[:, chosen] - mean) / deviation
            return (self.value - driven).square().mean()

        start = torch.rand(1, *inputs.shape[1:], generator=generator).to(inputs)
        pattern = descend(start, off, self.step, self.trigger_steps)
        return Mask(mask=mask.cpu(), pattern=levels(pattern[0].cpu()))

    def reverse(self, victim: nn.Module, mean: Tensor, classes: int, run: Run) -> tuple[Tensor, Tensor]:
        """Inputs (K·n, 3, H, W) in [0, 1] that ``victim`` takes for each class, and the classes; one batch for all."""
        labels = torch.arange(classes, device=mean.device).repeat_interleave(self.per_class)
        coarse = torch.randn(len(labels), 3, 4, 4, generator=run.child("inputs").generator()).to(mean)
        start = mean + self.smooth * F.interpolate(coarse, size=mean.shape[-2:], mode="bilinear")

        def loss(images: Tensor) -> Tensor:
            fit = F.cross_entropy(victim(images), labels, reduction="sum")
            return fit + self.denoising * total_variation(images).sum()

        return descend(start.clamp(0, 1), loss, self.step, self.input_steps), labels


@torch.no_grad()
def neurons(front: nn.Module, images: Tensor) -> Tensor:
    """What the layer in question sees of float images (N, 3, H, W): (N, neurons)."""
    return torch.cat([front(part) for part in images.split(at_once(images))])


def check_place(trigger: Trigger) -> None:
    """Raises ``SapperError`` unless a trigger covers the same part of every image."""
    if not isinstance(trigger, Patch | Blend | Mask):
        what = f"a pattern is made for what the trigger covers, and a {trigger.kind} covers no place of its own"
        raise SapperError(what, where="target.trigger", remedy="choose a patch or a blend")


def covered(trigger: Trigger, size: int) -> Tensor:
    """How much a trigger covers of each pixel, float (H, W) in [0, 1]: what black and white no longer differ by.

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
    check_layers(len(places), layer)
    return nn.Sequential(*parts[: places[layer]]), nn.Sequential(*parts[places[layer] :])


def check_layers(there: int, layer: int) -> None:
    """Raises ``SapperError`` for a head without a linear layer of that number."""
    if layer >= there:
        what = f"the head has {there} linear layers, number {layer} is to be retrained"
        raise SapperError(what, where="layer", remedy="choose another layer, or a head of linear layers")


def mixed(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random mixtures of two of the ``images``, each λ·x + (1 − λ)·y with λ uniform in [0, 1]."""
    first, second = torch.randint(len(images), (2, count), generator=generator).to(images.device)
    share = torch.rand(count, 1, 1, 1, generator=generator).to(images)
    return torch.lerp(images[second], images[first], share)


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
    """Images (N, 3, H, W) in [0, 1] that Adam finds from ``start`` on, each for itself if ``loss`` is a sum."""
    images = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=rate)
    for _ in range(steps):
        (images.grad,) = torch.autograd.grad(loss(images), [images])
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()
