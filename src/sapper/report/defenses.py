"""What detectors found, for the page and for the terminal: verdicts on classifiers and on encoders."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sapper.experiment.results import Judged, Picture, Results
from sapper.report import figures, summaries, tables, text
from sapper.report.figures import Key, Strip
from sapper.report.means import Estimate
from sapper.report.summaries import Measurement
from sapper.report.tables import Table

STATES = {"clean": "c0", "attacked": "alarm"}
"""The colors of models of each state."""

MOST_TRIGGERS = 12
"""How many recovered triggers of a classifier are shown."""


@dataclass(frozen=True)
class Detection:
    """One detector on one task, or on encoders: what it says, the scores drawn, the triggers it recovered."""

    title: str
    sentence: str
    drawing: Markup
    keys: list[Key]
    scorers: Table | None
    strips: list[Strip]


def detections(results: Results) -> list[Detection]:
    """Every detector on every task, or on encoders, in the order of the verdicts."""
    return [
        _detection(results, group, title, f"detection{index}")
        for index, (title, group) in enumerate(_judged_groups(results).items())
    ]


def _judged_groups(results: Results) -> dict[str, list[Judged]]:
    """Verdicts by a title that names detector, task and variant."""
    groups: dict[str, list[Judged]] = {}
    for verdict in results.verdicts:
        title = f"{verdict.defense} on {'encoders' if _is_encoder(verdict) else verdict.task}"
        title = summaries.of_attack(results, verdict.attack, title)
        groups.setdefault(", ".join(filter(None, [title, text.condition(verdict.condition)])), []).append(verdict)
    return groups


def _is_encoder(verdict: Judged) -> bool:
    return verdict.classifier is None


def _detection(results: Results, group: list[Judged], title: str, name: str) -> Detection:
    threshold, measured, names = group[0].threshold, _about(results, group[0]), _names(results, group)
    first = [verdict for verdict in group if verdict.seed == group[0].seed and verdict.classifier in (0, None)]
    return Detection(
        title=title,
        sentence=_detected(group, measured, names),
        drawing=figures.scores({state: _scores(group, state) for state in STATES}, STATES, threshold, name),
        keys=keys("dot", names) + ([] if threshold is None else [_flagged_above(threshold)]),
        scorers=_scorers(measured),
        strips=[_strip(verdict, names) for verdict in first if verdict.triggers],
    )


ATTACKED = {
    "encoder": "classifiers on the backdoored encoder",
    "task": "classifiers trained on poisoned images",
    "classifier": "classifiers whose training was attacked",
}
"""What attacked classifiers are called, by what the attacker made (``Model.of``)."""


def _names(results: Results, group: Sequence[Judged]) -> dict[str, str]:
    """What the judged models of each state are called."""
    if _is_encoder(group[0]):
        return {state: f"{text.STATES[state]} encoders" for state in STATES}
    made = {model.id: model.of for model in results.subjects}
    of = next((made[each.subject] for each in group if each.state == "attacked" and each.subject in made), "encoder")
    return {"clean": "classifiers on the clean encoder", "attacked": ATTACKED[of]}


def keys(mark: str, names: dict[str, str]) -> list[Key]:
    """The legend of a drawing with a ``mark`` for each state."""
    return [Key(color, mark, names[state]) for state, color in STATES.items()]


def _flagged_above(threshold: float) -> Key:
    return Key("ink", "dotted", "flagged above", text.number(threshold, unit=""))


SCORERS = {
    "accuracy at the own threshold": ("scorer_accuracy", {"threshold": "own"}),
    "accuracy at the median": ("scorer_accuracy", {"threshold": "median"}),
    "AUC": ("scorer_AUC", {}),
    "AUC on the shadows that it learned from": ("shadow_AUC", {"shadows": "on its own shadows"}),
    "AUC on shadows set apart": ("shadow_AUC", {"shadows": "on others"}),
}
"""What is told of the single scorers that a detector has several of."""


def _scorers(items: list[Measurement]) -> Table | None:
    """Mean and deviation over MNTD's meta-classifiers."""
    rows = []
    for title, (metric, place) in SCORERS.items():
        mean, deviation = find(items, metric, **place), find(items, f"{metric}_sd", **place)
        if mean is not None and deviation is not None:
            rows.append({"over the meta-classifiers": title, "mean": mean.number, "deviation": deviation.number})
    return tables.table(rows, "In %.")


def _scores(group: Iterable[Judged], state: str) -> list[float]:
    return [verdict.score for verdict in group if verdict.state == state and verdict.score is not None]


def _strip(verdict: Judged, names: dict[str, str]) -> Strip:
    shown = [
        Picture(
            task=verdict.task or "",
            target="",
            role="recovered trigger",
            caption=_caption(trigger),
            png=trigger["png"],
        )
        for trigger in verdict.triggers[:MOST_TRIGGERS]
    ]
    index = verdict.evidence.get("anomaly_index")
    told = "" if index is None else f", anomaly index {text.number(index, unit='')}"
    return Strip(f"{names[verdict.state]}{told}", "recovered trigger", shown)


