"""The formats that ``torch.save`` and ``pickle.dump`` write: where the pickle is, and where the bytes of storages are.

An archive (zip) since torch 1.6, a stream of pickles with the storages behind them before that; a state dict that
``pickle.dump`` wrote is one pickle, in which each storage is such a stream again.
"""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any

from sapper.sandbox import pickles
from sapper.sandbox.values import Kind, RefusedError, Storage, Unread, numbers

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two numbers of a stream (``torch.serialization``)."""

MIB = 2**20
MOST_ENTRIES, MOST_NESTED = 200_000, 1
MOST_INFLATION = 4
"""Bytes that a compressed archive beyond 64 MiB may hold for each of its own; weights compress by a tenth."""

OF_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar", ".npz")

PACK = "pack it again without compression: mkdir NEW && cd NEW && unzip ../FILE && zip -0 -r ../NEW.pth *"


def most_content(size: int) -> int:
    """Bytes that an archive of that size may hold."""
    return max(MOST_INFLATION * size, 64 * MIB)


def is_archive(file: IO[bytes]) -> bool:
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def look(file: IO[bytes], size: int) -> int:
    """The bytes of content. An archive has to be one as torch writes it, or as somebody has packed it again.

    Nothing in it may be a link, lead out of it, be there twice, overlap, be encrypted or be code.
    """
    archive = is_archive(file)
    file.seek(0)
    if not zipfile.is_zipfile(file):
        if archive:
            again = "get it again: the download or copy was not finished"
            raise RefusedError("it is an archive that was cut: its directory, at the end, is missing", remedy=again)
        return size
    if not archive:
        raise RefusedError("it is an archive with something else in front")
    try:
        with zipfile.ZipFile(file) as content:
            entries = content.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, UnicodeDecodeError) as error:
        raise RefusedError(f"its archive is damaged: {error}") from error
    _check_directory(file, size, entries)
    names = [entry.filename for entry in entries]
    if len(names) > MOST_ENTRIES:
        raise RefusedError(f"its archive has {len(names)} entries")
    if len({name.casefold() for name in names}) < len(names):
        raise RefusedError("its archive has two entries of one name")  # torch does not tell A from a
    _check_purpose(names)
    for entry in entries:
        _check_entry(entry)
    if sum(entry.compress_size for entry in entries) > size:
        raise RefusedError("its archive holds more than its size: entries overlap")
    whole = sum(entry.file_size for entry in entries)
    if whole > most_content(size):
        raise RefusedError("its archive is compressed, and would hold many times its size", remedy=PACK)
    return max(size, whole)


END, END_64, LOCATOR = "<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL"
"""The last records of an archive, and in large ones the two before. Source: PKWARE's APPNOTE.TXT, 4.3.14 to 4.3.16."""


def _check_directory(file: IO[bytes], size: int, entries: list[zipfile.ZipInfo]) -> None:
    """There is one directory alone, wherever a reader looks for it.

    zipfile looks in front of the last record, and torch where that record points to: were these two places, each would
    see another archive.
    """
    end = size - struct.calcsize(END)
    mark, *disks, here, count, length, start, comment = _record(file, END, end)
    if mark != b"PK\x05\x06" or comment:
        raise RefusedError("its archive has something behind its end", remedy=PACK)
    at = end - struct.calcsize(LOCATOR)
    mark, _, pointed, _ = _record(file, LOCATOR, at)
    if mark == b"PK\x06\x07":
        end = at - struct.calcsize(END_64)
        mark, rest, _, _, *disks, here, count, length, start = _record(file, END_64, end)
        if mark != b"PK\x06\x06" or rest != struct.calcsize(END_64) - 12 or pointed != end:
            raise RefusedError("its archive has an end that is elsewhere, or two", remedy=PACK)
    if any(disks) or here != count or count != len(entries) or start + length != end:
        raise RefusedError("its archive has a directory that is elsewhere, or two", remedy=PACK)
    if min((entry.header_offset for entry in entries), default=0) != 0:
        raise RefusedError("its archive has something in front of its first entry", remedy=PACK)
    file.seek(start)
    _check_names(file.read(length), entries)


def _record(file: IO[bytes], form: str, at: int) -> tuple[Any, ...]:
    size = struct.calcsize(form)
    file.seek(max(at, 0))
    return struct.unpack(form, file.read(size).rjust(size, b"\0") if at >= 0 else bytes(size))


