"""A Store in a bucket: finished stages where many machines see them, and a copy of what was needed on each.

A stage is made in a folder of this machine, as in every Store, and its files are then put into the bucket, its
``stage.json`` last. So it is there as a whole or not at all, for whoever looks. fsspec does the transport; what it
needs for a kind of bucket (s3fs, gcsfs, adlfs) is the user's to install.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sapper.engine.store import Finished, Store
from sapper.errors import SapperError

WHOLE = "stage.json"
"""The file of a stage that is written last."""


def store_at(place: str | Path) -> Store:
    """The Store in a folder, or at an address with ``://`` in it, such as ``s3://bucket/store``."""
    return Bucket.at(place) if isinstance(place, str) and "://" in place else Store(Path(place))


@dataclass(frozen=True)
class Bucket(Store):
    """The Store at ``url``, with copies below ``root``. To another machine it travels as its ``url`` alone."""

    url: str

    @staticmethod
    def at(url: str) -> "Bucket":
        """With copies below this machine's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``)."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Bucket(cache / "sapper" / "stores" / sha256(url.encode()).hexdigest()[:16], url)

    def __reduce__(self) -> tuple[Callable[[str], "Bucket"], tuple[str]]:
        return Bucket.at, (self.url,)

    def within(self, place: str) -> Store:
        """This Store itself: whatever machine works on with these stages looks for them at its address."""
        return self

    def here(self, folder: Path) -> Path:
        """See ``Store.here``. Raises ``SapperError`` for a stage that is not in the bucket.

        What another Store of this machine keeps, such as a fleet in a folder of its own, is where it is.
        """
        if folder.parent != self.root and folder.is_dir():
            return folder
        if (found := self.find(folder.name)) is None:
            what, remedy = f"{folder.name} is not in it", "was it emptied? the same command makes what is missing"
            raise SapperError(what, where=self.url, remedy=remedy)
        return found.folder

    def find(self, place: str) -> Finished | None:
        """The stage from this machine's copies, or else from the bucket."""
        if (found := super().find(place)) is not None:
            return found
        with self._reached() as (files, base):
            there = f"{base}/{place}"
            if not files.exists(f"{there}/{WHOLE}"):
                return None
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.root, prefix=".copy-") as temporary:
                copy = Path(temporary) / place
                copy.mkdir()
                for each in files.ls(there, detail=False):
                    name = str(each).rpartition("/")[2]
                    files.get_file(f"{there}/{name}", str(copy / name))
                shutil.rmtree(self.root / place, ignore_errors=True)
                try:
                    copy.replace(self.root / place)
                except OSError:  # another process of this machine was faster
                    assert (self.root / place).exists()
        return super().find(place)

    def make(self, place: str, key: dict[str, Any], fill: Callable[[Path], None]) -> Finished:
        """Make the stage on this machine and put it into the bucket."""
        made = super().make(place, key, fill)
        with self._reached() as (files, base):
            there = f"{base}/{place}"
            files.makedirs(there, exist_ok=True)
            if files.exists(f"{there}/{WHOLE}"):
                files.rm_file(f"{there}/{WHOLE}")  # what is replaced is not whole until the end
            for each in sorted(made.folder.iterdir(), key=lambda path: path.name == WHOLE):
                files.put_file(str(each), f"{there}/{each.name}")
        return made

    def note(self, name: str, text: str) -> None:
        with self._reached() as (files, base):
            files.makedirs(base, exist_ok=True)
            files.pipe_file(f"{base}/{name}", text.encode())

    def noted(self, name: str) -> str | None:
        with self._reached() as (files, base):
            return files.cat_file(f"{base}/{name}").decode() if files.exists(f"{base}/{name}") else None

    def forget(self, name: str) -> None:
        with self._reached() as (files, base):
            if files.exists(f"{base}/{name}"):
                files.rm_file(f"{base}/{name}")

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it. Raises ``SapperError`` for whatever goes wrong there."""
        try:
            from fsspec.core import url_to_fs

            files, base = url_to_fs(self.url)
            files.invalidate_cache()
            yield files, base
        except (SapperError, AssertionError):
            raise
        except Exception as error:  # each kind of bucket has errors of its own
            remedy = "check the address, its credentials, and that what fsspec needs for it is installed"
            raise SapperError(f"the store cannot be reached: {error}", where=self.url, remedy=remedy) from error
