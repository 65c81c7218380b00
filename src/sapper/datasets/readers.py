"""Readers of files that hold a whole split, parquet, npz and npy, and what every reader returns: a ``Raw``."""

import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sapper.datasets.decoding import Decoded, Encoded, as_rgb, decode, resize
from sapper.datasets.finding import NO_ROW, note
from sapper.datasets.labeling import Labels, as_labels, refuse
from sapper.errors import SapperError
from sapper.files import read_text

# The first is ours and the Hugging Face convention's; the others are common (x and y are those of BadEncoder's files).
IMAGE_KEYS = (
    *("image", "images", "img", "imgs", "x", "jpg", "jpeg", "png", "webp", "pixel_values"),
    *("photo", "image_bytes", "bytes"),
)
LABEL_KEYS = (
    *("label", "labels", "y", "fine_label", "class", "class_label", "cls", "target", "targets", "category"),
    "coarse_label",
)
CAPTION_KEYS = (
    *("caption", "captions", "text", "texts", "txt", "sentence", "sentences", "description", "descriptions"),
    *("alt_text", "alt", "prompt", "raw", "title"),
)


@dataclass(frozen=True)
class Raw:
    """What a reader found: decoded images, their labels and class names, and each image's path, if it has one.

    ``labels`` is none where the source holds none; ``classes`` is empty where it names none. ``notes``: what was passed
    over, in sentences. ``captions``: of each image, where they were asked for.
    """

    decoded: Decoded
    labels: Tensor | None
    classes: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


def read_parquet(
    files: Sequence[Path], size: int, names: tuple[str, ...], *, labels: bool, captions: bool = False
) -> Raw:
    """Parquet in the Hugging Face image convention: a column of struct{bytes, path} (or bytes), one of labels.

    ``files``: the parts of one split, in order. ``names``: of the classes, for labels that are texts.
    Where no ``labels`` are needed, labels that cannot be used and rows without an image are left out. With
    ``captions``, a column of texts is read, too, or of lists of texts, of which the first is taken.
    """
    parts = [_read_part(file, size, labels=labels, captions=captions) for file in files]
    values = [value for part in parts for value in part.labels or ()]
    found, notes = Labels(None), tuple(part.note for part in parts if part.note)
    if all(part.labels is not None for part in parts):
        featured = names or parts[0].classes
        found = as_labels(values, featured, parts[0].place, needed=labels)
    decoded = Decoded(
        torch.cat([part.decoded.images for part in parts]) if len(parts) > 1 else parts[0].decoded.images,
        frozenset().union(*(part.decoded.sizes for part in parts)),
        frozenset().union(*(part.decoded.formats for part in parts)),
    )
    paths = tuple(path for part in parts for path in part.paths)
    said = tuple(text for part in parts for text in part.captions)
    return Raw(decoded, found.values, found.classes or parts[0].classes, paths, notes + found.notes, said)


@dataclass(frozen=True)
class _Part:
    """One file of a split. ``labels``: as the file has them, none without a column; ``place`` names that column."""

    decoded: Decoded
    labels: list[Any] | None
    classes: tuple[str, ...]
    paths: list[str]
    place: str
    note: str
    captions: list[str]


def _read_part(file: Path, size: int, *, labels: bool, captions: bool) -> _Part:
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            image_key, label_key = _image_key(schema, file), _pick(schema.names, LABEL_KEYS)
            place = f"{file}, column {label_key!r}"
            if label_key is not None and not _is_label(schema.field(label_key).type):
                if labels:
                    raise refuse(f"labels are {schema.field(label_key).type}", place)
                label_key = None
            text_key = _caption_key(schema, file) if captions else None
            table = parquet.read(columns=[key for key in (image_key, label_key, text_key) if key is not None])
        sources, paths = _sources(table[image_key].to_pylist(), file)
        texts = [_first_text(value) for value in table[text_key].to_pylist()] if text_key else []
        found = None if label_key is None else table[label_key].to_pylist()
    # A damaged file also shows as text that is not UTF-8 (ValueError) or as a column that is there twice (KeyError).
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        remedy = "write it again, or download it again"
        raise SapperError(f"not a readable parquet file: {error}", where=str(file), remedy=remedy) from error

    def where(row: int) -> str:
        return f"{file}, column {image_key!r}, row {row}" + (f" ({paths[row]})" if paths and paths[row] else "")

    decoded = decode(sources, size, where, skip=not labels)
    broken = dict(decoded.broken)
    told = note(NO_ROW, [f"{file.name}, row {row}" for row in broken]) if broken else ""
    if broken:
        told += f" The first of them: {next(iter(broken.values())).what}."
        found = found and [value for row, value in enumerate(found) if row not in broken]
        paths = [path for row, path in enumerate(paths) if row not in broken]
        texts = [text for row, text in enumerate(texts) if row not in broken]
    return _Part(decoded, found, _feature_names(schema, label_key), paths, place, told, texts)


