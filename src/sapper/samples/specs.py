"""What an encoder takes, as its card says it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """Square color images: ``size`` in pixels; ``mean`` and ``std`` per channel of what is in [0, 1]."""

    size: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    modality: Literal["image"] = "image"


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """Texts as token ids: ``vocabulary`` different ids, at most ``length`` of them; ``tokenizer`` names the rule."""

    vocabulary: int
    length: int
    tokenizer: str = "words"
    modality: Literal["text"] = "text"


InputSpec = PixelSpec | TokenSpec
