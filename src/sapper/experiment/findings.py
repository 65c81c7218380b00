"""What a running scenario gathers: records, curves, maps and warnings, from the files its stages left."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sapper.attacks.target import Target
from sapper.encoders.files import MARK
from sapper.engine.store import Stage
from sapper.experiment import stages
from sapper.experiment.data import Use
from sapper.experiment.pictures import feature_maps
from sapper.experiment.results import Artifact, Audited, Curve, FeatureMap, Judged, Picture, Record
from sapper.experiment.stages import TaskData
from sapper.files import link_atomically, sha256
from sapper.metrics import Rate, attack_metrics, is_constant, share
from sapper.samples import ImageSet

ASTRAY = 0.8
"""Share of triggered images in one class that is not the target's from which on a report warns of it."""

HIGH_BASELINE = 0.25
"""Strict ASR-B from which on a report warns that the clean encoder is fooled by the trigger, too."""


@dataclass
class Findings:
    """Everything gathered so far; ``out`` is the folder that ``results.json`` will be in."""

    out: Path
    primary_head: str
    records: list[Record] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    maps: list[FeatureMap] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    verdicts: list[Judged] = field(default_factory=list)
    audits: list[Audited] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    _audited: set[Path] = field(default_factory=set)
    _timed: set[Path] = field(default_factory=set)
    _placed: dict[str, str] = field(default_factory=dict)
    _files: dict[str, Path] = field(default_factory=dict)

    def add_timing(self, seed: int, stage: str, done: Stage) -> None:
        """How long a stage took, and whether it was in the Store already; once, however many variants share it."""
        if done.folder in self._timed:
            return
        self._timed.add(done.folder)
        self.timings.append({"seed": seed, "stage": stage, "seconds": done.seconds, "cached": done.cached})

    def is_new(self, audit: Stage) -> bool:
        """Whether an audit was not told of yet: variants may share its encoder."""
        told = audit.folder in self._audited
        self._audited.add(audit.folder)
        return not told

    def add_training(self, seed: int, stage: str, done: Stage, role: str, label: str) -> None:
        """An encoder that a stage trained, with its losses; the file gets a readable name in ``encoders/``."""
        self.curves.append(Curve(seed=seed, stage=stage, series=stages.curves(done)))
        source = stages.encoder_file(done)
        digest = sha256(source)
        mark = f"-{MARK}" if MARK in source.name else ""
        path = f"encoders/{self._free_name(f'{label}-seed{seed}', digest)}{mark}.safetensors"
        self._files[path] = source
        self.artifacts.append(Artifact(role=role, seed=seed, path=path, sha256=digest))

    def place_files(self) -> None:
        """Put the encoders where the artifacts say. Last of all: a run that fails leaves an earlier one's alone."""
        for path, source in self._files.items():
            link_atomically(source, self.out / path)

    def add_references(self, seed: int, target: Target, task: TaskData, rows: list[int]) -> None:
        """Which training images an attacker took."""
        self.references.append(
            {
                "seed": seed,
                "target": target.name,
                "task": task.name,
                "class": target.class_name,
                "label": target.label,
                "rows": rows,
                "source": f"{task.train.name}/{task.train.split}",
            }
        )

    def add_accuracy(self, common: dict[str, Any], task: TaskData, clean: Stage) -> None:
        """CA of a task that nobody attacks."""
        predictions = stages.load_tensors(clean.folder / "predictions.safetensors")
        for name, predicted in predictions.items():
            rate = share(predicted == task.test.targets())
            self._add(common | {"task": task.name, "head": name.removesuffix("/clean")}, "CA", rate, clean)

    def add_attack(
        self, common: dict[str, Any], task: TaskData, targets: tuple[Target, ...], clean: Stage, backdoored: Stage
    ) -> None:
        """All metrics of an attacked task, for every target and head."""
        before = stages.load_tensors(clean.folder / "predictions.safetensors")
        after = stages.load_tensors(backdoored.folder / "predictions.safetensors")
        labels = task.test.targets()
        setting = ", ".join([f"seed {common['seed']}", *(f"{k} = {v}" for k, v in common["condition"].items())])
        heads = unique(name.partition("/")[0] for name in after)
        for target in targets:
            for head in heads:
                rates = attack_metrics(
                    labels,
                    target.label,
                    clean_on_clean=before[f"{head}/clean"],
                    clean_on_triggered=before[f"{head}/triggered/{target.name}"],
                    backdoored_on_clean=after[f"{head}/clean"],
                    backdoored_on_triggered=after[f"{head}/triggered/{target.name}"],
                )
                for metric, rate in rates.items():
                    stage = clean if metric in ("CA", "ASR_B", "ASR_B_strict") else backdoored
                    self._add(common | {"task": task.name, "target": target.name, "head": head}, metric, rate, stage)
                if head == self.primary_head:
                    self._warn(f"{target.name} ({setting})", rates["ASR_B_strict"])
                    view = f"{head}/triggered/{target.name}"
                    others = (before[view], after[f"{head}/clean"])
                    self._warn_astray(f"{target.name} ({setting})", after[view], others, target, task.test.classes)
        for head in heads:
            for encoder, predictions in (("clean", before), ("backdoored", after)):
                if is_constant(predictions[f"{head}/clean"]):
                    self.flags.append(
                        f"{task.name} ({setting}): the {head} head on the {encoder} encoder calls nearly every clean "
                        "image the same class. Its numbers measure nothing."
                    )

    def add_maps(self, seed: int, task: TaskData, targets: tuple[Target, ...], clean: Stage, backdoored: Stage) -> None:
        """The features before and after, in two dimensions."""
        for encoder, stage in (("clean-encoder", clean), ("backdoored-encoder", backdoored)):
            features = stages.load_tensors(stage.folder / "map.safetensors")
            self.maps += feature_maps(seed, task, targets, encoder, features)

    def _free_name(self, name: str, digest: str) -> str:
        """``name`` as a file name; with a piece of its hash where another encoder of this run is called the same."""
        name = re.sub(r"[^\w.+=-]+", "-", name)[-100:]
        if self._placed.setdefault(name, digest) != digest:
            name = f"{name}-{digest[:8]}"
        return name

    def _add(self, common: dict[str, Any], metric: str, rate: Rate, stage: Stage) -> None:
        self.records.append(Record(**common, metric=metric, stage="downstream", seconds=stage.seconds, **asdict(rate)))

    def _warn_astray(
        self, place: str, predicted: Tensor, others: Iterable[Tensor], target: Target, classes: tuple[str, ...]
    ) -> None:
        """A trigger that works may still miss the class: where the reference's features lie outside of it.

        ``others``: what is predicted for the same images by the clean encoder's classifier, or without the trigger; the
        trigger is at work only where these do not name that class, too.
        """
        common = int(predicted.mode().values)
        part, *usual = (float((some == common).double().mean()) for some in (predicted, *others))
        if common != target.label and part >= ASTRAY and max(usual) < ASTRAY / 2:
            self.flags.append(
                f"{place}: the backdoored encoder's classifier calls {100 * part:.0f} % of the triggered images "
                f"“{classes[common]}” instead. The trigger works, but for this head its reference lies outside of the "
                "target class: take more references."
            )

    def _warn(self, place: str, baseline: Rate) -> None:
        if baseline.value >= HIGH_BASELINE:
            self.flags.append(
                f"{place}: the clean encoder's classifier already sends {100 * baseline.value:.0f} % of the "
                "triggered images of other classes to the target class. Read the lift, not the ASR."
            )


def describe_images(images: ImageSet, uses: Iterable[Use]) -> dict[str, Any]:
    """A data set for the report: which it is, and how many of its images were used for what."""
    return stages.identity(images) | {
        "used for": unique(f"{use.purpose}: {use.amount}" for use in uses),
        "size": list(images.size),
        "classes": list(images.classes),
        "provenance": images.provenance,
    }


def unique(items: Iterable[Any]) -> tuple[Any, ...]:
    """The items without repetitions, in their order."""
    kept: list[Any] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return tuple(kept)
