"""What defenses found, for the page and for the terminal: verdicts on classifiers, certified predictions."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sapper.lab.results import Judged, Picture, Results
from sapper.report import figures, tables, text
from sapper.report.figures import Key
from sapper.report.tables import Estimate, Measurement, Table

ENCODERS = {"clean": "c0", "backdoored": "alarm"}
"""The colors of classifiers on either encoder."""

MOST_TRIGGERS = 12
"""How many recovered triggers of a classifier are shown."""


@dataclass(frozen=True)
class Strip:
    """Recovered triggers of one classifier."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Detection:
    """One detector on one task: what it says, the scores drawn, the triggers it recovered."""

    title: str
    sentence: str
    drawing: Markup
    keys: list[Key]
    scorers: Table | None
    strips: list[Strip]


@dataclass(frozen=True)
class Certification:
    """One certified defense on one task: certified accuracy against the patch's size, and the rest in a table."""

    title: str
    drawing: Markup
    keys: list[Key]
    table: Table | None


def detections(results: Results) -> list[Detection]:
    """Every detector on every task, in the order of the verdicts."""
    groups: dict[tuple[str, str, str], list[Judged]] = {}
    for verdict in results.verdicts:
        groups.setdefault((verdict.defense, verdict.task, text.condition(verdict.condition)), []).append(verdict)
    return [
        _detection(results, group, ", ".join(filter(None, [f"{defense} on {task}", condition])), f"detection{index}")
        for index, ((defense, task, condition), group) in enumerate(groups.items())
    ]


def _detection(results: Results, group: list[Judged], title: str, name: str) -> Detection:
    threshold, measured = group[0].threshold, _about(results, group[0])
    first = [verdict for verdict in group if verdict.seed == group[0].seed and verdict.classifier == 0]
    return Detection(
        title=title,
        sentence=_detected(group, measured),
        drawing=figures.scores({encoder: _scores(group, encoder) for encoder in ENCODERS}, ENCODERS, threshold, name),
        keys=_keys("dot") + ([] if threshold is None else [_flagged_above(threshold)]),
        scorers=_scorers(measured),
        strips=[_strip(verdict) for verdict in first if verdict.triggers],
    )


def _keys(mark: str) -> list[Key]:
    return [Key(color, mark, f"on the {encoder} encoder") for encoder, color in ENCODERS.items()]


def _flagged_above(threshold: float) -> Key:
    return Key("ink", "dotted", "flagged above", text.number(threshold, unit=""))


SCORERS = {
    "accuracy at the own threshold": ("scorer_accuracy", {"threshold": "own"}),
    "accuracy at the median": ("scorer_accuracy", {"threshold": "median"}),
    "AUC": ("scorer_AUC", {}),
}
"""What is told of the single scorers that a detector has several of."""


def _scorers(items: list[Measurement]) -> Table | None:
    """Mean and deviation over MNTD's meta-classifiers."""
    rows = []
    for title, (metric, place) in SCORERS.items():
        mean, deviation = _find(items, metric, **place), _find(items, f"{metric}_sd", **place)
        if mean is not None and deviation is not None:
            rows.append({"over the meta-classifiers": title, "mean": mean.number, "deviation": deviation.number})
    return tables.table(rows, "In %.")


def _scores(group: Iterable[Judged], encoder: str) -> list[float]:
    return [verdict.score for verdict in group if verdict.encoder == encoder and verdict.score is not None]


def _strip(verdict: Judged) -> Strip:
    shown = [
        Picture(
            task=verdict.task,
            target="",
            role="recovered trigger",
            caption=f"{trigger['class']}: {text.number(trigger['norm'], unit='')}",
            png=trigger["png"],
        )
        for trigger in verdict.triggers[:MOST_TRIGGERS]
    ]
    return Strip(f"{verdict.encoder} encoder", shown)


def _detected(group: list[Judged], measured: list[Measurement]) -> str:
    """How many classifiers are flagged on either encoder, and how well the scores tell them apart."""
    counts = []
    for encoder in ENCODERS:
        flags = [verdict.flagged for verdict in group if verdict.encoder == encoder]
        counts.append(f"{sum(flag is True for flag in flags)} of {len(flags)} classifiers on the {encoder} encoder")
    undecided = sum(verdict.flagged is None for verdict in group)
    doubt = f", {undecided} undecided" if undecided else ""
    area = _find(measured, "AUC")
    told = f"Flags {counts[0]} and {counts[1]}{doubt}."
    decided = " against ".join(str(len(_scores(group, encoder))) for encoder in ENCODERS)
    return f"{told} AUC {area.number} % ({decided})." if area else told


