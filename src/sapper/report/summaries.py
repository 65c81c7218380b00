"""From records to rows, and to sentences in plain words.

The command line and the HTML report show the same rows; neither computes anything of its own.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sapper.experiment.results import Record, Results
from sapper.report import text
from sapper.report.means import METRICS, Estimate, estimate


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One line of the result table. ``estimates`` holds what was measured, in the order of ``METRICS``."""

    task: str | None
    target: str | None
    attack: str | None
    head: str | None
    primary: bool
    condition: dict[str, Any]
    estimates: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number that the result table has no column for, such as a defense's."""

    metric: str
    defense: str | None
    place: dict[str, Any]
    estimate: Estimate


# Rows of the result table


@dataclass(frozen=True)
class _Group:
    """Records of one place, by metric. A place is what a record states: task, target, attack, head, conditions."""

    place: dict[Any, Any]
    condition: dict[str, Any]
    metrics: dict[str, list[Record]] = field(default_factory=dict)

    def holds_for(self, other: "_Group") -> bool:
        """Whether all that is stated here is so there: clean accuracy names no target, so it holds for each."""
        return self.place.items() <= other.place.items()

    @property
    def shows_an_attack(self) -> bool:
        return not self.metrics.keys().isdisjoint({"ASR", "ASR_strict", "lift"})


