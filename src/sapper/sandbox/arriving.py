"""What is made empty in a pickle and filled later: NumPy's number formats and arrays."""

import math
from typing import Any

from sapper.sandbox.values import (
    NUMPY_KINDS,
    Bytes,
    Kind,
    Named,
    RefusedError,
    Storage,
    Tensor,
    Thing,
    Unread,
    numbers,
    tensor,
)


class Arriving:
    """Something that is made empty and gets its content later, as NumPy's arrays and number formats do."""

    def arrive(self, state: Any) -> None:
        raise NotImplementedError


class Format(Arriving):
    """A number format of NumPy's: a letter and a number of bytes, and their order."""

    def __init__(self, code: Any):
        self.code = code if isinstance(code, str) else code.name if isinstance(code, Named) else ""
        self.order = "<"
        self.settled = False

    def arrive(self, state: Any) -> None:
        if self.settled or not isinstance(state, tuple) or len(state) < 2:
            raise RefusedError("a number format of NumPy's in it is changed later on")
        self.settled = True
        if any(each is not None for each in state[2:5]):
            self.code = ""  # of several parts
        if isinstance(state[1], str) and state[1] in ("<", ">", "|", "="):
            self.order = "<" if state[1] in ("|", "=") else state[1]
        else:
            self.code = ""

    @property
    def kind(self) -> Kind | None:
        return NUMPY_KINDS.get(self.code)

    @property
    def holds_no_numbers(self) -> bool:
        """Whether it is of texts or times."""
        return self.code[:1] in ("U", "S", "M", "m")


class Array(Arriving):
    """An array of NumPy's; nothing of it is read before it is wanted."""

    def __init__(self) -> None:
        self.shape: Any = ()
        self.format: Any = None
        self.column_first = False
        self.content: Any = None

    def arrive(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise RefusedError("a NumPy array in it has a state that none has")
        _, self.shape, self.format, self.column_first, self.content = state
        if isinstance(self.format, Format):
            self.format.settled = True

    def tensor(self) -> Tensor | Unread | Thing:
        """The array as a tensor, where it holds plain numbers."""
        if isinstance(self.format, Format) and self.format.holds_no_numbers:
            return Thing("a NumPy array of something else than numbers")
        kind = self.format.kind if isinstance(self.format, Format) else None
        if kind is None or type(self.column_first) is not bool or not isinstance(self.content, bytes | bytearray | str):
            return Unread("a NumPy array of something else than plain numbers")
        if kind.unread is not None:
            return Unread(kind.unread)
        try:
            shape, content = numbers(self.shape), as_bytes(self.content)
        except RefusedError:
            return Unread("a NumPy array whose shape or bytes cannot be")
        count = math.prod(shape)
        if len(content) != count * kind.size:
            return Unread("a NumPy array that has other bytes than its shape asks for")
        holder = Bytes(content)
        holder.big_endian = self.format.order == ">"
        return tensor(Storage(holder, "", kind, count), kind, 0, shape, _strides(shape, self.column_first))


def _strides(shape: tuple[int, ...], column_first: bool) -> tuple[int, ...]:
    """Elements from one index to the next, along each dimension."""
    step, strides = 1, []
    for length in shape if column_first else shape[::-1]:
        strides.append(step)
        step = min(step * max(length, 1), 2**47)  # beyond that there are no elements that it could matter for
    return tuple(strides if column_first else strides[::-1])


def as_bytes(content: bytes | bytearray | str) -> bytes | bytearray:
    """Python 2 wrote bytes as text."""
    try:
        return content.encode("latin-1") if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise RefusedError("a text in it stands where bytes should be") from error
