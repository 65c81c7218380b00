"""One encoder of a zoo and its backdoored twin: pre-trained, attacked, and the attack measured on a victim's heads."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sapper import encoders
from sapper.attacks.references import choose_references
from sapper.attacks.target import Target
from sapper.downstream import extract
from sapper.engine.store import Store
from sapper.errors import located
from sapper.experiment import stages
from sapper.experiment.stages import TaskData
from sapper.metrics import attack_metrics
from sapper.run import Run
from sapper.samples import ImageSet
from sapper.scenario.reading import read_trigger
from sapper.triggers import Trigger
from sapper.zoo.plans import Specimen

WORKING = 0.5
"""The strict ASR from which on a backdoor is said to work."""

ATTACKERS_CHOICE = 3
"""Of how many classes, those that an encoder tells best, the attacker takes one."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """An encoder of the zoo. ``file`` is relative to the zoo's folder.

    ``about``: what was drawn for it, and of a backdoored one its trigger, target and attack success.
    """

    name: str
    family: str
    part: str
    kind: Literal["clean", "backdoored"]
    file: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def trigger(self) -> Trigger | None:
        """What a backdoored one obeys."""
        if self.kind == "clean":
            return None
        return read_trigger(self.about["target"]["trigger"], self.name, "target.trigger")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process needs to make a specimen and its twin. Travels to other processes.

    ``task`` is the victim's, ``candidates`` are the attacker's images of it; both are there where there is a twin.
    """

    specimen: Specimen
    images: ImageSet
    shadow: ImageSet
    task: TaskData | None
    candidates: ImageSet | None
    run: Run

    def make(self, store: Store) -> list[Member]:
        """Train both, or find them in the store; measure the attack."""
        specimen, run = self.specimen, self.run
        with located(specimen.name):
            first = stages.pretrain(store, specimen.encoder, specimen.pretraining_method, self.images, run)
            clean = stages.encoder_file(first)
            members = [self._member("clean", clean, store, {})]
            if self.task is not None and self.candidates is not None:
                target = self._target(clean, self.candidates)
                attack = stages.attack(store, clean, specimen.attack_method, self.shadow, (target,), run)
                twin = stages.encoder_file(attack)
                members.append(
                    self._member("backdoored", twin, store, self._success(store, clean, twin, self.task, target))
                )
        return members

    def _target(self, clean: Path, candidates: ImageSet) -> Target:
        """One of the classes that the encoder tells best: an attacker's reference is of no use in any other."""
        encoder = encoders.load(clean, self.run)
        told = neighbor_recall(extract(encoder, candidates, self.run), candidates.targets())
        best = told.argsort(descending=True)[:ATTACKERS_CHOICE]
        label = int(best[torch.randint(len(best), (), generator=self.run.child("target").generator())])
        rows = choose_references(candidates, label, self.specimen.victim.references, encoder, self.run)
        return Target(
            name=self.specimen.name,
            task=candidates.name,
            label=label,
            class_name=candidates.classes[label],
            references=candidates.take(rows),
            trigger=self.specimen.trigger,
        )

    def _success(self, store: Store, clean: Path, twin: Path, task: TaskData, target: Target) -> dict[str, Any]:
        """What the backdoor does, measured on a victim's classifiers."""
        heads, targets = (self.specimen.head,), (target,)
        before, after = (
            stages.load_tensors(
                stages.downstream(store, file, task, targets, heads, self.run).folder / "predictions.safetensors"
            )
            for file in (clean, twin)
        )
        plain, stamped = f"{heads[0].name}/clean", f"{heads[0].name}/triggered/{target.name}"
        rates = attack_metrics(
            task.test.targets(),
            target.label,
            clean_on_clean=before[plain],
            clean_on_triggered=before[stamped],
            backdoored_on_clean=after[plain],
            backdoored_on_triggered=after[stamped],
        )
        attack = {"method": self.specimen.attack_method.name} | asdict(self.specimen.attack_method.parameters)
        return {
            "attack": attack,
            "target": stages.describe(target) | {"class": target.class_name},
            "metrics": {metric: rate.value for metric, rate in rates.items()},
        }

    def _member(self, kind: Literal["clean", "backdoored"], file: Path, store: Store, about: dict[str, Any]) -> Member:
        specimen = self.specimen
        drawn = {
            "encoder": specimen.encoder.model_dump(mode="json"),
            "pretraining": {
                "method": specimen.pretraining_method.name,
                "dataset": specimen.pretraining.dataset,
                "images": len(self.images),
            }
            | asdict(specimen.pretraining_method.parameters),
        }
        return Member(
            name=f"{specimen.name}-{kind}",
            family=specimen.family,
            part=specimen.part,
            kind=kind,
            file=str(file.relative_to(store.root)),
            about=drawn | about,
        )


def neighbor_recall(features: Tensor, labels: Tensor, neighbors: int = 5) -> Tensor:
    """For each class the share of its images whose nearest other ones are mostly of that class, float (K,).

    ``features`` float (N, D), ``labels`` int64 (N,) with K − 1 as the largest; nearness is the cosine.
    """
    normal = F.normalize(features.cpu().float(), dim=1)
    similarity = normal @ normal.T
    similarity.fill_diagonal_(-math.inf)
    nearest = similarity.topk(min(neighbors, len(labels) - 1), dim=1).indices
    votes = F.one_hot(labels[nearest], int(labels.max()) + 1).sum(1)
    hits = (votes.argmax(1) == labels).double()
    counts = torch.bincount(labels).clamp_min(1)
    return torch.zeros(len(counts), dtype=torch.double).index_add_(0, labels, hits) / counts
