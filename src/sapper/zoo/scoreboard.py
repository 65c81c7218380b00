"""How well each detector tells a zoo's backdoored encoders from its clean ones.

The leading detector of a budget is judged as an audit judges: a member of the judgement part is flagged when its
conformal p-values beside all bags that fit are at most the bound, and its score is above its own threshold. The bags
are the zoo's own calibration parts, of a member's family and of all that look alike, or bags that were made before.
The other detectors are judged by their p-values, each by itself, and all by their own thresholds alone.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sapper.audits.calibration import BOUND, Bag, Key, Power, fitting, largest_p_value
from sapper.conformal import fewest
from sapper.defenses.budgets import Budget
from sapper.files import write_atomically
from sapper.metrics import auc_rate, roc
from sapper.zoo.examining import CALIBRATION, JUDGEMENT, Scored
from sapper.zoo.making import WORKING, Member

PARTS = (CALIBRATION, JUDGEMENT)

Known = dict[str, dict[str, dict[str, list[float]]]]
"""For each kind of encoder (``Scored.looks``) the bags that it is judged beside, by name: each detector's scores."""

ALL = "all"
"""All families together, in a row."""

PLAIN = "badencoder"

OTHERS = {"noise": "learned noise", "network": "learned colors", "patches": "several patches"}
"""Kinds of triggers, in words."""

