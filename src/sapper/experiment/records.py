"""From what defenses left to records: how often they are right, and what they cost.

``place`` is what all records of a defense on a task share: seed, task, attack, head, defense, condition.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from sapper.defenses.measures import Labeled, Marked, Measured, OfAnswers, OfScores, OfVerdicts, held_out
from sapper.engine.store import Finished
from sapper.experiment.defending import defended_answers
from sapper.experiment.pictures import recovered_triggers
from sapper.experiment.results import Judged, Record, State
from sapper.experiment.subjects import ATTACKED, CLEAN, Subject
from sapper.experiment.verdicts import verdicts
from sapper.verdicts import Verdict

Place = dict[str, Any]


def verdicts_on_classifiers(
    place: Place, classes: tuple[str, ...], sides: Sequence[tuple[Subject, Finished]]
) -> list[Judged]:
    """A detector's verdicts on classifiers for the report, with pictures of the triggers that it recovered."""
    return [
        Judged(
            **{key: place[key] for key in ("seed", "defense", "task", "attack", "condition")},
            **_about(subject, verdict, classes),
            classifier=number,
        )
        for subject, finished in sides
        for number, verdict in enumerate(verdicts(finished.folder))
    ]


def _about(subject: Subject, verdict: Verdict, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "subject": subject.id,
        "state": subject.state,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "flagged": verdict.flagged,
        "seconds": verdict.seconds,
        "evidence": verdict.evidence,
        "triggers": tuple(recovered_triggers(verdict, classes)),
    }


def first_of_each(subjects: Sequence[Subject], count: int | None) -> list[Subject]:
    """At most ``count`` of each state, the first of each seed before any second."""
    chosen = []
    for state in dict.fromkeys(subject.state for subject in subjects):
        ours = [subject for subject in subjects if subject.state == state]
        earlier = [sum(other.seed == subject.seed for other in ours[:i]) for i, subject in enumerate(ours)]
        chosen += [ours[i] for i in sorted(range(len(ours)), key=lambda i: earlier[i])][:count]
    return chosen


def verdicts_on_encoders(place: Place, subjects: Sequence[Subject], answers: Sequence[Verdict]) -> list[Judged]:
    """A detector's verdicts on encoders (``defending.verdicts``) for the report, in the order of the ``subjects``."""
    return [
        Judged(
            defense=place["defense"],
            condition=place["condition"],
            attack=place["attack"],
            seed=subject.seed,
            task=subject.task,
            **_about(subject, verdict, ()),
        )
        for subject, verdict in zip(subjects, answers)
    ]


def detector_records(
    place: Place,
    measures: Sequence[OfVerdicts],
    judged: Sequence[Judged],
    wanted: frozenset[int],
    seconds: Mapping[State, float],
    ids: Mapping[State, str] | None = None,
) -> Iterator[Record]:
    """What a detector declares to be measured by: on models of either state, then on both.

    ``seconds``: how long the verdicts on either took. ``wanted``: the classes that the attacker of their task wants.
    ``ids``: of the subject of either state, where there is one of each.
    """
    labeled = _labeled(judged, wanted)
    values = [each for measure in measures for each in measure.of(labeled)]
    for each in sorted(values, key=lambda each: (False, True, None).index(each.attacked)):
        spent = sum(seconds.values()) if each.attacked is None else seconds[STATES[each.attacked]]
        there = place | {"stage": "detect", "seconds": spent}
        if ids is not None and each.attacked is None:
            there |= {"subject": ids[ATTACKED], "baseline": ids[CLEAN]}
        elif ids is not None:
            there |= {"subject": ids[STATES[each.attacked is True]]}
        yield _record(there, each)


def records_of_encoders(place: Place, measures: Sequence[OfVerdicts], judged: Sequence[Judged]) -> Iterator[Record]:
    """The same of a detector of encoders, on those of all seeds together."""
    seconds: dict[State, float] = {
        state: sum((verdict.seconds for verdict in judged if verdict.state == state), 0.0) for state in STATES.values()
    }
    return detector_records(place | {"seed": None}, measures, judged, frozenset(), seconds)


def by_detector(judged: Iterable[Judged]) -> list[tuple[Place, list[Judged]]]:
    """Verdicts by what has the same place: one detector's, on classifiers of one task or on encoders, of all seeds."""
    groups = list[tuple[Place, list[Judged]]]()
    for verdict in judged:
        task = None if verdict.classifier is None else verdict.task
        place = {"attack": verdict.attack, "condition": verdict.condition, "defense": verdict.defense, "task": task}
        own = next((members for known, members in groups if known == place), None)
        if own is None:
            groups.append((place, [verdict]))
        else:
            own.append(verdict)
    return groups


def held_out_records(place: Place, judged: Sequence[Judged]) -> Iterator[Record]:
    """What one detector's verdicts would be with thresholds from other seeds (``measures.held_out``)."""
    for each in held_out(_labeled(judged, frozenset()), [verdict.seed for verdict in judged]):
        yield _record(place | {"seed": None, "stage": "detect"}, each)


def certifier_records(
    place: Place,
    measures: Sequence[OfAnswers],
    labels: Tensor,
    wanted: Mapping[str, int],
    sides: Sequence[tuple[Subject, Finished]],
    size_is: Literal["patch", "radius"] = "patch",
) -> Iterator[Record]:
    """What a certified defense declares to be measured by, on models of each state; ``labels`` int64 (N,) of images.

    ``wanted``: the class of each target, by its name. ``size_is``: what it certifies for.
    """
    for subject, finished in sides:
        answers = defended_answers(finished.folder, labels, wanted, size_is)
        there = _under(place, state=subject.state) | {"subject": subject.id, "stage": "certify"}
        there |= {"seconds": finished.seconds}
        for measure in measures:
            yield from (_record(there, each) for each in measure.of(answers))


def sift_records(place: Place, measures: Sequence[OfScores], marked: Marked, seconds: float) -> Iterator[Record]:
    """What a sift declares to be measured by, and how long sifting and pre-training again took."""
    for measure in measures:
        yield from (_record(place | {"stage": "sift"}, each) for each in measure.of(marked))
    yield Record(**place, stage="repair", metric="repair_seconds", value=seconds, unit="s")


STATES: dict[bool, State] = {False: CLEAN, True: ATTACKED}
"""The state of a model, by whether it is attacked."""


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
            attacked=each.state == ATTACKED,
            wanted=wanted,
        )
        for each in judged
    ]


def _record(place: Place, measured: Measured) -> Record:
    condition: dict[str, str | float] = dict(measured.condition)
    if measured.attacked is not None:
        condition = {"state": STATES[measured.attacked], **condition}
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


def measured_record(place: Place, measured: Measured, *, state: State) -> Record:
    """A value about a model of that state, whatever its ``attacked`` says of inputs."""
    return _record(_under(place, state=state), replace(measured, attacked=None))


def _under(place: Place, **condition: Any) -> Place:
    """The place under a further condition."""
    return place | {"condition": place["condition"] | condition}
