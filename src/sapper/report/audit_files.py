"""What an audit leaves in a folder: the report for people, for other programs, and the recovered triggers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from sapper.audits import auditing
from sapper.audits.auditing import AuditReport
from sapper.audits.recorded import TRIGGERS
from sapper.files import as_text, write_atomically
from sapper.report import audit as page
from sapper.report import cyclonedx, sarif


def write_audit(
    report: AuditReport, folder: Path, environment: Mapping[str, Any], *, opening: Mapping[str, Any], command: str
) -> Path:
    """Write audit.html, .sarif, .cdx.json, the triggers, and last ``audit.json``, which vouches for the others.

    ``opening``: the encoder's ``uri`` and how it was opened, for a replay. ``command`` repeats the audit. The place of
    the page comes back.
    """
    triggers = safetensors.torch.save(auditing.trigger_tensors(report))
    content = auditing.as_json(report) | {
        "environment": dict(environment),
        "command": command,
        "opening": dict(opening),
        "triggers": {"file": TRIGGERS, "sha256": hashlib.sha256(triggers).hexdigest()},
    }
    files: dict[str, str | bytes] = {
        "audit.html": page.render(report, dict(environment), command),
        "audit.sarif": as_text(sarif.render(report)),
        "audit.cdx.json": as_text(cyclonedx.render(report)),
        TRIGGERS: triggers,
        "audit.json": as_text(content),
    }
    for name, written in files.items():
        write_atomically(folder / name, written)
    return folder / "audit.html"
