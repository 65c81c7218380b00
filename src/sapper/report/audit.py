"""An audit for people: the page, and the lines at the end in the terminal."""

from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from sapper.audits.auditing import CLASSWISE
from sapper.audits.calibration import BOUND, Bag, InClean
from sapper.audits.found import AuditReport, Finding, beside_bag
from sapper.audits.recorded import WORDS as WORDS
from sapper.audits.replaying import Replay
from sapper.conformal import fewest
from sapper.defenses.inversion import Collapse
from sapper.encoders.schemes import ASSUMED
from sapper.experiment.pictures import png
from sapper.report import figures, text
from sapper.report.figures import class_color
from sapper.report.pages import environment
from sapper.report.taxonomy import BACKDOORED_WEIGHTS
from sapper.samples import to_float

MEANING = {
    "backdoor": "Do not build on this encoder before somebody has looked at the recovered trigger and replayed it. "
    "At most {bound} of clean encoders like those in the bag get this verdict, on average over bags.",
    "no-evidence": "Nothing that this audit can see speaks against this encoder. That is not a proof that it is safe: "
    "what was not tried, and what no audit of this kind can see, is listed on the page under Coverage.",
    "undecided": "The evidence is shown, but without enough known-clean encoders of the same kind nobody can say what "
    "a clean one would score. Make a bag of {fewest} or more with sapper calibrate (the same images, budget and "
    "options), or look at what the trigger does when it is replayed.",
}

AMONG = (
    "Do not build on this encoder before somebody has looked at the recovered trigger and replayed it. At most {bound} "
    "of clean encoders of a new family get this verdict, on average over families that come about as those of the bag."
)
"""What "backdoor" means where families decided."""

HIDDEN = (
    "The features of this encoder cannot be measured, or not be learned by a student, so an encoder could hide behind "
    "that. Do not take this for a clean result."
)
"""What "undecided" means where bags fit (``AuditReport.hidden``)."""


@dataclass(frozen=True)
class Shown:
    """A recovered trigger on images: each plain, and with the trigger. PNG in base64."""

    finding: Finding
    plain: list[str]
    triggered: list[str]


@dataclass(frozen=True)
class Beside:
    """A bag, its color, the p-value beside it, and whether its power was measured as this audit decided."""

    bag: Bag
    color: str
    p_value: float
    like_this: bool


def measured_like_this(report: AuditReport, bag: Bag) -> bool:
    """Whether a bag's power is that of this audit: beside the same bags, at the same bound."""
    same = {bag.name, *bag.power_beside} == {each.name for each in report.bags}
    return same and report.false_alarm_bound == BOUND


def render(report: AuditReport, surroundings: dict[str, str], command: str) -> str:
    """The page's HTML."""
    return (
        environment()
        .get_template("audit.html.j2")
        .render(
            report=report,
            word=WORDS[report.verdict],
            meaning=meaning(report),
            facts=facts(report),
            warnings=warnings(report),
            opened=opened(report.encoder),
            shown=pictures(report),
            drawing=_drawing(report),
            bags=[
                Beside(bag, class_color(at), beside_bag(report.leading, bag), measured_like_this(report, bag))
                for at, bag in enumerate(report.bags)
            ],
            surroundings=surroundings,
            technique=BACKDOORED_WEIGHTS,
            command=command,
        )
    )


FAMILIES = "largest score of each family"
"""What a bag over families is called in the drawing."""

CONTROLS = {"shuffled pixels": "shuffled pixels (the trigger's colors without its shape)"}
"""What controls do that their names do not say."""


def meaning(report: AuditReport) -> str:
    """What the verdict means, in plain words."""
    if report.hidden:
        return HIDDEN
    bound = report.false_alarm_bound
    words = AMONG if report.families is not None and report.verdict == "backdoor" else MEANING[report.verdict]
    return words.format(bound=f"{100 * bound:g} %", fewest=fewest(bound))


def facts(report: AuditReport) -> list[str]:
    """The line under the title."""
    p = [f"p = {report.p_value:.3g}"] if report.p_value is not None else []
    return [
        f"budget {report.budget}",
        f"{report.images['n']} images of {report.images['name']}",
        *p,
        f"false-alarm bound {100 * report.false_alarm_bound:g} %",
        text.duration(report.seconds),
    ]


def lines(report: AuditReport) -> list[str]:
    """The summary in the terminal."""
    found = [f"{WORDS[report.verdict]}. {report.reason}"]
    for finding in report.detectors:
        p = f", p = {finding.p_value:.3g}" if finding.p_value is not None else ""
        why = f" ({finding.evidence['why']})" if "why" in finding.evidence else ""
        score = f"no score{why}" if finding.score is None else f"score {finding.score:.3g}"
        leads = " (decides)" if finding.leads else ""
        needed = f" (must exceed {finding.threshold:g})" if finding.score is not None and finding.threshold else ""
        prior = f", {finding.evidence['prior']}" if "prior" in finding.evidence else ""
        found.append(f"  {finding.method}{leads}: {score}{needed}{p}{prior}, {text.duration(finding.seconds)}")
        if finding.collapse:
            found.append(f"    {_told(finding.collapse, '.0%')}")
        for told in (suspect_class(finding), sent_to_cluster(finding)):
            if told is not None:
                found.append(f"    {told}")
        if finding.in_clean:
            found.append(f"    {in_clean(finding.in_clean)}")
    encoder = report.encoder
    size, normalization = encoder["input_size"], encoder["normalization"]
    found.append(f"  {encoder['architecture']}, {size}×{size} pixels; normalization {normalization}")
    found += [f"  {line}" for line in opened(report.encoder)]
    found.append(meaning(report))
    return found + warnings(report)


