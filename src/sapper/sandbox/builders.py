"""What names in a checkpoint's pickle stand for here: functions of ours for those that are known, and nothing else.

``find`` is the only way from a name to a value. Each builder takes what the file passes, checks its type, and describes
the result; none of them calls anything that the file gave it.
"""

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sapper.sandbox.arriving import Array, Format, as_bytes
from sapper.sandbox.values import (
    KINDS,
    STORAGES,
    Named,
    OldText,
    PathText,
    Placeholder,
    RefusedError,
    Storage,
    Tensor,
    Thing,
    Unread,
    key,
    tensor,
)


class Reader(Protocol):
    """What builders need of the machine that reads."""

    def spend(self, work: int) -> None:
        """Count work that is more than the length of the step that asked for it."""

    def nested(self, content: bytes) -> Any:
        """The content of bytes that ``torch.save`` wrote."""

    def called(self, function: Any, arguments: Any) -> Any:
        """What stands for the result of a call."""

    def made(self, cls: Any, arguments: Any, named: Any = None) -> Any:
        """What stands for a new object, which is given the arguments when it is made, not when it is filled."""


@dataclass(frozen=True, eq=False)
class Builder:
    """Ours, in place of a function or class that the file names. Arguments beyond ``most`` are dropped."""

    build: Callable[..., Any]
    most: int


KNOWN: dict[str, Any] = {}
"""By module and name."""


def builds(*names: str, most: int = 16) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        KNOWN.update(dict.fromkeys(names, Builder(function, most)))
        return function

    return add


@builds("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", most=7)
def _tensor(
    _: Reader,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any = None,
    _hooks: Any = None,
    about: Any = None,
) -> Any:
    if isinstance(about, dict) and about:
        return Unread("a tensor that is to be negated or conjugated")
    return tensor(storage, storage.kind if isinstance(storage, Storage) else None, offset, size, stride)


@builds("torch._utils._rebuild_tensor_v3", most=8)
def _tensor_of_kind(
    _: Reader,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    kind: Any,
    about: Any = None,
) -> Any:
    if isinstance(about, dict) and about:
        return Unread("a tensor that is to be negated or conjugated")
    return tensor(storage, kind, offset, size, stride)


@builds("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", most=1)
def _itself(_: Reader, data: Any = None) -> Any:
    if data is None:
        return Unread("a tensor without data")
    if not isinstance(data, Tensor | Unread):
        raise RefusedError("a parameter in it is made of no tensor")
    return data


@builds("torch._utils._rebuild_parameter_with_state", most=4)
def _with_state(machine: Reader, data: Any, _grad: Any = None, _hooks: Any = None, state: Any = None) -> Any:
    _check_attributes(state)
    return _itself(machine, data)


@builds(
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_xla_tensor",
    most=3,
)
def _from_device(machine: Reader, data: Any, kind: Any = None, device: Any = None) -> Any:
    """A tensor that was on a device of its own: its numbers, unless they are to be converted."""
    data = data.tensor() if isinstance(data, Array) else data
    if isinstance(data, Tensor) and (data.kind is not kind or device == "meta"):
        return Unread("a tensor that is to be converted")
    return _itself(machine, data)


PLAIN = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
"""Classes of tensors that change nothing about the numbers."""

CHANGING = frozenset(("data", "real", "imag", "names", "grad", "__class__", "__dict__", "__setstate__"))
"""Attributes of tensors by which a state would change numbers, or how they are read."""


@builds("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2", most=4)
def _from_type(machine: Reader, function: Any, cls: Any, arguments: Any, state: Any = None) -> Any:
    """A tensor with attributes: its numbers. Those of subclasses are what their code makes of them."""
    _check_attributes(state)
    plain = str(cls) in PLAIN if isinstance(cls, Named) else cls in (KNOWN[name] for name in PLAIN[1:])
    if not isinstance(function, Builder) or not plain:
        return Unread("a tensor of a class of its own")
    return machine.called(function, arguments)


