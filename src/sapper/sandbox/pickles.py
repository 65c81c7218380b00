"""A reader of pickles that imports nothing and calls nothing that a file names.

A pickle is a program for a small machine with a stack. Here is one of our own: ``pickletools.genops`` takes the stream
apart, as it does for picklescan, so that what was scanned is what is read. A name becomes a value of ``builders`` where
it is known, and else an inert ``Named``; to call, build or fill that makes a ``Placeholder``. There is no way from a
name in the file to Python's own modules.
"""

import collections
import io
import pickletools
from collections.abc import Callable
from typing import Any

from sapper.sandbox.arriving import Arriving
from sapper.sandbox.builders import Builder, find
from sapper.sandbox.values import (
    Kind,
    Named,
    OldText,
    Placeholder,
    RefusedError,
    Storage,
    Tensor,
    Thing,
    Unread,
    key,
)

MOST_MEMO = 2**32
NESTED_WORK = 2**17
MOST_WORK, MOST_COPIES = 2**30, 4
"""Bytes that builders may copy, and as many more for each byte of the pickle: no file asks for copies without end."""

Persistent = Callable[[Any], Any]
"""What a persistent id stands for: a storage, where torch wrote the file."""


def no_persistent(_id: Any) -> Any:
    raise RefusedError("it refers to something outside of it (a persistent id)")


def read(stream: io.BytesIO, persistent: Persistent, nested: Callable[[bytes], Any]) -> Any:
    """The content of one pickle, the stream being left behind its end.

    ``nested`` reads bytes that ``torch.save`` wrote, which a pickle of storages holds. Raises ``RefusedError``.
    """
    machine = Machine(persistent, nested, MOST_WORK + MOST_COPIES * stream.getbuffer().nbytes)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            OPERATIONS[opcode.name](machine, argument)
        return machine.result
    except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise RefusedError(f"it is no pickle that can be read to its end ({_words(error)})") from error


def _words(error: Exception) -> str:
    if isinstance(error, LookupError):
        return "a step without a value, or a reference to nothing"
    return " ".join(str(error).split())[:100]


