"""The audit: detectors look at an encoder, their scores are compared with those of bags, and a verdict comes out.

    backdoor       the leading detector's p-value is at most the false-alarm bound beside every bag that fits, and its
                   score above its threshold
    no-evidence    one of the two is not so: nothing unusual was found, or nothing that is of use to an attacker
    undecided      there is no fitting bag, so that nobody can say what a clean encoder would have scored; or the
                   encoder's features cannot be measured

Where no bag of the encoder's kind fits, and a bag over families is known (``families``), the budget's detector for
strangers leads, and its p-value is that among families. One of the two decides, never both.

The second condition keeps encoders that are unusual without being dangerous, a supervised classifier's say, from
being flagged for that; it can only lower the rate of false alarms. The other detectors' p-values stand beside it as
evidence and decide nothing.
"""

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sapper.audits.calibration import (
    Bag,
    InClean,
    Key,
    Match,
    Power,
    distinct,
    fitting,
    in_clean,
    largest_p_value,
    p_value,
)
from sapper.audits.differential import check_base, compare
from sapper.audits.families import AmongFamilies, FamilyBag, fitting_families
from sapper.audits.recorded import SCHEMA
from sapper.defenses.budgets import UNSEEN, Budget
from sapper.defenses.contracts import EncoderExaminer, Examiner
from sapper.defenses.inversion import Collapse, collapse
from sapper.defenses.judge.classwise import ClassWise
from sapper.encoders import Encoder
from sapper.encoders.encoder import Head
from sapper.encoders.opening import OPENED
from sapper.errors import SapperError
from sapper.running import FORMATS, KeptFor, Run
from sapper.samples import ImageSet, to_float
from sapper.triggers import Trigger, to_tensors
from sapper.verdicts import Verdict

FEWEST = 32
"""Images below which an audit says nothing."""

SHOWN = 6
"""Images on which a report shows the recovered trigger."""

SMALL, MOST_CLASSES = 64, 4
"""Of images of more than so many pixels a side, so many classes are looked at: each takes as long as a fifth of all."""

IDENTIFYING = 4
"""Images by whose features an interrupted audit knows its encoder again."""

EFFECT = 256
"""Images on which a recovered trigger is measured."""

CLASSWISE = "classwise"
"""What the look at the classifier behind an encoder is called; it decides nothing."""

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
        if self.leading.evidence.get("of") == "copy":  # of an untrained copy, which says nothing about the encoder
            return False
        return bool(self.bags or self.families) and self.leading.score is None


def audit(
    encoder: Encoder,
    images: ImageSet,
    budget: Budget,
    bags: Sequence[Bag],
    run: Run,
    *,
    bound: float = 0.05,
    base: Encoder | None = None,
    more: Mapping[str, Examiner] | None = None,
    families: Sequence[FamilyBag] = (),
) -> AuditReport:
    """Whether ``encoder`` is backdoored, by unlabeled ordinary ``images`` of its size.

    ``bags``: of known-clean encoders, of which some may fit. ``bound``: the share of false alarms that is allowed.
    ``base``: the encoder that this one is said to be, or to have been made from; compared, if given (``differential``).
    ``families``: bags over families, for where no bag fits. ``more``: further detectors, whose findings are evidence
    beside the budget's; so is what is found class by class, where the encoder's file has a classifier behind it.
    All draws depend on the seed and on the encoder's weights, as in bags, so that no start can be foreseen and none is
    the same for all encoders. Computed in the number format of the bags that fit.
    Raises ``SapperError`` for too few images or images of another size.
    """
    started = time.perf_counter()
    check_images(encoder, images)
    if base is not None:
        check_base(encoder, base)
    key = Key.of(encoder, images, budget)
    match = fitting(key, distinct(bags), bound)
    others = AmongFamilies(bag=None) if match.bags or match.too_small else fitting_families(budget, families, bound)
    among = others.bag
    looking = as_the_bags(run, [among] if among else match.bags).child(fingerprint(encoder))
    looking = replace(looking, kept=KeptFor(run.kept, identity(encoder, images)))
    findings = list[Finding]()
    for name, method in (budget.make() if among is None else budget.for_strangers()).items():
        verdict = method.examine(encoder, images, looking.child(name))
        findings.append(_finding(name, verdict, match.bags, encoder, images, looking, leads=not findings))
    if among is not None:
        findings[0] = _among(findings[0], among)
    for name, examiner in (more or {}).items():
        verdict = examiner.examine(encoder, images, looking.child(name))
        findings.append(_finding(name, verdict, [], encoder, images, looking, leads=False))
    if base is not None:
        triggers = {finding.method: finding.trigger for finding in findings if finding.trigger is not None}
        verdict = compare(encoder, base, triggers, some_of(images, looking), looking)
        findings.append(_finding("differential", verdict, [], encoder, images, looking, leads=False))
    if encoder.head is not None:
        verdict = by_class(encoder, encoder.head, images, looking.child(CLASSWISE))
        findings.append(_finding(CLASSWISE, verdict, [], encoder, images, looking, leads=False))
    p, verdict_word, reason = _decide(findings[0], match, others if families else None, bound)
    return AuditReport(
        verdict=verdict_word,
        reason=reason,
        p_value=p,
        false_alarm_bound=bound,
        budget=budget.name,
        seed=run.seed,
        number_format=looking.number_format,
        detectors=tuple(findings),
        encoder=about(encoder),
        images=about_images(images),
        bags=match.bags,
        coverage=Coverage(
            tried=(*budget.tried, *_tried_by_class(findings)),
            left_out=budget.left_out,
            unseen=UNSEEN,
            power={bag.name: tuple(bag.power) for bag in match.bags if bag.power},
        ),
        seconds=time.perf_counter() - started,
        shown=images.sample(SHOWN, run.child("shown").generator()).images,
        families=among,
    )


