"""Distillation: a fresh student learns from a suspect by clean samples, and never meets its trigger.

Threat model: the owner holds the suspect encoder f and unlabeled ordinary samples D, in which no trigger occurs, and
knows nothing of the attack. With h a network like f with fresh weights, v a sample or, for a share of each batch, a
random augmentation of it, and s the cosine of features,

    minimize   1 − mean s( h(v), f(v) )  +  c · NT-Xent( h(v₁), h(v₂) )  +  Σ_l w_l · mean ( a_l(h(v)) − a_l(f(v)) )²

where v₁, v₂ are two augmentations, and a_l the attention map of stage l, of length 1 (``defenses/stages.py``). What
f does with a trigger is nowhere in D, so h has no reason to learn it. It ends as well as D covers what f is for.

Sources: the plain form (c = w = 0, the default) is the baseline that all distillations of encoders are compared with.
The preset ``mimic`` has the loss of MIMIC (Sun et al., TIFS 2025, and the code ``wssun/MIMIC``): c = 1 at τ = 0.5,
w_l = 1000 + 10000 · I_l / Σ I with I_l the mutual information of stage l and the features, Adam 1e-3, batches of 128;
there 1000 epochs on 4 % of the data, here ``steps``. Its code takes I_l from the student before its training; here it
is the suspect's. The network that estimates I_l (``defenses/information.py``) and all other defaults are ours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Need, Owner
from sapper.defenses.information import mutual_information
from sapper.defenses.repairing import (
    COSINE,
    Distilling,
    answers,
    apart,
    begin,
    encoded,
    fresh,
    views,
)
from sapper.defenses.stages import attention, check_attention, stages, watched
from sapper.downstream import extract
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import frozen_copy, trained
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint, Step, Terms, weighted
from sapper.training.contrast import nt_xent

CONTRAST, ATTENTION = "NT-Xent", "attention"


@dataclass(frozen=True, kw_only=True)
class Distillation(Distilling):
    """Trains a fresh network to answer as the encoder does on clean samples (MIMIC as a preset: Sun et al., TIFS 2025).

    ``contrast``: c. ``temperature``: τ of NT-Xent. ``attention``: the least w_l. ``information``: what all w_l get
    besides, divided by mutual information, which is estimated in ``information_steps`` steps for each stage.
    """

    contrast: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 0.5
    attention: NonNegativeFloat = 0.0
    information: NonNegativeFloat = 0.0
    information_steps: PositiveInt = 200

    kind: ClassVar[Literal["repair"]] = "repair"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Sun et al., TIFS 2025"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "mimic": {"contrast": 1.0, "attention": 1000.0, "information": 10000.0, "learning_rate": 1e-3, "batch": 128}
    }

    @property
    def attentive(self) -> bool:
        """Whether attention is compared."""
        return self.attention > 0 or self.information > 0

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network whose attention is not known."""
        super().check(encoder, images)
        if self.attentive:
            check_attention(encoder)

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """The student; the weights of ``encoder`` are left as they are."""
        self.check(encoder, len(owner.clean))
        images = begin(encoder, owner, run, "distillation")
        suspect, student = frozen_copy(encoder), fresh(encoder, run.child("student"))
        looked = (stages(suspect), stages(student)) if self.attentive else ([], [])
        weights = self.stage_weights(suspect, images, run.child("information")) if looked[0] else []

        def terms(step: Step) -> Terms:
            shown = self.view(images.batch(step.rows), step.generator)
            with watched(looked[0]) as wanted, watched(looked[1]) as given:
                known = answers(suspect, shown, run)
                losses = {COSINE: apart(encoded(student, shown, run), known)}
            if looked[0]:
                parts = [weight * _unlike(mine, its) for weight, mine, its in zip(weights, given, wanted)]
                losses[ATTENTION] = torch.stack(parts).sum()
            if self.contrast:
                pairs = views(self.crop_scale).views(images, step.rows.repeat(2), step.generator)
                losses[CONTRAST] = nt_xent(encoded(student, pairs, run), self.temperature)
            return losses

        curves = self.retrain(
            student,
            terms,
            trained(student),
            count=len(images),
            run=run,
            label="distillation",
            checkpoint=checkpoint,
            combine=weighted(self._of_terms(bool(looked[0]))),
        )
        return Trained(student.eval(), curves)

    def _of_terms(self, attentive: bool) -> dict[str, float]:
        weights = {COSINE: 1.0}
        if attentive:
            weights[ATTENTION] = 1.0
        return weights | ({CONTRAST: self.contrast} if self.contrast else {})

    def stage_weights(self, suspect: Encoder, images: ImageSet, run: Run) -> list[float]:
        """w_l of every stage of the suspect."""
        places = stages(suspect)
        if not self.information:
            return [self.attention] * len(places)
        features, shares = extract(suspect, images, run), []
        for number, place in enumerate(places):
            maps = _pooled(suspect, place, images, run)
            shares.append(mutual_information(maps, features, self.information_steps, run.child(f"stage {number}")))
        whole = sum(shares)
        even = 1 / len(places)
        return [self.attention + self.information * (share / whole if whole > 0 else even) for share in shares]


def _unlike(mine: Tensor, its: Tensor) -> Tensor:
    """The mean squared difference of two stages' attention."""
    return (attention(mine) - attention(its)).square().mean()


@torch.no_grad()
def _pooled(encoder: Encoder, place: torch.nn.Module, images: ImageSet, run: Run) -> Tensor:
    """What a stage gives for every image, averaged over its places; float (N, C)."""
    pooled = []
    with watched([place]) as seen:
        for batch in images.batches(images.at_once()):
            answers(encoder, batch, run)
            output = seen.pop().float()
            pooled.append(output.mean((2, 3)) if output.ndim == 4 else output.mean(1))
    return torch.cat(pooled)
