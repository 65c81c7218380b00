"""The command that makes bags: what audits find in encoders that are known to be clean."""

from collections.abc import Callable
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
    from sapper.audit.budgets import budget as budget_of

    chosen = budget_of(budget)
    opening = check_first(uris, images, data_root, device, said, download=download)
    run, bars = begin(device, threads, seed)
    from sapper.audit import auditing, calibration
    from sapper.engine.environment import environment
    from sapper.experiment.precision import of_searching

    shown: dict[int, Any] = {}

    def opened(uri: str) -> tuple[Any, Any]:
        """An encoder and the images in its size."""
        subject = open_encoder(uri, run, opening)
        side = subject.card.input_size
        if side not in shown:
            shown[side] = load_images(images, split, side, data_root, download=download)
        return subject, shown[side]

    found: list[dict[str, float | None]] = []
    gathered: list[dict[str, float | None]] = []
    with bars as progress:
        run = replace(run, progress=progress)
        weights, key = _of_one_kind(uris, opened, chosen)  # all of them, before hours are spent on the first
        run = of_searching(opened(uris[0])[0], run)
        with run.progress.bar("known-clean encoders", len(uris)) as bar:
            for uri, digest in zip(uris, weights):
                subject, own = opened(uri)
                if auditing.fingerprint(subject) != digest:
                    what, remedy = "its weights changed while others were measured", "name files that stay as they are"
                    raise SapperError(what, where=uri, remedy=remedy)
                verdicts = auditing.scores(subject, own, chosen.make(), run.child(digest))
                found.append({name: verdict.score for name, verdict in verdicts.items()})
                effects = {
                    name: auditing.effect(subject, verdict, own, run.child(digest))
                    for name, verdict in verdicts.items()
                }
                gathered.append({name: each.gathered if each else None for name, each in effects.items()})
                bar.advance()
    (some,) = shown.values()
    bag = calibration.Bag(
        name=out_file.stem,
        key=key,
        pretraining=pretraining,
        images=f"{some.name} {some.split}",
        scores={name: [scores[name] for scores in found] for name in chosen.detectors},
        gathered={name: [shares[name] for shares in gathered] for name in chosen.detectors},
        made=environment(run),
    )
    calibration.write_bag(bag, out_file)
    least = 1 / (len(uris) + 1)
    few = calibration.fewest(calibration.BOUND)
    more = f"; an audit at {calibration.BOUND:.0%} takes {few} or more" if len(uris) < few else ""
    say(f"{len(uris)} known-clean encoders; the smallest p-value beside them is {least:.3g}{more}: {out_file}")


def _of_one_kind(uris: list[str], opened: Callable[[str], tuple[Any, Any]], budget: Any) -> tuple[list[str], Any]:
    """Every encoder's fingerprint, and the key that they share. Raises ``SapperError`` for copies and other kinds."""
    from sapper.audit import auditing, calibration

    seen: dict[str, str] = {}
    key: Any = None
    for uri in uris:
        subject, images = opened(uri)
        auditing.check_images(subject, images)
        weights, here = auditing.fingerprint(subject), calibration.Key.of(subject, images, budget)
        if weights in seen:
            what = f"these are the weights of {seen[weights]}"
            raise SapperError(what, where=uri, remedy="name each encoder once: copies tell nothing")
        if key is not None and here != key:
            what = f"it has other {', '.join(key.differs(here))} than {uris[0]}"
            raise SapperError(what, where=uri, remedy="make a bag of each kind")
        seen[weights], key = uri, here
    return list(seen), key


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
