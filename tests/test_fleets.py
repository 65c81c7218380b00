"""Fleets in a scenario: pairs that are trained once, whatever their number, and what a detector makes of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sapper import encoders, tensors
from sapper.defenses.judge.mntd_encoder import MNTDEncoder
from sapper.engine.buckets import Bucket
from sapper.engine.executors import Workers
from sapper.errors import SapperError
from sapper.experiment.results import Results
from sapper.report import defenses, markdown, render
from sapper.running import Run
from sapper.scenario.reading import Scenario
from tests.micro import InterruptedAt, experiment, numbers, perform, write_data

pytestmark = pytest.mark.slow  # each waits for processes that load torch

DEFENSE = """
[[defense]]
method = "mntd_encoder"
shadows = 3
validation = 1
share = 0.5
sides = [2, 6]
meta_classifiers = 2
queries = 2
epochs = 1
pretraining = { epochs = 1, batch = 16 }
attack = { epochs = 1, batch = 16 }
"""
SHORT = ("pretraining.epochs=1", "attack.epochs=1", "head.0.epochs=2", "seeds=[0, 1]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    return perform(scenario(data), folder, executor=Workers(2)), folder


def scenario(data: Path, *overrides: str) -> Scenario:
    return experiment(data, *SHORT, *overrides, extra=DEFENSE)


def members(folder: Path) -> dict[str, bytes]:
    """The encoders of the fleet below a folder, by their stage and name."""
    files = folder.glob("**/fleet-*/*/encoder*.safetensors")
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


def test_every_encoder_of_every_seed_is_judged_once(done: tuple[Results, Path]) -> None:
    judged = [(v.seed, v.state, v.task, v.classifier) for v in done[0].verdicts]
    together = "balls + boxes"
    assert judged == [
        *((0, "clean", None, None), (1, "clean", None, None)),
        *((0, "attacked", together, None), (1, "attacked", together, None)),
    ]
    places = {
        (record.metric, record.condition.get("state"), record.condition.get("threshold"))
        for record in done[0].records
        if record.defense is not None
    }
    assert {("score", "clean", None), ("score", "attacked", None), ("AUC", None, None)} <= places
    assert {("detection_accuracy", None, None), ("scorer_accuracy", None, "own")} <= places
    ours = [record for record in done[0].records if record.defense == "mntd_encoder"]
    assert {record.seed for record in ours} == {None}
    (area,) = [record for record in ours if record.metric == "AUC"]
    assert area.n == 4
    assert area.low is not None


def test_a_fleet_has_pairs_that_differ_and_twins_that_say_so(done: tuple[Results, Path]) -> None:
    files = list(done[1].glob("store/fleet-*/*/encoder*.safetensors"))
    assert len(files) == 8
    cards = [encoders.load(file, Run()).card for file in files]
    assert sum(card.backdoored for card in cards) == 4
    assert all("BACKDOORED" in file.name for file, card in zip(files, cards) if card.backdoored)
    triggers = [str(card.origin["targets"][0]["trigger"]) for card in cards if card.backdoored]
    assert len(set(triggers)) > 1
    assert len(set(members(done[1]).values())) == 8
    assert {card.origin["images"]["n"] for card in cards if not card.backdoored} == {32}


def test_a_fleet_grows_and_its_first_members_stay(data: Path, done: tuple[Results, Path], tmp_path: Path) -> None:
    few = ("defense.0.shadows=1",)
    told: list[str] = []
    perform(scenario(data, *few), tmp_path, executor=Workers(0), tell=told.append)
    small, whole = members(tmp_path), members(done[1])
    assert len(small) == 4
    assert small.items() <= whole.items()
    seen = {file: file.stat().st_mtime_ns for file in tmp_path.glob("store/fleet-*/*/encoder*.safetensors")}
    again = perform(scenario(data), tmp_path, executor=Workers(0), tell=told.append)
    sizes = [line.split(": ")[1] for line in told if "a fleet of" in line]
    fewer, more = "a fleet of 2 + 2 encoders, trained on 32 images", "a fleet of 4 + 4 encoders, trained on 32 images"
    assert sizes == [fewer, f"{more}, 2 + 2 of them are there"]
    assert members(tmp_path) == whole
    assert all(file.stat().st_mtime_ns == time for file, time in seen.items())
    assert numbers(again) == numbers(done[0]), "the number of processes changes nothing"


def test_what_was_learned_is_kept_even_without_the_fleet(
    data: Path, done: tuple[Results, Path], tmp_path: Path
) -> None:
    shutil.copytree(done[1] / "store", tmp_path / "store")
    for fleet in (tmp_path / "store").glob("fleet-*"):
        shutil.rmtree(fleet)
    assert numbers(perform(scenario(data), tmp_path)) == numbers(done[0])
    assert not list((tmp_path / "store").glob("fleet-*"))
    first = perform(scenario(data, "defense.0.subjects=1"), tmp_path).verdicts
    assert [(v.seed, v.state) for v in first] == [(0, "clean"), (0, "attacked")]
    known = {(v.seed, v.state): v.score for v in done[0].verdicts}
    assert [v.score for v in first] == pytest.approx([known[0, "clean"], known[0, "attacked"]], abs=1e-5)


def test_a_fleet_in_a_folder_of_its_own_serves_two_scenarios(data: Path, tmp_path: Path) -> None:
    here = f"defense.0.fleet={tmp_path / 'fleet'}"
    quick = (here, "defense.0.shadows=1", "defense.0.validation=0", "seeds=[0]")
    perform(scenario(data, *quick), tmp_path / "one", executor=Workers(0))
    held = sorted(path.name for path in (tmp_path / "fleet").iterdir())
    perform(scenario(data, *quick, "head.0.epochs=3"), tmp_path / "two", executor=Workers(0))
    assert sorted(path.name for path in (tmp_path / "fleet").iterdir()) == held
    assert not list((tmp_path / "one" / "store").glob("fleet-*"))


def test_a_fleet_does_not_depend_on_the_defenses_name_or_the_scenarios_seeds(data: Path, tmp_path: Path) -> None:
    one = ("defense.0.shadows=1", "defense.0.validation=0", "defense.0.seed=7")
    here = (f"defense.0.fleet={tmp_path / 'fleet'}", *one)
    perform(scenario(data, *here, "seeds=[0]"), tmp_path / "one", executor=Workers(0))
    held = {path: path.stat().st_mtime_ns for path in (tmp_path / "fleet").glob("*/*.safetensors")}
    perform(scenario(data, *here, "seeds=[1]", "defense.0.name=other"), tmp_path / "two", executor=Workers(0))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "fleet").glob("*/*.safetensors")} == held


def test_the_fleet_of_a_bucket_is_there_for_every_machine(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = scenario(data, "defense.0.shadows=1", "defense.0.validation=0", "seeds=[0]")
    made = {}
    for machine in ("one", "two"):  # each has copies of its own
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        store = Bucket.at(f"file://{tmp_path / 'bucket'}")
        made[machine] = perform(quick, tmp_path / f"out-{machine}", store=store, executor=Workers(0))
        for learned in (tmp_path / "bucket").glob("fit-*"):
            shutil.rmtree(learned)
    (grown,) = [each for each in made["two"].timings if each["stage"].endswith("its fleet")]
    assert grown["cached"]
    assert numbers(made["two"]) == numbers(made["one"])


def test_the_stores_own_folder_is_no_place_for_a_fleet(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="the store's own folder"):
        perform(scenario(data, f"defense.0.fleet={tmp_path / 'store'}"), tmp_path)
    assert not (tmp_path / "store").exists()


def test_an_error_of_a_pair_says_where_it_is(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="diverged") as caught:
        perform(scenario(data, "defense.0.attack={ learning_rate = 1e30, epochs = 3 }"), tmp_path, executor=Workers(0))
    assert "defense[0]: pair 0 of the fleet" in str(caught.value.where)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("encoder.width=8", "other encoder"),
        ("defense.0.attack={ epochs = 2 }", "other attack"),
        ("defense.0.share=0.4", "other images"),
    ],
)
def test_a_fleet_of_another_scenario_is_refused_before_any_training(
    data: Path, tmp_path: Path, change: str, says: str
) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    (folder / "fleet.json").write_text(json.dumps({"encoder": "another"}))
    here = f"defense.0.fleet={folder}"
    with pytest.raises(SapperError, match="made from something else") as caught:
        perform(scenario(data, here), tmp_path / "out")
    assert "defense[0].fleet" in str(caught.value.where)
    assert caught.value.remedy
    assert not (tmp_path / "out" / "store").exists()
    (folder / "fleet.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        perform(scenario(data, here), tmp_path / "out", run=Run(progress=InterruptedAt("pre-training", 1)))
    before = (folder / "fleet.json").read_text()
    with pytest.raises(SapperError, match=says):
        perform(scenario(data, here, change), tmp_path / "out")
    assert (folder / "fleet.json").read_text() == before


@pytest.mark.parametrize("content", [None, "no JSON", "[1]"])
def test_a_folder_of_something_else_is_left_alone(data: Path, tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_text("x")
    if content is not None:
        (folder / "fleet.json").write_text(content)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(SapperError, match="no readable fleet") as caught:
        perform(scenario(data, f"defense.0.fleet={folder}"), tmp_path / "out")
    assert str(folder) in str(caught.value)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("defense.0.share=0.1", "defense[0].share"),
        ("defense.0.sides=[2, 16]", "defense[0].sides"),
    ],
)
def test_too_few_images_and_triggers_that_do_not_fit_are_refused(
    data: Path, tmp_path: Path, change: str, where: str
) -> None:
    with pytest.raises(SapperError) as caught:
        perform(scenario(data, change), tmp_path / "out")
    assert where in str(caught.value.where)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("defense.0.pretraining={ epochz = 1 }", "defense[0].pretraining.epochz"),
        ("defense.0.attack={ epochs = 0 }", "defense[0].attack.epochs"),
        ("defense.0.tasks=['nothing']", "defense[0].tasks[0]"),
        ("defense.0.shadows=0", "defense[0].shadows"),
        ("defense.0.pretraining={ view_size = 64 }", "defense[0].pretraining.view_size"),
        ("defense.0.train_images=3", "defense[0].train_images"),
    ],
)
def test_mistakes_in_the_section_are_told(data: Path, change: str, where: str) -> None:
    with pytest.raises(SapperError) as caught:
        scenario(data, change)
    assert where in str(caught.value.where)


def test_the_papers_six_are_a_preset(data: Path) -> None:
    plan = scenario(data, "defense.0.preset=badencoder-6").defenses[0]
    assert plan.section.subjects == 3  # type: ignore[union-attr]
    assert plan.method.parameters.shadows == 3, "what is said goes before a preset"


def test_the_report_and_the_tables_speak_of_encoders(done: tuple[Results, Path]) -> None:
    results = done[0]
    flagged = {kind: sum(v.flagged is True for v in results.verdicts if v.state == kind) for kind in ("clean",)}
    told = " ".join(defenses.sentences(results))
    assert f"mntd_encoder on encoders: Flags {flagged['clean']} of 2 clean encoders and" in told
    page = render(results)
    assert "mntd_encoder on encoders" in page
    assert 'id="other"' not in page
    assert "| mntd_encoder on encoders |" in markdown.render(results)


def test_scores_do_not_depend_on_marks_and_names(done: tuple[Results, Path]) -> None:
    file = next(done[1].glob("store/fit-*/learned.safetensors"))
    judge = MNTDEncoder().restore(tensors.load(file))
    twin = encoders.load(next(done[1].glob("encoders/*BACKDOORED*.safetensors")), Run())
    marked = judge.judge([twin], Run())[0].score
    assert judge.judge([twin.marked(backdoored=False, origin={})], Run())[0].score == marked
    assert torch.isfinite(torch.tensor(marked))
