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
from dataclasses import dataclass, field
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
    return b"\x8c" + bytes([len(word.encode())]) + word.encode()


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


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


def one(number: float, pickle_: bytes | None = None) -> bytes:
    """An archive of a vector of that number."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", (pickle_ or b"\x80\x04}" + text("w") + view() + b"s.").ljust(300, b"."))
        archive.writestr("archive/data/0", struct.pack("<ff", number, number))
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def two_archives(first: bytes, second: bytes) -> bytes:
    """The first for who follows the last record, as torch does; the second for who looks in front of it, as zipfile."""
    parts = []
    for each in (first, second):
        end = each.rindex(b"PK\x05\x06")
        (start,) = struct.unpack("<L", each[end + 16 : end + 20])
        parts.append((each[:start], each[start:end], each[end:]))
    (content, directory, _), (other, other_directory, end) = parts
    assert len(directory) == len(other_directory)
    moved, at = bytearray(other_directory), 0
    while at < len(moved):  # zipfile adds by how far the directory is behind where it should be
        moved[at + 42 : at + 46] = struct.pack(
            "<L", struct.unpack("<L", moved[at + 42 : at + 46])[0] + len(content) - len(other)
        )
        at += 46 + sum(struct.unpack("<3H", moved[at + 28 : at + 34]))
    return content + directory + other + moved + end[:16] + struct.pack("<L", len(content)) + end[20:]


_raw("an archive with two directories", lambda: two_archives(one(9), one(1)))
_raw("an archive behind another", lambda: one(9) + one(1))
_raw("an archive with a comment", lambda: one(9)[:-2] + b"\x04\x00abcd")
_raw("an archive that counts fewer entries", lambda: (b := one(9))[:-14] + b"\x02\x00\x02\x00" + b[-10:])


@file("a pickle that is called a folder")
def _(path: Path, _command: str) -> None:
    content = bytearray(one(9))
    content[content.index(b"PK\x01\x02") + 38] = 16
    path.write_bytes(content)


_archive("two entries but for case", lambda z: z.writestr("archive/DATA/0", bytes(432)))
_archive("a second pickle but for case", lambda z: z.writestr("other/DATA.PKL", b"\x80\x02N."))


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


def two_readings() -> bytes:
    """Safetensors of ones that ``torch.load`` takes for a file of its own, of nines.

    The length of the header begins a text of a pickle, which ends in the metadata; texts of at most 255 bytes lead on
    from there, and the last ends where the tensors begin. So the pickle goes on with the first tensor.
    """
    old = _saved({"w": torch.full((4,), 9.0)}, zipped=False)
    entries = {
        "a": {"dtype": "U8", "shape": [len(old)], "data_offsets": [0, len(old)]},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [len(old), len(old) + 16]},
    }
    head, tail = b'{"__metadata__":{"x":"', b'"},' + json.dumps(entries, separators=(",", ":")).encode()[1:]
    length = 0x1958  # as bytes: X, and 0x19 of what follows is the text
    header = bytearray(head + b"a" * (length - len(head) - len(tail)) + tail)
    at, last = 5 + 0x19 - 8, length - 2 - 126
    assert last < length - len(tail)
    hops = (last - at) // 80
    for hop in range(hops):
        step = (last - at) // (hops - hop)
        header[at : at + 2] = b"U" + bytes([step - 2])
        at += step
    header[at : at + 2] = b"U" + bytes([126])
    return struct.pack("<Q", length) + bytes(header) + old + struct.pack("<4f", 1, 1, 1, 1)


_raw("weights with two readings", two_readings)


@dataclass(frozen=True)
class Door:
    """A checkpoint with sound weights and, beside them, what a reader of our own could stumble over.

    ``steps``: of a pickle that leaves one value. ``said``: what opening says; "opened" where the reader must make it
    inert and go on. ``alive``: whether Python's own unpickler would run something of ``CANARY_MODULE``. ``entries`` of
    the archive beside the weights.
    """

    steps: bytes
    said: str = "opened"
    alive: bool = False
    entries: dict[str, bytes] = field(default_factory=dict)


CANARY_MODULE = '''
"""Whatever is done with this module, or with what is in it, leaves a file."""
from pathlib import Path
def ran(*arguments, **named):
    Path({canary!r}).touch()
    return Thing.__new__(Thing) if arguments == ("new",) else None
ran()
class Thing:
    value = 1
    def __new__(cls, *arguments, **named):
        ran()
        return object.__new__(cls)
    __init__ = __call__ = __setstate__ = __setitem__ = __setattr__ = append = extend = add = method = ran
    def __hash__(self):
        ran()
        return 1
    def __eq__(self, other):
        ran()
        return True
    def __iter__(self):
        ran()
        return iter(())
    def __index__(self):
        ran()
        return 1
    def __str__(self):
        ran()
        return "thing"
'''
"""A module that the sandbox could import: its folder is among those that are handed over."""


def write_canary_module(folder: Path, canary: Path) -> None:
    (folder / "sapper_canary.py").write_text(CANARY_MODULE.replace("{canary!r}", repr(str(canary))))


THING = b"csapper_canary\nThing\n"
RAN = b"csapper_canary\nran\n"
MADE = THING + b")R"

DOORS: dict[str, Door] = {}


def _doors(alive: bool, said: str, **steps: bytes) -> None:
    DOORS.update({name.replace("_", " "): Door(each, said, alive) for name, each in steps.items()})


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


_doors(
    True,
    "opened",
    an_object_by_REDUCE=MADE,
    an_object_by_REDUCE_with_arguments=THING + text("a") + b"\x85R",
    an_object_by_BUILD=MADE + b"}" + text("a") + b"K\x01sb",
    an_object_with_slots_by_BUILD=MADE + b"N}" + text("a") + b"K\x01s\x86b",
    an_object_by_INST=b"(isapper_canary\nThing\n",
    an_object_by_INST_with_arguments=b"(" + text("a") + b"isapper_canary\nThing\n",
    an_object_by_OBJ=b"(" + THING + b"o",
    an_object_by_NEWOBJ=THING + b")\x81",
    an_object_by_NEWOBJ_EX=THING + b")}\x92",
    an_object_by_copyreg=b"ccopy_reg\n_reconstructor\n(" + THING + b"c__builtin__\nobject\nNtR",
    an_object_by_copyreg_again=b"ccopyreg\n__newobj__\n" + THING + b"\x85R",
    items_by_APPEND=MADE + b"Na",
    items_by_APPENDS=MADE + b"(NNe",
    items_by_SETITEM=MADE + b"NNs",
    items_by_SETITEMS=MADE + b"(NNNNu",
    items_by_ADDITEMS=MADE + b"(N\x90",
    an_object_as_a_key=b"}" + MADE + b"Ns",
    objects_as_equal_keys=b"}(" + MADE + b"N" + MADE + b"Nu",
    an_object_as_a_key_of_DICT=b"(" + MADE + b"Nd",
    an_object_in_a_set=b"\x8f(" + MADE + b"\x90",
    an_object_in_a_frozenset=b"(" + MADE + b"\x91",
    a_function_that_is_called=RAN + b")R",
    an_object_that_is_called=MADE + b")R",
    a_method_by_a_dotted_name=short("sapper_canary") + short("Thing.method") + b"\x93)R",
    a_class_by_STACK_GLOBAL=short("sapper_canary") + short("Thing") + b"\x93)\x81",
    a_foreign_setstate=MADE + b"}" + text("__setstate__") + RAN + b"sbNb",
    an_object_with_no_state=MADE + b"Nb",
    an_object_from_the_memo=MADE + b"q\x7f0h\x7fh\x7f\x86",
    a_name_that_is_only_named=RAN,
    a_dict_of_an_object=called("collections", "OrderedDict", MADE),
    a_counter_of_an_object=called("collections", "Counter", MADE),
    a_deque_of_an_object=called("collections", "deque", MADE),
    a_set_of_an_object=called("__builtin__", "set", MADE),
    a_list_of_an_object=called("__builtin__", "list", MADE),
    bytes_of_an_object=called("__builtin__", "bytearray", MADE),
    a_range_of_an_object=called("__builtin__", "xrange", MADE),
    a_path_of_an_object=called("pathlib", "PurePosixPath", MADE),
)
_doors(
    True,
    "a size that is no list",
    a_size_of_an_object=called("torch", "Size", MADE),
)
_doors(True, "would run builtins.__import__", an_import=called("__builtin__", "__import__", text("sapper_canary")))
_doors(
    True,
    "would run importlib.import_module",
    an_import_by_importlib=called("importlib", "import_module", text("sapper_canary")),
)
_doors(
    False,
    "opened",
    a_dict_with_a_foreign_factory=called("collections", "defaultdict", RAN),
    a_deque_without_end=called("collections", "deque", b")", b"\x8a\x09" + bytes(8) + b"\x01"),
    a_range_without_end=called("__builtin__", "xrange", b"K\x00", b"\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000),
    a_slice_without_end=called("__builtin__", "slice", b"\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000),
    a_number_of_a_million_digits=b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
    a_number_of_a_million_digits_as_a_key=b"}\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"Ns",
    bytes_without_end=called("__builtin__", "bytearray", b"\x8a\x08" + b"\xff" * 7 + b"\x7f"),
    lists_in_one_another=b"]" * 10_000 + b"a" * 9_999,
    dicts_in_one_another=b"}" + (text("a") + b"}") * 10_000 + b"s" * 10_000,
    tuples_in_one_another=b")" + b"\x85" * 10**5,
    tuples_in_one_another_as_a_key=b"})" + b"\x85" * 10**5 + b"Ns",
    objects_in_one_another=MADE + (b"}" + text("a") + MADE) * 10_000 + b"sb" * 10_000,
    a_list_that_holds_itself=b"]q\x7fh\x7fa",
    a_dict_beside_that_holds_itself=b"}q\x7f" + text("a") + b"h\x7fs",
    an_object_that_holds_itself=MADE + b"q\x7f}" + text("a") + b"h\x7fsb",
    an_object_of_objects_without_end_as_a_key=(
        b"}" + MADE + b"q\x7f" + (b"0" + MADE + b"}(" + text("a") + b"h\x7f" + text("b") + b"h\x7fubq\x7f") * 60 + b"Ns"
    ),
    an_object_as_its_own_key=MADE + b"q\x7fh\x7fNs",
    a_list_as_a_key=b"}]Ns",
    names_with_control_characters=b"}" + text("\x1b[2J\x00\n\u202e") + b"h\x05s",
    a_name_without_a_code=b"}X\x03\x00\x00\x00\xed\xa0\x80h\x05s",
    a_name_of_a_megabyte=b"}" + text("a" * 10**6) + b"h\x05s",
    state_called_class=MADE + b"}(" + text("__class__") + RAN + text("__dict__") + b"}" + text("__len__") + RAN + b"ub",
    a_namespace_with_odd_names=(
        b"cargparse\nNamespace\n)R}(" + text("__dict__") + b"}" + text("__class__") + MADE + text("a") + b"K\x01ub"
    ),
    a_module_of_odd_parts=(
        MADE + b"}(" + text("_parameters") + b"}" + text("_buffers") + b"K\x01" + text("_modules") + b"}"
        + text("a") + MADE + b"sub"
    ),
    an_array_of_objects=called("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", text("b"))
    + b"(K\x01K\x01\x85" + called("numpy", "dtype", text("O8")) + b"\x89](" + MADE + b"etb",
    an_array_that_stays_empty=called("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", b"N"),
    a_number_format_of_an_object=called("numpy", "dtype", MADE),
    a_sparse_tensor_of_nothing=called("torch._utils", "_rebuild_sparse_tensor", b"N", b"N"),
    a_tensor_without_data_of_exabytes=called(
        "torch._utils", "_rebuild_meta_tensor_no_storage", b"N", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85", b"N", b"\x89"
    ),
    a_tensor_of_the_future=called("torch._utils", "_rebuild_tensor_v9", MADE),
    a_foreign_object_made_of_a_tensor=THING + b"h\x05\x85R",
    a_foreign_tensor_class=called("torch._tensor", "_rebuild_from_type_v2", RAN, THING, b")", b"N"),
    an_encoding_again_and_again=text("a" * 10**6) + b"q\x7f0"
    + (b"c_codecs\nencode\nh\x7f\x85R0") * 100 + b"N",
)  # fmt: skip


def view(
    offset: bytes = b"K\x00",
    size: bytes = b"K\x02\x85",
    stride: bytes = b"K\x01\x85",
    key: str = "0",
    numel: bytes = b"K\x02",
) -> bytes:
    """A tensor on a storage of the archive, whose entry has eight bytes."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + numel + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89" + hooks + b"tR"


