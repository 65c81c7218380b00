"""Runs with different seeds, put together: what one run with all seeds would have told."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sapper.engine.store import Store
from sapper.errors import SapperError
from sapper.experiment.merging import merged
from sapper.experiment.results import Results, read_results, write_results
from sapper.report.merging import merge
from tests.micro import experiment, perform, write_data

DEFENSES = """
[[defense]]
method = "decree"
epochs = 2
images = 16
restarts = 1

[[defense]]
method = "neural_cleanse"
steps = 4
minibatches = 1
batch = 16
subjects = 2
train_images = 40
tasks = ["balls"]
"""
FLEET = """
[[defense]]
method = "mntd_encoder"
shadows = 1
validation = 1
share = 0.5
meta_classifiers = 2
queries = 2
epochs = 1
pretraining = { epochs = 1 }
"""
SHORT = ("pretraining.epochs=1", "attack.epochs=1", "head.0.epochs=3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Results]:
    """Runs with the seeds 1, with 0, and with both, in folders of these names. The first two are to be put together."""
    base = tmp_path_factory.mktemp("merging")
    data, store, made = write_data(base / "data"), Store(base / "store"), {}
    for name, seeds in (("one", "[1]"), ("zero", "[0]"), ("both", "[0, 1]")):
        scenario = experiment(data, *SHORT, f"seeds={seeds}", extra=DEFENSES)
        made[base / name] = perform(scenario, base / name, store=store)
        write_results(made[base / name], base / name)
    return made


@pytest.fixture(scope="module")
def together(runs: dict[Path, Results]) -> tuple[Results, Results]:
    """One run with both seeds, and two put together."""
    one, zero, both = runs
    return runs[both], merged({one: runs[one], zero: runs[zero]}, both.parent / "new")


def told(results: Results) -> list[str]:
    """Its records without times."""
    plain = [asdict(replace(each, seconds=None)) for each in results.records if each.metric != "attack_seconds"]
    return sorted(json.dumps(each, sort_keys=True) for each in plain)


def test_they_tell_what_one_run_with_all_seeds_tells(together: tuple[Results, Results]) -> None:
    both, new = together
    assert told(new) == told(both)
    pooled = [each for each in new.records if each.defense == "decree" and each.metric == "AUC"]
    assert [(each.seed, each.n) for each in pooled] == [(None, 4)]
    assert new.scenario == both.scenario
    for field in ("subjects", "references", "guarantees", "left_out", "datasets"):
        assert set(map(str, getattr(new, field))) == set(map(str, getattr(both, field)))
    for field in ("curves", "maps", "audits", "rocs"):
        assert len(getattr(new, field)) == len(getattr(both, field))
    assert new.pictures == both.pictures


@pytest.mark.slow  # fleets are trained by processes that load torch
def test_what_learned_anew_in_each_run_stays_by_itself(tmp_path: Path) -> None:
    data, made = write_data(tmp_path / "data"), {}
    for seed in (0, 1):
        scenario = experiment(data, *SHORT, f"seeds=[{seed}]", extra=FLEET)
        made[tmp_path / str(seed)] = perform(scenario, tmp_path / str(seed), store=Store(tmp_path / "store"))
    new = merged(made, tmp_path / "new")
    learned = [each for each in new.records if each.defense == "mntd_encoder"]
    assert {each.condition["seeds"] for each in learned} == {"0", "1"}
    assert {each.condition["seeds"]: each.n for each in learned if each.metric == "AUC"} == {"0": 2, "1": 2}


def test_networks_stay_where_they_are(runs: dict[Path, Results], together: tuple[Results, Results]) -> None:
    out = next(iter(runs)).parent / "new"
    assert together[1].artifacts
    for artifact in together[1].artifacts:
        assert Path(os.path.normpath(out / artifact.path)).is_file()


def test_the_folder_has_results_and_a_report(runs: dict[Path, Results], tmp_path: Path) -> None:
    one, zero, _ = runs
    new = merge([one, zero / "results.json"], tmp_path / "new")
    assert read_results(tmp_path / "new") == new
    assert "micro" in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_other_machines_are_told(runs: dict[Path, Results]) -> None:
    one, zero, _ = runs
    elsewhere = replace(runs[one], environment=runs[one].environment | {"torch": "1.0"})
    new = merged({one: elsewhere, zero: runs[zero]}, one.parent / "new")
    assert new.environment["torch"] == f"{runs[zero].environment['torch']} / 1.0"
    assert any("differ in torch" in flag for flag in new.flags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "differs from that of .* in 'name'"),
        ({"seeds": [2, 0]}, "seed 0 is in .*, too"),
        ({"seeds": []}, "not a list of numbers"),
        ({"seeds": 1}, "not a list of numbers"),
        ({"seeds": ["1"]}, "not a list of numbers"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    runs: dict[Path, Results], change: dict[str, Any], message: str
) -> None:
    one, zero, _ = runs
    other = replace(runs[one], scenario=runs[one].scenario | change)
    with pytest.raises(SapperError, match=message):
        merged({zero: runs[zero], one: other}, one.parent / "new")


def test_one_run_is_too_few_and_none_is_written_over(runs: dict[Path, Results], tmp_path: Path) -> None:
    one, zero, _ = runs
    with pytest.raises(SapperError, match="one run"):
        merge([one], tmp_path / "new")
    with pytest.raises(SapperError, match="verdicts of all seeds"):
        merged({one: replace(runs[one], verdicts=()), zero: runs[zero]}, tmp_path / "new")
    with pytest.raises(SapperError, match="twice"):
        merge([one, one / "results.json"], tmp_path / "new")
    before = (zero / "results.json").read_bytes()
    with pytest.raises(SapperError, match="one of the runs"):
        merge([one, zero], zero)
    assert (zero / "results.json").read_bytes() == before
