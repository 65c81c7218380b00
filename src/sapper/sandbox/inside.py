"""The program in the sandbox: a pickle comes in on standard input, safetensors go out to a descriptor.

``python -I -m sapper.sandbox.inside OUTPUT SIZE SECONDS WEAK``: the number of the descriptor to write to, the size of
the file, seconds of processor time, and whether it may go on without a filter of system calls (0 or 1). Standard output
is one JSON object: ``status`` ("converted", "refused" or "weak"), ``why``, ``notes``, ``left_out``. It ends with 0
whatever the status; another end means that the file has brought it down. Nothing of ours but ``lockdown`` is imported.
"""

import argparse
import codecs
import io
import json
import os
import resource
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sapper.sandbox import lockdown

MIB = 2**20
MOST_ENTRIES, MOST_DEPTH = 200_000, 16
MOST_NOTES, LONGEST_NOTE = 32, 200


class RefusedError(Exception):
    """The file is not what a checkpoint has to be; says why, and whether opening it elsewhere would run its code."""

    def __init__(self, why: str, *, dangerous: bool = False):
        self.why, self.dangerous = why, dangerous


def main(output: int, size: int, seconds: int, weak: bool) -> dict[str, Any]:
    """Lock this process in, then convert the file on standard input to descriptor ``output``."""
    with os.fdopen(0, "rb", closefd=False) as file:
        _warm_up()
        _limit(size, seconds)
        if (hole := lockdown.lock()) is not None and not weak:
            return {"status": "weak", "why": hole}
        try:
            _look(file, size)
            _scan(file)
            tensors, notes, left_out = _load(file)
            _write(tensors, output, size)
        except RefusedError as refused:
            return {"status": "refused", "why": refused.why, "dangerous": refused.dangerous}
        except MemoryError:
            return {"status": "refused", "why": "it takes more memory than a checkpoint of its size may"}
        except Exception as error:  # whatever a foreign file makes a library do
            return {"status": "refused", "why": f"it cannot be read: {type(error).__name__}: {_short(error)}"}
        return {"status": "converted", "notes": notes, "left_out": left_out}


def _warm_up() -> None:
    """Import and run once all that will be used: afterwards nothing can be opened, modules of Python neither."""
    import numpy as np
    import picklescan.scanner as scanner
    import safetensors.torch
    import torch

    for codec in ("ascii", "cp437", "latin1", "raw_unicode_escape", "unicode_escape"):  # of pickles and archives
        codecs.lookup(codec)
    torch.set_num_threads(1)
    torch.serialization.add_safe_globals([argparse.Namespace, *_numpy_scalars()])
    for zipped in (True, False):
        example = io.BytesIO()
        content = {"a": torch.nn.Parameter(torch.ones(1)), "b": np.float64(1), "c": argparse.Namespace(d=1)}
        torch.save(content, example, _use_new_zipfile_serialization=zipped)
        example.seek(0)
        scanner.scan_bytes(example, "example", ".pth")
        example.seek(0)
        loaded = torch.load(example, map_location="cpu", weights_only=True)
        safetensors.torch.save({"a": loaded["a"].detach().half().contiguous()})


def _numpy_scalars() -> list[Any]:
    """What a NumPy number in a checkpoint is made of: losses and accuracies are often such."""
    import numpy as np
    from numpy._core.multiarray import scalar

    kinds = [np.float32, np.float64, np.int32, np.int64]
    return [scalar, np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def _limit(size: int, seconds: int) -> None:
    """Memory for some copies of the file beyond what is taken already, time, and no more output than that."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, taken + 5 * size + 512 * MIB),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 2 * size + 64 * MIB),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _look(file: Any, size: int) -> None:
    """An archive must be one as torch writes it: stored as it is, with nothing in it that could be code or a link."""
    file.seek(0)
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, UnicodeDecodeError) as error:
        raise RefusedError(f"its archive is damaged: {error}") from error
    names = [entry.filename for entry in entries]
    if len(names) > MOST_ENTRIES:
        raise RefusedError(f"its archive has {len(names)} entries")
    if len(set(names)) < len(names):
        raise RefusedError("its archive has two entries of one name")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise RefusedError(f"{entry.filename!r} in its archive is compressed or encrypted; torch writes neither")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise RefusedError(f"{entry.filename!r} in its archive is a link")
        if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
            raise RefusedError(f"{entry.filename!r} in its archive leads out of it")
    if sum(entry.file_size for entry in entries) > size:
        raise RefusedError("its archive holds more than its size: entries overlap")
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise RefusedError("it is TorchScript, which is code; save the state_dict instead")
    if sum(name.endswith("/data.pkl") for name in names) != 1:
        raise RefusedError("it is an archive, but none that torch.save wrote")


def _scan(file: Any) -> None:
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


def _load(file: Any) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Tensors by their path in the checkpoint, short notes such as the architecture, and how much else there is."""
    import torch

    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)
        if "weights_only" in text or "Unsupported" in text:
            text = text.split("\n\n")[-1] if "WeightsUnpickler error:" not in text else text.split("error:")[-1]
            raise RefusedError(f"it holds other things than weights: {_short(text)}") from error
        raise RefusedError(f"it is no file of weights that torch can read ({_short(error)})") from error
    tensors: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    left_out = 0
    for name, value in _leaves(content, (), []):
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
                raise RefusedError(f"{name} is a sparse, quantized or empty tensor; plain ones are read")
            tensors[name] = value
        elif isinstance(value, str | int | float | bool) and len(str(value)) <= LONGEST_NOTE:
            if len(notes) < MOST_NOTES:
                notes[name[:LONGEST_NOTE]] = value
        elif value is not None:
            left_out += 1
    return tensors, notes, left_out


def _leaves(value: Any, path: tuple[str, ...], above: list[int]) -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts and argument namespaces, by dotted path; lists (an optimizer's) are not entered."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if not isinstance(value, dict):
        yield ".".join(path) or "content", value
        return
    if id(value) in above or len(above) > MOST_DEPTH:
        raise RefusedError("its dicts hold themselves, or one another without end")
    for key, inner in value.items():
        if path == () and key in ("optimizer", "optimizer_states", "optimizer_state_dict", "lr_schedulers", "loops"):
            continue
        yield from _leaves(inner, (*path, str(key)), [*above, id(value)])


def _write(tensors: dict[str, Any], output: int, size: int) -> None:
    import safetensors.torch
    import torch

    if not tensors:
        raise RefusedError("it holds no tensor")
    if len(tensors) > MOST_ENTRIES:
        raise RefusedError(f"it holds {len(tensors)} tensors")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * size:
        raise RefusedError("its tensors are larger than the file: they are views that repeat a little")
    try:
        # Copies, each on its own and in one piece: files often hold views, and safetensors has no name for them.
        whole = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        content = safetensors.torch.save(whole)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RefusedError(f"its tensors cannot be written as safetensors: {_short(error)}") from error
    view = memoryview(content)
    while view:
        view = view[os.write(output, view) :]


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_NOTE else f"{text[:LONGEST_NOTE]} …"


if __name__ == "__main__":
    output, size, seconds, weak = (int(argument) for argument in sys.argv[1:])
    report = main(output, size, seconds, bool(weak))
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()
    os._exit(0)  # without the ends of threads and modules, which may ask for what is refused now
