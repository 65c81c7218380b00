"""Sifts in scenarios: a poisoned set is sifted, trained on again, and measured; what cannot be is told."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sapper import encoders, tensors
from sapper.cli.experiments import print_results
from sapper.defenses.measures import SIFTED
from sapper.defenses.sift.spectral_signatures import SpectralSignatures
from sapper.downstream import MLP, Classifier, build
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.experiment.results import Results
from sapper.experiment.sifting import read_marked
from sapper.experiment.works import encoder_file, read_poisoned
from sapper.methods import Checked
from sapper.metrics import auc
from sapper.report import markdown, render, repairs, sifts
from sapper.report.sections import other_measurements
from sapper.running import Run
from sapper.samples import Samples
from sapper.scenario.reading import Scenario
from sapper.verdicts import Scores
from tests.micro import PLAIN, experiment, numbers, perform, write_data
from tests.program import Install

SHORT = ("pretraining.epochs=1",)
TARGET = """
[[target]]
task = "balls"
class = "red"
trigger = { size = 4, position = "top-left" }
"""
BADNETS = f'\n[attack]\nmethod = "badnets"\nrate = 0.1\n{TARGET}'
SCATTERED = TARGET.replace('size = 4, position = "top-left"', 'kind = "random_patch", size = 4')
OF_ENCODER = f'\n[attack]\nmethod = "ssl_backdoor"\nrate = 0.1\n{SCATTERED}'
NO_POISON = f'\n[attack]\nmethod = "{{}}"\n{TARGET.replace("{", "{{").replace("}", "}}")}'
SPECTRAL = '\n[[defense]]\nmethod = "spectral_signatures"\nepsilon = 0.2\n'


@dataclass(frozen=True, kw_only=True)
class Corner(Checked):
    """Removes rows whose upper left corner is white, and says whether it saw labels."""

    kind: ClassVar[str] = "sift"
    needs: ClassVar[frozenset[str]] = frozenset()
    measures: ClassVar[Any] = SIFTED
    version: ClassVar[int] = 1
    source: ClassVar[str] = "tests"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, rows: int, classes: int) -> None: ...

    def __call__(self, samples: Samples, model: Encoder | Classifier, run: Run) -> Scores:
        white = (samples.batch()[:, :, 1:5, 1:5] == 1).flatten(1).all(1)
        return Scores(values=white.float() + 2.0 * (samples.labels is None), threshold=None, flagged=white)


@pytest.fixture(autouse=True)
def _plugged_in(install: Install) -> None:
    install("sifts", points={"sapper.defenses": {"corner": "tests.test_sifts_in_scenarios:Corner"}})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def scenario(data: Path, extra: str, *overrides: str) -> Scenario:
    return experiment(data, *SHORT, *overrides, text=PLAIN, extra=extra)


def of(results: Results, defense: str | None, **where: Any) -> dict[tuple[Any, ...], float]:
    return {
        (r.metric, *r.condition.values()): r.value
        for r in results.records
        if r.defense == defense and all(getattr(r, key) == value for key, value in where.items())
    }


def folders(store: Path, name: str) -> list[Path]:
    return sorted(each for each in store.glob(f"{name}-*") if each.is_dir())


def test_a_tasks_training_set_is_sifted_trained_on_again_and_measured(data: Path, tmp_path: Path) -> None:
    results = perform(scenario(data, BADNETS + SPECTRAL + '\n[[defense]]\nmethod = "corner"\n'), tmp_path)
    models = {model.id: model for model in results.subjects}
    repaired = {model.repair: model for model in models.values() if model.state == "repaired"}
    assert set(repaired) == {"spectral_signatures", "corner"}
    assert {(model.of, models[str(model.parent)].state) for model in repaired.values()} == {("task", "attacked")}
    for name, model in repaired.items():
        for head in ("mlp", "linear"):
            rates = of(results, name, head=head)
            assert set(rates) == {(metric,) for metric in ("BA", "ASR", "ASR_strict", "lift")}
        found = of(results, name, head=None)
        assert set(found) == {("AUC",), ("removed", "poison"), ("removed", "clean"), ("repair_seconds",)}
        assert {r.subject for r in results.records if r.defense == name} == {model.id}
    exact = of(results, "corner", head=None)
    assert (exact["AUC",], exact["removed", "poison"], exact["removed", "clean"]) == (1, 1, 0)
    assert [artifact.state for artifact in results.artifacts] == ["clean"]


def test_the_classifier_that_is_measured_is_the_one_that_is_sifted_by(data: Path, tmp_path: Path) -> None:
    results = perform(scenario(data, BADNETS + SPECTRAL), tmp_path)
    store, run = tmp_path / "store", Run(seed=0)
    (sifted,), (poison,), (first,) = (folders(store, name) for name in ("sift", "poison", "pretraining"))
    samples, rows = read_poisoned(poison)
    encoder = encoders.load(encoder_file(first), run)
    head = MLP(epochs=10, learning_rate=0.01, hidden=(16, 8))
    classifier = build(head, encoder, samples, run.child("head mlp"))
    expected = SpectralSignatures(epsilon=0.2)(samples, classifier, run.child("defense spectral_signatures"))
    left = tensors.load(sifted / "scores.safetensors")
    assert torch.allclose(left["values"], expected.values, atol=1e-6)
    assert torch.equal(left["flagged"], expected.flagged)
    kept, still = read_poisoned(sifted)
    assert kept.digest == samples.take(~expected.flagged).digest
    was = torch.zeros(len(samples), dtype=torch.bool)
    was[rows] = True
    assert torch.equal(still, was[~expected.flagged].nonzero().squeeze(1))
    assert kept.name == "balls-POISONED-sifted"
    assert "Sifted by spectral_signatures" in kept.provenance
    said = json.loads((sifted / "poison.json").read_text())
    assert said["poison"]["method"] == "badnets"
    assert said["sifted"]["removed"] == int(expected.flagged.sum())
    marked = read_marked(sifted, poison)
    assert torch.equal(marked.attacked, was)
    assert of(results, "spectral_signatures")["AUC",] == auc(expected.values[was], expected.values[~was])


def test_a_pre_training_set_is_sifted_without_labels_and_pre_trained_on_again(data: Path, tmp_path: Path) -> None:
    corner = '\n[[defense]]\nmethod = "density_outliers"\nneighbors = 4\n\n[[defense]]\nmethod = "corner"\n'
    results = perform(scenario(data, OF_ENCODER + corner, f"pretraining.dataset={data}/balls"), tmp_path)
    store = tmp_path / "store"
    (poison,) = folders(store, "poison")
    samples, rows = read_poisoned(poison)
    cards = {}
    for model in (model for model in results.subjects if model.state == "repaired"):
        assert model.of == "encoder"
        (artifact,) = [each for each in results.artifacts if each.subject == model.id]
        cards[model.repair] = encoders.load(tmp_path / artifact.path, Run()).card
        assert ("BA",) in of(results, model.repair, head="mlp")
        assert ("cosine_kept",) not in of(results, model.repair)
    assert set(cards) == {"density_outliers", "corner"}
    for folder in folders(store, "sift"):
        kept, _ = read_poisoned(folder)
        name = "corner" if "corner" in kept.provenance else "density_outliers"
        assert cards[name].origin["images"]["sha256"] == kept.digest
        assert cards[name].backdoored, "what came of poisoned data stays marked"
        assert cards[name].origin["sifted"]["method"] == name
        values = tensors.load(folder / "scores.safetensors")["values"]
        assert name == "density_outliers" or bool((values >= 2).all()), "labels were at hand"
    assert len(samples) == 60
    assert len(rows) == 6


def test_labels_are_at_hand_where_the_pre_training_learns_from_them(data: Path, tmp_path: Path) -> None:
    extra = OF_ENCODER + SPECTRAL
    one = scenario(data, extra, f"pretraining.dataset={data}/balls", "pretraining.method=supervised")
    assert ("AUC",) in of(perform(one, tmp_path), "spectral_signatures")


def test_a_classifier_that_was_tuned_on_poison_is_tuned_once(data: Path, tmp_path: Path) -> None:
    tuned = '\n[[attack.instead.head]]\nmethod = "finetune"\nepochs = 1\n'
    results = perform(scenario(data, BADNETS.replace(TARGET, tuned + TARGET) + SPECTRAL), tmp_path)
    assert ("lift",) in of(results, "spectral_signatures")
    assert len(folders(tmp_path / "store", "tuning")) == 4, "both tasks clean, one on poison, one on what was left"


@pytest.mark.slow
def test_the_report_tells_what_was_removed_and_what_training_again_gives(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = perform(scenario(data, BADNETS + SPECTRAL), tmp_path)
    plain = perform(scenario(data, BADNETS), tmp_path / "plain")
    kept = [record for record in numbers(results) if record.defense is None]
    assert kept == numbers(plain), "a sift changes nothing else"
    table, found = sifts.table(results), of(results, "spectral_signatures", head=None)
    assert table is not None
    (row,) = [[cell.text for cell in row] for row in table.rows]
    shares = [found["AUC",], found["removed", "poison"], found["removed", "clean"]]
    assert row == ["balls", "spectral_signatures", *(f"{100 * share:.1f}" for share in shares)]
    again = repairs.table(results)
    assert again is not None
    assert [[cell.text for cell in each][1] for each in again.rows] == ["–", "spectral_signatures"]
    page, text = render(results), markdown.render(results)
    assert 'id="sifts"' in page
    others = other_measurements(results)
    assert others is not None, "of heads that are not primary"
    assert not {"AUC", "removed", "repair_seconds"} & {cell.text for row in others.rows for cell in row}
    assert "| balls | spectral_signatures |" in text
    assert sifts.table(plain) is None
    print_results(results)
    assert "Sifted rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message", "where"),
    [
        (NO_POISON.format("badencoder") + SPECTRAL, "no data are poisoned", "method"),
        (NO_POISON.format("trojannn") + SPECTRAL, "no data are poisoned", "method"),
        (OF_ENCODER + SPECTRAL, "needs labels, and these rows have none", "clusters"),
        (BADNETS + SPECTRAL.replace("0.2", "1.0"), "less than 1", "epsilon"),
        (BADNETS + SPECTRAL + "tasks = ['cups']\n", "no task with a target", "tasks"),
    ],
)
def test_a_sift_that_cannot_be_is_told_when_the_scenario_is_read(
    data: Path, extra: str, message: str, where: str
) -> None:
    with pytest.raises(SapperError, match=message) as caught:
        scenario(data, extra)
    assert f"defense[0].{where}" in str(caught.value.where)


@pytest.mark.parametrize(
    ("extra", "message", "where"),
    [
        (OF_ENCODER + SPECTRAL + "clusters = 99\n", "60 rows cannot be in 99 clusters", "clusters"),
        (BADNETS + SPECTRAL + "clusters = 99\n", "60 rows cannot be in 99 clusters", "clusters"),
        (BADNETS + '\n[[defense]]\nmethod = "density_outliers"\nneighbors = 60\n', "do not have 60", "neighbors"),
    ],
)
def test_what_a_sift_cannot_work_with_is_told_before_the_training(
    data: Path, tmp_path: Path, extra: str, message: str, where: str
) -> None:
    told: list[str] = []
    with pytest.raises(SapperError, match=message) as caught:
        perform(scenario(data, extra, f"pretraining.dataset={data}/balls"), tmp_path, tell=told.append)
    assert str(caught.value.where).endswith(f"defense[0].{where}")
    assert told == []


def test_who_removes_a_whole_class_leaves_no_task(data: Path, tmp_path: Path) -> None:
    most = '\n[[defense]]\nmethod = "density_outliers"\nneighbors = 4\nshare = 0.99\n'
    with pytest.raises(SapperError) as caught:
        perform(scenario(data, BADNETS + most), tmp_path)
    assert "what density_outliers leaves" in str(caught.value.where)
