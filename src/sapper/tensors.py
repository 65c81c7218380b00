"""Tensors and plain data in one file: safetensors, which never executes code, with JSON in its metadata."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sapper.errors import SapperError
from sapper.files import write_atomically

PLAIN = "sapper.plain"
"""The key of the plain data in a file's metadata."""


def save(path: Path, tensors: Mapping[str, Tensor], plain: Any = None) -> None:
    """Write what ``load`` and ``load_plain`` read; the file is whole or absent. Tensors may share their memory."""
    content, seen = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        whole = value.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        content[name] = whole.clone() if place in seen else whole
        seen.add(place)
    write_atomically(path, safetensors.torch.save(content, None if plain is None else {PLAIN: json.dumps(plain)}))


def load(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of ours."""
    return safetensors.torch.load_file(path)


def load_plain(path: Path) -> Any:
    """The plain data in a file of ours."""
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()[PLAIN])


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix`` and a slash, by the rest of their names."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


@dataclass(frozen=True)
class KeptIn:
    """Parts of a long computation, in files of a folder (``running.Kept``). A file that cannot be read is not there."""

    folder: Path

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was kept under ``key``."""
        try:
            return load(self.folder / f"{key}.safetensors")
        except (OSError, safetensors.SafetensorError):
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write it. What cannot be written is not kept, and stops nothing."""
        with suppress(OSError, SapperError):
            self.folder.mkdir(parents=True, exist_ok=True)
            save(self.folder / f"{key}.safetensors", tensors)
