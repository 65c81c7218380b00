"""Unlearning for classifiers: images with a recovered trigger keep their true labels.

Threat model: the owner holds a suspect classifier f, clean labeled images, and the trigger ê that a detector recovered
from f (Neural Cleanse). With a random share ρ of every batch stamped,

    minimize   mean CE( f(x [⊕ ê]), y )        over f, from the suspect on; y the image's true label, stamped or not

so that the trigger comes to mean nothing, and the rest of the batch keeps the accuracy.

Source: Wang et al., "Neural Cleanse", IEEE S&P 2019, section on unlearning: one epoch on 10 % of the training data, of
which 20 % get the reversed trigger and keep their labels. The preset ``paper`` is one epoch, and a scenario's
``share = 0.1`` the data. Adam, its rate, and more than one epoch where images are few are ours. Where several triggers
were recovered, stamped images take turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Need, Owner, RepairedClassifier
from sapper.defenses.repairing_classifiers import LABELS, Relearning, begin, miss
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.running import Run
from sapper.training import Checkpoint, Step, Terms
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class UnlearningClassifier(Relearning):
    """Teaches a classifier that a recovered trigger means nothing (Neural Cleanse's: Wang et al., IEEE S&P 2019).

    ``stamped``: ρ.
    """

    steps: PositiveInt = 200
    stamped: Annotated[float, Field(gt=0, le=1)] = 0.2

    kind: ClassVar[Literal["repair_classifier"]] = "repair_classifier"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels", "trigger"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Wang et al., IEEE S&P 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"steps": 1, "stamped": 0.2}}

    def __call__(
        self, classifier: Classifier, owner: Owner, run: Run, checkpoint: Checkpoint | None = None
    ) -> RepairedClassifier:
        """A repaired copy. Raises ``SapperError`` where no trigger was recovered."""
        if not owner.triggers:
            what, remedy = "no trigger was recovered, so there is none to unlearn", "take a repair that needs none"
            raise SapperError(what, where="repair", remedy=remedy)
        for trigger in owner.triggers:
            trigger.check(classifier.encoder.card.input)
        lesson = begin(classifier, owner, run, "unlearning")

        def terms(step: Step) -> Terms:
            shown = stamp(lesson.images.batch(step.rows), owner.triggers, self.stamped)
            return {LABELS: miss(lesson.student, shown, lesson.labels[step.rows.to(run.device)], run)}

        curves = self.teach(lesson, terms, run, "unlearning", checkpoint)
        return RepairedClassifier(classifier=lesson.student.eval(), curves=curves)


def stamp(images: Tensor, triggers: Sequence[Trigger], share: float) -> Tensor:
    """A batch whose first images, at least one and the ``share`` of all, have one of the triggers each, in turn."""
    count = max(1, round(share * len(images)))
    turns = [trigger(images[number : count : len(triggers)]) for number, trigger in enumerate(triggers[:count])]
    changed = torch.empty_like(images[:count])
    for number, each in enumerate(turns):
        changed[number :: len(triggers)] = each
    return torch.cat((changed, images[count:]))
