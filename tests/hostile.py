"""Files that somebody could send: each a way to run code, to hang, to fill memory, or to pass for a checkpoint."""

import io
import json
import os
import pickle
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Maker = Callable[[Path, str], None]
"""Writes the file at a path; what it would run, if it could, is a shell command (``touch`` of a canary)."""

PICKLES: dict[str, Callable[[str], bytes]] = {}
"""Programs that run the command when they are unpickled; by the opcodes they use."""

FILES: dict[str, Maker] = {}
"""All others, by what they are."""


class Reduced:
    """Becomes a call when it is unpickled."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def file(name: str) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        FILES[name] = make
        return make

    return add


def short(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def run(command: str) -> bytes:
    """Python that runs the command, as an argument."""
    return text(f"__import__('os').system({command!r})")


def imported(module: str) -> bytes:
    return b"cbuiltins\n__import__\n(" + text(module) + b"tR"


for protocol in range(6):
    PICKLES[f"reduce, protocol {protocol}"] = lambda command, p=protocol: pickle.dumps(
        Reduced(os.system, (command,)), p
    )

PICKLES |= {
    "GLOBAL": lambda c: b"cos\nsystem\n(" + text(c) + b"tR.",
    "GLOBAL, module named otherwise": lambda c: b"cposix\nsystem\n(" + text(c) + b"tR.",
    "STACK_GLOBAL": lambda c: b"\x80\x04" + short("os") + short("system") + b"\x93" + text(c) + b"\x85R.",
    "STACK_GLOBAL from the memo": lambda c: (
        b"\x80\x04" + text("system") + b"\x94" + text("os") + b"\x94h\x01h\x00\x93" + text(c) + b"\x85R."
    ),
    "STACK_GLOBAL from a memo by PUT": lambda c: (
        b"\x80\x02" + text("os") + b"q\x05" + text("system") + b"q\x06h\x05h\x06\x93" + text(c) + b"\x85R."
    ),
    "INST": lambda c: b"(" + text(c) + b"ios\nsystem\n.",
    "OBJ": lambda c: b"(cos\nsystem\n" + text(c) + b"o.",
    "NEWOBJ": lambda c: b"\x80\x02cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(" + text(c) + b"lt\x81tR.",
    "NEWOBJ_EX": lambda c: b"\x80\x04cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(" + text(c) + b"lt}\x92tR.",
    "BUILD": lambda c: (
        b"\x80\x02cargparse\nNamespace\n)R}" + text("__setstate__") + b"cos\nsystem\nsb" + text(c) + b"b."
    ),
    "exec": lambda c: b"cbuiltins\nexec\n(" + run(c) + b"tR.",
    "eval by Python 2's name": lambda c: b"\x80\x02c__builtin__\neval\n(" + run(c) + b"tR.",
    "getattr": lambda c: b"cbuiltins\ngetattr\n(" + imported("os") + text("system") + b"tR(" + text(c) + b"tR.",
    "dotted name": lambda c: b"\x80\x04" + short("shutil") + short("os.system") + b"\x93" + text(c) + b"\x85R.",
    "a pickle inside": lambda c: b"\x80\x04cpickle\nloads\n(" + _bytes(pickle.dumps(Reduced(os.system, (c,)))) + b"tR.",
    "map": lambda c: b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(" + text(c) + b"ltRtR.",
    "runpy": lambda c: b"crunpy\n_run_code\n(" + run(c) + b"}tR.",
    "timeit": lambda c: b"ctimeit\ntimeit\n(" + run(c) + text("pass") + b"ctime\ntime\nK\x01tR.",
    "in a frame": lambda c: _framed(b"\x8c\x02os\x94\x8c\x06system\x94\x93" + text(c) + b"\x85R."),
    "after another pickle": lambda c: pickle.dumps(1) + pickle.dumps(Reduced(os.system, (c,))),
    "a dead branch": lambda c: b"\x80\x02cos\nsystem\n(" + text(c) + b"tR0}" + text("state_dict") + b"}s.",
    "functools.partial": lambda c: b"\x80\x02cfunctools\npartial\n(cos\nsystem\n" + text(c) + b"tR)R.",
    "operator.methodcaller": lambda c: (
        b"coperator\nmethodcaller\n(" + text("system") + text(c) + b"tR(" + imported("os") + b"tR."
    ),
    "what a module of torch imports": lambda c: b"\x80\x04ctorch.serialization\nos.system\n(" + text(c) + b"tR.",
}


def _bytes(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def _framed(content: bytes) -> bytes:
    return b"\x80\x04\x95" + struct.pack("<Q", len(content)) + content


def write_pickle(content: bytes, path: Path, *, zipped: bool) -> None:
    """As the file itself, or as the pickle in an archive of torch's."""
    if not zipped:
        path.write_bytes(content)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def checkpoint(**changes: torch.Tensor) -> dict[str, Any]:
    return {"state_dict": {"conv1.weight": torch.ones(4, 3, 3, 3)} | changes}


