"""Pairs of an image and a text that tells what is in it: what CLIP learns from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from sapper.samples.base import Samples, joined
from sapper.samples.images import ImageSet
from sapper.samples.specs import InputSpec, PixelSpec
from sapper.samples.texts import TextSet, Tokens


@dataclass(frozen=True, kw_only=True)
class PairSet(Samples):
    """Images and texts, row by row: ``images`` and ``texts`` are sets of equal length; and what all ``Samples`` have.

    Labels, classes and groups of the pairs are the set's own. A method that looks at images alone is given ``images``.
    """

    images: ImageSet
    texts: TextSet

    @classmethod
    def of(cls, images: ImageSet, captions: Sequence[str], vocabulary: Sequence[str] | None = None) -> Self:
        """The pairs of these images and captions; name, labels and the rest are the images'."""
        texts = TextSet.of(captions, name=images.name, split=images.split, vocabulary=vocabulary)
        return cls(
            images=images,
            texts=texts,
            name=images.name,
            labels=images.labels,
            classes=images.classes,
            groups=images.groups,
            split=images.split,
            provenance=images.provenance,
            notes=images.notes,
        )

    def __post_init__(self) -> None:
        if len(self.images) != len(self.texts):
            raise self.error(f"there are {len(self.images)} images and {len(self.texts)} texts")
        super().__post_init__()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.images.size

    @property
    def caption_ids(self) -> Tensor:
        """int64 (N,), on the CPU: equal captions have equal numbers."""
        return self.texts.distinct

    def batch(self, rows: Tensor | slice | None = None) -> tuple[Tensor, Tokens]:
        """Images, float32 (n, 3, H, W) in [0, 1], and their texts: those at ``rows``, or all."""
        return self.images.batch(rows), self.texts.batch(rows)

    def at_once(self, device: torch.device | None = None) -> int:
        """How many of these pairs go through two encoders at once."""
        return min(each.at_once(device) for each in (self.images, self.texts))

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` unless an encoder that takes ``spec`` takes its side of the pairs."""
        (self.images if isinstance(spec, PixelSpec) else self.texts).check(spec)

    def to(self, device: torch.device) -> Self:
        """The same pairs on that device."""
        return replace(self, images=self.images.to(device), texts=self.texts.to(device))

    def _content(self, rows: Tensor) -> dict[str, Any]:
        return {"images": self.images.take(rows), "texts": self.texts.take(rows)}

    def _joined(self, others: Sequence[Self]) -> dict[str, Any]:
        images = joined([self.images, *(each.images for each in others)])
        return {"images": images, "texts": joined([self.texts, *(each.texts for each in others)])}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of both sides, labels and groups: what the Store and the report know the set by."""
        sha = hashlib.sha256(repr((self.images.digest, self.texts.digest, self.classes)).encode())
        for values in (self.labels, self.groups):
            sha.update(b"-" if values is None else values.cpu().contiguous().numpy().data)
        return sha.hexdigest()
