"""Samples: a set of what an encoder takes, in memory, so that no hot path runs Python for each sample."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from sapper.errors import SapperError
from sapper.samples.specs import InputSpec


@dataclass(frozen=True, kw_only=True)
class Samples(ABC):
    """N samples with, if there are any, labels. Each modality says what a sample is (``ImageSet``).

    ``labels``  int64 (N,), each in 0…len(classes)-1, or none.
    ``classes`` class names in label order; empty where there are no labels.
    ``groups``  int64 (N,), or none: samples of one group are near-duplicates (the frames of a GTSRB track).
    ``name``, ``split``, ``provenance``: what it is called and where it comes from, for reports.
    ``notes``   sentences for the user about what was passed over when it was read.

    Raises ``SapperError`` when shapes, dtypes or label ranges do not fit together.
    """

    name: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    groups: Tensor | None = None
    split: str = ""
    provenance: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise self.error("there is nothing in it")
        for what, values in (("labels", self.labels), ("groups", self.groups)):
            if values is not None and (values.dtype != torch.int64 or values.shape != (len(self),)):
                raise self.error(f"{what} must be int64 ({len(self)},), got {values.dtype} {tuple(values.shape)}")
        if self.labels is not None and not (0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes)):
            lowest, highest = int(self.labels.min()), int(self.labels.max())
            raise self.error(f"labels run from {lowest} to {highest}, but there are {len(self.classes)} classes")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, rows: Tensor | slice | None = None) -> Any:
        """What the encoder is given for these rows, or for all, on the device that the set is on.

        Of an ``ImageSet`` float32 (n, 3, H, W) in [0, 1].
        """

    @abstractmethod
    def at_once(self, device: torch.device | None = None) -> int:
        """How many samples are in an encoder at once: what memory allows, and what is fast.

        ``device``: where the encoder is, if it is not where the samples are.
        """

    @abstractmethod
    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` unless an encoder that takes ``spec`` takes these samples."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same set with its content on that device; labels and groups stay on the CPU."""

    @abstractmethod
    def _content(self, rows: Tensor) -> dict[str, Any]:
        """The fields of this modality for these rows (int64 indices or a boolean mask)."""

    @abstractmethod
    def _joined(self, others: Sequence[Self]) -> dict[str, Any]:
        """The fields of this modality of this set and the others, one after another."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of content, labels and groups: what the Store and the report know the set by."""

    def error(self, what: str, remedy: str = "") -> SapperError:
        """An error about this set."""
        return SapperError(what, where=f"data set {self.name!r} {self.split}".rstrip(), remedy=remedy)

    def batches(self, count: int) -> Iterator[Any]:
        """All samples in their order, ``count`` at a time, as the encoder is given them."""
        for start in range(0, len(self), count):
            yield self.batch(slice(start, start + count))

    def targets(self) -> Tensor:
        """The labels, int64 (N,). Raises ``SapperError`` where the set has none."""
        if self.labels is None:
            what, remedy = (
                "this needs labels, and the set has none",
                "name one with labels, such as a folder of classes",
            )
            raise SapperError(what, where=f"data set {self.name!r}", remedy=remedy)
        return self.labels

    def take(self, rows: Tensor) -> Self:
        """The samples at ``rows`` (int64 indices or a boolean mask), in that order."""
        return replace(
            self,
            **self._content(rows),
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def without(self, rows: Tensor) -> Self:
        """All samples but those at the int64 indices ``rows``."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[rows] = False
        return self.take(keep)

    def sample(self, count: int, generator: torch.Generator) -> Self:
        """``count`` distinct samples drawn at random; all of them, in their order, if there are no more."""
        if count >= len(self):
            return self
        return self.take(torch.randperm(len(self), generator=generator)[:count])

    def held_out(self, share: float, generator: torch.Generator) -> tuple[Self, Self]:
        """The set in two parts: the rest, and about ``share`` of it held out; a group stays on one side."""
        keys = torch.arange(len(self)) if self.groups is None else self.groups
        names = keys.unique()
        chosen = names[torch.randperm(len(names), generator=generator)[: max(1, round(share * len(names)))]]
        mask = torch.isin(keys, chosen)
        return self.take(~mask), replace(self.take(mask), split=f"held out of {self.split}")


S = TypeVar("S", bound=Samples)


def joined(sets: Sequence[S]) -> S:
    """The sets one after another, called ``a + b``. Labels stay where all sets have the same classes."""
    first, *others = sets
    labels = [each.labels for each in sets if each.labels is not None]
    alike = len(labels) == len(sets) and all(each.classes == first.classes for each in others)
    return replace(
        first,
        **first._joined(others),
        name=" + ".join(dict.fromkeys(each.name for each in sets)),
        labels=torch.cat(labels) if alike else None,
        classes=first.classes if alike else (),
        groups=None,
    )
