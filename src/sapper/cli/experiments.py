"""Commands for experiments: run a scenario, the demo, a report anew."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from sapper import datasets, process
from sapper.cli.shared import (
    GOES_ON,
    DataRoot,
    Device,
    Download,
    ExecutorName,
    ExecutorOption,
    Jobs,
    Overrides,
    RayAddress,
    StoreOption,
    Threads,
    check_device,
    check_writable,
    device_of,
    err,
    out,
    say,
    telling_interrupts,
)
from sapper.errors import SapperError
from sapper.files import SHIPPED, shipped_file

if TYPE_CHECKING:
    import torch

    from sapper.engine.cluster import Ray
    from sapper.engine.executors import Executor

Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for results.json and report.html, runs/NAME by default.")
]


@dataclass(frozen=True)
class Machines:
    """Where stages are made: in how many processes of this machine, or on a Ray cluster."""

    jobs: int = 0
    executor: ExecutorName = ExecutorName.LOCAL
    ray_address: str | None = None

    @property
    def several(self) -> bool:
        """Whether stages share a machine's cores."""
        return self.jobs > 0 or self.executor is ExecutorName.RAY

    def check(self) -> None:
        """Raises ``SapperError`` for options that do not go together, and for a missing package."""
        if process.launched() > 1 and self.several:
            what, remedy = "torchrun has started the processes that share the work", "leave it out"
            raise SapperError(
                what, where="--executor" if self.executor is ExecutorName.RAY else "--jobs", remedy=remedy
            )
        if self.executor is not ExecutorName.RAY:
            if self.ray_address is not None:
                what, remedy = "it is for --executor ray", "add that, or leave it out"
                raise SapperError(what, where="--ray-address", remedy=remedy)
        elif self.jobs:
            what, remedy = "a Ray cluster uses all cores that it has", "leave it out, or say --threads"
            raise SapperError(what, where="--jobs", remedy=remedy)
        elif find_spec("ray") is None:
            raise SapperError("Ray is not installed", where="--executor", remedy="pip install 'sapper[ray]'")

    def cluster(self) -> "Ray | None":
        """The executor that is a cluster."""
        from sapper.engine.cluster import Ray

        return Ray(self.ray_address, process.settle) if self.executor is ExecutorName.RAY else None


ONE = Machines()


@dataclass(frozen=True)
class Crew:
    """What makes stages, and the device of this process."""

    executor: "Executor | None"
    device: "torch.device"


@contextmanager
def _crew(place: "torch.device", machines: Machines) -> Iterator[Crew | None]:
    """Who works; none in a process that ``torchrun`` has started to help the first one, once there is no more to do."""
    if process.launched() == 1:
        yield Crew(machines.cluster(), place)
        return
    from sapper.engine.together import Together, dismiss, first, help_along, joined

    with joined(place) as own:
        if not first():
            help_along(own)
            yield None
            return
        yield Crew(Together(), own)
        dismiss()  # after an error torchrun ends the others


def run(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one that comes with sapper.")],
    out_folder: Out = None,
    store: StoreOption = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = 0,
    jobs: Jobs = 0,
    executor: ExecutorOption = ExecutorName.LOCAL,
    ray_address: RayAddress = None,
) -> None:
    """Run a scenario: pre-train, attack, build classifiers, measure, report.

    Interrupted, the same command goes on where it stopped.
    """
    where = Machines(jobs, executor, ray_address)
    _run(_scenario_file(scenario), out_folder, store, overrides or [], data_root, download, device, threads, where)


