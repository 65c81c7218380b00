"""Commands for one encoder: audit it, replay what was found, and calibrate audits on encoders that are known."""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sapper import process
from sapper.cli.shared import (
    BudgetOption,
    DataRoot,
    Device,
    Download,
    Threads,
    check_writable,
    device_of,
    err,
    printable,
    say,
)
from sapper.errors import SapperError

EXIT = {"no-evidence": 0, "backdoor": 1, "undecided": 3}
"""How an audit ends; 2 is for everything that could not be done."""

REPLAY = "replay.json"
"""Beside ``audit.json``: what the last replay measured."""

LEFT = ("audit.html", "audit.sarif", "audit.cdx.json", "triggers.safetensors", "audit.json", REPLAY)
"""What audits and replays leave; ``audit.json`` after the others, for which it vouches."""

EncoderArgument = Annotated[
    str, typer.Argument(help="A file, timm:NAME, torchvision:NAME, open_clip:NAME/TAG, hf-hub:ORG/MODEL@REVISION …")
]
Images = Annotated[
    str, typer.Option("--images", help="Ordinary images, without labels: a folder, a file, or a data set's name.")
]
Split = Annotated[str | None, typer.Option("--split", help="Of a data set with splits [test].")]
Arch = Annotated[str | None, typer.Option("--arch", help="The architecture, where a file of weights does not tell it.")]
Mean = Annotated[str | None, typer.Option("--mean", help="Three numbers with commas, for images in [0, 1].")]
Std = Annotated[str | None, typer.Option("--std", help="Three numbers with commas.")]
Size = Annotated[int | None, typer.Option("--size", min=1, help="Side of the images in pixels.")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Run package.module:factory, your own code.")]
WeakSandbox = Annotated[
    bool, typer.Option("--allow-weak-sandbox", help="Read pickles even where system calls cannot be filtered.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the search for triggers.")]
BagOption = Annotated[
    list[Path] | None,
    typer.Option("--bag", help="A bag of known-clean encoders, instead of those of sapper. Repeatable."),
]


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
    mntd: Annotated[
        Path | None, typer.Option("--mntd", help="Meta-classifiers of sapper zoo learn, as a further opinion.")
    ] = None,
    fail_on: Annotated[
        str, typer.Option("--fail-on", help="backdoor: an undecided audit ends with 0; undecided: with 3.")
    ] = "undecided",
    arch: Arch = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    trust_code: TrustCode = False,
    allow_weak_sandbox: WeakSandbox = False,
    seed: Seed = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Is this encoder safe to build on? Ends with 0: no evidence, 1: evidence of a backdoor, 2: not done, 3: undecided.

    Leaves audit.html, audit.json, audit.sarif, audit.cdx.json, and the recovered triggers.
    """
    if fail_on not in ("backdoor", "undecided"):
        raise SapperError(f"{fail_on!r} is no verdict", where="--fail-on", remedy="use backdoor or undecided")
    if not 0 < bound < 1:
        raise SapperError(f"{bound:g} is no share", where="--false-alarms", remedy="give one between 0 and 1")
    folder = out_folder or Path("runs") / "audit"
    check_writable(folder)
    _remove_earlier(folder)
    run, bars = _begin(device, threads, seed)
    import safetensors.torch

    from sapper.audit import auditing, calibration, replaying, stored
    from sapper.audit.budgets import budget as budget_of
    from sapper.files import write_atomically
    from sapper.lab.environment import environment
    from sapper.report import audit as page
    from sapper.report import cyclonedx, sarif

    chosen = budget_of(budget)
    more = {stored.NAME: stored.load(mntd)} if mntd else {}
    known = [calibration.read_bag(path) for path in bags] if bags else calibration.shipped_bags()
    with bars as progress:
        run = _with(run, progress)
        subject = _open(encoder, run, arch, mean, std, size, trust_code=trust_code, weak=allow_weak_sandbox)
        shown = _images(images, split, subject.card.input_size, data_root, download=download)
        for judge in more.values():
            judge.check(subject)
        origin = None
        if base is not None:
            alike = (arch, mean, std, size) if Path(base).exists() else (None, None, None, None)
            origin = _open(base, run, *alike, trust_code=trust_code, weak=allow_weak_sandbox)
        report = auditing.audit(subject, shown, chosen, known, run, bound=bound, base=origin, more=more)
    command, around = shlex.join(["sapper", *sys.argv[1:]]), environment(run)
    triggers = safetensors.torch.save(auditing.trigger_tensors(report))
    options = {"arch": arch, "mean": mean, "std": std, "size": size}
    content = auditing.as_json(report) | {
        "environment": around,
        "command": command,
        "opening": {"uri": encoder} | {key: value for key, value in options.items() if value is not None},
        "triggers": {"file": replaying.TRIGGERS, "sha256": hashlib.sha256(triggers).hexdigest()},
    }
    contents: list[str | bytes] = [
        page.render(report, around, command),
        _json(sarif.render(report)),
        _json(cyclonedx.render(report)),
        triggers,
        _json(content),
    ]
    for name, written in zip(LEFT, contents):
        write_atomically(folder / name, written)
    for line in page.lines(report):
        say(line)
    say(f"report: {folder / 'audit.html'}")
    code = EXIT[report.verdict]
    raise typer.Exit(0 if code == 3 and fail_on == "backdoor" else code)


def replay(
    recorded: Annotated[Path, typer.Argument(help="The audit.json of an audit.")],
    images: Images,
    split: Split = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="Another place or encoder than the audit's.")] = None,
    trust_code: TrustCode = False,
    allow_weak_sandbox: WeakSandbox = False,
    seed: Seed = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Stamp an audit's recovered triggers on other images, and measure again what they do."""
    run, bars = _begin(device, threads, seed)
    from sapper.audit import auditing, replaying
    from sapper.files import write_atomically
    from sapper.report import audit as page

    found = replaying.read_audit(recorded)
    opening: dict[str, Any] = {"arch": None, "mean": None, "std": None, "size": None}
    opening |= {} if encoder else found.content["opening"]
    uri = encoder or opening["uri"]
    opening.pop("uri", None)
    if encoder is None and Path(uri).suffix in WEIGHTS and not Path(uri).exists():
        remedy = "name its place with --encoder, or run this where the audit was run"
        raise SapperError("the audited encoder is not there", where=uri, remedy=remedy)
    with bars as progress:
        run = _with(run, progress)
        subject = _open(uri, run, **opening, trust_code=trust_code, weak=allow_weak_sandbox)
        wanted, here = found.content["encoder"].get("sha256"), subject.card.origin.get("sha256")
        if encoder is None and wanted != here:
            what, remedy = "this is not the file that was audited", "name the file with --encoder if that is meant"
            raise SapperError(what, where=uri, remedy=remedy)
        shown = _images(images, split, subject.card.input_size, data_root, download=download)
        replays = replaying.replay(found, subject, shown, run)
    path = recorded.parent / REPLAY
    content = {
        "schema": 1,
        "audit": found.content["encoder"].get("sha256"),
        "encoder": auditing.about(subject),
        "images": auditing.about_images(shown),
        "seed": seed,
        "command": shlex.join(["sapper", *sys.argv[1:]]),
        "replays": replaying.as_json(replays),
    }
    write_atomically(path, _json(content))
    if shown.digest == found.content["images"].get("sha256"):
        say("note: these are the images that the trigger was found with; others would be better evidence")
    for line in page.replay_lines(replays, found.in_clean):
        say(line)
    say(f"measured: {path}")


def calibrate(
    encoders: Annotated[list[str], typer.Option("--encoders", help="A known-clean encoder, or a folder. Repeatable.")],
    images: Images,
    out_file: Annotated[Path, typer.Option("--out", help="The bag to write, a JSON file.")],
    pretraining: Annotated[str, typer.Option("--pretraining", help="How they came about, in words.")] = "not said",
    split: Split = None,
    budget: BudgetOption = "quick",
    arch: Arch = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    trust_code: TrustCode = False,
    allow_weak_sandbox: WeakSandbox = False,
    seed: Seed = 0,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Make a bag: what audits find in encoders that are known to be clean, all of one architecture."""
    uris = _listed(encoders)
    if out_file.is_dir():
        raise SapperError("this is a folder", where=str(out_file), remedy="name a file, such as bag.json")
    check_writable(out_file.parent)
    run, bars = _begin(device, threads, seed)
    from sapper.audit import auditing, calibration
    from sapper.audit.budgets import budget as budget_of
    from sapper.lab.environment import environment

    chosen = budget_of(budget)
    shown: dict[int, Any] = {}

    def opened(uri: str) -> tuple[Any, Any]:
        """An encoder and the images in its size."""
        subject = _open(uri, run, arch, mean, std, size, trust_code=trust_code, weak=allow_weak_sandbox)
        side = subject.card.input_size
        if side not in shown:
            shown[side] = _images(images, split, side, data_root, download=download)
        return subject, shown[side]

    found: list[dict[str, float | None]] = []
    gathered: list[dict[str, float | None]] = []
    with bars as progress:
        run = _with(run, progress)
        weights, key = _of_one_kind(uris, opened, chosen)  # all of them, before hours are spent on the first
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
        made={"encoders": len(uris)} | environment(run),
    )
    calibration.write_bag(bag, out_file)
    least = 1 / (len(uris) + 1)
    few = calibration.fewest(calibration.BOUND)
    more = f"; an audit at {calibration.BOUND:.0%} takes {few} or more" if len(uris) < few else ""
    say(f"{len(uris)} known-clean encoders; the smallest p-value beside them is {least:.3g}{more}: {out_file}")


def _remove_earlier(folder: Path) -> None:
    """What an earlier audit left: however this one ends, it must not leave another encoder's verdict behind."""
    for name in LEFT:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            remedy = "name another folder with --out"
            raise SapperError(f"cannot be replaced: {error}", where=str(folder / name), remedy=remedy) from error


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


def _begin(device: str, threads: int, seed: int) -> tuple[Any, Any]:
    """Settle the process, and only then load torch."""
    process.settle()
    with err.status("loading"):
        import torch

        from sapper.progress import progress
        from sapper.run import Run, fast_dtype

    place = device_of(device)
    if threads:
        torch.set_num_threads(threads)
    return Run(seed=seed, device=place, dtype=fast_dtype(place)), progress(err)


def _with(run: Any, progress: Any) -> Any:
    from dataclasses import replace

    return replace(run, progress=progress)


def _open(
    uri: str,
    run: Any,
    arch: str | None,
    mean: str | None,
    std: str | None,
    size: int | None,
    *,
    trust_code: bool,
    weak: bool,
) -> Any:
    from sapper import encoders
    from sapper.encoders.schemes import Opening

    opening = Opening(
        architecture=arch,
        size=size,
        mean=_color(mean, "--mean"),
        std=_color(std, "--std", positive=True),
        trust_code=trust_code,
        allow_weak_sandbox=weak,
    )
    with err.status(f"opening {escape(printable(uri))}"):
        return encoders.open(uri, run, opening)


def _color(text: str | None, option: str, *, positive: bool = False) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = float("nan")
    if not all(-10 <= value <= 10 and (value > 0 or not positive) for value in (red, green, blue)):
        remedy = f"write three numbers with commas, as {option} 0.485,0.456,0.406"
        raise SapperError(f"{text!r} is no color", where=option, remedy=remedy)
    return red, green, blue


def _images(name: str, split: str | None, size: int, data_root: Path | None, *, download: bool) -> Any:
    """Ordinary images of the encoder's size: the split that was named, else test, else what there is."""
    from sapper import datasets

    if split is None:
        split = "test" if name in datasets.names() or _has_test(Path(name)) else "train"
    return datasets.load(name, split, data_root=data_root, size=size, download=download)


def _has_test(path: Path) -> bool:
    from sapper.datasets.loading import find_split

    return find_split(path, "test") is not None


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


WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
