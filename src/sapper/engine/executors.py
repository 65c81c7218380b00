"""Executors: of a graph of stages they make what is not in the Store, here or in several processes.

Many small trainings go faster side by side, each on one core, than one on all cores. Whatever is interrupted or killed
goes on from there at the next call, and ends the same.
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
from typing import TYPE_CHECKING, Any

from sapper.engine.store import Finished, Store
from sapper.errors import SapperError, located

if TYPE_CHECKING:
    from sapper.engine.stage import Stage

DIE_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Workers:
    """``count`` processes; ``settle`` is called in each of them before torch is loaded.

    With 0 all is done in this process. (The option ``--workers 0`` means as many as threads.)
    """

    count: int = 0
    settle: Callable[[], None] = _nothing


HERE = Workers()

Tell = Callable[["Stage", Finished], None]


def _silent(_stage: "Stage", _finished: Finished) -> None:
    pass


def execute(
    wanted: Iterable["Stage"],
    store: Store,
    *,
    workers: Workers = HERE,
    tell: Tell = _silent,
    known: Mapping["Stage", Finished] | None = None,
) -> dict["Stage", Finished]:
    """The wanted stages, finished, and what had to be made for them: what ``store`` does not have is made.

    In the order that they are wanted in, inputs first; with ``workers`` and on a CPU independent ones side by side.
    ``tell`` is called once for each, when it is finished. ``known``: stages that are kept elsewhere.
    The first error ends all work and is raised here, an interrupt likewise. Raises ``SapperError`` when a process is
    killed.
    """
    done, missing = dict(known or {}), {}
    for stage in _in_order(wanted, done, store):
        if stage in done:
            tell(stage, done[stage])
        elif workers.count and stage.run.device.type == "cpu":
            missing[stage] = stage
        else:
            done[stage] = _make(_Job.of(stage, store, done), stage.run)
            tell(stage, done[stage])
    if missing:
        _side_by_side(list(missing), done, store, workers, tell)
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
        folders = tuple(done[needed].folder for needed in stage.inputs)
        return _Job(store, stage.place, stage.key, stage.work, folders, stage.threads, stage.where)


def _make(job: _Job, run: Any) -> Finished:
    with _threads(job.threads), located(job.where) if job.where else nullcontext():
        return job.store.make(job.place, job.key, lambda folder: job.work(folder, job.inputs, run))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute on so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _side_by_side(
    missing: list["Stage"], done: dict["Stage", Finished], store: Store, workers: Workers, tell: Tell
) -> None:
    """Each as soon as its inputs are there, earlier ones first."""
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used its threads may hang
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(min(workers.count, len(missing)), context, _begin, (workers.settle,)) as pool:
        waiting = dict.fromkeys(missing)
        under_way: dict[Future[Finished], Stage] = {}
        try:
            while waiting or under_way:
                for stage in [stage for stage in waiting if all(needed in done for needed in stage.inputs)]:
                    if len(under_way) > 2 * workers.count:
                        break
                    under_way[pool.submit(_call, _packed(stage, store, done))] = stage
                    del waiting[stage]
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
                what, remedy = "a worker ended without a word", "was the memory full? use fewer with --workers"
                raise SapperError(what, remedy=f"{remedy}; finished parts are kept") from error
            raise


def _packed(stage: "Stage", store: Store, done: Mapping["Stage", Finished]) -> bytes:
    """As bytes: torch would put a job's tensors into shared memory, of which containers have little."""
    return pickle.dumps((_Job.of(stage, store, done), stage.run))


def _call(packed: bytes) -> Finished:
    return _make(*pickle.loads(packed))  # made by our own parent


def _begin(settle: Callable[[], None]) -> None:
    """In a new process: die with its parent, leave interrupts to it."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settle()
