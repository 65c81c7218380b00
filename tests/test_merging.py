"""Runs with different seeds or attacks, put together: what one run of them all would have told."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sapper.engine.store import Store
from sapper.errors import SapperError
from sapper.experiment.merging import merged
from sapper.experiment.results import Results, read_results, write_results
from sapper.report import markdown, render
from sapper.report.merging import merge
from sapper.report.sections import maps, other_measurements
from sapper.scenario.reading import Scenario
from tests.micro import PLAIN, experiment, perform, write_data
from tests.test_several_attacks import ATTACKS

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


def several(data: Path, *overrides: str, extra: str = "") -> Scenario:
    """A matrix of three attacks on one task of two."""
    defenses = DEFENSES.replace("subjects = 2\n", "")
    return experiment(data, *SHORT[::2], *overrides, text="matrix = true\n" + PLAIN, extra=ATTACKS + defenses + extra)


def told(results: Results) -> list[str]:
    """Its records without times."""
    plain = [asdict(replace(each, seconds=None)) for each in results.records if each.metric != "attack_seconds"]
    return sorted(json.dumps(each, sort_keys=True) for each in plain)


def as_a_set(items: Iterable[Any]) -> list[str]:
    plain = (asdict(item) if is_dataclass(item) else item for item in items)  # type: ignore[call-overload]
    return sorted(json.dumps(item, sort_keys=True) for item in plain)


def test_they_tell_what_one_run_with_all_seeds_tells(together: tuple[Results, Results]) -> None:
    both, new = together
    assert told(new) == told(both)
    pooled = [each for each in new.records if each.defense == "decree" and each.metric == "AUC"]
    assert [(each.seed, each.n) for each in pooled] == [(None, 4)]
    assert new.scenario == both.scenario
    for field in ("subjects", "references", "guarantees", "left_out", "datasets"):
        assert as_a_set(getattr(new, field)) == as_a_set(getattr(both, field))
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
    shown = other_measurements(new)
    assert shown is not None
    assert "seeds" in shown.columns


@pytest.mark.slow
def test_what_learned_for_one_attack_stays_as_it_is(tmp_path: Path) -> None:
    data, store, made = write_data(tmp_path / "data"), Store(tmp_path / "store"), {}
    for attack in ("badencoder", "strong"):
        limited = several(data, "seeds=[0, 1]", f"only={json.dumps([attack])}", extra=FLEET)
        made[tmp_path / attack] = perform(limited, tmp_path / attack, store=store)
    learned = [each for each in merged(made, tmp_path / "new").records if each.defense == "mntd_encoder"]
    assert {(each.attack, each.n) for each in learned if each.metric == "AUC"} == {("badencoder", 4), ("strong", 4)}
    assert not any("seeds" in each.condition for each in learned)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """A matrix of three attacks with the seeds 0 and 1: the whole, and by parts, by the names of their folders."""
    base = tmp_path_factory.mktemp("parts")
    data, store, made = write_data(base / "data"), Store(base / "store"), {}
    for name, only, seeds in PARTS:
        limits = [f"only={json.dumps(only)}"] if only else []
        made[name] = perform(several(data, f"seeds={seeds}", *limits), base / name, store=store)
        write_results(made[name], base / name)
    return {str(base / name): results for name, results in made.items()}


PARTS = [
    ("outer", ["badencoder", "badnets"], "[0, 1]"),
    ("last", ["strong"], "[1]"),
    ("next", ["strong"], "[0]"),
    ("whole", [], "[0, 1]"),
]


def spent(results: Results) -> float:
    """Seconds, but for detectors of encoders, whose stages bear a run's first seed."""
    return sum(each["seconds"] for each in results.timings if "decree" not in each["stage"])


def test_attacks_can_be_run_one_by_one(parts: dict[str, Results], tmp_path: Path) -> None:
    (outer, _), (last, _), (following, _), (_, whole) = parts.items()
    assert parts[last].scenario["only"] == ["strong"]
    assert {record.attack for record in parts[last].records} == {"strong", None}
    some = merge([last, outer], tmp_path / "some")
    assert "strong was not run with seed 0." in some.flags
    assert some.scenario["missing"] == {"strong": [0]}
    drawn = maps(some)
    assert drawn is not None
    assert (drawn.seeds, len(drawn.groups)) == ([0, 1], 3), "each attack's own first seed"
    assert "Of each target its first seed is shown: 0 or 1." in render(some)
    new = merge([following, tmp_path / "some"], tmp_path / "all")
    assert told(new) == told(whole)
    assert new.scenario == whole.scenario
    assert list(dict.fromkeys(each.attack for each in new.verdicts)) == ["badencoder", "strong", "badnets"]
    for field in ("flags", "subjects", "references", "left_out", "curves", "maps", "pictures", "rocs"):
        assert as_a_set(getattr(new, field)) == as_a_set(getattr(whole, field)), field
    uses = [{each["name"] + each["split"]: sorted(each["used for"]) for each in one.datasets} for one in (new, whole)]
    assert uses[0] == uses[1]
    assert {(each.subject, each.sha256) for each in new.artifacts} == {
        (each.subject, each.sha256) for each in whole.artifacts
    }
    assert spent(new) == pytest.approx(spent(whole))


def test_attacks_that_no_run_has_are_told(parts: dict[str, Results], tmp_path: Path) -> None:
    _, last, following, _ = parts
    alone = merge([last, following], tmp_path / "new")
    assert alone.scenario["only"] == ["strong"]
    assert "Not run, of the attacks of this scenario: badencoder, badnets." in alone.flags
    assert "strong: balls" in markdown.render(alone)


def test_an_attack_is_there_once(parts: dict[str, Results], tmp_path: Path) -> None:
    _, last, _, whole = parts
    with pytest.raises(SapperError, match=r"seed 1 of strong is in .*, too"):
        merge([whole, last], tmp_path / "new")
    nothing = replace(parts[last], scenario=parts[last].scenario | {"only": ["nobody"]})
    with pytest.raises(SapperError, match="none of the scenario's attacks"):
        merged({Path(whole): parts[whole], Path(last): nothing}, tmp_path / "new")


def test_a_number_of_no_attack_that_runs_do_not_agree_on_is_told_once(parts: dict[str, Results]) -> None:
    outer, last, *_ = parts
    records = tuple(replace(each, value=0.123) if each.attack is None else each for each in parts[last].records)
    elsewhere = replace(parts[last], records=records)
    new = merged({Path(outer): parts[outer], Path(last): elsewhere}, Path(outer).parent / "new")
    assert any("CA on boxes with seed 1; that of the first one is shown" in flag for flag in new.flags)
    assert [each for each in new.records if each.attack is None] == [
        each for each in parts[outer].records if each.attack is None
    ]
    assert "boxes" in render(new)


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
        ({"seeds": [2, 0]}, "seed 0 of badencoder is in .*, too"),
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
