"""The command line: the only room that prints. torch is imported only by commands that compute."""

import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sapper import __version__, process
from sapper.errors import SapperError, closest

app = typer.Typer(
    help="Lays, finds and clears backdoors in pre-trained encoders, and measures all three honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Console(Console):
    """Ends as shells have it when nobody reads on, as in ``sapper methods | head``."""

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(128 + signal.SIGPIPE) from None


out, err = _Console(highlight=False), _Console(stderr=True, highlight=False)

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
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Processes that train a fleet; 0: as many as threads.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def root(
    # ``main`` takes --debug out wherever it stands, because every command knows it; here it is for --help.
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
    workers: WorkersOption = 0,
) -> None:
    """Run a scenario: pre-train, attack, build classifiers, measure, report.

    Interrupted, the same command goes on where it stopped.
    """
    _run(_scenario_file(scenario), out_folder, store, overrides or [], data_root, download, device, threads, workers)


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
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with results.json.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown, for a page.")] = False,
) -> None:
    """Write report.html anew from results.json, and print the table."""
    from sapper.lab.results import read_results
    from sapper.report import markdown as page
    from sapper.report import write_report

    results = read_results(folder)
    if markdown:
        _say(page.render(results))
        return
    path = (folder if folder.is_dir() else folder.parent) / "report.html"
    write_report(results, path)
    _print_results(results)
    _say(f"report: {path}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Only this one, with its description.")] = None,
) -> None:
    """What there is: data sets, methods of every kind and triggers, with parameters, defaults and sources."""
    from sapper import attacks, datasets, defenses, downstream, pretraining
    from sapper.lab.scenario import TRIGGERS
    from sapper.methods import find, known

    kinds = {
        "pretraining": pretraining.METHODS,
        "attacks": attacks.METHODS,
        "heads": downstream.HEADS,
        "defenses": defenses.METHODS,
    }
    found: dict[str, Callable[[], None]] = {}
    for kind, table in kinds.items():
        for method in known(kind, table):
            found[method] = _method_printer(kind, method, find(kind, table, method, "methods"), whole=name is not None)
    for trigger, cls in TRIGGERS.items():
        found[trigger] = _method_printer("triggers", trigger, cls, whole=name is not None)
    for info in datasets.describe():
        found[info.name] = _dataset_printer(info)
    if name is not None and name not in found:
        raise SapperError(f"there is no {name!r}", where="sapper methods", remedy=closest(name, list(found)))
    for show in [found[name]] if name is not None else found.values():
        show()


zoo = typer.Typer(help="Many small encoders, clean and backdoored, to measure detectors by.", no_args_is_help=True)
app.add_typer(zoo, name="zoo")


