"""What a trigger is, whatever it changes: a value that can be called, checked, described, written and read back."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
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

    @classmethod
    def of(cls, parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The trigger with these ``parameters()`` and ``tensors()``."""
        return cls(**{name: _tuples(value) for name, value in parameters.items()}, **tensors)

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


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _digest(values: Tensor) -> str:
    sha = hashlib.sha256(repr((tuple(values.shape), str(values.dtype))).encode())
    sha.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
