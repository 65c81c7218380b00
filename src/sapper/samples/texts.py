"""Texts in memory: one table of token ids for a whole data set, and the small vocabulary of words behind them."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from sapper.samples.base import Samples
from sapper.samples.specs import InputSpec, TokenSpec

PADDING, UNKNOWN = "<padding>", "<unknown>"
"""The first two entries of every vocabulary: what fills up short texts, and every word that is not in it."""

WORDS = 20_000
"""At most so many words in a vocabulary, by default; the rarest are left out."""

TOKENS = {"cpu": 2**16, "cuda": 2**20}
"""Tokens that an encoder may have at once."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True)
class Tokens:
    """A batch of texts: ``ids`` int64 (n, L), with 0 behind the end of a text; ``lengths`` int64 (n,), 1 or more."""

    ids: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device) -> "Tokens":
        """The same batch on that device."""
        return Tokens(self.ids.to(device), self.lengths.to(device))

    @property
    def mask(self) -> Tensor:
        """bool (n, L): where there is text and not padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def vocabulary_of(texts: Sequence[str], largest: int = WORDS) -> tuple[str, ...]:
    """Padding, unknown, and the ``largest`` most frequent words of the texts; equally frequent ones by the alphabet."""
    counts = Counter(chain.from_iterable(words(text) for text in texts))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return (PADDING, UNKNOWN, *ordered[:largest])


def tokens_of(texts: Sequence[str], vocabulary: Sequence[str], length: int | None = None) -> Tokens:
    """The texts as ids of a vocabulary, all as long as the longest one, or ``length``; what is longer is cut off.

    A word that is not in the vocabulary is ``UNKNOWN``, and so is a text without any word.
    """
    place = {word: number for number, word in enumerate(vocabulary)}
    rows = [[place.get(word, 1) for word in words(text)[:length]] or [1] for text in texts]
    width = length or max(map(len, rows), default=1)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64).view(len(rows), width)
    return Tokens(ids, torch.tensor([len(row) for row in rows], dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class TextSet(Samples):
    """A set of texts: ``ids`` int64 (N, L), ``lengths`` int64 (N,), as in ``Tokens``, and what all ``Samples`` have.

    ``vocabulary``: the word of each id; the first two are ``PADDING`` and ``UNKNOWN``. ``TextSet.of`` makes a set from
    strings, ``strings`` gives them back as far as the vocabulary has their words.
    """

    ids: Tensor
    lengths: Tensor
    vocabulary: tuple[str, ...]

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        *,
        name: str,
        vocabulary: Sequence[str] | None = None,
        length: int | None = None,
        **rest: Any,
    ) -> Self:
        """The set of these strings; without a ``vocabulary``, with all their words. ``rest``: as in ``Samples``."""
        known = tuple(vocabulary or vocabulary_of(texts))
        tokens = tokens_of(texts, known, length)
        return cls(ids=tokens.ids, lengths=tokens.lengths, vocabulary=known, name=name, **rest)

    def __post_init__(self) -> None:
        count, width = self.ids.shape if self.ids.ndim == 2 else (-1, -1)
        if self.ids.dtype != torch.int64 or self.lengths.dtype != torch.int64 or self.lengths.shape != (count,):
            got = f"{self.ids.dtype} {tuple(self.ids.shape)} and {self.lengths.dtype} {tuple(self.lengths.shape)}"
            raise self.error(f"texts must be ids int64 (N, L) and lengths int64 (N,), got {got}")
        if self.vocabulary[:2] != (PADDING, UNKNOWN) or len(set(self.vocabulary)) < len(self.vocabulary):
            raise self.error(f"a vocabulary begins with {PADDING} and {UNKNOWN}, and has each word once")
        super().__post_init__()
        if not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= width:
            raise self.error(f"lengths run from {int(self.lengths.min())} to {int(self.lengths.max())} of {width} ids")
        if not 0 <= int(self.ids.min()) <= int(self.ids.max()) < len(self.vocabulary):
            raise self.error(f"an id is none of the vocabulary's {len(self.vocabulary)}")
        if not torch.equal(self.ids > 0, self.batch().mask):
            raise self.error("id 0 is padding: it stands behind a text and nowhere else")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def batch(self, rows: Tensor | slice | None = None) -> Tokens:
        """The texts at ``rows``, or all."""
        if isinstance(rows, Tensor):
            rows = rows.to(self.ids.device)
        return Tokens(self.ids, self.lengths) if rows is None else Tokens(self.ids[rows], self.lengths[rows])

    def at_once(self, device: torch.device | None = None) -> int:
        """How many of these texts go through an encoder at once."""
        kind = "cpu" if (device or self.ids.device).type == "cpu" else "cuda"
        return max(1, TOKENS[kind] // self.ids.shape[1])

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` unless an encoder that takes ``spec`` takes these texts."""
        if not isinstance(spec, TokenSpec):
            raise self.error(f"these are texts, the encoder takes {spec.modality}s", "name another set or encoder")
        if len(self.vocabulary) != spec.vocabulary:
            what = f"its vocabulary has {len(self.vocabulary)} words, the encoder's {spec.vocabulary}"
            raise self.error(what, "write the texts in the encoder's vocabulary")
        if int(self.lengths.max()) > spec.length:
            what = f"the longest text has {int(self.lengths.max())} words, the encoder takes {spec.length}"
            raise self.error(what, "cut the texts off")

    def to(self, device: torch.device) -> Self:
        """The same texts on that device."""
        return replace(self, ids=self.ids.to(device), lengths=self.lengths.to(device))

    def strings(self) -> list[str]:
        """The texts again, in lower case and without punctuation."""
        pairs = zip(self.ids.tolist(), self.lengths.tolist())
        return [" ".join(self.vocabulary[number] for number in row[:length]) for row, length in pairs]

    def written_in(self, vocabulary: tuple[str, ...]) -> Self:
        """The same texts in another vocabulary; words that it has not become ``UNKNOWN``."""
        if vocabulary == self.vocabulary:
            return self
        place = {word: number for number, word in enumerate(vocabulary)}
        table = torch.tensor([place.get(word, 1) for word in self.vocabulary], device=self.ids.device)
        return replace(self, ids=table[self.ids], vocabulary=vocabulary)

    @cached_property
    def distinct(self) -> Tensor:
        """int64 (N,), on the CPU: equal texts have equal numbers."""
        return torch.unique(self.ids.cpu(), dim=0, return_inverse=True)[1]

    def _content(self, rows: Tensor) -> dict[str, Any]:
        tokens = self.batch(rows)
        return {"ids": tokens.ids, "lengths": tokens.lengths}

    def _joined(self, others: Sequence[Self]) -> dict[str, Any]:
        vocabulary = tuple(dict.fromkeys(chain(self.vocabulary, *(each.vocabulary for each in others))))
        sets = [each.written_in(vocabulary) for each in (self, *others)]
        width = max(each.ids.shape[1] for each in sets)
        ids = [torch.nn.functional.pad(each.ids, (0, width - each.ids.shape[1])) for each in sets]
        return {"ids": torch.cat(ids), "lengths": torch.cat([each.lengths for each in sets]), "vocabulary": vocabulary}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids, vocabulary, labels and groups: what the Store and the report know the set by."""
        sha = hashlib.sha256(repr((tuple(self.ids.shape), self.vocabulary, self.classes)).encode())
        for values in (self.ids, self.lengths, self.labels, self.groups):
            sha.update(b"-" if values is None else values.cpu().contiguous().numpy().data)
        return sha.hexdigest()
