"""One encoder of a zoo and its attacked twin: the stages that make and measure them, and what they become."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.attacks.contracts import makes_triggers
from sapper.attacks.references import choose_references, references_there
from sapper.downstream import extract
from sapper.encoders import Encoder
from sapper.encoders.files import MARK
from sapper.engine.stage import Stage
from sapper.engine.store import Finished, Store
from sapper.experiment.pipeline import AttackPlan, Pipeline, pipeline
from sapper.experiment.results import State
from sapper.experiment.subjects import ATTACKED, CLEAN, Subject
from sapper.experiment.tasks import Part, Task, describe
from sapper.experiment.works import TRIGGERS, encoder_file, read_choices, read_predictions
from sapper.methods import settings
from sapper.metrics import attack_metrics
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.reading import read_trigger
from sapper.triggers import Trigger
from sapper.triggers.files import read_triggers
from sapper.zoo.plans import Specimen

WORKING = 0.5
"""The strict ASR from which on a backdoor is said to work."""

ATTACKERS_CHOICE = 3
"""Of how many classes, those that an encoder tells best, the attacker takes one."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """An encoder of the zoo. ``file`` is relative to the zoo's folder.

    ``parent``: the name of the clean one that an attacked one was made from. ``about``: what was drawn for it, and of
    an attacked one its trigger, target and attack success. ``made``: a file with the trigger, in the zoo's folder, too,
    where the attack made it.
    """

    name: str
    family: str
    part: str
    state: State
    file: str
    parent: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    made: str | None = None

    @property
    def attacked(self) -> bool:
        """Whether it has a backdoor."""
        return self.state == ATTACKED

    def trigger(self, folder: Path) -> Trigger | None:
        """What an attacked one of the zoo in a folder obeys."""
        if not self.attacked:
            return None
        if self.made is not None:
            return read_triggers(folder / self.made)[self.about["target"]["name"]]
        return read_trigger(self.about["target"]["trigger"], self.name, "target.trigger")


@dataclass(frozen=True)
class BestTold:
    """One of the classes that the encoder tells best: an attacker's reference is of no use in any other.

    ``count`` references of it. Classes with fewer are passed over.
    """

    count: int

    def __call__(self, candidates: ImageSet, encoder: Encoder, run: Run) -> tuple[int, Tensor]:
        recalls = neighbor_recall(extract(encoder, candidates, run), candidates.targets())
        enough = references_there(candidates, len(recalls)) >= self.count
        ranked = recalls.argsort(descending=True)
        best = (ranked[enough[ranked]] if enough.any() else ranked)[:ATTACKERS_CHOICE]
        label = int(best[torch.randint(len(best), (), generator=run.child("target").generator())])
        return label, choose_references(candidates, label, self.count, encoder, run)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A specimen and its twin, if it has one, before they are made."""

    specimen: Specimen
    pipeline: Pipeline
    images: Part

    def members(self, done: Mapping[Stage, Finished], store: Store) -> list[Member]:
        """What they have become: the clean one, and the attacked one with what its backdoor does."""
        return [self._member(subject, done, store) for subject in self.pipeline.subjects]

    def _member(self, subject: Subject, done: Mapping[Stage, Finished], store: Store) -> Member:
        specimen, names = self.specimen, {CLEAN: "clean", ATTACKED: MARK.lower()}
        drawn = {
            "encoder": specimen.encoder.model_dump(mode="json"),
            "pretraining": {
                "method": specimen.pretraining_method.name,
                "dataset": specimen.pretraining.dataset,
                "images": len(self.images()),
            }
            | settings(specimen.pretraining_method.parameters),
        }
        attacked, made = subject.state == ATTACKED, None
        if attacked and subject.source is not None and makes_triggers(specimen.attack_method.parameters):
            made = str((done[subject.source].folder / TRIGGERS).relative_to(store.root))
        return Member(
            name=f"{specimen.name}-{names[subject.state]}",
            family=specimen.family,
            part=specimen.part,
            state=subject.state,
            file=str(encoder_file(done[subject.stage].folder).relative_to(store.root)),
            parent=f"{specimen.name}-{names[CLEAN]}" if attacked else None,
            about=drawn | (self._success(subject, done) if attacked else {}),
            made=made,
        )

    def _success(self, subject: Subject, done: Mapping[Stage, Finished]) -> dict[str, Any]:
        """What the backdoor does, measured on a victim's classifiers."""
        (measured,) = self.pipeline.measured
        assert measured.after is not None
        task, head = measured.task, self.specimen.head.name
        (target,) = task.goals.targets(read_choices(done[self.pipeline.choices[task.name]].folder))
        if subject.source is not None:
            target = replace(target, trigger=read_triggers(done[subject.source].folder / TRIGGERS)[target.name])
        before, after = (read_predictions(done[stage].folder) for stage in (measured.before, measured.after))
        plain, stamped = f"{head}/clean", f"{head}/triggered/{target.name}"
        rates = attack_metrics(
            task.test().targets(),
            target.label,
            clean_on_clean=before[plain],
            clean_on_triggered=before[stamped],
            backdoored_on_clean=after[plain],
            backdoored_on_triggered=after[stamped],
        )
        attack = {"method": self.specimen.attack_method.name} | settings(self.specimen.attack_method.parameters)
        return {
            "attack": attack,
            "target": describe(target) | {"class": target.class_name},
            "metrics": {metric: rate.value for metric, rate in rates.items()},
        }


def planned(specimen: Specimen, images: Part, shadow: Part, task: Task | None, run: Run) -> Planned:
    """The stages of a specimen; ``task`` is its victim's, where it has a twin.

    On a CPU each is for one process with one thread.
    """
    graph = pipeline(
        specimen.encoder,
        specimen.pretraining_method,
        images,
        run,
        tasks=[] if task is None else [task],
        attack=AttackPlan(method=specimen.attack_method, shadow=shadow),
        heads=[specimen.head],
        threads=1 if run.device.type == "cpu" else torch.get_num_threads(),
        where=specimen.name,
    )
    return Planned(specimen=specimen, pipeline=graph, images=images)


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