def _saved(content: Any, *, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def _raw(name: str, content: Callable[[], bytes]) -> None:
    def make(path: Path, _command: str) -> None:
        path.write_bytes(content())

    FILES[name] = make


_raw("cut in half, archive", lambda: (b := _saved(checkpoint()))[: len(b) // 2])
_raw("cut in half, legacy", lambda: (b := _saved(checkpoint(), zipped=False))[: len(b) // 2])
_raw("cut before its last byte", lambda: _saved(checkpoint(), zipped=False)[:-1])
_raw("an archive without its directory", lambda: _saved(checkpoint())[:-40])
_raw("noise behind a pickle's first byte", lambda: b"\x80" + bytes(range(256)) * 8)
_raw("noise behind an archive's first bytes", lambda: b"PK\x03\x04" + bytes(range(256)) * 8)
_raw("a text of 2^62 characters", lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.")
_raw("4 GiB of bytes that are not there", lambda: b"\x80\x03B" + struct.pack("<I", 2**32 - 1) + b"a.")
_raw("a number of 2 GiB", lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.")
_raw("a negative length", lambda: b"\x80\x02T" + struct.pack("<i", -5) + b"a.")
_raw("a frame that is longer than the file", lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.")
_raw("a million tuples in one another", lambda: b"\x80\x02)" + b"\x85" * 10**6 + b".")
_raw("a million marks", lambda: b"\x80\x02" + b"(" * 10**6 + b".")
_raw(
    "lists that double, thirty times",
    lambda: b"\x80\x02]q\x00" + b"".join(b"(h\x00h\x00lq\x00" for _ in range(30)) + b".",
)
_raw("a memo at 2^31", lambda: b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".")
_raw("a protocol of the future", lambda: b"\x80\xffN.")


@file("a dict that holds itself")
def _(path: Path, _command: str) -> None:
    write_pickle(b"\x80\x02}q\x00" + text("a") + b"h\x00s.", path, zipped=True)


_raw("an extension's code", lambda: b"\x80\x02\x82\x01.")
_raw("a persistent id", lambda: b"Pos.system\n.")
_raw("one number", lambda: pickle.dumps(3, 2))
_raw("no tensor", lambda: _saved({"state_dict": {}}))
_raw("a whole module", lambda: _saved(torch.nn.Linear(2, 2)))
_raw("a sparse tensor", lambda: _saved(checkpoint(a=torch.eye(3).to_sparse())))


@file("a quantized tensor")
def _(path: Path, _command: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will not have them for long
        path.write_bytes(_saved(checkpoint(a=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))))


_raw("a tensor without data", lambda: _saved(checkpoint(a=torch.ones(3, device="meta"))))
_raw("complex numbers", lambda: _saved({"conv1.weight": torch.ones(2, dtype=torch.complex128)}))
_raw("weights that are not a number", lambda: _saved(checkpoint(a=torch.tensor([1.0, float("nan")]))))
_raw("infinite weights", lambda: _saved(checkpoint(a=torch.tensor([1.0, float("inf")]))))
_raw("a terabyte of views on one number", lambda: _saved(checkpoint(a=torch.ones(1).expand(2**19, 2**19))))
_raw("a gigabyte of views on one number", lambda: _saved(checkpoint(a=torch.ones(1).expand(2**14, 2**14))))


def _archive(name: str, change: Callable[[zipfile.ZipFile], None]) -> None:
    def make(path: Path, _command: str) -> None:
        path.write_bytes(_saved(checkpoint()))
        with zipfile.ZipFile(path, "a") as archive:
            change(archive)

    FILES[name] = make


def _entry(name: str, mode: int = 0, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr, entry.compress_type = mode << 16, compression
    return entry


_archive("a bomb", lambda z: z.writestr(_entry("archive/data/9", 0, zipfile.ZIP_DEFLATED), bytes(2**28)))
_archive(
    "a link out of the archive", lambda z: z.writestr(_entry("archive/data/9", stat.S_IFLNK | 0o777), "/etc/passwd")
)
_archive("a path out of the archive", lambda z: z.writestr("archive/../../../tmp/x", "x"))
_archive("an absolute path", lambda z: z.writestr("/etc/cron.d/x", "x"))
_archive("TorchScript", lambda z: z.writestr("archive/code/__torch__.py", "def forward(self): pass"))
_archive("a second pickle of weights", lambda z: z.writestr("other/data.pkl", b"\x80\x02N."))


@file("two entries of one name")
def _(path: Path, _command: str) -> None:
    path.write_bytes(_saved(checkpoint()))
    with zipfile.ZipFile(path, "a") as archive:
        name = next(each for each in archive.namelist() if each.endswith("data.pkl"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(name, b"\x80\x02N.")


@file("entries that share their bytes")
def _(path: Path, _command: str) -> None:
    """As in Fifield's bomb: the directory names one piece of the file many times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(10**5))
        first = archive.infolist()[0]
        for number in range(200):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            again.header_offset, again.file_size, again.compress_size, again.CRC = (
                0,
                first.file_size,
                first.file_size,
                first.CRC,
            )
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again


@file("an encrypted entry")
def _(path: Path, _command: str) -> None:
    content = bytearray(_saved(checkpoint()))
    at = content.find(b"PK\x01\x02")
    content[at + 8] |= 1
    path.write_bytes(content)


@file("an archive of something else")
def _(path: Path, _command: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")


@file("a tar of weights")
def _(path: Path, _command: str) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


_raw("a web page", lambda: b"<!doctype html><title>Sign in</title>")
_raw("a pointer of Git LFS", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
_raw("HDF5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(100))
_raw("GGUF", lambda: b"GGUF" + bytes(100))
_raw("gzip", lambda: b"\x1f\x8b\x08" + bytes(100))
_raw("a NumPy array of objects", lambda: b"\x93NUMPY\x01\x00" + bytes(100))
_raw("empty", lambda: b"")
_raw("one byte", lambda: b"\x80")
_raw("text", lambda: b"not a checkpoint\n")


@file("a symbolic link")
def _(path: Path, _command: str) -> None:
    other = path.with_name("other.pth")
    other.write_bytes(_saved(checkpoint()))
    path.symlink_to(other)


@file("a link to nothing")
def _(path: Path, _command: str) -> None:
    path.symlink_to("/nowhere/at/all")


@file("a pipe")
def _(path: Path, _command: str) -> None:
    os.mkfifo(path)


@file("an endless device")
def _(path: Path, _command: str) -> None:
    path.symlink_to("/dev/zero")


@file("a folder")
def _(path: Path, _command: str) -> None:
    path.mkdir()


def _safe(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def _tensor(dtype: str = "F32", shape: list[int] | None = None, end: int = 8) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": [0, end]}}


SAFE = {
    "safetensors with a header of exabytes": lambda: _safe(_tensor(), length=2**62),
    "safetensors with a header of 90 MiB": lambda: _safe(b"{" + b" " * (90 * 2**20) + b"}"),
    "safetensors cut short": lambda: _safe(_tensor(), data=bytes(4)),
    "safetensors with more than it says": lambda: _safe(_tensor(), data=bytes(80)),
    "safetensors whose shape is too large": lambda: _safe(_tensor(shape=[2**40, 2**40])),
    "safetensors of an unknown type": lambda: _safe(_tensor(dtype="F7")),
    "safetensors whose bytes overlap": lambda: _safe(_tensor() | {"b": _tensor()["a"]}),
    "safetensors with negative places": lambda: _safe({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
    "safetensors of damaged JSON": lambda: _safe(b'{"a": {"dtype"', data=b""),
    "safetensors of JSON without end": lambda: _safe(b'{"a":' * 10**5, data=b""),
    "safetensors without tensors": lambda: _safe({}, data=b""),
    "safetensors that are not a number": lambda: _safe(_tensor(), data=struct.pack("<ff", 1, float("nan"))),
    "safetensors of another backbone": lambda: _safe(_tensor()),
}
for _name, _content in SAFE.items():
    _raw(_name, _content)


@file("a pickle that is called safetensors")
def _(path: Path, command: str) -> None:
    path.write_bytes(PICKLES["GLOBAL"](command))
