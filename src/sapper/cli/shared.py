"""What all commands share: where they print, their common options, and checks at the door."""

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sapper.errors import SapperError, printable

EXIT = {"no-evidence": 0, "backdoor": 1, "undecided": 3}
"""How an audit ends, and what verifies one; 2 is for everything that could not be done."""

BROKEN_PIPE = 128 + signal.SIGPIPE
"""How a program ends whose output nobody reads on."""


class _Console(Console):
    """Ends as shells have it when nobody reads on, as in ``sapper methods | head``; elsewhere, remarks may be lost."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            if not self.stderr:
                what, remedy = f"the output cannot be written: {error.strerror}", "make room where it goes"
                raise SapperError(what, where="standard output", remedy=remedy) from error

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(BROKEN_PIPE) from None


out, err = _Console(highlight=False, emoji=False), _Console(stderr=True, highlight=False, emoji=False)


class ExecutorName(StrEnum):
    """Where stages are made."""

    LOCAL = "local"
    RAY = "ray"


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="SAPPER_STORE",
        help="Folder of finished stages, or an address such as s3://bucket/store; store below --out by default.",
    ),
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
BudgetOption = Annotated[str, typer.Option("--budget", help="quick, standard or thorough.")]
Jobs = Annotated[
    int,
    typer.Option("--jobs", "--workers", "-j", min=0, help="Stages side by side, on a share of the cores each."),
]
ExecutorOption = Annotated[
    ExecutorName, typer.Option("--executor", help="local: processes of this machine; ray: a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Of a Ray cluster, e.g. 10.0.0.1:6379; the running one by default."),
]


class ChosenEnd(SystemExit):
    """How a command itself chose to end."""

    def __init__(self, chosen: int):
        self.chosen = chosen
        super().__init__(chosen)


class UnchosenEnd(Exception):  # noqa: N818 (it is a fault of ours, whatever it was)
    """What must not end a command with a code that it did not choose."""


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, so that only its own ``typer.Exit`` says how it ends.

    Typer takes an ``EOFError`` or a broken pipe for the user's wish and ends with 1, and code of others may call
    ``sys.exit(0)``; for an audit these would be verdicts.
    """

    @wraps(command)
    def call(*words: Any, **options: Any) -> Any:
        try:
            return command(*words, **options)
        except typer.Exit as end:
            raise ChosenEnd(end.exit_code) from None
        except SystemExit as error:
            if error.code == BROKEN_PIPE:
                raise
            raise UnchosenEnd(f"something called sys.exit({error.code})") from error
        except (EOFError, OSError, ImportError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                what, remedy = f"cannot be used: {error.strerror}", "check the path, and who may read and write there"
                raise SapperError(what, where=os.fsdecode(error.filename), remedy=remedy) from error
            raise UnchosenEnd(f"{type(error).__name__}: {error}") from error

    return call


GOES_ON = "interrupted; the same command goes on from here"


@contextmanager
def telling_interrupts(words: str) -> Iterator[None]:
    """Tell the user who interrupts what becomes of the work."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(words)
        raise


def say(line: str) -> None:
    """One line as it is, of any length: a path can then be copied."""
    out.print(printable(line), markup=False, soft_wrap=True)


def say_verdict(lines: Iterable[str]) -> None:
    """The lines of what is decided and written down already: that nobody can read them changes nothing any more."""
    with suppress(SapperError, SystemExit):
        for line in lines:
            say(line)


def spare_streams() -> None:
    """Let a terminal or a pipe that is not UTF-8 get question marks for what it cannot show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def check_writable(folder: Path, option: str = "--out") -> None:
    """Find out before the work, not after it, whether results can be written where an option says."""
    from sapper.files import write_atomically

    made = [place for place in (folder, *folder.parents) if not place.exists()]
    trial = folder / f".writable-{os.getpid()}"
    try:
        write_atomically(trial, "")
    except SapperError as error:
        raise SapperError(error.what, where=str(folder), remedy=f"name another folder with {option}") from error
    trial.unlink(missing_ok=True)
    with suppress(OSError):  # another process has begun to write there
        for place in made:  # what ends with an error leaves no empty folders
            place.rmdir()


def check_file(path: Path) -> None:
    """The same of a file, which may be there already."""
    if path.is_dir():
        raise SapperError("this is a folder", where=str(path), remedy="name a file with --out")
    check_writable(path.parent)


def check_learned(path: Path) -> None:
    """Find out whether a file of ``sapper zoo learn`` can be opened; what is in it is for others to check."""
    try:
        path.open("rb").close()
    except OSError as error:
        what = f"nothing that was learned can be read: {error.strerror}"
        remedy = "name a file that sapper zoo learn wrote"
        raise SapperError(what, where=str(path), remedy=remedy) from error


def check_device(name: str) -> None:
    """Refuse what is no name of a device; whether it is there, torch has to say."""
    if not re.fullmatch(r"auto|(cpu|cuda)(:\d{1,3})?", name):
        raise _no_device(name)


def device_of(name: str) -> Any:
    """The device of that name, tried out."""
    import torch

    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise _no_device(name) from None
    return device


def _no_device(name: str) -> SapperError:
    return SapperError(f"no device {name!r} here", where="--device", remedy="use cpu or auto")
