"""Bags of known-clean encoders, and how surprising a score is beside theirs.

A detector's score means little by itself: what is usual depends on architecture, image size and images. So an audit
compares it with the scores s₁ … s_n of encoders that are known to be clean, a *bag*, under the same detectors and
images:

    p = ( 1 + #{ i : sᵢ ≥ s } ) / ( n + 1 )

If the encoder in doubt is clean and comes about as those in the bag did, all n + 1 scores are exchangeable and
P(p ≤ α) ≤ α for every α: flagging p ≤ α raises a false alarm in at most that share of audits (split conformal
prediction; Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005; Bates et al., "Testing for Outliers
with Conformal p-values", Annals of Statistics 2023). The bound holds on average over bags, and for what resembles the
bag; nothing smaller than 1/(n + 1) can come out.

How an encoder came about cannot be seen from its weights, and what its author says of it may be a lie. So where there
are several bags of its kind, contrastive and supervised encoders' say, the largest of the p-values counts. Then the
bound holds beside each of them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from sapper.conformal import fewest
from sapper.defenses.budgets import Budget
from sapper.encoders.names import SAME
from sapper.errors import SapperError, first_mistake
from sapper.files import read_text, write_atomically

if TYPE_CHECKING:  # reading a bag must not wait for torch
    from sapper.encoders import Encoder
    from sapper.samples import ImageSet

BOUND = 0.05
"""The false-alarm bound at which audits are measured, and the usual one."""

SHIPPED = Path(__file__).parent / "bags"
"""Bags that come with Sapper."""

LARGE = 112
"""Pixels a side from which on a search is briefer than in bags that do not say so; for others nothing changed."""

NAME = r"^[^/\\\x00-\x1f\x7f-\x9f]+$"
"""What a bag may be called: a file's name that a terminal can show."""


def p_value(score: float, clean: Sequence[float]) -> float:
    """The conformal p-value of ``score`` beside those of clean encoders, in [1/(n + 1), 1]."""
    return (1 + sum(other >= score for other in clean)) / (len(clean) + 1)


def largest_p_value(score: float, groups: Iterable[Sequence[float]]) -> float | None:
    """The p-value beside whichever group of clean encoders makes it largest; none without a group."""
    return max((p_value(score, clean) for clean in groups), default=None)


@dataclass(frozen=True, kw_only=True)
class Key:
    """What an encoder and an audit must share with a bag. ``images``: the SHA-256 of the pixels of the image set."""

    architecture: str
    width: int
    stem: str
    feature_size: int
    input_size: int
    images: str
    budget: str
    detectors: dict[str, dict[str, Any]]

    @staticmethod
    def of(encoder: "Encoder", images: "ImageSet", budget: Budget) -> "Key":
        """The key of an audit. Of the encoder only what its weights say."""
        card = encoder.card
        detectors = {
            name: {"version": method.version} | _plain(asdict(method))  # type: ignore[call-overload]
            for name, method in budget.make().items()
        }
        return Key(
            architecture=card.kind,
            width=card.width,
            stem=card.stem,
            feature_size=encoder.feature_size,
            input_size=card.input_size,
            images=images.pixels_digest,
            budget=budget.name,
            detectors=detectors,
        )

    def differs(self, other: "Key") -> list[str]:
        """In what two keys differ, in words."""
        return [name.replace("_", " ") for name, value in asdict(self).items() if asdict(other)[name] != value]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


Score = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Power:
    """How many planted backdoors of a kind, among those that work, were found at the usual false-alarm bound.

    ``low``, ``high``: Clopper and Pearson's 95 % interval.
    """

    trigger: str
    found: int
    planted: int
    low: Score
    high: Score


Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Bag:
    """Scores of known-clean encoders.

    ``pretraining``: how they came about, in words; the bound holds for encoders that came about alike. ``scores``: for
    each detector one for each encoder. ``gathered``: likewise the share of images that the recovered trigger draws to
    one point. ``images``: what the image set is called. ``origins``: by which methods on which data they were
    trained, as a zoo says it. ``power``: measured on encoders of these origins, beside the bag and ``power_beside``.
    """

    name: Annotated[str, Field(pattern=NAME)]
    key: Key
    pretraining: str
    images: str
    scores: dict[str, list[Score | None]]
    gathered: dict[str, list[Fraction | None]] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)
    power: list[Power] = field(default_factory=list)
    power_beside: list[str] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        """Raises ``SapperError`` unless every detector of the key has a score for every encoder, and a share if any."""
        sizes = {name: len(scores) for name, scores in self.scores.items()}
        shares = {name: len(shares) for name, shares in self.gathered.items()}
        if sizes.keys() != self.key.detectors.keys() or len(set(sizes.values())) != 1 or 0 in sizes.values():
            what = f"its scores do not fit together: {sizes} for {', '.join(self.key.detectors)}"
        elif shares and shares != sizes:
            what = f"its shares do not fit its scores: {shares} and {sizes}"
        else:
            return
        raise SapperError(what, where=f"bag {self.name}", remedy="make it anew with sapper calibrate")

    def of(self, detector: str) -> list[float]:
        """A detector's scores; one without a score is as suspicious as can be, so that the bound still holds."""
        return [float("inf") if score is None else score for score in self.scores.get(detector, [])]

    @property
    def size(self) -> int:
        """How many encoders there are."""
        return len(next(iter(self.scores.values())))


