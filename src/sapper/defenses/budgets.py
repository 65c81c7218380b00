"""Budgets: which detectors an audit runs and how long, and in words what each leaves out.

The first detector of a budget *leads*: its score alone decides, because more than one decision would raise the rate of
false alarms. What the others find is evidence beside it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sapper import defenses
from sapper.errors import SapperError, closest
from sapper.methods import find

if TYPE_CHECKING:  # naming a budget must not wait for torch
    from sapper.defenses.contracts import EncoderExaminer


@dataclass(frozen=True, kw_only=True)
class Budget:
    """``detectors``: name and parameters of each, the leading one first. ``tried`` and ``left_out``: in words.

    ``strangers``: the detectors where no bag of the encoder's kind is known, but one over families is, the one that
    leads first; empty where the budget has none.
    """

    name: str
    detectors: dict[str, dict[str, Any]]
    tried: tuple[str, ...]
    left_out: tuple[str, ...]
    strangers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def leading(self) -> str:
        return next(iter(self.detectors))

    def make(self) -> "dict[str, EncoderExaminer]":
        """The detectors, by name."""
        return {name: _made(name, set_) for name, set_ in self.detectors.items()}

    @property
    def stranger(self) -> str | None:
        """The detector that leads for strangers."""
        return next(iter(self.strangers), None)

    def tried_on(self, *, strangers: bool) -> tuple[str, ...]:
        """What was tried, and of strangers, what of it decides."""
        if not strangers:
            return self.tried
        return BESIDE_TWINS, *(f"as evidence only: {each}" for each in self.tried if each != SQUARES)

    def for_strangers(self) -> "dict[str, EncoderExaminer]":
        """The detectors where no bag of the encoder's kind is known, by name."""
        return {name: _made(name, set_) for name, set_ in self.strangers.items()}


def _made(name: str, parameters: dict[str, Any]) -> "EncoderExaminer":
    method: EncoderExaminer = find("defenses", defenses.METHODS, name, "budget")(**parameters)
    return method


PATCHES = ((0.25, -0.09, 0.23), (0.375, 0.19, 0.35))
"""Sizes as shares of the side, and what is usual without a backdoor; see ``multi_prior``."""

TWINS: dict[str, Any] = {"blends": (), "filters": ()}
"""How strangers are compared with students of theirs: by squares, in every budget, so that one bag serves all."""

DECREE = {"epochs": 60, "images": 256, "batch": 64}

SQUARES = "square patches of a quarter and of three eighths of the image's side, anywhere: smaller ones lie inside"
BESIDE_TWINS = f"{SQUARES}; compared with the same in students of the encoder, which decides"
LARGE = "patches of more than three eighths of the side"

QUICK = Budget(
    name="quick",
    detectors={"multi_prior": {"patches": PATCHES, "blends": (), "filters": ()}},
    tried=(SQUARES,),
    left_out=(
        "blends, and changes of all colors",
        "second opinions by DECREE and SSL-Cleanse",
        LARGE,
    ),
    strangers={"twins": TWINS},
)

STANDARD = Budget(
    name="standard",
    detectors={
        "multi_prior": {"patches": PATCHES},
        "decree": DECREE,
    },
    tried=(
        SQUARES,
        "one picture mixed into the whole image with a weight of 0.2",
        "one linear change of all colors, each coefficient by up to 0.2",
        "the smallest mask of any shape (DECREE), as a second opinion",
    ),
    left_out=("a second opinion by SSL-Cleanse", "more starts and steps of each search", LARGE),
    strangers={"twins": TWINS, "multi_prior": {"patches": ()}, "decree": DECREE},
)

MANY: dict[str, dict[str, Any]] = {
    "multi_prior": {
        "patches": ((0.125, -0.30, 0.10), *PATCHES),
        "blends": ((0.1, -0.27, 0.11), (0.2, 0.01, 0.33)),
        "restarts": 16,
        "rounds": ((0, 8, 4), (16, 16, 24), (4, 32, 48)),
        "images": 256,
        "held_out": 256,
    },
    "decree": {"epochs": 200, "images": 512, "batch": 128, "restarts": 3},
    "ssl_cleanse": {},
}

THOROUGH = Budget(
    name="thorough",
    detectors=MANY,
    tried=(
        "square patches of an eighth, a quarter and three eighths of the image's side, anywhere, from more starts",
        "one picture mixed into the whole image with weights of 0.1 and 0.2",
        "one linear change of all colors, each coefficient by up to 0.2",
        "the smallest mask of any shape (DECREE), and for each cluster of features (SSL-Cleanse), as second opinions",
    ),
    left_out=(LARGE,),
    strangers={"twins": TWINS} | MANY,
)

BUDGETS = {budget.name: budget for budget in (QUICK, STANDARD, THOROUGH)}


def budget(name: str) -> Budget:
    """The budget of that name. Raises ``SapperError`` if there is none."""
    if name not in BUDGETS:
        raise SapperError(f"no budget {name!r}", where="--budget", remedy=closest(name, list(BUDGETS)))
    return BUDGETS[name]


UNSEEN = (
    "backdoors that do not draw features to one point: a different answer for each image, or a slight shift only",
    "triggers that no prior resembles: several patches at once, warps, frequencies, objects, sample-specific changes",
    "backdoors that need a fine-tuned encoder, a text tower, or a classifier of the attacker's own",
    "an attacker who knew this audit and trained the encoder to pass it",
)
"""What no budget can see."""
