"""The command line: the only room that prints. torch is imported only by commands that compute."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sapper import __version__
from sapper.errors import SapperError, closest

app = typer.Typer(
    help="Lays, finds and clears backdoors in pre-trained encoders, and measures all three honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)

Out = Annotated[Path | None, typer.Option("--out", help="Folder for results.json and report.html [runs/NAME].")]
StoreOption = Annotated[
    Path | None,
    typer.Option("--store", envvar="SAPPER_STORE", help="Folder of finished stages [store below --out]."),
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", envvar="SAPPER_DATA", help="Folder of the real data sets.")
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch data sets that are missing.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key, e.g. attack.epochs=50. Can be repeated.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: as many as cores.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def root(
    # ``main`` looks for --debug itself, because it must know it even when typer fails; here it is for --help.
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one that comes with sapper.")],
    out_folder: Out = None,
    store: StoreOption = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Run a scenario: pre-train, attack, build classifiers, measure, report.

    Interrupted, the same command goes on where it stopped.
    """
    _run(_scenario_file(scenario), out_folder, store, overrides or [], data_root, download, device, threads)


@app.command()
def demo(
    out_folder: Out = None,
    store: StoreOption = None,
    overrides: Overrides = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """The whole story on embedded data, in minutes: one encoder, three tasks, one backdoor for all of them."""
    _run(_scenario_file("demo"), out_folder, store, overrides or [], None, False, device, threads)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A folder with results.json.")]) -> None:
    """Write report.html anew from results.json, and print the table."""
    from sapper.lab.results import read_results
    from sapper.report import write_report

    results = read_results(folder)
    path = (folder if folder.is_dir() else folder.parent) / "report.html"
    write_report(results, path)
    _print_results(results)
    out.print(f"report: {path}", soft_wrap=True, highlight=False)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Only this one, with its description.")] = None,
) -> None:
    """What there is: data sets, pre-training, attacks, heads, triggers, with parameters, defaults and sources."""
    from sapper import attacks, datasets, downstream, pretraining
    from sapper.lab.scenario import TRIGGERS
    from sapper.methods import find, known

    kinds = {"pretraining": pretraining.METHODS, "attacks": attacks.METHODS, "heads": downstream.HEADS}
    found: dict[str, Callable[[], None]] = {}
    for kind, table in kinds.items():
        for method in known(kind, table):
            found[method] = _method_printer(kind, method, find(kind, table, method, "methods"))
    for trigger, cls in TRIGGERS.items():
        found[trigger] = _method_printer("triggers", trigger, cls)
    for info in datasets.describe():
        found[info.name] = _dataset_printer(info)
    if name is not None and name not in found:
        raise SapperError(f"there is no {name!r}", where="sapper methods", remedy=closest(name, list(found)))
    for show in [found[name]] if name is not None else found.values():
        show()


def _method_printer(kind: str, name: str, cls: type) -> Callable[[], None]:
    from sapper.methods import parameters

    def show() -> None:
        source = getattr(cls, "source", "")
        out.print(f"[bold]{name}[/bold]  [dim]{kind}{' · ' + escape(source) if source else ''}[/dim]")
        out.print(f"  {escape((cls.__doc__ or '').strip().splitlines()[0])}")
        for parameter in parameters(cls):
            out.print(f"    {parameter.name} = {escape(parameter.default)}", highlight=False)
        for preset, values in getattr(cls, "presets", {}).items():
            text = ", ".join(f"{key} = {value!r}" for key, value in values.items()) or "the defaults"
            out.print(f'    preset = "{preset}": {escape(text)}', highlight=False)
        out.print()

    return show


def _dataset_printer(info: Any) -> Callable[[], None]:
    def show() -> None:
        out.print(f"[bold]{info.name}[/bold]  [dim]data set · {info.kind}[/dim]")
        out.print(f"  {info.classes} classes, splits {', '.join(info.splits)}. {escape(str(info.source))}")
        if info.note:
            out.print(f"  {escape(info.note)}")
        out.print()

    return show


