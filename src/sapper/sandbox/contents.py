"""What a checkpoint holds: tensors by their dotted path, short notes, and a word on all else."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sapper.sandbox.arriving import Array, Format
from sapper.sandbox.values import Kind, Named, Placeholder, RefusedError, Storage, Tensor, Thing, Unread

MOST_TENSORS, MOST_UNREAD, MOST_VISITS, MOST_DEPTH = 200_000, 20_000, 500_000, 32
MOST_NOTES, MOST_LEFT_OUT, LONGEST_NOTE, LONGEST_NAME = 300, 40, 200, 1000
MOST_PARAMETERS = 20_000

REST = "…"
"""The key of the last entry of ``left_out``, which counts what is not listed."""

BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg", "sum", "step_size")
"""What optimizers keep for each parameter in its own shape: SGD, Adam and its kin, RMSprop, Adagrad, Rprop."""


@dataclass
class Contents:
    """See ``sapper.sandbox.Converted`` for all but the tensors."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, str | int | float | bool] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    optimizer: tuple[tuple[int, ...], ...] = ()
    others: int = 0
    visits: int = 0
    without_tensors: set[int] = field(default_factory=set)
    """What was looked through and holds none, by identity."""

    def visit(self, work: int = 1) -> None:
        self.visits += work
        if self.visits > MOST_VISITS:
            raise RefusedError("there is more in it than in any checkpoint, or the same again and again")

    def finish(self) -> "Contents":
        """With the last word on what is left out."""
        if self.others:
            self.left_out[REST] = f"{self.others} more"
        return self


def sort(content: Any) -> Contents:
    """Go through a checkpoint. Raises ``RefusedError`` when there is more in it than in any."""
    found = Contents()
    _visit(found, content, "", "", ())
    if not found.tensors:
        if found.unread:
            name, what = next(iter(found.unread.items()))
            raise RefusedError(f"it holds no tensor that can be read: {name} is {what}")
        held = [f"{name} ({what})" for name, what in found.finish().left_out.items()][:3]
        raise RefusedError("it holds no tensor" + (f"; it holds {', '.join(held)}" if held else ""))
    return found.finish()


def _visit(found: Contents, value: Any, path: str, key: str, above: tuple[int, ...]) -> None:
    """``path`` ends with ``key``; ``above`` are the dicts and objects that hold it."""
    found.visit()
    if isinstance(value, Array):
        value = value.tensor()
    if isinstance(value, Storage):
        value = Unread("a storage by itself")
    if isinstance(value, Placeholder) and value.of.startswith("omegaconf.nodes."):
        value = value.state.get("_val")
    name = path or "content"
    if isinstance(value, Tensor | Unread):
        _add(found, name, value)
    elif value is not None and (what := _set_aside(value, key.lower(), len(above))):
        _leave_out(found, name, what, listed=True)
        found.optimizer = found.optimizer or _optimizer(value)
    elif isinstance(value, str | int | float) and _is_short(value):
        if len(found.notes) < MOST_NOTES:
            found.notes[_clean(name)[:LONGEST_NOTE]] = _clean(value) if isinstance(value, str) else value
    elif (inside := _inside(found, value)) is not None:
        if id(value) in above or len(above) >= MOST_DEPTH:
            what = "something that holds itself, or is nested too deep"
            if id(value) not in above and _holds_tensors(found, value):
                _add(found, name, Unread(f"tensors in {what}"))
            else:
                _leave_out(found, name, what)
            return
        above = (*above, id(value))
        steps: set[str] = set()
        for each, inner in inside:
            step = _step(each)
            if step in steps and (each is None or isinstance(each, str | int | float)):
                raise RefusedError(f"two keys in it read alike: {step[:LONGEST_NOTE]!r}")
            steps.add(step)
            _visit(found, inner, f"{path}.{step}"[: 2 * LONGEST_NAME] if path else step, step, above)
        if isinstance(value, Placeholder) and _holds_tensors(found, (value.held, value.items)):
            _add(found, name, Unread(f"tensors in {_what(value)}"))
    elif not _is_random_state(value) and _holds_tensors(found, value):
        _add(found, name, Unread(f"tensors in {_what(value)}"))
    elif value is not None:
        _leave_out(found, name, _what(value))
        if isinstance(value, Placeholder):
            _note_attributes(found, name, value)


