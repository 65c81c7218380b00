"""Commands for one encoder: audit it, and replay what was found."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sapper.attestations import ATTESTATION
from sapper.cli.attesting import SignOption, key_of, signed
from sapper.cli.opening import (
    WEIGHTS,
    EncoderArgument,
    Images,
    Said,
    Seed,
    Split,
    begin,
    check_first,
    load_images,
    open_encoder,
    with_opening,
)
from sapper.cli.shared import (
    EXIT,
    BudgetOption,
    DataRoot,
    Device,
    Download,
    Threads,
    check_file,
    check_learned,
    check_writable,
    err,
    say,
    say_verdict,
    telling_interrupts,
)
from sapper.encoders.options import Opening
from sapper.errors import SapperError, printable

SMALLEST_BOUND = 1e-6
"""Of false alarms: below it a bag would need more encoders than there are."""

REPLAY = "replay.json"
"""Beside ``audit.json``: what the last replay measured."""

LEFT = ("audit.html", "audit.sarif", "audit.cdx.json", "triggers.safetensors", "audit.json", ATTESTATION, REPLAY)
"""What audits and replays leave; ``audit.json`` after the others, for which it vouches, and then its signature."""

BagOption = Annotated[
    list[Path] | None,
    typer.Option("--bag", help="A bag of known-clean encoders, instead of those of sapper. Repeatable."),
]


@with_opening
def audit(
    encoder: EncoderArgument,
    images: Images,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the reports, runs/audit by default.")
    ] = None,
    split: Split = None,
    budget: BudgetOption = "quick",
    bags: BagOption = None,
    bound: Annotated[
        float, typer.Option("--false-alarms", help="The share of clean encoders that may come out as backdoored.")
    ] = 0.05,
    base: Annotated[
        str | None, typer.Option("--base", help="The encoder that this one is said to be, or to be made from.")
    ] = None,
    learned: Annotated[
        Path | None, typer.Option("--learned", help="What sapper zoo learn wrote, as a further opinion.")
    ] = None,
    fail_on: Annotated[
        str, typer.Option("--fail-on", help="What fails: undecided (exit 3 if no bag fits), or backdoor (exit 0 then).")
    ] = "undecided",
    sign: SignOption = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
    *,
    said: Said,
) -> None:
    """Is this encoder safe to build on? Ends with 0: no evidence, 1: evidence of a backdoor, 2: not done, 3: undecided.

    Leaves audit.html, audit.json, audit.sarif, audit.cdx.json, the recovered triggers, and their signature if --sign.
    """
    if fail_on not in ("backdoor", "undecided"):
        raise SapperError(f"{fail_on!r} is no verdict", where="--fail-on", remedy="use backdoor or undecided")
    check_bound(bound)
    folder = out_folder or Path("runs") / "audit"
    check_writable(folder)
    remove_earlier(folder)
    from sapper.audits import calibration
    from sapper.defenses.budgets import budget as budget_of

    chosen = budget_of(budget)
    named = [encoder, *([base] if base is not None else [])]
    opening = check_first(named, images, data_root, device, said, download=download)
    if learned:
        check_learned(learned)
    key = key_of(sign)
    known = [calibration.read_bag(path) for path in bags] if bags else calibration.shipped_bags()
    run, bars = begin(device, threads, seed)
    from sapper import api
    from sapper.attestations.verifying import check_attestable, digest_of
    from sapper.audits import stored
    from sapper.engine.environment import environment
    from sapper.report import audit as page
    from sapper.report.audit_files import write_audit

    more = {each.kind.method: each for each in [stored.load(learned)]} if learned else {}
    with telling_interrupts("interrupted; nothing was written"), bars as progress:
        run = replace(run, progress=progress)
        digest = digest_of(encoder) if key else None
        subject = open_encoder(encoder, run, opening)
        if key:
            check_attestable(subject.card.origin, digest)
        shown = load_images(images, split, subject.card.input_size, data_root, download=download)
        for judge in more.values():
            judge.check(subject)
        origin = None
        if base is not None:
            permitted = Opening(trust_code=said.trust_code, allow_weak_sandbox=said.allow_weak_sandbox)
            origin = open_encoder(base, run, opening if Path(base).exists() else permitted)
        match = calibration.fitting(calibration.Key.of(subject, shown, chosen), known, bound)
        if bags and match.reason:
            err.print(f"note: the audit will be undecided: {printable(match.reason)}", markup=False)
        run = api.searching(subject, shown, chosen, known, run, bound)
        report = api.audit(
            *(subject, shown),
            budget=budget,
            bags=known,
            false_alarms=bound,
            base=origin,
            more=more,
            surroundings=run,
        )
    said_to_open = {"uri": encoder} | said.recorded()
    command = shlex.join(["sapper", *sys.argv[1:]])
    written = write_audit(report, folder, environment(run), opening=said_to_open, command=command, sign=key)
    say_verdict([*page.lines(report), *signed(folder, key), f"report: {written}"])
    passes = report.verdict == "undecided" and fail_on == "backdoor" and not report.hidden
    raise typer.Exit(0 if passes else EXIT[report.verdict])


@with_opening
def replay(
    recorded: Annotated[Path, typer.Argument(help="The audit.json of an audit.")],
    images: Images,
    split: Split = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Where the audited file is now, or another encoder to try.")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="File for what is measured, replay.json beside the audit by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the controls.")] = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
    *,
    said: Said,
) -> None:
    """Stamp an audit's recovered triggers on other images, and measure again what they do.

    The encoder that was audited is opened as it was then, wherever it lies; another one as --arch, --mean … say.
    """
    path = out_file or recorded.parent / REPLAY
    check_file(path)
    from sapper.audits.recorded import read_content
    from sapper.files import as_text, sha256, write_atomically

    audit = read_content(recorded)
    recorded_opening, audited = audit["opening"], audit["encoder"].get("sha256")
    uri = encoder or recorded_opening["uri"]
    if encoder is None or (Path(uri).is_file() and sha256(Path(uri)) == audited):
        as_then = {name: value for name, value in recorded_opening.items() if name != "uri"}
        said = replace(said, **as_then | said.recorded())
    if encoder is None and Path(uri).suffix in WEIGHTS and not Path(uri).exists():
        remedy = "name its place with --encoder, or run this where the audit was run"
        raise SapperError("the audited encoder is not there", where=uri, remedy=remedy)
    opening = check_first([uri], images, data_root, device, said, download=download)
    run, bars = begin(device, threads, seed)
    from sapper.audits import auditing, replaying
    from sapper.report import audit as page
    from sapper.running import FORMATS

    found = replaying.read_audit(recorded)
    dtype = FORMATS.get(str(audit.get("number_format")), run.dtype)
    with bars as progress:
        run = replace(run, progress=progress, dtype=dtype)  # of the audit: what it found is measured anew
        subject = open_encoder(uri, run, opening)
        if encoder is None and audited != subject.card.origin.get("sha256"):
            what, remedy = "this is not the file that was audited", "name the file with --encoder if that is meant"
            raise SapperError(what, where=uri, remedy=remedy)
        shown = load_images(images, split, subject.card.input_size, data_root, download=download)
        replays = replaying.replay(found, subject, shown, run)
    content = {
        "schema": 1,
        "audit": audited,
        "encoder": auditing.about(subject),
        "images": auditing.about_images(shown),
        "seed": seed,
        "command": shlex.join(["sapper", *sys.argv[1:]]),
        "replays": replaying.as_json(replays),
    }
    write_atomically(path, as_text(content))
    if shown.digest == found.content["images"].get("sha256"):
        say("note: these are the images that the trigger was found with; others would be better evidence")
    if audited != subject.card.origin.get("sha256"):
        say(f"on {uri}, which is not the file that was audited:")
    for line in page.replay_lines(replays, found.in_clean) + page.guess(auditing.about(subject)):
        say(line)
    say(f"measured: {path}")


def check_bound(bound: float) -> None:
    """Raises ``SapperError`` for a bound on false alarms that no bag can keep."""
    if not SMALLEST_BOUND <= bound < 1:
        remedy = f"give one from {SMALLEST_BOUND:g} to 1"
        raise SapperError(f"{bound:g} is no share", where="--false-alarms", remedy=remedy)


def remove_earlier(folder: Path) -> None:
    """What an earlier audit left: however this one ends, it must not leave another encoder's verdict behind."""
    for name in LEFT:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            remedy = "name another folder with --out"
            raise SapperError(f"cannot be replaced: {error}", where=str(folder / name), remedy=remedy) from error
