"""The stages of a scenario's defenses: classifiers that a victim built, looked at by somebody who defends."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapper import encoders
from sapper.attacks.target import Target
from sapper.defenses.contracts import Certifier, ClassifierJudge, EncoderExaminer
from sapper.defenses.defender import Defender
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.engine.store import Stage, Store
from sapper.experiment import stages
from sapper.experiment.stages import TaskData
from sapper.files import sha256, write_atomically
from sapper.run import Run
from sapper.samples import ImageSet
from sapper.scenario.reading import DefensePlan, Named
from sapper.scenario.sections import CertifySection, DetectSection
from sapper.verdicts import Verdict, from_tensors, to_tensors


class Victim:
    """Who built classifiers for ``task`` on the encoder in a file. Nothing is computed before somebody asks for it.

    Classifier 0 is the one whose CA or BA the scenario measures; the others differ from it in their head's seed.
    """

    def __init__(self, file: Path, task: TaskData, head: Named, run: Run):
        self.file, self.task, self.head, self.run = file, task, head, run
        self._classifiers: dict[int, Classifier] = {}

    @cached_property
    def key(self) -> dict[str, Any]:
        """What the classifiers depend on, for a stage's key."""
        head = {"name": self.head.name} | stages.method_key(self.head)
        return {"encoder": sha256(self.file), "train": self.task.train.digest, "head": head}

    @property
    def key_without_encoder(self) -> dict[str, Any]:
        """What is left of it for a defense that puts a network of its own in the place of all that was built."""
        card = self.encoder.card
        return {"train": self.task.train.digest, "mean": card.mean, "std": card.std}

    @cached_property
    def encoder(self) -> Encoder:
        """What the file holds."""
        return encoders.load(self.file, self.run)

    @cached_property
    def holdings(self) -> Defender:
        """The victim with all of the task's training images."""
        return Defender.of(self.encoder, self.head.parameters, self.task.train, self.run)

    def defender(self, count: int | None) -> Defender:
        """A defender with ``count`` of the training images, or all of them."""
        all_of_it = self.holdings
        if count is None:
            return all_of_it
        rows = torch.randperm(len(self.task.train), generator=self.run.child("defender's images").generator())[:count]
        return Defender(
            all_of_it.encoder, all_of_it.head, self.task.train.take(rows), all_of_it.features[rows.to(self.run.device)]
        )

    def classifier(self, number: int) -> Classifier:
        """The victim's classifier with that number."""
        if number not in self._classifiers:
            name = f"head {self.head.name}{f' {number}' if number else ''}"
            self._classifiers[number] = self.holdings.build(self.run.child(name))
        return self._classifiers[number]


def detect(store: Store, plan: DefensePlan, section: DetectSection, victim: Victim, run: Run) -> Stage:
    """Judge the victim's classifiers; leaves what ``leave_verdicts`` says."""

    def make(folder: Path) -> None:
        classifiers = [victim.classifier(number) for number in range(section.subjects)]
        child = run.child(f"defense {plan.name}")
        leave_verdicts(folder, method.judge(classifiers, victim.defender(section.train_images), child))

    method: ClassifierJudge = plan.method.parameters
    key = _key(plan, victim.key, run) | {
        "form": FORM,
        "train images": section.train_images,
        "subjects": section.subjects,
    }
    return store.stage("detect", key, make)


def examine(store: Store, plan: DefensePlan, file: Path, images: ImageSet, run: Run) -> Stage:
    """Judge the encoder in a file by ordinary images; leaves what ``leave_verdicts`` says."""

    def make(folder: Path) -> None:
        child = run.child(f"defense {plan.name}")
        leave_verdicts(folder, [method.examine(encoders.load(file, run), images, child)])

    method: EncoderExaminer = plan.method.parameters
    key = _key(plan, {"encoder": sha256(file)}, run) | {"form": FORM, "images": images.digest}
    return store.stage("examine", key, make)


def certify(
    store: Store,
    plan: DefensePlan,
    section: CertifySection,
    victim: Victim,
    images: ImageSet,
    targets: Sequence[Target],
    run: Run,
) -> Stage:
    """Defend the victim's classifier on ``images``; leaves ``defended.safetensors``.

    In it, int64 or bool (N,): ``clean`` and ``triggered/<target>``, what the defense for the method's own patch size
    answers; ``certified/<patch>`` for each size of the section.
    """

    method: Certifier = plan.method.parameters

    def make(folder: Path) -> None:
        child = run.child(f"defense {plan.name}")
        guarded = method.prepare(victim.classifier(0), victim.defender(section.train_images), child)
        sizes = sorted({*section.patches, method.patch})
        results = dict(zip(sizes, guarded.certify(images.images, images.targets(), sizes, child)))
        answers = {"clean": results[method.patch].labels}
        answers |= {f"certified/{patch}": results[patch].certified for patch in section.patches}
        for target in targets:
            answers[f"triggered/{target.name}"] = guarded.predict(images.images, child, target.trigger)
        stages.save_tensors(folder / "defended.safetensors", answers)

    key = _key(plan, victim.key if method.uses_encoder else victim.key_without_encoder, run) | {
        "train images": section.train_images,
        "images": images.digest,
        "patches": section.patches,
        "targets": [stages.describe(target) for target in targets],
    }
    return store.stage("certify", key, make)


def _key(plan: DefensePlan, victim: dict[str, Any], run: Run) -> dict[str, Any]:
    return stages.surroundings(run) | stages.method_key(plan.method) | {"victim": victim, "name": plan.name}


FORM = 2
"""Counts the forms of what ``leave_verdicts`` writes; in the key of every stage that calls it."""


def leave_verdicts(folder: Path, verdicts: Sequence[Verdict]) -> None:
    """Write ``verdicts.json``, a list, and ``triggers.safetensors``, in which verdict i's tensors are ``i/name``."""
    told = [to_tensors(verdict) for verdict in verdicts]
    write_atomically(folder / "verdicts.json", json.dumps([plain for plain, _ in told]))
    tensors = {f"{i}/{name}": value for i, (_, own) in enumerate(told) for name, value in own.items()}
    stages.save_tensors(folder / "triggers.safetensors", tensors)


def verdicts(stage: Stage) -> list[Verdict]:
    """What ``leave_verdicts`` left."""
    tensors = stages.load_tensors(stage.folder / "triggers.safetensors")
    told = json.loads((stage.folder / "verdicts.json").read_text(encoding="utf-8"))
    own: list[dict[str, Tensor]] = [{} for _ in told]
    for name, value in tensors.items():
        number, _, rest = name.partition("/")
        own[int(number)][rest] = value
    return [from_tensors(plain, some, str(stage.folder)) for plain, some in zip(told, own)]
