"""Where weights lie: files of the user's, the Hugging Face hub, addresses that torchvision and timm publish.

Weights come back as tensors by name. Only safetensors are read here; a pickle goes through the sandbox first.
"""

import re
import stat
import tempfile
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sapper import sandbox
from sapper.errors import SapperError, located

LARGEST_HEADER = 16 * 2**20
"""Bytes of a safetensors header; the names of a hundred thousand tensors take less."""

LARGEST_FILE = 64 * 2**30

OTHER_FORMATS = {
    # what such a file begins with
    b"\x89HDF\r\n": "HDF5 (Keras)",
    b"GGUF": "GGUF, a quantized language model",
    b"\x1f\x8b": "compressed by gzip",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x93NUMPY": "a NumPy array",
    b"<": "HTML or XML: a web page was saved in place of the file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by their names in the file at ``path``, and the metadata of a safetensors file."""

    tensors: dict[str, Tensor]
    path: Path
    metadata: dict[str, str]
    notes: dict[str, str | int | float | bool] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    optimizer: tuple[tuple[int, ...], ...] = ()


def read(path: Path, *, allow_weak_sandbox: bool = False) -> Weights:
    """The weights in a file.

    Raises ``SapperError`` when it is missing, a link, no checkpoint, damaged or hostile, or when weights in it are not
    finite.
    """
    kind = _kind(path)
    if kind == "safetensors":
        tensors, metadata = _safetensors(path)
    else:
        with tempfile.TemporaryDirectory(prefix="sapper-") as folder:
            converted = Path(folder) / "converted.safetensors"
            sandbox.convert(path, converted, allow_weak_sandbox=allow_weak_sandbox)
            with located(str(path)):
                tensors, metadata = _safetensors(converted)
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        what = f"{len(broken)} of its {len(tensors)} tensors are not finite: {', '.join(broken[:3])}"
        raise SapperError(what, where=str(path), remedy="nothing can be said of such an encoder; get another copy")
    return Weights(tensors=tensors, path=path, metadata=metadata)


def _kind(path: Path) -> Literal["safetensors", "pickle"]:
    """By what the file begins with, whatever its name."""
    try:
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            remedy = f"name the file itself: {path.readlink()}"
            raise SapperError("this is a symbolic link", where=str(path), remedy=remedy)
        if not stat.S_ISREG(about.st_mode):
            raise SapperError("this is no regular file", where=str(path), remedy="give a file of weights")
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        what = f"cannot read it: {error.strerror}"
        raise SapperError(what, where=str(path), remedy="check the path") from error
    if about.st_size > LARGEST_FILE:
        raise SapperError(f"it has {about.st_size / 2**30:.0f} GiB", where=str(path), remedy="give a smaller file")
    for beginning, name in OTHER_FORMATS.items():
        if start.startswith(beginning):
            remedy = "give a .safetensors file, or a .pt, .pth or .ckpt that torch.save wrote"
            raise SapperError(f"it is {name}", where=str(path), remedy=remedy)
    if start[257:262] == b"ustar":
        raise SapperError("it is a tar archive", where=str(path), remedy="unpack it and name a file of weights")
    if not start:
        raise SapperError("it is empty", where=str(path), remedy="get another copy of it")
    if start[8:9] == b"{":
        return "safetensors"
    if path.suffix == ".safetensors":
        remedy = "do not trust its source: the name promises a format that cannot run code"
        raise SapperError("it is called safetensors, and is something else", where=str(path), remedy=remedy)
    return "pickle"  # old ones have no mark of their own; what is none will be said where it cannot do harm


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    remedy = "get another copy of it; this one is damaged, or made to look like one"
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LARGEST_HEADER:
        what = f"its header claims {header / 2**20:.0f} MiB"
        raise SapperError(what, where=str(path), remedy=remedy)
    try:
        with safetensors.safe_open(path, "pt") as content:
            metadata: dict[str, str] = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, AttributeError) as error:
        raise SapperError(f"not a readable safetensors file: {error}", where=str(path), remedy=remedy) from error
    if not tensors:
        raise SapperError("there is no tensor in it", where=str(path), remedy=remedy)
    return tensors, metadata


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
            return path.resolve(), path.parent.name  # snapshots/COMMIT/NAME is a link to what holds the content
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
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        return path.resolve()
    claimed = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), claimed[1] if claimed else None, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        remedy = f"check the network, or put the file there yourself: {path}"
        raise SapperError(f"cannot fetch the weights: {error}", where=address, remedy=remedy) from error
    return path.resolve()
