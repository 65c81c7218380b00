"""What defenses are measured by: pure functions from labeled answers to named values. Each defense declares its own.

A verdict is labeled by whether its model is attacked. Rates come with Wilson's 95 % interval (``metrics.share``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sapper.conformal import conformal_threshold
from sapper.metrics import Rate, auc, auc_rate, least_share, share
from sapper.verdicts import Box, ByPlace, Scores, Verdict


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """A verdict, and whether its model is ``attacked``; ``wanted``: the classes that the attacker of its task wants."""

    verdict: Verdict
    attacked: bool
    wanted: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a certified defense answers on N images, all int64 or bool (N,).

    ``labels``: the true classes. ``plain``: answers on the images as they are. ``triggered``: by the targets' names, on
    images with their triggers. ``targets``: the class that each wants. ``certified``: by the size of the threat, which
    ``size_is``: a patch's side, or a radius. ``places``: the same by place, where the defense can tell, by the patch's
    side. ``boxes``: what covers the triggers that lie at one place.
    """

    labels: Tensor
    plain: Tensor
    triggered: Mapping[str, Tensor]
    targets: Mapping[str, int]
    certified: Mapping[float, Tensor]
    size_is: str = "patch"
    places: Mapping[int, ByPlace] = field(default_factory=dict)
    boxes: Mapping[str, Box] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Marked:
    """Scores of inputs or rows, and which of them have a trigger or are poison, bool (N,)."""

    scores: Scores
    attacked: Tensor


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One value, with its 95 % interval where there is one.

    ``attacked``: of the models, inputs or rows that are attacked, of the others, or of all together.
    ``condition``: what else was set.
    """

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    unit: str = "fraction"
    attacked: bool | None = None
    target: str | None = None
    condition: Mapping[str, str | float] = field(default_factory=dict)


T = TypeVar("T")


@dataclass(frozen=True)
class Measure(Generic[T]):
    """A function from labeled answers to values, and the ``names`` that these may have."""

    names: tuple[str, ...]
    of: Callable[[T], Iterable[Measured]]


OfVerdicts = Measure[Sequence[Labeled]]
OfAnswers = Measure[Answers]
OfScores = Measure[Marked]


def detection(score: str) -> tuple[OfVerdicts, ...]:
    """What every detector is measured by; ``score``: what its score is called.

    The median score and the share that is flagged, of either kind of models; the share of right answers, and the AUC.
    A verdict without a score is neither in the median nor in the AUC, and never right.
    """
    return Measure((score,), partial(_median, score)), FLAGGED, ACCURACY, AREA


def of_kind(labeled: Sequence[Labeled], *, attacked: bool) -> list[Verdict]:
    """The verdicts about the models that are attacked, or about the others."""
    return [each.verdict for each in labeled if each.attacked is attacked]


def _kinds(labeled: Sequence[Labeled]) -> Iterator[tuple[bool, list[Verdict]]]:
    for attacked in (False, True):
        if ours := of_kind(labeled, attacked=attacked):
            yield attacked, ours


def _scores(verdicts: Sequence[Verdict]) -> Tensor:
    return torch.tensor([verdict.score for verdict in verdicts if verdict.score is not None])


def _rate(
    name: str, hits: Sequence[bool] | Tensor, attacked: bool | None = None, target: str | None = None
) -> Measured:
    return _of(name, share(torch.as_tensor(hits)), attacked, target)


def _of(name: str, rate: Rate, attacked: bool | None = None, target: str | None = None) -> Measured:
    return Measured(name=name, attacked=attacked, target=target, **asdict(rate))


def _median(name: str, labeled: Sequence[Labeled]) -> Iterator[Measured]:
    for attacked, ours in _kinds(labeled):
        scores = _scores(ours)
        if len(scores):
            middle = float(scores.quantile(0.5))
            yield Measured(name=name, value=middle, n=len(scores), unit="", attacked=attacked)


def _flagged(labeled: Sequence[Labeled]) -> Iterator[Measured]:
    for attacked, ours in _kinds(labeled):
        yield _rate("flagged", [verdict.flagged is True for verdict in ours], attacked)


def _accuracy(labeled: Sequence[Labeled]) -> Iterator[Measured]:
    yield _rate("detection_accuracy", [each.verdict.flagged is each.attacked for each in labeled])


def _area(labeled: Sequence[Labeled]) -> Iterator[Measured]:
    plain, attacked = (_scores(of_kind(labeled, attacked=kind)) for kind in (False, True))
    if len(plain) and len(attacked):
        yield _of("AUC", auc_rate(attacked, plain))


def _target_named(labeled: Sequence[Labeled]) -> Iterator[Measured]:
    """How often the suspect is a class that the attacker wants, whether flagged or not. Evidence: ``suspect``."""
    for attacked in (False, True):
        ours = [each for each in labeled if each.attacked is attacked]
        if ours and all("suspect" in each.verdict.evidence for each in ours):
            yield _rate("target_named", [each.verdict.evidence["suspect"] in each.wanted for each in ours], attacked)


FLAGGED = OfVerdicts(("flagged",), _flagged)
ACCURACY = OfVerdicts(("detection_accuracy",), _accuracy)
AREA = OfVerdicts(("AUC",), _area)
TARGET_NAMED = OfVerdicts(("target_named",), _target_named)


def _with_deviation(name: str, values: Tensor, condition: Mapping[str, str]) -> Iterator[Measured]:
    """Mean and deviation of values, float (n,)."""
    yield Measured(name=name, value=float(values.mean()), n=len(values), condition=condition)
    deviation = float(values.std(correction=0))
    yield Measured(name=f"{name}_sd", value=deviation, n=len(values), condition=condition)


def _scorers(labeled: Sequence[Labeled]) -> Iterator[Measured]:
    """Over the several scorers whose mean a verdict's score is. Evidence: ``scores``, one of each."""
    attacked = torch.tensor([each.attacked for each in labeled])
    scores = torch.tensor([each.verdict.evidence["scores"] for each in labeled]).double()  # (models, scorers)
    own = torch.tensor([[each.verdict.threshold or 0.0] for each in labeled])
    for threshold, at in (("own", own), ("median", scores.quantile(0.5, dim=0))):
        right = ((scores > at) == attacked.unsqueeze(1)).double().mean(0)
        yield from _with_deviation("scorer_accuracy", right, {"threshold": threshold})
    areas = torch.tensor([auc(each[attacked], each[~attacked]) for each in scores.T])
    yield from _with_deviation("scorer_AUC", areas, {})


