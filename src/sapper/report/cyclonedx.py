"""An audited encoder as a machine-learning bill of materials: a component of CycloneDX 1.6, with what was found."""

from typing import Any

import sapper
from sapper.audits.found import AuditReport
from sapper.report.audit import WORDS, meaning
from sapper.report.taxonomy import BACKDOORED_WEIGHTS, VALIDATE_MODEL


def render(report: AuditReport) -> dict[str, Any]:
    """The bill as plain data."""
    encoder = report.encoder
    name = str(encoder.get("file") or encoder.get("opened") or encoder["architecture"])
    component = {
        "type": "machine-learning-model",
        "bom-ref": "encoder",
        "name": name,
        "version": str(encoder.get("revision") or encoder.get("sha256", "")[:12] or "unknown"),
        "modelCard": {
            "modelParameters": {
                "task": "feature extraction",
                "architectureFamily": str(encoder["architecture"]),
                "inputs": [{"format": f"image, {encoder['input_size']}×{encoder['input_size']} pixels, RGB"}],
                "outputs": [{"format": f"vector of {encoder['feature_size']} features"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(report)},
            "considerations": {
                "technicalLimitations": [*report.coverage.left_out, *report.coverage.unseen],
                "ethicalConsiderations": [
                    {"name": f"{WORDS[report.verdict]}. {report.reason}", "mitigationStrategy": meaning(report)}
                ],
            },
        },
        "properties": [
            {"name": f"sapper:audit:{key}", "value": str(value)}
            for key, value in {
                "verdict": report.verdict,
                "p_value": report.p_value,
                "false_alarm_bound": report.false_alarm_bound,
                "budget": report.budget,
                "atlas:technique": f"{BACKDOORED_WEIGHTS.id}@{BACKDOORED_WEIGHTS.version}",
                "atlas:mitigation": f"{VALIDATE_MODEL.id}@{VALIDATE_MODEL.version}",
            }.items()
            if value is not None
        ],
    }
    if "sha256" in encoder:
        component["hashes"] = [{"alg": "SHA-256", "content": encoder["sha256"]}]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "sapper", "version": sapper.__version__}]}
        },
        "components": [component],
    }


def _metrics(report: AuditReport) -> list[dict[str, str]]:
    scores = [
        {"type": f"{finding.method} score", "value": f"{finding.score:.6g}"}
        for finding in report.detectors
        if finding.score is not None
    ]
    return scores if report.p_value is None else [*scores, {"type": "p-value", "value": f"{report.p_value:.6g}"}]
