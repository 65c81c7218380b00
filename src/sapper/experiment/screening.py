"""The work of a defender who screens inputs, and the records of what its scores tell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sapper import tensors
from sapper.attacks.poisoning import stamped
from sapper.defenses.contracts import Model, Screen
from sapper.defenses.measures import Marked, OfScores
from sapper.engine.store import Finished
from sapper.experiment.defending import Classifiers, triggers_of
from sapper.experiment.records import Place, measured_record
from sapper.experiment.results import Record, Roc
from sapper.experiment.subjects import Subject
from sapper.experiment.tasks import Part, Task, method_key, packages
from sapper.experiment.works import victims_encoder
from sapper.metrics import roc
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.defending import DefensePlan
from sapper.scenario.sections import ScreenSection
from sapper.verdicts import Scores

SCORES = "scores.safetensors"

POINTS = 201
"""Of how many points a ROC curve in the results is made at most."""


def judged_and_clean(
    test: Part[ImageSet], section: ScreenSection, task: str, run: Run
) -> tuple[Part[ImageSet], Part[ImageSet]]:
    """The test images of a task that a screen is judged on, and those that its defender holds."""
    rest, clean = test.halves(section.share, run.child(f"clean images {task}"))
    return rest.sample(section.test_images, run.child(f"test images {task}, screened")), clean


@dataclass(frozen=True, kw_only=True)
class ScreenInputs:
    """Screen test images as they are and with each target's trigger; leaves ``scores.safetensors``.

    Inputs: the encoder; for a screen of ``classifiers`` what those need; where ``made_triggers``, what holds them.
    ``clean``: the defender's own. In the file, float (N,): ``plain`` and ``triggered/<target>``; and ``threshold``.
    """

    plan: DefensePlan
    task: Task
    images: Part[ImageSet]
    clean: Part[ImageSet]
    classifiers: Classifiers | None = None
    made_triggers: bool = False

    name: ClassVar[str] = "screen"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method, *([self.classifiers.head] if self.classifiers else []))

    def key(self) -> dict[str, Any]:
        own: dict[str, Any] = {"name": self.plan.name, "made triggers": self.made_triggers}
        own |= {"images": self.images.origin, "clean": self.clean.origin}
        if (
            self.classifiers is None
        ):  # whatever the task's victim does, the encoder's features are all that is looked at
            triggers = {aim.name: aim.trigger.describe() for aim in self.task.aims}
            versions = {aim.name: aim.trigger.version for aim in self.task.aims}
            own |= {"triggers": triggers, "trigger versions": versions, "gray": self.task.gray}
        else:
            own |= {"victim": self.classifiers.key()}
        return method_key(self.plan.method) | own

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        method: Screen = self.plan.method.parameters
        if self.classifiers is None:
            model: Model = victims_encoder(self.task, inputs[0], run)
        else:
            model = self.classifiers.victim(inputs, run).classifier(0)
        screener = method.prepare(model, self.clean(), run.child(f"defense {self.plan.name}"))
        images = self.images().images
        found = {"threshold": torch.tensor(screener.threshold, dtype=torch.double), "plain": screener.scores(images)}
        for name, trigger in triggers_of(self.task, inputs[-1] if self.made_triggers else None).items():
            found[f"triggered/{name}"] = screener.scores(stamped(images, trigger))
        tensors.save(folder / SCORES, found)


def screen_records(
    place: Place, measures: Sequence[OfScores], targets: Sequence[str], sides: Sequence[tuple[Subject, Finished]]
) -> Iterator[Record]:
    """What a screen declares to be measured by, on models of each state: for each target, or once for plain inputs."""
    for subject, finished in sides:
        found = tensors.load(finished.folder / SCORES)
        there = place | {"subject": subject.id, "stage": "screen", "seconds": finished.seconds}
        for number, target in enumerate(targets):
            for each in (each for measure in measures for each in measure.of(_marked(found, target))):
                if each.attacked is not False:
                    yield measured_record(there | {"target": target}, each, state=subject.state)
                elif number == 0:
                    yield measured_record(there, each, state=subject.state)


def screen_curves(place: Place, targets: Sequence[str], sides: Sequence[tuple[Subject, Finished]]) -> Iterator[Roc]:
    """The ROC curve of each model's scores for each target, and where the threshold lies on it."""
    for subject, finished in sides:
        found = tensors.load(finished.folder / SCORES)
        for target in targets:
            marked = _marked(found, target)
            values, flagged, attacked = marked.scores.values, marked.scores.flagged.double(), marked.attacked
            yield Roc(
                seed=place["seed"],
                defense=place["defense"],
                task=place["task"],
                attack=place.get("attack"),
                condition=place["condition"],
                target=target,
                subject=subject.id,
                state=subject.state,
                points=tuple(thinned(roc(values[attacked], values[~attacked]))),
                at=(float(flagged[~attacked].mean()), float(flagged[attacked].mean())),
            )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` of them, both ends among them, evenly by their number."""
    if len(points) <= POINTS:
        return list(points)
    return [points[round(at * (len(points) - 1) / (POINTS - 1))] for at in range(POINTS)]


def _marked(found: Mapping[str, Tensor], target: str) -> Marked:
    """Scores of plain and of triggered images, one after another."""
    plain, triggered, threshold = found["plain"], found[f"triggered/{target}"], float(found["threshold"])
    values = torch.cat((plain, triggered))
    scores = Scores(values=values, threshold=threshold, flagged=values > threshold)
    return Marked(scores=scores, attacked=torch.arange(len(values)) >= len(plain))
