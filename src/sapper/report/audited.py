"""What a scenario's audits found, for the page, the terminal and Markdown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sapper.experiment.results import Audited, Picture, Results
from sapper.report import figures, text
from sapper.report.audit import WORDS
from sapper.report.figures import Key, Strip, class_color
from sapper.report.summaries import aim
from sapper.report.tables import Cell, Table

KINDS = {"control": "repaired clean", **text.STATES}
"""Kinds of a scenario's own encoders, in words: what was done to them, and clean ones that were repaired."""

COLORS = {"clean": "ink", "attacked": "alarm", "repaired": "c0", "control": "c3"}
"""Their colors, beside the known-clean ones of the bags."""


@dataclass(frozen=True)
class Recovered:
    """One encoder: its verdict in words, and images of the audit with what it recovered and with the true triggers."""

    title: str
    sentence: str
    strips: list[Strip]


@dataclass(frozen=True)
class Audits:
    """``compared``: what the verdicts rest on, in sentences. ``drawing``: all scores beside those of the bags."""

    table: Table
    compared: list[str]
    drawing: Markup | None
    keys: list[Key]
    recovered: list[Recovered]


def section(results: Results) -> Audits | None:
    """Every audit of the results."""
    if not results.audits:
        return None
    audits = different(results)
    return Audits(
        table=table(results),
        compared=_compared(audits),
        drawing=_drawing(audits),
        keys=_keys(audits),
        recovered=[_recovered(results, each) for each in audits if each.stamped],
    )


def different(results: Results) -> tuple[Audited, ...]:
    """The audits, but of each repaired clean encoder one: attacks and variants share it."""
    first = {each.sha256: each for each in reversed(results.audits) if each.control}
    return tuple(each for each in results.audits if not each.control or first[each.sha256] is each)


def _kind(each: Audited) -> str:
    return "control" if each.control else each.state


def sentences(results: Results) -> list[str]:
    """A line for each audit: ``audit of the clean encoder: No evidence of a backdoor (p = 0.52). …``."""
    return [f"audit of {_name(results, each)}: {_told(each)}" for each in different(results)]


def headline(results: Results) -> str:
    """All audits in one sentence; empty where there are none."""
    kinds = {kind: [each for each in different(results) if _kind(each) == kind] for kind in reversed(KINDS)}
    there = [(KINDS[kind], some) for kind, some in kinds.items() if some]
    if not there:
        return ""
    count = _counted if any(len(some) > 1 for some in kinds.values()) else _single
    found = [count(kind, some, noun) for (kind, some), noun in zip(there, ("encoder", "one", "one", "one"))]
    return f"The audit, which sees an encoder’s weights and ordinary images alone, says: {', '.join(found)}."


_FOUND = {"backdoor": "evidence of a backdoor in", "no-evidence": "no evidence in", "undecided": "undecided about"}


def _single(kind: str, audits: Sequence[Audited], noun: str) -> str:
    (only,) = audits
    return f"{_FOUND[only.report['verdict']]} the {kind} {noun}{_p(only)}"


def _counted(kind: str, audits: Sequence[Audited], noun: str) -> str:
    counts = Counter(each.report["verdict"] for each in audits)
    doubt = f" ({counts['undecided']} undecided)" if counts["undecided"] else ""
    return f"{_FOUND['backdoor']} {counts['backdoor']} of {len(audits)} {kind} {noun}s{doubt}"


def _p(audit: Audited) -> str:
    p = audit.report["p_value"]
    return "" if p is None else f" (p = {p:.2g})"


def table(results: Results) -> Table:
    """A row for each audit."""
    rows = []
    for each in different(results):
        leading = _leading(each)
        effect, usual = leading["collapse"], leading["in_clean"]
        rows.append(
            {
                "encoder": _name(results, each).removeprefix("the "),
                "verdict": WORDS[each.report["verdict"]],
                "score": _figure(leading["score"], ".1f"),
                "threshold": _figure(leading["threshold"], "g"),
                "p-value": _figure(each.report["p_value"], ".2g"),
                "bound": f"{each.report['false_alarm_bound']:g}",
                "images at one point": f"{effect['gathered']:.0%}" if effect else text.NOTHING,
                "clean encoders": f"{usual['median']:.0%}, up to {usual['largest']:.0%}" if usual else text.NOTHING,
            }
        )
    columns = tuple(rows[0])
    cells = tuple(tuple(Cell(value) for value in row.values()) for row in rows)
    return Table(columns, cells, NOTE)


