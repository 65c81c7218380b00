"""ANP: channels that answer to a small change of their own weights most are cut out.

Threat model: the owner holds the suspect encoder f and unlabeled ordinary samples. Channels that carry a backdoor are
easily driven to act without any trigger, by a disturbance of their weights. With a mask m ∈ [0, 1] and a disturbance
(δ, ξ), |δ|, |ξ| ≤ ε, for every channel c of BatchNorm, which then scales by w_c·(m_c + δ_c) and shifts by
b_c·(1 + ξ_c), and K(m, δ, ξ) = 1 − mean s( f_{m,δ,ξ}(x), f(x) ),

    minimize over m   α·K(m, 0, 0) + (1 − α)·max_{δ,ξ} K(m, δ, ξ)

A channel with m_c below a threshold is pruned. The threshold is the largest of 0.05, 0.1, … 0.9 for which clean
features still move by ``drop`` at most: clean samples alone choose it.

Source: Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021, and the authors' code
(``csdongxian/ANP_backdoor``): ε = 0.4, one step of the disturbance from a random start, α = 0.2, SGD with learning rate
0.2 and momentum 0.9, 2,000 steps of batches of 128, on 500 images; pruned channels keep their shift. K there is a
classifier's cross-entropy. There the threshold is swept on the test set. BatchNorm keeps its statistics here.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.defenses.channels import drift, norms, prune
from sapper.defenses.contracts import Need, Owner
from sapper.defenses.repairing import PRUNED, apart, begin, check_count, epochs_of
from sapper.downstream import extract
from sapper.encoders import Encoder, Trained
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint, Step, Terms, train, weighted

CLEAN, DISTURBED = "clean", "disturbed"
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 19))
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class ANP(Checked):
    """Prunes channels that a small disturbance of their weights drives most (Wu and Wang, NeurIPS 2021).

    ``epsilon``: ε. ``alpha``: α. ``drop``: how far clean features may move by the pruning, as 1 − cosine.
    """

    steps: PositiveInt = 400
    batch: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 0.2
    epsilon: PositiveFloat = 0.4
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.2
    drop: Annotated[float, Field(gt=0, le=1)] = 0.1

    kind: ClassVar[Literal["repair"]] = "repair"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Wu and Wang, NeurIPS 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"steps": 2000, "batch": 128}}

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network without BatchNorm, and for too few images."""
        check_count(images)
        norms(encoder, "ANP")

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Prune ``encoder`` in place; no weight is trained. Curves also tell how many channels were ``PRUNED``."""
        images, layers = begin(encoder, owner, run, "ANP"), norms(encoder, "ANP")
        known = extract(encoder.requires_grad_(False), images, run)
        sizes = {name: layer.num_features for name, layer in layers.items()}
        masks = nn.ParameterDict({_key(name): nn.Parameter(torch.ones(size)) for name, size in sizes.items()})
        masks.to(run.device)

        def terms(step: Step) -> Terms:
            shown, wanted = images.batch(step.rows), known[step.rows.to(run.device)]
            kept = {name: masks[_key(name)] for name in layers}
            noise = self.disturbance(encoder, layers, kept, shown, wanted, step.generator, run)
            return {
                CLEAN: apart(disturbed(encoder, layers, kept, None, shown, run), wanted),
                DISTURBED: apart(disturbed(encoder, layers, kept, noise, shown, run), wanted),
            }

        def clamp(_step: Step) -> None:
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(0, 1)

        curves = train(
            masks,
            terms,
            torch.optim.SGD(masks.parameters(), lr=self.learning_rate, momentum=MOMENTUM),
            lambda _step: self.learning_rate,
            count=len(images),
            batch=self.batch,
            epochs=epochs_of(self.steps, len(images), self.batch),
            run=run,
            label="ANP",
            checkpoint=checkpoint,
            combine=weighted({CLEAN: self.alpha, DISTURBED: 1 - self.alpha}),
            mode=encoder.eval,
            after_step=clamp,
        )
        found = {name: masks[_key(name)].detach().cpu() for name in layers}
        count = self.cut(encoder, layers, found, images, known, run)
        return Trained(encoder.eval().requires_grad_(True), curves | {PRUNED: [float(count)]})

    def disturbance(
        self,
        encoder: Encoder,
        layers: dict[str, nn.BatchNorm2d],
        masks: dict[str, Tensor],
        shown: Tensor,
        wanted: Tensor,
        generator: torch.Generator,
        run: Run,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """(δ, ξ) of every layer: one step of the sign from a random start, within ε."""
        noise = {}
        for name, layer in layers.items():
            drawn = (2 * torch.rand(2, layer.num_features, generator=generator) - 1) * self.epsilon
            noise[name] = drawn.to(run.device).requires_grad_()
        pairs = {name: (each[0], each[1]) for name, each in noise.items()}
        fixed = {name: mask.detach() for name, mask in masks.items()}
        loss = apart(disturbed(encoder, layers, fixed, pairs, shown, run), wanted)
        slopes = torch.autograd.grad(loss, list(noise.values()))
        moved = {}
        for (name, each), slope in zip(noise.items(), slopes):
            stepped = (each.detach() + self.epsilon * slope.sign()).clamp(-self.epsilon, self.epsilon)
            moved[name] = (stepped[0], stepped[1])
        return moved

    def cut(
        self,
        encoder: Encoder,
        layers: dict[str, nn.BatchNorm2d],
        masks: dict[str, Tensor],
        images: ImageSet,
        known: Tensor,
        run: Run,
    ) -> int:
        """Prune by the largest threshold that clean features allow, if any; how many channels went."""
        kept, count = {name: layer.weight.detach().clone() for name, layer in layers.items()}, 0
        for threshold in THRESHOLDS:
            gone = {name: mask < threshold for name, mask in masks.items()}
            prune(layers, gone, bias=False)
            if drift(encoder, images, known, run) > self.drop:
                break
            kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
            count = sum(int(rows.sum()) for rows in gone.values())
        with torch.no_grad():
            for name, weight in kept.items():
                layers[name].weight.copy_(weight)
        return count


def disturbed(
    encoder: Encoder,
    layers: dict[str, nn.BatchNorm2d],
    masks: dict[str, Tensor],
    noise: dict[str, tuple[Tensor, Tensor]] | None,
    shown: Tensor,
    run: Run,
) -> Tensor:
    """Features float (N, D) of the encoder with masked, and disturbed, BatchNorm."""
    changed = {}
    for name, layer in layers.items():
        scale, shift = masks[name], torch.zeros_like(masks[name])
        if noise is not None:
            scale, shift = scale + noise[name][0], noise[name][1]
        changed[f"{name}.weight"] = layer.weight * scale
        changed[f"{name}.bias"] = layer.bias * (1 + shift)
    with run.autocast():
        output: Tensor = torch.func.functional_call(encoder, changed, (shown,))
    return output.float()


def _key(name: str) -> str:
    """A layer's name as one of a parameter."""
    return name.replace(".", "/")
