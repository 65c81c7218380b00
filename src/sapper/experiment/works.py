"""The works that end in an encoder or in a data set: pre-train, choose references, poison, implant.

Each is a value (``engine.stage.Work``) that leaves files in its folder; the functions below read them again.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from sapper import encoders, tensors
from sapper.attacks import contracts
from sapper.attacks.contracts import makes_triggers
from sapper.attacks.target import Target
from sapper.encoders import Encoder, Trained
from sapper.encoders.files import MARK, file_name
from sapper.encoders.names import packages_of
from sapper.errors import SapperError
from sapper.experiment.tasks import (
    Choices,
    Goals,
    Part,
    Task,
    describe,
    identity,
    method_key,
    packages,
)
from sapper.files import sha256, write_atomically
from sapper.methods import settings
from sapper.pretraining.contracts import Pretraining
from sapper.running import Run
from sapper.samples import Samples, read_samples, write_samples
from sapper.scenario.named import Named
from sapper.scenario.sections import EncoderSection
from sapper.training import Checkpoint, check_finite
from sapper.training.shares import in_shares
from sapper.triggers import Trigger, write_triggers

ENCODER, CURVES, CHOICES, TRIGGERS = "encoder", "curves.json", "choices.json", "triggers.safetensors"
TUNED, CLASSIFIER = "classifier", f"classifier-{MARK}.safetensors"
PREDICTIONS, MAP, HITS = "predictions.safetensors", "map.safetensors", "hits.safetensors"
SUSPECT = "suspect"  # in MAP, of a repaired classifier: the features that its encoder gave before
POISONED, POISON = "data-POISONED.safetensors", "poison.json"
LEARNED = "learned.safetensors"
"""What works call their files."""

_CHOICES = TypeAdapter(Choices)


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pre-train an encoder on ``images``, or on the poisoned ones of the only input; leaves encoder and curves."""

    encoder: EncoderSection
    method: Named[Pretraining]
    images: Part

    name: ClassVar[str] = "pretraining"
    divisible: ClassVar[bool] = True

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.method) + packages_of(self.encoder.architecture)

    def key(self) -> dict[str, Any]:
        return method_key(self.method) | {"encoder": self.encoder.model_dump(mode="json"), "images": self.images.origin}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        images: Samples = read_poisoned(inputs[0])[0] if inputs else self.images()
        encoder = encoders.build(run.child("encoder"), **self.encoder.model_dump())
        checkpoint = Checkpoint(folder / "checkpoint.safetensors")
        with in_shares(encoder, run):
            trained = self.method.parameters(encoder, images, run.child("pretraining"), checkpoint)
        made_from: dict[str, Any] = {"images": identity(images)} | (read_poison(inputs[0]) if inputs else {})
        leave(folder, trained, self.method, run, made_from, attacked=bool(inputs))
        checkpoint.remove()


@dataclass(frozen=True, kw_only=True)
class ChooseReferences:
    """Choose the references of a task's aims by what the clean encoder, the input, says of them; leaves ``Choices``."""

    goals: Goals

    name: ClassVar[str] = "references"
    libraries: ClassVar[tuple[str, ...]] = ()

    def key(self) -> dict[str, Any]:
        return {"candidates": self.goals.candidates.origin, "aims": [aim.rule_key for aim in self.goals.aims]}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        choices = self.goals.choose(encoders.load(encoder_file(inputs[0]), run), run)
        write_atomically(folder / CHOICES, json.dumps(asdict(choices)))


@dataclass(frozen=True, kw_only=True)
class Poison:
    """Poison a data set; the inputs are the choices for each of the goals.

    The set is the one to pre-train on, or the training set of a task. Leaves it, its poisoned rows, the triggers, and
    what it was poisoned by and for.
    """

    method: Named[contracts.Poison]
    data: Part | Task
    goals: tuple[Goals, ...]

    name: ClassVar[str] = "poison"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.method)

    def key(self) -> dict[str, Any]:
        data = self.data.key if isinstance(self.data, Task) else self.data.origin
        goals = [each.key for each in self.goals]
        return method_key(self.method) | {"data": data, "goals": goals, "file": POISONED}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        targets = _targets(self.goals, inputs)
        clean = self.data.victim(read_choices(inputs[0])).train if isinstance(self.data, Task) else self.data()
        poisoned = self.method.parameters(clean, targets, run.child("attack"))
        write_samples(folder / POISONED, poisoned.samples, rows=poisoned.rows)
        targets = obeyed(self.method, targets, poisoned.triggers)
        by: dict[str, Any] = {"method": self.method.name, "parameters": method_key(self.method)["parameters"]}
        by["targets"] = [describe(target) for target in targets]
        write_atomically(folder / POISON, json.dumps({"poison": by}))
        leave_triggers(folder, targets)


