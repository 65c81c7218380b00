"""Progress bars with time left, for people at a terminal."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sapper.run import Bar, Progress, Silent

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


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Bars on ``console`` while the context lasts; silent where it is not a terminal."""
    if not console.is_terminal:
        yield Silent()
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
