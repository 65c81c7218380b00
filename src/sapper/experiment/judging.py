"""From what defenses left to records: how often they are right, and what they cost.

``place`` is what all records of a defense on a task share: seed, task, attack, head, defense, condition. ``left`` are
the stages of the classifiers on either encoder, "clean" and "backdoored".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sapper.attacks.target import Target
from sapper.defenses.measures import Answers, Labeled, Measured, OfAnswers, OfVerdicts, held_out
from sapper.engine.store import Stage
from sapper.experiment import stages
from sapper.experiment.defending import verdicts
from sapper.experiment.pictures import recovered_triggers
from sapper.experiment.results import Judged, Record
from sapper.verdicts import Verdict

Place = dict[str, Any]


def judgments(place: Place, classes: tuple[str, ...], left: dict[str, Stage]) -> list[Judged]:
    """A detector's verdicts for the report, with pictures of the triggers that it recovered."""
    return [
        Judged(
            **{key: place[key] for key in ("seed", "defense", "task", "condition")},
            **_told(verdict, classes),
            encoder=encoder,
            classifier=number,
        )
        for encoder, stage in left.items()
        for number, verdict in enumerate(verdicts(stage))
    ]


def _told(verdict: Verdict, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "score": verdict.score,
        "threshold": verdict.threshold,
        "flagged": verdict.flagged,
        "seconds": verdict.seconds,
        "evidence": verdict.evidence,
        "triggers": tuple(recovered_triggers(verdict, classes)),
    }


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder that a trial made: "clean" or "backdoored", and then for which tasks."""

    seed: int
    encoder: str
    file: Path
    task: str | None = None


def first_of_each(subjects: Sequence[Subject], count: int | None) -> list[Subject]:
    """At most ``count`` clean and as many backdoored ones, the first of each seed before any second."""
    chosen = []
    for kind in ("clean", "backdoored"):
        ours = [subject for subject in subjects if subject.encoder == kind]
        earlier = [sum(other.seed == subject.seed for other in ours[:i]) for i, subject in enumerate(ours)]
        chosen += [ours[i] for i in sorted(range(len(ours)), key=lambda i: earlier[i])][:count]
    return chosen


def encoder_judgments(place: Place, subjects: Sequence[Subject], found: Sequence[Verdict]) -> list[Judged]:
    """A detector's verdicts on encoders (``defending.verdicts``) for the report, in the order of the ``subjects``."""
    return [
        Judged(
            defense=place["defense"],
            condition=place["condition"],
            **_told(verdict, ()),
            seed=subject.seed,
            task=subject.task,
            encoder=subject.encoder,
        )
        for subject, verdict in zip(subjects, found)
    ]


def detector_records(
    place: Place,
    measures: Sequence[OfVerdicts],
    judged: Sequence[Judged],
    targets: tuple[Target, ...],
    seconds: dict[str, float],
) -> Iterator[Record]:
    """What a detector declares to be measured by: on either encoder, then on both.

    ``seconds``: how long the verdicts on either encoder took. ``targets``: of the task that they are about.
    """
    labeled = _labeled(judged, frozenset(target.label for target in targets))
    found = [each for measure in measures for each in measure.of(labeled)]
    for each in sorted(found, key=lambda each: (False, True, None).index(each.attacked)):
        spent = sum(seconds.values()) if each.attacked is None else seconds[ENCODERS[each.attacked]]
        yield _record(place | {"stage": "detect", "seconds": spent}, each)


def held_out_records(place: Place, judged: Sequence[Judged]) -> Iterator[Record]:
    """What one detector's verdicts would be with thresholds from other seeds (``measures.held_out``)."""
    for each in held_out(_labeled(judged, frozenset()), [verdict.seed for verdict in judged]):
        yield _record(place | {"seed": None, "stage": "detect"}, each)


def certifier_records(
    place: Place, measures: Sequence[OfAnswers], labels: Tensor, targets: tuple[Target, ...], left: dict[str, Stage]
) -> Iterator[Record]:
    """What a certified defense declares to be measured by, on either encoder; ``labels`` int64 (N,) of the images."""
    for encoder, stage in left.items():
        tensors = stages.load_tensors(stage.folder / "defended.safetensors")
        answers = Answers(
            labels=labels,
            plain=tensors["clean"],
            triggered={target.name: tensors[f"triggered/{target.name}"] for target in targets},
            targets={target.name: target.label for target in targets},
            certified={
                int(name.removeprefix("certified/")): each
                for name, each in tensors.items()
                if name.startswith("certified/")
            },
        )
        there = _under(place, encoder=encoder) | {"stage": "certify", "seconds": stage.seconds}
        for measure in measures:
            yield from (_record(there, each) for each in measure.of(answers))


ENCODERS = {False: "clean", True: "backdoored"}
"""What an encoder is called in results, by whether it is attacked."""


def _labeled(judged: Sequence[Judged], wanted: frozenset[int]) -> list[Labeled]:
    return [
        Labeled(
            verdict=Verdict(
                score=each.score,
                threshold=each.threshold,
                flagged=each.flagged,
                evidence=each.evidence,
                seconds=each.seconds,
            ),
            attacked=each.encoder == ENCODERS[True],
            wanted=wanted,
        )
        for each in judged
    ]


def _record(place: Place, measured: Measured) -> Record:
    condition: dict[str, str | int] = dict(measured.condition)
    if measured.attacked is not None:
        condition = {"encoder": ENCODERS[measured.attacked], **condition}
    if measured.target is not None:
        place = place | {"target": measured.target}
    return Record(
        **_under(place, **condition),
        metric=measured.name,
        value=measured.value,
        low=measured.low,
        high=measured.high,
        n=measured.n,
        unit=measured.unit,
    )


def _under(place: Place, **condition: Any) -> Place:
    """The place under a further condition."""
    return place | {"condition": place["condition"] | condition}
