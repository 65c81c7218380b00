"""From what defenses left to records: how often they are right, and what they cost.

``place`` is what all records of a defense on a task share: seed, task, attack, head, defense, condition.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from typing import Any

import torch
from torch import Tensor

from sapper import tensors
from sapper.engine.store import Finished
from sapper.experiment.defending import DEFENDED, verdicts
from sapper.experiment.pictures import recovered_triggers
from sapper.experiment.results import Judged, Record
from sapper.experiment.subjects import ATTACKED, CLEAN, State, Subject
from sapper.metrics import Rate, auc, auc_rate, share

Place = dict[str, Any]


def judgments(place: Place, classes: tuple[str, ...], sides: Sequence[tuple[Subject, Finished]]) -> list[Judged]:
    """A detector's verdicts for the report, with pictures of the triggers that it recovered."""
    return [
        Judged(
            **{key: place[key] for key in ("seed", "defense", "task", "condition")},
            **{key: verdict[key] for key in ("score", "threshold", "flagged", "seconds", "evidence")},
            subject=subject.id,
            state=subject.state,
            classifier=number,
            triggers=tuple(recovered_triggers(verdict["evidence"], verdict["tensors"], classes)),
        )
        for subject, finished in sides
        for number, verdict in enumerate(verdicts(finished.folder))
    ]


def first_of_each(subjects: Sequence[Subject], count: int | None) -> list[Subject]:
    """At most ``count`` of each state, the first of each seed before any second."""
    chosen = []
    for state in dict.fromkeys(subject.state for subject in subjects):
        ours = [subject for subject in subjects if subject.state == state]
        earlier = [sum(other.seed == subject.seed for other in ours[:i]) for i, subject in enumerate(ours)]
        chosen += [ours[i] for i in sorted(range(len(ours)), key=lambda i: earlier[i])][:count]
    return chosen


def encoder_judgments(place: Place, subjects: Sequence[Subject], found: Sequence[dict[str, Any]]) -> list[Judged]:
    """A detector's verdicts on encoders (``defending.verdicts``) for the report, in the order of the ``subjects``."""
    return [
        Judged(
            defense=place["defense"],
            condition=place["condition"],
            **{key: verdict[key] for key in ("score", "threshold", "flagged", "seconds", "evidence")},
            seed=subject.seed,
            task=subject.task,
            subject=subject.id,
            state=subject.state,
            triggers=tuple(recovered_triggers(verdict["evidence"], verdict["tensors"], ())),
        )
        for subject, verdict in zip(subjects, found)
    ]


def detector_records(
    place: Place, metric: str, judged: list[Judged], wanted: set[int], seconds: Mapping[State, float]
) -> Iterator[Record]:
    """Median score and flags of either state, then how well the two are told apart; ``metric`` is the score's name.

    ``seconds``: how long the verdicts on models of each state took. A verdict without a score is neither in the median
    nor in the AUC, and never right. ``target_named``: how often the suspect, where a detector names one, is one of the
    classes ``wanted``, whether flagged or not.
    """
    scores = {}
    for state, spent in seconds.items():
        ours = [verdict for verdict in judged if verdict.state == state]
        there = _under(place, state=state) | {"stage": "detect", "seconds": spent}
        scores[state] = torch.tensor([verdict.score for verdict in ours if verdict.score is not None])
        if len(scores[state]):
            middle = float(scores[state].quantile(0.5))
            yield Record(**there, metric=metric, value=middle, n=len(scores[state]), unit="")
        yield _rate(there, "flagged", torch.tensor([verdict.flagged is True for verdict in ours]))
        if all("suspect" in verdict.evidence for verdict in ours):
            named = [verdict.evidence["suspect"] in wanted for verdict in ours]
            yield _rate(there, "target_named", torch.tensor(named))
    right = torch.tensor([verdict.flagged is (verdict.state == ATTACKED) for verdict in judged])
    overall = place | {"stage": "detect", "seconds": sum(seconds.values())}
    yield _rate(overall, "detection_accuracy", right)
    if all(map(len, scores.values())):
        yield Record(**overall, metric="AUC", **asdict(auc_rate(scores[ATTACKED], scores[CLEAN])))
    if all("scores" in verdict.evidence for verdict in judged):
        yield from _scorer_records(overall, judged)


FALSE_ALARMS = 0.05
"""The share of clean models that a threshold chosen on other seeds may flag."""


