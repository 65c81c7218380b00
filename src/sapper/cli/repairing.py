"""The command that repairs an encoder: audit, repair, audit again."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sapper.attestations import ATTESTATION
from sapper.cli.attesting import SignOption, key_of, signed
from sapper.cli.audits import BagOption, check_bound, remove_earlier
from sapper.cli.opening import (
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
    check_writable,
    err,
    say_verdict,
    telling_interrupts,
)
from sapper.encoders.options import Opening
from sapper.errors import SapperError, printable

LEFT = ("repair.html", "repair.json", ATTESTATION)
"""What a repair leaves beside both audits."""


@with_opening
def repair(
    encoder: EncoderArgument,
    images: Images,
    out_file: Annotated[Path, typer.Option("--out", help="The file for the repaired encoder, .safetensors.")],
    method: Annotated[
        str, typer.Option("--method", help="A defense of the kind repair; sapper methods shows them.")
    ] = "fine_pruning",
    preset: Annotated[str | None, typer.Option("--preset", help="One of its named sets of parameters.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a parameter of it, e.g. steps=2000. Repeatable.")
    ] = None,
    trigger_of: Annotated[
        str | None,
        typer.Option(
            "--trigger-of", help="For unlearning: the detector that recovers the trigger, by default the audit's own."
        ),
    ] = None,
    report_folder: Annotated[
        Path | None, typer.Option("--report", help="Folder for the reports, beside --out by default.")
    ] = None,
    split: Split = None,
    budget: BudgetOption = "quick",
    bags: BagOption = None,
    bound: Annotated[
        float, typer.Option("--false-alarms", help="The share of clean encoders that may come out as backdoored.")
    ] = 0.05,
    sign: SignOption = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
    *,
    said: Said,
) -> None:
    """Take a backdoor out of an encoder by ordinary images, between two audits. Ends as an audit of the result does.

    0: no evidence any more, 1: evidence of a backdoor, 2: not done, 3: undecided. Leaves the repaired encoder,
    repair.html, repair.json, both audits, and with --sign their signature.
    """
    check_bound(bound)
    if out_file.suffix != ".safetensors":
        raise SapperError("the repaired encoder is a .safetensors file", where="--out", remedy="name it so")
    check_file(out_file)
    if out_file.exists():
        raise SapperError("this file is there already", where=str(out_file), remedy="name another one with --out")
    folder = report_folder or out_file.with_name(f"{out_file.stem}-repair")
    check_writable(folder, "--report")
    for name in LEFT:
        (folder / name).unlink(missing_ok=True)
    for name in ("before", "after"):
        remove_earlier(folder / name)
    from sapper import defenses
    from sapper.audits import calibration
    from sapper.defenses.budgets import budget as budget_of
    from sapper.methods import place_of
    from sapper.scenario.overrides import apply

    chosen = budget_of(budget)
    repairs = {name: place for name, place in defenses.METHODS.items() if ".repair." in place}
    place_of("defenses", repairs if method not in defenses.METHODS else defenses.METHODS, method, "--method")
    changes: dict[str, Any] = {}
    for change in overrides or []:
        apply(changes, change)
    opening = check_first([encoder], images, data_root, device, said, download=download)
    key = key_of(sign)
    known = [calibration.read_bag(path) for path in bags] if bags else calibration.shipped_bags()
    run, bars = begin(device, threads, seed)
    from sapper import api
    from sapper.audits.auditing import about
    from sapper.encoders.files import check_name, save
    from sapper.engine.environment import environment
    from sapper.files import link_atomically
    from sapper.report.repaired import lines, write_repair

    with telling_interrupts("interrupted; nothing was written"), bars as progress:
        run = replace(run, progress=progress)
        api.chosen_repair(method, preset, changes, trigger_of, budget)
        subject = open_encoder(encoder, run, opening)
        check_name(out_file, "encoder", backdoored=subject.card.backdoored)
        shown = load_images(images, split, subject.card.input_size, data_root, download=download)
        match = calibration.fitting(calibration.Key.of(subject, shown, chosen), known, bound)
        if match.reason:
            err.print(f"note: both audits will be undecided: {printable(match.reason)}", markup=False)
        report = api.repair(
            *(subject, shown),
            method=method,
            preset=preset,
            parameters=changes,
            trigger_of=trigger_of,
            budget=budget,
            bags=known,
            false_alarms=bound,
            surroundings=run,
        )
    beside = out_file.with_name(f".{os.getpid()}-{out_file.name}")
    try:
        save(report.repaired.encoder, beside)
        told = about(open_encoder(str(beside), run, Opening())) | {"opened": str(out_file), "file": out_file.name}
        report = replace(report, after=replace(report.after, encoder=told))
        written = write_repair(
            *(report, folder, environment(run)),
            file=out_file,
            opening={"uri": encoder} | said.recorded(),
            command=shlex.join(["sapper", *sys.argv[1:]]),
            sign=key,
            beside=beside,
        )
        link_atomically(beside, out_file)  # last: no encoder without its report
    finally:
        beside.unlink(missing_ok=True)
    say_verdict([*lines(report), *signed(folder, key), f"repaired encoder: {out_file}", f"report: {written}"])
    raise typer.Exit(EXIT[report.after.verdict])
