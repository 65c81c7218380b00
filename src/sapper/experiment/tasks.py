"""What stages are made from, as values: parts of data sets, what attackers want, tasks as their victims have them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sapper import datasets
from sapper.attacks.references import choose_references, near_duplicates
from sapper.attacks.target import Target
from sapper.encoders import Encoder
from sapper.errors import located
from sapper.methods import libraries_of, settings
from sapper.running import Run
from sapper.samples import ImageSet, Samples
from sapper.scenario.named import Named
from sapper.triggers import Trigger

S = TypeVar("S", bound=Samples)
T = TypeVar("T", bound=Samples)


@dataclass(frozen=True, eq=False)
class Part(Generic[S]):
    """A part of a data set, drawn whenever somebody asks for it: only whole sets stay in memory.

    ``of`` draws it; ``origin`` says as plain data what it is, without drawing it. To another process the part travels
    as its samples.
    """

    of: Callable[[], S]
    origin: dict[str, Any]

    def __call__(self) -> S:
        return self.of()

    def __reduce__(self) -> tuple[Any, ...]:
        return _drawn, (self(), self.origin)

    @staticmethod
    def whole(samples: T) -> "Part[T]":
        """A set that is in memory already."""
        origin = {"name": samples.name, "split": samples.split, "digest": samples.digest}
        return Part(lambda: samples, origin)

    def sample(self, count: int | None, run: Run) -> "Part[S]":
        """``count`` of its samples, drawn with the seed of ``run``; all of them where there is no number."""
        return self._drawn(f"{count} of them", run, lambda own: own.sample(count, run.generator())) if count else self

    def halves(self, share: float, run: Run) -> tuple["Part[S]", "Part[S]"]:
        """The rest, and the share that is held out."""

        def half(what: str, at: int) -> Part[S]:
            return self._drawn(f"{what} {share}", run, lambda own: own.held_out(share, run.generator())[at])

        return half("all but", 0), half("held out", 1)

    def called(self, split: str) -> "Part[S]":
        """The same samples under another name of their split."""
        return Part(lambda: replace(self(), split=split), self.origin | {"split": split})

    def changed(self, what: str, change: Callable[[S], T]) -> "Part[T]":
        """What a ``change`` makes of it, which ``what`` names."""
        return Part(lambda: change(self()), self.origin | {"changed": what})

    def _drawn(self, what: str, run: Run, draw: Callable[[S], S]) -> "Part[S]":
        return Part(lambda: draw(self()), self.origin | {"draws": [*self.origin.get("draws", ()), [what, run.seed]]})


def _drawn(samples: S, origin: dict[str, Any]) -> Part[S]:
    return Part(lambda: samples, origin)


class Rule(Protocol):
    """How an attacker comes by a class and reference samples of it; a frozen dataclass."""

    def __call__(self, candidates: ImageSet, encoder: Encoder, run: Run) -> tuple[int, Tensor]:
        """The class, and rows of the candidates, int64 (R,), by what the clean ``encoder`` says of them."""
        ...


@dataclass(frozen=True)
class Nearest:
    """``count`` samples of the class ``label`` near its mean feature."""

    label: int
    count: int

    def __call__(self, candidates: ImageSet, encoder: Encoder, run: Run) -> tuple[int, Tensor]:
        return self.label, choose_references(candidates, self.label, self.count, encoder, run)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A target before its references are chosen."""

    name: str
    trigger: Trigger
    rule: Rule

    @property
    def rule_key(self) -> dict[str, Any]:
        """What is chosen, as plain data."""
        return {"name": self.name, "rule": [type(self.rule).__name__, asdict(self.rule)]}  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A class and rows of the candidates."""

    label: int
    class_name: str
    rows: list[int]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What was chosen for each aim of a task; ``gone`` are the rows of the candidates that a victim must not have."""

    of: list[Choice]
    gone: list[int]