def _check_attributes(state: Any) -> None:
    """What hangs on a tensor: a dict of attributes, or such a dict and one of slots."""
    for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if part is not None and not isinstance(part, dict):
            raise RefusedError("a tensor in it has a state that none has")
        if part and any(not isinstance(name, str) or name in CHANGING for name in part):
            raise RefusedError("the attributes of a tensor in it would change the tensor")


def _unread(what: str, *names: str) -> None:
    KNOWN.update({name: Builder(lambda _: Unread(what), 0) for name in names})


_unread("a sparse tensor", "torch._utils._rebuild_sparse_tensor")
_unread("a quantized tensor", "torch._utils._rebuild_qtensor")
_unread("a nested tensor", "torch._utils._rebuild_nested_tensor")
_unread("a tensor of a class of its own", "torch._utils._rebuild_wrapper_subclass")
_unread(
    "a tensor without data",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch.nn.parameter.UninitializedParameter",
    "torch.nn.parameter.UninitializedBuffer",
)


@builds("torch.storage._load_from_bytes", most=1)
def _from_bytes(machine: Reader, content: Any) -> Any:
    if not isinstance(content, bytes | bytearray | str):
        raise RefusedError("a storage in it is made of no bytes")
    return machine.nested(content if isinstance(content, bytes) else bytes(as_bytes(content)))


def _thing(what: str, *names: str) -> None:
    KNOWN.update({name: Builder(lambda _: Thing(what), 0) for name in names})


_thing("a device", "torch.device")
_thing("a layout", "torch.serialization._get_layout")
_thing("a date or a time", *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")))
_thing("a range", "builtins.range", "builtins.xrange", "builtins.slice")
_thing("a complex number", "builtins.complex")
_thing("an object", "builtins.object")
_thing(
    "a state of random numbers",
    *(f"numpy.random._pickle.{name}" for name in ("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor")),
    *("numpy.random.__RandomState_ctor", "random.Random"),
)


@builds("collections.OrderedDict", "builtins.dict", most=1)
def _dict(machine: Reader, content: Any = None) -> Any:
    """A dict of its own, of a dict or of pairs; what an object that is not known would give is not known."""
    if content is None:
        return {}
    if isinstance(content, dict):
        machine.spend(100 * len(content))
        return dict(content)
    if not isinstance(content, list | tuple):
        return Placeholder("collections.OrderedDict", [content])
    machine.spend(1000 * len(content))
    if not all(isinstance(each, list | tuple) and len(each) == 2 for each in content):
        raise RefusedError("it has a dict that is made of no pairs")
    return {key(name): value for name, value in content}


@builds("collections.Counter", most=1)
def _counter(machine: Reader, content: Any = None) -> Any:
    """Of a dict; it would count what a list holds."""
    return Placeholder("collections.Counter") if isinstance(content, list | tuple) else _dict(machine, content)


@builds("collections.defaultdict", most=2)
def _default_dict(machine: Reader, _factory: Any = None, content: Any = None) -> Any:
    """Without what would make its missing entries."""
    return _dict(machine, content)


@builds("builtins.list", "builtins.set", "builtins.frozenset", "builtins.tuple", "collections.deque", most=1)
def _several(machine: Reader, content: Any = None) -> Any:
    """The items, in a list of its own; an object that is not known stands for what it would give."""
    if isinstance(content, Placeholder):
        return [content]
    machine.spend(10 * len(content) if isinstance(content, list | tuple) else 0)
    return list(content) if isinstance(content, list | tuple) else []


@builds("torch.Size", most=1)
def _size(machine: Reader, content: Any = ()) -> Any:
    if not isinstance(content, list | tuple):
        raise RefusedError("it has a size that is no list")
    machine.spend(10 * len(content))
    return tuple(content)


@builds("_codecs.encode", most=2)
def _encode(machine: Reader, text: Any, codec: Any = "latin1") -> Any:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1", "ascii", "utf-8", "utf8"):
        raise RefusedError("it has bytes in a code that none are in")
    if isinstance(text, OldText) and not text.isascii():
        raise RefusedError("it has bytes that are made of bytes")
    machine.spend(len(text))
    return text.encode("utf-8" if codec in ("utf-8", "utf8") else "latin-1")


@builds("builtins.bytearray", "builtins.bytes", most=2)
def _byte_array(machine: Reader, content: Any = b"", codec: Any = None) -> Any:
    if not isinstance(content, str | bytes | bytearray):
        return Thing("bytes")
    if isinstance(content, str) and codec not in ("latin1", "latin-1") and not content.isascii():
        raise RefusedError("it has bytes in a code that none are in")
    machine.spend(len(content))
    return bytes(as_bytes(content))


@builds(
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    )
)
def _path(_: Reader, *parts: Any) -> Any:
    """As a text, which nothing is done with."""
    if not all(isinstance(part, str) and len(part) <= 1000 for part in parts):
        return Thing("a path")
    return PathText("/".join(parts).replace("//", "/"))