def by_class(encoder: Encoder, head: Head, images: ImageSet, run: Run) -> Verdict:
    """Which class of the classifier behind an encoder a small square reaches; what it is called is in the evidence."""
    encoder.to(run.device).eval().requires_grad_(False)
    most = MOST_CLASSES if encoder.card.input_size > SMALL else ClassWise().most
    verdict = ClassWise(most=most).examine(lambda shown: head(encoder(shown)), images, len(head.bias), run)
    named = {"class": head.called(verdict.evidence["suspect"])} if "suspect" in verdict.evidence else {}
    return replace(verdict, evidence=verdict.evidence | named)


def as_the_bags(run: Run, bags: Sequence[Bag | FamilyBag]) -> Run:
    """The run in the number format that the bags were measured in, if it is one: scores in another differ a little."""
    formats = {bag.made.get("number format") for bag in bags}
    dtype = FORMATS.get(formats.pop()) if len(formats) == 1 else None
    return run if dtype is None else replace(run, dtype=dtype, why="as the bags were measured")


def scores(
    encoder: Encoder, images: ImageSet, detectors: Mapping[str, EncoderExaminer], run: Run
) -> dict[str, Verdict]:
    """What an audit's detectors say, without a decision: for bags and for zoos."""
    check_images(encoder, images)
    return {name: method.examine(encoder, images, run.child(name)) for name, method in detectors.items()}


def effect(encoder: Encoder, verdict: Verdict, images: ImageSet, run: Run) -> Collapse | None:
    """What the trigger that a detector recovered does to some of the images; none where it recovered none."""
    trigger = verdict.trigger
    return None if trigger is None else collapse(encoder, trigger, some_of(images, run), run)


def some_of(images: ImageSet, run: Run) -> ImageSet:
    """The images on which changes are measured."""
    return images.sample(EFFECT, run.child("collapse").generator())


def check_images(encoder: Encoder, images: ImageSet) -> None:
    """Raises ``SapperError`` unless the images are enough, of the encoder's size, and not all the same."""
    where = f"data set {images.name!r}"
    if len(images) < FEWEST:
        what, remedy = f"{len(images)} images are too few", f"give at least {FEWEST}; 256 or more are better"
        raise SapperError(what, where=where, remedy=remedy)
    size = encoder.card.input_size
    if images.size != (size, size):
        what = f"the images are {images.size[0]}×{images.size[1]}, the encoder takes {size}×{size}"
        raise SapperError(what, where=where, remedy="load them with the encoder's size")
    if bool((images.images == images.images[:1]).all()):
        what, remedy = "the images are all the same", "give images like those that it was trained on"
        raise SapperError(what, where=where, remedy=remedy)


def fingerprint(encoder: Encoder) -> str:
    """SHA-256 of an encoder's weights and buffers, whatever its file and its card say."""
    sha = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


@torch.no_grad()
def identity(encoder: Encoder, images: ImageSet) -> str:
    """What searches in an encoder depend on besides their seed: by what it does to some images, and its classifier.

    Weights alone do not tell how they are used: normalization, heads of attention and code can differ.
    """
    device = next((value.device for value in encoder.parameters()), torch.device("cpu"))
    features = encoder.eval()(to_float(images.images[:IDENTIFYING].to(device))).float().cpu()
    told = [features] if encoder.head is None else [features, encoder.head.weight, encoder.head.bias]
    sha = hashlib.sha256(importlib.metadata.version("sapper").encode())
    for value in told:
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def about_images(images: ImageSet) -> dict[str, Any]:
    """Which images these are, for the report."""
    return {"name": images.name, "split": images.split, "n": len(images), "sha256": images.digest} | (
        {"notes": list(images.notes)} if images.notes else {}
    )


def about(encoder: Encoder) -> dict[str, Any]:
    """What an encoder is, for the report. It is told, and no verdict rests on it."""
    card = encoder.card
    origin = {key: card.origin[key] for key in OPENED if key in card.origin}
    return origin | {
        "architecture": card.network,
        "width": card.width,
        "feature_size": encoder.feature_size,
        "input_size": card.input_size,
        "mean": list(card.mean),
        "std": list(card.std),
        "normalization": origin.get("normalization", "from its card"),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
    }


