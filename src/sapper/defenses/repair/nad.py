"""NAD: a fine-tuned copy shows the classifier where to look.

Threat model: the owner holds a suspect classifier and few clean labeled images, in which no trigger occurs; nothing is
known of the attack. Fine-tuning on them weakens a backdoor. So a copy that was fine-tuned is the teacher t, and the
suspect itself the student s, which learns the labels and the teacher's attention,

    minimize   mean CE( s(x), y )  +  Σ_l β_l · mean ( A(s_l(x)) − A(t_l(x)) )²        over s, from the suspect on

A(z) = Σ_c |z_c|² over the channels of a stage's output z, flattened and of length 1 (``defenses/stages.py``).

Source: Li, Lyu, Koren, Lyu, Li, Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural
Networks", ICLR 2021, and the authors' code (``bboylyg/NAD``: ``main.py``, ``at.py``, ``config.py``): p = 2, β = 500,
1000, 1000 for the three stages of a WRN-16-1, on 5 % of the data; 20 epochs of SGD with Nesterov momentum 0.9, weight
decay 1e-4, batches of 64, learning rate 0.1 for two epochs and 0.01 then. A network with other stages than
three gives its last ones the β. The code begins with a finished teacher; here its training is as long as the student's
unless ``teacher_steps`` says other. The rate falls along a cosine here, images are not augmented, and by default there
are half as many steps as the authors'; the preset ``paper`` has as many.
"""

import copy
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Need, Owner, RepairedClassifier
from sapper.defenses.repairing_classifiers import LABELS, Lesson, Relearning, answered, begin, miss
from sapper.defenses.stages import attention, check_attention, stages, watched
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.encoders.freezing import frozen_copy
from sapper.running import Run
from sapper.training import Checkpoint, Curves, Step, Terms

ATTENTION, TEACHER = "attention", "teacher"


@dataclass(frozen=True, kw_only=True)
class NAD(Relearning):
    """Distills the attention of a fine-tuned copy into the classifier (Li et al., ICLR 2021).

    ``beta``: β of the last stages, in their order. ``teacher_steps``: as ``steps``, of the teacher's fine-tuning.
    """

    steps: PositiveInt = 400
    optimizer: Literal["adam", "sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 1e-4
    beta: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (500.0, 1000.0, 1000.0)
    teacher_steps: PositiveInt | None = None

    kind: ClassVar[Literal["repair_classifier"]] = "repair_classifier"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Li et al., ICLR 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"steps": 780}}

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network whose stages' maps are not known, and for too few images."""
        super().check(encoder, images)
        check_attention(encoder)

    def __call__(
        self, classifier: Classifier, owner: Owner, run: Run, checkpoint: Checkpoint | None = None
    ) -> RepairedClassifier:
        """A repaired copy. Curves have the teacher's losses, too."""
        self.check(classifier.encoder, len(owner.clean))
        lesson, part = begin(classifier, owner, run, "NAD"), checkpoint.part(TEACHER) if checkpoint else None
        taught = replace(lesson, student=copy.deepcopy(lesson.student))
        first = replace(self, steps=self.teacher_steps or self.steps)
        curves = first.learn(taught, None, run.child(TEACHER), "NAD, its teacher", part)
        known = {f"{TEACHER}: {name}": series for name, series in curves.items()}
        curves = self.learn(lesson, frozen_copy(taught.student), run, "NAD", checkpoint)
        if part:
            part.remove()
        return RepairedClassifier(classifier=lesson.student.eval(), curves=known | curves)

    def learn(
        self, lesson: Lesson, teacher: Classifier | None, run: Run, label: str, checkpoint: Checkpoint | None = None
    ) -> Curves:
        """Train the student on the labels, and on the attention of a teacher if there is one."""
        student = lesson.student

        def terms(step: Step) -> Terms:
            shown, wanted = lesson.images.batch(step.rows), lesson.labels[step.rows.to(run.device)]
            if teacher is None:
                return {LABELS: miss(student, shown, wanted, run)}
            with watched(stages(student.encoder)) as ours:
                logits = answered(student, shown, run)
            with torch.no_grad(), watched(stages(teacher.encoder)) as theirs:
                answered(teacher, shown, run)
            apart = attention_loss(ours, theirs, self.beta)
            return {LABELS: F.cross_entropy(logits, wanted), ATTENTION: apart}

        return self.teach(lesson, terms, run, label, checkpoint)


def attention_loss(ours: list[Tensor], theirs: list[Tensor], beta: tuple[float, ...]) -> Tensor:
    """Σ β_l · the mean square of the difference of the attention maps of stages' outputs; β belong to the last ones."""
    pairs = list(zip(ours, theirs))[-len(beta) :]
    apart = [F.mse_loss(attention(one), attention(other)) for one, other in pairs]
    return torch.stack([weight * each for weight, each in zip(beta[-len(pairs) :], apart)]).sum()