class Machine:
    """The stack, the marks in it and the memo. ``OPERATIONS`` are all that can be done with them."""

    def __init__(self, persistent: Persistent, nested: Callable[[bytes], Any], most_work: int):
        self.persistent, self._nested = persistent, nested
        self._read: dict[int, tuple[bytes, Any]] = {}
        self._work = most_work
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def spend(self, work: int) -> None:
        """Count bytes that a step copies beyond its own length."""
        self._work -= work
        if self._work < 0:
            raise RefusedError("it copies the same again and again")

    def nested(self, content: bytes) -> Any:
        """The content of bytes that ``torch.save`` wrote; each is read once, however often it is asked for."""
        if id(content) not in self._read:
            self.spend(NESTED_WORK + len(content))
            self._read[id(content)] = content, self._nested(content)
        return self._read[id(content)][1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def take(self, count: int) -> list[Any]:
        """The top values, in the order in which they were put there."""
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def pop_mark(self, _: Any) -> None:
        self.to_mark()

    def put(self, index: Any) -> None:
        if not 0 <= index < MOST_MEMO:
            raise ValueError("a reference out of range")
        self.memo[index] = self.stack[-1]

    def global_(self, argument: str) -> None:
        self.push(find(*argument.split(" ", 1)))

    def stack_global(self, _: Any) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("it makes up what it names")
        self.push(find(module, name))

    def inst(self, argument: str) -> None:
        arguments = self.to_mark()
        self.push(self.called(find(*argument.split(" ", 1)), arguments))

    def obj(self, _: Any) -> None:
        function, *arguments = self.to_mark()
        self.push(self.called(function, arguments))

    def reduce(self, _: Any) -> None:
        function, arguments = self.take(2)
        self.push(self.called(function, arguments))

    def newobj(self, _: Any) -> None:
        cls, arguments = self.take(2)
        self.push(self.made(cls, arguments))

    def newobj_ex(self, _: Any) -> None:
        cls, arguments, named = self.take(3)
        self.push(self.made(cls, arguments, named))

    def called(self, function: Any, arguments: Any) -> Any:
        """What stands for the result of a call, or of making an object: no code but that of ``builders`` runs."""
        if not isinstance(arguments, tuple | list):
            raise RefusedError("it calls something with no list of arguments")
        if isinstance(function, Builder):
            return function.build(self, *arguments[: function.most])
        if isinstance(function, Named):
            return Placeholder(str(function), [arguments] if arguments else [])
        if isinstance(function, Placeholder):
            return Placeholder(function.of, [function, arguments])
        if isinstance(function, Kind):  # classes of storages, called: none of torch's files does that
            return Thing("a storage by itself")
        raise RefusedError("it calls something that is no function")

    def made(self, cls: Any, arguments: Any, named: Any = None) -> Any:
        """What stands for a new object. Lists and dicts take no content before they are filled."""
        made = self.called(cls, arguments)
        if isinstance(made, Placeholder):
            made.held += [named] if named else []
        elif named or (arguments and isinstance(made, dict | list | bytes)):
            raise RefusedError("it makes something anew that would come out empty")
        return made

    def build(self, _: Any) -> None:
        """State for an object: kept where it hangs on a placeholder or an array, and else only what has no effect."""
        (state,) = self.take(1)
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
                if isinstance(part, dict):
                    self.spend(100 * len(part))
                    target.state.update(part)
                elif part is not None:
                    target.held.append(part)
        elif isinstance(target, Arriving):
            target.arrive(state)
        elif isinstance(target, dict):
            if state and not (isinstance(state, dict) and all(_is_harmless(name) for name in state)):
                raise RefusedError("it gives a dict attributes that would change it")
        elif isinstance(target, Tensor):
            if not _is_old_state(state):
                raise RefusedError("it gives a tensor a state, which would change it")
        elif isinstance(target, list | Storage):
            if state:
                raise RefusedError("it gives a list or a storage a state, which would change it")
        elif not isinstance(target, Unread | Thing):
            raise RefusedError("it changes something that has no state")

    def fill(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if len(pairs) % 2:
            raise RefusedError("it has a dict with a key and no value")
        if isinstance(target, Placeholder):
            target = target.items
        if not isinstance(target, dict):
            raise RefusedError("it sets items of something that has none")
        for index in range(0, len(pairs), 2):
            target[key(pairs[index])] = pairs[index + 1]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Placeholder):
            target.held.append(items)
        else:
            raise RefusedError("it adds to something that is no list")

    def dict_(self, _: Any) -> None:
        pairs = self.to_mark()
        self.push({})
        self.fill(pairs)

    def persid(self, _: Any) -> None:
        self.push(self.persistent(self.take(1)[0]))

    def stop(self, _: Any) -> None:
        self.result = self.stack.pop()


def _is_harmless(name: Any) -> bool:
    """Whether an attribute of a dict is none by which a dict works: torch hangs ``_metadata`` on state dicts."""
    return isinstance(name, str) and not hasattr(collections.OrderedDict, name)


def _is_old_state(state: Any) -> bool:
    """What torch before 0.4 wrote behind a parameter: whether it takes gradients, another truth, and no hooks."""
    return isinstance(state, tuple) and len(state) == 3 and isinstance(state[0], bool) and not state[2]


def _not_here(what: str) -> Callable[[Machine, Any], None]:
    def refuse(_machine: Machine, _argument: Any) -> None:
        raise RefusedError(f"it holds {what}, which no file of weights does")

    return refuse


def _nothing(_machine: Machine, _argument: Any) -> None:
    pass


OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(["PROTO", "FRAME", "READONLY_BUFFER"], _nothing),
    **dict.fromkeys(
        ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"], Machine.push
    ),
    **dict.fromkeys(["STRING", "BINSTRING", "SHORT_BINSTRING"], lambda machine, text: machine.push(OldText(text))),
    **dict.fromkeys(["UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"], Machine.push),
    **dict.fromkeys(["BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"], Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "LIST": lambda machine, _: machine.push(machine.to_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.to_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "DICT": Machine.dict_,
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.fill(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.fill(machine.to_mark()),
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": Machine.pop_mark,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], lambda machine, index: machine.push(machine.memo[index])),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT"], Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GLOBAL": Machine.global_,
    "STACK_GLOBAL": Machine.stack_global,
    "INST": Machine.inst,
    "OBJ": Machine.obj,
    "REDUCE": Machine.reduce,
    "NEWOBJ": Machine.newobj,
    "NEWOBJ_EX": Machine.newobj_ex,
    "BUILD": Machine.build,
    "BINPERSID": Machine.persid,
    "PERSID": lambda machine, name: machine.push(machine.persistent(name)),
    **dict.fromkeys(["EXT1", "EXT2", "EXT4"], _not_here("a number of the extension registry")),
    "NEXT_BUFFER": _not_here("a buffer outside of it"),
    "STOP": Machine.stop,
}
"""Every opcode of protocols 0 to 5. Sets are lists here: nothing is hashed but keys of dicts."""