def _check_names(directory: bytes, entries: list[zipfile.ZipInfo]) -> None:
    """The names are those in the directory, not what zipfile makes of them, and the directory holds nothing else."""
    at = 0
    for entry in entries:
        name, extra, comment = struct.unpack("<3H", directory[at + 28 : at + 34].ljust(6, b"\0"))
        raw = directory[at + 46 : at + 46 + name]
        if raw.decode("utf-8" if entry.flag_bits & 0x800 else "cp437", "replace") != entry.filename:
            raise RefusedError("its archive has an entry of two names", remedy=PACK)
        at += 46 + name + extra + comment
    if at != len(directory):
        raise RefusedError("its archive has a directory with something else in it", remedy=PACK)


def _check_purpose(names: list[str]) -> None:
    """Say what an archive is that holds no checkpoint."""
    pickled = sum(_is_pickle(name.casefold()) for name in names)
    if pickled and any("/code/" in name or name.casefold().endswith("/constants.pkl") for name in names):
        remedy = "load it where you trust it, and save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        raise RefusedError("it is TorchScript, which is code", remedy=remedy)
    if any(name.rpartition("/")[2] == "archive_format" for name in names):
        remedy = "load it where you trust it, and save its weights: torch.save(torch.export.load(FILE).state_dict, NEW)"
        raise RefusedError("it is a program of torch.export", remedy=remedy)
    if pickled == 1 and any(map(_is_pickle, names)):
        return
    inner = [name for name in names if name.endswith(OF_WEIGHTS)]
    if not pickled and inner:
        shown = f"{inner[0]!r}" + (f" and {len(inner) - 1} more" if len(inner) > 1 else "")
        raise RefusedError(f"it is an archive that holds {shown}", remedy="unpack it, and name the file in it")
    if any(name.endswith(".npy") for name in names):
        raise RefusedError("it is an archive of NumPy arrays (.npz)")
    raise RefusedError("it is an archive, but none that torch.save wrote")


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


FOLDER = 0x10
"""The mark of a folder in what MS-DOS says of a file."""


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if entry.flag_bits & 1:
        raise RefusedError(f"{name!r} in its archive is encrypted", remedy=PACK)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RefusedError(f"{name!r} in its archive is compressed in a way that is not read", remedy=PACK)
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise RefusedError(f"{name!r} in its archive has two sizes")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise RefusedError(f"{name!r} in its archive is a link")
    if entry.external_attr & FOLDER and not name.endswith("/"):
        raise RefusedError(f"{name!r} in its archive is called a folder")  # torch would read nothing in its place
    if name.startswith("/") or ".." in name.split("/"):
        raise RefusedError(f"{name!r} in its archive leads out of it")


class Archive:
    """Storages in an archive: ``data/KEY`` beside the pickle."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.names = frozenset(archive.namelist())
        self.folder = next(name for name in archive.namelist() if _is_pickle(name)).removesuffix("data.pkl")
        order = self.entry("byteorder") if f"{self.folder}byteorder" in self.names else b"little"
        if order not in (b"little", b"big"):
            raise RefusedError("its numbers are in an order that is not known")
        self.big_endian = order == b"big"
        self.known = Known()
        self.kept: dict[str, memoryview] = {}

    def entry(self, name: str) -> bytes:
        full = f"{self.folder}{name}"
        if full not in self.names:
            raise RefusedError(f"{full!r} is missing in its archive")
        try:
            with self.archive.open(full) as file:
                return file.read(self.archive.getinfo(full).file_size)  # and no more, whatever it unpacks to
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise RefusedError(f"{full!r} in its archive is damaged: {error}") from error

    def data(self, key: str) -> memoryview:
        if key not in self.kept:
            content = memoryview(self.entry(f"data/{key}"))
            if key in self.known.sizes and len(content) != self.known.sizes[key]:
                raise RefusedError(f"storage {key[:40]!r} is of another size than it says: {CUT}")
            self.kept[key] = content
        return self.kept[key]

    def persistent(self, identity: Any) -> Any:
        return _storage(self, self.known, identity)


CUT = "the file is cut, or made to mislead"


class Known:
    """What was said of each storage. A second word on one that differs is refused: what torch makes of it depends on
    its version, and on which of them it meets first."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self.sizes: dict[str, int] = {}
        self.parts: dict[str, tuple[str, int, int]] = {}

    def whole(self, key: str, kind: Kind, elements: int) -> None:
        size = elements * _element(kind)
        before = self.kinds.get(key, kind), self.sizes.get(key, size)
        if key in self.parts or (before != (kind, size) and (size or before[1])):
            raise RefusedError("two storages in it have one name")
        self.kinds[key], self.sizes[key] = kind, size

    def part(self, key: str, of: str, start: int, elements: int) -> None:
        if key in self.kinds or self.parts.setdefault(key, (of, start, elements)) != (of, start, elements):
            raise RefusedError("two storages in it have one name")
        if (start + elements) * _element(self.kinds[of]) > self.sizes[of]:
            raise RefusedError("a part of a storage in it reaches out of it")


