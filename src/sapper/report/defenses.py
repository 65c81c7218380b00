"""What defenses found, for the page and for the terminal: verdicts on classifiers, certified predictions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sapper.experiment.results import Judged, Picture, Results
from sapper.report import figures, tables, text
from sapper.report.figures import Key, Strip
from sapper.report.tables import Estimate, Measurement, Table

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


@dataclass(frozen=True)
class Certification:
    """One certified defense on one task: certified accuracy against the threat's size, and the rest in a table.

    ``axis``: what the size is. ``guarantees``: what is certified, and what is not, in sentences. ``universal``: what
    holds against one trigger at one place.
    """

    title: str
    axis: str
    guarantees: list[str]
    drawing: Markup
    keys: list[Key]
    table: Table | None
    universal: Table | None


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
        title = tables.of_attack(results, verdict.attack, title)
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
        keys=_keys("dot", names) + ([] if threshold is None else [_flagged_above(threshold)]),
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


def _keys(mark: str, names: dict[str, str]) -> list[Key]:
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
        mean, deviation = _find(items, metric, **place), _find(items, f"{metric}_sd", **place)
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
    area = _find(measured, "AUC")
    told = f"Flags {counts[0]} and {counts[1]}{doubt}.{_unreached(group)}"
    rates = [_find(measured, "flagged", state=state, threshold="other seeds") for state in STATES]
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
        for item in tables.measurements(results)
        if (item.defense, item.place.get("task")) == (verdict.defense, task)
        and verdict.attack in (item.place.get("attack"), None)
        and _condition(item) == verdict.condition
    ]


def _condition(item: Measurement) -> dict[str, Any]:
    """The scenario's own part of a condition: which variant it is."""
    return {key: value for key, value in item.place.items() if key not in PLACES}


def _find(items: Iterable[Measurement], metric: str, **place: Any) -> Estimate | None:
    """The measurement of that place; of several that of the least further conditions."""
    fitting = [item for item in items if item.metric == metric and place.items() <= item.place.items()]
    return min(fitting, key=lambda item: len(item.place)).estimate if fitting else None


def certifications(results: Results) -> list[Certification]:
    """Every certified defense on every task, in the order of the records."""
    return [
        _certification(results, group, title, f"certified{index}")
        for index, (title, group) in enumerate(_certified_groups(results).items())
    ]


def _certified_groups(results: Results) -> dict[str, list[Measurement]]:
    """What certified defenses measured, by a title that names defense, task and variant."""
    groups: dict[str, list[Measurement]] = {}
    for item in filter(is_certified, tables.measurements(results)):
        title = f"{item.defense} on {item.place.get('task')}"
        title = tables.of_attack(results, item.place.get("attack"), title)
        groups.setdefault(", ".join(filter(None, [title, text.condition(_condition(item))])), []).append(item)
    return groups


PLACES = ("task", "target", "attack", "head", "state", "patch", "radius", "threshold", "shadows")

AXES = {"patch": "the patch’s side in pixels", "radius": "the radius"}
"""What certified accuracy is drawn against, by the key of the condition."""


CERTIFIED = ("certified_", "universal_certified_", "ASR_strict_bound")
"""How the names of what is certified begin."""


def is_certified(item: Measurement) -> bool:
    """Whether a certified defense measured it."""
    return item.defense is not None and item.metric.startswith(("defended_", *CERTIFIED))


def _certification(results: Results, group: list[Measurement], title: str, name: str) -> Certification:
    lines = {state: {_size(item)[1]: item.estimate for item in _certified(group, state)} for state in STATES}
    size_is = next((_size(item)[0] for state in STATES for item in _certified(group, state)), "patch")
    rows = []
    for state in STATES:
        for target in _targets(group):
            found = {
                "accuracy": _find(group, "defended_accuracy", state=state),
                "ASR": _find(group, "defended_ASR", state=state, target=target),
                "ASR strict": _find(group, "defended_ASR_strict", state=state, target=target),
            }
            cells = {key: f"{value.number}  ({value.span})" for key, value in found.items() if value is not None}
            rows.append({"classifier": text.STATES[state], "target": target} | cells)
    note = tables.interval_note(item.estimate for item in group)
    own = "Under the defense for its own patch size, in" if size_is == "patch" else "Under the defense, in"
    return Certification(
        title,
        AXES[size_is],
        guarantees(results, group[0].defense),
        figures.certified(lines, STATES, name),
        _keys("line", {state: f"{text.STATES[state]} classifier" for state in STATES}),
        tables.table(rows, f"{own} %; in brackets the 95 % interval, {note}."),
        tables.table(_by_patch(group, lambda each: f"{each.number}  ({each.span})"), UNIVERSAL_NOTE),
    )


UNIVERSAL_NOTE = (
    "In %, with 95 % intervals; those of the worst place hold for all places at once (Bonferroni). One place: the same "
    "on every image; the patch may show something else on each. The worst place is the one that is certified least."
)


def _by_patch(group: list[Measurement], cell: Callable[[Estimate], str]) -> list[dict[str, str]]:
    """A row for each state and size: what is certified anywhere and at one place, and what strict ASR is left."""
    rows = []
    for state in STATES:
        for item in _certified(group, state):
            there = {"state": state} | dict([_size(item)])
            universal = _find(group, "universal_certified_accuracy", **there)
            if universal is None:
                continue
            found: dict[str, Estimate | None] = {"certified anywhere": item.estimate, "at the worst place": universal}
            for target in _targets(group):
                of = f", {target}" if len(_targets(group)) > 1 else ""
                for words, metric in BOUNDS.items():
                    found[f"{words}{of}"] = _find(group, metric, target=target, **there)
            cells = {name: text.NOTHING if each is None else cell(each) for name, each in found.items()}
            rows.append({"classifier": text.STATES[state], "patch": _sized(item)} | cells)
    return rows