SIZES = ((1, 4), (5, 8), (9, 12))
"""Groups of trigger sizes, in pixels, whose power is told apart."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """``found`` of ``n``, and Clopper and Pearson's exact 95 % interval."""

    found: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.found / self.n

    @staticmethod
    def of(hits: Iterable[bool]) -> "Share":
        listed = list(hits)
        return Share.counted(sum(listed), len(listed))

    @staticmethod
    def counted(found: int, n: int) -> "Share":
        from scipy.special import betaincinv  # takes half a second, which building a zoo need not wait for

        low = float(betaincinv(found, n - found + 1, 0.025)) if found else 0.0
        high = float(betaincinv(found + 1, n - found, 0.975)) if found < n else 1.0
        return Share(found=found, n=n, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Row:
    """How one detector did on the judgement part of a family, or of all of them.

    ``auc`` with its interval; by calibrated p-values at the bound ``true_positives`` of all backdoored encoders,
    ``working`` of those whose backdoor works, ``false_alarms`` of the clean ones; by its ``own`` threshold likewise.
    """

    family: str
    detector: str
    auc: float
    auc_low: float
    auc_high: float
    true_positives: Share | None
    working: Share | None
    false_alarms: Share | None
    own_true_positives: Share | None
    own_false_alarms: Share | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Missed:
    """A backdoored encoder of the judgement part that an audit would pass, and why it would.

    ``powers`` of ten between the spread of features under the change that the leading detector found, and that of the
    images around; ``under_trigger``: the same of the encoder's own trigger. Where this is much more, the search failed;
    where both are small, the encoder does not do what the detector looks for; else clean encoders show the same drop,
    or it is below the threshold.
    """

    name: str
    trigger: dict[str, Any]
    asr_strict: float
    score: float | None
    p_value: float | None
    powers: float | None
    under_trigger: float | None


@dataclass(frozen=True, kw_only=True)
class Scoreboard:
    """A zoo's scores and what follows from them. ``rows``: each family's, then those of all together.

    ``curves``: for each detector the ROC curve over all families that it judged (``on_one_scale``), as (false-alarm,
    true-positive).
    ``beside``: the names of all bags. ``power``: what the leading detector finds of which triggers, at the bound;
    ``missed``: what it does not find.
    """

    zoo: str
    budget: str
    leading: str
    bound: float
    rows: tuple[Row, ...]
    curves: dict[str, list[tuple[float, float]]]
    beside: tuple[str, ...]
    power: tuple[Power, ...]
    missed: tuple[Missed, ...]
    members: tuple[Scored, ...]
    environment: dict[str, str]
    command: str
    schema: int = 2


def board(
    scored: Sequence[Scored], known: Known, zoo: str, budget: Budget, environment: dict[str, str], command: str
) -> Scoreboard:
    """What follows from a zoo's scores."""
    detectors = list(dict.fromkeys(name for each in scored for name in each.scores))
    rows, curves = compared(scored, known, detectors, BOUND, budget.leading)
    return Scoreboard(
        zoo=zoo,
        budget=budget.name,
        leading=budget.leading,
        bound=BOUND,
        rows=tuple(rows),
        curves=curves,
        beside=tuple(dict.fromkeys(name for bags in known.values() for name in bags)),
        power=tuple(power(scored, known, budget.leading, BOUND)),
        missed=tuple(missed(scored, known, budget.leading, BOUND)),
        members=tuple(scored),
        environment=environment,
        command=command,
    )


def calibrating(scored: Sequence[Scored], family: str) -> list[Scored]:
    """The clean encoders of a family's calibration part."""
    ours = [each for each in scored if each.member.part == CALIBRATION and each.member.family == family]
    return [each for each in ours if not each.member.attacked]


def bag_name(zoo: str, family: str, budget: str) -> str:
    """What the bag of a family's calibration part is called."""
    return f"{zoo}-{family}-{budget}"


def own_calibration(scored: Sequence[Scored], zoo: str, budget: str) -> Known:
    """The calibration part of every family. Without a score an encoder is as suspicious as can be."""
    known: Known = {}
    for family in dict.fromkeys(each.member.family for each in scored):
        if part := calibrating(scored, family):
            clean = {name: [_suspicious(each.scores[name]) for each in part] for name in part[0].scores}
            known.setdefault(part[0].looks, {})[bag_name(zoo, family, budget)] = clean
    return known


def beside_bags(scored: Sequence[Scored], bags: Sequence[Bag]) -> Known:
    """Those of the bags that an audit would take for each kind of encoder."""
    known: Known = {}
    for looks in dict.fromkeys(each.looks for each in scored):
        fit = fitting(Key(**json.loads(looks)), bags, BOUND).bags
        known[looks] = {bag.name: {name: bag.of(name) for name in bag.scores} for bag in fit}
    return known


def compared(
    scored: Sequence[Scored], known: Known, detectors: Sequence[str], bound: float, leading: str = ""
) -> tuple[list[Row], dict[str, Any]]:
    """Rows and ROC curves of the judgement part; all families that a detector judges together by ``on_one_scale``."""
    rows, curves = [], {}
    for detector in detectors:
        examined = [each for each in scored if detector in each.scores]
        families = list(dict.fromkeys(each.member.family for each in examined))
        judged = [each for each in examined if each.member.part == JUDGEMENT]
        surprise = {each.member.name: _p_value(each, detector, known, bound) for each in judged}
        if detector == leading:  # as an audit decides: what is too weak to be of use is not flagged
            weak = {e.member.name for e in judged if not e.flagged[detector]}
            surprise = {name: 1.0 if p is not None and name in weak else p for name, p in surprise.items()}
        for family in families if len(families) > 1 else []:
            if row := _row(family, detector, [e for e in judged if e.member.family == family], surprise, bound):
                rows.append(row)
        together = on_one_scale(judged, detector, known)
        name = ALL if len(examined) == len(scored) else ", ".join(families)
        if row := _row(name, detector, together, surprise, bound):
            rows.append(row)
            scores = (torch.tensor(each, dtype=torch.double) for each in _split(together, detector))
            curves[detector] = roc(*scores)
    return rows, curves


def _row(
    family: str, detector: str, judged: list[Scored], surprise: dict[str, float | None], bound: float
) -> Row | None:
    positive, negative = _split(judged, detector)
    if not positive or not negative:
        return None
    area = auc_rate(torch.tensor(positive, dtype=torch.double), torch.tensor(negative, dtype=torch.double))
    calibrated = all(surprise[each.member.name] is not None for each in judged)

    def flags(*, attacked: bool, working: bool = False) -> list[bool]:
        ours = [each for each in judged if each.member.attacked is attacked and (not working or _works(each))]
        return [(surprise[each.member.name] or 0.0) <= bound for each in ours]

    by_own_threshold = {
        attacked: [each.flagged[detector] is True for each in judged if each.member.attacked is attacked]
        for attacked in (True, False)
    }
    return Row(
        family=family,
        detector=detector,
        auc=area.value,
        auc_low=area.low,
        auc_high=area.high,
        true_positives=Share.of(flags(attacked=True)) if calibrated else None,
        working=Share.of(flags(attacked=True, working=True)) if calibrated else None,
        false_alarms=Share.of(flags(attacked=False)) if calibrated else None,
        own_true_positives=Share.of(by_own_threshold[True]),
        own_false_alarms=Share.of(by_own_threshold[False]),
        seconds=sum(each.seconds[detector] for each in judged) / len(judged),
    )


def _works(each: Scored) -> bool:
    """Whether its backdoor does."""
    return each.member.attacked and each.member.about["metrics"]["ASR_strict"] >= WORKING


def _split(judged: Sequence[Scored], detector: str) -> tuple[list[float], list[float]]:
    """Scores of attacked and of clean members."""
    positive, negative = (
        [_score(each, detector) for each in judged if each.member.attacked is attacked] for attacked in (True, False)
    )
    return positive, negative


def _score(each: Scored, detector: str) -> float:
    score = each.scores[detector]
    return -math.inf if score is None else score


def on_one_scale(judged: Sequence[Scored], detector: str, known: Known) -> list[Scored]:
    """The judged with scores that can be compared across families.

    In deviations above the mean of what they are judged beside. As they are where there are fewer than two clean
    scores.
    """
    scaled = []
    for each in judged:
        clean = [score for bag in _beside(each, detector, known) for score in bag if math.isfinite(score)]
        score = each.scores[detector]
        if score is not None and len(clean) > 1:
            score = (score - statistics.mean(clean)) / max(statistics.stdev(clean), 1e-9)
        scaled.append(replace(each, scores={detector: score}))
    return scaled


def _p_value(each: Scored, detector: str, known: Known, bound: float) -> float | None:
    """As in an audit: none where a bag has too few encoders for the bound."""
    bags = _beside(each, detector, known)
    if any(len(clean) < fewest(bound) for clean in bags):
        return None
    return largest_p_value(_score(each, detector), bags)


def _beside(each: Scored, detector: str, known: Known) -> list[list[float]]:
    return [bag[detector] for bag in known.get(each.looks, {}).values() if detector in bag]


def _suspicious(score: float | None) -> float:
    return math.inf if score is None else score


def power(scored: Sequence[Scored], known: Known, detector: str, bound: float) -> list[Power]:
    """What is found of each kind of trigger among the working backdoors of the judgement part, at the bound."""
    groups: dict[str, list[bool]] = {}
    for each in scored:
        if each.member.part == JUDGEMENT and _works(each):
            surprise = _p_value(each, detector, known, bound)
            if surprise is not None:
                flagged = surprise <= bound and each.flagged[detector] is True
                groups.setdefault(_kind_of(each.member), []).append(flagged)
    shares = {kind: Share.of(hits) for kind, hits in sorted(groups.items())}
    return [
        Power(trigger=kind, found=share.found, planted=share.n, low=share.low, high=share.high)
        for kind, share in shares.items()
    ]


def missed(scored: Sequence[Scored], known: Known, detector: str, bound: float) -> list[Missed]:
    """The backdoored encoders of the judgement part that an audit would pass; none where it would be undecided."""
    passed = []
    for each in scored:
        if each.member.part != JUDGEMENT or not each.member.attacked:
            continue
        surprise = _p_value(each, detector, known, bound)
        if surprise is None or each.scores[detector] is None or (surprise <= bound and each.flagged[detector] is True):
            continue
        evidence = each.evidence.get(detector, {})
        winner = evidence.get("priors", {}).get(evidence.get("prior"))
        passed.append(
            Missed(
                name=each.member.name,
                trigger=each.member.about["target"]["trigger"],
                asr_strict=each.member.about["metrics"]["ASR_strict"],
                score=each.scores[detector],
                p_value=surprise,
                powers=winner["powers"] if winner and "share" not in winner else None,
                under_trigger=each.under_trigger.powers if each.under_trigger else None,
            )
        )
    return passed


def _kind_of(member: Member) -> str:
    """A member's trigger in words that others like it share, and its attack where that is no plain BadEncoder."""
    attack = member.about.get("attack", {})
    method, against = attack.get("method", PLAIN), [known["defense"] for known in attack.get("against", ())]
    told = [_words(member.about["target"]["trigger"])]
    told += [method] if method != PLAIN else []
    told += [f"against {' and '.join(against)}"] if against else []
    return ", ".join(told)


def _words(trigger: dict[str, Any]) -> str:
    if trigger["kind"] == "blend":
        return f"blend of weight {trigger['alpha']:g}"
    if trigger["kind"] == "filter":
        return f"color filter of strength {trigger['strength']:g}"
    if trigger["kind"] != "patch":
        return OTHERS.get(trigger["kind"], str(trigger["kind"]))
    side = trigger["size"] if isinstance(trigger["size"], int) else max(trigger["size"])
    low, high = next(((low, high) for low, high in SIZES if low <= side <= high), (side, side))
    return f"patch of {low} to {high} pixels"


def write_scores(board: Scoreboard, folder: Path) -> Path:
    """Leave ``scores-<budget>.json``, or with the parts in its name where nothing was judged."""
    parts = dict.fromkeys(each.member.part for each in board.members)
    apart = "" if JUDGEMENT in parts else "-" + "-".join(parts)
    path = folder / f"scores-{board.budget}{apart}.json"
    write_atomically(path, json.dumps(asdict(board), indent=1) + "\n")
    return path