def demo(
    out_folder: Out = None,
    store: StoreOption = None,
    overrides: Overrides = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Lay a backdoor and find it, on embedded data, in minutes: one encoder, three tasks, two audits."""
    _run(_scenario_file("demo"), out_folder, store, overrides or [], None, False, device, threads)


def report(
    folder: Annotated[Path, typer.Argument(help="A folder with results.json.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown, for a page.")] = False,
    numbers: Annotated[
        Path | None,
        typer.Option("--numbers", help="Write the results without their pictures to this file, and no report."),
    ] = None,
) -> None:
    """Write report.html anew from results.json, and print the table."""
    from sapper.experiment.results import read_results, without_pictures
    from sapper.files import write_atomically

    results = read_results(folder)
    if numbers:
        write_atomically(numbers, without_pictures(results).to_json())
    from sapper.report import markdown as page
    from sapper.report import write_report

    if markdown:
        for line in page.render(results).split("\n"):
            say(line)
    if markdown or numbers:
        return
    path = (folder if folder.is_dir() else folder.parent) / "report.html"
    write_report(results, path)
    print_results(results)
    say(f"report: {path}")


def merge(
    folders: Annotated[list[Path], typer.Argument(help="The folders of two runs or more.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the new results.json and report.html.")],
) -> None:
    """Put runs of one scenario together that had different seeds or attacks, such as from several machines."""
    check_writable(out_folder)
    from sapper.report.merging import merge as merge_runs

    print_results(merge_runs(folders, out_folder))
    say(f"report: {out_folder / 'report.html'}")


def _scenario_file(name: str) -> Path:
    """The file itself, or the shipped scenario of that name."""
    return shipped_file(name, "scenarios", "scenario")


def _run(
    file: Path,
    folder: Path | None,
    store: str | None,
    overrides: list[str],
    data_root: Path | None,
    download: bool,
    device: str,
    threads: int,
    machines: Machines = ONE,
) -> None:
    from sapper.audits.calibration import read_bag
    from sapper.errors import located
    from sapper.scenario.outline import outline, read_content

    content = read_content(file, tuple(overrides))
    outlined = outline(content, str(file))
    check_device(device)
    folder = folder or Path("runs") / outlined.root.name
    check_writable(folder)
    if store is not None and "://" not in store:
        check_writable(Path(store), "--store")
    machines.check()
    for key, name in outlined.sets.items():
        with located(f"{file}: {key}"):
            datasets.check_there(name, data_root, download=download)
    if outlined.audit is not None:
        with located(f"{file}: audit.bags"):
            for bag in outlined.audit.bags or ():
                read_bag(Path(bag))
    process.settle()  # before torch is loaded
    with err.status("loading"):
        import torch

        from sapper.scenario.reading import parse

        scenario = parse(content, str(file))  # the methods' parameters, which only torch was needed for
        from sapper import api
        from sapper.progress import progress
        from sapper.running import Run

    place = device_of(device)
    cores = torch.get_num_threads()
    if threads or machines.several:
        torch.set_num_threads(threads or max(1, cores // max(1, machines.jobs or cores)))
    options = {
        "--data-root": data_root,
        "--device": device if device != "auto" else None,
        "--threads": threads or None,
        "--jobs": machines.jobs or None,
        "--executor": machines.executor.value if machines.executor is ExecutorName.RAY else None,
        "--ray-address": machines.ray_address,
        "--store": store,
    }
    with telling_interrupts(GOES_ON), _crew(place, machines) as crew, progress(err) as bars:
        if crew is None:
            return
        results = api.run(
            scenario,
            folder,
            store=store,
            data_root=data_root,
            download=download,
            jobs=machines.jobs,
            executor=crew.executor,
            command=_command(file, folder, overrides, options, download=download),
            tell=lambda line: err.print(line, markup=False),
            surroundings=Run(device=crew.device, progress=bars, processes=process.launched()),
        )
    print_results(results)
    say(f"report: {folder / 'report.html'}")


def _command(file: Path, folder: Path, overrides: list[str], options: dict[str, Any], *, download: bool) -> str:
    """What to type to run the same again."""
    words = ["sapper", "run", file.stem if file.resolve().parent.parent in SHIPPED else str(file)]
    for text in overrides:
        words += ["--set", text]
    for option, value in options.items():
        words += [option, str(value)] if value is not None else []
    return shlex.join([*words, *(["--download"] if download else []), "--out", str(folder)])


def print_results(results: Any) -> None:
    """The summary, then for each task and target a table: metrics by heads, the primary one first."""
    from sapper.report import audited, certified, defenses, effects, matrix, repairs, screens, sifts, targeted
    from sapper.report.means import interval_note
    from sapper.report.summaries import aim, of_attack, summary_rows, summary_sentences

    for sentence in summary_sentences(results) + targeted.sentences(results) + audited.sentences(results):
        out.print(sentence, markup=False)
    rows = summary_rows(results)
    note = interval_note(estimate for row in rows for estimate in row.estimates.values())
    title = f"{results.scenario.get('name', 'results')}: in %, with 95 % intervals ({note}); * marks the primary head"
    out.print(f"\n{title}\n", style="dim", markup=False)
    for place in dict.fromkeys((row.attack, row.task, row.target) for row in rows):
        attack, *aimed = place
        out.print(of_attack(results, attack, aim(*aimed)), style="bold", markup=False)
        for table in _tables([row for row in rows if (row.attack, row.task, row.target) == place]):
            out.print(table, "")
    shown_tables = {
        "What the trigger does": effects.table(results),
        "Sifted rows": sifts.table(results),
        "Repairs": repairs.table(results),
    }
    for title, shown in shown_tables.items():
        if shown is not None:
            out.print(title, style="bold", markup=False)
            out.print(_plain(shown), "")
    told = matrix.sentences(results)  # in place of a line for each defense and attack
    for sentence in told or defenses.sentences(results) + certified.sentences(results) + screens.sentences(results):
        out.print(sentence, markup=False)
    if told:
        out.print("The report has a map of all of this, and what each defense measured besides.", markup=False)
    for flag in results.flags:
        out.print(f"note: {flag}", markup=False)


NAME, CELL, GAP = 12, 19, 2
"""Widths in the tables: a metric's name, a usual cell (``+94.9  +93.1…+96.2``), and the space before each column."""


def _tables(rows: list[Any]) -> Iterator[Table]:
    """The rows of one task and target as columns, as many side by side as the terminal is wide: nothing is cut."""
    from sapper.report.means import LABELS, METRICS

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


def _plain(shown: Any) -> Table:
    """Any table of the report; what does not fit into a line goes on in the next."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, GAP - 1), pad_edge=False, show_edge=False)
    for column, cell in zip(shown.columns, shown.rows[0]):
        table.add_column(column, justify="right" if cell.kind == "number" else "left", overflow="fold")
    for row in shown.rows:
        table.add_row(*(Text(cell.text) for cell in row))
    return table


def _heading(row: Any) -> Text:
    lines = [f"{row.head or ''}{' *' if row.primary else ''}"]
    return Text("\n".join(lines + [f"{key} = {value}" for key, value in row.condition.items()]))


def _cell(estimate: Any) -> Text:
    if estimate is None:
        return Text("    –")
    return Text(f"{estimate.number:>5}  ") + Text(estimate.span, style="dim")
