"""Files that are whole or absent, and their fingerprints."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from sapper.errors import SapperError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one, never half of it.

    Raises ``SapperError`` on a full or read-only disk; the old file is then untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):  # the folder itself may be what is wrong
            beside.unlink()
        remedy = "free some space or choose another folder with --out"
        raise SapperError(f"cannot write: {error.strerror}", where=str(path), remedy=remedy) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
