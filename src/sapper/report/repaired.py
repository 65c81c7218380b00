"""A repair for people and programs: one page with both audits, and the lines in the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapper import encoders
from sapper.attestations import ATTESTATION, SigningKey
from sapper.attestations import statement as statements
from sapper.attestations.envelope import seal
from sapper.audits.auditing import fingerprint
from sapper.audits.found import AuditReport, Finding
from sapper.audits.repairing import RepairReport
from sapper.errors import SapperError
from sapper.files import as_bytes, as_text, sha256
from sapper.report import audit as page
from sapper.report import text
from sapper.report.audit_files import audit_files, write_files
from sapper.report.pages import environment
from sapper.running import Run

NOT_SAID = (
    "The second audit sees what the first one can see, and no more: a backdoor of a kind that audits miss is neither "
    "found nor known to be gone. It compares with encoders that were trained from scratch, and a repaired one was not: "
    "the bound on false alarms was not measured for those. Classifiers on it have to be trained anew."
)
"""What a repair does not say."""


@dataclass(frozen=True)
class Side:
    """One of the two audits: ``name`` of it, and of the folder of its full report."""

    name: str
    report: AuditReport
    word: str
    shown: list[page.Shown]

    @property
    def leading(self) -> Finding:
        return self.report.leading


def render(report: RepairReport, surroundings: dict[str, str], command: str, file: str) -> str:
    """The page's HTML; ``file``: where the repaired encoder is."""
    sides = [
        Side(name, each, page.WORDS[each.verdict], page.pictures(each))
        for name, each in (("before", report.before), ("after", report.after))
    ]
    repaired = report.repaired
    return (
        environment()
        .get_template("repair.html.j2")
        .render(
            report=report,
            sides=sides,
            word=_title(report),
            meaning=page.meaning(report.after),
            not_said=NOT_SAID,
            facts=[
                f"repair {_method(report)}",
                f"{report.images['n']} images of {report.images['name']}",
                f"features kept: cosine {repaired.kept:.3f}",
                text.duration(repaired.seconds),
            ],
            curves={name: (series[0], series[-1]) for name, series in repaired.curves.items()},
            file=file,
            surroundings=surroundings,
            command=command,
        )
    )


def lines(report: RepairReport) -> list[str]:
    """The summary in the terminal."""
    repaired = report.repaired
    told = [
        f"before: {page.WORDS[report.before.verdict]}. {_score(report.before)}",
        f"repair: {_method(report)}, {text.duration(repaired.seconds)}; cosine of both encoders' features "
        f"{repaired.kept:.3f}",
        f"after: {page.WORDS[report.after.verdict]}. {_score(report.after)}",
    ]
    return [*told, page.meaning(report.after), NOT_SAID]


def write_repair(
    report: RepairReport,
    folder: Path,
    surroundings: Mapping[str, Any],
    *,
    file: Path,
    opening: Mapping[str, Any],
    command: str,
    sign: SigningKey | None = None,
    beside: Path | None = None,
) -> Path:
    """Write repair.html, both audits in the folders ``before`` and ``after``, last repair.json; the page's place.

    ``file``: where the repaired encoder is. ``sign``: a key that signs a statement of that file, of both verdicts and
    of all these files, which comes after them; raises ``SapperError`` where the file holds other weights.
    ``beside``: where the encoder lies until it comes to ``file``.
    """
    repaired, reopened, held = report.repaired, {"uri": str(file)}, beside or file
    digest = sha256(held)
    if sign is not None and fingerprint(encoders.load(held, Run())) != fingerprint(repaired.encoder):
        what, remedy = "this is not the repaired encoder", "name the file that it was saved to"
        raise SapperError(what, where=str(file), remedy=remedy)
    files = {
        f"{side}/{name}": content
        for side, each, how in (("before", report.before, opening), ("after", report.after, reopened))
        for name, content in audit_files(each, surroundings, how, command).items()
    }
    files["repair.html"] = as_bytes(render(report, dict(surroundings), command, str(file)))
    content = {
        "schema": 1,
        "before": _told(report.before),
        "after": _told(report.after),
        "method": repaired.method,
        "parameters": repaired.parameters,
        "trigger_of": repaired.trigger_of,
        "images": report.images,
        "cosine_kept": repaired.kept,
        "seconds": repaired.seconds,
        "curves": repaired.curves,
        "encoder": {"file": str(file), "sha256": digest},
        "environment": dict(surroundings),
        "command": command,
    }
    files["repair.json"] = as_bytes(as_text(content))
    signed = {}
    if sign is not None:
        done = statements.repaired(
            report.before, method=repaired.method, parameters=repaired.parameters, cosine_kept=repaired.kept
        )
        statement = statements.stated(report.after, statements.file(file.name, digest), reopened, files, done)
        signed = {ATTESTATION: seal(statements.written(statement), sign)}
    write_files(folder, files | signed)
    return folder / "repair.html"


def _method(report: RepairReport) -> str:
    """The repair, and whose trigger it worked with."""
    of = report.repaired.trigger_of
    return report.repaired.method + (f" of the trigger that {of} recovered" if of else "")


def _title(report: RepairReport) -> str:
    return f"After the repair: {page.WORDS[report.after.verdict][0].lower()}{page.WORDS[report.after.verdict][1:]}"


def _told(report: AuditReport) -> dict[str, Any]:
    """An audit in short; all of it is in the folder."""
    leading = report.leading
    told = {"verdict": report.verdict, "reason": report.reason, "detector": leading.method, "score": leading.score}
    told |= {"threshold": leading.threshold, "p_value": report.p_value}
    return told | {"false_alarm_bound": report.false_alarm_bound, "budget": report.budget}


def _score(report: AuditReport) -> str:
    leading = report.leading
    return "No score." if leading.score is None else f"Score {leading.score:.3g} of {leading.method}."
