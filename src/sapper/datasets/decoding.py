"""Encoded images, and arrays of images, into one uint8 tensor (N, 3, size, size)."""

import importlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from sapper.errors import SapperError

# Pillow's other readers are left out: what nobody needs is only attack surface (EPS starts a program of its own).
PLUGINS = {
    "PNG": "PIL.PngImagePlugin",
    "JPEG": "PIL.JpegImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "PPM": "PIL.PpmImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "JPEG2000": "PIL.Jpeg2KImagePlugin",
    "QOI": "PIL.QoiImagePlugin",
}
"""Formats that are recognized by how a file begins, and the modules that read them. MPO is read as a JPEG."""

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".gif", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".qoi", ".tga"),
)
"""What names of pictures end in: such a file that is no picture is an error, where others are passed over."""

HEIC = (".heic", ".heif", ".hif")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEIC_REMEDY = "pip install pillow-heif, or convert it to JPEG or PNG"


def _formats() -> tuple[str, ...]:
    """Those that this Pillow has; HEIF where its plugin is installed."""
    for module in PLUGINS.values():
        with suppress(ImportError):
            importlib.import_module(module)
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in (*PLUGINS, "HEIF") if name in Image.OPEN)


FORMATS = _formats()

THREADS = min(4, os.cpu_count() or 1)
CHUNK = 256  # images per task of the thread pool: with one task per image, half of the time went into the tasks


@dataclass(frozen=True)
class Decoded:
    """Images (N, 3, size, size), and what they were: sizes (width, height) and file formats that occurred.

    ``broken``: the rows of the sources that could not be decoded and are left out, and why.
    """

    images: Tensor
    sizes: frozenset[tuple[int, int]]
    formats: frozenset[str] = frozenset()
    broken: tuple[tuple[int, SapperError], ...] = ()


Encoded = bytes | Path | SapperError
"""The bytes of an image file, the path of one, or why there is none."""


def decode(sources: Sequence[Encoded], size: int, where: Callable[[int], str], *, skip: bool = False) -> Decoded:
    """Decode ``sources`` in order.

    Each is turned as its EXIF orientation says and resized on its own as it is decoded (bilinear, antialiased, the
    sides independently), so that memory holds the result and not the originals. ``where(i)`` says in an error which
    image it is. Raises ``SapperError`` for the first that cannot be decoded; with ``skip`` such images are left out,
    and it is raised only where none is left.
    """
    images = torch.empty((len(sources), 3, size, size), dtype=torch.uint8)
    pixels = images.numpy()
    broken: dict[int, SapperError] = {}

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
                broken[row] = _undecodable(error, where(row))
                if not skip:
                    raise broken[row] from error
        return seen

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        # A picture of gigabytes is an error here, and not a line on the terminal; odd metadata are none of ours.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        seen = set().union(*pool.map(decode_chunk, range(0, len(sources), CHUNK)))
    if broken and len(broken) == len(sources):
        raise broken[0]
    if broken:
        images = images[[row for row in range(len(sources)) if row not in broken]]
    sizes, formats = frozenset(original for original, _ in seen), frozenset(kind for _, kind in seen)
    return Decoded(images, sizes, formats, tuple(sorted(broken.items())))


