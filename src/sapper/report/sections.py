"""What the page's sections show: functions from Results to plain data, nothing where there is nothing to show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from markupsafe import Markup

from sapper.experiment.results import Artifact, FeatureMap, Results
from sapper.report import (
    audited,
    certified,
    defenses,
    effects,
    figures,
    matrix,
    means,
    repairs,
    screens,
    sifts,
    summaries,
    tables,
    targeted,
    text,
)
from sapper.report.figures import Key, Strip
from sapper.report.means import Estimate
from sapper.report.summaries import SummaryRow, aim
from sapper.report.tables import Cell, Table

T = TypeVar("T")
K = TypeVar("K")


def _by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, keys in order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass(frozen=True)
class RowGroup:
    """Rows of the result table under one heading."""

    title: str
    rows: list[SummaryRow]


@dataclass(frozen=True)
class ResultTable:
    """``condition_keys``: the conditions that have a column. ``intervals``: where the intervals come from."""

    groups: list[RowGroup]
    condition_keys: list[str]
    intervals: str


def result_table(results: Results, *, varied: bool = False) -> ResultTable | None:
    """The rows without conditions, or with ``varied`` those with; by attack, the primary head's before the others'."""
    rows = [row for row in summaries.summary_rows(results) if bool(row.condition) == varied]
    if not rows:
        return None
    several, groups = len(summaries.attacks(results)) > 1, list[RowGroup]()
    for attack, ours in _by(rows, lambda row: row.attack if several else None).items():
        whose = f"{attack or 'No attack'}. " if several else ""
        primary = [row for row in ours if row.primary]
        title = f"Primary head: {primary[0].head}" if primary and primary[0].head else ""
        others = [row for row in ours if not row.primary]
        groups += [RowGroup(f"{whose}{title}", primary), RowGroup(f"{whose}Other heads", others)]
    return ResultTable(
        groups=[group for group in groups if group.rows],
        condition_keys=list(dict.fromkeys(key for row in rows for key in row.condition)),
        intervals=means.interval_note(item for row in rows for item in row.estimates.values()),
    )


@dataclass(frozen=True)
class Sweep:
    title: str
    key: str
    drawing: Markup


@dataclass(frozen=True)
class Conditions:
    table: ResultTable
    sweeps: list[Sweep]
    keys: list[Key]


def conditions(results: Results) -> Conditions | None:
    """What an ablation varied: the table, and a drawing for each numeric condition on each target."""
    table = result_table(results, varied=True)
    if table is None:
        return None
    alone = [row for row in summaries.summary_rows(results) if row.primary and len(row.condition) == 1]
    series = _by(alone, lambda row: (row.task, row.target, row.attack, next(iter(row.condition))))
    sweeps = [
        Sweep(summaries.of_attack(results, attack, aim(task, target)), key, figures.sweep(rows, key, f"sweep{index}"))
        for index, ((task, target, attack, key), rows) in enumerate(series.items())
        if len(rows) > 1 and all(_is_number(row.condition[key]) for row in rows)
    ]
    keys = [Key(color, mark, means.LABELS.get(metric, metric)) for metric, (color, mark) in figures.SWEPT.items()]
    return Conditions(table, sweeps, keys)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def other_measurements(results: Results) -> Table | None:
    """Every record that no other section shows."""
    judged = {verdict.defense for verdict in results.verdicts}
    found = [
        item
        for item in summaries.measurements(results)
        if (item.defense not in judged or "seeds" in item.place)  # of several fleets
        and not certified.is_certified(item)
        and not targeted.is_targeted(item)
        and item.metric not in effects.METRICS
        and not repairs.shows(results, item)
        and not screens.shows(results, item)
        and not sifts.shows(results, item)
    ]
    rows = [
        {
            "defense": item.defense,
            "metric": item.metric,
            **item.place,
            "value": _with_unit(item.estimate),
            "95 % interval": item.estimate.span,
        }
        for item in found
    ]
    note = means.interval_note(item.estimate for item in found)
    return tables.table(rows, note=f"Intervals: {note}." if note else "")


def _with_unit(estimate: Estimate) -> str:
    return f"{estimate.number} {'%' if estimate.unit == 'fraction' else estimate.unit}"


@dataclass(frozen=True)
class PictureGroup:
    title: str
    strips: list[Strip]


def pictures(results: Results) -> list[PictureGroup]:
    """The pictures of each target: a strip of clean ones, the same with the trigger below, then the references.

    Attacks whose pictures are the same share them.
    """
    order = {"clean": 0, "triggered": 1, "reference": 2}
    in_order = sorted(results.pictures, key=lambda picture: order.get(picture.role, len(order)))
    groups = _by(in_order, lambda picture: (picture.attack, picture.task, picture.target))
    same = _by(groups.values(), lambda group: tuple((each.task, each.target, each.role, each.png) for each in group))
    return [
        PictureGroup(
            _shown(results, [group[0].attack for group in alike], alike[0][0].task, alike[0][0].target),
            [Strip(role, role, strip) for role, strip in _by(alike[0], lambda picture: picture.role).items()],
        )
        for alike in same.values()
    ]


@dataclass(frozen=True)
class MapPanel:
    title: str
    explained: str
    drawing: Markup


@dataclass(frozen=True)
class MapGroup:
    title: str
    panels: list[MapPanel]
    keys: list[Key]


@dataclass(frozen=True)
class Maps:
    groups: list[MapGroup]
    seeds: list[int]
    n_seeds: int


def maps(results: Results) -> Maps | None:
    """The maps of each target's first seed: the clean encoder's first, then the others'."""
    if not results.maps:
        return None
    groups = _by(results.maps, lambda item: (item.attack, item.task, item.target)).values()
    first = [[item for item in group if item.seed == min(each.seed for each in group)] for group in groups]
    drawn = [_map_group(results, group, f"map{index}") for index, group in enumerate(first)]
    shown = sorted({item.seed for group in first for item in group})
    return Maps(drawn, shown, len({item.seed for item in results.maps}))


