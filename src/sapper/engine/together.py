"""The executor for one large training: processes that ``torchrun`` has started make a stage together.

The first process does all the work, as if it were alone. When it comes to a stage that can be divided
(``Divisible``), it hands the stage to the others, and all of them run it, each with its share of every batch. Only the
first one's files are kept.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from sapper.engine.executors import Ready, Tell, make_packed, packed, working
from sapper.engine.stage import Divisible
from sapper.engine.store import Finished, Store
from sapper.errors import SapperError

if TYPE_CHECKING:
    from sapper.engine.stage import Stage

LONG = timedelta(days=30)
"""The others wait while the first one works on what cannot be divided."""


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """The processes of ``torchrun``, joined; gives this one's device. Raises ``SapperError`` where they do not meet."""
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=LONG)
    except (RuntimeError, ValueError) as error:
        what, remedy = f"the processes do not meet: {error}", "start them with torchrun"
        raise SapperError(what, where="torchrun", remedy=remedy) from error
    try:
        yield own
    finally:
        dist.destroy_process_group()


def first() -> bool:
    """Whether this is the process that hands out the work."""
    return dist.get_rank() == 0


@dataclass(frozen=True)
class Together:
    """Of the first process: makes all stages, those that can be divided with the others' help."""

    def takes(self, stage: "Stage") -> bool:
        return True

    def make(self, missing: list["Stage"], done: dict["Stage", Finished], store: Store, tell: Tell) -> None:
        """See ``Executor``."""
        ready = Ready(missing, done)
        while ready.waiting:
            for stage in ready.take(1):
                divided = isinstance(stage.work, Divisible) and stage.run.processes > 1
                done[stage] = _make(stage, store, done) if divided else make_packed(packed(stage, store, done))
                tell(stage, done[stage])


def _make(stage: "Stage", store: Store, done: dict["Stage", Finished]) -> Finished:
    inputs = tuple(done[needed].folder for needed in stage.inputs)

    def fill(folder: Path) -> None:
        _say((stage.work, stage.run, tuple(each.absolute() for each in inputs), folder.absolute(), stage.threads))
        dist.barrier()  # the others have copied what an interrupted call left
        stage.work(folder, inputs, stage.run)

    with working(stage.threads, stage.where):
        return store.make(stage.place, stage.key, fill)


def _say(job: tuple[Any, ...] | None) -> None:
    dist.broadcast_object_list([job], src=0)


def dismiss() -> None:
    """Of the first process: the others may end."""
    _say(None)


def help_along(device: torch.device) -> None:
    """Of all other processes: run what the first one hands out, until it dismisses them."""
    while True:
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0)
        if heard[0] is None:
            return
        work, run, inputs, folder, threads = heard[0]
        with tempfile.TemporaryDirectory() as temporary, working(threads, ""):
            own = Path(temporary) / "stage"
            shutil.copytree(folder, own)
            dist.barrier()
            work(own, inputs, replace(run, device=device))
