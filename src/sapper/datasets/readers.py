"""Readers of single files that hold a whole split, parquet and npz, and what every reader returns: a ``Raw``."""

import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sapper.datasets.decoding import Decoded, as_rgb, decode, resize
from sapper.errors import SapperError

# The first is ours and the Hugging Face convention's; the others are common (x and y are those of BadEncoder's files).
IMAGE_KEYS = ("image", "images", "img", "x")
LABEL_KEYS = ("label", "labels", "y")


@dataclass(frozen=True)
class Raw:
    """What a reader found: decoded images, their labels and class names, and each image's path, if it has one.

    ``labels`` is none where the source holds none; ``classes`` is empty where it names none.
    """

    decoded: Decoded
    labels: Tensor | None
    classes: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


def read_parquet(file: Path, size: int) -> Raw:
    """Parquet in the Hugging Face image convention: a column of struct{bytes, path} (or bytes), one of labels."""
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            image_key, label_key = _pick(schema.names, IMAGE_KEYS), _pick(schema.names, LABEL_KEYS)
            if image_key is None:
                raise _missing_key("column", schema.names, file)
            table = parquet.read(columns=[key for key in (image_key, label_key) if key is not None])
        contents, paths = _image_column(table[image_key], file, image_key)
        labels = None if label_key is None else table[label_key]
    # A damaged file also shows as text that is not UTF-8 (ValueError) or as a column that is there twice (KeyError).
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        remedy = "write it again, or download it again"
        raise SapperError(f"not a readable parquet file: {error}", where=str(file), remedy=remedy) from error

    def where(row: int) -> str:
        return f"{file}, column {image_key!r}, row {row}" + (f" ({paths[row]})" if paths else "")

    for row, content in enumerate(contents):
        if content is None:
            remedy = "store the images' bytes in the file, not only their paths"
            raise SapperError("there are no image bytes", where=where(row), remedy=remedy)
    checked = None if labels is None else _label_column(labels, f"{file}, column {label_key!r}")
    return Raw(decode(contents, size, where), checked, _feature_names(schema, label_key), tuple(paths))


def _image_column(column: pa.ChunkedArray, file: Path, key: str) -> tuple[list[bytes], list[str]]:
    """The bytes (none where a row has none) and, if the column has them, the paths of its images."""
    kind = column.type
    if _is_binary(kind):
        return column.to_pylist(), []
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        if "bytes" in names and _is_binary(kind.field("bytes").type):
            # Chunk by chunk, because joined chunks may exceed the 2 GiB that one array of bytes can hold.
            parts = [dict(zip(names, chunk.flatten())) for chunk in column.chunks]
            paths = [path for part in parts if "path" in part for path in part["path"].to_pylist()]
            return [content for part in parts for content in part["bytes"].to_pylist()], [str(p or "") for p in paths]
    remedy = "store images as struct{bytes, path}, as the Hugging Face `datasets` library does"
    raise SapperError(f"images of type {kind}", where=f"{file}, column {key!r}", remedy=remedy)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(column: pa.ChunkedArray, where: str) -> Tensor:
    if not pa.types.is_integer(column.type):
        raise _not_integers(str(column.type), where)
    if column.null_count:
        raise SapperError(f"{column.null_count} rows have no label", where=where, remedy="drop those rows")
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def _feature_names(schema: pa.Schema, label_key: str | None) -> tuple[str, ...]:
    """The class names in the metadata that the `datasets` library writes; empty where there are none to be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return _strings(features[label_key]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def read_npz(file: Path, size: int) -> Raw:
    """NumPy's archive of an array of images, uint8, gray or RGB, and an array of labels."""
    arrays = _npz_arrays(file)
    image_key, label_key = _pick(arrays, IMAGE_KEYS), _pick(arrays, LABEL_KEYS)
    if image_key is None:
        raise _missing_key("array", arrays, file)
    images = arrays[image_key]
    where = f"{file}, array {image_key!r}"
    if images.dtype != np.uint8:
        raise SapperError(f"images are {images.dtype}", where=where, remedy="store them as uint8, 0…255")
    if images.size == 0:
        raise SapperError(f"an array of shape {images.shape} holds no image", where=where, remedy="write it again")
    try:
        planes = as_rgb(torch.from_numpy(images))
    except ValueError as error:
        raise SapperError(str(error), where=where, remedy="store gray or RGB images in one of these shapes") from error
    labels = None if label_key is None else _label_array(arrays[label_key], len(planes), f"{file}, array {label_key!r}")
    height, width = planes.shape[2:]
    return Raw(Decoded(resize(planes, size), frozenset({(width, height)})), labels)


def _npz_arrays(file: Path) -> dict[str, np.ndarray]:
    """The archive's arrays of images and labels; others stay unread. Python objects are refused: they can run code."""
    remedy = "write it with numpy.savez, with plain numeric arrays and no Python objects"
    try:
        if not zipfile.is_zipfile(file):
            raise SapperError("not an npz file (no zip archive)", where=str(file), remedy=remedy)
        # Opened here, because np.load leaves a damaged file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if _pick(archive.files, IMAGE_KEYS) is None:
                raise _missing_key("array", archive.files, file)
            # A member that is no array comes as bytes, which asarray turns into an array of a wrong dtype.
            return {key: np.asarray(archive[key]) for key in (*IMAGE_KEYS, *LABEL_KEYS) if key in archive.files}
    # NumPy and zipfile between them raise any of these for a damaged, encrypted or lying archive.
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise SapperError(f"not a readable npz file: {error}", where=str(file), remedy=remedy) from error


def _label_array(labels: np.ndarray, count: int, where: str) -> Tensor:
    if labels.dtype.kind not in "iu":
        raise _not_integers(str(labels.dtype), where)
    if labels.shape not in ((count,), (count, 1)):
        remedy = "store one label per image"
        raise SapperError(f"labels of shape {labels.shape} for {count} images", where=where, remedy=remedy)
    return torch.from_numpy(labels.reshape(count).astype(np.int64))


def read_class_names(folder: Path) -> tuple[str, ...]:
    """The list of names in ``folder/classes.json``; empty where there is no such file."""
    file = folder / "classes.json"
    if not file.is_file():
        return ()
    try:
        return _strings(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        remedy = 'write a JSON list of class names in label order, such as ["cat", "dog"]'
        raise SapperError(f"not a list of class names: {error}", where=str(file), remedy=remedy) from error


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("expected a list of texts")
    if len(set(value)) < len(value):
        raise ValueError("a name occurs twice")
    return tuple(value)


def _pick(present: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """The first of ``wanted`` that is present."""
    names = set(present)
    return next((key for key in wanted if key in names), None)


def _missing_key(what: str, present: Iterable[str], file: Path) -> SapperError:
    remedy = f"name the {what} of images 'image' and the one of labels 'label'"
    return SapperError(
        f"there is no {what} 'image'; it has: {', '.join(present) or 'none'}", where=str(file), remedy=remedy
    )


def _not_integers(found: str, where: str) -> SapperError:
    remedy = "store labels as integers 0, 1, 2 …, and class names in classes.json beside the file"
    return SapperError(f"labels are {found}, not integers", where=where, remedy=remedy)
