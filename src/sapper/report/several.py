"""Several audits at once: one table, for people, the terminal and programs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sapper.audits.found import AuditReport
from sapper.audits.recorded import WORDS
from sapper.errors import SapperError
from sapper.files import as_text, write_atomically
from sapper.report import text
from sapper.report.pages import environment

SCHEMA = 1
"""Counts the forms of ``audits.json``."""

NOT_DONE = "not-done"
"""In place of a verdict, where an encoder could not be audited."""

TITLES = {**WORDS, NOT_DONE: "Not audited"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoder: its verdict, or ``NOT_DONE`` and in ``reason`` why. ``folder`` of its own report, if any."""

    encoder: str
    verdict: str
    reason: str
    folder: str | None = None
    p_value: float | None = None
    score: float | None = None
    sha256: str | None = None

    @staticmethod
    def of(encoder: str, folder: str, report: AuditReport) -> "Row":
        """That of a report, which lies in ``folder``."""
        return Row(
            encoder=encoder,
            verdict=report.verdict,
            reason=report.reason,
            folder=folder,
            p_value=report.p_value,
            score=report.leading.score,
            sha256=report.encoder.get("sha256"),
        )

    @staticmethod
    def refused(encoder: str, error: SapperError) -> "Row":
        """That of an encoder which could not be audited, with what to do about it."""
        place = (error.where or "").removeprefix(encoder).removeprefix(": ")
        place = f"{place}: " if place else ""
        remedy = f" Remedy: {error.remedy}." if error.remedy else ""
        return Row(encoder=encoder, verdict=NOT_DONE, reason=f"{place}{error.what}.{remedy}")

    @property
    def title(self) -> str:
        return TITLES[self.verdict]


def as_json(rows: Sequence[Row], surroundings: dict[str, str], command: str) -> dict[str, Any]:
    """The table as plain data."""
    return {
        "schema": SCHEMA,
        "command": command,
        "environment": surroundings,
        "audits": [asdict(row) for row in rows],
    }


def render(rows: Sequence[Row], surroundings: dict[str, str], command: str) -> str:
    """The table as a page, with a link to each report."""
    counts = {title: sum(row.title == title for row in rows) for title in TITLES.values()}
    return (
        environment()
        .get_template("several.html.j2")
        .render(
            rows=rows,
            facts=[f"{count} × {title.lower()}" for title, count in counts.items() if count],
            surroundings=surroundings,
            command=command,
        )
    )


def write(rows: Sequence[Row], folder: Path, surroundings: dict[str, str], command: str) -> Path:
    """Write ``audits.json`` and the page ``audits.html``, whose place comes back."""
    write_atomically(folder / "audits.json", as_text(as_json(rows, surroundings, command)))
    write_atomically(folder / "audits.html", render(rows, surroundings, command))
    return folder / "audits.html"


def lines(rows: Sequence[Row]) -> list[str]:
    """The table in a terminal: the encoder last, since names are long."""
    cells = [("verdict", "score", "p", "encoder")]
    for row in rows:
        score = text.NOTHING if row.score is None else f"{row.score:.3g}"
        p = text.NOTHING if row.p_value is None else f"{row.p_value:.3g}"
        cells.append((row.title, score, p, row.encoder))
    widths = [max(len(row[at]) for row in cells) for at in range(3)]
    found = ["   ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in cells]
    return found + [f"  {row.encoder}: {row.reason}" for row in rows if row.verdict == NOT_DONE]
