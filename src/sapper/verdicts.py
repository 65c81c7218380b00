"""What defenses answer, as plain data."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A detector's answer about one model.

    ``score``      the higher, the more it speaks for a backdoor; none where there is none to give.
    ``threshold``  above which score the model is flagged; none where the method has none of its own.
    ``flagged``    yes, no, or none: undecided.
    ``evidence``   what the score was computed from: numbers and lists that JSON can hold, and tensors (a recovered
                   trigger), for reports and for people.
    ``seconds``    what it took.
    """

    score: float | None
    threshold: float | None
    flagged: bool | None
    evidence: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def unscored(why: str, threshold: float, seconds: float) -> Verdict:
    """No score, and in words why."""
    return Verdict(score=None, threshold=threshold, flagged=None, evidence={"why": why}, seconds=seconds)


def threat(patch: int) -> str:
    """One patch, in words."""
    return f"one {patch}×{patch} patch anywhere"


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A certified defense's predictions, and which of them nothing within ``threat`` can change.

    ``labels``     int64 (N,): the defense's predictions on the images as they are.
    ``certified``  bool (N,): no patch within ``threat`` makes the defense answer anything but the image's true class.
                   Never true where the prediction is wrong.
    ``threat``     in words, such as "one 10×10 patch anywhere".
    """

    labels: Tensor
    certified: Tensor
    threat: str

    def __post_init__(self) -> None:
        assert self.labels.shape == self.certified.shape
        assert self.certified.dtype == torch.bool