def _image_key(schema: pa.Schema, file: Path) -> str:
    """The column of images: by its name and what it holds, else the only one of struct{bytes, path}."""
    named = [name for key in IMAGE_KEYS for name in schema.names if name.lower() == key]
    for name in named:
        if _holds_images(schema.field(name).type):
            return name
    if named:
        remedy = "store images as struct{bytes, path}, as the Hugging Face `datasets` library does"
        where = f"{file}, column {named[0]!r}"
        raise SapperError(f"images of type {schema.field(named[0]).type}", where=where, remedy=remedy)
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and _holds_images(field.type)]
    if len(structs) != 1:
        raise _missing_key("column", schema.names, file)
    return str(structs[0])


def _caption_key(schema: pa.Schema, file: Path) -> str:
    """The column of captions, by its name and what it holds."""
    named = [name for key in CAPTION_KEYS for name in schema.names if name.lower() == key]
    for name in named:
        kind = schema.field(name).type
        if _is_text(kind.value_type if _is_list(kind) else kind):
            return name
    what = f"there are no captions in it; its columns: {', '.join(schema.names)}"
    if named:
        what = f"captions of type {schema.field(named[0]).type}"
    raise SapperError(what, where=str(file), remedy="name the column of texts 'caption', one text in a row")


def _first_text(value: Any) -> str:
    """A caption, or the first of several; an empty text where there is none."""
    return (_first_text(value[0]) if value else "") if isinstance(value, list) else value or ""


def _holds_images(kind: pa.DataType) -> bool:
    """Whether a column has bytes of images in it: as they are, in a struct with their paths, or in lists of these."""
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    view = getattr(pa.types, "is_binary_view", lambda _: False)  # of newer versions of pyarrow
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_label(kind: pa.DataType) -> bool:
    """Whether a column has one plain value in each row."""
    if pa.types.is_dictionary(kind):
        return _is_label(kind.value_type)
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return _is_text(kind) or any(test(kind) for test in plain)


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column has one text in each row."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    view = getattr(pa.types, "is_string_view", lambda _: False)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind))


def _sources(rows: list[Any], file: Path) -> tuple[list[Encoded], list[str]]:
    """The encoded image of each row, and its path, if the column has paths."""
    sources: list[Encoded] = []
    paths: list[str] = []
    for row in rows:
        if isinstance(row, list):
            if len(row) > 1:
                sources.append(SapperError(f"there are {len(row)} images in one row", remedy="store one image a row"))
                paths.append("")
                continue
            row = row[0] if row else None
        content, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
        sources.append(_beside(path, file) if content is None else content)
        paths.append(str(path or ""))
    return sources, paths if any(paths) else []


def _beside(path: Any, file: Path) -> Encoded:
    """A picture that a row only names: a file in the table's own folder or below it, and no other."""
    remedy = "store the images' bytes in the file, not only their paths"
    if not path:
        return SapperError("there are no image bytes", remedy=remedy)
    inside = PurePosixPath(str(path))
    place = file.parent / inside
    if not inside.is_absolute() and ".." not in inside.parts and place.is_file():
        return place
    return SapperError("there are no image bytes, and the file that it names is not beside the table", remedy=remedy)


def _feature_names(schema: pa.Schema, label_key: str | None) -> tuple[str, ...]:
    """The class names in the metadata that the `datasets` library writes; empty where there are none to be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return _strings(features[label_key]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def split_keys(file: Path, split: str) -> tuple[str, str] | None:
    """The names of images and labels of one split in an npz file that holds several; none where it does not."""
    if not zipfile.is_zipfile(file):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            names = {Path(name).stem for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):  # what is wrong is told where it is read
        return None
    pairs = ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}"))
    return next((pair for pair in pairs if pair[0] in names), None)


def read_npz(
    file: Path, size: int, names: tuple[str, ...], *, labels: bool, keys: tuple[str, str] | None = None
) -> Raw:
    """NumPy's archive of an array of images, uint8, gray or RGB, and an array of labels; ``keys`` may name the two.

    Where no ``labels`` are needed, labels that cannot be used are left out.
    """
    image_keys, label_keys = ((keys[0],), (keys[1],)) if keys else (IMAGE_KEYS, LABEL_KEYS)
    images, image_key = _npz_array(file, image_keys)
    if images is None:
        raise _missing_key("array", _npz_names(file), file)
    planes = _planes(images, f"{file}, array {image_key!r}")
    found = Labels(None)
    try:
        values, label_key = _npz_array(file, label_keys)
        if values is not None:
            where = f"{file}, array {label_key!r}"
            plain, columns = _label_list(values, len(planes), where)
            found = as_labels(plain, names, where, needed=labels)
            if columns and found.values is not None:
                found = replace(found, classes=tuple(map(str, range(columns))))
    except SapperError:
        if labels:
            raise
    height, width = planes.shape[2:]
    decoded = Decoded(resize(planes, size), frozenset({(width, height)}))
    return Raw(decoded, found.values, found.classes, notes=found.notes)


def read_npy(file: Path, size: int) -> Raw:
    """NumPy's file of one array: images without labels, uint8, gray or RGB."""
    try:
        images = np.load(file, allow_pickle=False)
        if not isinstance(images, np.ndarray):
            raise ValueError("it is an archive")
    except (OSError, ValueError, EOFError, MemoryError) as error:
        remedy = "write it with numpy.save, a plain numeric array and no Python objects"
        raise SapperError(f"not a readable npy file: {error}", where=str(file), remedy=remedy) from error
    planes = _planes(images, str(file))
    height, width = planes.shape[2:]
    return Raw(Decoded(resize(planes, size), frozenset({(width, height)})), None)