BOUNDS = {
    "strict ASR at most, trigger’s place": "ASR_strict_bound_known_place",
    "at most, any place": "ASR_strict_bound",
}
"""What is said of the bounds on the strict ASR."""


def _targets(group: list[Measurement]) -> list[str]:
    return list(dict.fromkeys(item.place["target"] for item in group if "target" in item.place))


def _certified(group: list[Measurement], state: str) -> list[Measurement]:
    """Certified accuracies on models of one state, by the patch's size or the radius."""
    found = [item for item in group if item.metric == "certified_accuracy" and item.place.get("state") == state]
    return sorted(found, key=_size)


def _size(item: Measurement) -> tuple[str, float]:
    """What the size of the threat is, a key of ``AXES``, and how large it is."""
    return next((key, item.place[key]) for key in AXES if key in item.place)


def _sized(item: Measurement) -> str:
    """The size of the threat in words: ``10×10``, or ``radius 0.5``."""
    key, size = _size(item)
    return f"{size}×{size}" if key == "patch" else f"radius {text.plain(size)}"


def guarantees(results: Results, defense: str | None = None) -> list[str]:
    """What certified defenses guarantee against and what they do not, or what one does, a sentence or two for each."""
    return [
        f"{each.defense}: certified against {each.threat}. Not covered: {each.covers_not}."
        for each in results.guarantees
        if defense in (None, each.defense)
    ]


def sentences(results: Results) -> list[str]:
    """A line for each detector on each task, and two for each certified defense, for the terminal."""
    told = [f"{found.title}: {found.sentence}" for found in detections(results)]
    for title, group in _certified_groups(results).items():
        for state in STATES:
            accuracy = _find(group, "defended_accuracy", state=state)
            rates = [
                f"ASR strict {item.estimate.number} % ({item.place['target']})"
                for item in group
                if item.metric == "defended_ASR_strict" and item.place.get("state") == state
            ]
            sizes = [
                f"{item.estimate.number} % for {_sized(item)}{_at_one_place(group, item)}"
                for item in _certified(group, state)
            ]
            if accuracy is not None:
                words = ", ".join([f"accuracy {accuracy.number} %", *rates])
                told.append(f"{title}, {text.STATES[state]} classifier: {words}; certified {', '.join(sizes)}.")
    return told


def _at_one_place(group: list[Measurement], item: Measurement) -> str:
    """What a certified accuracy rises to if the patch lies at the same place on every image."""
    found = _find(group, "universal_certified_accuracy", state=item.place["state"], **dict([_size(item)]))
    return f" ({found.number} % at one place)" if found else ""


def detection_table(results: Results) -> Table | None:
    """A row for each detector on each task, or on encoders: how often it flags, and how well it tells."""
    rows = []
    for title, group in _judged_groups(results).items():
        measured = _about(results, group[0])
        row: dict[str, str] = {"detector": title}
        for state in STATES:
            scores = (item.estimate for item in measured if not item.estimate.unit and item.place.get("state") == state)
            row[f"median score, {text.STATES[state]}"] = shown(next(scores, None))
            row[f"flagged, {text.STATES[state]}"] = shown(_find(measured, "flagged", state=state))
            row[f"flagged at a threshold from other seeds, {text.STATES[state]}"] = shown(
                _find(measured, "flagged", state=state, threshold="other seeds")
            )
        undecided = sum(verdict.flagged is None for verdict in group)
        row["undecided"] = f"{undecided} of {len(group)}" if undecided else ""
        row["AUC"] = shown(_find(measured, "AUC"))
        for name, (metric, place) in SCORERS.items():
            mean, deviation = _find(measured, metric, **place), _find(measured, f"{metric}_sd", **place)
            row[f"meta-classifiers’ {name}"] = f"{mean.number} ± {deviation.number}" if mean and deviation else ""
        rows.append(row)
    used = [key for key in (rows[0] if rows else {}) if any(row[key] for row in rows)]
    return tables.table([{key: row[key] or text.NOTHING for key in used} for row in rows])


def certification_table(results: Results) -> Table | None:
    """A row for each certified defense on each task and classifier: accuracy, what the attack still does, certified."""
    rows = []
    for title, group in _certified_groups(results).items():
        for state in STATES:
            row = {"defense": title, "classifier": text.STATES[state]}
            row["accuracy"] = shown(_find(group, "defended_accuracy", state=state))
            for target in _targets(group):
                name = "ASR strict" if len(_targets(group)) == 1 else f"ASR strict, {target}"
                row[name] = shown(_find(group, "defended_ASR_strict", state=state, target=target))
            for item in _certified(group, state):
                row[f"certified {_sized(item)}"] = shown(item.estimate)
            rows.append(row)
    sized = [item for item in tables.measurements(results) if item.metric == "certified_accuracy"]
    names = list(dict.fromkeys(f"certified {_sized(item)}" for item in sorted(sized, key=_size)))
    return tables.table(
        [{k: v for k, v in row.items() if k not in names} | {k: row.get(k) for k in names} for row in rows]
    )


def universal_table(results: Results) -> Table | None:
    """A row for each certified defense on each task, classifier and size: what holds against a trigger at one place."""
    rows = [
        {"defense": title} | row
        for title, group in _certified_groups(results).items()
        for row in _by_patch(group, shown)
    ]
    return tables.table(rows, UNIVERSAL_NOTE)


def shown(found: Estimate | None) -> str:
    """A value with its interval below it, for Markdown; empty where there is none."""
    if found is None:
        return ""
    return f"{found.number}<br><sub>{found.span}</sub>" if found.span else found.number