@zoo.command()
def build(
    plan: Annotated[str, typer.Argument(help="A plan's file, or the name of one that comes with sapper.")],
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for the zoo [zoos/NAME].")] = None,
    parts: Annotated[list[str] | None, typer.Option("--part", help="Only this part. Can be repeated.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    workers: WorkersOption = 0,
) -> None:
    """Make the encoders of a zoo; those that are there already are kept."""
    process.settle()  # before torch is loaded
    with err.status("loading"):
        import torch

        from sapper.lab import zoo as zoos
        from sapper.lab.executors import Workers
        from sapper.progress import progress
        from sapper.run import Run, fast_dtype

    read = zoos.read_plan(_shipped_file(plan, "zoos", "plan"))
    place, folder = _device(device), out_folder or Path("zoos") / read.name
    _check_writable(folder)
    crew = Workers(workers or torch.get_num_threads(), process.settle)
    torch.set_num_threads(1)  # as in the workers, whose stages these are
    try:
        with progress(err) as bars:
            run = Run(seed=read.seed, device=place, dtype=fast_dtype(place), progress=bars)
            pantry = zoos.Pantry.load(read, run, data_root=data_root, download=download)
            members = zoos.build(read, folder, run, crew, parts=parts or (), data=pantry)
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from here")
        raise
    _say(f"{zoos.summary(members)}: {folder / zoos.MANIFEST}")


def _method_printer(kind: str, name: str, cls: type, *, whole: bool) -> Callable[[], None]:
    """Prints a method with its parameters; its first line of documentation, or the ``whole`` and that of its file."""
    from sapper.methods import parameters

    def show() -> None:
        source = getattr(cls, "source", "")
        out.print(f"[bold]{name}[/bold]  [dim]{kind}{' · ' + escape(source) if source else ''}[/dim]")
        text = cleandoc(cls.__doc__ or "")
        if whole and kind in OF_A_FILE:
            text = f"{cleandoc(sys.modules[cls.__module__].__doc__ or '')}\n\n{text}"
        out.print(Padding.indent(Text(_flowing(text) if whole else text.partition("\n\n")[0]), 2))
        for parameter in parameters(cls):
            out.print(f"    {parameter.name} = {escape(parameter.default)}")
        for preset, values in getattr(cls, "presets", {}).items():
            text = ", ".join(f"{key} = {value!r}" for key, value in values.items()) or "the defaults"
            out.print(Padding.indent(Text(f'preset = "{preset}": {text}'), 4))
        out.print()

    return show


OF_A_FILE = ("pretraining", "attacks", "defenses")
"""Kinds whose methods have a file each, with threat model, objective and source in its documentation."""


def _flowing(text: str) -> str:
    """Paragraphs as one line each, for the terminal to break; formulas and tables, which are indented, as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if "\n " in f"\n{part}" else part.replace("\n", " ") for part in paragraphs)


def _dataset_printer(info: Any) -> Callable[[], None]:
    def show() -> None:
        out.print(f"[bold]{info.name}[/bold]  [dim]data set · {info.kind}[/dim]")
        out.print(Padding.indent(Text(f"{info.classes} classes, splits {', '.join(info.splits)}. {info.source}"), 2))
        if info.note:
            out.print(Padding.indent(Text(info.note), 2))
        out.print()

    return show


def _scenario_file(name: str) -> Path:
    """The file itself, or the shipped scenario of that name."""
    return _shipped_file(name, "scenarios", "scenario")


def _shipped_file(name: str, folder: str, kind: str) -> Path:
    """The file itself, or the one of that name among those that come with sapper, of a ``kind`` in a ``folder``."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for place in _SHIPPED for file in sorted((place / folder).glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    what = "there is no such file" if path.suffix == ".toml" else f"no {kind} is called {name!r}"
    remedy = f"{closest(path.stem, list(shipped))} (those come with sapper), or the path of a TOML file"
    raise SapperError(what, where=name, remedy=remedy)


_SHIPPED = (Path(__file__).parent, Path(__file__).parents[2])
"""Where folders of scenarios and zoos lie when sapper is installed, and in a checkout."""


def _run(
    file: Path,
    folder: Path | None,
    store: Path | None,
    overrides: list[str],
    data_root: Path | None,
    download: bool,
    device: str,
    threads: int,
    workers: int = 0,
) -> None:
    process.settle()  # before torch is loaded
    with err.status("loading"):
        import torch

        from sapper.lab.executors import Workers
        from sapper.lab.results import write_results
        from sapper.lab.runner import run_scenario
        from sapper.lab.scenario import read
        from sapper.lab.store import Store
        from sapper.lab.trial import Lab
        from sapper.progress import progress
        from sapper.report import write_report
        from sapper.run import Run, fast_dtype

    scenario = read(file, tuple(overrides))
    place = _device(device)
    folder = folder or Path("runs") / scenario.name
    _check_writable(folder)
    if threads:
        torch.set_num_threads(threads)
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(scenario.precision) or fast_dtype(place)
    options = {
        "--data-root": data_root,
        "--device": device if device != "auto" else None,
        "--threads": threads or None,
        "--workers": workers or None,
        "--store": store,
    }
    try:
        with progress(err) as bars:
            lab = Lab(
                store=Store(store or folder / "store"),
                out=folder,
                run=Run(device=place, dtype=precision, progress=bars),
                command=_command(file, folder, overrides, options, download=download),
                data_root=data_root,
                workers=Workers(workers or torch.get_num_threads(), process.settle),
                download=download,
                tell=lambda line: err.print(line, markup=False),
            )
            results = run_scenario(scenario, lab)
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from here")
        raise
    write_results(results, folder)
    write_report(results, folder / "report.html")
    _print_results(results)
    _say(f"report: {folder / 'report.html'}")


def _check_writable(folder: Path) -> None:
    """Find out before the work, not after it, whether results can be written."""
    from sapper.files import write_atomically

    trial = folder / ".writable"
    try:
        write_atomically(trial, "")
    except SapperError as error:
        raise SapperError(error.what, where=str(folder), remedy="name another folder with --out") from error
    trial.unlink()


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type in ("cpu", "cuda"):
            torch.empty(1, device=device)
            return device
    except (RuntimeError, AssertionError):
        pass
    raise SapperError(f"no device {name!r} here", where="--device", remedy="use cpu or auto")


def _command(file: Path, folder: Path, overrides: list[str], options: dict[str, Any], *, download: bool) -> str:
    """What to type to run the same again."""
    words = ["sapper", "run", file.stem if file.resolve().parent.parent in _SHIPPED else str(file)]
    for text in overrides:
        words += ["--set", text]
    for option, value in options.items():
        words += [option, str(value)] if value is not None else []
    return shlex.join([*words, *(["--download"] if download else []), "--out", str(folder)])


def _say(line: str) -> None:
    """One line as it is, of any length: a path can then be copied."""
    out.print(line, markup=False, soft_wrap=True)


def _print_results(results: Any) -> None:
    """The summary, then for each task and target a table: metrics by heads, the primary one first."""
    from sapper.report import defenses
    from sapper.report.tables import aim, interval_note, summary_rows, summary_sentences

    for sentence in summary_sentences(results):
        out.print(sentence, markup=False)
    rows = summary_rows(results)
    note = interval_note(estimate for row in rows for estimate in row.estimates.values())
    title = f"{results.scenario.get('name', 'results')}: in %, with 95 % intervals ({note}); * marks the primary head"
    out.print(f"\n{title}\n", style="dim", markup=False)
    for place in dict.fromkeys((row.task, row.target) for row in rows):
        out.print(aim(*place), style="bold", markup=False)
        for table in _tables([row for row in rows if (row.task, row.target) == place]):
            out.print(table, "")
    for sentence in defenses.sentences(results):
        out.print(sentence, markup=False)
    for flag in results.flags:
        out.print(f"note: {flag}", markup=False)


NAME, CELL, GAP = 12, 19, 2
"""Widths in the tables: a metric's name, a usual cell (``+94.9  +93.1…+96.2``), and the space before each column."""


def _tables(rows: list[Any]) -> Iterator[Table]:
    """The rows of one task and target as columns, as many side by side as the terminal is wide: nothing is cut."""
    from sapper.report.tables import LABELS, METRICS

    cells = [{metric: _cell(row.estimates.get(metric)) for metric in METRICS} for row in rows]
    width = max(CELL, *(len(cell) for column in cells for cell in column.values()))
    many = max(1, (out.width - NAME) // (GAP + width))
    for start in range(0, len(rows), many):
        some = slice(start, start + many)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, GAP - 1), pad_edge=False, show_edge=False)
        table.add_column("", min_width=NAME)
        for row in rows[some]:
            table.add_column(_heading(row), max_width=width, overflow="fold")
        for metric in METRICS:
            if any(metric in row.estimates for row in rows[some]):
                table.add_row(LABELS.get(metric, metric), *(column[metric] for column in cells[some]))
        yield table


def _heading(row: Any) -> Text:
    lines = [f"{row.head or ''}{' *' if row.primary else ''}"]
    return Text("\n".join(lines + [f"{key} = {value}" for key, value in row.condition.items()]))


def _cell(estimate: Any) -> Text:
    if estimate is None:
        return Text("    –")
    return Text(f"{estimate.number:>5}  ") + Text(estimate.span, style="dim")


def main() -> None:
    """The program ``sapper``: exit code 0, or 2 with one message when something from outside cannot be used.

    An interrupt ends with 130, a closed pipe with 141, as shells have it.
    """
    try:
        app([word for word in sys.argv[1:] if word != "--debug"])
    except SapperError as error:
        _end(error)
    except (MemoryError, RuntimeError) as error:
        # torch's own kinds: OutOfMemoryError on an accelerator, a plain RuntimeError on the CPU
        if not isinstance(error, MemoryError) and not re.search("out of memory|not enough memory", str(error)):
            raise
        remedy = "take a smaller batch, a narrower encoder or fewer images; finished stages and epochs are kept"
        _end(SapperError("the memory is not enough", remedy=remedy))


def _end(error: SapperError) -> NoReturn:
    """Tell what is wrong, and stop."""
    if "--debug" in sys.argv:
        traceback.print_exc()
    err.print(f"[bold red]error[/bold red] {escape(str(error))}", soft_wrap=True)
    sys.exit(2)
