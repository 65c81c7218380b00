"""Detectors that ask for ordinary images only, run from a scenario on the encoders of all seeds."""

from pathlib import Path

import pytest

from sapper.experiment.results import Results
from sapper.report import render
from sapper.scenario.reading import Scenario
from tests.micro import experiment, perform, write_data

SHORT = ("seeds=[0, 1]", "pretraining.epochs=1", "attack.epochs=1")
DEFENSES = """
[[defense]]
method = "decree"
epochs = 2
images = 32
batch = 16
success = 0.3
restarts = 2

[[defense]]
method = "multi_prior"
name = "patches"
patches = [[0.25, 0.0, 1.0]]
blends = []
filters = [[0.2, 0.0, 1.0]]
restarts = 2
rounds = [[0, 4, 1], [2, 8, 2]]
images = 24
held_out = 8
subjects = 1
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def scenario(data: Path, *overrides: str) -> Scenario:
    return experiment(data, *SHORT, *overrides, extra=DEFENSES)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("examined")
    return perform(scenario(data), folder), folder


def test_every_encoder_of_every_seed_is_examined_once(done: tuple[Results, Path]) -> None:
    together = "balls + boxes"
    judged = [(v.defense, v.seed, v.state, v.task, v.classifier) for v in done[0].verdicts]
    clean = [("decree", seed, "clean", None, None) for seed in (0, 1)]
    attacked = [("decree", seed, "attacked", together, None) for seed in (0, 1)]
    of_one = [("patches", 0, "clean", None, None), ("patches", 0, "attacked", together, None)]
    assert judged == [*clean, *attacked, *of_one]


def test_records_and_evidence_are_there(done: tuple[Results, Path]) -> None:
    results = done[0]
    for defense, n in (("decree", 4), ("patches", 2)):
        found = {r.metric: r for r in results.records if r.defense == defense and "state" not in r.condition}
        assert found["detection_accuracy"].n == n
        assert 0 <= found["AUC"].value <= 1
    for verdict in results.verdicts:
        assert verdict.seconds > 0
        if verdict.defense == "decree":
            assert len(verdict.evidence["PL1s"]) == 2
            assert verdict.score == pytest.approx(1 - verdict.evidence["PL1"])
        else:
            assert verdict.evidence["priors"].keys() == {"patch 4×4", "filter 0.2"}
        assert len(verdict.triggers) == (0 if verdict.evidence.get("prior") == "filter 0.2" else 1)
    page = render(results)
    assert "decree on encoders" in page
    assert "patches on encoders" in page


def test_a_finished_examination_is_not_repeated(done: tuple[Results, Path], data: Path) -> None:
    first, folder = done
    again = perform(scenario(data), folder)
    assert [(v.score, v.seconds) for v in again.verdicts] == [(v.score, v.seconds) for v in first.verdicts]
    other = perform(scenario(data, "defense.0.epochs=1"), folder)
    changed = [a.seconds != b.seconds for a, b in zip(first.verdicts, other.verdicts)]
    assert changed == [True] * 4 + [False] * 2
