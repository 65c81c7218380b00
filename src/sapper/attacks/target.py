"""What an attacker wants of one downstream task."""

from dataclasses import dataclass

from sapper.errors import SapperError
from sapper.images import ImageSet
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class Target:
    """Images with ``trigger`` shall be classified as ``label`` by classifiers for ``task``.

    ``references``: the attacker's images of that class, uint8 (r, 3, H, W), r ≥ 1. ``class_name`` is for people.
    """

    name: str
    task: str
    label: int
    class_name: str
    references: ImageSet
    trigger: Trigger


def check_targets(targets: tuple[Target, ...], shadow: ImageSet) -> None:
    """Raises ``SapperError`` unless there is a target and every trigger and reference fits the shadow images."""
    if not targets:
        raise SapperError("an attack needs at least one target", where="target", remedy="add a [[target]] section")
    for target in targets:
        target.trigger.check(*shadow.size)
        if target.references.size != shadow.size:
            raise SapperError(
                f"reference images are {target.references.size}, shadow images {shadow.size}",
                where=f"target {target.name!r}",
            )
