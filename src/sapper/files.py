"""Files that are whole or absent, and their fingerprints."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sapper.errors import SapperError

LEFTOVERS = ".*.part"
"""What a process that was killed while writing leaves behind."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one, never half of it.

    In a text, what UTF-8 cannot hold (a file name in another encoding) becomes a question mark.
    Raises ``SapperError`` on a full or read-only disk; the old file is then untouched.
    """
    with _beside(path) as beside:
        beside.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)


def link_atomically(source: Path, path: Path) -> None:
    """Give ``source`` a second name, ``path``; a copy where the file system has no hard links.

    Raises ``SapperError`` as ``write_atomically`` does.
    """
    with _beside(path) as beside:
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_text(content: Any) -> str:
    """Plain data as JSON. Numbers that are not finite, which JSON does not know, become null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; the file there becomes ``path`` if nothing fails, and is gone if not."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"{'free some space' if full else 'make it writable'}, or choose another folder"
        raise SapperError(f"cannot write: {error.strerror or error}", where=str(path), remedy=remedy) from error
    finally:
        with suppress(OSError):  # gone already, or the folder itself is what is wrong
            beside.unlink()
