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

from sapper.defenses.channels import (
    SHORTCUTS,
    activations,
    dormant_first,
    drift,
    norms,
    prune,
    put_back,
    weights_of,
)
from sapper.defenses.contracts import Need, Owner
from sapper.defenses.repairing import PRUNED, Distilling, begin
from sapper.defenses.stages import parts
from sapper.downstream import extract
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import frozen_copy, trained
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint


@dataclass(frozen=True, kw_only=True)
class FinePruning(Distilling):
    """Prunes dormant channels, then recovers by distillation (Liu, Dolan-Gavitt, Garg, RAID 2018).

    ``drop``: how far features may move, as 1 − cosine, before they are recovered. ``at_once``: the share of channels
    that is pruned between two looks.
    """

    steps: PositiveInt = 400
    learning_rate: PositiveFloat = 1e-2
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
        kept, gone = (
            weights_of(layers),
            {name: torch.zeros(len(mean), dtype=torch.bool) for name, mean in means.items()},
        )
        for more in dormant_first(means, self.at_once):
            prune(layers, more, bias=True)
            if drift(encoder, images, wanted, run) > self.drop:
                break
            gone = more
        put_back(layers, kept)
        prune(layers, gone, bias=True)
        return gone


def _layers(encoder: Encoder) -> dict[str, nn.BatchNorm2d]:
    """What is pruned: BatchNorm of the last stage, but for shortcuts."""
    last = nn.ModuleList(parts(encoder)[-1])
    found = norms(encoder, "Fine-Pruning", within=last)
    return {name: layer for name, layer in found.items() if not any(word in name for word in SHORTCUTS)}
