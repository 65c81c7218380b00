"""The result table as Markdown, for pages that quote results."""

from sapper.lab.results import Results
from sapper.report import tables, text
from sapper.report.tables import LABELS, METRICS, SummaryRow

SURROUNDINGS = ("processor", "device", "threads", "number format", "torch")
"""What of the environment stands under the table."""


def render(results: Results) -> str:
    """The table, where its intervals come from, seeds, time, hardware, warnings, and the command that repeats it."""
    rows = tables.summary_rows(results)
    names = ["task → target", "head", *(LABELS.get(metric, metric) for metric in METRICS)]
    environment = ", ".join(f"{key} {results.environment[key]}" for key in SURROUNDINGS if key in results.environment)
    seconds = sum(item.get("seconds") or 0 for item in results.timings)
    estimates = [estimate for row in rows for estimate in row.estimates.values()]
    lines = [
        f"`{results.command}`",
        "",
        f"| {' | '.join(names)} |",
        f"|---|---|{'---:|' * len(METRICS)}",
        *(_row(row) for row in rows),
        "",
        f"In %; 95 % intervals {tables.interval_note(estimates)}. Seeds {text.listing(results.scenario['seeds'])}; "
        f"{text.duration(seconds)} of computation; {environment}.",
        *(f"\nNote: {flag}" for flag in results.flags),
    ]
    return "\n".join(lines) + "\n"


def _row(row: SummaryRow) -> str:
    condition = "".join(f", {key} = {value}" for key, value in row.condition.items())
    place = f"{tables.aim(row.task, row.target)}{condition}"
    head = f"**{row.head}**" if row.primary else f"{row.head}"
    cells = [_cell(row, metric) for metric in METRICS]
    return f"| {' | '.join([place, head, *cells])} |"


def _cell(row: SummaryRow, metric: str) -> str:
    estimate = row.estimates.get(metric)
    if estimate is None:
        return text.NOTHING
    return f"{estimate.number}<br><sub>{estimate.span}</sub>" if estimate.span else estimate.number
