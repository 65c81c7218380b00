"""How far things are, and the time left: bars for people at a terminal, a line now and then for logs."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sapper.running import Bar, Progress

PATIENCE = 2.0
"""Seconds before a bar appears: shorter stages are not worth a line."""


class _Patient(Bars):
    """Shows only tasks that have gone on for a while; looks again at every refresh."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table([task for task in self.tasks if (task.elapsed or 0) > PATIENCE])


class _Bar:
    def __init__(self, bars: Bars, task: TaskID):
        self.bars, self.task = bars, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note:
            self.bars.update(self.task, advance=steps, note=note)
        else:
            self.bars.update(self.task, advance=steps)


class _Terminal:
    def __init__(self, bars: Bars):
        self.bars = bars

    @contextmanager
    def _bar(self, label: str, total: int, done: int) -> Iterator[Bar]:
        task = self.bars.add_task(label, total=total, completed=done, note="")
        try:
            yield _Bar(self.bars, task)
        finally:
            self.bars.remove_task(task)

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]:
        return self._bar(label, total, done)


class _Line:
    def __init__(self, lines: "_Lines", label: str, total: int, done: int):
        self.lines, self.label, self.total, self.done = lines, label, total, done
        self.before, self.began = done, time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self.lines.tell(lambda: f"{self.label}: {self.done} of {self.total}, {self._left()}{note and f' ({note})'}")

    def _left(self) -> str:
        pace = (time.monotonic() - self.began) / max(self.done - self.before, 1)
        seconds = pace * (self.total - self.done)
        return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"


class _Lines:
    """Lines of text, ``every`` seconds at most one, whatever number of bars there are."""

    def __init__(self, console: Console, every: float):
        self.console, self.every = console, every
        self.last = time.monotonic()

    def tell(self, line: Callable[[], str]) -> None:
        if time.monotonic() - self.last >= self.every:
            self.console.print(line(), soft_wrap=True, highlight=False, markup=False)
            self.last = time.monotonic()

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]:
        return nullcontext(_Line(self, label, total, done))


@contextmanager
def progress(console: Console, every: float = 60.0) -> Iterator[Progress]:
    """Bars on ``console`` while the context lasts; where it is not a terminal, a line each ``every`` seconds."""
    if not console.is_terminal:
        yield _Lines(console, every)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with _Patient(*columns, console=console, transient=True) as bars:
        yield _Terminal(bars)
