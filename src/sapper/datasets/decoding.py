"""Encoded images, and arrays of images, into one uint8 tensor (N, 3, size, size)."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from sapper.errors import SapperError

# Pillow's other readers are left out: what nobody needs is only attack surface (EPS starts a program of its own).
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "GIF", "WEBP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".gif", ".webp", ".tif", ".tiff")

THREADS = min(4, os.cpu_count() or 1)
CHUNK = 256  # images per task of the thread pool: with one task per image, half of the time went into the tasks


@dataclass(frozen=True)
class Decoded:
    """Images (N, 3, size, size), and what they were: sizes (width, height) and file formats that occurred."""

    images: Tensor
    sizes: frozenset[tuple[int, int]]
    formats: frozenset[str] = frozenset()


def decode(sources: Sequence[bytes | Path], size: int, where: Callable[[int], str]) -> Decoded:
    """Decode ``sources`` in order: the bytes of image files, or paths of such files.

    Each is resized on its own as it is decoded (bilinear, antialiased, the sides independently), so that memory
    holds the result and not the originals. ``where(i)`` says in an error which image it is.
    """
    images = torch.empty((len(sources), 3, size, size), dtype=torch.uint8)
    pixels = images.numpy()

    def decode_chunk(start: int) -> set[tuple[tuple[int, int], str]]:
        seen = set()
        for row in range(start, min(start + CHUNK, len(sources))):
            try:
                picture, kind = _open(sources[row])
                seen.add((picture.size, kind))
                if picture.size != (size, size):
                    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
                pixels[row] = np.asarray(picture).transpose(2, 0, 1)
            except Exception as error:  # Pillow raises whatever its parsers meet: OSError, SyntaxError, struct.error …
                raise _undecodable(error, where(row)) from error
        return seen

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        # A picture of gigabytes is an error here, and not a line on the terminal.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        seen = set().union(*pool.map(decode_chunk, range(0, len(sources), CHUNK)))
    return Decoded(images, frozenset(original for original, _ in seen), frozenset(kind for _, kind in seen))


def _open(source: bytes | Path) -> tuple[Image.Image, str]:
    """The picture as 8-bit RGB, transparency dropped, and the name of its file format."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
        if picture.mode.startswith(("I", "F")):
            # Pillow would clip the values at 255, which turns most such pictures white.
            raise ValueError(f"its pixels have more than 8 bits (Pillow mode {picture.mode!r})")
        kind = picture.format or ""
        if picture.mode == "P" and "transparency" in picture.info:
            return picture.convert("RGBA").convert("RGB"), kind
        return picture.convert("RGB"), kind


def _undecodable(error: Exception, where: str) -> SapperError:
    if isinstance(error, UnidentifiedImageError):
        return SapperError("this is not an image", where=where, remedy=f"formats that are read: {', '.join(FORMATS)}")
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        limit = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        return SapperError(f"the image is too large: {limit}", where=where, remedy="make it smaller, or remove it")
    remedy = "replace or remove the image; it must be whole, with 8 bits per channel"
    return SapperError(f"the image cannot be decoded: {error or type(error).__name__}", where=where, remedy=remedy)


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, W) to (N, 3, size, size), bilinear and antialiased.

    Within one step of 255 this is what Pillow's BILINEAR makes, and mostly equal. It is computed in integers, so the
    result does not depend on the machine or its threads.
    """
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def as_rgb(images: Tensor) -> Tensor:
    """(N, H, W), (N, H, W, 1), (N, H, W, 3), (N, 1, H, W) or (N, 3, H, W) as (N, 3, H, W).

    Raises ``ValueError`` for any other shape.
    """
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"shape {tuple(images.shape)} is not (N, H, W), (N, H, W, 3) or (N, 3, H, W)")
    return images.expand(-1, 3, -1, -1).contiguous()