def _learned(by_kind: bool, labeled: Sequence[Labeled]) -> Iterator[Measured]:
    """How well scorers tell what they learned from. Evidence: ``learned``, by name ("AUC …") a value of each scorer.

    ``by_kind``: whether they learned once for the attacked models and once for the others, or once for all.
    """
    for name in labeled[0].verdict.evidence["learned"]:
        once = {each.attacked if by_kind else None: each.verdict.evidence["learned"][name] for each in labeled}
        values = torch.tensor([area for areas in once.values() for area in areas])
        yield from _with_deviation("shadow_AUC", values, {"shadows": name.removeprefix("AUC ")})


def scorers(*, learned_by_kind: bool) -> tuple[OfVerdicts, ...]:
    """What a detector of several scorers is measured by besides; see ``_learned`` for ``learned_by_kind``."""
    return (
        OfVerdicts(("shadow_AUC", "shadow_AUC_sd"), partial(_learned, learned_by_kind)),
        OfVerdicts(("scorer_accuracy", "scorer_accuracy_sd", "scorer_AUC", "scorer_AUC_sd"), _scorers),
    )


FALSE_ALARMS = 0.05
"""The share of clean models that a threshold chosen on other models may flag."""


def held_out(labeled: Sequence[Labeled], groups: Sequence[int]) -> Iterator[Measured]:
    """What verdicts would be with thresholds that were chosen on clean models of other groups (seeds).

    For each group the threshold is the smallest of the others' clean scores that a further clean one, if it is drawn as
    they were, exceeds with a probability of at most ``FALSE_ALARMS``. That takes 19 of them; with fewer there is
    nothing to tell. Without a score nothing is flagged.
    """
    thresholds, scores = {}, [each.verdict.score for each in labeled]
    for group in dict.fromkeys(groups):
        clean = [not each.attacked and other != group for each, other in zip(labeled, groups)]
        others = [score for score, wanted in zip(scores, clean) if wanted and score is not None]
        threshold = conformal_threshold(others, FALSE_ALARMS)
        if threshold is not None:
            thresholds[group] = threshold
    for attacked in (False, True):
        ours = [group in thresholds and each.attacked is attacked for each, group in zip(labeled, groups)]
        told = [(score, thresholds[group]) for score, group, one in zip(scores, groups, ours) if one]
        if told:
            rate = share(torch.tensor([score is not None and score > threshold for score, threshold in told]))
            condition = {"threshold": "other seeds"}
            yield Measured(name="flagged", attacked=attacked, condition=condition, **asdict(rate))