HUGE = b"\x8a\x06" + b"\xff" * 5 + b"\x7f"
"""2^47 − 1."""

LONG = b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6
"""A number of eight million bits."""

MANY = b"(" + b"K\x01" * 1000 + b"t"

REACH = "reaches out of its storage"
for _name, _steps, _said in (
    ("a storage that says it is larger", view(size=HUGE + b"\x85", numel=HUGE, key="1"), "larger than the file"),
    ("a storage that says it is a little larger", view(size=b"K\x03\x85", numel=b"K\x03"), "have one name"),
    ("a storage that is larger than it says", view(size=b"K\x01\x85", numel=b"K\x01"), "have one name"),
    ("another storage that says it is larger", view(size=b"K\x03\x85", numel=b"K\x03", key="1"), "of another size"),
    ("a storage of two kinds", view().replace(b"FloatStorage", b"IntStorage"), "two storages in it have one name"),
    ("keys that read alike", b"}(K\x01h\x05" + text("1") + b"h\x05\x88h\x05I1\nh\x05u", "read alike"),
    ("a state for a tensor", view() + b"h\x05\x85b", "a tensor a state"),
    ("no state for a tensor", view() + b"}b", "a tensor a state"),
    ("a state for a parameter", called("torch.nn.parameter", "Parameter", view()) + b"(h\x05\x89N}tb",
     "a tensor a state"),
    ("an old state for a parameter", called("torch.nn.parameter", "Parameter", view()) + b"\x88\x89}\x87b", "opened"),
    ("a state for a storage", b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
     + b"K\x02tQ}" + text("a") + b"Nsb", "a list or a storage a state"),
    ("a tensor with another's data", called("torch._tensor", "_rebuild_from_type_v2",
     b"ctorch._utils\n_rebuild_parameter\nctorch.nn.parameter\nParameter\n(" + view() + b"\x89Nt}" + text("data")
     + b"h\x05s"), "would change the tensor"),
    ("a parameter with another's data", called("torch._utils", "_rebuild_parameter_with_state", view(), b"\x89", b"N",
     b"N}" + text("data") + b"h\x05s\x86"), "would change the tensor"),
    ("a dict with items of another", called("collections", "OrderedDict") + b"}" + text("items") + THING + b"sb",
     "attributes that would change it"),
    ("a dict that is made of what it does not take", b"ccollections\nOrderedDict\n}" + text("a") + b"h\x05s\x85\x81",
     "would come out empty"),
    ("a dict that another is made of", called("copyreg", "_reconstructor", b"ccollections\nOrderedDict\n",
     b"c__builtin__\ndict\n", b"}"), "would come out empty"),
    ("a name in two codes", b"}U\x01\xff" + b"h\x05s", "a code that torch does not read"),
    ("an offset out of the storage", view(offset=b"K\x01"), REACH),
    ("an offset of terabytes", view(offset=HUGE), REACH),
    ("a negative offset", view(offset=b"J\xff\xff\xff\xff"), "none can have"),
    ("a stride out of the storage", view(stride=b"K\x02\x85"), REACH),
    ("a stride of terabytes", view(stride=HUGE + b"\x85"), REACH),
    ("a negative stride", view(stride=b"J\xff\xff\xff\xff\x85"), "none can have"),
    ("a negative size", view(size=b"J\xff\xff\xff\xff\x85"), "none can have"),
    ("a size of text", view(size=text("2") + b"\x85"), "none can have"),
    ("a size of a million digits", view(size=LONG + b"\x85"), "none can have"),
    ("another number of strides", view(stride=b")"), "other numbers of sizes"),
    ("a thousand dimensions", view(size=MANY, stride=MANY), "too many"),
    ("a storage that is not there", view(key="9"), "is missing in its archive"),
    ("a storage outside of the archive", view(key="../data.pkl"), "is missing in its archive"),
    ("no numbers in huge dimensions", view(size=b"K\x00" + HUGE + b"\x86", stride=HUGE + b"K\x01\x86"), "opened"),
    ("two numbers that overlap", view(size=b"K\x02K\x01\x86", stride=b"K\x00K\x01\x86"), "opened"),
    ("a tensor of an object", called("torch._utils", "_rebuild_tensor_v2", MADE, b"K\x00", b")", b")", b"\x89", b"N"),
     "has no storage"),
    ("a tensor with too few words", called("torch._utils", "_rebuild_tensor_v2", b"N"), "no pickle that can be read"),
    ("an object as a persistent id", MADE + b"Q", "refers to something outside"),
    ("an object as the kind of a storage", b"(" + text("storage") + MADE + text("0") + text("cpu") + b"K\x01tQ",
     "of no kind"),
    ("a text as a persistent id", b"Psapper_canary.ran\n", "refers to something outside"),
    ("an extension's number", b"\x83\x01\x00", "extension registry"),
    ("another extension's number", b"\x84\x01\x00\x00\x00", "extension registry"),
    ("a buffer outside", b"\x97", "buffer outside"),
    ("a call of a number", b"K\x01)R", "no function"),
    ("a call with no list", THING + b"K\x01R", "no list of arguments"),
    ("a name that is made up", THING + text("a") + b"\x93", "would run"),
    ("items of a number", b"K\x01NNs", "has none"),
    ("more of a number", b"K\x01(Ne", "no list"),
    ("a state for a number", b"K\x01Nb", "no state"),
    ("a key without a value", b"}(Nu", "no value"),
    ("a step without a value", b"0000R", "no pickle that can be read"),
    ("a mark that is not there", b"t", "no pickle that can be read"),
    ("a memo that is empty", b"h\x7e", "no pickle that can be read"),
    ("a memo at a number below none", b"Np-1\n", "no pickle that can be read"),
    ("a byte array of exabytes", b"\x96" + struct.pack("<Q", 2**62), "read it to its end"),
    ("bytes of exabytes", b"\x8e" + struct.pack("<Q", 2**62), "read it to its end"),
    ("an array with other bytes than its shape", called("numpy.core.multiarray", "_reconstruct", b"N", b"N", b"N")
     + b"(K\x01K\x09\x85" + called("numpy", "dtype", text("f4")) + b"\x89" + _bytes(bytes(4)) + b"tb", "opened"),
    ("an array of terabytes", called("numpy.core.multiarray", "_reconstruct", b"N", b"N", b"N")
     + b"(K\x01" + HUGE + b"\x85" + called("numpy", "dtype", text("f4")) + b"\x89" + _bytes(bytes(4)) + b"tb",
     "opened"),
    ("a number of NumPy's with other bytes", called("numpy.core.multiarray", "scalar",
     called("numpy", "dtype", text("f8")), _bytes(bytes(3))), "other bytes than its format"),
    ("bytes in a foreign code", called("_codecs", "encode", text("a"), text("hex")), "in a code that none are in"),
    ("a storage of an object", called("torch.storage", "_load_from_bytes", MADE), "made of no bytes"),
    ("lists of one another without end", b"]q\x7f0" + b"(h\x7fh\x7flq\x7f0" * 60 + b"h\x7f", "opened"),
    ("dicts of one another without end",
     b"}q\x7f0" + (b"}(" + text("a") + b"h\x7f" + text("b") + b"h\x7fuq\x7f0") * 30 + b"h\x7f",
     "again and again"),
):  # fmt: skip
    DOORS[_name] = Door(_steps, _said)


