"""Work in several processes: in order, on one thread each, and errors come home."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sapper.engine.executors import Workers
from sapper.errors import SapperError

pytestmark = pytest.mark.slow  # each waits for processes that load torch


def report(number: int) -> tuple[int, int, int]:
    return number, os.getpid(), torch.get_num_threads()


def leave_mark() -> None:
    os.environ["SETTLED"] = "1"


def fail_or_wait(number: int, folder: Path) -> str:
    (folder / f"started-{number}").touch()
    if number == 0:
        raise SapperError("no", where="job 0")
    time.sleep(60)
    (folder / f"ended-{number}").touch()
    return os.environ["SETTLED"]


def settled(_number: int) -> str:
    return os.environ.get("SETTLED", "0")


def end_it(_number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_the_order_of_the_jobs_from_processes_of_one_thread() -> None:
    done: list[int] = []
    results = Workers(2).run(report, [(number,) for number in range(5)], lambda: done.append(1))
    assert [number for number, _, _ in results] == list(range(5))
    assert os.getpid() not in {process for _, process, _ in results}
    assert {threads for _, _, threads in results} == {1}
    assert len(done) == 5


def test_every_process_is_settled_first() -> None:
    assert Workers(1, leave_mark).run(settled, [(0,)], lambda: None) == ["1"]


def test_the_first_error_ends_all_work_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SapperError, match="job 0"):
        Workers(2).run(fail_or_wait, [(number, tmp_path) for number in range(6)], lambda: None)
    assert time.monotonic() - started < 50
    assert not list(tmp_path.glob("ended-*"))
    assert not (tmp_path / "started-5").exists()


def test_a_killed_process_is_one_clear_error() -> None:
    with pytest.raises(SapperError, match="a worker ended without a word") as caught:
        Workers(1).run(end_it, [(0,)], lambda: None)
    assert "--workers" in str(caught.value.remedy)


def test_without_processes_work_is_done_here_in_order() -> None:
    done: list[int] = []
    results = Workers(0).run(report, [(number,) for number in range(3)], lambda: done.append(1))
    assert [(number, process) for number, process, _ in results] == [(number, os.getpid()) for number in range(3)]
    assert len(done) == 3


def test_no_jobs_are_no_work() -> None:
    assert Workers(2).run(report, [], lambda: None) == []


def test_an_interrupt_while_jobs_are_handed_out_ends_all_work_at_once(tmp_path: Path) -> None:
    class Jobs(list[tuple[int, Path]]):
        def __iter__(self) -> Iterator[tuple[int, Path]]:
            yield 1, tmp_path
            while not (tmp_path / "started-1").exists():
                time.sleep(0.1)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Workers(2).run(fail_or_wait, Jobs([(1, tmp_path)]), lambda: None)
    assert time.monotonic() - started < 50
    assert not (tmp_path / "ended-1").exists()