@dataclass(frozen=True, kw_only=True)
class Implant:
    """Put a backdoor into a finished encoder, the first input; the choices for each of the goals follow.

    Leaves encoder, curves and triggers.
    """

    method: Named[contracts.Implant]
    shadow: Part
    goals: tuple[Goals, ...]

    name: ClassVar[str] = "attack"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.method)

    def key(self) -> dict[str, Any]:
        return method_key(self.method) | {"shadow": self.shadow.origin, "goals": [goals.key for goals in self.goals]}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        clean, shadow = encoder_file(inputs[0]), self.shadow()
        targets = _targets(self.goals, inputs[1:])
        checkpoint = Checkpoint(folder / "checkpoint.safetensors")
        trained = self.method.parameters(encoders.load(clean, run), shadow, targets, run.child("attack"), checkpoint)
        targets = obeyed(self.method, targets, trained.triggers)
        made_from: dict[str, Any] = {"clean": sha256(clean), "shadow": identity(shadow)}
        made_from["targets"] = [describe(target) for target in targets]
        leave(folder, trained, self.method, run, made_from, attacked=True)
        leave_triggers(folder, targets)
        checkpoint.remove()


def _targets(goals: tuple[Goals, ...], inputs: tuple[Path, ...]) -> tuple[Target, ...]:
    return tuple(target for each, folder in zip(goals, inputs) for target in each.targets(read_choices(folder)))


def leave(
    folder: Path, trained: Trained, method: Named, run: Run, made_from: dict[str, Any], *, attacked: bool
) -> None:
    """Write a trained encoder, with what it was made from on its card, and its curves."""
    check_training(trained.encoder, trained.curves, method, run)
    origin = {"method": method.name, "parameters": settings(method.parameters)} | made_from | {"seed": run.seed}
    encoder = trained.encoder.marked(backdoored=attacked, origin=origin)
    encoders.save(encoder, folder / file_name(ENCODER, encoder.card))
    write_atomically(folder / CURVES, json.dumps(trained.curves))


def check_training(module: torch.nn.Module, curves: dict[str, list[float]], method: Named, run: Run) -> None:
    """Raises ``SapperError`` for a training that diverged."""
    where = f"{method.name}, seed {run.seed}"
    check_finite(module, where)
    if not all(math.isfinite(value) for series in curves.values() for value in series):
        raise SapperError("the training diverged: losses are not finite", where=where, remedy="lower its learning_rate")


def obeyed(method: Named, targets: tuple[Target, ...], made: Mapping[str, Trigger]) -> tuple[Target, ...]:
    """The targets with the triggers that the attack made, of the others with those that they had."""
    if made and not makes_triggers(method.parameters):
        what, remedy = f"{method.name} made triggers without saying so", "give its class makes_triggers = True"
        raise SapperError(what, where=method.name, remedy=remedy)
    return tuple(replace(target, trigger=made.get(target.name, target.trigger)) for target in targets)


def leave_triggers(folder: Path, targets: tuple[Target, ...]) -> None:
    """Write the triggers of all targets."""
    write_triggers(folder / TRIGGERS, {target.name: target.trigger for target in targets})


# What works left


def victims_encoder(task: Task, folder: Path, run: Run) -> Encoder:
    """The encoder in a stage's folder, as the victim of a task uses it."""
    encoder = encoders.load(encoder_file(folder), run)
    encoder.gray = task.gray
    return encoder


def encoder_file(folder: Path) -> Path:
    """The encoder in a stage's folder."""
    return next(folder.glob(f"{ENCODER}*.safetensors"))


def classifier_file(folder: Path) -> Path:
    """The classifier in a stage's folder."""
    return next(folder.glob(f"{TUNED}*.safetensors"))


def read_curves(folder: Path) -> dict[str, list[float]]:
    """The losses per epoch of a training."""
    loaded: dict[str, list[float]] = json.loads((folder / CURVES).read_text(encoding="utf-8"))
    return loaded


def read_choices(folder: Path) -> Choices:
    """Which references were chosen."""
    return _CHOICES.validate_json((folder / CHOICES).read_text(encoding="utf-8"))


def read_poisoned(folder: Path) -> tuple[Any, Tensor]:
    """A poisoned set, and which of its rows are poison."""
    samples, more = read_samples(folder / POISONED)
    return samples, more["rows"]


def read_poison(folder: Path) -> dict[str, Any]:
    """By which attack a set was poisoned, and for which targets, as ``poison``; nothing where that was not written."""
    path = folder / POISON
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return said


def read_predictions(folder: Path) -> dict[str, Tensor]:
    """Predictions of heads: ``<head>/clean`` and ``<head>/triggered/<target>``, int64 (N,)."""
    return tensors.load(folder / PREDICTIONS)
