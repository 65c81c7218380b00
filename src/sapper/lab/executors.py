"""Work for several processes: many small trainings go faster side by side, each on one core, than one on all cores."""

import ctypes
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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
    """``count`` processes with one thread each. ``settle`` is called in each of them before torch is loaded."""

    count: int = 1
    settle: Callable[[], None] = _nothing

    def run(self, function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], done: Callable[[], None]) -> list[T]:
        """``function(*job)`` for every job, in their order; ``done`` is called after each that ends.

        Functions, jobs and results travel by pickle between processes of ours. The first error ends all work and is
        raised here, an interrupt likewise. Raises ``SapperError`` when a process is killed.
        """
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used its threads may hang
        with ProcessPoolExecutor(min(self.count, len(jobs)), context, _begin, (self.settle,)) as pool:
            futures = [pool.submit(function, *job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    done()
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                if isinstance(error, BrokenProcessPool):
                    what, remedy = "a worker was killed", "if the memory was full, use fewer with --threads"
                    raise SapperError(what, remedy=f"{remedy}; finished parts are kept") from error
                raise
            return [future.result() for future in futures]


def _begin(settle: Callable[[], None]) -> None:
    """In a new process: die with its parent, leave interrupts to it, compute on one thread."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settle()
    import torch

    torch.set_num_threads(1)
