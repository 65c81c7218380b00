"""Files that are whole or absent, and their fingerprints."""

import codecs
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sapper.errors import SapperError, closest

LEFTOVERS = ".*.part"
"""What a process that was killed while writing leaves behind."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one, never half of it.

    In a text, what UTF-8 cannot hold (a file name in another encoding) becomes a question mark.
    Raises ``SapperError`` on a full or read-only disk; the old file is then untouched.
    """
    with _beside(path) as beside:
        beside.write_bytes(as_bytes(content))


def as_bytes(content: str | bytes) -> bytes:
    """What ``write_atomically`` writes."""
    return content.encode(errors="replace") if isinstance(content, str) else content


def link_atomically(source: Path, path: Path) -> None:
    """Give ``source`` a second name, ``path``; a copy where the file system has no hard links.

    Raises ``SapperError`` as ``write_atomically`` does.
    """
    with _beside(path) as beside:
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16"} | {
    codecs.BOM_UTF16_BE: "UTF-16"
}
"""How files in encodings that are not read begin; UTF-32 comes first, because its mark begins with UTF-16's."""

AS_UTF8 = "save it as UTF-8 (your editor offers that, in PowerShell: Set-Content -Encoding utf8)"


def read_text(path: Path, remedy: str, what: str = "cannot be read") -> str:
    """The text of a user's file: UTF-8, with or without a byte-order mark, with the line ends of any system.

    Raises ``SapperError`` where it cannot be read, with ``what`` and ``remedy``, and where it is in another encoding,
    naming that.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SapperError(f"{what}: {error.strerror or error}", where=str(path), remedy=remedy) from error
    except ValueError as error:  # a NUL in the path
        raise SapperError(f"{what}: {error}", where=str(path), remedy=remedy) from error
    other = _other_encoding(content)
    if other is not None:
        raise SapperError(f"this is {other}, not text in UTF-8", where=str(path), remedy=AS_UTF8)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        what = f"this is not UTF-8: byte 0x{byte:02x} in line {line}, as in Latin-1 and Windows-1252"
        raise SapperError(what, where=str(path), remedy=AS_UTF8) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_toml(path: Path, remedy: str = "name a TOML file that is there and that you may read") -> dict[str, Any]:
    """The content of a user's TOML file. Raises ``SapperError`` as ``read_text`` does, and for what is no TOML."""
    text = read_text(path, remedy)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # besides bad syntax: numbers too long, arrays too deep
        raise SapperError(f"not valid TOML: {error}", where=str(path), remedy=_mend(error, text)) from error


def _mend(error: Exception, text: str) -> str:
    """What to do about bad TOML. A backslash in double quotes begins an escape, which paths of Windows run into."""
    place = re.search(r"at line (\d+)", str(error))
    lines = text.split("\n")
    line = lines[int(place[1]) - 1] if place and int(place[1]) <= len(lines) else ""
    if re.search(r'"[^"]*\\', line):
        return "write a path with backslashes in single quotes, as 'C:\\data', or with slashes, as \"C:/data\""
    return "mend that place"


def _other_encoding(content: bytes) -> str | None:
    """The name of an encoding of two or four bytes a character, by its mark or by its zeros; none for others."""
    for mark, name in MARKS.items():
        if content.startswith(mark):
            return name
    head = content[:1000]
    if head.count(0) == 0:
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    return "UTF-16 (without a byte-order mark)" if max(even, odd) > len(head) // 4 else "something binary"


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


def shipped_file(name: str, folder: str, kind: str, suffix: str = ".toml") -> Path:
    """The file itself, or the one of that name among those that come with sapper, of a ``kind`` in a ``folder``."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for place in SHIPPED for file in sorted((place / folder).glob(f"*{suffix}"))}
    if name in shipped:
        return shipped[name]
    what = "there is no such file" if path.suffix == suffix else f"no {kind} is called {name!r}"
    remedy = f"{closest(path.stem, list(shipped))} (those come with sapper), or the path of a {suffix} file"
    raise SapperError(what, where=name, remedy=remedy)


SHIPPED = (Path(__file__).parents[0], Path(__file__).parents[2])
"""Where folders of scenarios and zoos lie when sapper is installed, and in a checkout."""
