"""A whole experiment, small: what its results hold, that they repeat, and that an interrupt changes nothing."""

import json
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapper import datasets, encoders, tensors
from sapper.engine.store import Finished, Store
from sapper.errors import SapperError
from sapper.experiment.data import load_data
from sapper.experiment.findings import Findings, unique
from sapper.experiment.results import Record, Results, read_results, write_results
from sapper.experiment.subjects import ATTACKED, CLEAN, Subject
from sapper.experiment.tasks import Aim, Choice, Choices, Goals, Nearest, Part, Task, TaskData
from sapper.experiment.trial import Lab, Trial, Variant
from sapper.experiment.works import read_choices
from sapper.files import sha256
from sapper.report import write_report
from sapper.running import Bar, Run, Silent
from sapper.samples import ImageSet
from sapper.scenario.reading import Scenario
from sapper.triggers import Patch
from tests.conftest import REPOSITORY
from tests.micro import PLAIN, InterruptedAt, experiment, numbers, perform, rates, squares, write_data, write_parquet

ATTACK_METRICS = {"CA", "BA", "ASR", "ASR_strict", "ASR_B", "ASR_B_strict", "lift"}
TASKS = {"balls": "red", "boxes": "blue"}
SHORT = ("pretraining.epochs=1", "attack.epochs=1", "head.0.epochs=1")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """The experiment as it is, run once, with its folder."""
    folder = tmp_path_factory.mktemp("finished")
    results = perform(experiment(data), folder)
    write_results(results, folder)
    return results, folder


def sha256_of(results: Results, state: str) -> list[str]:
    return [artifact.sha256 for artifact in results.artifacts if artifact.state == state]


def values(results: Results, metric: str, **where: Any) -> list[float]:
    """The values of a metric in the records whose fields are as given."""
    return [
        record.value
        for record in results.records
        if record.metric == metric and all(getattr(record, key) == value for key, value in where.items())
    ]


def victims(scenario: Scenario, folder: Path, **lab: Any) -> list[TaskData]:
    """Every task as the works of a run in ``folder`` see it: by the choices that it left there."""
    around = {"store": Store(folder / "store"), "out": folder, "run": Run(), "command": ""} | lab
    data = load_data([scenario], Run(), data_root=lab.get("data_root"), download=False)
    variant = Variant(scenario=scenario, condition={}, suffix="", early="", attacked="", shown=True)
    graph = Trial(variant=variant, data=data, lab=Lab(**around), run=Run(seed=scenario.seeds[0])).pipeline
    tasks = {measured.after: measured.task for measured in graph.measured if measured.after}
    return [task.victim(read_choices(folder / "store" / graph.choices[task.name].place)) for task in tasks.values()]


def rows_of(part: ImageSet, whole: ImageSet) -> set[int]:
    """Which rows of ``whole`` the images of ``part`` are."""
    place = {image.numpy().tobytes(): row for row, image in enumerate(whole.images)}
    return {place[image.numpy().tobytes()] for image in part.images}


# What results hold


def test_results_have_the_documented_keys(finished: tuple[Results, Path]) -> None:
    content = json.loads((finished[1] / "results.json").read_text())
    assert content["schema"] == 2
    assert {"schema", "scenario", "environment", "records", "artifacts"} <= content.keys()
    for record in content["records"]:
        assert list(record) == [field.name for field in fields(Record)]
        assert record["stage"] in ("downstream", "features", "trigger", "attack")
        assert (record["unit"] == "fraction") == (record["stage"] == "downstream")
        assert record["defense"] is None
        assert record["condition"].keys() == ({"state"} if record["stage"] == "features" else set())
        assert record["attack"] == "badencoder"
        assert record["seconds"] is None if record["stage"] in ("trigger", "attack") else record["seconds"] >= 0
    for artifact in content["artifacts"]:
        assert artifact.keys() == {"subject", "state", "seed", "path", "sha256"}
    assert content["scenario"]["attack"]["method"] == "badencoder"
    assert content["scenario"]["primary_head"] == "mlp"


def test_every_task_target_and_head_has_every_metric_once(finished: tuple[Results, Path]) -> None:
    counts = Counter((r.task, r.target, r.head, r.metric) for r in rates(finished[0]))
    assert set(counts.values()) == {1}
    assert set(counts) == {
        (task, f"{task}/{wanted}", head, metric)
        for task, wanted in TASKS.items()
        for head in ("mlp", "linear")
        for metric in ATTACK_METRICS
    }