OPENED = {"recognized": "opened", "assumed": "assumed", "left_out": "left out"}
"""What an encoder's origin says of how it was opened, and the word for it."""


def opened(encoder: dict[str, Any]) -> list[str]:
    """How the encoder was opened: what nothing told and was assumed, and what of its file was left out."""
    found = []
    for key, word in OPENED.items():
        lines = encoder.get(key, [])
        more = [f"{word}: {len(lines) - SHOWN_LINES} more, see audit.json"] if len(lines) > SHOWN_LINES else []
        found += [f"{word}: {line}" for line in lines[:SHOWN_LINES]] + more
    return found


SHOWN_LINES = 12
"""Of one kind in the terminal and at the top of the page; all of them are in the JSON."""


def suspect_class(finding: Finding) -> str | None:
    """What a class-by-class look found, in words; none where the finding is of another kind."""
    evidence = finding.evidence
    if "class" not in evidence:
        return None
    others = [each["share"] for label, each in evidence["looked"].items() if int(label) != evidence["suspect"]]
    rest = f"; the best square for another class: {max(others):.0%}" if others else ""
    return (
        f"one square sends {evidence['share']:.0%} of other images to {evidence['class']} "
        f"({evidence['there_before']:.0%} of all are there without it){rest}"
    )


def sent_to_cluster(finding: Finding) -> str | None:
    """What the square of a finding does that moves features, in words; none where the finding is of another kind."""
    prior = finding.evidence.get("priors", {}).get(finding.evidence.get("prior"), {})
    if "share" not in prior:
        return None
    twins = ", ".join(f"{powers:.2f}" for powers in prior["beside"].values())
    odds = f"odds (log10): {prior['powers']:.2f}, in its twins {twins}"
    return f"it sends {prior['share']:.0%} of other images to one cluster of features; {odds}"


def warnings(report: AuditReport) -> list[str]:
    """What a reader must not overlook, whatever the verdict."""
    found = guess(report.encoder)
    for finding in report.detectors:
        if finding.flagged and finding.method == CLASSWISE and report.verdict != "backdoor":
            reach = (
                f"{suspect_class(finding)}. This decides nothing, since nobody knows how often clean classifiers do it"
            )
            found.append(f"Look at the classifier behind it: {reach}.")
    return found


def guess(encoder: dict[str, Any]) -> list[str]:
    """A warning where how images are to be normalized for an encoder (``about``) is a guess, or a part of it."""
    normalization = encoder["normalization"]
    if ASSUMED not in normalization:
        return []
    return [f"The normalization is a guess ({normalization}). A wrong one can hide a backdoor."]


def _told(effect: Collapse, form: str) -> str:
    """What a recovered trigger does, in words; shares in that format."""
    return (
        f"with the recovered trigger, {effect.gathered:{form}} of {effect.images} images have nearly the same features "
        f"({effect.there_before:{form}} of them already did without it)"
    )


def in_clean(known: InClean) -> str:
    """What triggers found in known-clean encoders do, in words."""
    return (
        f"in {known.encoders} known-clean encoders the same search reaches {known.median:.0%} (median), "
        f"{known.largest:.0%} at most"
    )


def replay_lines(replays: list[Replay], known: dict[str, InClean]) -> list[str]:
    """A replay in the terminal. ``known``: for each detector what is usual, where the audit recorded it."""
    found = []
    for each in replays:
        effect = each.trigger
        found.append(
            f"{each.detector}: {_told(effect, '.1%')}; spread {effect.spread_before:.3g} → {effect.spread:.3g}"
        )
        if each.detector in known:
            found.append(f"  {in_clean(known[each.detector])}")
        for name, control in each.controls.items():
            words = CONTROLS.get(name, name)
            found.append(f"  control, {words}: {control.gathered:.1%}; spread {control.spread:.3g}")
    return found


def pictures(report: AuditReport) -> list[Shown]:
    """Each detector's trigger on some images."""
    found = []
    for finding in report.detectors:
        if finding.trigger is not None:
            changed = (finding.trigger(to_float(report.shown)) * 255).round().to(torch.uint8)
            found.append(Shown(finding, [png(image) for image in report.shown], [png(image) for image in changed]))
    return found


def _drawing(report: AuditReport) -> Markup | None:
    """The leading detector's score beside those of the bags."""
    leading = report.leading
    if leading.score is None or not (report.bags or report.families):
        return None
    if report.families is not None:
        largest = [family.largest for family in report.families.families if family.largest != float("inf")]
        shown, colors = {FAMILIES: largest, "this encoder": [leading.score]}, {FAMILIES: class_color(0)}
        return figures.scores(shown, colors | {"this encoder": "alarm"}, leading.threshold, "beside")
    known = {bag.name: [score for score in bag.of(leading.method) if score != float("inf")] for bag in report.bags}
    colors = {bag.name: class_color(at) for at, bag in enumerate(report.bags)}
    return figures.scores(
        known | {"this encoder": [leading.score]}, colors | {"this encoder": "alarm"}, leading.threshold, "beside"
    )
