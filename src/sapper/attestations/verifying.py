"""Whether a file, its report and a signed statement belong together, and who says so.

    1. the signature    the owner of the given key signed the statement
    2. the statement    it is one about an audit
    3. the file         its SHA-256 is that of the subject
    4. the report       every file of it is there, with the SHA-256 that was signed

The first that fails ends it. Nothing is believed before it is verified: the statement is read when the signature
holds, and files of the report are opened by names that it vouches for.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapper.attestations import statement as statements
from sapper.attestations.envelope import unseal
from sapper.attestations.keys import PublicKey, public_key
from sapper.attestations.statement import ATTESTATION, Statement
from sapper.errors import SapperError
from sapper.files import sha256

LARGEST = 2**20
"""Bytes of a bundle; ours have a few thousand."""

DO_NOT = "do not rely on this; get the file and what belongs to it anew, or audit it yourself"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A statement that holds for ``file``. ``key``: the fingerprint of the signer's.

    ``signature``: where it is. ``report``: the folder whose files are as they were signed; none if it was left out.
    ``unsigned``: what else is in it.
    """

    statement: Statement
    key: str
    file: Path
    signature: Path
    report: Path | None
    unsigned: tuple[str, ...] = ()

    @property
    def verdict(self) -> statements.Verdict:
        """Of the audit. That it is verified does not make it a good one."""
        return self.statement.predicate.verdict


def verify(
    file: str | Path,
    *,
    key: str | Path | PublicKey,
    report: str | Path | None = None,
    signature: str | Path | None = None,
    without_report: bool = False,
) -> Verified:
    """The audit that the owner of ``key``, a public key, signed for exactly this file.

    ``report``: the folder that the audit left; by default that of ``signature``, ``FILE-repair`` beside a repaired
    file, or ``runs/audit``. ``signature``: ``attestation.sigstore.json`` in that folder by default. ``without_report``:
    its files are not looked at. Raises ``SapperError`` for whatever is missing, changed, or signed by somebody else.
    ``verdict`` may be any: look at it.
    """
    file, signer = Path(file), key if isinstance(key, PublicKey) else public_key(key)
    if not file.is_file():
        raise SapperError("there is no such file", where=str(file), remedy="name the file that was audited")
    folder = Path(report) if report is not None else _usual(file, signature)
    place = Path(signature) if signature is not None else folder / ATTESTATION
    where = str(place)
    statement = statements.read(unseal(_bundle(place), signer, where), where)
    _check(file, statement.subject[0].digest.sha256, f"this is not the file that {where} is about")
    for each in () if without_report else statement.predicate.report:
        part = folder / each.name
        if not part.is_file():
            remedy = DO_NOT if folder.is_dir() else "name the report's folder with --report, or say --without-report"
            raise SapperError("this file of the report is missing", where=str(part), remedy=remedy)
        _check(part, each.digest.sha256, "this file of the report is not as it was signed")
    return Verified(
        statement=statement,
        key=signer.fingerprint,
        file=file,
        signature=place,
        report=None if without_report else folder,
        unsigned=() if without_report else _others(folder, {each.name for each in statement.predicate.report}),
    )


def _others(folder: Path, signed: Set[str]) -> tuple[str, ...]:
    """Files in a report's folder that no signature speaks of."""
    there = sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())
    return tuple(name for name in there if name not in signed and name != ATTESTATION)


def digest_of(name: str) -> str | None:
    """SHA-256 of a file that will be opened; none for what is opened by another name, or cannot be."""
    try:
        return sha256(Path(name)) if Path(name).is_file() else None
    except OSError:
        return None


def check_attestable(encoder: Mapping[str, Any], before: str | None) -> None:
    """Raises ``SapperError`` unless what was opened is a file, the one that had the SHA-256 ``before``, if any.

    ``encoder``: what its card says of how it was opened.
    """
    seen = statements.audited(encoder).digest.sha256
    if before not in (None, seen):
        what, remedy = "it changed while it was opened", "audit it when nothing writes to it any more"
        raise SapperError(what, where=str(encoder.get("opened")), remedy=remedy)


def _usual(file: Path, signature: str | Path | None) -> Path:
    if signature is not None:
        return Path(signature).parent
    repaired = file.with_name(f"{file.stem}-repair")
    return repaired if repaired.is_dir() else Path("runs") / "audit"


def _bundle(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        said = (isinstance(error, OSError) and error.strerror) or error
        remedy = "name the report's folder with --report, or the signature with --signature; audits sign with --sign"
        raise SapperError(f"no signature can be read: {said}", where=str(path), remedy=remedy) from error
    if len(content) > LARGEST:
        raise SapperError("this is too large for a signature", where=str(path), remedy="name the signature")
    return content


def _check(path: Path, expected: str, what: str) -> None:
    """Raises ``SapperError`` unless the file has that SHA-256."""
    try:
        found = sha256(path)
    except OSError as error:
        remedy = "make it a file that you may read"
        raise SapperError(f"cannot be read: {error.strerror}", where=str(path), remedy=remedy) from error
    if found != expected:
        raise SapperError(f"{what}: SHA-256 {found}, signed {expected}", where=str(path), remedy=DO_NOT)
