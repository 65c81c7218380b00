"""Where weights lie: files of the user's, the Hugging Face hub, addresses that torchvision and timm publish.

Weights come back as tensors by name. Only safetensors are read here; a pickle goes through the sandbox first.
"""

import hashlib
import json
import re
import stat
import tarfile
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sapper import sandbox
from sapper.errors import SapperError, printable

LARGEST_HEADER = 16 * 2**20
"""Bytes of a safetensors header; the names of a hundred thousand tensors take less."""

LARGEST_FILE = 64 * 2**30

START, LONGEST_TEXT = 4096, 16 * 2**10
"""Bytes that are looked at first, and the size of a text that stands where a file should be."""

WANTED = "give a .safetensors file, or a .pt, .pth or .ckpt that torch.save wrote"
ANEW = "download it anew; where it asks, log in first"
AGAIN = "get it again: the download or copy was not finished"
UNPACK = "unpack it, and name the file of weights in it"

OTHER_FORMATS = {
    # what such a file begins with: what it is, and what to do
    b"\x89HDF\r\n": ("HDF5 (Keras)", WANTED),
    b"GGUF": ("GGUF, a quantized language model", WANTED),
    b"\x1f\x8b": ("compressed by gzip", f"{UNPACK}: gunzip FILE"),
    b"BZh": ("compressed by bzip2", f"{UNPACK}: bunzip2 FILE"),
    b"\xfd7zXZ": ("compressed by xz", f"{UNPACK}: unxz FILE"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", f"{UNPACK}: unzstd FILE"),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"Rar!": ("a RAR archive", UNPACK),
    b"\x93NUMPY": ("a NumPy array", WANTED),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
}

TAR_OF_TORCH = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
"""In the names of files that share the weights of one model."""

MERGE = "load the whole model where you trust it, and save its state_dict as one file"

UNREAD = {
    # safetensors' names of number formats that are no weights by themselves, in plain words
    "F8_E8M0": "scale factors of float8_e8m0fnu",
    "F4": "of FP4",
    "F6_E2M3": "of FP6",
    "F6_E3M2": "of FP6",
    "C64": "of complex numbers",
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a file at ``path`` holds.

    ``tensors``: those that are dense and plain, by their names in the file; they may be not finite. ``metadata`` of a
    safetensors file. Of a pickle, ``notes``, ``left_out`` and ``optimizer`` are as in ``sandbox.Converted``.
    ``unread``: tensors that cannot be weights as they are (sparse, quantized, complex …), by name, in plain words.
    """

    tensors: dict[str, Tensor]
    path: Path
    metadata: dict[str, str]
    notes: dict[str, str | int | float | bool] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    optimizer: tuple[tuple[int, ...], ...] = ()


def read(path: Path, *, allow_weak_sandbox: bool = False) -> Weights:
    """The weights in a file.

    Raises ``SapperError`` when it is missing, a link (but for those of the hub's cache), no checkpoint, damaged, cut or
    hostile.
    """
    target = _followed(path)
    if _kind(target, path) == "safetensors":
        tensors, metadata, unread = _safetensors(target, str(path))
        return Weights(tensors=tensors, path=path, metadata=metadata, unread=unread)
    with sandbox.scratch() as converted:
        found = sandbox.convert(path, converted, allow_weak_sandbox=allow_weak_sandbox)
        tensors, metadata, _ = _safetensors(_place(converted), str(path))
    return Weights(
        tensors=tensors,
        path=path,
        metadata=metadata,
        notes=found.notes,
        left_out=found.left_out,
        unread=found.unread,
        optimizer=found.optimizer,
    )


def _place(file: IO[bytes]) -> Path:
    """A path of an open file; those in memory have none of their own."""
    return Path(file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.fileno()}")


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ``SapperError`` when there are tensors whose values are not all finite."""
    broken = [name for name, value in tensors.items() if not _is_finite(value)]
    if broken:
        what = f"{len(broken)} of its {len(tensors)} tensors are not finite: {', '.join(broken[:3])}"
        raise SapperError(what, where=where, remedy="nothing can be said of such an encoder; get another copy")


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point():
        return True
    wide = value if value.element_size() > 1 else value.to(torch.float32)  # torch does not ask float8
    return bool(wide.isfinite().all())


def _followed(path: Path) -> Path:
    """The file that is meant: a link is followed in the hub's cache alone, from a snapshot to where the content is."""
    if not path.is_symlink():
        return path
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        what = f"this is a symbolic link to {path.readlink()}, and nothing is there"
        raise SapperError(what, where=str(path), remedy="name the file itself") from error
    snapshots = next((folder for folder in path.absolute().parents if folder.name == "snapshots"), None)
    if snapshots is not None and target.parent == (snapshots.parent / "blobs").resolve():
        return target
    here = Path.cwd()
    shown = target.relative_to(here) if target.is_relative_to(here) else target
    raise SapperError("this is a symbolic link", where=str(path), remedy=f"name the file itself: {shown}")


def _kind(path: Path, named: Path) -> Literal["safetensors", "pickle"]:
    """By its name and what it begins with, which have to agree; ``named`` is what the user or the hub calls it.

    One file can be sound as safetensors and as a pickle, with other weights in each. By its name alone is it known how
    others read it.
    """
    where = str(named)
    try:
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode):
            raise _folder(path, where)
        if not stat.S_ISREG(about.st_mode):
            raise SapperError("this is no regular file", where=where, remedy="give a file of weights")
        with path.open("rb") as file:
            start = file.read(START)
    except OSError as error:
        raise SapperError(f"cannot read it: {error.strerror}", where=where, remedy="check the path") from error
    if about.st_size > LARGEST_FILE:
        raise SapperError(f"it has {about.st_size / 2**30:.0f} GiB", where=where, remedy="give a smaller file")
    if (no_weights := _no_weights(start, about.st_size)) is not None:
        raise SapperError(no_weights[0], where=where, remedy=no_weights[1])
    if (part := SHARD.search(named.name)) is not None and int(part[2]) > 1:
        what = f"this is part {int(part[1])} of {int(part[2])} that hold the weights of one model together"
        raise SapperError(what, where=where, remedy=MERGE)
    safe = start[8:9] == b"{"
    if named.suffix.lower() == ".safetensors":
        if safe:
            return "safetensors"
        remedy = "do not trust its source: the name promises a format that cannot run code"
        raise SapperError("it is called safetensors, and is something else", where=where, remedy=remedy)
    if safe and int.from_bytes(start[:8], "little") < about.st_size:
        remedy = "rename it to .safetensors if that is what it is"
        raise SapperError("it is a safetensors file that is called something else", where=where, remedy=remedy)
    return "pickle"  # old ones have no mark of their own; what is none will be said where it cannot do harm


def _folder(path: Path, where: str) -> SapperError:
    """A folder may be an archive of torch's that something has unpacked."""
    inside = next((each.parent for each in (path / "data.pkl", *path.glob("*/data.pkl")) if each.is_file()), None)
    if inside is None:
        return SapperError("this is a folder", where=where, remedy="name the file of weights in it")
    inside = inside if inside.name else inside.resolve()
    remedy = f"pack it again without compression: (cd {inside.parent} && zip -0 -r NEW.pth {inside.name})"
    return SapperError("this is a folder: a file of torch's that was unpacked", where=where, remedy=remedy)


def _no_weights(start: bytes, size: int) -> tuple[str, str] | None:
    """What a file is that holds no weights, by how it begins, and what to do."""
    if not start:
        return "it is empty", AGAIN
    if not start.strip(b"\0"):
        return "it begins with nothing but zeros", AGAIN
    for beginning, (name, remedy) in OTHER_FORMATS.items():
        if start.startswith(beginning):
            return f"it is {name}", remedy
    if start[257:262] == b"ustar" or _is_tar(start):
        if start.startswith(TAR_OF_TORCH):
            remedy = "where you trust it: load it with torch.load and weights_only=False, save it with torch.save"
            return "it is of the format that torch wrote before version 0.1.10 (a tar of pickles)", remedy
        return "it is a tar archive", UNPACK
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return (
            "it is HTML or XML: a web page was saved in place of the file",
            ANEW,
        )
    return _text(start, text, size)


def _is_tar(start: bytes) -> bool:
    """Also one older than its mark, which torch would take for a file of its own."""
    try:
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _text(start: bytes, text: bytes, size: int) -> tuple[str, str] | None:
    """A message that a server sent in place of a file, or an index."""
    as_json = text[:1] in (b"{", b"[") and start[:8].isascii() and b"\0" not in start[:8]
    if as_json and b'"weight_map"' in start:
        return "it is an index: these are names of files (shards) that hold the weights together", MERGE
    try:
        words = start.decode()
    except UnicodeDecodeError:
        words = ""
    line = words.strip().partition("\n")[0]
    plain = size <= LONGEST_TEXT and " " in line and all(char.isprintable() or char.isspace() for char in words)
    if not as_json and not plain:
        return None
    shown = printable(line if plain else text[:80].decode("utf-8", "replace"))[:80]
    return f"it is a text, not weights: {shown!r}", ANEW


def _safetensors(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors, metadata, and what cannot be weights."""
    remedy = "get another copy of it; this one is damaged, or made to look like one"
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LARGEST_HEADER:
        raise SapperError(f"its header claims {header / 2**20:.0f} MiB", where=where, remedy=remedy)
    if (missing := _missing(path, header)) > 0:
        raise SapperError(f"it was cut: {missing} bytes are missing", where=where, remedy=AGAIN)
    tensors: dict[str, Tensor] = {}
    unread: dict[str, str] = {}
    try:
        with safetensors.safe_open(path, "pt") as content:
            metadata: dict[str, str] = content.metadata() or {}
            for name in content.keys():  # noqa: SIM118 (not a dict)
                kind = str(content.get_slice(name).get_dtype())
                if kind in UNREAD:
                    unread[name] = UNREAD[kind]
                    continue
                try:
                    tensors[name] = content.get_tensor(name)
                except (safetensors.SafetensorError, RuntimeError, ValueError, AttributeError, KeyError, TypeError):
                    unread[name] = f"of {kind}, which this version of torch does not read"
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, AttributeError) as error:
        raise SapperError(f"not a readable safetensors file: {error}", where=where, remedy=remedy) from error
    if not tensors:
        what = "no tensor in it can be read" if unread else "there is no tensor in it"
        raise SapperError(what, where=where, remedy=remedy)
    return tensors, metadata, unread


def _missing(path: Path, header: int) -> int:
    """How many bytes a safetensors file lacks of what its header speaks of."""
    size = path.stat().st_size
    if header + 8 > size:
        return header + 8 - size
    try:
        with path.open("rb") as file:
            file.seek(8)
            entries = json.loads(file.read(header))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return int(max(ends, default=0)) + 8 + header - size
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return 0  # no header at all; the library says so


def from_hub(repository: str, names: tuple[str, ...], revision: str | None) -> tuple[Path, str]:
    """The first file of ``names`` that a repository has, in the hub's cache, and the commit that it is of.

    Fetched unless it is there; ``HF_HUB_OFFLINE`` and the other variables of huggingface_hub hold.
    Raises ``SapperError`` when there is no such repository, revision or file, or the hub is out of reach.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    where = f"hf-hub:{repository}" + (f"@{revision}" if revision else "")
    what = f"the repository has none of {', '.join(names)}"
    remedy = "give a repository with the weights of an image encoder"
    for name in names:
        try:
            path = Path(hub.hf_hub_download(repository, name, revision=revision))
            return path, path.parent.name  # snapshots/COMMIT/NAME: a link, to what holds the content under no name
        except errors.LocalEntryNotFoundError:
            what = f"the hub is out of reach, and its cache here does not hold {' or '.join(names)}"
            remedy = "check the network and the name; a repository that lies in the cache is opened without a network"
        except errors.EntryNotFoundError:
            continue
        except errors.HFValidationError as error:
            raise SapperError(f"no name of a repository: {error}", where=where, remedy="write org/model") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            missing = "there is no such repository or revision, or it is not public"
            raise SapperError(missing, where=where, remedy="check the name; pin a commit, not a branch") from error
        except OSError as error:
            silent = f"the hub does not answer: {str(error).splitlines()[0]}"
            raise SapperError(silent, where=where, remedy="try again later") from error
    raise SapperError(what, where=where, remedy=remedy)


def from_address(address: str) -> Path:
    """A file that torchvision or timm publishes, in torch's cache (``TORCH_HOME``), fetched unless it is there.

    What is fetched must have the hash that its name ends with. Raises ``SapperError`` when it cannot be fetched.
    """
    name = address.rsplit("/", 1)[-1]
    claimed = re.search(r"-([0-9a-f]{8,})\.", name)
    return _fetched(address, Path(torch.hub.get_dir()) / "checkpoints" / name, claimed[1] if claimed else None)


def from_web(address: str) -> tuple[Path, str | None]:
    """A file of weights at an address of the user's, in torch's cache, fetched unless it is there.

    And since when it was there, in words; none if it was fetched now. Raises ``SapperError`` when it cannot be fetched,
    and for an address with a password, which would stand in reports.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise SapperError(f"no address: {error}", where=address, remedy="write https://host/path/file.pth") from error
    if parts.username or parts.password:
        what, remedy = "this address holds a name or a password, and reports show it", "fetch the file yourself"
        raise SapperError(what, where=parts.hostname or "https://", remedy=remedy)
    own = hashlib.sha256(address.encode()).hexdigest()[:12]  # many are called checkpoint.pth
    path = Path(torch.hub.get_dir()) / "sapper" / f"{own}-{Path(parts.path).name[-100:] or 'weights'}"
    since = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%d %B %Y") if path.exists() else None
    return _fetched(address, path, None), since


def _fetched(address: str, path: Path, claimed: str | None) -> Path:
    """The file at ``path``; fetched if there is none, with a hash that begins as ``claimed``."""
    if path.exists():
        return path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), claimed, progress=False)
    except (urllib.error.URLError, HTTPException, OSError, RuntimeError, ValueError) as error:
        remedy = f"check the network, or put the file there yourself: {path}"
        raise SapperError(f"cannot fetch the weights: {error}", where=address, remedy=remedy) from error
    return path.resolve()
