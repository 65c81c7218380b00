"""The command that audits encoders."""

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sapper.attestations import ATTESTATION
from sapper.audits.calibration import BOUND
from sapper.audits.families import FamilyBag, fitting_families, read_families, shipped_families
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
from sapper.encoders.names import kind_of
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

SEARCHED = ".searched"
"""In a report's folder, while an audit lasts: what it has searched, for when it is interrupted."""

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
    families: Annotated[
        list[Path] | None,
        typer.Option("--families", help="A bag over families, for where no bag of its kind fits. Repeatable."),
    ] = None,
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

    budget_of(budget)
    named = [*folders, *([base] if base is not None else [])]
    opening = check_first(named, images, data_root, device, said, download=download)
    if learned:
        check_learned(learned)
    key = key_of(sign)
    known = [calibration.read_bag(path) for path in bags] if bags else calibration.shipped_bags()
    among = [read_families(path) for path in families] if families else shipped_families()
    run, bars = begin(device, threads, seed)
    from sapper.audits import stored

    told: dict[str, Any] = {"split": split, "bag": [str(path) for path in bags or []], "data-root": data_root}
    told |= {"families": [str(path) for path in families or []]}
    told |= {"base": base, "learned": learned, "seed": seed, "device": device if device != "auto" else None}
    told |= {"fail-on": fail_on if fail_on != "undecided" else None}
    told |= {"false-alarms": f"{bound:g}" if bound != BOUND else None}
    shown = Shown(images, split, data_root, download=download)
    work = Auditing(
        opening=opening,
        images=shown,
        budget=budget,
        bags=known,
        named_bags=bool(bags),
        families=among,
        bound=bound,
        base=base,
        more={each.kind.method: each for each in [stored.load(learned)]} if learned else {},
        key=key,
        said=said,
        asked=Asked(uri="", images=images, budget=budget, said=said, more=kept_options(told)) if explained else None,
    )
    single = len(folders) == 1
    left = "the same command goes on from what was searched" if single else "what is finished is kept"
    with telling_interrupts(f"interrupted; {left}"), bars as progress:
        run = replace(run, progress=progress)
        if single:
            report, lines = work.one(*next(iter(folders.items())), run)
            ends = [_end_of(report, fail_on)]
        else:
            ends, lines = work.several(folders, folder, fail_on, run)
    say_verdict(lines)
    raise typer.Exit(next((code for code in (1, 2, 3) if code in ends), 0))