def _groups(records: Iterable[Record]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for record in records:
        named = {"task": record.task, "target": record.target, "attack": record.attack, "head": record.head}
        place: dict[Any, Any] = {key: value for key, value in named.items() if value is not None}
        place |= {("condition", key): value for key, value in record.condition.items()}
        key = json.dumps([named, record.condition], sort_keys=True)
        group = groups.setdefault(key, _Group(place, record.condition))
        group.metrics.setdefault(record.metric, []).append(record)
    return list(groups.values())


def _in_main_table(record: Record) -> bool:
    return record.defense is None and record.metric in METRICS


def primary_head(results: Results, attack: str | None = None) -> str | None:
    """The scenario's primary head, or an attack's own; the first one measured where it names none that was."""
    ours = [record for record in results.records if attack is None or record.attack in (attack, None)]
    heads = [record.head for record in ours if record.head is not None]
    own = results.scenario.get("primary_heads", {})
    named = own.get(attack, results.scenario.get("primary_head"))
    return named if named in heads else next(iter(heads), None)


def attacks(results: Results) -> list[str]:
    """All attacks that were measured, by name."""
    return list(dict.fromkeys(record.attack for record in results.records if record.attack is not None))


def of_attack(results: Results, attack: str | None, words: str) -> str:
    """``lba: signs → stop``: words about one of several attacks, those of the scenario that were not run among them."""
    tables = results.scenario.get("attack")
    several = len(attacks(results)) > 1 or (isinstance(tables, list) and len(tables) > 1)
    return f"{attack}: {words}" if attack is not None and several else words


def summary_rows(results: Results) -> list[SummaryRow]:
    """The result table: rows of the primary head first, otherwise in the order of the records.

    There is a row for each place where an attack was measured, and for what none of them covers (a scenario
    without attack). Each metric is taken from the records that fit the row most closely.
    """
    groups = _groups(filter(_in_main_table, results.records))
    primary = {attack: primary_head(results, attack) for attack in (None, *attacks(results))}

    def covered(group: _Group) -> bool:
        return any(other is not group and group.holds_for(other) for other in groups)

    def row(group: _Group) -> SummaryRow:
        fitting = [other for other in groups if other.holds_for(group)]
        found = {metric: [other for other in fitting if metric in other.metrics] for metric in METRICS}
        closest = {metric: max(some, key=lambda other: len(other.place)) for metric, some in found.items() if some}
        return SummaryRow(
            task=group.place.get("task"),
            target=group.place.get("target"),
            attack=group.place.get("attack"),
            head=group.place.get("head"),
            primary=group.place.get("head") == primary[group.place.get("attack")],
            condition=group.condition,
            estimates={metric: estimate(other.metrics[metric]) for metric, other in closest.items()},
        )

    rows = [row(group) for group in groups if group.shows_an_attack or not covered(group)]
    return sorted(rows, key=lambda row: not row.primary)


def measurements(results: Results) -> list[Measurement]:
    """All records that the result table leaves out: those with a defense, and other metrics."""
    rest = [record for record in results.records if not _in_main_table(record)]
    defenses = dict.fromkeys(record.defense for record in rest)
    return [
        Measurement(
            metric=metric,
            defense=defense,
            place={key: value for key, value in group.place.items() if isinstance(key, str)} | group.condition,
            estimate=estimate(records),
        )
        for defense in defenses
        for group in _groups(record for record in rest if record.defense == defense)
        for metric, records in group.metrics.items()
    ]


# In plain words


def aim(task: str | None, target: str | None) -> str:
    """What a target is called in headings: ``signs → priority``, whether or not its name repeats the task's."""
    name = target and target.removeprefix(f"{task}/")
    return " → ".join(part for part in (task, name) if part)


def target_class(results: Results, task: str | None, target: str | None) -> str | None:
    """The name of the class that the attacker wants; the target's own name where no reference tells."""
    row = _reference(results, task, target)
    return row.get("class") or target


def target_label(results: Results, task: str | None, target: str | None) -> int | None:
    return _reference(results, task, target).get("label")


def _reference(results: Results, task: str | None, target: str | None) -> dict[str, Any]:
    fitting = (row for row in results.references if row.get("task") == task and row.get("target") == target)
    return next(fitting, {})


ATTACKED = {
    "encoder": "built on the backdoored encoder",
    "task": "trained on poisoned images",
    "classifier": "whose training was attacked",
}
"""What is said of a classifier, by what the attacker made (``Model.of``)."""


def _attacked(results: Results, row: SummaryRow) -> str:
    """What the attacker of a row made."""
    place = (row.attack, row.task, row.target, row.head)
    measured = (record for record in results.records if record.metric == "ASR_strict")
    ids = {each.subject for each in measured if (each.attack, each.task, each.target, each.head) == place}
    return next((model.of for model in results.subjects if model.id in ids), "encoder")


def sentence(results: Results, row: SummaryRow) -> str:
    """What one row says, for a reader who knows no abbreviation. Empty where it measured no attack."""
    attacked, before = row.estimates.get("ASR_strict"), row.estimates.get("ASR_B_strict")
    clean, after = row.estimates.get("CA"), row.estimates.get("BA")
    if attacked is None:
        return f"On {row.task}, {clean.number} % of clean images are classified correctly." if clean else ""
    words = (
        f"On {row.task}, {attacked.number} % of triggered images that are not of the target class are classified "
        f"as “{target_class(results, row.task, row.target)}” by the classifier {ATTACKED[_attacked(results, row)]}"
    )
    without = "with the clean encoder" if _attacked(results, row) == "encoder" else "without the attack"
    words += f"; {without} {before.number} % are." if before else "."
    if clean and after:
        change = text.number(after.value - clean.value, signed=True)
        words += f" Accuracy on clean images changes by {change} points, from {clean.number} to {after.number} %."
    return words


def summary_sentences(results: Results) -> list[str]:
    """The finding in plain words: one sentence or two for each task and target, of the primary head.

    Where every row has a condition (an ablation) the range over the conditions is told instead.
    """
    rows = headline_rows(results)
    if rows:
        return [of_attack(results, row.attack, words) for row in rows if (words := sentence(results, row))]
    varied = [row for row in summary_rows(results) if row.primary]
    groups: dict[tuple[str | None, ...], list[SummaryRow]] = {}
    for row in varied:
        groups.setdefault((row.attack, row.task, row.target), []).append(row)
    return [of_attack(results, some[0].attack, _range_sentence(results, some)) for some in groups.values()]


def headline_rows(results: Results) -> list[SummaryRow]:
    """The rows that the report speaks of first: primary head, nothing varied."""
    return [row for row in summary_rows(results) if row.primary and not row.condition]


def headline(results: Results) -> str:
    """All targets in one line; empty where there are fewer than two, whose sentence says it already."""
    rows = [row for row in headline_rows(results) if "ASR_strict" in row.estimates]
    if len(rows) < 2:
        return ""
    words = f"With the trigger, {_range(rows, 'ASR_strict')} % of other classes’ images land in the attacker’s class"
    if all("ASR_B_strict" in row.estimates for row in rows):
        words += f"; on the clean encoder {_range(rows, 'ASR_B_strict')} % do"
    return words + "."


def _range(rows: Sequence[SummaryRow], metric: str) -> str:
    """``2.0 to 98.3``, or one number where both ends read the same."""
    values = [row.estimates[metric].value for row in rows]
    low, high = text.number(min(values)), text.number(max(values))
    return low if low == high else f"{low} to {high}"


def _range_sentence(results: Results, rows: list[SummaryRow]) -> str:
    keys = ", ".join(dict.fromkeys(key for row in rows for key in row.condition))
    measured = [row for row in rows if "ASR_strict" in row.estimates]
    if not measured:
        return f"On {rows[0].task}, {_settings(rows)} of {keys} {'was' if len(rows) == 1 else 'were'} measured."
    wanted = target_class(results, rows[0].task, rows[0].target)
    return (
        f"On {rows[0].task}, {_range(measured, 'ASR_strict')} % of triggered images that are not of the target class "
        f"are classified as “{wanted}”, depending on {keys} ({_settings(measured)})."
    )


def _settings(rows: Sequence[SummaryRow]) -> str:
    return "1 setting" if len(rows) == 1 else f"{len(rows)} settings"
