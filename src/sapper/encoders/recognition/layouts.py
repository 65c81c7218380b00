"""A backbone that was recognized in a file, and what its recognizers share.

Recognizers (``resnets``, ``transformers``) bring a program's names to those that torchvision or timm have. Shapes tell
them what network it is. What neither names nor shapes tell comes from the program that is recognized (``programs``), or
is assumed, and told.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from sapper.encoders.backbones import Pixels
from sapper.encoders.code import EXAMPLE
from sapper.encoders.names import Stem
from sapper.encoders.options import Opening
from sapper.encoders.recognition.programs import Program
from sapper.errors import SapperError

Weights = dict[str, Tensor]

MOST_NAMES = 4
"""How many names of tensors an error lists."""

OTHERWISE = "say the architecture with --arch, such as --arch timm:NAME"
OR_OWN = f"{OTHERWISE}; where only names differ, --keys OLD=NEW as well; a network of your own is given by a function"
BY_CODE = "give the network as a function of your own: --arch package.module:function --trust-code --size N"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A backbone that was recognized: what ``build`` needs, its ``weights`` by its own names, and whose it is.

    ``names``: for each of the weights its name in the file. ``pixels``: the images it is made for; ``normalization``
    where mean and deviation are from, none where they are a guess. ``assumed``: what nothing told, what was taken
    instead, why, and which option changes it. ``told``: what else a user should know of how it was recognized.
    ``others``: what the file's other networks are, by their prefixes.
    """

    architecture: str
    weights: Weights
    names: dict[str, str]
    prefix: str
    source: str
    pixels: Pixels
    normalization: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    width: int = 64
    stem: Stem = "imagenet"
    assumed: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_size(self) -> int:
        return self.pixels.size


@dataclass(frozen=True, kw_only=True)
class Configured:
    """What a configuration beside the weights says: of images, where that is from, and the network's ``arguments``.

    ``classes``: what the classifier's outputs are called, in their order.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    size: int | None = None
    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A backbone behind its prefix, before it is known what network it is."""

    weights: Weights
    names: dict[str, str]
    family: str
    program: Program
    opening: Opening
    where: str

    def unknown(self, what: str) -> SapperError:
        return UnknownNetworkError(what, where=self.where, remedy=OR_OWN, lines=EXAMPLE)

    def renamed(self, rename: Callable[[str], str]) -> "Backbone":
        """The same with other names."""
        new = {name: rename(name) for name in self.weights}
        if len(set(new.values())) < len(new):
            raise self.unknown("two of its tensors come to one name")
        weights = {new[name]: value for name, value in self.weights.items()}
        return replace(self, weights=weights, names={new[name]: file for name, file in self.names.items()})


def shortened(names: Iterable[str]) -> str:
    """The first names of many."""
    known = sorted(names)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return ", ".join(known[:MOST_NAMES]) + more


def pixels_of(program: Program, default: Pixels, *, small: bool = False) -> tuple[Pixels, str | None]:
    """The images a network takes, and where their normalization is from; none where it is a guess."""
    known = program.small if small and program.small else program.pixels
    if known is None:
        return default, None
    by_names = "" if program.certain else ", by its names alone"
    return Pixels(default.size, *known), f"{program.name}'s{by_names}: {program.why}"


class UnknownNetworkError(SapperError):
    """No network that is known has these names and shapes."""


def shape(tensor: Tensor) -> str:
    """As 64×3×7×7."""
    return "×".join(str(side) for side in tensor.shape) or "a number"
