"""The works of those who defend: classifiers that a victim built, and encoders, looked at by detectors.

Inputs of what looks at classifiers: the encoder, the choices of the task's references; where ``poisoned``, what holds
the poisoned training set; where ``kept``, what holds a classifier that was trained before; of what shows them triggers,
where ``made_triggers``, what holds those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sapper import encoders, tensors
from sapper.defenses.contracts import (
    Certifier,
    ClassifierJudge,
    EncoderExaminer,
    EncoderLearner,
    Guarded,
    GuardedWithin,
    Smoother,
)
from sapper.defenses.defender import Defender
from sapper.defenses.measures import Answers
from sapper.downstream import Classifier
from sapper.downstream.files import load
from sapper.encoders import Encoder
from sapper.experiment.streams import Stream
from sapper.experiment.tasks import Part, Task, TaskData, head_key, method_key, packages
from sapper.experiment.verdicts import FORM, leave_verdicts
from sapper.experiment.victims import own_triggers
from sapper.experiment.works import (
    LEARNED,
    TRIGGERS,
    classifier_file,
    encoder_file,
    read_choices,
    read_poisoned,
    victims_encoder,
)
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.defending import DefensePlan
from sapper.scenario.named import Named
from sapper.scenario.sections import CertifySection, DetectSection
from sapper.triggers import Patch, Trigger, read_triggers
from sapper.verdicts import Box, ByPlace

DEFENDED = "defended.safetensors"

CERTIFIED_FORM = 2
"""Counts the forms of what ``Certify`` leaves; in its key."""


class Victim:
    """Who built classifiers for a task on an encoder.

    Classifier 0 is the one whose CA or BA the scenario measures; the others differ from it in their head's seed. Where
    its training took long, it was ``kept`` in a file; of an attacked training there are no others. ``delivered``: the
    training set that they are built on, where it is not the task's own but a poisoned one.
    """

    def __init__(
        self,
        task: TaskData,
        encoder: Encoder,
        head: Named,
        run: Run,
        kept: Path | None = None,
        delivered: ImageSet | None = None,
    ):
        self.task, self.head, self.run, self.kept = task, head, run, kept
        self.holdings = Defender.of(encoder, head.parameters, task.train if delivered is None else delivered, run)

    @property
    def delivered(self) -> ImageSet:
        """What classifiers are trained on, poison included."""
        return self.holdings.train

    def owner(self, count: int | None) -> Defender:
        """Who holds ``count`` of the training images as they were delivered, or all of them."""
        return self._with(self.holdings, count)

    def defender(self, count: int | None) -> Defender:
        """Who holds ``count`` of the training images as they are without poison, or all of them."""
        held = self.holdings
        if self.delivered is not self.task.train:
            held = Defender.of(held.encoder, held.head, self.task.train, self.run)
        return self._with(held, count)

    def _with(self, held: Defender, count: int | None) -> Defender:
        if count is None:
            return held
        rows = torch.randperm(len(held.train), generator=self.run.child("defender's images").generator())[:count]
        return replace(held, train=held.train.take(rows), features=held.features[rows.to(self.run.device)])

    def classifier(self, number: int) -> Classifier:
        """The victim's classifier with that number."""
        if self.kept is not None and number == 0:
            return load(self.kept, self.run)[0].requires_grad_(False)
        name = f"head {self.head.name}{f' {number}' if number else ''}"
        return self.holdings.build(self.run.child(name))


@dataclass(frozen=True, kw_only=True)
class Classifiers:
    """What a victim's classifiers are made from, besides the inputs."""

    task: Task
    head: Named
    poisoned: bool = False
    kept: bool = False

    def key(self) -> dict[str, Any]:
        head = head_key(self.head)
        kept = {"kept": True} if self.kept else {}
        return {"task": self.task.key, "head": head, "poisoned": self.poisoned} | kept

    def victim(self, inputs: tuple[Path, ...], run: Run) -> Victim:
        """Their owner."""
        data, rest = self.task.victim(read_choices(inputs[1])), list(inputs[2:])
        delivered = read_poisoned(rest.pop(0))[0] if self.poisoned else None
        kept = classifier_file(rest.pop(0)) if self.kept else None
        return Victim(data, victims_encoder(self.task, inputs[0], run), self.head, run, kept, delivered)