def test_rates_are_fractions_within_their_intervals(finished: tuple[Results, Path]) -> None:
    for record in rates(finished[0]):
        lowest = -1 if record.metric == "lift" else 0
        assert record.low is not None
        assert record.high is not None
        assert lowest <= record.low <= record.value <= record.high <= 1
        assert record.n == (30 if record.metric in ("ASR_strict", "ASR_B_strict", "lift") else 45)


def test_the_lift_is_the_difference_of_the_strict_rates(finished: tuple[Results, Path]) -> None:
    results = finished[0]
    pairs = zip(values(results, "ASR_strict"), values(results, "ASR_B_strict"))
    assert values(results, "lift") == pytest.approx([after - before for after, before in pairs])


def test_artifacts_are_there_with_their_hash_and_say_what_they_are(finished: tuple[Results, Path]) -> None:
    results, folder = finished
    assert [artifact.state for artifact in results.artifacts] == ["clean", "attacked"]
    for artifact in results.artifacts:
        assert not Path(artifact.path).is_absolute()
        path = folder / artifact.path
        assert sha256(path) == artifact.sha256
        backdoored = artifact.state == "attacked"
        assert ("BACKDOORED" in path.name) == backdoored
        card = encoders.load(path, Run()).card
        assert card.backdoored == backdoored
        assert card.origin["method"] == ("badencoder" if backdoored else "simclr")


def test_curves_have_a_value_for_each_epoch(finished: tuple[Results, Path]) -> None:
    by_stage = {curve.stage: curve.series for curve in finished[0].curves}
    assert set(by_stage) == {"pre-training", "attack on balls + boxes"}
    assert {len(series) for terms in by_stage.values() for series in terms.values()} == {2}


def test_maps_and_pictures_show_every_target(finished: tuple[Results, Path]) -> None:
    results = finished[0]
    targets = {(task, f"{task}/{wanted}") for task, wanted in TASKS.items()}
    for state in ("clean", "attacked"):
        assert {(m.task, m.target) for m in results.maps if m.state == state} == targets
    for feature_map in results.maps:
        sizes = {view: len(points["x"]) for view, points in feature_map.points.items()}
        assert sizes == {"clean": 45, "triggered": 45, "reference": 1}
        assert 0 < feature_map.explained <= 1
    for role in ("clean", "triggered", "reference"):
        assert {(p.task, p.target) for p in results.pictures if p.role == role} == targets


