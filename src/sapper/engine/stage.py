"""Stages as values: what work on what inputs in which surroundings. Making one starts nothing.

A stage's place in the Store is a hash of everything that its files depend on, inputs by their own places. So a whole
graph is known before anything runs, and an executor (``executors.py``) makes of it what is not there yet.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

import sapper
from sapper.running import Run

VERSION = 3
"""Raise it when a change outside the works (augmentation, features, backbones) changes what they make."""

ALWAYS = ("torch", "torchvision")
"""Installed packages, besides sapper, whose versions are in every stage's key."""


class Work(Protocol):
    """A piece of work: a frozen dataclass that travels to other processes by pickle.

    ``name``: of its folder. ``libraries``: further installed packages that can change the result.
    """

    @property
    def name(self) -> str: ...

    @property
    def libraries(self) -> tuple[str, ...]: ...

    def key(self) -> dict[str, Any]:
        """Everything that the files depend on besides inputs and surroundings, as plain data: data sets by digest."""
        ...

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        """Fill ``folder`` from the folders of the inputs. What an interrupted call left in it is there again."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A work that several processes can do together (``Run.processes``), and that gives nearly the same then."""

    divisible: ClassVar[bool]


@dataclass(frozen=True, eq=False)
class Stage:
    """Work on the files of other stages. Two stages with the same place are equal.

    ``threads`` that compute it: a sum depends on how it was divided. ``title`` and ``where``: what people are told
    about it, and where an error in it is; they have no part in the place, and neither have progress and workers.
    """

    work: Work
    run: Run
    inputs: tuple["Stage", ...] = ()
    threads: int = field(default_factory=torch.get_num_threads)
    title: str = ""
    where: str = ""

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that its files depend on, as plain data."""
        inputs = [stage.place for stage in self.inputs]
        key = {"work": self.work.key(), "inputs": inputs} | surroundings(self.run, self.work.libraries, self.threads)
        several = self.run.processes > 1 and isinstance(self.work, Divisible)
        return key | ({"processes": self.run.processes} if several else {})

    @cached_property
    def place(self) -> str:
        """The name of its folder in a Store."""
        return place_of(self.work.name, self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)


def surroundings(run: Run, libraries: Iterable[str], threads: int) -> dict[str, Any]:
    """What a result depends on besides work and inputs: seed, device kind, number format, threads, versions."""
    packages = sorted({*ALWAYS, *libraries})
    return {
        "seed": run.seed,
        "device": run.device.type,
        "number format": run.number_format,
        "threads": threads,
        "versions": {"sapper": sapper.__version__, "stages": VERSION} | {name: version(name) for name in packages},
    }


def place_of(name: str, key: dict[str, Any]) -> str:
    """The name of a folder or file for what is called ``name`` and depends on ``key``, which is plain data."""
    return f"{name}-{sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"