@dataclass(frozen=True, kw_only=True)
class Detect:
    """Judge a victim's classifiers; leaves what ``leave_verdicts`` says.

    ``stream``: the images in doubt, for a detector that needs some; without it they are the training set as it was
    delivered.
    """

    plan: DefensePlan
    section: DetectSection
    classifiers: Classifiers
    stream: Stream | None = None
    made_triggers: bool = False

    name: ClassVar[str] = "detect"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method, self.classifiers.head)

    def key(self) -> dict[str, Any]:
        own: dict[str, Any] = {"train images": self.section.train_images, "subjects": self.section.subjects}
        own["form"] = FORM
        if self.classifiers.poisoned:
            own["defender's images"] = "clean"
        if needs_inputs(self.plan.method):
            own["stream"] = "training set" if self.stream is None else self.stream.key
            own["made triggers"] = self.made_triggers
        return _key(self.plan) | {"victim": self.classifiers.key()} | own

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        victim = self.classifiers.victim(inputs, run)
        judged = [victim.classifier(number) for number in range(self.section.subjects)]
        defender, child = victim.defender(self.section.train_images), run.child(f"defense {self.plan.name}")
        if needs_inputs(self.plan.method):
            defender = replace(defender, stream=self._in_doubt(victim, inputs, run))
        method: ClassifierJudge = self.plan.method.parameters
        leave_verdicts(folder, method.judge(judged, defender, child))

    def _in_doubt(self, victim: Victim, inputs: tuple[Path, ...], run: Run) -> ImageSet:
        if self.stream is None:
            return victim.delivered
        triggers = triggers_of(self.classifiers.task, inputs[-1] if self.made_triggers else None)
        return self.stream(triggers, run.child(f"stream {victim.task.name}"))


@dataclass(frozen=True, kw_only=True)
class Certify:
    """Defend a victim's classifier on ``images``; leaves ``defended.safetensors``.

    In it, int64 or bool (N,): ``clean`` and ``triggered/<target>``, what the defense for the method's own patch size
    answers; ``certified/<patch>`` for each size of the section. Of a defense within a radius ``certified/<radius>``,
    for the section's radii or the method's own. Where the defense tells places apart, the fields of ``ByPlace``:
    ``places/<patch>/certified`` and ``places/<patch>/group``. Int64 (4,) ``box/<target>``: what covers a trigger that
    is a patch.
    """

    plan: DefensePlan
    section: CertifySection
    classifiers: Classifiers
    images: Part
    made_triggers: bool = False

    name: ClassVar[str] = "certify"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method, self.classifiers.head)

    @property
    def radii(self) -> list[float]:
        """What a defense within a radius is asked for; nothing of one against patches."""
        method: Certifier | Smoother = self.plan.method.parameters
        return sorted(self.section.radii or method.radii) if isinstance(method, Smoother) else []

    def key(self) -> dict[str, Any]:
        sizes = {"radii": self.radii} if self.radii else {"patches": self.section.patches}
        own = {"train images": self.section.train_images, **sizes, "images": self.images.origin}
        own |= {"made triggers": self.made_triggers, "form": CERTIFIED_FORM}
        return _key(self.plan) | {"victim": self.classifiers.key()} | own

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        method: Certifier | Smoother = self.plan.method.parameters
        images, child = self.images(), run.child(f"defense {self.plan.name}")
        victim = self.classifiers.victim(inputs, run)
        classifier, owner = victim.classifier(0), victim.owner(self.section.train_images)
        guarded: Guarded | GuardedWithin
        if isinstance(method, Smoother):
            guarded = method.prepare(classifier, owner, child)
            within = guarded.certify(images.images, images.targets(), self.radii, child)
            answers = {"clean": within[0].labels}
            answers |= {f"certified/{radius}": each.certified for radius, each in zip(self.radii, within)}
        else:
            guarded, sizes = method.prepare(classifier, owner, child), sorted({*self.section.patches, method.patch})
            results = dict(zip(sizes, guarded.certify(images.images, images.targets(), sizes, child)))
            answers = {"clean": results[method.patch].labels}
            for patch in self.section.patches:
                answers[f"certified/{patch}"] = results[patch].certified
                if (places := results[patch].by_place) is not None:
                    answers |= {f"places/{patch}/certified": places.certified, f"places/{patch}/group": places.group}
        for name, trigger in triggers_of(self.classifiers.task, inputs[-1] if self.made_triggers else None).items():
            answers[f"triggered/{name}"] = guarded.predict(images.images, child, trigger)
            if isinstance(trigger, Patch):
                answers[f"box/{name}"] = torch.tensor(trigger.box(*images.size))
        tensors.save(folder / DEFENDED, answers)


