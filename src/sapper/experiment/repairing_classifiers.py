"""The works of an owner who repairs a classifier: recover a trigger where the repair needs one, repair, and measure.

Inputs of both: the encoder, the choices of the task's references, and where ``Classifiers`` says so what holds the
poisoned training set, or a classifier that was trained before. The owner's images are clean, even where the victim's
training set was poisoned.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sapper import tensors
from sapper.defenses.contracts import ClassifierJudge, ClassifierRepair, Owner, RepairedClassifier
from sapper.defenses.defender import Defender
from sapper.downstream import AnyHead, Classifier, extract
from sapper.downstream import files as classifiers
from sapper.experiment.defending import Classifiers, triggers_of
from sapper.experiment.tasks import TaskData, identity, method_key, packages
from sapper.experiment.verdicts import FORM, leave_verdicts, verdicts
from sapper.experiment.views import MAP_IMAGES, all_answers, map_rows
from sapper.experiment.works import (
    CLASSIFIER,
    CURVES,
    MAP,
    PREDICTIONS,
    SUSPECT,
    check_training,
    encoder_file,
    read_choices,
)
from sapper.files import sha256, write_atomically
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.defending import DefensePlan
from sapper.scenario.named import Named
from sapper.scenario.sections import ClassifierRepairSection
from sapper.training import Checkpoint
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class ClassifierRepairPlan(DefensePlan):
    """A repair of classifiers with one ``head``."""

    method: Named[ClassifierRepair]
    head: Named[AnyHead]

    def owned(self, classifiers: Classifiers, inputs: tuple[Path, ...], run: Run) -> tuple[ImageSet, TaskData]:
        """The clean images that the owner holds, and the task that they are from; the same for repair and recovery."""
        assert isinstance(self.section, ClassifierRepairSection)
        task = classifiers.task.victim(read_choices(inputs[1]))
        count, generator = self.section.owned(len(task.train)), run.child(f"an owner's images, {task.name}").generator()
        return task.train.sample(count, generator), task

    @property
    def share_key(self) -> dict[str, Any]:
        """How many images these are, for keys of stages."""
        assert isinstance(self.section, ClassifierRepairSection)
        return {"images": self.section.images, "share": None if self.section.images else self.section.share}


@dataclass(frozen=True, kw_only=True)
class RecoverFromClassifier:
    """Let a detector judge the classifier; leaves what ``leave_verdicts`` says."""

    plan: ClassifierRepairPlan
    detector: Named[ClassifierJudge]
    classifiers: Classifiers

    name: ClassVar[str] = "recover-classifier"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.detector, self.classifiers.head)

    def key(self) -> dict[str, Any]:
        return method_key(self.detector) | self.plan.share_key | {"victim": self.classifiers.key(), "form": FORM}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        suspect = self.classifiers.victim(inputs, run).classifier(0)
        clean, _ = self.plan.owned(self.classifiers, inputs, run)
        defender = Defender.of(suspect.encoder, self.classifiers.head.parameters, clean, run)
        leave_verdicts(folder, self.detector.parameters.judge([suspect], defender, run.child("recovery")))


@dataclass(frozen=True, kw_only=True)
class RepairClassifier:
    """Repair the classifier and let it predict the test images; further inputs: where ``made_triggers``, what holds the
    triggers that the attack made, and where the repair needs a trigger, what ``RecoverFromClassifier`` left.

    Leaves the classifier, its curves, predictions as ``BuildHeads`` does, and features of test images: ``clean`` of its
    own encoder, ``SUSPECT`` of the suspect's. Where a trigger is needed and none was recovered, the classifier stays as
    it is. What came of an attack stays marked: a repair proves nothing.
    """

    plan: ClassifierRepairPlan
    classifiers: Classifiers
    made_triggers: bool = False

    name: ClassVar[str] = "repair-classifier"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method, self.classifiers.head)

    def key(self) -> dict[str, Any]:
        more = {"made triggers": self.made_triggers, "map images": MAP_IMAGES}
        more |= {"needs a trigger": True} if self.plan.detector is not None else {}
        return method_key(self.plan.method) | self.plan.share_key | {"victim": self.classifiers.key()} | more

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        rest, who = list(inputs[2 + (self.classifiers.poisoned or self.classifiers.kept) :]), self.classifiers
        triggers = triggers_of(who.task, rest.pop(0) if self.made_triggers else None)
        found = [verdict.trigger for each in rest for verdict in verdicts(each)]
        victim = who.victim(inputs, run)
        suspect, (clean, data) = victim.classifier(0), self.plan.owned(who, inputs, run)
        owner = Owner(clean=clean, triggers=tuple(trigger for trigger in found if trigger is not None))
        repaired = self._repaired(suspect, owner, folder, run)
        origin: dict[str, Any] = {"repaired": {"encoder": sha256(encoder_file(inputs[0]))}}
        if victim.kept is not None:
            origin["repaired"] |= {"classifier": sha256(victim.kept)}
        if repaired is None:
            assert self.plan.detector is not None
            origin["repaired"] = f"not at all: {self.plan.detector.name} recovered no trigger"
            repaired = RepairedClassifier(classifier=suspect.eval(), curves={})
        self._leave(folder, repaired, owner, origin, run)
        self._measure(folder, suspect, repaired.classifier, data.test, triggers, run)
        Checkpoint(folder / "checkpoint.safetensors").remove()

    def _repaired(self, suspect: Classifier, owner: Owner, folder: Path, run: Run) -> RepairedClassifier | None:
        """None where there is nothing to work with."""
        if self.plan.detector is not None and not owner.triggers:
            return None
        checkpoint, method = Checkpoint(folder / "checkpoint.safetensors"), self.plan.method
        made = method.parameters(suspect, owner, run.child("repair"), checkpoint)
        check_training(made.classifier, made.curves, method, run)
        return made

    def _leave(
        self, folder: Path, repaired: RepairedClassifier, owner: Owner, origin: dict[str, Any], run: Run
    ) -> None:
        method, own = method_key(self.plan.method), repaired.classifier
        origin |= {"method": method["method"], "parameters": method["parameters"], "images": identity(owner.clean)}
        origin |= {"triggers": [trigger.describe() for trigger in owner.triggers], "seed": run.seed}
        own.encoder.marked(backdoored=True, origin=origin)
        about = classifiers.About(classes=owner.clean.classes, backdoored=True, origin=origin)
        classifiers.save(own, about, folder / CLASSIFIER)
        write_atomically(folder / CURVES, json.dumps(repaired.curves))

    def _measure(
        self,
        folder: Path,
        suspect: Classifier,
        own: Classifier,
        test: ImageSet,
        triggers: dict[str, Trigger],
        run: Run,
    ) -> None:
        answers, head = all_answers(own, test, triggers, run), self.classifiers.head.name
        tensors.save(folder / PREDICTIONS, {f"{head}/{view}": classes for view, classes in answers.items()})
        rows = map_rows(test, run)
        shown = test.take(rows)
        features = {"clean": extract(own.encoder, shown, run), SUSPECT: extract(suspect.encoder, shown, run)}
        tensors.save(folder / MAP, features | {"rows": rows})
