"""The result table as Markdown, for pages that quote results."""

from typing import Literal

from sapper.errors import SapperError
from sapper.experiment.results import Results
from sapper.report import (
    audited,
    certified,
    defenses,
    effects,
    matrix,
    repairs,
    screens,
    sifts,
    summaries,
    targeted,
    text,
)
from sapper.report.means import LABELS, METRICS, interval_note
from sapper.report.summaries import SummaryRow
from sapper.report.tables import Table

DETECTION_NOTE = (
    "Rates in %; 95 % intervals over the judged models, as if these were independent samples, or over the seeds where "
    "there are several with several models each."
)

SURROUNDINGS = ("processor", "device", "threads", "number format", "torch")
"""What of the environment stands under the table."""


def render(results: Results) -> str:
    """The table, where its intervals come from, seeds, time, hardware, warnings, and the command that repeats it.

    Below it what defenses found.
    """
    rows = summaries.summary_rows(results)
    names = ["task → target", "head", *(LABELS.get(metric, metric) for metric in METRICS)]
    sure = [item.estimate for item in summaries.measurements(results) if certified.is_certified(item)]
    estimates = [estimate for row in rows for estimate in row.estimates.values()]
    lines = [
        f"`{results.command}`",
        "",
        f"| {' | '.join(names)} |",
        f"|---|---|{'---:|' * len(METRICS)}",
        *(_row(results, row) for row in rows),
        "",
        f"In %; 95 % intervals: {interval_note(estimates)}. {_surroundings(results)}.",
        *(["", matrices(results)] if results.scenario.get("matrix") else []),
        *_plain_table(effects.table(results), effects.NOTE),
        *_plain_table(targeted.table(results)),
        *_plain_table(sifts.table(results)),
        *_plain_table(repairs.table(results)),
        *(_plain_table(audited.table(results), audited.NOTE) if results.audits else []),
        *_plain_table(defenses.detection_table(results), DETECTION_NOTE),
        *_plain_table(certified.certification_table(results), f"In %; 95 % intervals: {interval_note(sure)}."),
        *_plain_table(certified.universal_table(results), certified.UNIVERSAL_NOTE),
        *(f"\n{sentence}" for sentence in certified.guarantees(results)),
        *_plain_table(screens.table(results)),
        *(f"\nNote: {flag}" for flag in results.flags),
    ]
    return "\n".join(lines) + "\n"


MatrixPart = Literal["", "tables", "sentences"]


def matrices(results: Results, part: MatrixPart = "") -> str:
    """The matrix of a scenario: tables with the attacks as rows, and a line for each defense; or one ``part`` of it.

    A table leaves out attacks to which none of its defenses applies. Raises ``SapperError`` for the results of another
    scenario.
    """
    content = matrix.section(results)
    if content is None:
        raise SapperError("these are not the results of a matrix", remedy="run a scenario with matrix = true")
    told = [f"* {sentence}" for sentence in content.sentences]
    if part == "sentences":
        return "\n".join(told) + "\n"
    lines = [f"`{results.command}`"]
    for block in content.blocks:
        names, rows = [row.name for row in block.rows], list[str]()
        for at, attack in enumerate(content.columns):
            squares = [row.squares[at] for row in block.rows]
            if any(square.text not in (text.NOTHING, matrix.OUT) for square in squares):
                cells = " | ".join(map(_square, squares))
                rows.append(f"| {attack.replace('|', '&#124;')} | {cells} |")
        if rows:
            heading = [f"| attack | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
            lines += ["", f"**{block.title}**", "", *heading, *rows]
    lines += ["", f"{MATRIX_NOTE} {_surroundings(results)}."]
    return "\n".join(lines if part else [*lines, "", *told]) + "\n"


MATRIX_NOTE = (
    "n/a: the defense does not apply to the attack; –: it was not tried; ?: it gave no answer. Attacks to which no "
    "defense of a table applies are not in it. Below the numbers are their 95 % intervals. The report has the reasons."
)


def _square(square: matrix.Square) -> str:
    return f"{square.text}<br><sub>{square.span}</sub>" if square.span else square.text


def _surroundings(results: Results) -> str:
    """Seeds, time and hardware."""
    environment = ", ".join(f"{key} {results.environment[key]}" for key in SURROUNDINGS if key in results.environment)
    seconds = sum(item.get("seconds") or 0 for item in results.timings)
    spent = f"{text.duration(seconds)} of computation; " if seconds else ""
    return f"Seeds {text.listing(results.scenario['seeds'])}; {spent}{environment}"


def _row(results: Results, row: SummaryRow) -> str:
    condition = "".join(f", {key} = {value}" for key, value in row.condition.items())
    place = summaries.of_attack(results, row.attack, f"{summaries.aim(row.task, row.target)}{condition}")
    head = f"**{row.head}**" if row.primary else f"{row.head}"
    cells = [_cell(row, metric) for metric in METRICS]
    return f"| {' | '.join([place, head, *cells])} |"


def _cell(row: SummaryRow, metric: str) -> str:
    return defenses.shown(row.estimates.get(metric)) or text.NOTHING


def _plain_table(table: Table | None, note: str = "") -> list[str]:
    """Any table, with an empty line above and a note below, its own by default; nothing for none."""
    if table is None:
        return []
    rows = [[cell.text for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.columns, ["---"] * len(table.columns), *rows)]
    return ["", *lines, "", note or table.note]
