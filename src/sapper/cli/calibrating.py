"""The command that makes bags: what audits find in encoders that are known to be clean."""

import re
import shlex
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
    said_in,
    with_opening,
)
from sapper.cli.shared import (
    BudgetOption,
    DataRoot,
    Device,
    Download,
    Threads,
    check_file,
    err,
    say,
    telling_interrupts,
)
from sapper.encoders.names import is_code, kind_of
from sapper.encoders.options import Opening
from sapper.errors import SapperError, located, printable
from sapper.files import read_text, shipped_file


@with_opening
def calibrate(
    images: Images,
    out_file: Annotated[Path, typer.Option("--out", help="The bag to write, a JSON file.")],
    encoders: Annotated[
        list[str] | None, typer.Option("--encoders", help="A known-clean encoder, or a folder. Repeatable.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", help="A list of public models: resnet50, vit_b_16, clip_vit_b_16, a file.")
    ] = None,
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
    """Make a bag: what audits find in encoders that are known to be clean, all of one architecture.

    Of a list of public models, those that cannot be had or are of another kind are told and left out. Interrupted, the
    same command goes on.
    """
    if (encoders is None) == (models is None):
        remedy = "name encoders with --encoders, or a list of public models with --models"
        raise SapperError("which encoders are known to be clean?", where="--encoders", remedy=remedy)
    check_file(out_file)
    for option, text in (("--out", out_file.stem), ("--pretraining", pretraining), ("--images", images)):
        if not text.isprintable() or (option == "--out" and "\\" in text):
            raise SapperError(f"a bag cannot name {text!r}", where=option, remedy="use printable characters")
    from sapper.defenses.budgets import budget as budget_of

    budget_of(budget)
    named = {uri: said.opening() for uri in _once(_listed(encoders))} if encoders else {}
    openings = named or _of_list(models or "", said)
    check_first(list(named), images, data_root, device, said, download=download)
    run, bars = begin(device, threads, seed)
    from sapper import api
    from sapper.audits import calibration
    from sapper.conformal import fewest

    sides: dict[int, Any] = {}

    def own_images(side: int) -> Any:
        if side not in sides:
            sides[side] = load_images(images, split, side, data_root, download=download)
        return sides[side]

    def opened(uri: str) -> Any:
        kind_of(uri, trust_code=openings[uri].trust_code)
        return open_encoder(uri, run, openings[uri])

    kept = out_file.with_name(f"{out_file.name}.part")
    with telling_interrupts("interrupted; the same command goes on from here"), bars as progress:
        bag = api.calibrate(
            list(openings),
            own_images,
            name=out_file.stem,
            budget=budget,
            pretraining=pretraining,
            opener=opened,
            lenient=models is not None,
            kept=kept,
            tell=lambda line: err.print(printable(line), markup=False, soft_wrap=True),
            surroundings=replace(run, progress=progress),
        )
    calibration.write_bag(bag, out_file)
    kept.unlink(missing_ok=True)
    least = 1 / (bag.size + 1)
    few = fewest(calibration.BOUND)
    more = f"; an audit at {calibration.BOUND:.0%} takes {few} or more" if bag.size < few else ""
    say(f"{bag.size} known-clean encoders; the smallest p-value beside them is {least:.3g}{more}: {out_file}")


def _of_list(name: str, said: Said) -> dict[str, Opening]:
    """The encoders of a list of public models, and how each is to be opened: one a line, with options and a source.

    Raises ``SapperError`` naming the line for what is none, for a name that is there twice, and for code: what a list
    names is fetched, and never run.
    """
    path = shipped_file(name, "zoos/public", "list", ".txt")
    found: dict[str, Opening] = {}
    for number, line in enumerate(read_text(path, "name a list of models").splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            words = shlex.split(re.sub(r"(^|\s)#.*", "", line))
        except ValueError as error:
            raise SapperError(str(error), where=where, remedy="close the quotation") from error
        if not words:
            continue
        if words[0] in found:
            raise SapperError(f"{words[0]} is there twice", where=where, remedy="name each model once")
        own = said_in(words[1:], said, where)
        if is_code(words[0]) or (own.arch is not None and own.arch != said.arch and is_code(own.arch)):
            what, remedy = "a list of models names code", "name your own code with --arch, or with --encoders"
            raise SapperError(what, where=where, remedy=remedy)
        with located(where):
            found[words[0]] = own.opening()
    if not found:
        remedy = "write one a line, as timm:resnet50.a1_in1k"
        raise SapperError("there is no model in it", where=str(path), remedy=remedy)
    return found


def _once(uris: list[str]) -> list[str]:
    """The same. Raises ``SapperError`` for one that is there twice."""
    for at, uri in enumerate(uris):
        if uri in uris[:at]:
            raise SapperError("this encoder is named twice", where=uri, remedy="name each once: copies tell nothing")
    return uris


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
