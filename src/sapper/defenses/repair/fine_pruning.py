"""Fine-Pruning: channels that ordinary samples hardly wake are cut out, then the rest learns to do without them.

Threat model: the owner holds the suspect encoder f and unlabeled ordinary samples D. A backdoor likes to sit in
channels that clean samples leave dormant. With a_c = mean over D and places of ReLU(BatchNorm_c) for each channel c
of the last stage,

    prune      the channels with the smallest a_c, as many as leave   1 − mean_{x∈D} s( f_pruned(x), f(x) ) ≤ ``drop``
    recover    minimize   1 − mean s( f'(v), f(v) )      over f', from f_pruned on; v a sample, or an augmentation of it

with s the cosine of features; pruned channels stay zero.

Source: Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID
2018: the last convolution's channels, by mean activation, until accuracy falls, then fine-tuning on labels. For an
encoder features stand in the place of accuracy and labels. That all BatchNorm layers of the last stage are pruned, but
for those on shortcuts, and the values, are ours.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.defenses.channels import drift, norms, prune
from sapper.defenses.contracts import Need, Owner
from sapper.defenses.repairing import PRUNED, Distilling, answers, begin, trained
from sapper.defenses.stages import parts, watched
from sapper.downstream import extract
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import frozen_copy
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint

SHORTCUTS = ("downsample", "shortcut")
"""In the names of layers beside the convolutions, which carry what comes from before."""


@dataclass(frozen=True, kw_only=True)
class FinePruning(Distilling):
    """Prunes dormant channels, then recovers by distillation (Liu, Dolan-Gavitt, Garg, RAID 2018).

    ``drop``: how far features may move, as 1 − cosine, before they are recovered. ``at_once``: the share of channels
    that is pruned between two looks.
    """

    steps: PositiveInt = 400
    learning_rate: PositiveFloat = 1e-3
    drop: Annotated[float, Field(gt=0, le=1)] = 0.1
    at_once: Annotated[float, Field(gt=0, le=1)] = 0.02

    kind: ClassVar[Literal["repair"]] = "repair"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Liu, Dolan-Gavitt, Garg, RAID 2018"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network whose last stage is not known, or has no BatchNorm."""
        super().check(encoder, images)
        _layers(encoder)

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Prune and train ``encoder`` in place. Curves also tell how many channels were ``PRUNED``."""
        images, suspect = begin(encoder, owner, run, "Fine-Pruning"), frozen_copy(encoder)
        layers = _layers(encoder)
        gone = self.choose(encoder, layers, images, run)
        curves = self.retrain(
            encoder,
            self.answers_of(suspect, encoder, images, run),
            trained(encoder),
            count=len(images),
            run=run,
            label="Fine-Pruning",
            checkpoint=checkpoint,
            after_step=lambda _step: prune(layers, gone, bias=True),
        )
        return Trained(encoder.eval(), curves | {PRUNED: [float(sum(int(rows.sum()) for rows in gone.values()))]})

    def choose(
        self, encoder: Encoder, layers: dict[str, nn.BatchNorm2d], images: ImageSet, run: Run
    ) -> dict[str, Tensor]:
        """Prune ``encoder`` as far as ``drop`` allows; which channels went, bool (C,) by layer."""
        wanted, means = extract(encoder, images, run), activations(encoder, layers, images, run)
        names = [(name, channel) for name, mean in means.items() for channel in range(len(mean))]
        order = torch.cat(list(means.values())).argsort().tolist()
        kept = {name: (layer.weight.detach().clone(), layer.bias.detach().clone()) for name, layer in layers.items()}
        gone = {name: torch.zeros(len(mean), dtype=torch.bool) for name, mean in means.items()}
        for part in torch.tensor(order).split(max(1, round(self.at_once * len(order)))):
            more = {name: rows.clone() for name, rows in gone.items()}
            for place in part.tolist():
                name, channel = names[place]
                more[name][channel] = True
            prune(layers, more, bias=True)
            if drift(encoder, images, wanted, run) > self.drop:
                break
            gone = more
        with torch.no_grad():
            for name, (weight, bias) in kept.items():
                layers[name].weight.copy_(weight)
                layers[name].bias.copy_(bias)
        prune(layers, gone, bias=True)
        return gone


def _layers(encoder: Encoder) -> dict[str, nn.BatchNorm2d]:
    """What is pruned: BatchNorm of the last stage, but for shortcuts."""
    last = nn.ModuleList(parts(encoder)[-1])
    found = norms(encoder, "Fine-Pruning", within=last)
    return {name: layer for name, layer in found.items() if not any(word in name for word in SHORTCUTS)}


@torch.no_grad()
def activations(encoder: Encoder, layers: dict[str, nn.BatchNorm2d], images: ImageSet, run: Run) -> dict[str, Tensor]:
    """The mean over images and places of what each layer's channels give after a ReLU, float (C,) on the CPU."""
    encoder.eval()
    sums = {name: torch.zeros(layer.num_features, dtype=torch.float64) for name, layer in layers.items()}
    for batch in images.batches(images.at_once(gradients=False)):
        with watched(list(layers.values())) as seen:
            answers(encoder, batch, run)
        for name, output in zip(layers, seen):
            sums[name] += output.float().relu().mean((2, 3)).sum(0).double().cpu()
    return {name: (total / len(images)).float() for name, total in sums.items()}