def _holds_tensors(found: Contents, value: Any) -> bool:
    """Whether there are tensors anywhere in a list, a dict or an object."""
    rest, seen = [value], set[int]()
    while rest:
        each = rest.pop()
        if isinstance(each, Tensor | Unread | Storage) or (isinstance(each, Array) and not _is_of_texts(each)):
            return True
        if id(each) in seen or id(each) in found.without_tensors:
            continue
        parts = _parts(each)
        if parts:
            seen.add(id(each))
            found.visit(1 + sum(map(len, parts)) // 100)
            for part in parts:
                rest.extend(part)
    found.without_tensors |= seen
    return False


def _parts(value: Any) -> list[Any]:
    """All that something holds, keys aside."""
    if isinstance(value, list | tuple):
        return [value]
    if isinstance(value, dict):
        return [value.values()]
    if isinstance(value, Placeholder):
        return [value.held, value.state.values(), value.items.values()]
    return []


def _is_of_texts(value: Array) -> bool:
    return isinstance(value.tensor(), Thing)


def _step(key: Any) -> str:
    """A key as a part of a path."""
    if isinstance(key, Placeholder):
        return f"({key.of})"
    if isinstance(key, Thing):
        return f"({key.what})"
    return str(key)[:LONGEST_NAME]  # a text, a number of 64 bits, none, short bytes, a short tuple, or a name


def _add(found: Contents, name: str, value: Tensor | Unread) -> None:
    name = name.encode("utf-8", "replace").decode()
    if len(name) > LONGEST_NAME:
        name, value = f"{name[:LONGEST_NAME]}…", Unread("a tensor whose name is too long")
    if name in found.tensors or name in found.unread:
        found.tensors.pop(name, None)  # which of them another program would take is not known
        value = Unread("two tensors of one name")
    if isinstance(value, Unread):
        found.unread[name] = value.what
    else:
        found.tensors[name] = value
    if len(found.tensors) > MOST_TENSORS or len(found.unread) > MOST_UNREAD:
        raise RefusedError(f"it holds {len(found.tensors) + len(found.unread)} tensors")


def _leave_out(found: Contents, name: str, what: str, *, listed: bool = False) -> None:
    """``listed``: whether it is named however many are."""
    if len(found.left_out) < (MOST_UNREAD if listed else MOST_LEFT_OUT):
        found.left_out[_clean(name)[:LONGEST_NOTE]] = what
    else:
        found.others += 1


def _is_short(value: str | int | float) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_NOTE
    return not isinstance(value, int) or abs(value) < 2**63


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _set_aside(value: Any, key: str, depth: int) -> str | None:
    """What is known to hold no weights of the network, and is not entered."""
    if depth == 0 or (isinstance(value, dict) and any(isinstance(each, Tensor | Unread) for each in value.values())):
        return None
    top = depth == 1
    if _is_optimizer(value) or (top and key.startswith("optim") and isinstance(value, dict | list | Placeholder)):
        return "an optimizer's state"
    if isinstance(value, dict) and "last_epoch" in value and ("_step_count" in value or "base_lrs" in value):
        return "a learning-rate scheduler"
    if top and key in ("lr_schedulers", "lr_scheduler", "scheduler") and isinstance(value, dict | list | Placeholder):
        return "a learning-rate scheduler"
    if top and key == "loops" and isinstance(value, dict):
        return "a trainer's loops"
    return None


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("state"), dict) and "param_groups" in value


