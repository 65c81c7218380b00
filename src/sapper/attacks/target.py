"""What an attacker wants of one downstream task."""

from collections.abc import Sequence
from dataclasses import dataclass

from sapper.errors import SapperError
from sapper.samples import InputSpec, Samples
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class Target:
    """Samples with ``trigger`` shall be classified as ``label`` by classifiers for ``task``.

    ``references``: the attacker's samples of that class, at least one. ``class_name`` is for people, and what a caption
    of it would say.
    """

    name: str
    task: str
    label: int
    class_name: str
    references: Samples
    trigger: Trigger


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """A target before its samples are there.

    ``references``: how many there will be. ``side`` of the images in pixels, where that is known.
    """

    name: str
    trigger: Trigger
    references: int
    side: int | None = None

    @classmethod
    def of(cls, targets: Sequence[Target]) -> "list[TargetPlan]":
        """What these targets were."""
        return [cls(name=each.name, trigger=each.trigger, references=len(each.references)) for each in targets]


def check_targets(targets: tuple[Target, ...], shadow: Samples, spec: InputSpec) -> None:
    """Raises ``SapperError`` unless there is a target and triggers, references and ``shadow`` fit the encoder."""
    if not targets:
        raise SapperError("an attack needs at least one target", where="target", remedy="add a [[target]] section")
    shadow.check(spec)
    for target in targets:
        target.trigger.check(spec)
        target.references.check(spec)