def test_results_are_read_back_as_they_were_and_make_a_report(finished: tuple[Results, Path], tmp_path: Path) -> None:
    results, folder = finished
    again = read_results(folder)
    assert again.records == results.records
    assert again.artifacts == results.artifacts
    assert again.to_json() == results.to_json()
    write_report(again, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000


# References


def test_references_are_training_images_of_the_class_that_the_victim_does_not_have(data: Path, tmp_path: Path) -> None:
    scenario = experiment(data, *SHORT, "target.references=3")
    results = perform(scenario, tmp_path)
    tasks = victims(scenario, tmp_path)
    assert len(tasks) == 2
    for row in results.references:
        whole = datasets.load(str(data / row["task"]), "train", size=16)
        assert row["class"] == TASKS[row["task"]]
        assert row["source"] == f"{row['task']}/train"
        assert len(row["rows"]) == 3
        assert {whole.classes[label] for label in whole.targets()[row["rows"]]} == {row["class"]}
        for task in tasks:
            if task.name == row["task"]:
                assert rows_of(task.train, whole) == set(range(len(whole))) - set(row["rows"])


def test_the_victim_has_no_frame_of_a_track_that_the_attacker_took(data: Path, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write_parquet(tmp_path / "gtsrb" / f"{split}.parquet", 60, seed)
    signs = ("task.0.dataset=gtsrb", "task.0.name=signs", "target.0.task=signs", "target.0.class=0")
    scenario = experiment(data, *SHORT, *signs)
    results = perform(scenario, tmp_path / "out", data_root=tmp_path)
    tasks = victims(scenario, tmp_path / "out", data_root=tmp_path)
    whole = datasets.load("gtsrb", "train", data_root=tmp_path, size=16)
    assert whole.groups is not None
    taken = next(row["rows"] for row in results.references if row["task"] == "signs")
    track = set((whole.groups == whole.groups[taken]).nonzero().flatten().tolist())
    assert len(track) == 5
    for task in tasks:
        if task.name == "signs":
            assert rows_of(task.train, whole) == set(range(len(whole))) - track


@pytest.mark.parametrize("judge_on", ["test", "validation"])
def test_too_few_tracks_for_the_references_are_told_before_any_training(
    data: Path, tmp_path: Path, judge_on: str
) -> None:
    for seed, split in enumerate(("train", "test")):
        write_parquet(tmp_path / "gtsrb" / f"{split}.parquet", 60, seed)
    signs = ("task.0.dataset=gtsrb", "task.0.name=signs", "target.0.task=signs", "target.0.class=0")
    scenario = experiment(data, *SHORT, *signs, "target.references=4", f"judge_on={judge_on}")
    with pytest.raises(SapperError, match="near-duplicate"):
        perform(scenario, tmp_path / "out", data_root=tmp_path)
    assert not (tmp_path / "out").exists()


# The same again


def test_the_same_run_again_comes_from_the_store(finished: tuple[Results, Path], data: Path) -> None:
    results, folder = finished
    again = perform(experiment(data), folder)
    assert all(timing["cached"] for timing in again.timings)
    assert again.records == results.records
    assert again.artifacts == results.artifacts
    assert [(*m.points.values(),) for m in again.maps] == [(*m.points.values(),) for m in results.maps]
    assert {path.name for path in (folder / "encoders").iterdir()} == {Path(a.path).name for a in results.artifacts}


def test_the_same_seed_gives_the_same_and_another_seed_does_not(
    finished: tuple[Results, Path], data: Path, tmp_path: Path
) -> None:
    results = finished[0]
    fresh = perform(experiment(data, "seeds=[0, 1]"), tmp_path)
    of_seed = {seed: [replace(r, seed=0) for r in numbers(fresh) if r.seed == seed] for seed in (0, 1)}
    assert not any(timing["cached"] for timing in fresh.timings)
    assert of_seed[0] == numbers(results)
    assert of_seed[1] != numbers(results)
    assert [a for a in fresh.artifacts if a.seed == 0] == list(results.artifacts)
    assert not set(results.artifacts) & {replace(a, seed=0) for a in fresh.artifacts if a.seed == 1}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "step"), [("pre-training", 3), ("injection", 3), ("head", 2), ("features", 1)])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    finished: tuple[Results, Path], data: Path, tmp_path: Path, words: str, step: int
) -> None:
    results = finished[0]
    with pytest.raises(KeyboardInterrupt):
        perform(experiment(data), tmp_path, run=Run(progress=InterruptedAt(words, step)))
    resumed = perform(experiment(data), tmp_path)
    assert numbers(resumed) == numbers(results)
    assert resumed.artifacts == results.artifacts
    assert resumed.curves == results.curves
    assert list((tmp_path / "store" / ".work").iterdir()) == []


def test_an_interrupted_training_goes_on_from_its_last_epoch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        perform(experiment(data), tmp_path, run=Run(progress=InterruptedAt("pre-training", 3)))
    begun: dict[str, int] = {}

    class Watched(Silent):
        def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]:
            begun[label] = done
            return super().bar(label, total, done)

    perform(experiment(data), tmp_path, run=Run(progress=Watched()))
    assert begun["pre-training (SimCLR)"] == 2
    assert begun["injection (BadEncoder)"] == 0


