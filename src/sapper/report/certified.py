"""What certified defenses proved, for the page and for the terminal."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from sapper.experiment.results import Results
from sapper.report import figures, means, summaries, tables, text
from sapper.report.defenses import STATES, condition_of, find, keys, shown
from sapper.report.figures import Key
from sapper.report.means import Estimate
from sapper.report.summaries import Measurement
from sapper.report.tables import Table


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


def certifications(results: Results) -> list[Certification]:
    """Every certified defense on every task, in the order of the records."""
    return [
        _certification(results, group, title, f"certified{index}")
        for index, (title, group) in enumerate(_certified_groups(results).items())
    ]


def _certified_groups(results: Results) -> dict[str, list[Measurement]]:
    """What certified defenses measured, by a title that names defense, task and variant."""
    groups: dict[str, list[Measurement]] = {}
    for item in filter(is_certified, summaries.measurements(results)):
        title = f"{item.defense} on {item.place.get('task')}"
        title = summaries.of_attack(results, item.place.get("attack"), title)
        groups.setdefault(", ".join(filter(None, [title, text.condition(condition_of(item))])), []).append(item)
    return groups


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
                "accuracy": find(group, "defended_accuracy", state=state),
                "ASR": find(group, "defended_ASR", state=state, target=target),
                "ASR strict": find(group, "defended_ASR_strict", state=state, target=target),
            }
            cells = {key: f"{value.number}  ({value.span})" for key, value in found.items() if value is not None}
            rows.append({"classifier": text.STATES[state], "target": target} | cells)
    note = means.interval_note(item.estimate for item in group)
    own = "Under the defense for its own patch size, in" if size_is == "patch" else "Under the defense, in"
    return Certification(
        title,
        AXES[size_is],
        guarantees(results, group[0].defense),
        figures.certified(lines, STATES, name),
        keys("line", {state: f"{text.STATES[state]} classifier" for state in STATES}),
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
            universal = find(group, "universal_certified_accuracy", **there)
            if universal is None:
                continue
            found: dict[str, Estimate | None] = {"certified anywhere": item.estimate, "at the worst place": universal}
            for target in _targets(group):
                of = f", {target}" if len(_targets(group)) > 1 else ""
                for words, metric in BOUNDS.items():
                    found[f"{words}{of}"] = find(group, metric, target=target, **there)
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
    """Two lines for each certified defense on each task, for the terminal."""
    told = []
    for title, group in _certified_groups(results).items():
        for state in STATES:
            accuracy = find(group, "defended_accuracy", state=state)
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
    found = find(group, "universal_certified_accuracy", state=item.place["state"], **dict([_size(item)]))
    return f" ({found.number} % at one place)" if found else ""


def certification_table(results: Results) -> Table | None:
    """A row for each certified defense on each task and classifier: accuracy, what the attack still does, certified."""
    rows = []
    for title, group in _certified_groups(results).items():
        for state in STATES:
            row = {"defense": title, "classifier": text.STATES[state]}
            row["accuracy"] = shown(find(group, "defended_accuracy", state=state))
            for target in _targets(group):
                name = "ASR strict" if len(_targets(group)) == 1 else f"ASR strict, {target}"
                row[name] = shown(find(group, "defended_ASR_strict", state=state, target=target))
            for item in _certified(group, state):
                row[f"certified {_sized(item)}"] = shown(item.estimate)
            rows.append(row)
    sized = [item for item in summaries.measurements(results) if item.metric == "certified_accuracy"]
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
