"""What an attack's kind allows in a scenario: which keys, how many targets, which defenses."""

import sys
from collections.abc import Sequence
from typing import Any

from sapper.attacks.contracts import Attack, Choosy, Poison, Relabeling
from sapper.attacks.target import TargetPlan
from sapper.defenses.contracts import Defense, Kind, Sift
from sapper.downstream import AnyHead
from sapper.errors import SapperError, located
from sapper.pretraining.contracts import Pretraining
from sapper.scenario.named import Named
from sapper.triggers import Patch

OF_ENCODERS: tuple[Kind, ...] = ("examine", "learn", "repair")
"""Kinds of defenses of encoders; others look at classifiers, but for some screens (``of_encoders``)."""


class DoesNotApplyError(SapperError):
    """There is nothing for a defense to do about an attack, though neither is a mistake by itself."""


def of_encoders(defense: Defense) -> bool:
    """Whether a defense looks at encoders, and at no classifier."""
    return defense.kind in OF_ENCODERS or (defense.kind == "screen" and defense.looks_at == "encoder")  # type: ignore[attr-defined]


def kind_of(attack: Attack | Poison) -> str:
    """What the attacker holds; of poison, also whose data: ``poison pretraining`` or ``poison task``."""
    return f"poison {attack.of}" if attack.kind == "poison" else attack.kind  # type: ignore[union-attr]


def makes_encoders(attack: Attack) -> bool:
    """Whether there is an attacked encoder in the end, whose classifiers anybody may train."""
    return kind_of(attack) in ("implant", "poison pretraining")


def check_relabels(name: str, attack: Attack, start: Named[Pretraining], where: str) -> None:
    """Raises ``SapperError`` for an attack that changes labels of a pre-training which learns without."""
    relabels = isinstance(attack, Relabeling) and kind_of(attack) == "poison pretraining"
    if relabels and "labels" not in start.parameters.needs:
        what = f"{name} changes labels, and {start.name} learns without"
        raise SapperError(what, where=where, remedy='pre-train with supervised, or say of = "task"')


def check_choosy(attack: Attack, plans: Sequence[TargetPlan], heads: Sequence[AnyHead], where: str) -> None:
    """Raises ``SapperError`` for triggers, numbers of references, or heads that the attack does not go with."""
    if isinstance(attack, Choosy):
        with located(where):
            attack.check_plan(plans, heads)


def check_attack(name: str, attack: Attack, raw: dict[str, Any], targets: Sequence[str], where: str) -> None:
    """Raises ``SapperError`` for keys of ``raw``, or targets, that this kind of attack does not go with.

    ``targets``: the task of each. ``where``: the attack's key.
    """
    kind = kind_of(attack)
    for key in ("shadow", "shadow_split", "shadow_images") if kind != "implant" else ():
        if key in raw:
            what, remedy = f"{name} works on no finished encoder, so it has no shadow images", "leave it out"
            raise SapperError(what, where=f"{where}.{key}", remedy=remedy)
    if "encoders" in raw and not makes_encoders(attack):
        what, remedy = f"{name} makes no encoder, it attacks each task by itself", "leave it out"
        raise SapperError(what, where=f"{where}.encoders", remedy=remedy)
    if kind == "targeted" and targets:
        what, remedy = f"{name} has no trigger: it chooses single inputs itself", "leave [[target]] out"
        raise SapperError(what, where=f"{where}.method", remedy=remedy)
    if kind != "targeted" and not targets:
        what, remedy = "[[target]] is missing", "an attack needs targets, and targets need an attack"
        raise SapperError(what, where=where.partition(": ")[0], remedy=remedy)
    together = makes_encoders(attack) and raw.get("encoders") == "one-for-all"
    most = len(targets) if together else max((list(targets).count(task) for task in targets), default=0)
    if "one target" in attack.needs and most > 1:
        what, remedy = f"{name} has one target, here are {most} at once", "leave one, or attack each task by itself"
        raise SapperError(what, where=f"{where}.method", remedy=remedy)


def check_defense(defense: Defense, name: str, attack: Attack, where: str) -> None:
    """Raises ``DoesNotApplyError`` where a kind of attack leaves nothing that a defense looks at."""
    kind, remedy = kind_of(attack), f"do not use it against {name}"
    if of_encoders(defense) and not makes_encoders(attack):
        what = "no encoder is attacked, so there is none to judge or repair"
        raise DoesNotApplyError(what, where=where, remedy=remedy)
    if defense.kind == "sift" and not kind.startswith("poison"):
        what = "no data are poisoned, so there are no rows to sift"
        raise DoesNotApplyError(what, where=where, remedy=remedy)
    if not of_encoders(defense) and kind == "targeted":
        what = "no classifier is kept, so there is none to look at"
        raise DoesNotApplyError(what, where=where, remedy=remedy)


def check_fleet(name: str, start: Named[Pretraining], attack: Named[Any], where: str) -> None:
    """Raises ``DoesNotApplyError`` for a pre-training or an attack that the fleet of a defense has too little for.

    A fleet has images alone, and for the attack of each twin a patch and one reference image of a class without a name.
    """
    method, remedy = attack.parameters, "leave the defense out"
    lacking = [f"{start.name} needs captions"] if "captions" in start.parameters.needs else []
    lacking += [f"{attack.name} needs {need}" for need in ("labels", "captions") if need in method.needs]
    if lacking:
        what = f"{lacking[0]}, and {name} trains its fleet on images alone"
        raise DoesNotApplyError(what, where=where, remedy=remedy)
    try:
        check_choosy(method, [TargetPlan(name="twin", trigger=Patch(), references=1)], (), where)
    except SapperError as error:
        what = f"{name} attacks its fleet with a patch and one reference image, and {attack.name} cannot: {error.what}"
        raise DoesNotApplyError(what, where=where, remedy=remedy) from error


def check_sift(sift: Sift, start: Pretraining, attack: Attack, where: str) -> None:
    """Raises ``DoesNotApplyError`` where rows of a pre-training are sifted by labels that it does not have."""
    if kind_of(attack) != "poison pretraining" or "labels" in start.needs:
        return
    try:
        sift.check(sys.maxsize, 0)
    except SapperError as error:
        raise DoesNotApplyError(error.what, where=f"{where}.{error.where}", remedy=error.remedy) from error


def check_gray(name: str, defense: Any, gray: Sequence[str], where: str) -> None:
    """Raises ``DoesNotApplyError`` where a defense would see the colors of ``gray`` tasks, whose victims see none.

    That is one with a network of its own in the place of the victim's encoder.
    """
    if gray and defense.kind == "certify" and not defense.uses_encoder:
        what = f"{name} has a network of its own, which would see the colors of the gray task {gray[0]!r}"
        raise DoesNotApplyError(what, where=f"{where}.tasks", remedy="name the tasks that are not gray")


def check_subjects(subjects: int, name: str, attack: Attack, where: str) -> None:
    """Raises ``SapperError`` where several classifiers of each seed are to be judged, and an attack makes one only."""
    if subjects > 1 and kind_of(attack) == "training":
        what, remedy = f"{name} makes one classifier with each seed", "judge one, and name more seeds"
        raise SapperError(what, where=where, remedy=remedy)


def check_makes_encoders(name: str, attack: Attack, where: str) -> None:
    """Raises ``SapperError`` for an attack that makes no encoder, where one is needed."""
    if not makes_encoders(attack):
        what = f"{name} makes no encoder: it is of the kind {kind_of(attack)}"
        remedy = "name an attack on encoders or on their pre-training, such as badencoder"
        raise SapperError(what, where=where, remedy=remedy)
