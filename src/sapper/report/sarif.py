"""An audit as SARIF 2.1.0, for code scanning: one result for an encoder with evidence, or that could not be judged.

None without evidence: GitHub shows every result as an alert, whatever its kind.
"""

import os
from typing import Any
from urllib.parse import quote

import sapper
from sapper.audits.found import AuditReport
from sapper.report.audit import WORDS, meaning
from sapper.report.taxonomy import BACKDOORED_WEIGHTS, FROM_A_HUB

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

KINDS = {"backdoor": ("fail", "error"), "undecided": ("open", "none")}
"""Kind and level of a result; SARIF knows a level only for what failed."""

RULE = "SAP001"


def render(report: AuditReport) -> dict[str, Any]:
    """The log as plain data."""
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "Sapper",
                        "version": sapper.__version__,
                        "semanticVersion": sapper.__version__,
                        "rules": [_rule()],
                        "supportedTaxonomies": [{"name": "MITRE ATLAS", "index": 0}],
                    }
                },
                # Without it, GitHub takes the runs of two encoders for one, and refuses them.
                "automationDetails": {"id": f"sapper-audit/{_uri(report).strip('/')}/"},
                "taxonomies": [_atlas()],
                "artifacts": [{"location": {"uri": _uri(report)}, **_hashes(report)}],
                "results": [_result(report)] if report.verdict in KINDS else [],
                "properties": {
                    "verdict": report.verdict,
                    "p_value": report.p_value,
                    "false_alarm_bound": report.false_alarm_bound,
                    "budget": report.budget,
                },
            }
        ],
    }


def _result(report: AuditReport) -> dict[str, Any]:
    kind, level = KINDS[report.verdict]
    # GitHub asks for a line.
    place = {"artifactLocation": {"uri": _uri(report), "index": 0}, "region": {"startLine": 1}}
    fingerprint = str(report.encoder.get("sha256", report.encoder["architecture"]))
    return {
        "ruleId": RULE,
        "ruleIndex": 0,
        "kind": kind,
        "level": level,
        "message": {"text": f"{WORDS[report.verdict]}. {report.reason} {meaning(report)}"},
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"encoder/v1": fingerprint},
    }


def _rule() -> dict[str, Any]:
    return {
        "id": RULE,
        "name": "BackdooredEncoder",
        "shortDescription": {"text": "A pre-trained encoder behaves as if it held a backdoor."},
        "fullDescription": {
            "text": "A small change gives nearly all images the same features, more so than in known-clean encoders: "
            "classifiers built on this encoder may obey whoever knows the trigger."
        },
        "defaultConfiguration": {"level": "error"},
        "relationships": [
            {
                "target": {"id": technique.id, "toolComponent": {"name": "MITRE ATLAS", "index": 0}},
                "kinds": ["relevant"],
            }
            for technique in (BACKDOORED_WEIGHTS, FROM_A_HUB)
        ],
        "properties": {"tags": ["security", "machine-learning"]},
    }


def _atlas() -> dict[str, Any]:
    return {
        "name": "MITRE ATLAS",
        "version": BACKDOORED_WEIGHTS.version,
        "organization": "MITRE",
        "isComprehensive": False,
        "taxa": [{"id": technique.id} for technique in (BACKDOORED_WEIGHTS, FROM_A_HUB)],
    }


def _uri(report: AuditReport) -> str:
    """What was opened, as a URI reference."""
    return quote(os.fsencode(str(report.encoder.get("opened", report.encoder["architecture"]))), safe="/:@")


def _hashes(report: AuditReport) -> dict[str, Any]:
    return {"hashes": {"sha-256": report.encoder["sha256"]}} if "sha256" in report.encoder else {}