def _scenario_file(name: str) -> Path:
    """The file itself, or the shipped scenario of that name."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    here = Path(__file__).parent
    shipped = {
        p.stem: p for folder in (here / "scenarios", here.parents[1] / "scenarios") for p in folder.glob("*.toml")
    }
    if name not in shipped:
        raise SapperError(f"no scenario {name!r}", where="scenario", remedy=closest(name, sorted(shipped)))
    return shipped[name]


def _run(
    file: Path,
    folder: Path | None,
    store: Path | None,
    overrides: list[str],
    data_root: Path | None,
    download: bool,
    device: str,
    threads: int,
) -> None:
    import torch

    from sapper.files import write_atomically
    from sapper.lab.results import write_results
    from sapper.lab.runner import Lab, run_scenario
    from sapper.lab.scenario import read
    from sapper.lab.store import Store
    from sapper.progress import progress
    from sapper.report import write_report
    from sapper.run import Run, fast_dtype

    scenario = read(file, tuple(overrides))
    folder = folder or Path("runs") / scenario.name
    # Whether results can be written is found out before the work, not after it.
    write_atomically(folder / ".writable", "")
    (folder / ".writable").unlink()
    if threads:
        torch.set_num_threads(threads)
    place = _device(device)
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(scenario.precision) or fast_dtype(place)
    with progress(err) as bars:
        lab = Lab(
            store=Store(store or folder / "store"),
            out=folder,
            run=Run(device=place, dtype=precision, progress=bars),
            command=_command(file, folder, overrides),
            data_root=data_root,
            download=download,
            tell=lambda line: err.print(line, highlight=False),
        )
        results = run_scenario(scenario, lab)
    write_results(results, folder)
    write_report(results, folder / "report.html")
    _print_results(results)
    out.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SapperError(f"no device {name!r} here", where="--device", remedy="use cpu or auto") from error
    return device


def _command(file: Path, folder: Path, overrides: list[str]) -> str:
    words = ["sapper", "run", str(file) if file.suffix == ".toml" and not _is_shipped(file) else file.stem]
    for text in overrides:
        words += ["--set", text]
    return shlex.join([*words, "--out", str(folder)])


def _is_shipped(file: Path) -> bool:
    return file.resolve().parent in {Path(__file__).parent / "scenarios", Path(__file__).parents[2] / "scenarios"}


def _print_results(results: Any) -> None:
    """The summary and the table; numbers in per cent with their 95 % intervals."""
    from sapper.report.tables import METRICS, summary_rows, summary_sentences

    for sentence in summary_sentences(results):
        out.print(sentence, highlight=False)
    rows = summary_rows(results)
    table = Table(title=f"{results.scenario.get('name', '')}, in % with 95 % intervals", title_justify="left")
    for heading in ("task", "target", "head"):
        table.add_column(heading, overflow="fold")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for row in rows:
        name = escape(f"{row.head or ''}{' *' if row.primary else ''}")
        condition = "".join(f"\n{key} = {value}" for key, value in row.condition.items())
        cells = [_cell(row.estimates.get(metric)) for metric in METRICS]
        table.add_row(escape((row.task or "") + condition), escape(row.target or "–"), name, *cells)
    out.print(table)
    for flag in results.flags:
        out.print(f"note: {flag}", highlight=False, markup=False)


def _cell(estimate: Any) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None:
        return f"{100 * estimate.value:.1f}"
    return f"{100 * estimate.value:.1f}\n[dim]{100 * estimate.low:.1f}…{100 * estimate.high:.1f}[/dim]"


def main() -> None:
    """The program ``sapper``: exit code 0, or 2 with one message when something from outside cannot be used.

    An interrupt ends with 130, a closed pipe with 141, as shells have it.
    """
    try:
        app()
    except SapperError as error:
        if "--debug" in sys.argv:
            raise
        err.print(f"[bold red]error[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from here")
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
