"""Our side of the sandbox: start it, wait, and believe nothing that it says without looking."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sapper.errors import SapperError

LONGEST_REPORT = 17 * 2**20
READY = b"ready\n"
"""What the process says when all is loaded and locked, before it looks at the file."""

PROGRAM = ("-c", "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop()); sys.argv[0] = 'inside.py'; "
           "runpy.run_module('sapper.sandbox.inside', run_name='__main__')")  # fmt: skip
"""Isolated mode looks in no folder of the user's: the folders that our own modules were found in are handed over."""

NEEDED = ("sapper", "numpy", "picklescan")

SECONDS, BYTES_PER_SECOND = 60, 20e6
"""What a conversion may take: a minute, and a second more for each 20 MB."""


@dataclass(frozen=True)
class Converted:
    """What a checkpoint held besides its weights, which are in the file that ``convert`` was given.

    ``notes``: numbers and short texts by their path, such as ``{"arch": "resnet50"}``. ``left_out``: what is no weight,
    by its path, in plain words; the last entry, ``…``, counts what is not listed. ``unread``: tensors that cannot be
    weights as they are, by name, in plain words. ``optimizer``: the shapes of the buffers that an optimizer keeps for
    its parameters, in their order, ``()`` where it keeps none.
    """

    notes: dict[str, str | int | float | bool] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    optimizer: tuple[tuple[int, ...], ...] = ()


def scratch() -> IO[bytes]:
    """An open, empty file that is gone when it is closed: in memory, or in ``TMPDIR`` where the system has no such."""
    with suppress(AttributeError, OSError):  # not on every system, nor in every container
        return os.fdopen(os.memfd_create("sapper"), "w+b")
    try:
        return tempfile.NamedTemporaryFile()
    except OSError as error:
        remedy = "set TMPDIR to a folder with space for what is opened"
        raise SapperError(f"no folder for temporary files can be written: {error.strerror}", remedy=remedy) from error


def convert(path: Path, to: IO[bytes], *, allow_weak_sandbox: bool = False) -> Converted:
    """Turn the pickled checkpoint at ``path`` into safetensors in ``to``, its tensors named by their dotted path.

    ``path`` is a regular file, ``to`` an open and empty one. Raises ``SapperError`` when the file would run code, is
    damaged, holds no weights, or brings the process down that reads it; and where this machine has no filter of system
    calls, unless ``allow_weak_sandbox``. What is in ``to`` then is nothing that may be read.
    """
    where, size = str(path), path.stat().st_size
    seconds = int(SECONDS + size / BYTES_PER_SECOND)
    with path.open("rb") as source, scratch() as said, scratch() as complained:
        try:
            code = _start((source, to, said, complained), size, seconds, weak=allow_weak_sandbox)
        except subprocess.TimeoutExpired:
            code = -signal.SIGXCPU
        except OSError as error:
            raise _ours(f"it cannot be started: {error.strerror}", where) from error
        said.seek(0)
        if said.read(len(READY)) != READY:
            raise _ours(_reason(code, complained), where)
        report = _read(said) if code == 0 else None
    if report is None or report.get("status") != "converted":
        raise _error(code, report, where, size)
    return _checked(report, where)


def _start(files: tuple[IO[bytes], ...], size: int, seconds: int, *, weak: bool) -> int:
    source, target, said, complained = files
    arguments = [str(number) for number in (target.fileno(), size, seconds, int(weak))]
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return subprocess.run(
        [sys.executable, "-I", *PROGRAM, *arguments, json.dumps(_folders())],
        stdin=source,
        stdout=said,
        stderr=complained,
        pass_fds=[target.fileno()],
        env={"OMP_NUM_THREADS": "1", "PATH": os.defpath} | libraries,
        cwd="/",
        timeout=seconds + SECONDS,
        check=False,
    ).returncode


def _folders() -> list[str]:
    """Where our own process finds its modules, without the folder that the user stands in, which may be anybody's."""
    specs = [importlib.util.find_spec(name) for name in NEEDED]
    needed = [str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin]
    here = str(Path.cwd())
    folders = [each for each in sys.path if Path(each).is_absolute() and (each != here or each in needed)]
    return [*folders, *(each for each in needed if each not in folders)]


def _read(said: IO[bytes]) -> dict[str, Any] | None:
    try:
        report = json.loads(said.read(LONGEST_REPORT))
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def _checked(report: dict[str, Any], where: str) -> Converted:
    """The report in its types, whoever wrote it."""
    from pydantic import TypeAdapter, ValidationError

    try:
        names = ("notes", "left_out", "unread", "optimizer")
        return TypeAdapter(Converted).validate_python({name: report.get(name) for name in names})
    except ValidationError as error:
        raise _error(0, None, where, 0) from error


def _reason(code: int, complained: IO[bytes]) -> str:
    """Why it ended before it had looked at anything: the last line that Python wrote."""
    complained.seek(0)
    lines = complained.read(2**20).decode("utf-8", "replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    if code == -signal.SIGXCPU:
        return "it was not ready in time"
    return last[:300] or (f"signal {-code}" if code < 0 else f"exit code {code}")


def _ours(why: str, where: str) -> SapperError:
    what = f"the process that reads pickles did not start; the file was not looked at: {why}"
    remedy = "this is no fault of the file: install sapper anew in an environment of its own, or close other programs"
    return SapperError(what, where=where, remedy=remedy)


def _error(code: int, report: dict[str, Any] | None, where: str, size: int) -> SapperError:
    status = report.get("status") if code == 0 and report is not None else None
    if report is not None and status == "weak":
        remedy = "ask for a .safetensors file, or use --allow-weak-sandbox on a machine that you can lose"
        what = f"this is a pickle, a program, and nothing here can lock it in: {report.get('why')}"
        return SapperError(what, where=where, remedy=remedy)
    if report is not None and status == "full":
        remedy = f"free {size / 2**20:.0f} MiB of memory, and as much where TMPDIR is"
        return SapperError(f"there is no room for its weights: {report.get('why')}", where=where, remedy=remedy)
    if report is not None and status is not None:
        remedy = "save the weights alone, as .safetensors or a state_dict, where you trust the file; or ask its authors"
        remedy = str(report.get("remedy") or remedy)
        if report.get("dangerous"):
            remedy = "do not open it elsewhere either, and tell whoever published it"
        return SapperError(f"refused: {report.get('why')}", where=where, remedy=remedy)
    ends = {-signal.SIGXCPU: "it did not come to an end", -signal.SIGKILL: "it did not come to an end"}
    how = ends.get(code, "out of memory, or worse" if code < 0 else f"exit code {code}")
    what = f"refused: it brought the process down that tried to read it ({how})"
    return SapperError(what, where=where, remedy="ask its authors for a .safetensors file of the weights")
