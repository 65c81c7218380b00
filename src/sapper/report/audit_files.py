"""What an audit leaves in a folder: the report for people, for other programs, and the recovered triggers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from sapper.attestations import ATTESTATION, SigningKey
from sapper.attestations import statement as statements
from sapper.attestations.envelope import seal
from sapper.audits import found
from sapper.audits.found import AuditReport
from sapper.audits.recorded import TRIGGERS
from sapper.files import as_bytes, as_text, write_atomically
from sapper.report import audit as page
from sapper.report import cyclonedx, model_card, sarif


def write_audit(
    report: AuditReport,
    folder: Path,
    environment: Mapping[str, Any],
    *,
    opening: Mapping[str, Any],
    command: str,
    sign: SigningKey | None = None,
) -> Path:
    """Write audit.html, .sarif, .cdx.json, .md, the triggers, and last ``audit.json``, which vouches for the others.

    ``opening``: the encoder's ``uri`` and how it was opened, for a replay. ``command`` repeats the audit. ``sign``: a
    key that signs a statement of verdict, encoder and files, which comes after them; raises ``SapperError`` for an
    encoder that was not opened from a file. That its weights are still those of the file is for the caller to know.
    The place of the page comes back.
    """
    files = audit_files(report, environment, opening, command)
    signed = {}
    if sign is not None:
        statement = statements.stated(report, statements.audited(report.encoder), opening, files, None)
        signed = {ATTESTATION: seal(statements.written(statement), sign)}
    write_files(folder, files | signed)
    return folder / "audit.html"


def audit_files(
    report: AuditReport, environment: Mapping[str, Any], opening: Mapping[str, Any], command: str
) -> dict[str, bytes]:
    """The files of an audit by name, in the order in which they are to be written."""
    triggers = safetensors.torch.save(found.trigger_tensors(report))
    content = found.as_json(report) | {
        "environment": dict(environment),
        "command": command,
        "opening": dict(opening),
        "triggers": {"file": TRIGGERS, "sha256": hashlib.sha256(triggers).hexdigest()},
    }
    return {
        "audit.html": as_bytes(page.render(report, dict(environment), command)),
        "audit.sarif": as_bytes(as_text(sarif.render(report))),
        "audit.cdx.json": as_bytes(as_text(cyclonedx.render(report))),
        "audit.md": as_bytes(model_card.render(report, command)),
        TRIGGERS: triggers,
        "audit.json": as_bytes(as_text(content)),
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write them into the folder, one after the other."""
    for name, content in files.items():
        write_atomically(folder / name, content)