def _optimizer(value: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of the buffers that an optimizer keeps, in the order of the parameters; ``()`` where there is none."""
    if isinstance(value, list):
        return next((shapes for shapes in map(_optimizer, value[:8]) if shapes), ())
    if not _is_optimizer(value) or not isinstance(value["param_groups"], list):
        return ()
    groups = [group.get("params") for group in value["param_groups"] if isinstance(group, dict)]
    parameters = [each for group in groups if isinstance(group, list) for each in group[:MOST_PARAMETERS]]
    state = value["state"]
    ids = [each if isinstance(each, int | str) else None for each in parameters[:MOST_PARAMETERS]]
    shapes = tuple(_buffer(state.get(each)) for each in ids)
    return shapes if any(shapes) else ()


def _buffer(state: Any) -> tuple[int, ...]:
    if not isinstance(state, dict):
        return ()
    known = [state.get(name) for name in BUFFERS]
    return next((each.size for each in known if isinstance(each, Tensor) and each.size), ())


def _inside(found: Contents, value: Any) -> Iterator[tuple[Any, Any]] | None:
    """What a dict, a module, or a namespace of settings holds; none where it is not entered.

    A dict of a class that is not known is entered for its settings, unless there are tensors in it: that its class
    leaves them as they are cannot be told.
    """
    if isinstance(value, dict):
        return iter(value.items())
    if not isinstance(value, Placeholder):
        return None
    state = value.state
    if isinstance(state.get("_parameters"), dict) and isinstance(state.get("_modules"), dict):
        return _module(state)
    if value.of in ("argparse.Namespace", "types.SimpleNamespace"):
        return iter(state.items())
    if value.of.startswith("omegaconf."):
        content = state.get("_content")
        return iter(content.items()) if isinstance(content, dict) else None
    return iter(value.items.items()) if value.items and not _holds_tensors(found, value) else None


def _module(state: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Parameters, buffers and inner modules of a whole module, as its state dict would name them."""
    buffers = state.get("_buffers")
    passing = state.get("_non_persistent_buffers_set")
    passing = [each for each in passing if isinstance(each, str)] if isinstance(passing, list) else []
    passing = frozenset(passing)
    for part in (state["_parameters"], buffers if isinstance(buffers, dict) else {}, state["_modules"]):
        for name, value in part.items():
            if part is not buffers or name not in passing:
                yield name, value


def _note_attributes(found: Contents, name: str, value: Placeholder) -> None:
    """Plain values that hang on an object that is not known."""
    for key, inner in value.state.items():
        if not isinstance(key, str) or key.startswith("_") or len(found.notes) >= MOST_NOTES:
            continue
        if isinstance(inner, str | int | float) and _is_short(inner):
            found.notes[_clean(f"{name}.{key}")[:LONGEST_NOTE]] = _clean(inner) if isinstance(inner, str) else inner


def _what(value: Any) -> str:
    """In plain words."""
    if _is_random_state(value):
        return "a state of random numbers"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Placeholder):
        return f"an object of {_clean(value.of)}"
    if isinstance(value, Named):
        return f"the name of {_clean(str(value))}"
    if isinstance(value, Thing):
        return value.what
    words = {str: "a long text", int: "a large number", bytes: "bytes", bytearray: "bytes", Kind: "a number format"}
    words |= {Format: "a number format", Storage: "a storage by itself"}
    return words.get(type(value), "something that is no weight")


def _is_random_state(value: Any) -> bool:
    """Of NumPy's ``get_state`` or Python's ``getstate``."""
    if not isinstance(value, tuple) or len(value) < 3:
        return False
    first, numbers, *rest = value
    if not all(each is None or isinstance(each, int | float) for each in rest):
        return False
    if isinstance(first, str):
        return first == "MT19937" and isinstance(numbers, Array) and numbers.shape == (624,)
    return first == 3 and isinstance(numbers, tuple) and len(numbers) == 625


def write(tensors: dict[str, Tensor], most: int) -> Iterator[bytes | memoryview]:
    """The tensors as a safetensors file of at most that many bytes, each tensor on its own and in one piece.

    Source: the format in the README of huggingface/safetensors: 8 bytes for the length of the header, the header in
    JSON, and the numbers, little-endian, row by row.
    """
    if sum(tensor.bytes for tensor in tensors.values()) > most:
        raise RefusedError("its tensors are larger than the file: they are views that repeat a little")
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.kind.safe, "shape": tensor.size, "data_offsets": (at, at + tensor.bytes)}
        at += tensor.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name, tensor in tensors.items():
        yield _numbers(name, tensor)


def _numbers(name: str, tensor: Tensor) -> memoryview:
    """The bytes of a tensor. Raises ``RefusedError`` when it reaches out of its storage."""
    import numpy as np

    storage, width = tensor.storage, tensor.kind.size
    first = storage.start * storage.kind.size
    raw = storage.holder.data(storage.key)[first : first + storage.elements * storage.kind.size]
    last = tensor.offset + sum((length - 1) * step for length, step in zip(tensor.size, tensor.stride))
    if math.prod(tensor.size) == 0:
        return memoryview(b"")
    if last >= len(raw) // width:
        raise RefusedError(f"{name[:LONGEST_NOTE]} reaches out of its storage: the file is cut, or made to mislead")
    elements = np.frombuffer(raw, dtype=f"<u{width}", count=last + 1 - tensor.offset, offset=tensor.offset * width)
    steps = [step * width for step in tensor.stride]
    view = np.lib.stride_tricks.as_strided(elements, tensor.size, steps, writeable=False)
    whole = np.ascontiguousarray(view)
    if tensor.storage.holder.big_endian:
        whole = whole.byteswap()
    if tensor.kind.name == "bool":
        whole = (whole != 0).view(np.uint8)
    return whole.reshape(-1).data.cast("B")
