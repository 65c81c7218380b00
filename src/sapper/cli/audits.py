"""The command that audits encoders."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sapper.attestations import ATTESTATION
from sapper.cli.attesting import SignOption, key_of, signed
from sapper.cli.explaining import Asked, explain
from sapper.cli.opening import (
    WEIGHTS,
    EncodersArgument,
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

TABLE = ("audits.html", "audits.json")
"""What audits of several encoders leave beside their folders."""

REPLAY = "replay.json"
"""Beside ``audit.json``: what the last replay measured."""

LEFT = (
    "audit.html",
    "audit.sarif",
    "audit.cdx.json",
    "audit.md",
    "triggers.safetensors",
    "audit.json",
    ATTESTATION,
    REPLAY,
    *TABLE,
)
"""What audits and replays leave; ``audit.json`` after the others, for which it vouches, and then its signature."""

BagOption = Annotated[
    list[Path] | None,
    typer.Option("--bag", help="A bag of known-clean encoders, instead of those of sapper. Repeatable."),
]


@with_opening
def audit(
    encoders: EncodersArgument,
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
    explained: Annotated[
        bool, typer.Option("--explain", help="Say why, and which command would change an undecided verdict.")
    ] = False,
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

    Leaves audit.html, audit.json, audit.md, audit.sarif, audit.cdx.json, the recovered triggers, and their signature if
    --sign. Of several encoders each has a folder of its own below --out, and audits.html shows all in one table; the
    first of 1, 2 and 3 that there is tells how it ends.
    """
    if fail_on not in ("backdoor", "undecided"):
        raise SapperError(f"{fail_on!r} is no verdict", where="--fail-on", remedy="use backdoor or undecided")
    check_bound(bound)
    folder = out_folder or Path("runs") / "audit"
    check_writable(folder)
    folders = folders_of(encoders, folder)
    for each in {folder, *folders.values()}:
        remove_earlier(each)
    from sapper.audits import calibration
    from sapper.defenses.budgets import budget as budget_of

    chosen = budget_of(budget)
    named = [*folders, *([base] if base is not None else [])]
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
    from sapper.report import several
    from sapper.report.audit_files import write_audit

    more = {each.kind.method: each for each in [stored.load(learned)]} if learned else {}
    command = shlex.join(["sapper", *sys.argv[1:]])
    permitted = Opening(trust_code=said.trust_code, allow_weak_sandbox=said.allow_weak_sandbox)
    shown: dict[int, Any] = {}  # the images in each size
    options = {"split": split, "bag": [str(path) for path in bags or []], "data-root": data_root and str(data_root)}
    more_said = {name: value for name, value in options.items() if value}
    asked = Asked(uri="", images=images, budget=budget, said=said, more=more_said)

    def one(uri: str, place: Path, run: Any) -> Any:
        """Audit an encoder and write its report; the report, and the lines to be told."""
        digest = digest_of(uri) if key else None
        subject = open_encoder(uri, run, opening)
        if key:
            check_attestable(subject.card.origin, digest)
        size = subject.card.input_size
        if size not in shown:
            shown[size] = load_images(images, split, size, data_root, download=download)
        for judge in more.values():
            judge.check(subject)
        origin = open_encoder(base, run, opening if Path(base).exists() else permitted) if base is not None else None
        its = calibration.Key.of(subject, shown[size], chosen)
        match = calibration.fitting(its, known, bound)
        if bags and match.reason:
            err.print(f"note: the audit will be undecided: {printable(match.reason)}", markup=False)
        ask: dict[str, Any] = {"budget": budget, "bags": known, "false_alarms": bound, "base": origin, "more": more}
        surroundings = api.searching(subject, shown[size], chosen, known, run, bound)
        report = api.audit(subject, shown[size], surroundings=surroundings, **ask)
        opened = {"uri": uri} | said.recorded()
        written = write_audit(report, place, environment(surroundings), opening=opened, command=command, sign=key)
        why = explain(report, its, match, known, replace(asked, uri=uri)) if explained else []
        return report, [*page.lines(report), *why, *signed(place, key), f"report: {written}"]

    def end_of(report: Any) -> int:
        passes = report.verdict == "undecided" and fail_on == "backdoor" and not report.hidden
        return 0 if passes else EXIT[report.verdict]

    single = len(folders) == 1
    left = "nothing was written" if single else "what is finished is kept"
    rows: list[several.Row] = []
    ends: set[int] = set()
    with telling_interrupts(f"interrupted; {left}"), bars as progress:
        run = replace(run, progress=progress)
        for uri, place in folders.items():
            try:
                report, told = one(uri, place, run)
            except SapperError as error:
                if single:
                    raise
                err.print(f"[bold red]error[/bold red] {escape(str(error))}", soft_wrap=True)
                rows.append(several.Row(encoder=uri, verdict=several.NOT_DONE, reason=error.what))
                ends.add(2)
                continue
            rows.append(several.Row.of(uri, place.name, report))
            ends.add(end_of(report))
            if single:
                break
            for line in [f"{uri}: {rows[-1].title.lower()}", *(told if explained else [])]:
                say(line)
    if not single:
        written = several.write(rows, folder, environment(run), command)
        told = [*several.lines(rows), f"all of them: {written}"]
    say_verdict(told)
    raise typer.Exit(next((code for code in (1, 2, 3) if code in ends), 0))


def folders_of(encoders: list[str], out: Path) -> dict[str, Path]:
    """Where the report of each encoder goes: ``out`` itself for one, else folders in it with the encoders' names.

    Raises ``SapperError`` for an encoder that is named twice.
    """
    if len(encoders) == 1:
        return {encoders[0]: out}
    found: dict[str, Path] = {}
    for uri in encoders:
        if uri in found:
            raise SapperError("this encoder is named twice", where=uri, remedy="name each once")
        last = re.split(r"[/:]", uri.rstrip("/"))[-1]
        name = re.sub(r"[^\w.+@-]", "-", last.removesuffix(Path(last).suffix if Path(last).suffix in WEIGHTS else ""))
        taken = {path.name for path in found.values()}
        numbered = (f"{name}-{number}" for number in range(2, len(encoders) + 1))
        free = next(each for each in (name.strip(".") or "encoder", *numbered) if each not in taken)
        found[uri] = out / free
    return found


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