def nested(steps: bytes) -> bytes:
    """As ``pickle.dump`` writes a storage: bytes of a checkpoint in a checkpoint."""
    stream = (
        b"".join(pickle.dumps(number, 2) for number in (0x1950A86A20F9469CFC6C, 1001, {})) + b"\x80\x02" + steps + b"."
    )
    return called("torch.storage", "_load_from_bytes", _bytes(stream + pickle.dumps([], 2)))


DOORS |= {
    "an object in bytes in a pickle": Door(nested(MADE), alive=True),
    "a program in bytes in a pickle": Door(nested(b"cos\nsystem\n(" + text("true") + b"tR"), "would run os.system"),
    "bytes in bytes in a pickle": Door(nested(nested(b"N")), "bytes of a checkpoint in bytes"),
    "an import in bytes in a pickle": Door(
        nested(called("__builtin__", "__import__", text("sapper_canary"))), "would run builtins.__import__", alive=True
    ),
    "noise in bytes in a pickle": Door(
        called("torch.storage", "_load_from_bytes", _bytes(b"\x80\x02" + bytes(range(256)))), "no pickle"
    ),
    "a storage in bytes that is cut": Door(
        called("torch._utils", "_rebuild_tensor_v2", nested(b"(" + text("storage") + b"ctorch\nFloatStorage\n"
               + text("5") + text("cpu") + b"K\x02tQ"), b"K\x00", b"K\x02\x85", b"K\x01\x85", b"\x89", b"N"),
        "it was cut",
    ),
    "an entry that unpacks to more than it says": Door(b"N", "compressed", entries={"archive/data/9": bytes(2**28)}),
}  # fmt: skip


for _name in ("another storage that says it is larger",):
    DOORS[_name].entries["archive/data/1"] = bytes(8)


def write_door(door: Door, path: Path) -> None:
    """``{"w": tensor, "x": what the door's steps leave}``, the tensor being at 5 in the memo."""
    steps = b"\x80\x04}" + text("w") + view() + b"q\x05s" + text("x") + door.steps + b"s."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", steps)
        archive.writestr("archive/data/0", struct.pack("<ff", 1, 2))
        for name, content in door.entries.items():
            archive.writestr(_entry(name, 0, zipfile.ZIP_DEFLATED), content)
