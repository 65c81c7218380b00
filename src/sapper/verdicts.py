"""What defenses answer: plain data, and the triggers that they recovered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sapper import triggers
from sapper.errors import SapperError
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The trigger that sends images into one class.

    ``label`` of the class, ``pixels`` that the trigger covers, ``success``: the share of images that it sends there.
    """

    label: int
    trigger: Trigger
    pixels: float
    success: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A detector's answer about one model.

    ``score``      the higher, the more it speaks for a backdoor; none where there is none to give.
    ``threshold``  above which score the model is flagged; none where the method has none of its own.
    ``flagged``    yes, no, or none: undecided.
    ``trigger``    what was recovered, if anything.
    ``reached``    of a detector that recovers a trigger for each class: all of them; ``trigger`` is the suspect's.
    ``evidence``   what the score was computed from, as plain data that JSON can hold, for reports and for people.
    ``seconds``    what it took.
    """

    score: float | None
    threshold: float | None
    flagged: bool | None
    trigger: Trigger | None = None
    reached: tuple[Reached, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def to_tensors(verdict: Verdict) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A verdict as plain data and tensors, from which ``from_tensors`` makes it again."""
    tensors: dict[str, Tensor] = {}

    def plain(trigger: Trigger, name: str) -> dict[str, Any]:
        described, values = triggers.to_tensors(trigger)
        tensors.update({f"{name}/{key}": value.clone() for key, value in values.items()})  # files share no memory
        return described

    told = {
        "score": verdict.score,
        "threshold": verdict.threshold,
        "flagged": verdict.flagged,
        "trigger": None if verdict.trigger is None else plain(verdict.trigger, "trigger"),
        "reached": [
            {"label": each.label, "pixels": each.pixels, "success": each.success}
            | {"trigger": plain(each.trigger, f"reached/{each.label}")}
            for each in verdict.reached
        ],
        "evidence": verdict.evidence,
        "seconds": verdict.seconds,
    }
    return told, tensors


def from_tensors(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Verdict:
    """The verdict that ``to_tensors`` wrote. Raises ``SapperError`` (``where``) for what is none."""

    def trigger(described: Mapping[str, Any], name: str) -> Trigger:
        own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        return triggers.from_tensors(described, own, where)

    try:
        found = None if plain["trigger"] is None else trigger(plain["trigger"], "trigger")
        reached = [
            Reached(**each | {"trigger": trigger(each["trigger"], f"reached/{each['label']}")})
            for each in plain["reached"]
        ]
        return Verdict(**{**plain, "trigger": found, "reached": tuple(reached)})
    except (LookupError, TypeError, AttributeError) as error:
        raise SapperError(f"not a verdict: {error}", where=where, remedy="give what Sapper wrote") from error


def unscored(why: str, threshold: float, seconds: float) -> Verdict:
    """No score, and in words why."""
    return Verdict(score=None, threshold=threshold, flagged=None, evidence={"why": why}, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A defense's answer about each of N inputs, or rows of a training set.

    ``values``     float (N,): the higher, the more an input looks like one with a trigger, a row like poison.
    ``threshold``  above which value one is flagged; none where the method flags in another way.
    ``flagged``    bool (N,).
    """

    values: Tensor
    threshold: float | None
    flagged: Tensor

    def __post_init__(self) -> None:
        assert self.values.shape == self.flagged.shape
        assert self.flagged.dtype == torch.bool


def threat(patch: int) -> str:
    """One patch, in words."""
    return f"one {patch}×{patch} patch anywhere"


Box = tuple[int, int, int, int]
"""Rows [top, bottom) and columns [left, right) of an image."""


@dataclass(frozen=True, kw_only=True)
class ByPlace:
    """For every place of a patch, the predictions that no patch there can change: what a trigger on all images meets.

    A place is where the patch's upper left pixel lies. Places that the defense cannot tell apart are one group.

    ``patch``      p, the side in pixels.
    ``certified``  bool (N, G): no patch at a place of the group makes the defense answer anything but the true class.
    ``group``      int64 (H − p + 1, W − p + 1): the group of each place.
    """

    patch: int
    certified: Tensor
    group: Tensor

    def __post_init__(self) -> None:
        assert self.certified.dtype == torch.bool
        assert 0 <= int(self.group.min()) <= int(self.group.max()) < self.certified.shape[1]

    def under(self, box: Box) -> Tensor | None:
        """Bool (N,): the predictions that nothing within ``box`` can change; none where no patch covers it."""
        top, bottom, left, right = box
        rows, columns = (slice(max(0, end - self.patch), start + 1) for start, end in ((top, bottom), (left, right)))
        around = self.group[rows, columns].flatten()
        if max(bottom - top, right - left) > self.patch or not len(around):
            return None
        return self.certified[:, around.unique()].any(1)


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A certified defense's predictions, and which of them nothing within ``threat`` can change.

    ``labels``     int64 (N,): the defense's predictions on the images as they are.
    ``certified``  bool (N,): nothing within ``threat`` makes the defense answer anything but the image's true class.
                   Never true where the prediction is wrong.
    ``threat``     in words, such as "one 10×10 patch anywhere".
    ``by_place``   the same for a patch at one place, for every place; none where the defense cannot tell.
    """

    labels: Tensor
    certified: Tensor
    threat: str
    by_place: ByPlace | None = None

    def __post_init__(self) -> None:
        assert self.labels.shape == self.certified.shape
        assert self.certified.dtype == torch.bool
        if self.by_place is not None:
            assert len(self.by_place.certified) == len(self.certified)
            assert bool((self.certified.unsqueeze(1) <= self.by_place.certified).all()), "anywhere means at every place"
