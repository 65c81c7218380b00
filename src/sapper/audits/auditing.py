"""The audit: detectors look at an encoder, their scores are compared with those of bags, and a verdict comes out.

Where no bag of the encoder's kind fits, and a bag over families is known (``families``), the budget's detector for
strangers leads, and its p-value is that among families. One of the two decides, never both.

The other detectors' p-values stand beside it as evidence and decide nothing (``deciding``).
"""

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sapper.audits import deciding
from sapper.audits.calibration import (
    Bag,
    Key,
    distinct,
    fitting,
    in_clean,
    largest_p_value,
)
from sapper.audits.differential import check_base, compare
from sapper.audits.families import AmongFamilies, FamilyBag, fitting_families
from sapper.audits.found import AuditReport, Coverage, Finding
from sapper.defenses.budgets import UNSEEN, Budget
from sapper.defenses.contracts import EncoderExaminer, Examiner
from sapper.defenses.inversion import Collapse, collapse
from sapper.defenses.judge.classwise import ClassWise
from sapper.defenses.racing import LARGE
from sapper.encoders import Encoder
from sapper.encoders.encoder import Head
from sapper.encoders.opening import OPENED
from sapper.errors import SapperError
from sapper.running import FORMATS, KeptFor, Run, shares
from sapper.samples import ImageSet, to_float
from sapper.verdicts import Verdict

FEWEST = 32
"""Images below which an audit says nothing."""

SHOWN = 6
"""Images on which a report shows the recovered trigger."""

SMALL = 64
"""Pixels a side up to which a look at the classifier takes little time."""

IDENTIFYING = 4
"""Images by whose features an interrupted audit knows its encoder again."""

EFFECT = 256
"""Images on which a recovered trigger is measured."""

CLASSWISE = "classwise"
"""What the look at the classifier behind an encoder is called; it decides nothing."""


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
    others = AmongFamilies(bag=None)
    if not match.bags and not match.too_small:
        others = fitting_families(budget, families, bound, len(images))
    among = others.bag
    looking = as_the_bags(run, [among] if among else match.bags).child(fingerprint(encoder))
    looking = replace(looking, kept=KeptFor(run.kept, identity(encoder, images)))
    findings = list[Finding]()
    methods = budget.make() if among is None else budget.for_strangers()
    with shares(run.progress, "audit", [method.passes(images) for method in methods.values()]) as parts:
        for name, method in methods.items():
            verdict = method.examine(encoder, images, replace(looking.child(name), progress=next(parts)))
            findings.append(_finding(name, verdict, match.bags, encoder, images, looking, leads=not findings))
    if among is not None:
        findings[0] = deciding.among(findings[0], among)
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
    p, verdict_word, reason = deciding.decide(findings[0], match, others if families else None, bound)
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
            tried=(*budget.tried_on(strangers=among is not None), *_tried_by_class(findings)),
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
    method = ClassWise(most=classes_for(encoder.card.input_size))
    verdict = method.examine(lambda shown: head(encoder(shown)), images, len(head.bias), run)
    named = {"class": head.called(verdict.evidence["suspect"])} if "suspect" in verdict.evidence else {}
    return replace(verdict, evidence=verdict.evidence | named)


def classes_for(size: int) -> int:
    """How many classes are looked at, by the images' side in pixels."""
    if size <= SMALL:
        return ClassWise().most
    return 4 if size < LARGE else 2


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


def _tried_by_class(findings: Sequence[Finding]) -> list[str]:
    """What was tried on the classifier behind an encoder, in words."""
    seen = [finding.evidence for finding in findings if finding.method == CLASSWISE and "looked" in finding.evidence]
    return [
        f"squares of an eighth of the side towards {len(each['looked'])} of the {each['classes']} classes of the "
        f"classifier behind it"
        for each in seen
    ]