def kept_options(told: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Those of the options that were said, as words of a command line."""
    return {name: value if isinstance(value, list) else str(value) for name, value in told.items() if value}


def _end_of(report: Any, fail_on: str) -> int:
    passes = report.verdict == "undecided" and fail_on == "backdoor" and not report.hidden
    return 0 if passes else EXIT[report.verdict]


@dataclass(frozen=True)
class Shown:
    """The images of an audit, in each size that an encoder takes, loaded once."""

    name: str
    split: str | None
    data_root: Path | None
    loaded: dict[int, Any] = field(default_factory=dict, kw_only=True)
    download: bool = field(kw_only=True)

    def of(self, size: int) -> Any:
        """Those of that size."""
        if size not in self.loaded:
            self.loaded[size] = load_images(self.name, self.split, size, self.data_root, download=self.download)
        return self.loaded[size]


@dataclass(frozen=True, kw_only=True)
class Auditing:
    """What the audits of one command have in common. ``asked``: of ``--explain``, where it was said."""

    opening: Opening
    images: Shown
    budget: str
    bags: list[Any]
    named_bags: bool
    families: list[FamilyBag]
    bound: float
    base: str | None
    more: dict[str, Any]
    key: Any
    said: Said
    asked: Asked | None

    def one(self, uri: str, place: Path, run: Any) -> tuple[Any, list[str]]:
        """Audit an encoder and write its report to ``place``; the report, and the lines to be told.

        What is searched is kept there until the end, or until an error: for when it is interrupted.
        """
        from sapper.tensors import KeptIn

        searched = place / SEARCHED
        try:
            found = self._looked(uri, place, replace(run, kept=KeptIn(searched)))
        except SapperError:
            shutil.rmtree(searched, ignore_errors=True)
            raise
        shutil.rmtree(searched, ignore_errors=True)
        return found

    def _looked(self, uri: str, place: Path, run: Any) -> tuple[Any, list[str]]:
        from sapper import api
        from sapper.attestations.verifying import check_attestable, digest_of
        from sapper.audits import calibration
        from sapper.defenses.budgets import budget as budget_of
        from sapper.engine.environment import environment
        from sapper.report import audit as page
        from sapper.report.audit_files import write_audit

        digest = digest_of(uri) if self.key else None
        subject = open_encoder(uri, run, self.opening)
        if self.key:
            check_attestable(subject.card.origin, digest)
        shown, chosen = self.images.of(subject.card.input_size), budget_of(self.budget)
        for judge in self.more.values():
            judge.check(subject)
        key = calibration.Key.of(subject, shown, chosen)
        match = calibration.fitting(key, self.bags, self.bound)
        others = fitting_families(chosen, self.families, self.bound, len(shown))
        if (self.named_bags or others.images) and match.reason and others.bag is None:
            reason = f"{match.reason}; {others.reason}" if others.images else match.reason
            err.print(f"note: the audit will be undecided: {printable(reason)}", markup=False)
        surroundings = api.searching(subject, shown, chosen, self.bags, run, self.bound)
        report = api.audit(
            subject,
            shown,
            budget=self.budget,
            bags=self.bags,
            false_alarms=self.bound,
            base=self._origin(run),
            more=self.more,
            families=self.families,
            surroundings=surroundings,
        )
        opened, command = {"uri": uri} | self.said.recorded(), shlex.join(["sapper", *sys.argv[1:]])
        made = environment(surroundings)
        written = write_audit(report, place, made, opening=opened, command=command, sign=self.key)
        why = explain(report, key, match, others, self.bags, replace(self.asked, uri=uri)) if self.asked else []
        return report, [*page.lines(report), *why, *signed(place, self.key), f"report: {written}"]

    def several(self, folders: Mapping[str, Path], out: Path, fail_on: str, run: Any) -> tuple[list[int], list[str]]:
        """Audit encoders one after the other: how each ended, and the table of all, which is left in ``out``.

        One that cannot be audited is told, and the others go on. Whatever stops them, what is finished is in the table.
        """
        from sapper.engine.environment import environment
        from sapper.report import several

        rows: list[several.Row] = []
        ends: list[int] = []
        try:
            for uri, place in folders.items():
                try:
                    report, told = self.one(uri, place, run)
                except SapperError as error:
                    err.print(f"[bold red]error[/bold red] {escape(str(error))}", soft_wrap=True)
                    rows.append(several.Row.refused(uri, error))
                    ends.append(2)
                    continue
                rows.append(several.Row.of(uri, place.name, report))
                ends.append(_end_of(report, fail_on))
                for line in [f"{uri}: {rows[-1].title.lower()}", *(told if self.asked else [])]:
                    say(line)
        finally:
            if rows:
                command = shlex.join(["sapper", *sys.argv[1:]])
                written = several.write(rows, out, environment(run), command)
        return ends, [*several.lines(rows), f"all of them: {written}"]

    def _origin(self, run: Any) -> Any:
        """The encoder that this one is said to be made from: a file is opened as this one is, a name by itself."""
        if self.base is None:
            return None
        of_file = kind_of(self.base, trust_code=self.said.trust_code) in ("file", "address")
        permitted = Opening(trust_code=self.said.trust_code, allow_weak_sandbox=self.said.allow_weak_sandbox)
        return open_encoder(self.base, run, self.opening if of_file else permitted)


LONGEST = 80
"""Of a folder's name."""


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
        last = re.split(r"[/:]", uri.partition("?")[0].rstrip("/"))[-1]
        name = re.sub(r"[^\w.+@-]", "-", last.removesuffix(Path(last).suffix if Path(last).suffix in WEIGHTS else ""))
        name = name.strip(".")[:LONGEST] or "encoder"
        taken = {path.name.lower() for path in found.values()}  # on some disks case does not count
        numbered = (f"{name}-{number}" for number in range(2, len(encoders) + 1))
        free = next(each for each in (name, *numbered) if each.lower() not in taken)
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