def _unreached(group: list[Judged]) -> str:
    """Of how many classes Neural Cleanse compared triggers, where it reached no trigger for some."""
    norms = [verdict.evidence["norms"] for verdict in group if "norms" in verdict.evidence]
    reached = [sum(norm is not None for norm in each) for each in norms]
    if not norms or min(reached) == len(norms[0]):
        return ""
    span = f"{min(reached)}" if min(reached) == max(reached) else f"{min(reached)} to {max(reached)}"
    return f" It found triggers for {span} of {len(norms[0])} classes, and compares only these."


def _caption(trigger: dict[str, Any]) -> str:
    """The class, where there is one, the trigger's size in pixels, and the share of images that reach the class."""
    size = "" if trigger["norm"] is None else f"{text.number(trigger['norm'], unit='')} pixels"
    if trigger["class"] is None:
        return size
    share = f"{100 * trigger['success']:.0f} %"
    return f"{trigger['class']}: {', '.join(filter(None, [size, share]))}"


def _detected(group: list[Judged], measured: list[Measurement], names: dict[str, str]) -> str:
    """How many models are flagged of either kind, and how well the scores tell them apart."""
    counts = []
    for state in STATES:
        flags = [verdict.flagged for verdict in group if verdict.state == state]
        counts.append(f"{sum(flag is True for flag in flags)} of {len(flags)} {names[state]}")
    undecided = sum(verdict.flagged is None for verdict in group)
    doubt = f", {undecided} undecided" if undecided else ""
    area = find(measured, "AUC")
    told = f"Flags {counts[0]} and {counts[1]}{doubt}.{_unreached(group)}"
    rates = [find(measured, "flagged", state=state, threshold="other seeds") for state in STATES]
    if all(rates):
        told += f" At a threshold from other seeds {' and '.join(rate.number for rate in rates if rate)} %."
    decided = " against ".join(str(len(_scores(group, state))) for state in STATES)
    span = f", {area.span}" if area and area.span else ""
    return f"{told} AUC {area.number} % ({decided}{span})." if area else told


def _about(results: Results, verdict: Judged) -> list[Measurement]:
    """What was measured of that detector on that task, or on encoders, under the same condition."""
    task = None if _is_encoder(verdict) else verdict.task
    return [
        item
        for item in summaries.measurements(results)
        if (item.defense, item.place.get("task")) == (verdict.defense, task)
        and verdict.attack in (item.place.get("attack"), None)
        and condition_of(item) == verdict.condition
    ]


def condition_of(item: Measurement) -> dict[str, Any]:
    """The scenario's own part of a condition: which variant it is."""
    return {key: value for key, value in item.place.items() if key not in PLACES}


def find(items: Iterable[Measurement], metric: str, **place: Any) -> Estimate | None:
    """The measurement of that place; of several that of the least further conditions."""
    fitting = [item for item in items if item.metric == metric and place.items() <= item.place.items()]
    return min(fitting, key=lambda item: len(item.place)).estimate if fitting else None


PLACES = ("task", "target", "attack", "head", "state", "patch", "radius", "threshold", "shadows")


def sentences(results: Results) -> list[str]:
    """A line for each detector on each task, for the terminal."""
    return [f"{found.title}: {found.sentence}" for found in detections(results)]


def detection_table(results: Results) -> Table | None:
    """A row for each detector on each task, or on encoders: how often it flags, and how well it tells."""
    rows = []
    for title, group in _judged_groups(results).items():
        measured = _about(results, group[0])
        row: dict[str, str] = {"detector": title}
        for state in STATES:
            scores = (item.estimate for item in measured if not item.estimate.unit and item.place.get("state") == state)
            row[f"median score, {text.STATES[state]}"] = shown(next(scores, None))
            row[f"flagged, {text.STATES[state]}"] = shown(find(measured, "flagged", state=state))
            row[f"flagged at a threshold from other seeds, {text.STATES[state]}"] = shown(
                find(measured, "flagged", state=state, threshold="other seeds")
            )
        undecided = sum(verdict.flagged is None for verdict in group)
        row["undecided"] = f"{undecided} of {len(group)}" if undecided else ""
        row["AUC"] = shown(find(measured, "AUC"))
        for name, (metric, place) in SCORERS.items():
            mean, deviation = find(measured, metric, **place), find(measured, f"{metric}_sd", **place)
            row[f"meta-classifiers’ {name}"] = f"{mean.number} ± {deviation.number}" if mean and deviation else ""
        rows.append(row)
    used = [key for key in (rows[0] if rows else {}) if any(row[key] for row in rows)]
    return tables.table([{key: row[key] or text.NOTHING for key in used} for row in rows])


def shown(found: Estimate | None) -> str:
    """A value with its interval below it, for Markdown; empty where there is none."""
    if found is None:
        return ""
    return f"{found.number}<br><sub>{found.span}</sub>" if found.span else found.number
