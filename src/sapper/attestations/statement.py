"""What is signed about an audit: an in-toto statement, version 1, of a type of our own.

    https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md

The subject is the encoder's file by its SHA-256; the predicate has the verdict, what it rests on, and the SHA-256 of
every file of the report. Its words are those of ``audit.json``. A repair is told as an audit of the repaired file, with
what was done to which file under ``repair``.

The type is ours because model-signing's says "these are the files of this model", which its readers take for a
recommendation; an audit may say that a file is backdoored.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

import sapper
from sapper.audits.calibration import as_written
from sapper.audits.families import FamilyBag, families_as_written
from sapper.errors import SapperError, first_mistake

if TYPE_CHECKING:
    from sapper.audits.found import AuditReport

ATTESTATION = "attestation.sigstore.json"
"""Beside the report: the signed statement."""

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:sapper:audit:v1"
"""A name, not an address: nothing is loaded from there."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Verdict = Literal["no-evidence", "backdoor", "undecided"]


class _Part(BaseModel):
    """A part of a statement. Keys that are not known are passed over, as in-toto asks of who reads."""

    model_config = ConfigDict(frozen=True, strict=True)


class Digest(_Part):
    sha256: Sha256


class Subject(_Part):
    """A file: what it was called, and its content (in-toto's ResourceDescriptor)."""

    name: str
    digest: Digest


class Reported(Subject):
    """A file of the report, by its path from the report's folder, which it cannot leave."""

    name: Annotated[str, Field(pattern=r"^([a-z]+/)?[a-z]+(\.[a-z]+)+$")]


class Looked(_Part):
    """How the encoder was opened. ``options``: what the user said about it; one file may hold several networks."""

    architecture: str
    input_size: int
    mean: list[Number]
    std: list[Number]
    options: dict[str, JsonValue]


class Images(_Part):
    """With which images. ``sha256`` as in ``audit.json``."""

    name: str
    split: str
    n: int
    sha256: Sha256


class Beside(_Part):
    """A bag that it was compared with. ``sha256`` of the file that sapper writes of it."""

    name: str
    n: int
    sha256: Sha256


class Repair(_Part):
    """What a repair did, and what the audit before it said of the ``encoder`` that it began with."""

    method: str
    parameters: dict[str, JsonValue]
    encoder: Subject | None
    verdict: Verdict
    score: Number | None
    cosine_kept: Number


class Predicate(_Part):
    """An audit in short. ``time`` by the signer's clock; ``sapper``: its version."""

    verdict: Verdict
    reason: str
    detector: str
    score: Number | None
    threshold: Number | None
    p_value: Number | None
    false_alarm_bound: Number
    budget: str
    seed: int
    number_format: str
    encoder: Looked
    images: Images
    bags: list[Beside]
    families: Beside | None = None
    repair: Repair | None = None
    report: Annotated[list[Reported], Field(min_length=1)]
    sapper: str
    time: AwareDatetime


class Statement(_Part):
    """An in-toto statement of one audit of one file."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[list[Subject], Field(min_length=1, max_length=1)]
    predicate_type: Literal["urn:sapper:audit:v1"] = Field(alias="predicateType")
    predicate: Predicate


def stated(
    report: "AuditReport",
    subject: Subject,
    opening: Mapping[str, Any],
    files: Mapping[str, bytes],
    repair: Repair | None,
) -> Statement:
    """That this audit was of that file. ``opening`` as in ``audit.json``; ``files`` of the report, by name."""
    leading, seen, shown = report.leading, report.encoder, report.images
    predicate = {
        "verdict": report.verdict,
        "reason": report.reason,
        "detector": leading.method,
        "score": leading.score,
        "threshold": leading.threshold,
        "p_value": report.p_value,
        "false_alarm_bound": report.false_alarm_bound,
        "budget": report.budget,
        "seed": report.seed,
        "number_format": report.number_format,
        "encoder": {name: seen[name] for name in ("architecture", "input_size", "mean", "std")}
        | {"options": {name: value for name, value in opening.items() if name != "uri"}},
        "images": {name: shown[name] for name in ("name", "split", "n", "sha256")},
        "bags": [{"name": bag.name, "n": bag.size, "sha256": _digest(as_written(bag).encode())} for bag in report.bags],
        "families": _families(report.families),
        "repair": repair,
        "report": [{"name": name, "digest": {"sha256": _digest(content)}} for name, content in files.items()],
        "sapper": sapper.__version__,
        "time": datetime.now(UTC).replace(microsecond=0),
    }
    told = Predicate.model_validate(_clean(predicate))
    content = {"_type": STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": told}
    return Statement.model_validate(content)


def audited(encoder: Mapping[str, Any]) -> Subject:
    """The file that an audit saw, by what its report says of the encoder. Raises ``SapperError`` if it was none."""
    if "sha256" not in encoder:
        what, remedy = "only an encoder that was opened from a file can be attested", "save it, and audit the file"
        raise SapperError(what, where=str(encoder.get("opened", "encoder")), remedy=remedy)
    return file(encoder["file"], encoder["sha256"])


def file(name: str, digest: str) -> Subject:
    """A file of that name and SHA-256."""
    return Subject(name=_clean(name), digest=Digest(sha256=digest))


def repaired(report: "AuditReport", *, method: str, parameters: Mapping[str, Any], cosine_kept: float) -> Repair:
    """What a repair did; ``report`` of the audit before it."""
    told = {"method": method, "parameters": parameters, "verdict": report.verdict, "score": report.leading.score}
    began = audited(report.encoder) if "sha256" in report.encoder else None
    return Repair.model_validate(_clean(told) | {"encoder": began, "cosine_kept": cosine_kept})


def written(statement: Statement) -> bytes:
    """The statement as JSON, which is signed byte for byte."""
    return statement.model_dump_json(by_alias=True).encode()


def read(payload: bytes, where: str) -> Statement:
    """The statement that was signed. Raises ``SapperError`` for one that says something else than an audit."""
    try:
        return Statement.model_validate_json(payload)
    except ValidationError as error:
        what = f"what was signed is no statement about an audit: {first_mistake(error)}"
        raise SapperError(what, where=where, remedy="name a signature that sapper audit or repair wrote") from error


def _families(bag: FamilyBag | None) -> dict[str, Any] | None:
    if bag is None:
        return None
    return {"name": bag.name, "n": bag.size, "sha256": _digest(families_as_written(bag).encode())}


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def _clean(content: Any) -> Any:
    """Plain data that any JSON can hold: no number that is not finite, no text that UTF-8 does not know."""
    if isinstance(content, Mapping):
        return {_clean(key): _clean(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_clean(value) for value in content]
    if isinstance(content, str):
        return content.encode(errors="replace").decode()
    return None if isinstance(content, float) and not isfinite(content) else content