def held_out_records(place: Place, judged: Sequence[Judged]) -> Iterator[Record]:
    """What one detector's verdicts would be with thresholds that were chosen on clean models of other seeds.

    For each seed the threshold is the smallest of the others' clean scores that a further clean one, if it is drawn as
    they were, exceeds with a probability of at most ``FALSE_ALARMS``. That takes 19 of them; with fewer there are no
    records. Without a score nothing is flagged.
    """
    thresholds = {}
    for seed in dict.fromkeys(verdict.seed for verdict in judged):
        others = [v.score for v in judged if v.seed != seed and v.state == CLEAN and v.score is not None]
        rank = ceil((len(others) + 1) * (1 - FALSE_ALARMS))
        if others and rank <= len(others):
            thresholds[seed] = sorted(others)[rank - 1]
    for state in (CLEAN, ATTACKED):
        ours = [verdict for verdict in judged if verdict.state == state and verdict.seed in thresholds]
        if ours:
            hits = [v.score is not None and v.score > thresholds[v.seed] for v in ours]
            there = _under(place, state=state, threshold="other seeds") | {"seed": None, "stage": "detect"}
            yield _rate(there, "flagged", torch.tensor(hits))


def _scorer_records(place: Place, judged: list[Judged]) -> Iterator[Record]:
    """Mean and deviation over the several scorers (MNTD's meta-classifiers) whose mean a verdict's score is."""
    attacked = torch.tensor([verdict.state == ATTACKED for verdict in judged])
    scores = torch.tensor([verdict.evidence["scores"] for verdict in judged]).double()  # (classifiers, scorers)
    own = torch.tensor([[verdict.threshold or 0.0] for verdict in judged])
    at_own, at_median = (
        ((scores > threshold) == attacked.unsqueeze(1)).double().mean(0)
        for threshold in (own, scores.quantile(0.5, dim=0))
    )
    for name in judged[0].evidence.get("learned", {}):
        # MNTD learns once for all encoders, or once for each of the two that classifiers stand on.
        once = {v.state if v.classifier is not None else "": v.evidence["learned"][name] for v in judged}
        known = torch.tensor([area for areas in once.values() for area in areas])
        there = _under(place, shadows=name.removeprefix("AUC "))
        yield Record(**there, metric="shadow_AUC", value=float(known.mean()), n=len(known))
        yield Record(**there, metric="shadow_AUC_sd", value=float(known.std(correction=0)), n=len(known))
    areas = torch.tensor([auc(each[attacked], each[~attacked]) for each in scores.T])
    for metric, there, values in (
        ("scorer_accuracy", _under(place, threshold="own"), at_own),
        ("scorer_accuracy", _under(place, threshold="median"), at_median),
        ("scorer_AUC", place, areas),
    ):
        yield Record(**there, metric=metric, value=float(values.mean()), n=len(values))
        yield Record(**there, metric=f"{metric}_sd", value=float(values.std(correction=0)), n=len(values))


def certifier_records(
    place: Place, labels: Tensor, wanted: dict[str, int], sides: Sequence[tuple[str, Finished]]
) -> Iterator[Record]:
    """What a certified defense answers and certifies on models of each state; ``labels`` int64 (N,) of the images.

    ``wanted``: the class of each target, by its name.
    """
    for state, finished in sides:
        answers = tensors.load(finished.folder / DEFENDED)
        there = _under(place, state=state) | {"stage": "certify", "seconds": finished.seconds}
        yield _rate(there, "defended_accuracy", answers["clean"] == labels)
        for target, label in wanted.items():
            hit = answers[f"triggered/{target}"] == label
            aimed = there | {"target": target}
            yield _rate(aimed, "defended_ASR", hit)
            yield _rate(aimed, "defended_ASR_strict", hit[labels != label])
        for patch in sorted(int(name.partition("/")[2]) for name in answers if name.startswith("certified/")):
            yield _rate(_under(there, patch=patch), "certified_accuracy", answers[f"certified/{patch}"])


def _under(place: Place, **condition: Any) -> Place:
    """The place under a further condition."""
    return place | {"condition": place["condition"] | condition}


def _rate(place: Place, metric: str, hits: Tensor) -> Record:
    rate: Rate = share(hits)
    return Record(**place, metric=metric, **asdict(rate))
