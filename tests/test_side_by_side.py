"""Stages of a scenario in several processes: the same numbers, and each stage is told of once."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sapper.engine.executors import Workers
from sapper.experiment.results import Results
from sapper.running import Run, Silent
from sapper.scenario.reading import Scenario
from tests.micro import experiment, numbers, perform, write_data


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the command line has it for several processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Drawn(Silent):
    """Like bars on a terminal, it cannot travel to another process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


def run(scenario: Scenario, folder: Path, side_by_side: bool) -> tuple[Results, list[str]]:
    lines: list[str] = []
    lab = {"executor": Workers(2), "run": Run(progress=Drawn())}
    return perform(scenario, folder, **lab, side_by_side=side_by_side, tell=lines.append), lines


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(tmp_path: Path) -> None:
    scenario = experiment(write_data(tmp_path / "data"), "pretraining.epochs=1", "attack.epochs=1", "seeds=[0, 1]")
    alone, told = run(scenario, tmp_path / "alone", side_by_side=False)
    beside, told_beside = run(scenario, tmp_path / "beside", side_by_side=True)
    assert numbers(beside) == numbers(alone)
    assert beside.curves == alone.curves
    assert [replace(each, path="") for each in beside.artifacts] == [replace(each, path="") for each in alone.artifacts]

    def titles(lines: list[str]) -> list[str]:
        return sorted(line.rpartition(":")[0] for line in lines)

    assert titles(told_beside) == titles(told)
    assert len(set(titles(told))) == len(told)
