"""What the reader of pickles makes in place of what a file names: plain descriptions, none of which does anything.

Lists, tuples, dicts, numbers and texts are Python's own. All else that a file can name, make or call becomes one of the
classes here. They compare by identity, so that none can be made equal to another, and none takes time to hash or to
show.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

BIGGEST, MOST_DIMENSIONS = 2**48, 32
"""Sizes, strides and offsets in elements, and how many of them a tensor may have."""


class RefusedError(Exception):
    """The file is not what a checkpoint has to be.

    ``remedy`` is what to do instead, where there is something better than asking for another file. ``dangerous``: to
    open it elsewhere would run code.
    """

    def __init__(self, why: str, *, remedy: str | None = None, dangerous: bool = False):
        self.why, self.remedy, self.dangerous = why, remedy, dangerous


@dataclass(frozen=True, eq=False, repr=False)
class Kind:
    """A number format: torch's name, safetensors' name, bytes a number. ``unread`` says why it cannot be weights."""

    name: str
    safe: str
    size: int
    unread: str | None = None


def _kinds() -> dict[str, Kind]:
    plain = "float64 F64 8 float32 F32 4 float16 F16 2 bfloat16 BF16 2 float8_e4m3fn F8_E4M3 1 float8_e5m2 F8_E5M2 1"
    whole = (
        "int64 I64 8 int32 I32 4 int16 I16 2 int8 I8 1 uint8 U8 1 uint64 U64 8 uint32 U32 4 uint16 U16 2 bool BOOL 1"
    )
    words = f"{plain} {whole}".split()
    kinds = [Kind(name, safe, int(size)) for name, safe, size in zip(words[::3], words[1::3], words[2::3])]
    kinds += [Kind(name, "", 0, "of complex numbers") for name in ("complex32", "complex64", "complex128")]
    kinds += [Kind("float8_e8m0fnu", "", 0, "scale factors of float8_e8m0fnu")]
    kinds += [Kind("float4_e2m1fn_x2", "", 0, "of FP4 (float4_e2m1fn_x2)")]
    odd = ["float8_e4m3fnuz", "float8_e5m2fnuz", *(f"bits{b}" for b in ("8", "16", "1x8", "2x4", "4x2"))]
    odd += [f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)]
    kinds += [Kind(name, "", 0, f"of {name}") for name in odd]
    quantized = ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
    kinds += [Kind(name, "", 0, "a quantized tensor") for name in quantized]
    others = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32"}
    others |= {"short": "int16", "cfloat": "complex64", "cdouble": "complex128"}
    named = {kind.name: kind for kind in kinds}
    return named | {other: named[name] for other, name in others.items()}


KINDS = _kinds()
"""By the name that torch has for it."""

STORAGES = {
    "DoubleStorage": KINDS["float64"],
    "FloatStorage": KINDS["float32"],
    "HalfStorage": KINDS["float16"],
    "BFloat16Storage": KINDS["bfloat16"],
    "LongStorage": KINDS["int64"],
    "IntStorage": KINDS["int32"],
    "ShortStorage": KINDS["int16"],
    "CharStorage": KINDS["int8"],
    "ByteStorage": KINDS["uint8"],
    "UntypedStorage": KINDS["uint8"],
    "BoolStorage": KINDS["bool"],
    "ComplexFloatStorage": KINDS["complex64"],
    "ComplexDoubleStorage": KINDS["complex128"],
    "QInt8Storage": KINDS["qint8"],
    "QUInt8Storage": KINDS["quint8"],
    "QInt32Storage": KINDS["qint32"],
    "QUInt4x2Storage": KINDS["quint4x2"],
    "QUInt2x4Storage": KINDS["quint2x4"],
}
"""The number format of each of torch's classes of storages."""

NUMPY_KINDS = {
    "f8": KINDS["float64"],
    "f4": KINDS["float32"],
    "f2": KINDS["float16"],
    "bfloat16": KINDS["bfloat16"],
    "i8": KINDS["int64"],
    "i4": KINDS["int32"],
    "i2": KINDS["int16"],
    "i1": KINDS["int8"],
    "u8": KINDS["uint64"],
    "u4": KINDS["uint32"],
    "u2": KINDS["uint16"],
    "u1": KINDS["uint8"],
    "b1": KINDS["bool"],
    "c8": KINDS["complex64"],
    "c16": KINDS["complex128"],
}
"""By NumPy's letter and bytes."""


