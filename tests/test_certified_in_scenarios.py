"""Certified defenses in a scenario, by patches and within a radius: what is measured, what the report says of them."""

from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from sapper.errors import SapperError
from sapper.experiment.results import Results, read_results, write_results
from sapper.report import certified, markdown, render
from tests.micro import experiment, perform, write_data
from tests.test_defending import SHORT, records

DEFENSES = """
[[defense]]
method = "derandomized_smoothing"
patch = 3
patches = [2]
test_images = 12
tasks = ["balls"]

[[defense]]
method = "ibp"
patch = 2
patches = [2]
network = "mlp"
places = 2
epochs = 1
batch = 16
test_images = 12
tasks = ["balls"]

[[defense]]
method = "randomized_smoothing"
draws = 20
sigma = 0.05
radii = [0.05, 0.01]
test_images = 12
tasks = ["balls"]

[[defense]]
method = "rab"
models = 6
alpha = 0.3
test_images = 12
tasks = ["balls"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return perform(experiment(data, *SHORT, extra=DEFENSES), tmp_path_factory.mktemp("certified"))


def test_each_size_of_its_threat_is_measured(results: Results) -> None:
    sizes = {
        "derandomized_smoothing": [{"patch": 2}],
        "ibp": [{"patch": 2}],
        "randomized_smoothing": [{"radius": 0.01}, {"radius": 0.05}],
        "rab": [{"radius": radius} for radius in (0.05, 0.1, 0.2, 0.5, 1.0)],
    }
    for defense, conditions in sizes.items():
        for state in ("clean", "attacked"):
            (accuracy,) = records(results, "defended_accuracy", defense=defense, condition={"state": state})
            assert accuracy.n == 12
            assert len(records(results, "defended_ASR_strict", defense=defense, condition={"state": state})) == 1
            found = [
                r for r in records(results, "certified_accuracy", defense=defense) if r.condition["state"] == state
            ]
            assert [r.condition for r in found] == [{"state": state} | condition for condition in conditions]
            assert all(r.value <= accuracy.value for r in found)


def test_what_is_guaranteed_and_what_not_is_in_the_results_and_in_the_report(results: Results, tmp_path: Path) -> None:
    told = {each.defense: each for each in results.guarantees}
    assert [(name, each.size_is) for name, each in told.items()] == [
        ("derandomized_smoothing", "patch"),
        ("ibp", "patch"),
        ("randomized_smoothing", "radius"),
        ("rab", "radius"),
    ]
    assert "poison of the encoder" in told["rab"].covers_not
    assert "70 %" in told["rab"].threat
    assert "the encoder is not used" in told["ibp"].covers_not
    page, text = " ".join(unescape(render(results)).split()), markdown.render(results)
    for each in told.values():
        sentence = f"{each.defense}: certified against {each.threat}. Not covered: {each.covers_not}."
        assert sentence in page
        assert sentence in text
    assert page.count("against the radius</small>") == page.count("against the patch’s side in pixels</small>") == 2
    assert "certified radius 0.05" in text
    assert "certified 2×2" in text
    assert any("% for radius 0.01, " in sentence for sentence in certified.sentences(results))
    write_results(results, tmp_path)
    assert read_results(tmp_path).guarantees == results.guarantees


def test_results_without_guarantees_are_read_and_shown(results: Results, tmp_path: Path) -> None:
    write_results(replace(results, guarantees=()), tmp_path)
    old = (tmp_path / "results.json").read_text().replace(' "guarantees": [],\n', "")
    assert "guarantees" not in old
    (tmp_path / "results.json").write_text(old)
    assert "Not covered" not in render(read_results(tmp_path))


def test_too_few_models_for_the_tasks_classes_are_told_before_any_training(data: Path, tmp_path: Path) -> None:
    few = experiment(data, *SHORT, extra=DEFENSES.replace("models = 6\nalpha = 0.3", "models = 14"))
    with pytest.raises(SapperError, match="14 models can certify nothing about 3 classes") as caught:
        perform(few, tmp_path / "out")
    assert str(caught.value.where).endswith("micro.toml: defense[3].models")
    assert not (tmp_path / "out" / "store").exists()


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ("radii = [0.05, 0.01]", "patches = [2]", "defense[2].patches"),
        ("radii = [0.05, 0.01]", "radii = []", "defense[2].radii"),
        ("radii = [0.05, 0.01]", "radii = [0.0]", "defense[2].radii"),
        ("radii = [0.05, 0.01]", 'radii = [1.5]\nnoise = "ablation"', "defense[2].radii"),
        ("sigma = 0.05", "sigma = 0.0", "defense[2].sigma"),
        ("sigma = 0.05", "alpha = 1.0", "defense[2].alpha"),
        ('network = "mlp"', "radii = [0.1]", "defense[1].radii"),
        ("patch = 2\npatches = [2]", "patch = 16\npatches = [2]", "defense[1].patch"),
        ("patch = 3", "patch = 16", "defense[0].patch"),
        ("patch = 3", "side = 16", "defense[0].side"),
    ],
)
def test_mistakes_are_told_with_file_key_and_remedy(data: Path, change: str, key: str, says: str) -> None:
    assert DEFENSES.count(change) == 1
    with pytest.raises(SapperError) as caught:
        experiment(data, *SHORT, extra=DEFENSES.replace(change, key))
    assert f"micro.toml: {says}" in str(caught.value.where)
    assert caught.value.remedy
