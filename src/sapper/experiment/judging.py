"""From what defenses left to records: how often they are right, and what they cost.

``place`` is what all records of a defense on a task share: seed, task, attack, head, defense, condition. ``left`` are
the stages of the classifiers on either encoder, "clean" and "backdoored".
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapper.attacks.target import Target
from sapper.engine.store import Stage
from sapper.experiment import stages
from sapper.experiment.defending import verdicts
from sapper.experiment.pictures import recovered_triggers
from sapper.experiment.results import Judged, Record
from sapper.metrics import Rate, auc, auc_rate, share

Place = dict[str, Any]


def judgments(place: Place, classes: tuple[str, ...], left: dict[str, Stage]) -> list[Judged]:
    """A detector's verdicts for the report, with pictures of the triggers that it recovered."""
    return [
        Judged(
            **{key: place[key] for key in ("seed", "defense", "task", "condition")},
            **{key: verdict[key] for key in ("score", "threshold", "flagged", "seconds", "evidence")},
            encoder=encoder,
            classifier=number,
            triggers=tuple(recovered_triggers(verdict["evidence"], verdict["tensors"], classes)),
        )
        for encoder, stage in left.items()
        for number, verdict in enumerate(verdicts(stage))
    ]


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


def encoder_judgments(place: Place, subjects: Sequence[Subject], found: Sequence[dict[str, Any]]) -> list[Judged]:
    """A detector's verdicts on encoders (``defending.verdicts``) for the report, in the order of the ``subjects``."""
    return [
        Judged(
            defense=place["defense"],
            condition=place["condition"],
            **{key: verdict[key] for key in ("score", "threshold", "flagged", "seconds", "evidence")},
            seed=subject.seed,
            task=subject.task,
            encoder=subject.encoder,
            triggers=tuple(recovered_triggers(verdict["evidence"], verdict["tensors"], ())),
        )
        for subject, verdict in zip(subjects, found)
    ]


def detector_records(
    place: Place, metric: str, judged: list[Judged], targets: tuple[Target, ...], seconds: dict[str, float]
) -> Iterator[Record]:
    """Median score and flags on either encoder, then how well the two are told apart; ``metric`` is the score's name.

    ``seconds``: how long the verdicts on either encoder took. A verdict without a score is neither in the median nor in
    the AUC, and never right. ``target_named``: how often the suspect, where a detector names one, is the class of one
    of the ``targets``, whether flagged or not.
    """
    scores = {}
    for encoder, spent in seconds.items():
        ours = [verdict for verdict in judged if verdict.encoder == encoder]
        there = _under(place, encoder=encoder) | {"stage": "detect", "seconds": spent}
        scores[encoder] = torch.tensor([verdict.score for verdict in ours if verdict.score is not None])
        if len(scores[encoder]):
            middle = float(scores[encoder].quantile(0.5))
            yield Record(**there, metric=metric, value=middle, n=len(scores[encoder]), unit="")
        yield _rate(there, "flagged", torch.tensor([verdict.flagged is True for verdict in ours]))
        if all("suspect" in verdict.evidence for verdict in ours):
            wanted = {target.label for target in targets}
            named = [verdict.evidence["suspect"] in wanted for verdict in ours]
            yield _rate(there, "target_named", torch.tensor(named))
    right = torch.tensor([verdict.flagged is (verdict.encoder == "backdoored") for verdict in judged])
    overall = place | {"stage": "detect", "seconds": sum(seconds.values())}
    yield _rate(overall, "detection_accuracy", right)
    if all(map(len, scores.values())):
        yield Record(**overall, metric="AUC", **asdict(auc_rate(scores["backdoored"], scores["clean"])))
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
        others = [v.score for v in judged if v.seed != seed and v.encoder == "clean" and v.score is not None]
        rank = ceil((len(others) + 1) * (1 - FALSE_ALARMS))
        if others and rank <= len(others):
            thresholds[seed] = sorted(others)[rank - 1]
    for kind in ("clean", "backdoored"):
        ours = [verdict for verdict in judged if verdict.encoder == kind and verdict.seed in thresholds]
        if ours:
            hits = [v.score is not None and v.score > thresholds[v.seed] for v in ours]
            there = _under(place, encoder=kind, threshold="other seeds") | {"seed": None, "stage": "detect"}
            yield _rate(there, "flagged", torch.tensor(hits))


def _scorer_records(place: Place, judged: list[Judged]) -> Iterator[Record]:
    """Mean and deviation over the several scorers (MNTD's meta-classifiers) whose mean a verdict's score is."""
    backdoored = torch.tensor([verdict.encoder == "backdoored" for verdict in judged])
    scores = torch.tensor([verdict.evidence["scores"] for verdict in judged]).double()  # (classifiers, scorers)
    own = torch.tensor([[verdict.threshold or 0.0] for verdict in judged])
    at_own, at_median = (
        ((scores > threshold) == backdoored.unsqueeze(1)).double().mean(0)
        for threshold in (own, scores.quantile(0.5, dim=0))
    )
    for name in judged[0].evidence.get("learned", {}):
        # MNTD learns once for all encoders, or once for each of the two that classifiers stand on.
        once = {v.encoder if v.classifier is not None else "": v.evidence["learned"][name] for v in judged}
        known = torch.tensor([area for areas in once.values() for area in areas])
        there = _under(place, shadows=name.removeprefix("AUC "))
        yield Record(**there, metric="shadow_AUC", value=float(known.mean()), n=len(known))
        yield Record(**there, metric="shadow_AUC_sd", value=float(known.std(correction=0)), n=len(known))
    areas = torch.tensor([auc(each[backdoored], each[~backdoored]) for each in scores.T])
    for metric, there, values in (
        ("scorer_accuracy", _under(place, threshold="own"), at_own),
        ("scorer_accuracy", _under(place, threshold="median"), at_median),
        ("scorer_AUC", place, areas),
    ):
        yield Record(**there, metric=metric, value=float(values.mean()), n=len(values))
        yield Record(**there, metric=f"{metric}_sd", value=float(values.std(correction=0)), n=len(values))


def certifier_records(
    place: Place, labels: Tensor, targets: tuple[Target, ...], left: dict[str, Stage]
) -> Iterator[Record]:
    """What a certified defense answers and certifies on either encoder; ``labels`` int64 (N,) of the images."""
    for encoder, stage in left.items():
        answers = stages.load_tensors(stage.folder / "defended.safetensors")
        there = _under(place, encoder=encoder) | {"stage": "certify", "seconds": stage.seconds}
        yield _rate(there, "defended_accuracy", answers["clean"] == labels)
        for target in targets:
            hit = answers[f"triggered/{target.name}"] == target.label
            aimed = there | {"target": target.name}
            yield _rate(aimed, "defended_ASR", hit)
            yield _rate(aimed, "defended_ASR_strict", hit[labels != target.label])
        for patch in sorted(int(name.partition("/")[2]) for name in answers if name.startswith("certified/")):
            yield _rate(_under(there, patch=patch), "certified_accuracy", answers[f"certified/{patch}"])


def _under(place: Place, **condition: Any) -> Place:
    """The place under a further condition."""
    return place | {"condition": place["condition"] | condition}


def _rate(place: Place, metric: str, hits: Tensor) -> Record:
    rate: Rate = share(hits)
    return Record(**place, metric=metric, **asdict(rate))