@dataclass(frozen=True, eq=False, repr=False)
class Named:
    """What the file names by module and name, and is not known here. It is neither imported nor called."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, repr=False)
class Key:
    """A key of a dict that is short bytes, or a short tuple of texts and numbers. It never equals a text."""

    of: bytes | tuple[str | int, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.of))})" if isinstance(self.of, tuple) else f"({self.of!r})"


class OldText(str):
    """A text as Python 2 wrote it: bytes, of which each is a character here, and which torch reads as UTF-8."""

    __slots__ = ()


class PathText(str):
    """The text of a path, which is no text to Python."""

    __slots__ = ()


@dataclass(eq=False, repr=False)
class Placeholder:
    """An object of a class that is not known here: the name of the class, and the values that the file hangs on it.

    ``held``: what it is made with, and what is added to it. What its class does with all these is not known.
    """

    of: str
    held: list[Any] = field(default_factory=list)
    state: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Thing:
    """Something harmless that is no weight, in plain words."""

    what: str


@dataclass(frozen=True, eq=False, repr=False)
class Unread:
    """A tensor that cannot be weights as it is, in plain words."""

    what: str


class Holder(Protocol):
    """Where the bytes of storages lie."""

    big_endian: bool

    def data(self, key: str) -> memoryview:
        """The bytes of a storage. Raises ``RefusedError`` when there are none of that name."""


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """Numbers in a row: where their bytes lie, under which key, the first of them, and how many."""

    holder: Holder
    key: str
    kind: Kind
    elements: int
    start: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Tensor:
    """A view of a storage, in elements of ``kind`` from the storage's first. Nothing is read before it is wanted."""

    storage: Storage
    kind: Kind
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.size) * self.kind.size


def tensor(storage: object, kind: object, offset: object, size: object, stride: object) -> Tensor | Unread:
    """The view that the file describes, if its numbers can be those of a view at all."""
    if isinstance(storage, Unread):
        return storage
    if not isinstance(storage, Storage) or not isinstance(kind, Kind):
        raise RefusedError("a tensor in it has no storage")
    if kind.unread is not None:
        return Unread(kind.unread)
    size, stride = numbers(size), numbers(stride)
    (offset,) = numbers((offset,))
    if len(size) != len(stride):
        raise RefusedError("a tensor in it has other numbers of sizes and of strides")
    if storage.holder.big_endian and kind.size != storage.kind.size:
        return Unread("of numbers whose bytes are in another order")
    return Tensor(storage, kind, offset, size, stride)


def numbers(values: object) -> tuple[int, ...]:
    """Sizes, strides or offsets, if they can be such."""
    if not isinstance(values, tuple | list) or len(values) > MOST_DIMENSIONS:
        raise RefusedError("a tensor in it has no shape, or one of too many dimensions")
    if not all(type(value) is int and 0 <= value < BIGGEST for value in values):
        raise RefusedError("a tensor in it has a shape or a place that none can have")
    return tuple(values)


LONGEST_TUPLE, LONGEST_KEY = 8, 200


def key(value: Any) -> Any:
    """A key of a dict that takes no time to hash or to compare, in place of one that could be made to.

    Those that are equal to Python are equal here, and no others, but for objects, which are never equal here.
    """
    if isinstance(value, OldText):
        return _utf8(value)
    if value is None or type(value) is str or isinstance(value, bool | float | Named | Placeholder | Thing):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else Thing("a large number")
    if isinstance(value, bytes) and len(value) <= LONGEST_KEY:
        return Key(value)
    if isinstance(value, tuple) and len(value) <= LONGEST_TUPLE and all(_is_short(each) for each in value):
        return Key(tuple(_utf8(each) if isinstance(each, OldText) else each for each in value))
    return Thing("a key that is no text")


def _utf8(text: OldText) -> str:
    try:
        return text.encode("latin-1").decode()
    except UnicodeError as error:
        raise RefusedError("a name in it is in a code that torch does not read") from error


def _is_short(part: Any) -> bool:
    if isinstance(part, str):
        return len(part) <= LONGEST_KEY and not isinstance(part, PathText)
    return isinstance(part, int) and abs(part) < 2**63


class Bytes:
    """The bytes of one storage by itself."""

    big_endian = False

    def __init__(self, content: bytes | bytearray | memoryview):
        self.content = memoryview(content)

    def data(self, key: str) -> memoryview:
        return self.content
