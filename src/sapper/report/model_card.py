"""An audit as Markdown for a model's card: a block of metadata in the Hugging Face Hub's form, and the text below it.

The metadata are a ``model-index``, the Hub's form of evaluation results: one result with the score, the p-value and the
verdict as metrics. JSON is YAML, so scalars are written as JSON, and no name can break out of its line.
"""

import json

import sapper
from sapper.audits.found import AuditReport
from sapper.errors import printable
from sapper.report import text
from sapper.report.audit import WORDS, meaning

TASK = "image-feature-extraction"
"""What the Hub calls the task of an encoder."""


def render(report: AuditReport, command: str) -> str:
    """The Markdown. ``command`` repeats the audit."""
    return f"---\n{_metadata(report)}---\n\n{_section(report, command)}"


def _metadata(report: AuditReport) -> str:
    leading, images = report.leading, report.images
    shown, tool = f"{images['n']} images of {images['name']}", f"Sapper {sapper.__version__}, budget {report.budget}"
    values = {
        "verdict": (report.verdict, "Verdict"),
        "score": (leading.score, f"Score of {leading.method}"),
        "p_value": (report.p_value, "p-value beside known-clean encoders"),
    }
    lines = [
        "model-index:",
        f"- name: {json.dumps(_name(report))}",
        "  results:",
        "  - task:",
        f"      type: {TASK}",
        f"      name: {json.dumps(f'Backdoor audit ({tool})')}",
        "    dataset:",
        f"      type: {json.dumps(images['name'])}",
        f"      name: {json.dumps(shown)}",
        f"      revision: {json.dumps(images['sha256'])}",
        "    metrics:",
    ]
    for kind, (value, name) in values.items():
        if value is not None:
            lines += [f"    - type: {kind}", f"      value: {json.dumps(value)}", f"      name: {json.dumps(name)}"]
    return "\n".join(lines) + "\n"


def _section(report: AuditReport, command: str) -> str:
    about = {
        "file": str(report.encoder.get("file", "–")),
        "SHA-256": str(report.encoder.get("sha256", "–")),
        "images": f"{report.images['n']} of {report.images['name']}",
        "budget": f"{report.budget}, {text.duration(report.seconds)}",
        "p-value": "–" if report.p_value is None else f"{report.p_value:.3g}",
        "bound on false alarms": f"{100 * report.false_alarm_bound:g} %",
    }
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in about.items())
    unseen = "\n".join(f"* {_cell(each)}" for each in report.coverage.unseen)
    return (
        f"## Backdoor audit\n\n**{WORDS[report.verdict]}.** {_cell(report.reason)} {_cell(meaning(report))}\n\n"
        f"| | |\n|---|---|\n{rows}\n\nNot seen by any audit of this kind:\n\n{unseen}\n\n"
        f"Repeat it:\n\n    {printable(command)}\n"
    )


def _name(report: AuditReport) -> str:
    return str(report.encoder.get("opened", report.encoder["architecture"]))


def _cell(value: str) -> str:
    """Text from outside as Markdown that is only text."""
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>#|!" else char for char in printable(value))
