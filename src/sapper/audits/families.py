"""Bags over families: for encoders of a kind that nobody has measured.

A bag (``calibration``) speaks for encoders of one kind. Where none fits, a score that means the same for all kinds can
still be compared with kinds: a *family* is what architecture, images, pre-training and size make together, and of each
of F families some clean encoders are known. With max_f the largest score among those of family f, the p-value is

    p = ( 1 + #{ f : max_f ≥ s } ) / ( F + 1 )

If the family of the encoder in doubt comes from where the F others do, the F + 1 families are exchangeable. Were a
whole family in doubt, its largest score would have each rank among all with the same probability; one encoder's score
is at most that. So P(p ≤ α) ≤ α for a clean encoder of a *new* family, and 5 % need 19 families. (Split conformal
prediction with groups: Dunn, Wasserman, Ramdas, "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models",
JASA 2023, have sharper forms.) How well the F families stand for what people download is not in the formula.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from sapper.audits.calibration import NAME, Score
from sapper.conformal import fewest
from sapper.defenses.budgets import Budget
from sapper.errors import SapperError, first_mistake
from sapper.files import read_text, write_atomically

if TYPE_CHECKING:  # reading a bag must not wait for torch
    from sapper.defenses.contracts import EncoderExaminer

SHIPPED = Path(__file__).parent / "families"
"""Bags over families that come with Sapper."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Scores of known-clean encoders of one family; none where there was no score to give. ``about`` it, in words."""

    name: Annotated[str, Field(pattern=NAME)]
    about: str
    scores: Annotated[list[Score | None], Field(min_length=1)]

    @property
    def largest(self) -> float:
        """An encoder without a score is as suspicious as can be, so that the bound still holds."""
        return max(float("inf") if score is None else score for score in self.scores)


@dataclass(frozen=True, kw_only=True)
class FamilyBag:
    """Scores that a ``detector`` with these ``parameters`` gives to known-clean encoders of many families.

    ``images``: how many it was shown with each encoder, or fewer; what it says with fewer of all nobody has measured.
    ``made``: of what, and on which machine.
    """

    name: Annotated[str, Field(pattern=NAME)]
    detector: str
    parameters: dict[str, Any]
    images: PositiveInt
    families: Annotated[list[Family], Field(min_length=1)]
    made: dict[str, str] = field(default_factory=dict)
    schema: Literal[2] = 2

    @property
    def size(self) -> int:
        """How many families there are."""
        return len(self.families)

    @property
    def encoders(self) -> int:
        """How many encoders there are in all of them."""
        return sum(len(family.scores) for family in self.families)

    def reaching(self, score: float) -> int:
        """Of how many families an encoder scores as high."""
        return sum(family.largest >= score for family in self.families)

    def p_value(self, score: float) -> float:
        """The p-value of an encoder of a family that is not among them, in [1/(F + 1), 1]."""
        return (1 + self.reaching(score)) / (self.size + 1)


def parameters_of(method: "EncoderExaminer") -> dict[str, Any]:
    """A detector's version and parameters, as a bag has them."""
    plain: dict[str, Any] = json.loads(json.dumps({"version": method.version} | asdict(method)))  # type: ignore[call-overload]
    return plain


@dataclass(frozen=True, kw_only=True)
class AmongFamilies:
    """The bag over families that an audit can use, or in words why there is none.

    ``images``: with how many there would be one, where there are too few.
    """

    bag: FamilyBag | None
    reason: str = ""
    images: int | None = None


def fitting_families(budget: Budget, known: Sequence[FamilyBag], bound: float, images: int) -> AmongFamilies:
    """The largest of the bags that were made with what a budget has for strangers, if it is large enough.

    ``images``: how many the audit has. Among bags of one size, the one that was made with most images.
    """
    if budget.stranger is None:
        why = f"the budget {budget.name} has no detector that can be compared among families"
        return AmongFamilies(bag=None, reason=why)
    if not known:
        return AmongFamilies(bag=None, reason="no bag over families is known")
    detector = budget.stranger
    parameters = parameters_of(budget.for_strangers()[detector])
    same = [bag for bag in known if (bag.detector, bag.parameters) == (detector, parameters)]
    if not same:
        why = f"no bag over families was made with {detector} as the budget {budget.name} has it"
        return AmongFamilies(bag=None, reason=why)
    fit = [bag for bag in same if _unfit(bag, bound) is None]
    if not fit:
        return AmongFamilies(bag=None, reason=str(_unfit(max(same, key=lambda bag: bag.size), bound)))
    shown = [bag for bag in fit if bag.images <= images]
    if not shown:
        needed = min(bag.images for bag in fit)
        few = f"bags over families were made with {needed} images of each encoder's kind or more, and here are {images}"
        return AmongFamilies(bag=None, reason=few, images=needed)
    return AmongFamilies(bag=max(shown, key=lambda bag: (bag.size, bag.images)))


def _unfit(bag: FamilyBag, bound: float) -> str | None:
    """Why a bag can flag nothing at that bound, if so."""
    if bag.size < fewest(bound):
        has = f"{bag.name!r} has {bag.size} of the {fewest(bound)} families that a bound of {bound:g} needs"
        return (
            f"the bag over families is too small: {has} (the smallest bound that it allows is {1 / (bag.size + 1):.2g})"
        )
    none = [family.name for family in bag.families if not math.isfinite(family.largest)]
    if (1 + len(none)) / (1 + bag.size) > bound:
        why = f"of the {bag.size} families of {bag.name!r} {len(none)} have an encoder without a score"
        return f"{why} ({', '.join(none)}), so that no score can be unusual"
    return None


def write_families(bag: FamilyBag, path: Path) -> None:
    """Write a bag over families to a JSON file."""
    write_atomically(path, families_as_written(bag))


def families_as_written(bag: FamilyBag) -> str:
    """What ``write_families`` writes; equal bags give equal texts."""
    return json.dumps(asdict(bag), indent=1, sort_keys=True) + "\n"


def read_families(path: Path) -> FamilyBag:
    """A bag over families from a file. Raises ``SapperError`` if it cannot be used."""
    remedy = "name a file that sapper zoo score --families made, or make it anew"
    try:
        bag: FamilyBag = TypeAdapter(FamilyBag).validate_json(read_text(path, remedy, "no bag can be read"))
    except ValidationError as error:
        what = f"no bag over families can be read: {first_mistake(error)}"
        raise SapperError(what, where=str(path), remedy=remedy) from error
    check_distinct([family.name for family in bag.families], str(path))
    return bag


def check_distinct(names: Iterable[str], where: str) -> None:
    """Raises ``SapperError`` for a family that is counted twice: the bound needs as many as there are."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SapperError(f"the family {name!r} is there twice", where=where, remedy="name each family once")
        seen.add(name)


def shipped_families() -> list[FamilyBag]:
    """The bags over families that come with Sapper."""
    return [read_families(path) for path in sorted(SHIPPED.glob("*.json"))]
