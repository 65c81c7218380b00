"""The text tower of an encoder that was trained with captions: token ids in, features in the images' space out.

Two kinds. ``transformer``: words and their places are embedded, a few blocks of attention and MLP (each with its
LayerNorm in front) follow, and the words' features are averaged. ``bag``: the average of the words' embeddings, so that
their order does not matter. Both end in a LayerNorm and a linear map without bias into the joint space.

As in Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, but much
smaller, with whole words as tokens, attention to both sides, and the average of all words in place of the feature of an
end-of-text token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sapper.samples import Tokens, TokenSpec
from sapper.samples.texts import PADDING, UNKNOWN, tokens_of

FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0
"""Of cosines, in the softmax of a contrastive loss: where training starts, and the most that it may become."""

Kind = Literal["transformer", "bag"]


@dataclass(frozen=True, kw_only=True)
class TextCard:
    """What a text tower is built from: its ``vocabulary`` in the order of ids, texts of at most ``length`` words.

    ``width`` of the embedding of a word, ``layers`` and ``heads`` of a transformer, ``features`` of the joint space.
    """

    vocabulary: tuple[str, ...]
    length: Annotated[int, Field(ge=1, le=4096)]
    features: Annotated[int, Field(ge=1, le=2**14)]
    kind: Kind = "transformer"
    width: Annotated[int, Field(ge=1, le=4096)] = 64
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    heads: Annotated[int, Field(ge=1, le=64)] = 4

    def __post_init__(self) -> None:
        if self.vocabulary[:2] != (PADDING, UNKNOWN):
            raise ValueError(f"a vocabulary begins with {PADDING} and {UNKNOWN}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")

    @property
    def input(self) -> TokenSpec:
        """The texts that the tower takes."""
        return TokenSpec(vocabulary=len(self.vocabulary), length=self.length)


class TextTower(nn.Module):
    """``tower(tokens)``: a batch of n texts to features float (n, D), not normalized.

    ``logit_scale`` is the logarithm of the factor on cosines that the two towers were trained with.
    """

    def __init__(self, card: TextCard):
        super().__init__()
        self.card = card
        self.words = nn.Embedding(len(card.vocabulary), card.width)
        nn.init.normal_(self.words.weight, std=0.1)
        attentive = card.kind == "transformer"
        self.places = nn.Parameter(0.01 * torch.randn(card.length, card.width)) if attentive else None
        self.blocks = nn.ModuleList(Block(card.width, card.heads) for _ in range(card.layers if attentive else 0))
        self.norm = nn.LayerNorm(card.width)
        self.projection = nn.Linear(card.width, card.features, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(log(FIRST_SCALE)))

    def forward(self, tokens: Tokens) -> Tensor:
        mask = tokens.mask
        hidden = self.words(tokens.ids)
        if self.places is not None:
            hidden = hidden + self.places[: hidden.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, mask)
        mean = (hidden * mask[..., None]).sum(1) / tokens.lengths[:, None]
        return self.projection(self.norm(mean))

    @property
    def scale(self) -> Tensor:
        """The factor on cosines, a scalar."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """L2-normalized features of texts, float32 (n, D), on the tower's device; the tower is used in ``eval`` mode.

        Longer texts are cut off, words that it never saw are ``UNKNOWN``.
        """
        self.eval()
        tokens = tokens_of([*texts], self.card.vocabulary, self.card.length).to(self.logit_scale.device)
        return F.normalize(self(tokens).float(), dim=1)


class Block(nn.Module):
    """Attention among the words of a text, then an MLP on each; what comes in is added to what comes out."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """``hidden`` float (n, L, width); where ``mask``, bool (n, L), is false, nothing is looked at."""
        parts = self.attention_in(self.before_attention(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        hidden = hidden + self.attention_out(seen.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.before_mlp(hidden))