def is_picture(path: Path) -> bool:
    """Whether a file begins like a picture of a format that is read; only its header is looked at."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS):
                return True
    except Exception:  # as above
        return False


def is_heic(path: Path) -> bool:
    """Whether a file is a HEIC picture by its name or by how it begins."""
    try:
        return path.suffix.lower() in HEIC or _begins_as_heic(_head(path))
    except OSError:
        return False


def _head(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source[:12]
    with source.open("rb") as file:
        return file.read(12)


def _begins_as_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def _open(source: Encoded) -> tuple[Image.Image, str]:
    """The picture as upright 8-bit RGB, transparency dropped, and the name of its file format."""
    if isinstance(source, SapperError):
        raise source
    try:
        return _read(source)
    except (ValueError, OSError):
        head = _head(source)
        if "HEIF" not in FORMATS and _begins_as_heic(head):
            raise SapperError("this is a HEIC picture, and nothing here reads those", remedy=HEIC_REMEDY) from None
        mended = _mended(source if isinstance(source, bytes) else source.read_bytes()) if _may_be_mended(head) else None
        if mended is None:
            raise
        return mended


def _read(source: bytes | Path) -> tuple[Image.Image, str]:
    # A TGA file has no mark of its own at its start: only its name tells.
    formats = ("TGA",) if isinstance(source, Path) and source.suffix.lower() == ".tga" else FORMATS
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as picture:
        picture.load()
        kind = picture.format or ""
        upright = _upright(picture)
        if picture.mode.startswith("I;16") or (picture.mode == "I" and kind == "PPM"):
            return _from_16_bits(upright), kind
        if picture.mode.startswith(("I", "F")):
            # Pillow would clip the values at 255, which turns most such pictures white.
            raise ValueError(f"its pixels are no whole numbers of 8 or 16 bits (Pillow mode {picture.mode!r})")
        if picture.mode == "P" and "transparency" in picture.info:
            return upright.convert("RGBA").convert("RGB"), kind
        return upright.convert("RGB"), kind


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its orientation in EXIF."""


def _upright(picture: ImageFile.ImageFile) -> Image.Image:
    if not picture.info.keys() & {"exif", "Raw profile type exif"}:
        return picture
    try:
        turn = _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:  # EXIF that nobody can read turns nothing
        return picture
    return picture if turn is None else picture.transpose(turn)


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Gray of 16 bits as RGB of 8, by the upper bits, as Pillow reads color of 16 bits."""
    values = np.asarray(picture).astype(np.int64)
    highest = int(values.max())
    if 0 < highest < 4096:
        what = f"its pixels have 16 bits but end at {highest}, and how bright that is cannot be told"
        raise ValueError(what)
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _may_be_mended(head: bytes) -> bool:
    return head.startswith((PNG, JPEG))


def _mended(content: bytes) -> tuple[Image.Image, str] | None:
    """A picture with something wrong beside its pixels; none where it is something else that is wrong."""
    try:
        if content.startswith(PNG):
            bare = _without_notes(content)
            return None if bare == content else _read(bare)
        return _without_an_end(content)
    except Exception:  # the error that led here says more
        return None


PNG = b"\x89PNG\r\n\x1a\n"
JPEG, RESTARTS, END = b"\xff\xd8\xff", b"\xff\xdd", b"\xff\xd9"


def _without_notes(png: bytes) -> bytes:
    """A PNG file without its texts and its color profile, of which Pillow takes only small ones."""
    kept, at = [png[:8]], 8
    while at + 8 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if png[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[at : at + length + 12])
        at += length + 12
    return b"".join(kept)


def _without_an_end(jpeg: bytes) -> tuple[Image.Image, str] | None:
    """A JPEG file that lacks nothing but the mark of its end.

    Then whatever is put before the mark does not matter; where pixels are missing it would become pixels. Not so where
    a file may end between two restart marks: such a file is left as it is.
    """
    if RESTARTS in jpeg:
        return None
    whole = jpeg.removesuffix(b"\xff")
    one, other = _read(whole + END), _read(whole + b"\x55" * 64 + END)
    return one if one[0].tobytes() == other[0].tobytes() else None


def _undecodable(error: Exception, where: str) -> SapperError:
    if isinstance(error, SapperError):
        return SapperError(error.what, where=where, remedy=error.remedy)
    if isinstance(error, UnidentifiedImageError):
        return SapperError("this is not an image", where=where, remedy=f"formats that are read: {', '.join(FORMATS)}")
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        limit = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        return SapperError(f"the image is too large: {limit}", where=where, remedy="make it smaller, or remove it")
    remedy = "replace or remove the image; it must be whole, with 8 or 16 bits per channel"
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
