"""What triggers do to features and to pixels: a row for each attack, task and target."""

from collections.abc import Sequence
from typing import Any

from sapper.experiment.results import Record, Results
from sapper.report import means, summaries, text
from sapper.report.means import Estimate
from sapper.report.tables import Cell, Table

METRICS = ("cosine_triggered", "cosine_clean", "trigger_change", "trigger_ssim", "attack_seconds")
"""What is shown here, and in no other table."""

NOTE = (
    "Cosine: of the features of two different test images, on average, on the clean encoder → on the attacked one; "
    "1 where all lie at one point. Where the training of a classifier was attacked, the attacked encoder is its own, "
    "tuned if the head tunes it, and the clean one is not tuned. Where a task’s training set was poisoned, nobody "
    "attacked the encoder, and both are the same. Change: of a color channel, on average, in levels of 255. "
    "SSIM: how alike an image looks with the trigger and without it; 1 where it is the same. "
    "Time: of the attack and of the classifiers that measure it, without the clean encoder."
)


def table(results: Results) -> Table | None:
    """The table; none where nothing of it was measured. A cell's title tells the intervals."""
    found = [record for record in results.records if record.metric in METRICS and record.defense is None]
    places = dict.fromkeys(_place(record) for record in found)
    if not places:
        return None
    several = {"attack": len(summaries.attacks(results)) > 1, "head": any(record.head for record in found)}
    keys = list(dict.fromkeys(key for record in found for key in record.condition if key != "state"))
    first = [key for key, needed in several.items() if needed]
    columns = (*first, "task → target", *keys, "cosine, with trigger", "cosine, without", "change", "SSIM", "time")
    rows = []
    for place in places:
        ours = [record for record in found if _place(record) == place]
        about, condition = ours[0], {key: value for key, value in ours[0].condition.items() if key != "state"}
        named = {"attack": about.attack, "head": about.head}
        cells = [
            *(text.plain(named[key]) for key in first),
            summaries.aim(about.task, about.target),
            *(text.plain(condition.get(key)) for key in keys),
        ]
        rows.append((*map(Cell, cells), *_numbers(ours)))
    return Table(columns, tuple(rows), NOTE)


def _place(record: Record) -> tuple[Any, ...]:
    condition = tuple((key, text.plain(value)) for key, value in record.condition.items() if key != "state")
    return record.attack, record.task, record.target, record.head, condition


def _numbers(ours: Sequence[Record]) -> list[Cell]:
    """The cells of one place: of the features on either encoder, of the pixels once."""

    def of(metric: str, state: str | None = None) -> Estimate | None:
        fitting = [each for each in ours if each.metric == metric and each.condition.get("state") == state]
        return means.estimate(fitting) if fitting else None

    cosines = [[of(metric, state) for state in ("clean", "attacked")] for metric in METRICS[:2]]
    numbers = [_cell(some) for some in (*cosines, *([of(metric)] for metric in METRICS[2:4]))]
    took = of("attack_seconds")
    return [*numbers, Cell(text.NOTHING if took is None else text.duration(took.value), kind="number")]


def _cell(estimates: Sequence[Estimate | None]) -> Cell:
    there = [each for each in estimates if each is not None]
    spans = [f"{_number(each.value)} ({_number(each.low)}…{_number(each.high)})" for each in there]
    title = f"{' → '.join(spans)}; {means.interval_note(there)}" if all(each.span for each in there) else ""
    words = " → ".join(text.NOTHING if each is None else _number(each.value) for each in estimates)
    return Cell(words if there else text.NOTHING, title=title if there else "", kind="number")


def _number(value: float | None) -> str:
    """With three digits behind the point."""
    return text.NOTHING if value is None else f"{value:.3f}".replace("-", "−")
