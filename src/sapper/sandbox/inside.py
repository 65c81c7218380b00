"""The program in the sandbox: a pickle comes in on standard input, safetensors go out to a descriptor.

``inside.py OUTPUT SIZE SECONDS WEAK``: the number of the descriptor to write to, the size of the file, seconds of
processor time, and whether it may go on without a filter of system calls (0 or 1). Standard output is one line,
``READY``, once all is loaded and locked and before the file is looked at, and one JSON object: ``status`` ("converted",
"refused", "weak" or "full"), ``why``, ``remedy``, ``dangerous``, and the fields of ``Converted``. It ends with 0
whatever the status; another end before ``READY`` is a failure of ours, and after it one that the file has caused.
"""

import codecs
import errno
import io
import json
import os
import resource
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

from sapper.sandbox import contents, formats, lockdown
from sapper.sandbox.values import RefusedError

MIB = 2**20
READY = "ready"
LONGEST_REPORT, LONGEST_WHY = 16 * MIB, 200


def main(output: int, size: int, seconds: int, weak: bool) -> dict[str, Any]:
    """Lock this process in, then convert the file on standard input to descriptor ``output``."""
    with os.fdopen(0, "rb", closefd=False) as file:
        _warm_up()
        _limit(size, seconds)
        hole = lockdown.lock()
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        if hole is not None and not weak:
            return {"status": "weak", "why": hole}
        try:
            found = _convert(file, size, output)
        except RefusedError as refused:
            known = {"why": refused.why, "remedy": refused.remedy, "dangerous": refused.dangerous}
            return {"status": "refused"} | known
        except MemoryError:
            return {"status": "refused", "why": "it takes more memory than a checkpoint of its size may"}
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                return {"status": "full", "why": os.strerror(error.errno)}
            return {"status": "refused", "why": f"it cannot be read: {_short(error)}"}
        except Exception as error:  # whatever a foreign file makes a library do
            return {"status": "refused", "why": f"it cannot be read: {type(error).__name__}: {_short(error)}"}
        report = {name: getattr(found, name) for name in ("notes", "left_out", "unread", "optimizer")}
        return {"status": "converted"} | report


def _convert(file: IO[bytes], size: int, output: int) -> contents.Contents:
    whole = formats.look(file, size)
    _scan(file)
    found = contents.sort(formats.read(file, _scan))
    for piece in contents.write(found.tensors, _most(size, whole)):
        view = memoryview(piece)
        while view:
            view = view[os.write(output, view) :]
    return found


def _most(size: int, whole: int) -> int:
    """Bytes of tensors that a file may give: more than it holds, since a tensor may have several names."""
    return max(4 * size, 2 * whole)


EXAMPLE = (
    b"\x80\x02}q\x00X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
)
"""``{"a": torch.ones(1)}``, as ``torch.save`` writes it into an archive."""


def _warm_up() -> None:
    """Import and run once all that will be used: afterwards nothing can be opened, modules of Python neither."""
    for codec in ("ascii", "cp437", "latin1", "utf-8", "raw_unicode_escape", "unicode_escape"):
        codecs.lookup(codec)
    example = io.BytesIO()
    with zipfile.ZipFile(example, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", EXAMPLE)
        archive.writestr("a/data/0", bytes(4))
    size = formats.look(example, example.tell())
    _scan(example)
    b"".join(contents.write(contents.sort(formats.read(example, _scan)).tensors, size))
    _scan(io.BytesIO(EXAMPLE))


def _limit(size: int, seconds: int) -> None:
    """Memory for some copies of the file beyond what is taken already, time, and no more output than that."""
    state = Path("/proc/self/statm")
    taken = int(state.read_text().split()[0]) * resource.getpagesize() if state.exists() else 8192 * MIB
    for kind, most in (
        (resource.RLIMIT_AS, taken + 5 * size + 512 * MIB),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _most(size, formats.most_content(size)) + 64 * MIB),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _scan(file: IO[bytes]) -> None:
    """Every pickle in it, by a scanner that reads opcodes and runs none."""
    from picklescan.scanner import SafetyLevel, scan_bytes

    file.seek(0)
    try:
        found = scan_bytes(file, "the file", ".pth")
    except Exception as error:  # a scanner that stumbles has not said that the file is safe
        raise RefusedError(f"the scanner cannot read it: {_short(error)}") from error
    dangers = sorted(f"{each.module}.{each.name}" for each in found.globals if each.safety == SafetyLevel.Dangerous)
    if dangers or found.issues_count:
        what = f"it would run {', '.join(dangers[:5])} when it is opened (found by picklescan)"
        raise RefusedError(what, dangerous=True)
    if found.scan_err:
        raise RefusedError("the scanner cannot read it to its end: it is damaged, or hides something")


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_WHY else f"{text[:LONGEST_WHY]} …"


def say(report: dict[str, Any]) -> None:
    text = json.dumps(report)
    if len(text) > LONGEST_REPORT:
        text = json.dumps({"status": "refused", "why": "there is more to say of it than of any checkpoint"})
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    output, size, seconds, weak = (int(argument) for argument in sys.argv[1:])
    say(main(output, size, seconds, bool(weak)))
    os._exit(0)  # without the ends of threads and modules, which may ask for what is refused now