def _about(results: Results, verdict: Judged) -> list[Measurement]:
    """What was measured of that detector on that task, under the same condition."""
    return [
        item
        for item in tables.measurements(results)
        if (item.defense, item.place.get("task")) == (verdict.defense, verdict.task)
        and _condition(item) == verdict.condition
    ]


def _condition(item: Measurement) -> dict[str, Any]:
    """The scenario's own part of a condition: which variant it is."""
    return {key: value for key, value in item.place.items() if key not in PLACES}


def _find(items: Iterable[Measurement], metric: str, **place: Any) -> Estimate | None:
    fitting = (item.estimate for item in items if item.metric == metric and place.items() <= item.place.items())
    return next(fitting, None)


def certifications(results: Results) -> list[Certification]:
    """Every certified defense on every task, in the order of the records."""
    return [
        _certification(group, title, f"certified{index}")
        for index, (title, group) in enumerate(_certified_groups(results).items())
    ]


def _certified_groups(results: Results) -> dict[str, list[Measurement]]:
    """What certified defenses measured, by a title that names defense, task and variant."""
    groups: dict[str, list[Measurement]] = {}
    for item in filter(is_certified, tables.measurements(results)):
        title = f"{item.defense} on {item.place.get('task')}"
        groups.setdefault(", ".join(filter(None, [title, text.condition(_condition(item))])), []).append(item)
    return groups


PLACES = ("task", "target", "attack", "head", "encoder", "patch", "threshold")


def is_certified(item: Measurement) -> bool:
    """Whether a certified defense measured it."""
    return item.defense is not None and item.metric.startswith(("defended_", "certified_"))


def _certification(group: list[Measurement], title: str, name: str) -> Certification:
    lines = {
        encoder: {item.place["patch"]: item.estimate for item in _certified(group, encoder)} for encoder in ENCODERS
    }
    rows = []
    for encoder in ENCODERS:
        for target in dict.fromkeys(item.place["target"] for item in group if "target" in item.place):
            found = {
                "accuracy": _find(group, "defended_accuracy", encoder=encoder),
                "ASR": _find(group, "defended_ASR", encoder=encoder, target=target),
                "ASR strict": _find(group, "defended_ASR_strict", encoder=encoder, target=target),
            }
            cells = {key: f"{value.number}  ({value.span})" for key, value in found.items() if value is not None}
            rows.append({"encoder": encoder, "target": target} | cells)
    note = tables.interval_note(item.estimate for item in group)
    return Certification(
        title,
        figures.certified(lines, ENCODERS, name),
        _keys("line"),
        tables.table(rows, f"Under the defense for its own patch size, in %; in brackets the 95 % interval, {note}."),
    )


def _certified(group: list[Measurement], encoder: str) -> list[Measurement]:
    """Certified accuracies on one encoder, by the patch's size."""
    found = [item for item in group if item.metric == "certified_accuracy" and item.place.get("encoder") == encoder]
    return sorted(found, key=lambda item: int(item.place["patch"]))


def sentences(results: Results) -> list[str]:
    """A line for each detector on each task, and two for each certified defense, for the terminal."""
    told = [f"{found.title}: {found.sentence}" for found in detections(results)]
    for title, group in _certified_groups(results).items():
        for encoder in ENCODERS:
            accuracy = _find(group, "defended_accuracy", encoder=encoder)
            rates = [
                f"ASR strict {item.estimate.number} % ({item.place['target']})"
                for item in group
                if item.metric == "defended_ASR_strict" and item.place.get("encoder") == encoder
            ]
            sizes = [
                f"{item.estimate.number} % for {item.place['patch']}×{item.place['patch']}"
                for item in _certified(group, encoder)
            ]
            if accuracy is not None:
                words = ", ".join([f"accuracy {accuracy.number} %", *rates])
                told.append(f"{title}, {encoder} encoder: {words}; certified {', '.join(sizes)}.")
    return told
