"""What a trigger is, whatever it changes: a value that can be called, checked, described, written and read back."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from sapper.errors import SapperError
from sapper.methods import TRIGGERS, find
from sapper.samples import InputSpec


class Trigger(ABC):
    """Changes a batch of samples; a frozen dataclass of its parameters, some of which may be tensors.

    ``kind``: its name in scenarios and files, and in the table of triggers (``methods.TRIGGERS``).
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    source: ClassVar[str] = ""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    @abstractmethod
    def __call__(self, batch: Any) -> Any:
        """The batch with the trigger, new, of the same shape and range. Images: float (N, 3, H, W) in [0, 1]."""

    @abstractmethod
    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` when the trigger does not fit what an encoder takes."""

    def parameters(self) -> dict[str, Any]:
        """Its parameters that are plain data."""
        return {name: value for name, value in self._fields() if not isinstance(value, Tensor)}

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters that are tensors, on the CPU."""
        return {name: value.detach().cpu() for name, value in self._fields() if isinstance(value, Tensor)}

    def describe(self) -> dict[str, Any]:
        """It as plain data, each tensor as the SHA-256 of its values: for a stage's key, for reports."""
        return {"kind": self.kind} | self.parameters() | {k: _digest(v) for k, v in self.tensors().items()}

    def pixels(self) -> float | None:
        """How many pixels it covers; none where it does not say."""
        return None

    def picture(self) -> Tensor | None:
        """What it looks like on gray, float (3, H, W) in [0, 1]; none where it shows on samples only."""
        return None

    def controls(self, generator: torch.Generator) -> dict[str, "Trigger"]:
        """Changes of the same size that mean nothing, by name: what a replay puts beside it."""
        return {}

    @classmethod
    def of(cls, parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The trigger with these ``parameters()`` and ``tensors()``. Raises ``TypeError`` for what does not fit."""
        types = _types(cls)
        made_of = {name for name, kind in types.items() if kind is Tensor}
        if foreign := (tensors.keys() - made_of) | (parameters.keys() - (types.keys() - made_of)):
            raise TypeError(f"{', '.join(sorted(foreign))}: unknown")
        plain = {name: _tuples(value) for name, value in parameters.items()}
        for name, value in plain.items():
            try:
                TypeAdapter(types[name]).validate_python(value, strict=True)
            except ValidationError as error:
                raise TypeError(f"{name} = {value!r:.80}") from error
        return cls(**plain, **tensors)

    @classmethod
    def needs_tensors(cls) -> bool:
        """Whether it is made of tensors, so that no scenario can write it down."""
        return Tensor in _types(cls).values()

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]


def to_tensors(trigger: Trigger) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A trigger as plain data and tensors, from which ``from_tensors`` makes it again."""
    return {"kind": trigger.kind} | trigger.parameters(), trigger.tensors()


def from_tensors(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Trigger:
    """The trigger that ``to_tensors`` wrote. Raises ``SapperError`` (``where``) for what is none."""
    rest = {name: value for name, value in plain.items() if name != "kind"}
    cls = find("triggers", TRIGGERS, str(plain.get("kind")), where)
    try:
        trigger: Trigger = cls.of(rest, tensors)
    except TypeError as error:
        raise SapperError(f"not a trigger: {error}", where=where, remedy="give what Sapper wrote") from error
    return trigger


def _types(cls: type[Trigger]) -> dict[str, Any]:
    """The type of each parameter."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}  # type: ignore[arg-type]


def _tuples(value: Any) -> Any:
    """A parameter as JSON gives it, with the tuples that it was written from."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _digest(values: Tensor) -> str:
    sha = hashlib.sha256(repr((tuple(values.shape), str(values.dtype))).encode())
    sha.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
