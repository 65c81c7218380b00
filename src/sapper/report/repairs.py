"""Repairs in a scenario: what each leaves of an attack, and what it costs, beside the attack itself."""

from collections.abc import Iterable

from sapper.experiment.results import Record, Results
from sapper.report import means, summaries, text
from sapper.report.means import Estimate
from sapper.report.summaries import Measurement
from sapper.report.tables import Cell, Table

COLUMNS: dict[str, str] = {
    "BA": "BA",
    "ASR": "ASR",
    "ASR_strict": "ASR strict",
    "lift": "lift",
    "CA": "CA",
    "cosine_kept": "features kept",
    "trigger_recovered": "trigger recovered",
    "repair_seconds": "time",
}
NOTE = (
    "In %, the lift over the clean baseline in points; first without a repair, then after each: of the encoder, with a "
    "new head, or of the classifier. CA: of the clean encoder, after the same repair. Features kept: the mean "
    "cosine of an image’s features with those that the encoder gave before it was repaired; what was trained again on "
    "sifted rows has none. Trigger recovered: from how many of the models, where a repair needs one. Evidence: "
    "in how many of the attacked encoders of all seeds an audit finds some of a backdoor; false alarms: in how many of "
    "the clean ones, after the same repair."
)


def table(results: Results) -> Table | None:
    """A row for each attacked task and repair, with the primary head; none where nothing was repaired."""
    repairs = list(dict.fromkeys(model.repair for model in results.subjects if model.repair is not None))
    if not repairs:
        return None
    ours = [record for record in results.records if record.defense in (None, *repairs)]
    heads = {attack: summaries.primary_head(results, attack) for attack in {record.attack for record in ours}}
    places = dict.fromkeys(
        (record.attack, record.task, record.target, text.condition(record.condition))
        for record in ours
        if record.defense is not None and record.target is not None
    )
    rows = []
    for attack, task, target, condition in places:
        title = summaries.of_attack(results, attack, summaries.aim(task, target))
        title = ", ".join(filter(None, [title, condition]))
        for repair in (None, *repairs):
            some = [
                record
                for record in ours
                if (record.attack, record.task, record.defense) == (attack, task, repair)
                and record.target in (target, None)
                and record.head in (heads[attack], None)
                and text.condition(record.condition) == condition
            ]
            if not any(record.metric == "BA" for record in some):
                continue
            found = [_of(some, metric) for metric in COLUMNS]
            audits = [_audits(results, some, metric) for metric in ("BA", "CA")]
            rows.append((Cell(title), Cell(repair or "–"), *map(_cell, found), *audits))
    headings = ("attack on", "repair", *COLUMNS.values(), "evidence", "false alarms")
    used = [i for i in range(len(headings)) if any(row[i].text != text.NOTHING for row in rows)]
    return Table(tuple(headings[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows), NOTE)


def shows(results: Results, item: Measurement) -> bool:
    """Whether the table has this number."""
    if item.defense not in {model.repair for model in results.subjects if model.repair is not None}:
        return False
    head = item.place.get("head")
    return item.metric in COLUMNS and head in (None, summaries.primary_head(results, item.place.get("attack")))


def _of(records: Iterable[Record], metric: str) -> Estimate | None:
    there = [record for record in records if record.metric == metric]
    return means.estimate(there) if there else None


def _cell(value: Estimate | None) -> Cell:
    if value is None:
        return Cell(text.NOTHING, kind="number")
    if value.unit == "s":
        return Cell(text.duration(value.value), kind="number")
    if value.unit == "cosine":
        return Cell(f"{value.value:.3f}".replace("-", "−"), kind="number")
    return Cell(value.number, title=value.span, kind="number")


def _audits(results: Results, records: Iterable[Record], metric: str) -> Cell:
    """How many of the encoders that a metric is of an audit has something against; each encoder counts once."""
    measured = {record.subject for record in records if record.metric == metric}
    verdicts = {each.sha256: each.report["verdict"] for each in results.audits if each.subject in measured}
    found = list(verdicts.values()).count("backdoor")
    return Cell(f"{found} of {len(verdicts)}" if verdicts else text.NOTHING, kind="number")
