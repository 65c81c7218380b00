"""Graphs of stages: values before they run, made in dependency order, here or in several processes, and resumed."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sapper.engine.executors import Workers, execute
from sapper.engine.stage import Stage
from sapper.engine.store import Finished, Store
from sapper.errors import SapperError
from sapper.progress import progress
from sapper.running import Run, Silent
from tests.program import Install


@dataclass(frozen=True, kw_only=True)
class Say:
    """Writes a word, the words of its inputs, and where it was written."""

    word: str
    libraries: tuple[str, ...] = ()
    log: Path | None = field(default=None, compare=False)

    name: ClassVar[str] = "say"

    def key(self) -> dict[str, Any]:
        return {"word": self.word}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        before = "".join((each / "said").read_text() for each in inputs)
        (folder / "said").write_text(before + self.word)
        where = f"{os.getpid()} {torch.get_num_threads()} {os.environ.get('SETTLED', '')}"
        (folder / "where").write_text(where)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(self.word)


@dataclass(frozen=True, kw_only=True)
class Act:
    """Does something else: fails, waits, or dies, after it has left a mark."""

    act: str
    marks: Path

    name: ClassVar[str] = "act"
    libraries: ClassVar[tuple[str, ...]] = ()

    def key(self) -> dict[str, Any]:
        return {"act": self.act}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        (self.marks / f"began-{self.act}").touch()
        if self.act == "fail":
            raise SapperError("no", where="here")
        if self.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act.startswith("wait"):
            time.sleep(60)
        (self.marks / f"ended-{self.act}").touch()


@dataclass(frozen=True, kw_only=True)
class Count:
    """Adds up to ten, one at a time; interrupted at ``stop`` when the file is there."""

    stop: Path

    name: ClassVar[str] = "count"
    libraries: ClassVar[tuple[str, ...]] = ()

    def key(self) -> dict[str, Any]:
        return {}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        state = folder / "state"
        for number in range(int(state.read_text()) if state.exists() else 0, 10):
            state.write_text(str(number + 1))
            if number == 6 and self.stop.exists():
                raise KeyboardInterrupt
        (folder / "began at").write_text("7" if self.stop.with_suffix(".gone").exists() else "0")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def say(word: str, *inputs: Stage, run: Run | None = None, **more: Any) -> Stage:
    return Stage(Say(word=word, **more), run or Run(), inputs, threads=1)


def said(finished: Finished) -> str:
    return (finished.folder / "said").read_text()


def chains(count: int, length: int) -> list[Stage]:
    made = []
    for number in range(count):
        chain = [say(f"{number}0")]
        for link in range(1, length):
            chain.append(say(f"{number}{link}", chain[-1]))
        made += chain
    return made


# Values

BASE = say("word", say("first"))
CHANGES: dict[str, Callable[[], Stage]] = {
    "a parameter": lambda: say("other", say("first")),
    "the seed": lambda: replace(BASE, run=Run(seed=1)),
    "the number format": lambda: replace(BASE, run=Run(dtype=torch.bfloat16)),
    "threads": lambda: replace(BASE, threads=2),
    "an input": lambda: say("word", say("second")),
    "an input of an input": lambda: say("word", say("first", say("zeroth"))),
    "no input": lambda: say("word"),
    "a library": lambda: replace(BASE, work=Say(word="word", libraries=("numpy",))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_value_has_another_place(what: str) -> None:
    changed = CHANGES[what]()
    assert changed.place != BASE.place
    assert changed != BASE


def test_equal_values_have_one_place_whatever_watches_them(tmp_path: Path) -> None:
    from rich.console import Console

    same = replace(BASE, title="for people", where="in a file")
    assert same == BASE
    assert hash(same) == hash(BASE)
    with (tmp_path / "log").open("w") as log, progress(Console(file=log)) as bars:
        assert replace(BASE, run=Run(progress=bars, why="measured")).place == BASE.place
    assert say("word", say("first"), log=tmp_path).place == BASE.place


def test_the_version_of_a_library_is_in_the_place(install: Install) -> None:
    def places() -> tuple[str, str]:
        return say("word").place, say("word", libraries=("timm",)).place

    before = places()
    install("timm", "0.0")
    assert [one == other for one, other in zip(before, places())] == [True, False]


def test_nothing_runs_before_it_is_executed(store: Store) -> None:
    made = say("b", say("a"))
    assert made.place.startswith("say-")
    assert not store.root.exists()
    done = execute([made], store)
    assert done[made].folder == store.root / made.place


# Execution


def test_what_is_missing_is_made_once_inputs_first(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = say("a", log=log)
    left, right = say("b", root, log=log), say("c", root, log=log)
    top = say("d", left, right, log=log)
    told: list[tuple[Stage, bool]] = []
    done = execute([top, left, top], store, tell=lambda stage, finished: told.append((stage, finished.cached)))
    assert said(done[top]) == "abacd"
    assert log.read_text() == "abcd"
    assert told == [(root, False), (left, False), (right, False), (top, False)]
    again = execute([top, root], store)
    assert all(finished.cached for finished in again.values())
    assert log.read_text() == "abcd"


def test_inputs_of_what_is_there_are_not_asked_for(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = say("a", log=log)
    top = say("b", root, log=log)
    folder = execute([top], store)[root].folder
    (folder / "said").unlink()
    assert set(execute([top], store)) == {top}
    assert log.read_text() == "ab"
    assert said(execute([root], store)[root]) == "a"
    assert log.read_text() == "aba"


def test_stages_that_are_kept_elsewhere_are_not_made(store: Store, tmp_path: Path) -> None:
    root = say("a")
    elsewhere = execute([root], Store(tmp_path / "other"))
    done = execute([say("b", root)], store, known=elsewhere)
    assert said(done[say("b", root)]) == "ab"
    assert not (store.root / root.place).exists()


def test_a_stage_is_computed_on_its_own_threads(store: Store) -> None:
    before = torch.get_num_threads()
    three = replace(say("a"), threads=3)
    assert (execute([three], store)[three].folder / "where").read_text().split()[1] == "3"
    assert torch.get_num_threads() == before


def test_what_was_interrupted_goes_on(store: Store, tmp_path: Path) -> None:
    stop = tmp_path / "stop.now"
    stop.touch()
    count = Stage(Count(stop=stop), Run())
    with pytest.raises(KeyboardInterrupt):
        execute([count], store)
    assert store.find(count.place) is None
    stop.rename(stop.with_suffix(".gone"))
    done = execute([count], store)[count]
    assert (done.folder / "began at").read_text() == "7"


def test_an_error_says_where_its_stage_was_asked_for(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="no") as caught:
        execute([Stage(Act(act="fail", marks=tmp_path), Run(), where="defense[0]")], store)
    assert caught.value.where == "defense[0]: here"


# In several processes


def leave_mark() -> None:
    os.environ["SETTLED"] = "yes"


@pytest.mark.slow
def test_two_chains_run_side_by_side_in_settled_processes_of_one_thread(store: Store, tmp_path: Path) -> None:
    graph = chains(2, 3)
    told: list[Stage] = []
    done = execute(graph, store, executor=Workers(2, leave_mark), tell=lambda stage, _: told.append(stage))
    assert [said(done[stage]) for stage in graph] == ["00", "0001", "000102", "10", "1011", "101112"]
    assert sorted(stage.place for stage in told) == sorted(stage.place for stage in graph)
    assert all(told.index(needed) < told.index(stage) for stage in graph for needed in stage.inputs)
    where = [(done[stage].folder / "where").read_text().split() for stage in graph]
    assert str(os.getpid()) not in {process for process, *_ in where}
    assert {tuple(rest) for _, *rest in where} == {("1", "yes")}
    here = execute(graph, Store(tmp_path / "here"))
    assert [said(here[stage]) for stage in graph] == [said(done[stage]) for stage in graph]


@pytest.mark.slow
def test_the_first_error_ends_all_work_at_once(store: Store, tmp_path: Path) -> None:
    acts = ["fail", *(f"wait{number}" for number in range(5))]
    started = time.monotonic()
    with pytest.raises(SapperError, match="here"):
        execute([Stage(Act(act=act, marks=tmp_path), Run(), threads=1) for act in acts], store, executor=Workers(2))
    assert time.monotonic() - started < 50
    assert not list(tmp_path.glob("ended-*"))
    assert not (tmp_path / "began-wait4").exists()


@pytest.mark.slow
def test_a_killed_process_is_one_clear_error_and_finished_stages_are_kept(store: Store, tmp_path: Path) -> None:
    first = say("a")
    dying = Stage(Act(act="die", marks=tmp_path), Run(), (first,), threads=1)
    with pytest.raises(SapperError, match="a worker ended without a word") as caught:
        execute([dying], store, executor=Workers(1))
    assert "--jobs" in str(caught.value.remedy)
    assert store.find(first.place) is not None


@pytest.mark.slow
def test_an_interrupt_ends_all_work_at_once(store: Store, tmp_path: Path) -> None:
    def interrupt(_stage: Stage, _finished: Finished) -> None:
        while not (tmp_path / "began-wait").exists():
            time.sleep(0.1)
        raise KeyboardInterrupt

    waiting = Stage(Act(act="wait", marks=tmp_path), Run(progress=Silent()), threads=1)
    with pytest.raises(KeyboardInterrupt):
        execute([waiting, say("a")], store, executor=Workers(2), tell=interrupt)
    assert not (tmp_path / "ended-wait").exists()