def _planes(images: np.ndarray, where: str) -> Tensor:
    """An array of images as uint8 (N, 3, H, W)."""
    if images.dtype != np.uint8:
        remedy = "store them as uint8, 0…255; where they run from 0 to 1: (255 * images).round().astype('uint8')"
        raise SapperError(f"images are {images.dtype}", where=where, remedy=remedy)
    if images.size == 0:
        raise SapperError(f"an array of shape {images.shape} holds no image", where=where, remedy="write it again")
    try:
        return as_rgb(torch.from_numpy(images))
    except ValueError as error:
        raise SapperError(str(error), where=where, remedy="store gray or RGB images in one of these shapes") from error


_PLAIN = "write it with numpy.savez, with plain numeric arrays and no Python objects"
# NumPy and zipfile between them raise any of these for a damaged, encrypted or lying archive.
_DAMAGED = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def _npz_names(file: Path) -> list[str]:
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return list(archive.files)


def _npz_array(file: Path, wanted: tuple[str, ...]) -> tuple[np.ndarray | None, str | None]:
    """The first of the wanted arrays, and its name; others stay unread.

    Python objects are refused: they can run code.
    """
    try:
        if not zipfile.is_zipfile(file):
            raise SapperError("not an npz file (no zip archive)", where=str(file), remedy=_PLAIN)
        # Opened here, because np.load leaves a damaged file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            key = _pick(archive.files, wanted)
            # A member that is no array comes as bytes, which asarray turns into an array of a wrong dtype.
            return (None if key is None else np.asarray(archive[key])), key
    except _DAMAGED as error:
        raise SapperError(f"not a readable npz file: {error}", where=str(file), remedy=_PLAIN) from error


def _label_list(labels: np.ndarray, count: int, where: str) -> tuple[list[Any], int]:
    """One label per image, and 0; or the places of the ones in a one-hot matrix, and how many columns it has."""
    if labels.shape[0:1] == (count,) and _is_one_hot(labels):
        return list(labels.argmax(1).tolist()), labels.shape[1]
    if labels.shape not in ((count,), (count, 1)):
        remedy = "store one label per image"
        raise SapperError(f"labels of shape {labels.shape} for {count} images", where=where, remedy=remedy)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    return list(labels.reshape(count).tolist()), 0


def _is_one_hot(labels: np.ndarray) -> bool:
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "biuf":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def read_class_names(folder: Path) -> tuple[str, ...]:
    """The list of names in ``folder/classes.json``; empty where there is no such file."""
    file = folder / "classes.json"
    if not file.is_file():
        return ()
    remedy = 'write a JSON list of class names in label order, such as ["cat", "dog"]'
    try:
        return _strings(json.loads(read_text(file, remedy)))
    except (ValueError, TypeError, RecursionError) as error:
        raise SapperError(f"not a list of class names: {error}", where=str(file), remedy=remedy) from error


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("expected a list of texts")
    if len(set(value)) < len(value):
        raise ValueError("a name occurs twice")
    return tuple(value)


def _pick(present: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """The first of ``wanted`` that is present, in capitals or not."""
    names = {name.lower(): name for name in reversed(list(present))}
    return next((names[key.lower()] for key in wanted if key.lower() in names), None)


def _missing_key(what: str, present: Iterable[str], file: Path) -> SapperError:
    remedy = f"name the {what} of images 'image' and the one of labels 'label'"
    return SapperError(
        f"there is no {what} 'image'; it has: {', '.join(present) or 'none'}", where=str(file), remedy=remedy
    )