def _defended(answers: Answers) -> Iterator[Measured]:
    yield _rate("defended_accuracy", answers.plain == answers.labels)
    for target, label in answers.targets.items():
        hit = answers.triggered[target] == label
        yield _rate("defended_ASR", hit, target=target)
        yield _rate("defended_ASR_strict", hit[answers.labels != label], target=target)


def _certified(answers: Answers) -> Iterator[Measured]:
    for size, certified in sorted(answers.certified.items()):
        rate = share(certified)
        yield Measured(name="certified_accuracy", condition={answers.size_is: size}, **asdict(rate))


def _universal(answers: Answers) -> Iterator[Measured]:
    """What is certified against a patch at one place, the same for all images: at the worst place for the defense."""
    for patch, places in sorted(answers.places.items()):
        rate = least_share(places.certified)
        yield Measured(name="universal_certified_accuracy", condition={"patch": patch}, **asdict(rate))


def _bounds(answers: Answers) -> Iterator[Measured]:
    """How much of the others' images a patch at one place can send to a target's class at most: those not certified."""
    for patch, places in sorted(answers.places.items()):
        for target, label in answers.targets.items():
            others, there = answers.labels != label, {"patch": patch}
            kept = least_share(places.certified[others])
            worst = Rate(1 - kept.value, 1 - kept.high, 1 - kept.low, kept.n)
            yield Measured(name="ASR_strict_bound", target=target, condition=there, **asdict(worst))
            known = places.under(answers.boxes[target]) if target in answers.boxes else None
            if known is not None:
                rate = share(~known[others])
                name = "ASR_strict_bound_known_place"
                yield Measured(name=name, target=target, condition=there, **asdict(rate))


CERTIFIED: tuple[OfAnswers, ...] = (
    OfAnswers(("defended_accuracy", "defended_ASR", "defended_ASR_strict"), _defended),
    OfAnswers(("certified_accuracy",), _certified),
    OfAnswers(("universal_certified_accuracy",), _universal),
    OfAnswers(("ASR_strict_bound", "ASR_strict_bound_known_place"), _bounds),
)
"""What every certified defense is measured by, on each encoder by itself."""


def _area_of_scores(marked: Marked) -> Iterator[Measured]:
    values, attacked = marked.scores.values, marked.attacked
    if bool(attacked.any()) and not bool(attacked.all()):
        yield _of("AUC", auc_rate(values[attacked], values[~attacked]))


def _rejections(marked: Marked) -> Iterator[Measured]:
    flagged = marked.scores.flagged
    yield _rate("false_rejections", flagged[~marked.attacked], False)
    yield _rate("rejected", flagged[marked.attacked], True)


SCREENED: tuple[OfScores, ...] = (
    OfScores(("AUC",), _area_of_scores),
    OfScores(("false_rejections", "rejected"), _rejections),
)
"""What every screen is measured by, on images as they are and on the same with a trigger, both at least one.

The AUC's interval takes both for independent samples, though each image is in both.
"""


def _removed(marked: Marked) -> Iterator[Measured]:
    for rows, of in (("poison", marked.attacked), ("clean", ~marked.attacked)):
        if bool(of.any()):
            yield Measured(name="removed", condition={"rows": rows}, **asdict(share(marked.scores.flagged[of])))


SIFTED: tuple[OfScores, ...] = (OfScores(("AUC",), _area_of_scores), OfScores(("removed",), _removed))
"""What every sift is measured by: how often a row of poison scores above a clean one, and the shares that it removes
of the ``rows`` that are poison and of those that are clean."""
