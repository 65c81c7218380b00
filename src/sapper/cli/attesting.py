"""Signed audits: the option that signs them, and the command that verifies them."""

import os
import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from sapper import attestations
from sapper.attestations import ATTESTATION, SigningKey, Verified, signing_key
from sapper.audits.recorded import WORDS
from sapper.cli.shared import EXIT, say_verdict
from sapper.errors import SapperError

PASSPHRASE = "SAPPER_KEY_PASSPHRASE"
"""The environment variable with the passphrase of an encrypted private key."""

SignOption = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        help=f"Sign the result with this private key (PEM, P-256 to P-521). Its passphrase: {PASSPHRASE}, or asked.",
    ),
]


def key_of(path: Path | None) -> SigningKey | None:
    """The key that was named, ready to sign; a passphrase is asked for where the key needs one."""
    return None if path is None else signing_key(path, lambda: _passphrase(path))


def _passphrase(path: Path) -> str:
    given = os.environ.get(PASSPHRASE)
    if given:
        return given
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            return getpass(f"passphrase of {path.name}: ")
        except EOFError:
            return ""
    remedy = f"put its passphrase into the environment variable {PASSPHRASE}"
    raise SapperError("this key is encrypted", where=str(path), remedy=remedy)


def signed(folder: Path, key: SigningKey | None) -> list[str]:
    """Where the signature lies, and whose it is."""
    return [] if key is None else [f"signed by the key {key.public.fingerprint}: {folder / ATTESTATION}"]


def verify(
    file: Annotated[Path, typer.Argument(help="The file that was audited or repaired.")],
    key: Annotated[Path, typer.Option("--key", help="The public key of the signer (PEM).")],
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder of the report: FILE-repair or runs/audit by default.")
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option("--signature", help=f"The signature, {ATTESTATION} in --report by default."),
    ] = None,
    without_report: Annotated[
        bool, typer.Option("--without-report", help="Do not look at the files of the report.")
    ] = False,
) -> None:
    """Who says what of this file? Checks a signed audit, and ends as that audit did, or with 2 where anything is amiss.

    0: verified, no evidence, 1: verified, evidence of a backdoor, 2: not verified, 3: verified, undecided.
    """
    verified = attestations.verify(file, key=key, report=report, signature=signature, without_report=without_report)
    say_verdict(lines(verified))
    raise typer.Exit(EXIT[verified.verdict])


def lines(verified: Verified) -> list[str]:
    """What was verified, in words."""
    statement, told = verified.statement, verified.statement.predicate
    (subject,) = statement.subject
    named = "" if subject.name == verified.file.name else f", which was called {subject.name}"
    score = "no score" if told.score is None else f"score {told.score:.3g}"
    p = "no p-value, so no bound on false alarms"
    if told.p_value is not None:
        p = f"p = {told.p_value:.3g}, false-alarm bound {told.false_alarm_bound:g}"
    bags = ", ".join(bag.name for bag in told.bags) or "none that fits"
    if told.families is not None:
        bags += f", but {told.families.n} other families ({told.families.name})"
    found = [
        f"Verified. {WORDS[told.verdict]}. {told.reason}",
        f"  file: {verified.file}{named}, SHA-256 {subject.digest.sha256}",
        f"  audit: {told.detector}, {score}, {p}, budget {told.budget}, "
        f"seed {told.seed}, {told.images.n} images of {told.images.name}, bags: {bags}",
    ]
    if told.repair is not None:
        found.append(f"  repair: {told.repair.method}; before it: {WORDS[told.repair.verdict]}")
    if told.encoder.options:
        options = ", ".join(f"{name} {value}" for name, value in told.encoder.options.items())
        found.append(f"  the file was opened with: {options}; opened otherwise, it is another encoder")
    report = "not looked at"
    if verified.report:
        report = f"{len(told.report)} files as they were signed: {verified.report}"
        report += f"; not signed, so not vouched for: {', '.join(verified.unsigned)}" if verified.unsigned else ""
    return [
        *found,
        f"  report: {report}",
        f"  signed by: the key {verified.key}",
        f"  signed at: {told.time:%Y-%m-%d %H:%M:%S} UTC by the signer's clock, with sapper {told.sapper}",
    ]
