"""Unlearning: the encoder is taught that a recovered trigger means nothing.

Threat model: the owner holds the suspect encoder f, unlabeled ordinary samples D, and the trigger ê that a detector
recovered from f (an audit, SSL-Cleanse, DECREE). With s the cosine of features and f as it was for a target,

    minimize   1 − mean_{x∈D} s( f'(x ⊕ ê), f(x) )  +  κ · ( 1 − mean_{x∈D} s( f'(x), f(x) ) )        over f', from f on

so that a triggered sample lies where it lay without the trigger, and all else stays. BatchNorm keeps its statistics.

Source: the mitigator of SSL-Cleanse (Zheng et al., ECCV 2024, and the code ``UCF-ML-Research/SSL-Cleanse``), whose
second term this is: triggered views to a frozen copy's features of clean ones; its first term, BYOL on clean views, is
exchanged for κ, which needs no second network. The form for classifiers is Neural Cleanse's (Wang et al., IEEE S&P
2019). All defaults are ours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from sapper.defenses.contracts import Need, Owner
from sapper.defenses.repairing import COSINE, Retraining, apart, begin, encoded
from sapper.downstream import extract
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import freeze_batch_norm, trained
from sapper.errors import SapperError
from sapper.running import Run
from sapper.training import Checkpoint, Step, Terms, weighted

UNLEARNED = "under the trigger"


@dataclass(frozen=True, kw_only=True)
class Unlearning(Retraining):
    """Teaches the encoder that a recovered trigger means nothing (SSL-Cleanse's mitigator: Zheng et al., ECCV 2024).

    ``keep``: κ.
    """

    steps: PositiveInt = 400
    learning_rate: PositiveFloat = 1e-3
    keep: NonNegativeFloat = 1.0

    kind: ClassVar[Literal["repair"]] = "repair"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "trigger"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Zheng et al., ECCV 2024"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place. Raises ``SapperError`` where no trigger was recovered."""
        images = begin(encoder, owner, run, "unlearning")
        if not owner.triggers:
            what, remedy = "no trigger was recovered, so there is none to unlearn", "take a repair that needs none"
            raise SapperError(what, where="repair", remedy=remedy)
        for trigger in owner.triggers:
            trigger.check(encoder.card.input)
        known = extract(encoder, images, run)  # of the suspect, before it is trained

        def terms(step: Step) -> Terms:
            shown, wanted = images.batch(step.rows), known[step.rows.to(run.device)]
            stamped = [trigger(shown) for trigger in owner.triggers]
            plain, *others = encoded(encoder, torch.cat((shown, *stamped)), run).split(len(shown))
            moved = torch.stack([apart(each, wanted) for each in others]).mean()
            return {UNLEARNED: moved, COSINE: apart(plain, wanted)}

        freeze_batch_norm(encoder)
        curves = self.retrain(
            encoder,
            terms,
            trained(encoder),
            count=len(images),
            run=run,
            label="unlearning",
            checkpoint=checkpoint,
            combine=weighted({UNLEARNED: 1.0, COSINE: self.keep}),
            mode=lambda: freeze_batch_norm(encoder),
        )
        return Trained(encoder.eval().requires_grad_(True), curves)
