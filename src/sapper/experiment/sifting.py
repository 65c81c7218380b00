"""The work of whoever sifts a training set before training on it again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from sapper import datasets, encoders, tensors
from sapper.defenses.contracts import Sift
from sapper.defenses.measures import Marked
from sapper.downstream import AnyHead, Classifier, build
from sapper.downstream import files as classifiers
from sapper.encoders import Encoder
from sapper.errors import located
from sapper.experiment.tasks import Task, head_key, method_key, packages
from sapper.experiment.works import (
    POISON,
    POISONED,
    TRIGGERS,
    TUNED,
    encoder_file,
    read_poison,
    read_poisoned,
    victims_encoder,
)
from sapper.files import link_atomically, write_atomically
from sapper.running import Run
from sapper.samples import ImageSet, PairSet, Samples, write_samples
from sapper.scenario.defending import DefensePlan
from sapper.scenario.named import Named
from sapper.verdicts import Scores

SCORES = "scores.safetensors"


@dataclass(frozen=True, kw_only=True)
class SiftPlan(DefensePlan):
    """A sift of what an attack poisoned.

    ``head``: of a task's training set, by whose classifier; ``labeled``: whether the rows of a pre-training come with
    labels, which is where these are trained on.
    """

    method: Named[Sift]
    head: Named[AnyHead]
    labeled: bool = False


@dataclass(frozen=True, kw_only=True)
class SiftRows:
    """Take poison out of a data set, that of the first input; the second holds the encoder.

    Without a ``task`` the encoder was trained on the set. Of a task's training set, the classifier with the plan's head
    was; where that is trained with the encoder, a third input holds it.

    Leaves scores (``values`` and ``flagged``, float and bool (N,)), and what ``Poison`` does, of the rows that stay.
    Nobody knows whether these are clean, so the set stays marked.
    """

    plan: SiftPlan
    task: Task | None = None

    name: ClassVar[str] = "sift"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method, *([] if self.task is None else [self.plan.head]))

    def key(self) -> dict[str, Any]:
        of: dict[str, Any] = {"labeled": self.plan.labeled}
        if self.task is not None:
            of = {"head": head_key(self.plan.head), "gray": self.task.gray}
        return method_key(self.plan.method) | of | {"file": POISONED}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        samples, rows = read_poisoned(inputs[0])
        poison = torch.zeros(len(samples), dtype=torch.bool)
        poison[rows] = True
        shown = samples if self.task is not None or self.plan.labeled else unlabeled(samples)
        model = self._model(samples, inputs[1:], run)
        scores = self.plan.method.parameters(shown, model, run.child(f"defense {self.plan.name}"))
        tensors.save(folder / SCORES, {"values": scores.values.cpu(), "flagged": scores.flagged.cpu()})
        stays = ~scores.flagged.cpu()
        said = f"Sifted by {self.plan.name}: {int(stays.sum())} of {len(samples)} samples stay."
        with located(f"what {self.plan.name} leaves"):
            left = samples.take(stays)
            if self.task is not None:
                datasets.check_task(left, self.task.test())
        left = replace(left, name=f"{left.name}-sifted", provenance=f"{left.provenance} {said}".strip())
        write_samples(folder / POISONED, left, rows=poison[stays].nonzero().squeeze(1))
        sifted = {"sifted": method_key(self.plan.method) | {"removed": int(scores.flagged.sum())}}
        write_atomically(folder / POISON, json.dumps(read_poison(inputs[0]) | sifted))
        link_atomically(inputs[0] / TRIGGERS, folder / TRIGGERS)

    def _model(self, samples: Samples, inputs: tuple[Path, ...], run: Run) -> Encoder | Classifier:
        """What was trained on the rows."""
        if self.task is None:
            return encoders.load(encoder_file(inputs[0]), run)
        head = self.plan.head
        if head.parameters.kind == "tuned":
            return classifiers.load(next(inputs[1].glob(f"{TUNED}*.safetensors")), run)[0]
        encoder = victims_encoder(self.task, inputs[0], run).requires_grad_(False)
        return build(head.parameters, encoder, samples, run.child(f"head {head.name}"))


def unlabeled(samples: Samples) -> Samples:
    """The rows as whoever gathered them without labels has them."""
    if isinstance(samples, PairSet):
        images: ImageSet = replace(samples.images, labels=None, classes=())
        return replace(samples, images=images, labels=None, classes=())
    return replace(samples, labels=None, classes=())


def read_marked(sifted: Path, poisoned: Path) -> Marked:
    """The scores that a sift left, beside which rows of what it was given are poison."""
    found = tensors.load(sifted / SCORES)
    poison = torch.zeros(len(found["values"]), dtype=torch.bool)
    poison[read_poisoned(poisoned)[1]] = True
    return Marked(scores=Scores(values=found["values"], threshold=None, flagged=found["flagged"]), attacked=poison)