SIGKILL_AFTER = """
import os, signal, sys
from pathlib import Path
from sapper.training import Checkpoint
from tests.micro import experiment, perform
save = Checkpoint.save
def save_and_die(self, model, optimizer, epoch, curves):
    save(self, model, optimizer, epoch, curves)
    if "L0 effectiveness" in curves:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.save = save_and_die
perform(experiment(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(finished: tuple[Results, Path], data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGKILL_AFTER, str(data), str(tmp_path)]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    resumed = perform(experiment(data), tmp_path)
    assert any(timing["cached"] for timing in resumed.timings)
    assert numbers(resumed) == numbers(finished[0])
    assert resumed.artifacts == finished[0].artifacts


def test_a_damaged_encoder_is_made_anew(finished: tuple[Results, Path], data: Path, tmp_path: Path) -> None:
    perform(experiment(data), tmp_path)
    encoder = next((tmp_path / "store").glob("pretraining-*/*.safetensors"))
    encoder.write_bytes(encoder.read_bytes()[:-10])
    mended = perform(experiment(data), tmp_path)
    assert [timing["stage"] for timing in mended.timings if not timing["cached"]] == ["pre-training"]
    assert numbers(mended) == numbers(finished[0])
    assert all(sha256(tmp_path / artifact.path) == artifact.sha256 for artifact in mended.artifacts)


# Kinds of scenarios


def test_one_encoder_for_each_task_or_one_for_all(finished: tuple[Results, Path], data: Path, tmp_path: Path) -> None:
    each = perform(experiment(data, "attack.encoders=one-per-task"), tmp_path)
    assert len(sha256_of(finished[0], "attacked")) == 1
    assert len(sha256_of(each, "attacked")) == 2
    assert sha256_of(each, "clean") == sha256_of(finished[0], "clean")
    assert sorted(path.name for path in (tmp_path / "encoders").iterdir()) == [
        "balls-seed0-BACKDOORED.safetensors",
        "boxes-seed0-BACKDOORED.safetensors",
        "clean-seed0.safetensors",
    ]
    assert values(each, "CA") == values(finished[0], "CA")


def test_a_task_may_have_several_targets(data: Path, tmp_path: Path) -> None:
    extra = '[[target]]\ntask = "balls"\nclass = "green"\ntrigger = { size = 3, color = "black" }\n'
    results = perform(experiment(data, *SHORT, extra=extra), tmp_path)
    for target in ("balls/red", "balls/green"):
        assert {r.metric for r in rates(results) if r.target == target} == ATTACK_METRICS
        assert [row["class"] for row in results.references if row["target"] == target] == [target.partition("/")[2]]
    assert values(results, "BA", target="balls/red") == values(results, "BA", target="balls/green")
    assert len(sha256_of(results, "attacked")) == 1


def test_a_task_without_target_has_clean_accuracy_only(data: Path, tmp_path: Path) -> None:
    scenario = experiment(data, *SHORT, "target.task=balls", "target.1.class=green")
    results = perform(scenario, tmp_path)
    bystander = [record for record in results.records if record.task == "boxes"]
    assert [(r.metric, r.target, r.attack) for r in bystander] == [("CA", None, None)] * 2
    assert {r.metric for r in rates(results) if r.task == "balls"} == ATTACK_METRICS


def test_without_an_attack_there_is_clean_accuracy_only(data: Path, tmp_path: Path) -> None:
    results = perform(experiment(data, "pretraining.epochs=1", text=PLAIN), tmp_path)
    assert {record.metric for record in results.records} == {"CA"}
    assert [artifact.state for artifact in results.artifacts] == ["clean"]
    assert results.references == results.pictures == results.maps == ()


def test_splits_may_be_named(data: Path, tmp_path: Path) -> None:
    splits = (f"pretraining.dataset={data}/balls", "pretraining.split=test", "attack.shadow_split=train")
    results = perform(experiment(data, *SHORT, *splits), tmp_path)
    assert {(item["name"], item["split"]) for item in results.datasets if item["name"] == "balls"} == {
        ("balls", "test"),
        ("balls", "train"),
    }
    with pytest.raises(SapperError, match="extra") as error:
        perform(experiment(data, *SHORT, "pretraining.split=extra"), tmp_path)
    assert "pretraining.split" in str(error.value)


def test_shadow_images_may_come_from_another_set(data: Path, tmp_path: Path) -> None:
    results = perform(experiment(data, *SHORT, f"attack.shadow={data}/balls"), tmp_path)
    path = next(artifact.path for artifact in results.artifacts if artifact.state == "attacked")
    assert encoders.load(tmp_path / path, Run()).card.origin["shadow"]["name"] == "balls"


@pytest.mark.slow
def test_names_of_tasks_classes_and_targets_may_be_any_text(data: Path, tmp_path: Path) -> None:
    """Also those that look like paths, or like the words that the stages' own files use."""
    tricky = (
        "task.0.name=../../a b/clean",
        "target.0.task=../../a b/clean",
        "target.0.name=clean",
        "target.1.name=rows",
    )
    results = perform(experiment(data, *SHORT, *tricky), tmp_path / "out")
    plain = perform(experiment(data, *SHORT), tmp_path / "plain")
    for metric in ATTACK_METRICS:
        assert values(results, metric, task="boxes") == values(plain, metric, task="boxes")
    assert {r.head for r in rates(results)} == {"mlp", "linear"}
    assert {(r.task, r.target) for r in results.records} == {("../../a b/clean", "clean"), ("boxes", "rows")}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "plain"}
    assert all((tmp_path / "out" / artifact.path).is_file() for artifact in results.artifacts)