def _shown(results: Results, attacks: Sequence[str | None], task: str, target: str) -> str:
    """The title above pictures and maps; of several variants those of the first are there."""
    condition = next((record.condition for record in results.records), {})
    words = ", ".join([aim(task, target), *(f"{key} = {value}" for key, value in condition.items())])
    return summaries.of_attack(results, ", ".join(filter(None, attacks)) or None, words)


def _map_group(results: Results, group: list[FeatureMap], name: str) -> MapGroup:
    order = list(text.STATES)
    clean_first = sorted(group, key=lambda item: order.index(item.state))
    panels = [
        MapPanel(
            f"{text.STATES[item.state]} encoder",
            text.number(item.explained),
            figures.feature_map(item, f"{name}-{index}"),
        )
        for index, item in enumerate(clean_first)
    ]
    return MapGroup(
        _shown(results, [group[0].attack], group[0].task, group[0].target), panels, _map_keys(results, group[0])
    )


def _map_keys(results: Results, drawn: FeatureMap) -> list[Key]:
    """What the marks mean. Classes are listed where they have names and a color each, else the target's alone."""
    names = dict(enumerate(_class_names(results, drawn.task)))
    labels = sorted({int(label) for label in drawn.points.get("clean", {}).get("label", [])})
    wanted = summaries.target_label(results, drawn.task, drawn.target)
    are_listed = bool(names) and max(labels, default=0) < figures.N_COLORS
    if wanted is not None:
        names.setdefault(wanted, summaries.target_class(results, drawn.task, drawn.target) or drawn.target)
    shown = [role for role, points in drawn.points.items() if points["x"]]
    marks = {"reference": Key("alarm", "star", "reference image"), "triggered": Key("ink", "cross", "triggered image")}
    keys = [key for role, key in marks.items() if role in shown]
    if not are_listed and labels:
        keys.append(Key("muted", "dot", f"clean image, colored by class ({len(labels)} classes)"))
        labels = [label for label in labels if label == wanted]
    for label in labels:
        role = " (target class)" if label == wanted else ""
        keys.append(Key(figures.class_color(label), "dot", names.get(label, f"class {label}") + role))
    return keys