NOTE = (
    "An encoder is flagged where its p-value is at most the bound of false alarms and its score above the threshold. "
    "Images at one point: the share of images that have nearly the same features with the recovered trigger. Clean "
    "encoders: what the same search reaches in known-clean encoders, median and largest."
)


def _figure(value: float | None, form: str) -> str:
    return text.NOTHING if value is None else format(value, form).replace("-", "−")


def _told(each: Audited) -> str:
    return f"{WORDS[each.report['verdict']]}{_p(each)}. {each.report['reason']}"


def _name(results: Results, each: Audited) -> str:
    """What sets an encoder apart from the others that were audited."""
    alike = [other for other in different(results) if _kind(other) == _kind(each)]
    of = ", ".join(filter(None, [None if each.control else each.attack, each.repair]))
    told = f"the {KINDS[_kind(each)]} encoder{f' ({of})' if of else ''}"
    if len({other.task for other in alike}) > 1:
        told += f" for {each.task}"
    if len({other.seed for other in alike}) > 1:
        told += f" of seed {each.seed}"
    return ", ".join(filter(None, [told, text.condition(each.condition)]))


def _leading(each: Audited) -> dict[str, Any]:
    found: dict[str, Any] = next(finding for finding in each.report["detectors"] if finding["leads"])
    return found


def _compared(audits: Sequence[Audited]) -> list[str]:
    """With which images, and beside which known-clean encoders."""
    told = []
    for each in audits:
        images = each.report["images"]
        which = f"{images['n']} images of {images['name']} ({images['split']})"
        told.append(f"Budget {each.report['budget']}; {which}, without their labels.")
        told += [
            f"Compared with {bag['n']} known-clean encoders of the bag {bag['name']}: {bag['pretraining']}."
            for bag in each.report["bags"]
        ]
    return list(dict.fromkeys(told))


def _drawing(audits: Sequence[Audited]) -> Markup | None:
    bags, own = _bags(audits), _own(audits)
    if not bags or not own:
        return None
    colors = {name: class_color(at) for at, name in enumerate(bags)} | {kind: COLORS[kind] for kind in own}
    return figures.scores(bags | own, colors, _leading(audits[0])["threshold"], "audits")


def _bags(audits: Sequence[Audited]) -> dict[str, list[float]]:
    return {name: scores for each in audits for name, scores in each.beside.items()}


def _own(audits: Sequence[Audited]) -> dict[str, list[float]]:
    """The scores of the scenario's encoders, by kind."""
    scores: dict[str, list[float]] = {}
    for each in audits:
        if (score := _leading(each)["score"]) is not None:
            scores.setdefault(_kind(each), []).append(score)
    return scores


def _keys(audits: Sequence[Audited]) -> list[Key]:
    bags = _bags(audits)
    keys = [
        Key(class_color(at), "dot", f"{len(scores)} known-clean encoders: {name}")
        for at, (name, scores) in enumerate(bags.items())
    ]
    keys += [
        Key(COLORS[kind], "dot", f"this run’s {KINDS[kind]} encoder{'s' if len(own) > 1 else ''}")
        for kind, own in _own(audits).items()
    ]
    threshold = _leading(audits[0])["threshold"]
    return keys + ([] if threshold is None else [Key("ink", "dotted", "threshold", text.number(threshold, unit=""))])


def _recovered(results: Results, each: Audited) -> Recovered:
    task_of = {row.get("target"): row.get("task") for row in results.references}
    strips = []
    for stamped in each.stamped:
        title = {
            "nothing": "images",
            "audit": "recovered by the audit",
            "attacker": f"true trigger: {aim(task_of.get(stamped.target), stamped.target)}",
        }[stamped.by]
        role = "triggered" if stamped.by == "attacker" else "clean"
        strips.append(
            Strip(
                title,
                role,
                [Picture(task="", target="", role=title, caption="", png=image) for image in stamped.images],
            )
        )
    name = _name(results, each).removeprefix("the ")
    return Recovered(name[0].upper() + name[1:], _told(each), strips)
