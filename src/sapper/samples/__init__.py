"""What encoders take, a whole set in memory at once: images, and pairs of images and texts."""

from sapper.samples.base import Samples, joined
from sapper.samples.images import PIXELS, Canvases, Change, ImageSet, at_once, check_pixels, to_float
from sapper.samples.specs import InputSpec, PixelSpec, TokenSpec

__all__ = [
    "PIXELS",
    "Canvases",
    "Change",
    "ImageSet",
    "InputSpec",
    "PixelSpec",
    "Samples",
    "TokenSpec",
    "at_once",
    "check_pixels",
    "joined",
    "to_float",
]