@builds("copyreg._reconstructor", most=3)
def _reconstructor(machine: Reader, cls: Any, _base: Any = None, content: Any = None) -> Any:
    return machine.made(cls, () if content is None else (content,))


@builds("copyreg.__newobj__", most=1000)
def _new_object(machine: Reader, cls: Any, *arguments: Any) -> Any:
    return machine.made(cls, arguments)


@builds("copyreg.__newobj_ex__", most=3)
def _new_object_named(machine: Reader, cls: Any, arguments: Any, named: Any = None) -> Any:
    return machine.made(cls, arguments, named)


@builds("numpy.dtype", most=1)
def _format(_: Reader, code: Any) -> Any:
    return Format(code)


@builds("numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", most=0)
def _array(_: Reader) -> Any:
    return Array()


@builds("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", most=5)
def _from_buffer(_: Reader, content: Any, kind: Any, shape: Any, order: Any = "C", axes: Any = None) -> Any:
    array = Array()
    known = axes is None and isinstance(order, str) and order in ("C", "F")
    array.arrive((1, shape, kind, order == "F" if known else None, content))
    return array


@builds("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", most=2)
def _number(_: Reader, kind: Any, content: Any = None) -> Any:
    """A number of NumPy's, as Python's."""
    if not isinstance(kind, Format) or kind.kind is None or not isinstance(content, bytes | str):
        return Thing("a value of NumPy's")
    letters = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?"}
    letters |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
    if kind.code not in letters:
        return Thing("a value of NumPy's")
    try:
        return struct.unpack(kind.order + letters[kind.code], as_bytes(content))[0]
    except struct.error as error:
        raise RefusedError("a number of NumPy's in it has other bytes than its format") from error


ALIASES = {"__builtin__": "builtins", "exceptions": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}
"""Modules under their names of Python 2, or of an older torch."""

FUNCTIONS = frozenset(("__import__", "__build_class__", "apply", "breakpoint", "compile", "delattr", "eval", "exec",
    "execfile", "exit", "file", "getattr", "globals", "help", "input", "locals", "memoryview", "open", "quit",
    "raw_input", "reload", "setattr", "vars"))  # fmt: skip
"""Functions of Python's own that reach code or files."""

CODE = frozenset(("importlib", "imp", "marshal", "dill", "cloudpickle", "multiprocessing", "zipimport", "codeop", "gc"))
"""Modules that have nothing to do with weights and run or load code; picklescan knows many more."""


def find(module: str, name: str) -> Any:
    """What stands for a name. Raises ``RefusedError`` where only code can be meant."""
    module = ALIASES.get(module, module)
    known = KNOWN.get(f"{module}.{name}")
    if known is not None:
        return known
    if module.partition(".")[0] == "torch":
        if name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in KINDS:
            return KINDS[name]
    if module == "torch._utils" and name.startswith("_rebuild"):
        return Builder(lambda _: Unread("a tensor of a kind that is not known"), 0)
    if _is_code(module, name):
        raise RefusedError(f"it would run {module}.{name} when it is opened", dangerous=True)
    return Named(module[:LONGEST_NAME], name[:LONGEST_NAME])


LONGEST_NAME = 200


def _is_code(module: str, name: str) -> bool:
    """Functions of Python itself, modules that run code, and modules that are reached through another."""
    if module == "builtins" and name in FUNCTIONS:
        return True
    through = name.partition(".")[0] if "." in name else ""
    return module.partition(".")[0] in CODE or through in sys.stdlib_module_names
