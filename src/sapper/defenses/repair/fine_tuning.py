"""Fine-tuning: the pre-training goes on for a while, on clean samples; the baseline that every repair must beat.

Threat model: the owner holds the suspect encoder f and unlabeled ordinary samples. With two random views of every
image, a fresh projection head g, and NT-Xent as in SimCLR,

    minimize   NT-Xent( g(f(v₁)), g(f(v₂)) )        over f, from its weights on, and g, which is thrown away

The hope is that what is not used is forgotten. Source: none for encoders; it is what the field calls fine-tuning as a
defense (Liu, Dolan-Gavitt, Garg, "Fine-Pruning", RAID 2018, for classifiers) with the loss that needs no labels (Chen
et al., ICML 2020). All defaults are ours.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from sapper.defenses.contracts import Need, Owner
from sapper.defenses.repairing import Retraining, begin, encoded, views
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import trained
from sapper.running import Run
from sapper.training import Checkpoint, Step, Terms
from sapper.training.contrast import nt_xent
from sapper.training.heads import mlp


@dataclass(frozen=True, kw_only=True)
class FineTuning(Retraining):
    """Goes on with SimCLR on clean samples (the baseline of Liu, Dolan-Gavitt, Garg, RAID 2018).

    ``temperature`` and ``projection`` as of SimCLR; ``crop_scale``: the smallest share of an image that a view shows.
    """

    learning_rate: PositiveFloat = 1e-3
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    temperature: PositiveFloat = 0.5
    projection: PositiveInt = 128

    kind: ClassVar[Literal["repair"]] = "repair"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Liu, Dolan-Gavitt, Garg, RAID 2018"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place."""
        images = begin(encoder, owner, run, "fine-tuning")
        head = mlp(encoder.feature_size, encoder.feature_size, self.projection, run.child("projection")).to(run.device)
        model = nn.ModuleDict({"encoder": encoder, "head": head})
        weights = [*trained(encoder), *head.parameters()]

        def terms(step: Step) -> Terms:
            pairs = views(self.crop_scale).views(images, step.rows.repeat(2), step.generator)
            return {"NT-Xent": nt_xent(head(encoded(encoder, pairs, run)), self.temperature)}

        curves = self.retrain(
            model, terms, weights, count=len(images), run=run, label="fine-tuning", checkpoint=checkpoint
        )
        return Trained(encoder.eval(), curves)
