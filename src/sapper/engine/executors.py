"""Work for several processes: many small trainings go faster side by side, each on one core, than one on all cores."""

import ctypes
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from sapper.errors import SapperError

T = TypeVar("T")

DIE_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Workers:
    """``count`` processes with one thread each; ``settle`` is called in each of them before torch is loaded.

    With 0 all is done in this process, as it is: for tests. (The option ``--workers 0`` means as many as threads.)
    """

    count: int = 1
    settle: Callable[[], None] = _nothing

    def run(self, function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], done: Callable[[], None]) -> list[T]:
        """``function(*job)`` for every job, in their order; ``done`` is called after each that ends.

        Functions, jobs and results travel by pickle between processes of ours, a few at a time. The first error ends
        all work and is raised here, an interrupt likewise. Raises ``SapperError`` when a process is killed.
        """
        if not jobs or not self.count:
            return _here(function, jobs, done)
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used its threads may hang
        others = multiprocessing.active_children()
        with ProcessPoolExecutor(min(self.count, len(jobs)), context, _begin, (self.settle,)) as pool:
            results: dict[int, T] = {}
            try:
                under_way: dict[Future[T], int] = {}
                for number, job in enumerate(jobs):
                    # As bytes: torch would put a job's tensors into shared memory, of which containers have little.
                    under_way[pool.submit(_call, pickle.dumps((function, job)))] = number
                    if len(under_way) > 2 * self.count:
                        results |= _ended(under_way, done)
                while under_way:
                    results |= _ended(under_way, done)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.terminate()
                if isinstance(error, BrokenProcessPool):
                    what, remedy = "a worker ended without a word", "was the memory full? use fewer with --workers"
                    raise SapperError(what, remedy=f"{remedy}; finished parts are kept") from error
                raise
        return [results[number] for number in range(len(jobs))]

    def run_on(
        self, device: Any, function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], done: Callable[[], None]
    ) -> list[T]:
        """``run`` on a CPU; on an accelerator one job after another in this process."""
        return (self.run if device.type == "cpu" else _here)(function, jobs, done)


def _here(function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], done: Callable[[], None]) -> list[T]:
    """One job after another in this process."""
    results = []
    for job in jobs:
        results.append(function(*job))
        done()
    return results


def _ended(under_way: dict[Future[T], int], done: Callable[[], None]) -> dict[int, T]:
    """Wait until one or more of the jobs have ended; their results by number. They are no longer under way."""
    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
    results = {}
    for future in finished:
        results[under_way.pop(future)] = future.result()
        done()
    return results


def _call(job: bytes) -> Any:
    function, arguments = pickle.loads(job)  # made by our own parent
    return function(*arguments)


def _begin(settle: Callable[[], None]) -> None:
    """In a new process: die with its parent, leave interrupts to it, compute on one thread."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settle()
    import torch

    torch.set_num_threads(1)