class Stream:
    """Storages behind the pickles of a stream, in the order of their keys."""

    big_endian = False

    def __init__(self) -> None:
        self.known = Known()
        self.kept: dict[str, memoryview] = {}

    def data(self, key: str) -> memoryview:
        if key not in self.kept:
            raise RefusedError("the data of its storages are missing: it was cut")
        return self.kept[key]

    def persistent(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
            return identity[1]  # a class and its source text, which is not read
        return _storage(self, self.known, identity)

    def take(self, keys: Any, content: memoryview) -> None:
        """The storages: each a number of elements and that many."""
        if not isinstance(keys, list):
            raise RefusedError("it has no list of its storages")
        for key in keys:
            name, length = _key(key), int.from_bytes(content[:8], "little")
            if name not in self.known.kinds:
                raise RefusedError("it lists a storage that nothing refers to")
            size = length * _element(self.known.kinds[name])
            if len(content) < 8 or size > len(content) - 8:
                remedy = "get it again: the download or copy was not finished"
                raise RefusedError("it was cut: it is shorter than its storages", remedy=remedy)
            if size != self.known.sizes[name]:
                raise RefusedError(f"storage {name[:40]!r} is of another size than it says: {CUT}")
            self.kept[name], content = content[8 : 8 + size], content[8 + size :]


OTHER_SIZES = {"complex128": 16, "complex64": 8, "qint32": 4}


def _element(kind: Kind) -> int:
    return kind.size or OTHER_SIZES.get(kind.name, 1)


def _key(key: Any) -> str:
    if not isinstance(key, str) or not key.isascii():
        raise RefusedError("a storage in it has no name")
    return str(key)


def _storage(holder: Any, known: Known, identity: Any) -> Storage | Unread:
    """``("storage", class, key, device, elements)``, in old files with a part of it: ``(key, first, elements)``."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise RefusedError("it refers to something outside of it that is no storage")
    _, kind, key, device, elements, part = identity if len(identity) == 6 else (*identity, None)
    if not isinstance(kind, Kind):
        raise RefusedError("a storage in it is of no kind that torch has")
    name, (elements,) = _key(key), numbers((elements,))
    known.whole(name, kind, elements)
    start = 0
    if part is not None:
        if not isinstance(part, tuple) or len(part) != 3:
            raise RefusedError("a storage in it is a part from no possible place")
        start, elements = numbers(part[1:])
        known.part(_key(part[0]), name, start, elements)
    return Unread("a tensor without data") if device == "meta" else Storage(holder, name, kind, elements, start)


Scan = Callable[[IO[bytes]], None]


def read(file: IO[bytes], scan: Scan, depth: int = 0) -> Any:
    """The content of a checkpoint, with ``Tensor`` and other classes of ``values`` in place of tensors and objects.

    ``scan`` raises ``RefusedError`` when a pickle names what would run code; it sees also what lies in bytes.
    """

    def nested(content: bytes) -> Any:
        if depth >= MOST_NESTED:
            raise RefusedError("it has bytes of a checkpoint in bytes of a checkpoint")
        inside = io.BytesIO(content)
        look(inside, len(content))
        scan(inside)
        return read(inside, scan, depth + 1)

    if is_archive(file):
        return _read_archive(file, nested)
    file.seek(0)
    content = file.read()
    return _read_stream(content, nested)


def _read_archive(file: IO[bytes], nested: Callable[[bytes], Any]) -> Any:
    from picklescan.relaxed_zipfile import RelaxedZipFile

    file.seek(0)
    archive = Archive(RelaxedZipFile(file))  # without sums of bytes, which torch does not check and need not write
    stream = io.BytesIO(archive.entry("data.pkl"))
    return pickles.read(stream, archive.persistent, nested)


def _read_stream(content: bytes, nested: Callable[[bytes], Any]) -> Any:
    """A stream of torch's, or a single pickle."""
    stream = io.BytesIO(content)
    first = pickles.read(stream, pickles.no_persistent, nested)
    if type(first) is not int or first != MAGIC:
        return first
    if pickles.read(stream, pickles.no_persistent, nested) != PROTOCOL:
        raise RefusedError("it is of a version of torch's format that is not known")
    pickles.read(stream, pickles.no_persistent, nested)  # of the machine that wrote it
    storages = Stream()
    found = pickles.read(stream, storages.persistent, nested)
    keys = pickles.read(stream, pickles.no_persistent, nested)
    storages.take(keys, memoryview(content)[stream.tell() :])
    return found