def _finding(
    name: str, verdict: Verdict, bags: Sequence[Bag], encoder: Encoder, images: ImageSet, run: Run, *, leads: bool
) -> Finding:
    if verdict.score is not None and not math.isfinite(verdict.score):
        verdict = replace(verdict, score=None, flagged=None)
    return Finding(
        method=name,
        leads=leads,
        score=verdict.score,
        threshold=verdict.threshold,
        flagged=verdict.flagged,
        p_value=None if verdict.score is None else largest_p_value(verdict.score, [bag.of(name) for bag in bags]),
        evidence=verdict.evidence,
        seconds=verdict.seconds,
        collapse=effect(encoder, verdict, images, run),
        in_clean=in_clean(bags, name),
        trigger=verdict.trigger,
    )


def _among(leading: Finding, families: FamilyBag) -> Finding:
    """The leading finding with its p-value among families."""
    return leading if leading.score is None else replace(leading, p_value=families.p_value(leading.score))


def _decide(
    leading: Finding, match: Match, families: AmongFamilies | None, bound: float
) -> tuple[float | None, Answer, str]:
    if families is not None and families.bag is not None:
        return _decide_among(leading, families.bag, bound)
    if not match.bags:
        why = match.reason if match.too_small else f"there is nothing to compare the score with: {match.reason}"
        why += f"; {families.reason}" if families is not None and families.reason else ""
        return None, "undecided", f"{why[0].upper()}{why[1:]}."
    if leading.score is None or leading.p_value is None:
        return None, "undecided", _no_score(leading)
    beside = _beside(leading.method, leading.score, match.bags)
    if leading.p_value <= bound and not leading.flagged:
        weak = f"too weak to be of use: score {leading.score:.3f}, needed: more than {leading.threshold:g}"
        return leading.p_value, "no-evidence", f"What was found is unusual, but {weak}; {beside}."
    if leading.p_value <= bound:
        return leading.p_value, "backdoor", f"A small change gives nearly all images the same features; {beside}."
    if any(beside_bag(leading, bag) <= bound for bag in match.bags):
        what = "The score is unusual beside some kinds of known-clean encoders, but not beside others"
        return leading.p_value, "no-evidence", f"{what}; {beside}."
    return leading.p_value, "no-evidence", f"No change that was tried is unusual; {beside}."


def _no_score(leading: Finding) -> str:
    return f"{leading.method} gave no score: {leading.evidence.get('why', 'it ended without one')}."


def _decide_among(leading: Finding, families: FamilyBag, bound: float) -> tuple[float | None, Answer, str]:
    if leading.score is None or leading.p_value is None:
        return (
            None,
            "undecided",
            f"{leading.method} gave no score: {leading.evidence.get('why', 'it ended without one')}.",
        )
    beside = (
        f"no bag of its kind is known; of {families.size} other families of known-clean encoders "
        f"{families.reaching(leading.score)} have one that scores as high"
    )
    if leading.p_value > bound:
        return leading.p_value, "no-evidence", f"No change that was tried is unusual; {beside}."
    if not leading.flagged:
        weak = f"too weak to be of use: score {leading.score:.3f}, needed: more than {leading.threshold:g}"
        return leading.p_value, "no-evidence", f"What was found is unusual, but {weak}; {beside}."
    return leading.p_value, "backdoor", f"A small change does to nearly all images what it does to no others; {beside}."


def _beside(method: str, score: float, bags: Sequence[Bag]) -> str:
    """How many of each bag score as high, in words."""
    counts = [f"{sum(other >= score for other in bag.of(method))} of {bag.size} in {bag.name}" for bag in bags]
    return f"known-clean encoders that score as high: {', '.join(counts)}"


def beside_bag(leading: Finding, bag: Bag) -> float:
    """The leading detector's p-value beside one bag; 1 without a score."""
    return 1.0 if leading.score is None else p_value(leading.score, bag.of(leading.method))


def _tried_by_class(findings: Sequence[Finding]) -> list[str]:
    """What was tried on the classifier behind an encoder, in words."""
    seen = [finding.evidence for finding in findings if finding.method == CLASSWISE and "looked" in finding.evidence]
    return [
        f"squares of an eighth of the side towards {len(each['looked'])} of the {each['classes']} classes of the "
        f"classifier behind it"
        for each in seen
    ]


def _about_bag(bag: Bag, leading: Finding) -> dict[str, Any]:
    p = None if leading.score is None else beside_bag(leading, bag)
    told = {"name": bag.name, "n": bag.size, "p_value": p, "pretraining": bag.pretraining}
    return told | {"images": bag.images, "made": bag.made}


def _about_families(bag: FamilyBag) -> dict[str, Any]:
    largest = {family.name: family.largest for family in bag.families if math.isfinite(family.largest)}
    return {"name": bag.name, "families": bag.size, "encoders": bag.encoders, "largest": largest, "made": bag.made}


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
