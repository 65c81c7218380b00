"""The command that makes bags: what audits find in encoders that are known to be clean."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sapper.cli.opening import (
    WEIGHTS,
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
from sapper.cli.shared import BudgetOption, DataRoot, Device, Download, Threads, check_file, say
from sapper.errors import SapperError


@with_opening
def calibrate(
    encoders: Annotated[list[str], typer.Option("--encoders", help="A known-clean encoder, or a folder. Repeatable.")],
    images: Images,
    out_file: Annotated[Path, typer.Option("--out", help="The bag to write, a JSON file.")],
    pretraining: Annotated[
        str, typer.Option("--pretraining", help="How these encoders were trained, in words.")
    ] = "not said",
    split: Split = None,
    budget: BudgetOption = "quick",
    seed: Seed = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
    *,
    said: Said,
) -> None:
    """Make a bag: what audits find in encoders that are known to be clean, all of one architecture."""
    uris = _listed(encoders)
    check_file(out_file)
    for option, text in (("--out", out_file.stem), ("--pretraining", pretraining), ("--images", images)):
        if not text.isprintable() or (option == "--out" and "\\" in text):
            raise SapperError(f"a bag cannot name {text!r}", where=option, remedy="use printable characters")
    from sapper.defenses.budgets import budget as budget_of

    budget_of(budget)
    opening = check_first(uris, images, data_root, device, said, download=download)
    run, bars = begin(device, threads, seed)
    from sapper import api
    from sapper.audits import calibration
    from sapper.conformal import fewest

    sides: dict[int, Any] = {}

    def own_images(side: int) -> Any:
        if side not in sides:
            sides[side] = load_images(images, split, side, data_root, download=download)
        return sides[side]

    with bars as progress:
        bag = api.calibrate(
            uris,
            own_images,
            name=out_file.stem,
            budget=budget,
            pretraining=pretraining,
            opener=lambda uri: open_encoder(uri, run, opening),
            surroundings=replace(run, progress=progress),
        )
    calibration.write_bag(bag, out_file)
    least = 1 / (len(uris) + 1)
    few = fewest(calibration.BOUND)
    more = f"; an audit at {calibration.BOUND:.0%} takes {few} or more" if len(uris) < few else ""
    say(f"{len(uris)} known-clean encoders; the smallest p-value beside them is {least:.3g}{more}: {out_file}")


def _listed(names: list[str]) -> list[str]:
    """Encoders by name; a folder stands for the files of weights in it."""
    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS and file.is_file())
            if not files:
                remedy = f"put files of weights there ({', '.join(WEIGHTS)})"
                raise SapperError("there is no encoder in it", where=name, remedy=remedy)
            found += [str(file) for file in files]
        else:
            found.append(name)
    return found
