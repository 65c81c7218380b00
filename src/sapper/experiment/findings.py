"""What a running scenario gathers: records, curves, maps and warnings, from the files its stages left."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapper import tensors
from sapper.encoders.files import MARK
from sapper.engine.store import Finished
from sapper.experiment.data import Use
from sapper.experiment.effects import feature_records, trigger_records
from sapper.experiment.pictures import feature_maps
from sapper.experiment.results import (
    Artifact,
    Audited,
    Curve,
    FeatureMap,
    Guaranteed,
    Judged,
    Model,
    Picture,
    Record,
    Roc,
)
from sapper.experiment.subjects import Subject
from sapper.experiment.tasks import Choices, Task, identity
from sapper.experiment.works import CLASSIFIER, HITS, MAP, SUSPECT, encoder_file, read_curves, read_predictions
from sapper.files import link_atomically, sha256
from sapper.metrics import Rate, attack_metrics, is_constant, jackknifed, share
from sapper.samples import ImageSet
from sapper.triggers import Trigger

ASTRAY = 0.8
"""Share of triggered images in one class that is not the target's from which on a report warns of it."""

HIGH_BASELINE = 0.25
"""Strict ASR-B from which on a report warns that the clean encoder is fooled by the trigger, too."""


@dataclass
class Findings:
    """Everything gathered so far; ``out`` is the folder that ``results.json`` will be in."""

    out: Path
    records: list[Record] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    maps: list[FeatureMap] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    verdicts: list[Judged] = field(default_factory=list)
    rocs: list[Roc] = field(default_factory=list)
    audits: list[Audited] = field(default_factory=list)
    guarantees: list[Guaranteed] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    subjects: list[Model] = field(default_factory=list)
    _placed: dict[str, str] = field(default_factory=dict)
    _files: dict[str, Path] = field(default_factory=dict)

    def add_timing(self, seed: int, title: str, finished: Finished) -> None:
        """How long a stage took, and whether it was in the Store already."""
        self.timings.append({"seed": seed, "stage": title, "seconds": finished.seconds, "cached": finished.cached})

    def add_subject(self, subject: Subject, folder: Path, stage: str, label: str) -> None:
        """A model that was made, with the losses of its training; the file of a network gets a readable name.

        ``folder``: where they are; ``stage`` and ``label``: what its training and its file are called.
        """
        keys = ("id", "state", "seed", "of", "parent", "tasks", "targets", "attack", "repair")
        self.subjects.append(Model(**{key: getattr(subject, key) for key in keys}))
        if subject.of == "task":
            return
        self.curves.append(Curve(seed=subject.seed, stage=stage, series=read_curves(folder)))
        source = encoder_file(folder) if subject.of == "encoder" else folder / CLASSIFIER
        digest = sha256(source)
        mark = f"-{MARK}" if MARK in source.name else ""
        path = f"{subject.of}s/{self._free_name(f'{label}-seed{subject.seed}', digest)}{mark}.safetensors"
        self._files[path] = source
        made = Artifact(subject=subject.id, state=subject.state, seed=subject.seed, path=path, sha256=digest)
        self.artifacts.append(made)

    def place_files(self) -> None:
        """Put the networks where the artifacts say. Last of all: a run that fails leaves an earlier one's alone."""
        for path, source in self._files.items():
            link_atomically(source, self.out / path)

    def add_references(self, seed: int, task: Task, choices: Choices, attack: str | None) -> None:
        """Which training images an attacker took."""
        origin = task.goals.candidates.origin
        for aim, choice in zip(task.aims, choices.of):
            self.references.append(
                ({"attack": attack} if attack else {})
                | {
                    "seed": seed,
                    "target": aim.name,
                    "task": task.name,
                    "class": choice.class_name,
                    "label": choice.label,
                    "rows": choice.rows,
                    "source": f"{origin['name']}/{origin['split']}",
                }
            )

    def add_accuracy(self, common: dict[str, Any], task: Task, clean: Finished, subject: Subject) -> None:
        """CA of a task that nobody attacks, once for all attacks, or of a clean encoder after a repair."""
        labels = task.test().targets()
        for name, predicted in read_predictions(clean.folder).items():
            head, _, view = name.partition("/")
            if view == "clean":
                place = common | {"task": task.name, "head": head, "subject": subject.id}
                record = self._of(place, "CA", share(predicted == labels), clean)
                self.records += [record] if record not in self.records else []
                if subject.control and is_constant(predicted):
                    self._warn_constant(task, f"seed {subject.seed}", head, subject)

    def add_attack(
        self,
        common: dict[str, Any],
        task: Task,
        choices: Choices,
        clean: tuple[Subject, Finished],
        attacked: tuple[Subject, Finished],
        *,
        primary_head: str,
    ) -> None:
        """All metrics of an attacked task, for every target and head, beside its baseline's."""
        (baseline, before), (subject, after) = clean, attacked
        then, now = read_predictions(before.folder), read_predictions(after.folder)
        test = task.test()
        labels = test.targets()
        condition = [f"{key} = {value}" for key, value in common["condition"].items()]
        setting = ", ".join([f"seed {common['seed']}", *filter(None, [subject.attack, subject.repair]), *condition])
        heads = unique(name.partition("/")[0] for name in now)
        for aim, choice in zip(task.aims, choices.of):
            for head in heads:
                view = f"{head}/triggered/{aim.name}"
                rates = attack_metrics(
                    labels,
                    choice.label,
                    clean_on_clean=then[f"{head}/clean"],
                    clean_on_triggered=then[view],
                    backdoored_on_clean=now[f"{head}/clean"],
                    backdoored_on_triggered=now[view],
                )
                place = common | {"task": task.name, "target": aim.name, "head": head}
                for metric, rate in rates.items():
                    if metric in ("CA", "ASR_B", "ASR_B_strict"):
                        if subject.repair is None:  # else it stands beside the attacked one's
                            self._add(place | {"subject": baseline.id}, metric, rate, before)
                    else:
                        self._add(place | {"subject": subject.id, "baseline": baseline.id}, metric, rate, after)
                if head == primary_head and subject.repair is None:  # else it was told of the attack
                    self._warn(f"{aim.name} ({setting})", rates["ASR_B_strict"])
                    others = (then[view], now[f"{head}/clean"])
                    self._warn_astray(f"{aim.name} ({setting})", now[view], others, choice.label, test.classes)
        for head in heads:
            for one, predictions in ((baseline, then), (subject, now)):
                if is_constant(predictions[f"{head}/clean"]):
                    self._warn_constant(task, setting, head, one)

    def add_effects(
        self,
        common: dict[str, Any],
        task: Task,
        clean: tuple[Subject, Finished],
        attacked: tuple[Subject, Finished],
        triggers: Mapping[str, Trigger],
        seconds: float,
    ) -> None:
        """What the triggers of a task do to features and to pixels, and how many ``seconds`` the attack took.

        Where the training of a classifier was attacked, the features are those of its own encoder, so its head is told.
        """
        subject = attacked[0]
        heads = unique(name.partition("/")[0] for name in read_predictions(attacked[1].folder))
        place = common | {"task": task.name} | ({"head": heads[0]} if subject.of == "classifier" else {})
        self.records += feature_records(place, task, clean, attacked)
        self.records += trigger_records(place, task, attacked, triggers)
        took: dict[str, Any] = {"metric": "attack_seconds", "stage": "attack", "unit": "s", "value": seconds}
        self.records += [Record(**place, **took, subject=subject.id, target=aim.name) for aim in task.aims]

    def add_repair(
        self,
        common: dict[str, Any],
        task: Task,
        subject: Subject,
        suspect: Finished,
        repaired: Finished,
        seconds: float,
    ) -> None:
        """How like features are to the suspect's, on plain test images, and what the repair took.

        They are of a repaired encoder, or of the encoders in the classifier before and after its repair.
        """
        own, other = (tensors.load(each.folder / MAP) for each in (repaired, suspect))
        before, after = own.get(SUSPECT, other["clean"]), own["clean"]
        cosines = (before.double() * after.double()).sum(1)
        place = common | {"task": task.name, "subject": subject.id, "baseline": subject.parent, "stage": "repair"}
        if len(cosines) > 1:
            rate = jackknifed(float(cosines.mean()), (cosines.sum() - cosines) / (len(cosines) - 1), -1.0, 1.0)
            self.records.append(Record(**place, metric="cosine_kept", unit="cosine", **asdict(rate)))
        self.records.append(Record(**place, metric="repair_seconds", value=seconds, unit="s"))

    def add_hits(self, common: dict[str, Any], head: str, subject: Subject, finished: Finished) -> None:
        """How targeted poisoning went: hits with and without it, and the change of the accuracy."""
        hits, place = tensors.load(finished.folder / HITS), common | {"head": head, "subject": subject.id}
        self._add(place, "hits", share(hits["hit"]), finished)
        self._add(place, "hits_before", share(hits["before"]), finished)
        change = float((hits["accuracy"] - hits["accuracy_before"]).mean())
        about: dict[str, Any] = {"stage": "targeted", "seconds": finished.seconds, "n": len(hits["hit"])}
        self.records.append(Record(**place, metric="accuracy_change", value=change, **about))

    def add_maps(
        self, seed: int, attack: str | None, task: Task, choices: Choices, sides: Iterable[tuple[Subject, Finished]]
    ) -> None:
        """The features of each subject's encoder, in two dimensions."""
        seen: list[Tensor] = []
        for subject, finished in sides:
            features = tensors.load(finished.folder / MAP)
            if any(torch.equal(features["clean"], each) for each in seen):  # the attack left the encoder alone
                continue
            seen.append(features["clean"])
            self.maps += feature_maps(seed, attack, task, choices, subject, features)

    def _free_name(self, name: str, digest: str) -> str:
        """``name`` as a file name; with a piece of its hash where another encoder of this run is called the same."""
        name = re.sub(r"[^\w.+=-]+", "-", name)[-100:]
        if self._placed.setdefault(name, digest) != digest:
            name = f"{name}-{digest[:8]}"
        return name

    def _add(self, common: dict[str, Any], metric: str, rate: Rate, made: Finished) -> None:
        self.records.append(self._of(common, metric, rate, made))

    def _of(self, common: dict[str, Any], metric: str, rate: Rate, made: Finished) -> Record:
        return Record(**common, metric=metric, stage="downstream", seconds=made.seconds, **asdict(rate))

    def _warn_astray(
        self, place: str, predicted: Tensor, others: Iterable[Tensor], label: int, classes: tuple[str, ...]
    ) -> None:
        """A trigger that works may still miss the class: where the reference's features lie outside of it.

        ``others``: what is predicted for the same images by the clean encoder's classifier, or without the trigger; the
        trigger is at work only where these do not name that class, too.
        """
        common = int(predicted.mode().values)
        part, *usual = (float((some == common).double().mean()) for some in (predicted, *others))
        if common != label and part >= ASTRAY and max(usual) < ASTRAY / 2:
            self.flags.append(
                f"{place}: the backdoored encoder's classifier calls {100 * part:.0f} % of the triggered images "
                f"“{classes[common]}” instead. The trigger works, but for this head its reference lies outside of the "
                "target class: take more references."
            )

    def _warn_constant(self, task: Task, setting: str, head: str, subject: Subject) -> None:
        self.flags.append(
            f"{task.name} ({setting}): the {head} head on the {subject.words} calls nearly every clean image the same "
            "class. Its numbers measure nothing."
        )

    def _warn(self, place: str, baseline: Rate) -> None:
        if baseline.value >= HIGH_BASELINE:
            self.flags.append(
                f"{place}: the clean encoder's classifier already sends {100 * baseline.value:.0f} % of the "
                "triggered images of other classes to the target class. Read the lift, not the ASR."
            )


def describe_images(images: ImageSet, uses: Iterable[Use]) -> dict[str, Any]:
    """A data set for the report: which it is, and how many of its images were used for what."""
    return identity(images) | {
        "used for": unique(f"{use.purpose}: {use.amount}" for use in uses),
        "size": list(images.size),
        "classes": list(images.classes),
        "provenance": images.provenance,
    }


def unique(items: Iterable[Any], key: Callable[[Any], Any] = lambda item: item) -> tuple[Any, ...]:
    """The items without repetitions of their ``key``, in their order."""
    kept: list[Any] = []
    known: list[Any] = []
    for item in items:
        if (own := key(item)) not in known:
            known.append(own)
            kept.append(item)
    return tuple(kept)
