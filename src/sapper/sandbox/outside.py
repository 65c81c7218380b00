"""Our side of the sandbox: start it, wait, and believe nothing that it says without looking."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sapper.errors import SapperError

LONGEST_REPORT = 2**20
PROGRAM = ("-m", "sapper.sandbox.inside")
SECONDS, BYTES_PER_SECOND = 60, 20e6
"""What a conversion may take: a minute, and a second more for each 20 MB."""


@dataclass(frozen=True)
class Converted:
    """What a checkpoint held besides its weights, which are in the file that ``convert`` was given.

    ``notes``: numbers and short texts by their path, such as ``{"arch": "resnet50"}``. ``left_out``: how many things
    """

    notes: dict[str, str | int | float | bool]
    left_out: int


def convert(path: Path, to: Path, *, allow_weak_sandbox: bool = False) -> Converted:
    """Turn the pickled checkpoint at ``path`` into safetensors at ``to``, its tensors named by their dotted path.

    ``path`` is a regular file. Raises ``SapperError`` when the file would run code, is damaged, holds no weights, or
    brings the process down that reads it; and where this machine has no filter of system calls, unless
    ``allow_weak_sandbox``. ``to`` is then not there.
    """
    where, size = str(path), path.stat().st_size
    seconds = int(SECONDS + size / BYTES_PER_SECOND)
    with path.open("rb") as source, to.open("wb") as target, tempfile.TemporaryFile() as said:
        try:
            code = _start(source, target, said, size, seconds, weak=allow_weak_sandbox)
            report = _read(said)
        except subprocess.TimeoutExpired:
            code, report = -signal.SIGXCPU, None
        done = code == 0 and report is not None and report.get("status") == "converted"
        if not done:
            to.unlink()
            raise _error(code, report, where)
    assert report is not None
    notes = {str(name): value for name, value in dict(report.get("notes", {})).items()}
    return Converted(notes=notes, left_out=int(report.get("left_out", 0)))


def _start(source: IO[bytes], target: IO[bytes], said: IO[bytes], size: int, seconds: int, *, weak: bool) -> int:
    arguments = [str(number) for number in (target.fileno(), size, seconds, int(weak))]
    return subprocess.run(
        [sys.executable, "-I", *PROGRAM, *arguments],
        stdin=source,
        stdout=said,
        stderr=subprocess.DEVNULL,
        pass_fds=[target.fileno()],
        env={"OMP_NUM_THREADS": "1", "PATH": os.defpath},
        cwd="/",
        timeout=seconds + SECONDS,  # torch has to be loaded first
        check=False,
    ).returncode


def _read(said: IO[bytes]) -> dict[str, Any] | None:
    said.seek(0)
    try:
        report = json.loads(said.read(LONGEST_REPORT))
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def _error(code: int, report: dict[str, Any] | None, where: str) -> SapperError:
    if code == 0 and report is not None and report.get("status") == "weak":
        remedy = "ask for a .safetensors file, or use --allow-weak-sandbox on a machine that you can lose"
        what = f"this is a pickle, a program, and nothing here can lock it in: {report.get('why')}"
        return SapperError(what, where=where, remedy=remedy)
    if code == 0 and report is not None:
        remedy = "save the weights alone, as .safetensors or a state_dict, where you trust the file; or ask its authors"
        if report.get("dangerous"):
            remedy = "do not open it elsewhere either, and tell whoever published it"
        return SapperError(f"refused: {report.get('why')}", where=where, remedy=remedy)
    ends = {-signal.SIGXCPU: "it did not come to an end", -signal.SIGKILL: "it did not come to an end"}
    how = ends.get(code, "out of memory, or worse" if code < 0 else f"exit code {code}")
    what = f"refused: it brought the process down that tried to read it ({how})"
    return SapperError(what, where=where, remedy="ask its authors for a .safetensors file of the weights")
