"""BCU: forget a part of the weights at random, then learn the answers back from the suspect on clean samples.

Threat model: the owner holds the suspect encoder f and unlabeled ordinary samples. Every weight of a convolution or a
linear map is replaced, with a probability p_l that grows with the depth l, by one of a fresh network; BatchNorm is left
alone. The network h that results is distilled,

    minimize   1 − mean s( h(v), f(v) )        over h; v a sample, or a random augmentation of it

A backdoor is a path through some of the weights, and clean samples give no reason to mend it.

Source: Pang, Sun, Ling, "Backdoor Cleansing with Unlabeled Data", CVPR 2023, and the code ``luluppang/BCU``
(``distillation_dropout_increase.py``; ``run_defense.sh``): p = 0.01, 0.01, 0.03, 0.09, 0.27 for the stem and the
stages 1 to 4; SGD, 100 epochs, batches of 256. There the answers are a classifier's, and the loss is KL with a
temperature that rises from 1 to 4; encoders have features, so the cosine stands for it. Steps and optimizer are ours,
so there is no preset for the paper.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.conv import _ConvNd

from sapper.defenses.contracts import Need, Owner
from sapper.defenses.repairing import Distilling, begin, fresh
from sapper.defenses.stages import parts, stage_of
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import frozen_copy, trained
from sapper.running import Run
from sapper.training import Checkpoint

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class BCU(Distilling):
    """Replaces weights at random and learns them back from the suspect (Pang, Sun, Ling, CVPR 2023).

    ``replaced``: p of the stem and of each stage; the last one holds for all that come behind.
    """

    replaced: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.01, 0.01, 0.03, 0.09, 0.27)

    kind: ClassVar[Literal["repair"]] = "repair"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Pang, Sun, Ling, CVPR 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network whose stages are not known."""
        super().check(encoder, images)
        parts(encoder)

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place, after a part of its weights was replaced."""
        self.check(encoder, len(owner.clean))
        images, suspect = begin(encoder, owner, run, "BCU"), frozen_copy(encoder)
        self.forget(encoder, run)
        terms = self.answers_of(suspect, encoder, images, run)
        curves = self.retrain(
            encoder, terms, trained(encoder), count=len(images), run=run, label="BCU", checkpoint=checkpoint
        )
        return Trained(encoder.eval(), curves)

    @torch.no_grad()
    def forget(self, encoder: Encoder, run: Run) -> None:
        """Replace weights and biases of convolutions and linear maps, each with the probability of its stage."""
        strange, generator = fresh(encoder, run.child("fresh")), run.child("which").generator()
        others = dict(strange.named_modules())
        names = {module: name for name, module in encoder.named_modules()}
        for module, stage in stage_of(encoder).items():
            if not isinstance(module, _ConvNd | nn.Linear):
                continue
            share, other = self.replaced[min(stage, len(self.replaced) - 1)], others[names[module]]
            for mine, its in zip(module.parameters(recurse=False), other.parameters(recurse=False)):
                gone = torch.rand(mine.shape, generator=generator).to(mine.device) < share
                mine.copy_(torch.where(gone, its, mine))
