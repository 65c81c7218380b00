"""What an audit found: its report, as data."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from sapper.audits.calibration import Bag, InClean, Power, p_value
from sapper.audits.families import FamilyBag
from sapper.audits.recorded import SCHEMA
from sapper.defenses.inversion import Collapse
from sapper.triggers import Trigger, to_tensors

Answer = Literal["no-evidence", "backdoor", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one detector found. ``leads``: it decides. ``collapse``: what its trigger does to other images.

    ``in_clean``: what the triggers that it finds in known-clean encoders do. ``trigger``: the recovered one.
    """

    method: str
    leads: bool
    score: float | None
    threshold: float | None
    flagged: bool | None
    p_value: float | None
    evidence: dict[str, Any]
    seconds: float
    collapse: Collapse | None = None
    in_clean: InClean | None = None
    trigger: Trigger | None = None


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What was tried, what this budget leaves out, what no budget can see.

    ``power``: of what was planted in encoders like those of each bag, how much is found.
    """

    tried: tuple[str, ...]
    left_out: tuple[str, ...]
    unseen: tuple[str, ...]
    power: dict[str, tuple[Power, ...]]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All that an audit found. ``reason``: why this verdict, in one sentence.

    ``p_value`` of the leading detector, none without a fitting bag. ``false_alarm_bound``: how often an encoder like
    those of a bag may come out as backdoored. ``encoder``, ``images``, ``bags``: what was audited, with what, beside
    what; ``families``: the bag over families that decided where no other fits. ``number_format``: of the detectors'
    computations.
    ``shown``: uint8 (n, 3, H, W), images as they are, for pictures.
    """

    verdict: Answer
    reason: str
    p_value: float | None
    false_alarm_bound: float
    budget: str
    seed: int
    number_format: str
    detectors: tuple[Finding, ...]
    encoder: dict[str, Any]
    images: dict[str, Any]
    bags: tuple[Bag, ...]
    coverage: Coverage
    seconds: float
    shown: Tensor
    families: FamilyBag | None = None

    @property
    def leading(self) -> Finding:
        return next(finding for finding in self.detectors if finding.leads)

    @property
    def hidden(self) -> bool:
        """Whether there are bags to judge by, but nothing to be judged: an encoder could hide behind that."""
        if self.leading.evidence.get("of") == "images":  # there were too few, which is nobody's trick
            return False
        return bool(self.bags or self.families) and self.leading.score is None


def beside_bag(leading: Finding, bag: Bag) -> float:
    """The leading detector's p-value beside one bag; 1 without a score."""
    return 1.0 if leading.score is None else p_value(leading.score, bag.of(leading.method))


def _about_bag(bag: Bag, leading: Finding) -> dict[str, Any]:
    p = None if leading.score is None else beside_bag(leading, bag)
    told = {"name": bag.name, "n": bag.size, "p_value": p, "pretraining": bag.pretraining}
    return told | {"images": bag.images, "made": bag.made}


def _about_families(bag: FamilyBag) -> dict[str, Any]:
    largest = {family.name: family.largest for family in bag.families if math.isfinite(family.largest)}
    size = {"families": bag.size, "encoders": bag.encoders, "images": bag.images}
    return {"name": bag.name} | size | {"largest": largest, "made": bag.made}


def as_json(report: AuditReport) -> dict[str, Any]:
    """The report as plain data; tensors and pictures are left out."""
    plain = {
        name: value
        for name, value in vars(report).items()
        if name not in ("shown", "detectors", "coverage", "bags", "families")
    }
    detectors = []
    for finding in report.detectors:
        nested = {"collapse": finding.collapse, "in_clean": finding.in_clean}
        values = vars(finding) | {name: asdict(each) if each else None for name, each in nested.items()}
        detectors.append(values | {"trigger": to_tensors(finding.trigger)[0] if finding.trigger else None})
    bags = [_about_bag(bag, report.leading) for bag in report.bags]
    families = None if report.families is None else _about_families(report.families)
    rest = {"detectors": detectors, "coverage": asdict(report.coverage), "bags": bags, "families": families}
    return {"schema": SCHEMA} | plain | rest


def trigger_tensors(report: AuditReport) -> dict[str, Tensor]:
    """The tensors of every recovered trigger, ``<detector>/<tensor>``; what else there is of it is in ``as_json``."""
    return {
        f"{finding.method}/{name}": value.contiguous()
        for finding in report.detectors
        if finding.trigger is not None
        for name, value in to_tensors(finding.trigger)[1].items()
    }