def _class_names(results: Results, task: str) -> list[str]:
    """The class names of a task's data set, empty where they are not known."""
    attack = results.scenario.get("attack") or {}
    own = [each.get("instead", {}) for each in (attack if isinstance(attack, list) else [attack])]
    named = {
        item.get("name"): item.get("dataset") for each in (results.scenario, *own) for item in each.get("task", ())
    }
    sets = (item.get("classes") for item in results.datasets if item.get("name") in (named.get(task), task))
    return next((list(classes) for classes in sets if isinstance(classes, list | tuple)), [])


@dataclass(frozen=True)
class CurveGroup:
    title: str
    drawing: Markup
    keys: list[Key]


def loss_curves(results: Results) -> list[CurveGroup]:
    """A drawing for each stage, its seeds over one another. The legend tells the mean of the last epoch."""
    groups = _by(results.curves, lambda curve: curve.stage)
    return [
        CurveGroup(
            stage,
            figures.curves(group, f"curve{index}"),
            [
                Key(figures.class_color(at), "line", series, _last_value([curve.series.get(series) for curve in group]))
                for at, series in enumerate(figures.series_of(group))
            ],
        )
        for index, (stage, group) in enumerate(groups.items())
    ]


def _last_value(values: Sequence[list[float] | None]) -> str:
    last = [some[-1] for some in values if some]
    return text.number(sum(last) / len(last), unit="") if last else ""


def timings(results: Results) -> Table | None:
    cached = sum(bool(item.get("cached")) for item in results.timings)
    total = text.duration(sum(item.get("seconds") or 0 for item in results.timings))
    note = f"Together {total}" + (f"; {cached} of {len(results.timings)} came from the Store." if cached else ".")
    return tables.table(results.timings, note)


def artifacts(results: Results) -> Table | None:
    """The files of the run; a backdoored one is marked, as its name and metadata are."""
    made = tables.table([asdict(item) for item in results.artifacts])
    if made is None:
        return None
    rows = tuple((_marked(cells[0], item), *cells[1:]) for cells, item in zip(made.rows, results.artifacts))
    return Table(made.columns, rows, "Paths are relative to results.json.")


def _marked(cell: Cell, artifact: Artifact) -> Cell:
    return Cell(cell.text, mark="BACKDOORED") if artifact.state == "attacked" else cell


@dataclass(frozen=True)
class Section:
    """``name`` is the anchor; ``partial`` a template in ``templates/sections``; ``content`` gives what it shows."""

    name: str
    title: str
    partial: str
    content: Callable[[Results], Any]


FOLDED = ("results", "effects", "sifts", "repairs", "detection", "certified", "screens", "trigger", "maps", "curves")
"""Sections that are folded in the report of a matrix: there they are long."""

SECTIONS = (
    Section("matrix", "Every attack and every defense", "matrix", matrix.section),
    Section("results", "Results", "results", result_table),
    Section("conditions", "What was varied", "conditions", conditions),
    Section("effects", "What the trigger does", "table", effects.table),
    Section("chosen", "Chosen test images", "table", targeted.table),
    Section("sifts", "Sifted rows", "table", sifts.table),
    Section("repairs", "Repairs", "table", repairs.table),
    Section("audits", "Audit", "audits", audited.section),
    Section("detection", "Detection", "detection", defenses.detections),
    Section("certified", "Certified predictions", "certified", certified.certifications),
    Section("screens", "Screens of inputs", "screens", screens.section),
    Section("other", "Other measurements", "table", other_measurements),
    Section("flags", "Warnings", "flags", lambda results: results.flags),
    Section("trigger", "Trigger", "pictures", pictures),
    Section("maps", "Feature maps", "maps", maps),
    Section("curves", "Training", "curves", loss_curves),
    Section("setting", "Setting", "setting", lambda results: results.scenario),
    Section("references", "References", "table", lambda results: tables.table(results.references)),
    Section("datasets", "Data sets", "table", lambda results: tables.table(results.datasets)),
    Section("timings", "Timings", "table", timings),
    Section("environment", "Environment", "environment", lambda results: results.environment),
    Section("artifacts", "Artifacts", "table", artifacts),
    Section("repeat", "Repeat", "repeat", lambda results: results.command),
)