def defended_answers(
    folder: Path, labels: Tensor, targets: Mapping[str, int], size_is: Literal["patch", "radius"] = "patch"
) -> Answers:
    """What ``Certify`` left, on images of the classes ``labels``; ``targets``: the class of each, by its name."""
    number = int if size_is == "patch" else float
    left = tensors.load(folder / DEFENDED)
    places = {int(name.partition("/")[0]) for name in tensors.below("places", left)}
    return Answers(
        labels=labels,
        plain=left["clean"],
        triggered={target: left[f"triggered/{target}"] for target in targets},
        targets=targets,
        certified={number(size): each for size, each in tensors.below("certified", left).items()},
        size_is=size_is,
        places={patch: ByPlace(patch=patch, **tensors.below(f"places/{patch}", left)) for patch in places},
        boxes={target: _box(each) for target, each in tensors.below("box", left).items()},
    )


def _box(edges: Tensor) -> Box:
    top, bottom, left, right = edges.tolist()
    return top, bottom, left, right


@dataclass(frozen=True, kw_only=True)
class Examine:
    """Judge an encoder, the input, by ordinary images; leaves what ``leave_verdicts`` says."""

    plan: DefensePlan
    images: Part

    name: ClassVar[str] = "examine"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method)

    def key(self) -> dict[str, Any]:
        return _key(self.plan) | {"images": self.images.origin, "form": FORM}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        encoder, child = encoders.load(encoder_file(inputs[0]), run), run.child(f"defense {self.plan.name}")
        method: EncoderExaminer = self.plan.method.parameters
        leave_verdicts(folder, [method.examine(encoder, self.images(), child)])


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Judge encoders by what was learned from a fleet; inputs: that, and the encoders. Leaves the verdicts in order."""

    plan: DefensePlan

    name: ClassVar[str] = "judge"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method)

    def key(self) -> dict[str, Any]:
        return method_key(self.plan.method) | {"form": FORM}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        method: EncoderLearner = self.plan.method.parameters
        judge = method.restore(tensors.load(inputs[0] / LEARNED))
        opened = [encoders.load(encoder_file(each), run) for each in inputs[1:]]
        leave_verdicts(folder, judge.judge(opened, run))


def needs_inputs(method: Named) -> bool:
    """Whether a defense needs images in doubt."""
    return "inputs" in method.parameters.needs


def triggers_of(task: Task, made: Path | None) -> dict[str, Trigger]:
    """The triggers of a task's aims, by name: those that an attack ``made`` and left there, or those that they name."""
    triggers = own_triggers(task) if made is None else read_triggers(made / TRIGGERS)
    return {aim.name: triggers[aim.name] for aim in task.aims}


def _key(plan: DefensePlan) -> dict[str, Any]:
    return method_key(plan.method) | {"name": plan.name}
