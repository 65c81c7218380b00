"""What a search found in an encoder, and how far that goes beyond the same search in other networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sapper.triggers.priors import Prior


@dataclass(frozen=True, kw_only=True)
class Found(ABC):
    """The best change of a prior, and what it does in powers of ten.

    ``usual``, ``deviation``: of these powers, for clean encoders.
    """

    change: Prior
    usual: float
    deviation: float

    @property
    @abstractmethod
    def powers(self) -> float:
        """Of ten, by which the change does what was searched for."""

    @abstractmethod
    def told(self) -> dict[str, float]:
        """Its numbers, as evidence holds them; ``powers`` among them."""

    @property
    def score(self) -> float:
        return self.beyond(0)

    def beyond(self, expected: float) -> float:
        """How far it goes beyond what is expected and what is usual, in deviations."""
        return (self.powers - expected - self.usual) / self.deviation


def beyond(
    looked: Mapping[str, Found], others: Mapping[str, Mapping[str, Found]], natural: Callable[[float], float]
) -> dict[str, dict[str, Any]]:
    """For each prior its numbers, and how far it goes beyond the same search in ``others``, which have names.

    ``beside``: the powers of ten that each of them reaches; ``excess``: what goes beyond their mean; ``natural``: what
    is taken for natural where they reach that; ``score``: what goes beyond this and what is usual, in deviations.
    """
    priors: dict[str, dict[str, Any]] = {}
    for name, found in looked.items():
        powers = {other: search[name].powers for other, search in others.items()}
        mean = sum(powers.values()) / len(powers)
        expected = natural(mean)
        told = {"beside": powers, "excess": found.powers - mean, "natural": expected, "score": found.beyond(expected)}
        priors[name] = found.told() | told
    return priors