# Judged on validation images


def test_validation_never_reads_a_test_image(tmp_path: Path) -> None:
    """The files of all test splits are there, and cannot be read."""
    data = write_data(tmp_path / "data")
    (data / "balls" / "test.npz").write_bytes(b"unread")
    (data / "boxes" / "test.parquet").write_bytes(b"unread")
    with pytest.raises(SapperError, match=r"test\.npz"):
        perform(experiment(data, *SHORT), tmp_path / "usual")
    scenario = experiment(data, *SHORT, "judge_on=validation")
    results = perform(scenario, tmp_path / "out")
    for task in victims(scenario, tmp_path / "out"):
        whole = datasets.load(data / task.name, "train", size=16)
        taken = 1
        held_out, kept = rows_of(task.test, whole), rows_of(task.train, whole)
        assert not held_out & kept
        assert len(held_out) == len(whole) // 5
        assert len(kept) == len(whole) - len(held_out) - taken
    assert {record.n for record in results.records if record.metric == "CA"} == {12}
    assert {row["source"] for row in results.references} == {
        "balls/train without what is held out",
        "boxes/train without what is held out",
    }


# Variants


def variants(*lines: str) -> str:
    return "".join(f"\n[[variant]]\n{line}\n" for line in lines)


@pytest.mark.slow
def test_variants_are_told_apart_by_their_condition_and_share_what_they_can(data: Path, tmp_path: Path) -> None:
    extra = variants('"attack.lambda1" = 0', '"attack.lambda1" = 1.5')
    results = perform(experiment(data, *SHORT, "seeds=[0, 1]", extra=extra), tmp_path)
    assert Counter((r.seed, r.condition["attack.lambda1"]) for r in rates(results)) == dict.fromkeys(
        [(0, 0), (0, 1.5), (1, 0), (1, 1.5)], 2 * 2 * len(ATTACK_METRICS)
    )
    assert not any(timing["cached"] for timing in results.timings)  # what variants share is counted once
    made = [timing["stage"] for timing in results.timings]
    assert Counter(stage.split("-lambda1")[0] for stage in made) == {
        "pre-training": 2,
        "references, balls": 2,
        "references, boxes": 2,
        "heads on the clean encoder, balls": 2,
        "heads on the clean encoder, boxes": 2,
        "attack on balls + boxes": 4,
        "heads on the backdoored encoder, balls": 4,
        "heads on the backdoored encoder, boxes": 4,
    }
    assert sorted(path.name for path in (tmp_path / "encoders").iterdir()) == [
        "balls+boxes-lambda1-0-seed0-BACKDOORED.safetensors",
        "balls+boxes-lambda1-0-seed1-BACKDOORED.safetensors",
        "balls+boxes-lambda1-1.5-seed0-BACKDOORED.safetensors",
        "balls+boxes-lambda1-1.5-seed1-BACKDOORED.safetensors",
        "clean-seed0.safetensors",
        "clean-seed1.safetensors",
    ]
    assert len(results.artifacts) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        ('"pretraining.epochs" = 1', '"pretraining.epochs" = 2'),
        ('"pretraining.epochs" = 2', '"attack.epochs" = 2'),
        ('"target.0.trigger.size" = 3', '"target.1.trigger.size" = 3'),
        ('"pretraining.images" = 50', '"encoder.width" = 5', '"head.0.epochs" = 2'),
    ],
)
def test_every_encoder_of_every_variant_has_a_file_of_its_own(
    data: Path, tmp_path: Path, lines: tuple[str, ...]
) -> None:
    results = perform(experiment(data, *SHORT, extra=variants(*lines)), tmp_path)
    paths = [artifact.path for artifact in results.artifacts]
    assert len(set(paths)) == len(paths) == len({artifact.sha256 for artifact in results.artifacts})
    assert all(sha256(tmp_path / artifact.path) == artifact.sha256 for artifact in results.artifacts)
    assert len(values(results, "lift", task="balls", head="mlp")) == len(lines)
    titles = [curve.stage for curve in results.curves]
    assert len(set(titles)) == len(titles)


