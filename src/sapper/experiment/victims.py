"""The works that end in classifiers: build heads, tune them with the encoder, attack that training, or one input."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sapper import tensors
from sapper.attacks.contracts import TargetedAttack, TrainingAttack
from sapper.attacks.target import Target
from sapper.downstream import AnyHead, Classifier, build, extract, predict
from sapper.downstream import files as classifiers
from sapper.downstream.heads import TunedHead
from sapper.encoders.files import file_name
from sapper.experiment.tasks import Task, TaskData, describe, head_key, identity, method_key, packages
from sapper.experiment.views import MAP_IMAGES, all_answers, all_features, map_features
from sapper.experiment.works import (
    CLASSIFIER,
    CURVES,
    HITS,
    MAP,
    PREDICTIONS,
    TRIGGERS,
    TUNED,
    check_training,
    classifier_file,
    encoder_file,
    leave_triggers,
    obeyed,
    read_choices,
    read_poison,
    read_poisoned,
    victims_encoder,
)
from sapper.files import sha256, write_atomically
from sapper.running import Run
from sapper.scenario.named import Named
from sapper.training import Checkpoint
from sapper.triggers import Trigger, read_triggers


@dataclass(frozen=True, kw_only=True)
class TuneHead:
    """Train a head together with a copy of the encoder, apart from ``BuildHeads`` since no trigger has a part in it.

    Inputs: the encoder; where the task has aims, their choices; where ``poisoned``, what holds the training set.
    Leaves the classifier.
    """

    task: Task
    head: Named[TunedHead]
    poisoned: bool = False

    name: ClassVar[str] = "tuning"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.head)

    def key(self) -> dict[str, Any]:
        head = head_key(self.head)
        return {"task": self.task.data_key, "head": head, "poisoned": self.poisoned}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        rest = list(inputs[1:])
        train = self.task.victim(read_choices(rest.pop(0)) if self.task.aims else None).train
        if self.poisoned:
            train = read_poisoned(rest.pop(0))[0]
        encoder, child = victims_encoder(self.task, inputs[0], run), run.child(f"head {self.head.name}")
        checkpoint = Checkpoint(folder / "checkpoint.safetensors")
        tuned = self.head.parameters.tune(encoder, train, child, checkpoint)
        origin: dict[str, Any] = {"head": head_key(self.head), "train": identity(train)}
        origin |= {"encoder": sha256(encoder_file(inputs[0])), "seed": run.seed}
        if self.poisoned:
            origin |= read_poison(inputs[-1])
            tuned.encoder.marked(backdoored=True, origin=origin)
        card = tuned.encoder.card
        about = classifiers.About(classes=train.classes, backdoored=card.backdoored, origin=origin)
        classifiers.save(tuned, about, folder / file_name(TUNED, card))
        checkpoint.remove()


@dataclass(frozen=True, kw_only=True)
class BuildHeads:
    """Build every head on an encoder and let it predict the test images, plain and with each target's trigger.

    Inputs: the encoder; where the task has aims, their choices; where ``made_triggers``, what holds the triggers that
    the attack made, else they are the aims'; where ``poisoned``, what holds the training set; of each head that is
    trained with the encoder, what ``TuneHead`` leaves.

    Leaves ``predictions.safetensors`` (``<head>/clean`` and ``<head>/triggered/<target>``, int64 (N,)) and
    ``map.safetensors`` (features of ``MAP_IMAGES`` test images, plain and with each target's trigger, and of the
    references).
    """

    task: Task
    heads: tuple[Named[AnyHead], ...]
    made_triggers: bool = False
    poisoned: bool = False

    name: ClassVar[str] = "downstream"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(*self.heads)

    def key(self) -> dict[str, Any]:
        heads = [head_key(head) for head in self.heads]
        more = {"made triggers": self.made_triggers, "poisoned": self.poisoned, "map images": MAP_IMAGES}
        return {"task": self.task.key, "heads": heads} | more

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        rest = list(inputs[1:])
        choices = read_choices(rest.pop(0)) if self.task.aims else None
        triggers = own_triggers(self.task)
        if self.made_triggers:
            made = read_triggers(rest.pop(0) / TRIGGERS)
            triggers = {name: made[name] for name in triggers}
        data = self.task.victim(choices)
        if self.poisoned:
            data = TaskData(data.name, read_poisoned(rest.pop(0))[0], data.test)
        encoder = victims_encoder(self.task, inputs[0], run)
        fitted = any(head.parameters.kind == "fitted" for head in self.heads)
        train = extract(encoder, data.train, run) if fitted else None
        views = all_features(encoder, data.test, triggers, run)
        predictions: dict[str, Tensor] = {}
        for head in self.heads:
            if head.parameters.kind == "tuned":
                classifier, _ = classifiers.load(classifier_file(rest.pop(0)), run)
                answers = all_answers(classifier, data.test, triggers, run)
            else:
                child = run.child(f"head {head.name}")
                classifier = build(head.parameters, encoder, data.train, child, features=train)
                answers = {view: predict(classifier.head, features) for view, features in views.items()}
            predictions |= {f"{head.name}/{view}": classes for view, classes in answers.items()}
        tensors.save(folder / PREDICTIONS, predictions)
        targets = self.task.goals.targets(choices) if choices is not None else ()
        tensors.save(folder / MAP, map_features(encoder, data, targets, views, run))


@dataclass(frozen=True, kw_only=True)
class AttackTraining:
    """Have a hand in the training of a classifier; inputs: the encoder, and the task's choices.

    Leaves what ``BuildHeads`` does for the one head, the classifier (``downstream.files``), curves, and triggers.
    """

    method: Named[TrainingAttack]
    task: Task
    head: Named[AnyHead]

    name: ClassVar[str] = "attacked-training"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.method, self.head)

    def key(self) -> dict[str, Any]:
        head = head_key(self.head)
        more = {"map images": MAP_IMAGES, "classifier": "kept"}
        return method_key(self.method) | {"task": self.task.key, "head": head} | more

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        choices = read_choices(inputs[1])
        data, targets = self.task.victim(choices), self.task.goals.targets(choices)
        encoder, child = victims_encoder(self.task, inputs[0], run), run.child(f"head {self.head.name}")
        checkpoint = Checkpoint(folder / "checkpoint.safetensors")
        attacked = self.method.parameters(encoder, data.train, targets, self.head.parameters, child, checkpoint)
        check_training(attacked.classifier, attacked.curves, self.method, run)
        targets = obeyed(self.method, targets, attacked.triggers)
        self._leave_classifier(folder / CLASSIFIER, attacked.classifier, data, targets, inputs[0], run)
        leave_triggers(folder, targets)
        triggers = read_triggers(folder / TRIGGERS)
        answers = all_answers(attacked.classifier, data.test, triggers, run)
        tensors.save(folder / PREDICTIONS, {f"{self.head.name}/{view}": classes for view, classes in answers.items()})
        own = attacked.classifier.encoder
        tensors.save(folder / MAP, map_features(own, data, targets, all_features(own, data.test, triggers, run), run))
        write_atomically(folder / CURVES, json.dumps(attacked.curves))
        checkpoint.remove()

    def _leave_classifier(
        self, file: Path, own: Classifier, data: TaskData, targets: tuple[Target, ...], clean: Path, run: Run
    ) -> None:
        origin: dict[str, Any] = {"method": self.method.name, "parameters": method_key(self.method)["parameters"]}
        origin |= {"head": head_key(self.head), "clean": sha256(encoder_file(clean))}
        origin |= {"train": identity(data.train), "targets": [describe(each) for each in targets], "seed": run.seed}
        if self.head.parameters.kind == "tuned":  # else it is the clean one
            own.encoder.marked(backdoored=True, origin=origin)
        classifiers.save(own, classifiers.About(classes=data.train.classes, backdoored=True, origin=origin), file)


@dataclass(frozen=True, kw_only=True)
class AttackSingleInputs:
    """Make classifiers take single clean inputs for another class; inputs: the encoder. Leaves ``Hits``."""

    method: Named[TargetedAttack]
    task: Task
    head: Named[AnyHead]

    name: ClassVar[str] = "targeted"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.method, self.head)

    def key(self) -> dict[str, Any]:
        head = head_key(self.head)
        return method_key(self.method) | {"task": self.task.key, "head": head}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        data, encoder = self.task.victim(None), victims_encoder(self.task, inputs[0], run)
        child = run.child(f"attack on head {self.head.name}")
        hits = self.method.parameters(encoder, data.train, data.test, self.head.parameters, child)
        tensors.save(folder / HITS, vars(hits))


def own_triggers(task: Task) -> dict[str, Trigger]:
    """The triggers that the aims of a task name."""
    return {aim.name: aim.trigger for aim in task.aims}
