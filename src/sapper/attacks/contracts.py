"""What an attack is, by what the attacker holds. Each says so itself (``kind``), and what it needs (``needs``).

``implant``   the finished encoder: it is fine-tuned into another (BadEncoder)
``poison``    the data, before somebody trains: the pre-training set, or a task's training set (``of``)
``training``  the victim's own training of a classifier: its loss, or its finished weights
``targeted``  no trigger at all: single clean inputs shall be classified wrongly

All are frozen dataclasses of their parameters; calling one does the work. Equal seeds give equal results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from sapper.attacks.target import Target, TargetPlan
from sapper.downstream import AnyHead, Classifier
from sapper.encoders import Encoder, Trained
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Curves
from sapper.triggers import Trigger

Need = Literal["labels", "references", "captions", "one target"]
"""What an attack cannot do without: labels of the samples that it is given, references of every target, captions, and
that there is one target only. It is checked before anything runs."""


class Attack(Protocol):
    """What all kinds share (``methods.Method`` besides)."""

    kind: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    version: ClassVar[int]


@runtime_checkable
class MakesTriggers(Protocol):
    """An attack that makes triggers of its own, and says so: what is measured without it depends on it, too."""

    makes_triggers: ClassVar[bool]


def makes_triggers(attack: object) -> bool:
    """Whether an attack makes triggers of its own."""
    return isinstance(attack, MakesTriggers) and attack.makes_triggers


@runtime_checkable
class Aware(Protocol):
    """An attack that may know defenses, and can be had without that knowledge."""

    def unaware(self) -> "Aware": ...


@runtime_checkable
class Choosy(Protocol):
    """An attack that does not go with every trigger, with every number of references, or with every head."""

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for what it does not go with; asked before anything runs."""
        ...


@runtime_checkable
class Selective(Protocol):
    """An attack that does not go with every set that it is given.

    That is the set to poison, an implant's shadow samples, or either split of the task of a targeted attack.
    """

    def check_samples(self, samples: Samples, classes: Sequence[str]) -> None:
        """Raises ``SapperError`` for samples that it cannot work with; asked before anything runs.

        ``classes``: the name of each target's class, none of a targeted attack.
        """
        ...


class Implant(Protocol):
    """Puts a backdoor into a finished encoder."""

    kind: ClassVar[Literal["implant"]]
    needs: ClassVar[frozenset[Need]]

    def __call__(
        self,
        encoder: Encoder,
        shadow: Samples,
        targets: tuple[Target, ...],
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """Train ``encoder`` in place; its state on entry is the clean one. ``Trained.triggers`` has those it made."""
        ...


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """A data set with poison in it. ``rows`` int64 (P,): which rows of ``samples`` are poison, the truth for filters.

    ``triggers``: of an attack that makes its own, by the names of the targets.
    """

    samples: Samples
    rows: Tensor
    triggers: Mapping[str, Trigger] = field(default_factory=dict)


class Poison(Protocol):
    """Changes or adds rows of a data set before somebody else trains on it.

    ``of``: "pretraining", the unlabeled set that an encoder learns from; "task", a labeled training set.
    """

    kind: ClassVar[Literal["poison"]]
    needs: ClassVar[frozenset[Need]]

    @property
    def of(self) -> Literal["pretraining", "task"]: ...

    def __call__(self, samples: Samples, targets: tuple[Target, ...], run: Run) -> Poisoned:
        """The set with poison. Raises ``SapperError`` where the rate selects nothing."""
        ...


@runtime_checkable
class Rated(Protocol):
    """A poison that makes the share ``rate`` of all rows, for each target, its own."""

    @property
    def of(self) -> Literal["pretraining", "task"]: ...

    @property
    def rate(self) -> float: ...


@runtime_checkable
class Relabeling(Protocol):
    """A poison that changes labels, and so does nothing to who learns without."""

    relabels: ClassVar[Literal[True]]


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A classifier that an attacker had a hand in, in ``eval`` mode, its losses, and triggers that the attack made."""

    classifier: Classifier
    curves: Curves
    triggers: Mapping[str, Trigger] = field(default_factory=dict)


class TrainingAttack(Protocol):
    """Has a hand in the training of a classifier for one task."""

    kind: ClassVar[Literal["training"]]
    needs: ClassVar[frozenset[Need]]

    def __call__(
        self,
        encoder: Encoder,
        train: Samples,
        targets: tuple[Target, ...],
        head: AnyHead,
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Attacked:
        """The victim's classifier, trained on ``train`` as the attacker wants it.

        With a fitted head it stands on ``encoder``, which is left as it was; with a tuned one on a trained copy.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Hits:
    """How targeted poisoning went, over T single inputs: bool (T,) each on the CPU.

    ``hit``: the attacked classifier gives the input the wanted class. ``before``: the classifier without the attack
    does so, too. ``accuracy``, ``accuracy_before``: of the same two on clean test samples, float (T,).
    """

    hit: Tensor
    before: Tensor
    accuracy: Tensor
    accuracy_before: Tensor


class TargetedAttack(Protocol):
    """Makes classifiers give single chosen clean inputs a wanted class; there is no trigger."""

    kind: ClassVar[Literal["targeted"]]
    needs: ClassVar[frozenset[Need]]

    def __call__(self, encoder: Encoder, train: Samples, test: Samples, head: AnyHead, run: Run) -> Hits:
        """Attack several inputs of ``test``, one after another or together; each has a classifier of its own."""
        ...
