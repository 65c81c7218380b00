"""An audit in a notebook: what ``sapper.audit`` returns shows itself."""

from dataclasses import dataclass, fields

from sapper.audits.found import AuditReport
from sapper.errors import printable
from sapper.report.audit import WORDS, lines, meaning, pictures, warnings
from sapper.report.pages import environment


@dataclass(frozen=True, kw_only=True)
class ShownReport(AuditReport):
    """An ``AuditReport`` that a notebook shows as a short page, and ``print`` as the lines of the command."""

    @staticmethod
    def of(report: AuditReport) -> "ShownReport":
        """The same report."""
        return ShownReport(**{each.name: getattr(report, each.name) for each in fields(AuditReport)})

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in lines(self))

    def _repr_html_(self) -> str:
        """The page's HTML without head and style of its own: notebooks have theirs. Nothing in it runs."""
        return (
            environment()
            .get_template("notebook.html.j2")
            .render(
                report=self,
                word=WORDS[self.verdict],
                meaning=meaning(self),
                warnings=warnings(self),
                shown=pictures(self),
            )
        )
