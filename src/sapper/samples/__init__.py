"""What encoders take, a whole set in memory at once: images, texts, and pairs of both."""

from sapper.samples.base import Samples, joined
from sapper.samples.files import read_samples, write_samples
from sapper.samples.images import (
    PIXELS,
    Canvases,
    Change,
    ImageSet,
    at_once,
    check_pixels,
    in_memory,
    only_images,
    to_float,
)
from sapper.samples.pairs import PairSet
from sapper.samples.specs import InputSpec, PixelSpec, TokenSpec
from sapper.samples.texts import TextSet, Tokens

__all__ = [
    "PIXELS",
    "Canvases",
    "Change",
    "ImageSet",
    "InputSpec",
    "PairSet",
    "PixelSpec",
    "Samples",
    "TextSet",
    "TokenSpec",
    "Tokens",
    "at_once",
    "check_pixels",
    "in_memory",
    "joined",
    "only_images",
    "read_samples",
    "to_float",
    "write_samples",
]