@dataclass(frozen=True, kw_only=True)
class InClean:
    """The share of images that triggers found in known-clean encoders draw to one point.

    The ``median`` of so many ``encoders``, and the ``largest``.
    """

    median: Fraction
    largest: Fraction
    encoders: int


def in_clean(bags: Iterable[Bag], detector: str) -> InClean | None:
    """What a detector's triggers do in known-clean encoders; none where the bags do not say."""
    shares = [share for bag in bags for share in bag.gathered.get(detector, []) if share is not None]
    return InClean(median=median(shares), largest=max(shares), encoders=len(shares)) if shares else None


def write_bag(bag: Bag, path: Path) -> None:
    """Write a bag to a JSON file."""
    write_atomically(path, as_written(bag))


def as_written(bag: Bag) -> str:
    """What ``write_bag`` writes; equal bags give equal texts."""
    return json.dumps(asdict(bag), indent=1, sort_keys=True) + "\n"


def read_bag(path: Path) -> Bag:
    """A bag from a file. Raises ``SapperError`` if it cannot be used."""
    remedy = "name a file that sapper calibrate or sapper zoo score made"
    try:
        bag: Bag = TypeAdapter(Bag).validate_json(read_text(path, remedy, "no bag can be read"))
        return replace(bag, key=_as_now(bag.key))
    except ValidationError as error:
        what = f"no bag can be read: {first_mistake(error)}"
        raise SapperError(what, where=str(path), remedy=remedy) from error


def _as_now(key: Key) -> Key:
    """The key of a bag of before: some networks had their libraries' names, and all images were searched alike."""
    same = SAME.fullmatch(key.architecture) if key.stem == "imagenet" else None
    detectors = key.detectors
    if "multi_prior" in detectors and key.input_size < LARGE:
        detectors = detectors | {"multi_prior": {"large": LARGE} | detectors["multi_prior"]}
    return replace(key, architecture=same[1] if same else key.architecture, detectors=detectors)


def shipped_bags() -> list[Bag]:
    """The bags that come with Sapper."""
    return [read_bag(path) for path in sorted(SHIPPED.glob("*.json"))]


@dataclass(frozen=True, kw_only=True)
class Match:
    """The bags that fit, or in words why there is none. ``too_small``: one has the key, but too few encoders."""

    bags: tuple[Bag, ...]
    reason: str
    too_small: bool = False


def fitting(key: Key, bags: Sequence[Bag], bound: float) -> Match:
    """All bags with that key; none at all if one of them has too few encoders for the bound.

    Left out, it could not speak for the kind of encoder that it is there for.
    """
    same = tuple(bag for bag in bags if bag.key == key)
    for bag in same:
        if bag.size < fewest(bound):
            has = f"{bag.name!r} has {bag.size} of the {fewest(bound)} encoders that a bound of {bound:g} needs"
            smallest = f"the smallest bound that it allows is {1 / (bag.size + 1):.2g}"
            return Match(bags=(), reason=f"the bag that fits is too small: {has} ({smallest})", too_small=True)
    return Match(bags=same, reason="" if same else _why_none(key, bags))


def _why_none(key: Key, bags: Sequence[Bag]) -> str:
    if not bags:
        return "there is no bag of known-clean encoders"
    nearest = min(bags, key=lambda bag: len(key.differs(bag.key)))
    differing = key.differs(nearest.key)
    told = f"no bag of known-clean encoders fits; the nearest, {nearest.name!r}, has other {', '.join(differing)}"
    if differing == ["images"]:
        return f"{told}: it was made with {nearest.images}"
    if "budget" in differing and set(differing) <= {"images", "budget", "detectors"}:
        return f"{told}: it was made with the budget {nearest.key.budget} and {nearest.images}"
    return told


def distinct(bags: Sequence[Bag]) -> list[Bag]:
    """Every bag once. Raises ``SapperError`` for two different ones of one name."""
    found: dict[str, Bag] = {}
    for bag in bags:
        if found.setdefault(bag.name, bag) != bag:
            remedy = "rename one of the files, and its name in it"
            raise SapperError(f"two different bags are called {bag.name!r}", where="--bag", remedy=remedy)
    return list(found.values())
