"""The surroundings of a computation, handed in and never global: device, number format, seed, progress."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch

FORMATS: dict[str | None, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Number formats of the matrix work, by the names that scenarios, results and bags have for them."""


class Bar(Protocol):
    """One stage's progress."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """``steps`` more are done; ``note`` is a short text such as the current loss."""


class Progress(Protocol):
    """Where progress goes. The command line hands in one that draws; the default is silent."""

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]:
        """A bar for ``total`` steps, closed on leaving the context; ``done`` of them were done before it began."""
        ...


class Silent:
    """Progress that nobody sees."""

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]:
        return nullcontext(self)

    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


@dataclass
class Share:
    """A part of a longer computation: its own bars move the ``bar`` of the whole by ``size`` steps, and no more."""

    bar_of_all: Bar
    size: int
    reached: int = 0

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]:
        return nullcontext(_Part(self, label, total, done))

    def to(self, share: float, note: str) -> None:
        """So much of it is done, in [0, 1]; never less than before."""
        steps = max(0, min(self.size, int(share * self.size)) - self.reached)
        self.reached += steps
        self.bar_of_all.advance(steps, note)


@dataclass
class _Part:
    share: Share
    label: str
    total: int
    done: int

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        said = f"{self.label}: {note}" if note else self.label
        self.share.to(self.done / max(1, self.total), said)


@contextmanager
def shares(progress: Progress, label: str, sizes: Sequence[int]) -> Iterator[Iterator[Progress]]:
    """One bar for parts that take about so many steps each. Gives the progress of each in turn.

    What a part has left when the next one begins counts as done, so that the time left is that of what is to come.
    """
    with progress.bar(label, sum(sizes)) as bar:

        def each() -> Iterator[Progress]:
            for size in sizes:
                share = Share(bar, size)
                yield share
                share.to(1.0, "")

        parts = each()
        yield parts
        for _ in parts:  # what is left will not be done
            pass


class Kept(Protocol):
    """Where parts of a long computation are kept, so that an interrupted one goes on."""

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """What was kept under ``key``, a file's name; none where nothing was."""
        ...

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep it, in place of what was there."""
        ...


class Forgotten:
    """Nothing is kept."""

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        pass


@dataclass(frozen=True)
class KeptFor:
    """What is kept for one of several computations that have the same seed."""

    kept: Kept
    name: str

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        return self.kept.get(f"{self.name}-{key}")

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self.kept.put(f"{self.name}-{key}", tensors)


@dataclass(frozen=True)
class Run:
    """Device, dtype, seed and progress of a computation, and where parts of it are ``kept``.

    ``dtype`` is the format of the matrix work (autocast); parameters stay float32. ``why`` it was chosen, in words.
    ``child(name)`` gives a part its own seed, which depends on the name and never on the order of parts. To another
    process a run travels without its progress, which is drawn in this one, and without what is kept. ``processes``: how
    many share a training.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    why: str = field(default="", compare=False)
    progress: Progress = field(default_factory=Silent, compare=False)
    processes: int = 1
    kept: Kept = field(default_factory=Forgotten, compare=False)

    def __reduce__(self) -> tuple[partial["Run"], tuple[object, ...]]:
        return partial(Run, processes=self.processes), (self.seed, self.device, self.dtype, self.why)

    @property
    def number_format(self) -> str:
        """The name of ``dtype``, as in ``FORMATS``."""
        return str(self.dtype).removeprefix("torch.")

    def child(self, name: str) -> "Run":
        """The same surroundings with a seed of its own, from this seed and ``name``."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:7], "big"))

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh random generator seeded with this run's seed."""
        return torch.Generator(device).manual_seed(self.seed)

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """For code of others that draws from torch's global generator (initialization, dropout).

        Seeds it inside and puts its former state back outside.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            yield

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix work in ``dtype``; nothing at all for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively, else float32. Whether it is faster is another question."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    flags = ("avx512_bf16", "amx_bf16", "bf16")
    return torch.bfloat16 if any(native.get(flag, False) for flag in flags) else torch.float32