@dataclass(frozen=True, kw_only=True)
class Goals:
    """What an attacker wants of a task: its aims, and the candidates from which references are chosen."""

    task: str
    candidates: Part[ImageSet]
    aims: tuple[Aim, ...]

    @property
    def key(self) -> dict[str, Any]:
        """The goals as plain data."""
        aims = [aim.rule_key | _trigger_key(aim.trigger) for aim in self.aims]
        return {"task": self.task, "candidates": self.candidates.origin, "aims": aims}

    def choose(self, encoder: Encoder, run: Run) -> Choices:
        """References for every aim, each by its rule."""
        candidates, of, gone = self.candidates(), [], list[int]()
        for aim in self.aims:
            label, rows = aim.rule(candidates, encoder, run)
            name = candidates.classes[label] if candidates.classes else NAMELESS
            of.append(Choice(label=label, class_name=name, rows=rows.tolist()))
            gone += near_duplicates(candidates, rows).tolist()
        return Choices(of=of, gone=gone)

    def targets(self, choices: Choices) -> tuple[Target, ...]:
        """The aims with the references that were chosen for them."""
        candidates = self.candidates()
        return tuple(
            Target(
                name=aim.name,
                task=self.task,
                label=choice.label,
                class_name=choice.class_name,
                references=candidates.take(torch.tensor(choice.rows, dtype=torch.int64)),
                trigger=aim.trigger,
            )
            for aim, choice in zip(self.aims, choices.of)
        )


@dataclass(frozen=True)
class TaskData:
    """A downstream task as its victim has it: the attacker's references are not in ``train``."""

    name: str
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream task, and what an attacker wants of it.

    Where the attacker's candidates are the training split itself, what is chosen is taken out of it, near-duplicates
    included, before the victim takes ``count`` of ``train`` by the seed of ``draw``. ``gray``: the victim's encoder
    turns every image gray (``Encoder.gray``). ``where`` it was asked for.
    """

    goals: Goals
    train: Part[ImageSet]
    test: Part[ImageSet]
    draw: Run
    count: int | None = None
    gray: bool = False
    where: str = ""

    @property
    def name(self) -> str:
        return self.goals.task

    @property
    def aims(self) -> tuple[Aim, ...]:
        return self.goals.aims

    @property
    def key(self) -> dict[str, Any]:
        """Goals and data as plain data, but for what is chosen."""
        return {"goals": self.goals.key} | self.data_key

    @property
    def data_key(self) -> dict[str, Any]:
        """The same without the goals."""
        parts = {"train": self.train.origin, "test": self.test.origin}
        return parts | {"count": self.count, "draw": self.draw.seed} | ({"gray": True} if self.gray else {})

    def victim(self, choices: Choices | None) -> TaskData:
        """The task as its victim has it."""
        train, test = self.train(), self.test()
        if choices is not None and choices.gone and self.goals.candidates.origin == self.train.origin:
            train = train.without(torch.tensor(choices.gone, dtype=torch.int64))
        data = TaskData(self.name, train.sample(self.count, self.draw.generator()) if self.count else train, test)
        with located(self.where or self.name):
            datasets.check_task(data.train, data.test)
        return data


def _trigger_key(trigger: Trigger) -> dict[str, Any]:
    version = {"trigger version": trigger.version} if trigger.version > 1 else {}
    return {"trigger": trigger.describe()} | version


NAMELESS = "a reference image"
"""The class that an attacker wants where the candidates have none."""


def method_key(method: Named) -> dict[str, Any]:
    """A method for a stage's key: name, version and every parameter."""
    return {"method": method.name, "version": method.parameters.version, "parameters": settings(method.parameters)}


def head_key(head: Named) -> dict[str, Any]:
    """The same for a head, under whose name predictions lie."""
    return {"name": head.name} | method_key(head)


def packages(*methods: Named) -> tuple[str, ...]:
    """The installed packages that can change what these methods give."""
    return tuple(package for method in methods for package in libraries_of(method.parameters))


def describe(target: Target) -> dict[str, Any]:
    """A target as plain data: what it wants, with which trigger and which reference images."""
    return {
        "name": target.name,
        "task": target.task,
        "label": target.label,
        "trigger": target.trigger.describe(),
        "references": target.references.digest,
    }


def identity(images: Samples) -> dict[str, Any]:
    """Which images these are, for cards and reports."""
    return {"name": images.name, "split": images.split, "n": len(images), "sha256": images.digest}