def test_the_first_variant_is_shown_in_pictures_and_maps(data: Path, tmp_path: Path) -> None:
    results = perform(
        experiment(data, *SHORT, extra=variants('"target.trigger.size" = 2', '"target.trigger.size" = 3')), tmp_path
    )
    assert len(results.maps) == 2 * 2
    assert len(unique(results.pictures)) == len(results.pictures) > 0


def test_a_variant_may_change_the_size_of_the_images(data: Path, tmp_path: Path) -> None:
    results = perform(
        experiment(data, *SHORT, extra=variants("encoder.input_size = 12", "encoder.width = 4")), tmp_path
    )
    sizes = {(item["name"], item["split"]): set() for item in results.datasets}
    for item in results.datasets:
        sizes[item["name"], item["split"]].add(tuple(item["size"]))
    assert all(size == {(12, 12), (16, 16)} for size in sizes.values())
    assert len(values(results, "CA", task="balls", head="mlp")) == 2


# What does not fit is told before anything is trained

UNFIT = {
    "unknown data set": (("pretraining.dataset=cifra10",), "pretraining.dataset", "did you mean cifar10"),
    "data set of a task": (("task.1.dataset=sings", "task.1.name=boxes"), "task[1].dataset", "did you mean signs"),
    "shadow set": (("attack.shadow=./nowhere",), "attack.shadow", "nowhere"),
    "no data root": (("task.0.dataset=svhn", "task.0.name=balls"), "task[0].dataset", "--data-root"),
    "unknown class": (("target.0.class=rde",), "target 'balls/rde'.class", "did you mean red"),
    "class out of range": (("target.0.class=3",), "target 'balls/3'.class", "classes 0…2"),
    "more references than images": (("target.0.references=21",), "target 'balls/red'.references", "ask for fewer"),
    "nothing left for the victim": (("target.0.references=20",), "target 'balls/red'.references", "ask for fewer"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_the_data_is_told_before_any_training(data: Path, tmp_path: Path, case: str) -> None:
    overrides, key, says = UNFIT[case]
    with pytest.raises(SapperError) as caught:
        perform(experiment(data, *overrides), tmp_path, tell=pytest.fail)
    assert str(data / "micro.toml") in str(caught.value)
    assert key in str(caught.value.where)
    assert says in str(caught.value)
    assert caught.value.remedy
    assert not list(tmp_path.rglob("*.*"))


def test_a_task_of_one_class_is_refused(data: Path, tmp_path: Path) -> None:
    images, _ = squares(10, seed=0)
    for split in ("train", "test"):
        (tmp_path / "one").mkdir(exist_ok=True)
        np.savez(tmp_path / "one" / f"{split}.npz", image=images, label=np.zeros(10, dtype=np.int64))
    with pytest.raises(SapperError, match="only one class") as caught:
        perform(experiment(data, f"task.1.dataset={tmp_path}/one", "task.1.name=boxes"), tmp_path / "out")
    assert "task[1].dataset" in str(caught.value)


@pytest.mark.parametrize("key", ["task.test_images", "task.train_images"])
def test_a_part_of_one_class_is_refused_before_any_training(data: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(SapperError, match="only one class") as caught:
        perform(experiment(data, *SHORT, f"{key}=1"), tmp_path / "out")
    assert "task 'balls'" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["task.0.test_images", "task.1.train_images", "pretraining.images"])
def test_more_images_than_there_are_are_refused_before_any_training(data: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(SapperError, match="1000 images are wanted") as caught:
        perform(experiment(data, *SHORT, f"{key}=1000"), tmp_path / "out")
    assert key.replace(".0", "[0]").replace(".1", "[1]") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_report_says_how_many_images_were_used_for_what(data: Path, tmp_path: Path) -> None:
    results = perform(experiment(data, *SHORT, "task.0.train_images=30"), tmp_path)
    used = {(item["name"], item["split"]): item["used for"] for item in results.datasets}
    assert used["photos", "train"] == ("pre-training: all", "shadow: 48")
    assert used["balls", "train"] == ("training on balls: 30",)
    assert used["balls", "test"] == ("judging balls: all",)


def test_a_training_that_diverges_is_told_and_not_stored(data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SapperError, match="diverged") as caught:
            perform(experiment(data, *SHORT, "attack.learning_rate=1e30"), tmp_path)
        assert "learning_rate" in str(caught.value.remedy)
    assert not list((tmp_path / "store").glob("attack-*"))
    perform(experiment(data, *SHORT), tmp_path)


# Warnings about numbers


def test_a_baseline_that_is_high_already_is_flagged(data: Path, tmp_path: Path) -> None:
    """A trigger that hides the whole image: the clean classifier calls them all the same class."""
    extra = '[[target]]\ntask = "boxes"\nclass = "red"\n[[target]]\ntask = "boxes"\nclass = "green"\n'
    scenario = experiment(data, *SHORT, "target.trigger={ size = 16, margin = 0 }", extra=extra)
    results = perform(scenario, tmp_path)
    before = [r for r in results.records if (r.metric, r.task, r.head) == ("ASR_B_strict", "boxes", "mlp")]
    assert sorted(record.value for record in before) == [0, 0, 1]
    for record in before:
        words = f"{record.target} (seed 0): the clean encoder's classifier already sends 100 %"
        assert any(flag.startswith(words) for flag in results.flags) == (record.value == 1)


def test_a_classifier_that_always_says_the_same_is_flagged(data: Path, tmp_path: Path) -> None:
    results = perform(experiment(data, *SHORT, "head.0.learning_rate=1e-9"), tmp_path)
    accuracies = values(results, "CA", head="mlp")
    assert accuracies == pytest.approx([1 / 3, 1 / 3])
    assert any("balls (seed 0): the mlp head on the clean encoder calls nearly every" in flag for flag in results.flags)


def test_a_trigger_that_works_but_misses_its_class_is_flagged(tmp_path: Path) -> None:
    labels = torch.arange(40) % 4
    images = ImageSet(
        images=torch.zeros(40, 3, 4, 4, dtype=torch.uint8), labels=labels, classes=("a", "b", "c", "d"), name="t"
    )
    whole = Part.whole(images)
    aims = (Aim(name="t/b", trigger=Patch(size=1), rule=Nearest(1, 1)),)
    task = Task(goals=Goals(task="t", candidates=whole, aims=aims), train=whole, test=whole, draw=Run())
    choices = Choices(of=[Choice(label=1, class_name="b", rows=[1])], gone=[1])

    def left(folder: str, triggered: torch.Tensor) -> Finished:
        (tmp_path / folder).mkdir()
        predictions = {"mlp/clean": labels.clone(), "mlp/triggered/t/b": triggered}
        tensors.save(tmp_path / folder / "predictions.safetensors", predictions)
        return Finished(tmp_path / folder, 1.0, cached=False)

    def flags(before: Finished, after: Finished) -> list[str]:
        found = Findings(out=tmp_path)
        clean, attacked = (Subject(id=state, state=state, seed=0, stage=NOTHING) for state in (CLEAN, ATTACKED))
        sides = ((clean, before), (attacked, after))
        found.add_attack({"seed": 0, "condition": {}}, task, choices, *sides, primary_head="mlp")
        return found.flags

    clean = left("clean", labels)
    usual = left("usual", torch.where(torch.arange(40) < 36, 2, 3))
    assert flags(usual, usual) == [], "the clean encoder's classifier says the same"
    for name, wanted, share, flagged in (("hit", 1, 1.0, False), ("astray", 2, 0.9, True), ("spread", 2, 0.7, False)):
        triggered = torch.where(torch.arange(40) < share * 40, wanted, 3)
        said = flags(clean, left(name, triggered))
        assert [("90 %" in flag, "“c” instead" in flag) for flag in said] == [(True, True)] * flagged


NOTHING: Any = None
"""A stage that nobody asks for."""
