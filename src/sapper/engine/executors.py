"""Executors: of a graph of stages they make what is not in the Store, here, in several processes, or on a cluster.

Many small trainings go faster side by side, each on one core, than one on all cores. Whatever is interrupted or killed
goes on from there at the next call, and ends the same. ``cluster.py`` has the executor for many machines.
"""

import ctypes
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from sapper.engine.store import Finished, Store
from sapper.errors import SapperError, located

if TYPE_CHECKING:
    from sapper.engine.stage import Stage

DIE_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""


def nothing() -> None:
    """What there is to settle by default."""


Tell = Callable[["Stage", Finished], None]


class Executor(Protocol):
    """What makes several stages side by side."""

    def takes(self, stage: "Stage") -> bool:
        """Whether it makes this stage; else the caller's process does."""
        ...

    def make(self, missing: list["Stage"], done: dict["Stage", Finished], store: Store, tell: Tell) -> None:
        """Make all of ``missing``, each as soon as its inputs are in ``done``, where each is put; earlier ones first.

        ``tell`` is called for each. The first error ends all work and is raised.
        """
        ...


@dataclass(frozen=True)
class Workers:
    """``count`` processes on this machine; ``settle`` is called in each of them before torch is loaded.

    With 0 all is done in the caller's process, and so is what does not compute on a CPU.
    """

    count: int = 0
    settle: Callable[[], None] = nothing

    def takes(self, stage: "Stage") -> bool:
        return self.count > 0 and stage.run.device.type == "cpu"

    def make(self, missing: list["Stage"], done: dict["Stage", Finished], store: Store, tell: Tell) -> None:
        """See ``Executor``. Raises ``SapperError`` when a process is killed."""
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used its threads may hang
        others = multiprocessing.active_children()
        with ProcessPoolExecutor(min(self.count, len(missing)), context, _begin, (self.settle,)) as pool:
            under_way: dict[Future[Finished], Stage] = {}
            ready = Ready(missing, done)
            try:
                while ready.waiting or under_way:
                    for stage in ready.take(2 * self.count + 1 - len(under_way)):
                        under_way[pool.submit(make_packed, packed(stage, store, done))] = stage
                    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        stage = under_way.pop(future)
                        done[stage] = future.result()
                        tell(stage, done[stage])
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.terminate()
                if isinstance(error, BrokenProcessPool):
                    what, remedy = "a worker ended without a word", "was the memory full? use fewer with --jobs"
                    raise SapperError(what, remedy=f"{remedy}; finished parts are kept") from error
                raise


HERE = Workers()


class Ready:
    """Stages that wait for their inputs; ``done`` is filled by whoever makes them."""

    def __init__(self, missing: Iterable["Stage"], done: Mapping["Stage", Finished]):
        self.waiting, self._done = dict.fromkeys(missing), done

    def take(self, count: int) -> list["Stage"]:
        """At most ``count`` whose inputs are there, earlier ones first; they wait no longer."""
        able = (stage for stage in self.waiting if all(needed in self._done for needed in stage.inputs))
        taken = list(islice(able, max(0, count)))
        for stage in taken:
            del self.waiting[stage]
        return taken


def _silent(_stage: "Stage", _finished: Finished) -> None:
    pass


def execute(
    wanted: Iterable["Stage"],
    store: Store,
    *,
    executor: Executor = HERE,
    tell: Tell = _silent,
    known: Mapping["Stage", Finished] | None = None,
) -> dict["Stage", Finished]:
    """The wanted stages, finished, and what had to be made for them: what ``store`` does not have is made.

    In the order that they are wanted in, inputs first; what ``executor`` takes is made side by side.
    ``tell`` is called once for each, when it is finished. ``known``: stages that are kept elsewhere.
    The first error ends all work and is raised here, an interrupt likewise.
    """
    done, missing = dict(known or {}), {}
    for stage in _in_order(wanted, done, store):
        if stage in done:
            tell(stage, done[stage])
        elif executor.takes(stage):
            missing[stage] = stage
        else:
            done[stage] = _make(_Job.of(stage, store, done), stage.run)
            tell(stage, done[stage])
    if missing:
        executor.make(list(missing), done, store, tell)
    return done


def _in_order(wanted: Iterable["Stage"], done: dict["Stage", Finished], store: Store) -> Iterator["Stage"]:
    """The wanted ones and what is missing for them, each once, inputs first; what is there is put into ``done``."""
    seen: set[Stage] = set(done)

    def visit(stage: "Stage") -> Iterator["Stage"]:
        if stage in seen:
            return
        seen.add(stage)
        if (found := store.find(stage.place)) is not None:
            done[stage] = found
        else:
            for needed in stage.inputs:
                yield from visit(needed)
        yield stage

    for stage in wanted:
        yield from visit(stage)


@dataclass(frozen=True)
class _Job:
    """All that a process needs to make a stage."""

    store: Store
    place: str
    key: dict[str, Any]
    work: Any
    inputs: tuple[Any, ...]
    threads: int
    where: str

    @staticmethod
    def of(stage: "Stage", store: Store, done: Mapping["Stage", Finished]) -> "_Job":
        folders = tuple(done[needed].folder.absolute() for needed in stage.inputs)
        return _Job(store.absolute(), stage.place, stage.key, stage.work, folders, stage.threads, stage.where)


def _make(job: _Job, run: Any) -> Finished:
    with working(job.threads, job.where):
        inputs = tuple(job.store.here(folder) for folder in job.inputs)
        return job.store.make(job.place, job.key, lambda folder: job.work(folder, inputs, run))


@contextmanager
def working(threads: int, where: str) -> Iterator[None]:
    """Compute on so many threads; an error in it is ``where`` the stage was asked for."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with located(where) if where else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)


def packed(stage: "Stage", store: Store, done: Mapping["Stage", Finished]) -> bytes:
    """All that another process needs to make a stage.

    As bytes: torch would put a job's tensors into shared memory, of which containers have little.
    """
    return pickle.dumps((_Job.of(stage, store, done), stage.run))


def make_packed(job: bytes) -> Finished:
    """Make a stage from what ``packed`` gave."""
    return _make(*pickle.loads(job))  # made by our own parent


def _begin(settle: Callable[[], None]) -> None:
    """In a new process: die with its parent, leave interrupts to it."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settle()
