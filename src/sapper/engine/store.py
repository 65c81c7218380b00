"""The Store: finished stages on disk, by the hash of everything that made them."""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapper.errors import SapperError
from sapper.files import LEFTOVERS, sha256, write_atomically

CLOCK = "clock.json"
"""In a work folder: when the process that works there began, and what others had spent before it."""


@dataclass(frozen=True)
class Finished:
    """A finished stage: its folder of files, how long it took in all, and whether it was there already."""

    folder: Path
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Store:
    """Stages under ``root``. A stage is a folder ``<name>-<hash>`` with its files and a ``stage.json``.

    Work goes on in ``.work/<name>-<hash>`` and is renamed when it is finished, so that a stage is there as a whole
    or not at all. What an interrupted stage left in its work folder (a checkpoint) is found again by the next run.
    """

    root: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. The lock belongs to the process: it ends when the process does, however it ends."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("a")
        except OSError as error:
            raise self._refused(error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                remedy = "wait for it to end, or name another folder with --store"
                raise SapperError("another run is using this store", where=str(self.root), remedy=remedy) from error
            except OSError as error:
                raise self._refused(error) from error
            yield

    def find(self, place: str) -> Finished | None:
        """The stage in ``place`` if its ``stage.json`` is there and all its files are as they were written."""
        folder = self.root / place
        try:
            content = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
            whole = all(sha256(folder / name) == digest for name, digest in content["files"].items())
            return Finished(folder, float(content["seconds"]), cached=True) if whole else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, or not what we wrote
            return None

    def make(self, place: str, key: dict[str, Any], fill: Callable[[Path], None]) -> Finished:
        """Make the stage of that ``place`` and ``key``, whatever is there: ``fill(folder)`` writes its files."""
        folder, work = self.root / place, self.root / ".work" / place
        try:
            shutil.rmtree(folder, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            for half_written in work.glob(LEFTOVERS):
                half_written.unlink()
            before, started = _spent(work), time.perf_counter()
            write_atomically(work / CLOCK, json.dumps({"before": before, "started": time.time()}))
            fill(work)
            (work / CLOCK).unlink()
            seconds = round(before + time.perf_counter() - started, 2)
            hashes = {path.name: sha256(path) for path in sorted(work.iterdir()) if path.name != "stage.json"}
            content = {"stage": place.rpartition("-")[0], "key": key, "seconds": seconds, "files": hashes}
            write_atomically(work / "stage.json", json.dumps(content, indent=1) + "\n")
            work.replace(folder)
        except OSError as error:
            raise self._refused(error) from error
        return Finished(folder, seconds, cached=False)

    def absolute(self) -> "Store":
        """The same for a process that works in another folder."""
        return replace(self, root=self.root.absolute())

    def within(self, place: str) -> "Store":
        """A Store for what belongs together, in a folder of this one."""
        return Store(self.root / place)

    def here(self, folder: Path) -> Path:
        """The folder of a finished stage on this machine, wherever it was made."""
        return folder

    def note(self, name: str, text: str) -> None:
        """Leave a word for other machines that see this Store, in a file of that name."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.root / name, text)
        except OSError as error:
            raise self._refused(error) from error

    def noted(self, name: str) -> str | None:
        """What ``note`` left; none where it left nothing."""
        try:
            return (self.root / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(error) from error

    def forget(self, name: str) -> None:
        """Remove what ``note`` left, if anything."""
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> SapperError:
        remedy = "free some space, or name another folder with --store"
        return SapperError(f"the store cannot be used: {error.strerror or error}", where=str(self.root), remedy=remedy)


def _spent(work: Path) -> float:
    """Seconds that interrupted processes worked for what lies in ``work``: until the last file they finished."""
    try:
        clock = json.loads((work / CLOCK).read_text(encoding="utf-8"))
        latest = max(path.stat().st_mtime for path in work.iterdir())
        return float(clock["before"]) + max(0.0, latest - float(clock["started"]))
    except (OSError, ValueError, LookupError, TypeError):  # nothing was begun here, or not by us
        return 0.0
