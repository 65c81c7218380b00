"""Defenses in a scenario: whom they look at, what they leave, what they refuse."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from sapper import datasets, encoders, tensors
from sapper.defenses.certify.patchcleanser import PatchCleanser
from sapper.defenses.certify.patchguard_ds import PatchGuardDS
from sapper.defenses.defender import Defender
from sapper.defenses.judge.mntd_classifier import MNTDClassifier
from sapper.defenses.judge.neural_cleanse import NeuralCleanse
from sapper.defenses.measures import CERTIFIED, TARGET_NAMED, detection
from sapper.downstream import MLP, Classifier
from sapper.engine.store import Finished
from sapper.errors import SapperError
from sapper.experiment.defending import Victim
from sapper.experiment.records import certifier_records, detector_records, first_of_each, held_out_records
from sapper.experiment.results import Judged, Results, State, read_results, write_results
from sapper.experiment.subjects import Subject
from sapper.experiment.tasks import TaskData
from sapper.methods import Checked
from sapper.report import certified, defenses, render, write_report
from sapper.running import Run
from sapper.samples import Change, ImageSet, to_float
from sapper.scenario.reading import Scenario
from sapper.verdicts import Certified
from tests.micro import ATTACKED, PLAIN, experiment, numbers, perform, write_data
from tests.program import Install

DEFENSES = """
[[defense]]
method = "neural_cleanse"
steps = 12
minibatches = 1
batch = 16
success = 0.05
subjects = 2
train_images = 40
tasks = ["balls"]

[[defense]]
method = "mntd_classifier"
shadows = 3
validation = 1
share = 0.3
shadow_epochs = 2
meta_classifiers = 4
epochs = 1
subjects = 3
tasks = ["boxes"]

[[defense]]
method = "patchguard_ds"
name = "bands"
training = "head"
views = 2
patch = 3
patches = [1, 3]

[[defense]]
method = "patchcleanser"
patch = 4
masks = 2
patches = [2, 4]
test_images = 20
"""
SHORT = ("pretraining.epochs=1", "attack.epochs=1", "head.0.epochs=3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def defended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("defended")
    return perform(scenario(data), folder), folder


def scenario(data: Path, *overrides: str) -> Scenario:
    return experiment(data, *SHORT, *overrides, extra=DEFENSES)


def records(results: Results, metric: str, **where: Any) -> list[Any]:
    return [
        record
        for record in results.records
        if record.metric == metric and all(getattr(record, key) == value for key, value in where.items())
    ]


def test_a_detector_judges_as_many_classifiers_of_each_encoder(defended: tuple[Results, Path]) -> None:
    results, _ = defended
    found = [(verdict.task, verdict.state, verdict.classifier) for verdict in results.verdicts]
    sides = ("clean", "attacked")
    expected = [("balls", state, number) for state in sides for number in range(2)]
    assert found == expected + [("boxes", state, number) for state in sides for number in range(3)]
    for defense, metric, n in (("neural_cleanse", "anomaly_index", 2), ("mntd_classifier", "score", 3)):
        ours = [verdict for verdict in results.verdicts if verdict.defense == defense]
        clean, backdoored = (
            [verdict.score for verdict in ours if verdict.state == state and verdict.score is not None]
            for state in sides
        )
        for state, scores in zip(sides, (clean, backdoored)):
            middle = records(results, metric, condition={"state": state})
            assert [record.value for record in middle] == ([pytest.approx(np.median(scores))] if scores else [])
            assert all((record.defense, record.attack) == (defense, "badencoder") for record in middle)
        right = [verdict.flagged is (verdict.state == "attacked") for verdict in ours]
        (accuracy,) = records(results, "detection_accuracy", defense=defense)
        assert (accuracy.value, accuracy.n) == (sum(right) / (2 * n), 2 * n)
        wins = [(b > c) + 0.5 * (b == c) for b in backdoored for c in clean]
        areas = [record.value for record in records(results, "AUC", defense=defense)]
        assert areas == ([pytest.approx(sum(wins) / len(wins))] if wins else [])
    assert records(results, "AUC", defense="mntd_classifier"), "else this says little"


def test_meta_classifiers_are_told_one_by_one(defended: tuple[Results, Path]) -> None:
    ours = [verdict for verdict in defended[0].verdicts if verdict.defense == "mntd_classifier"]
    scores = np.array([verdict.evidence["scores"] for verdict in ours])
    truth = np.array([verdict.state == "attacked" for verdict in ours])
    assert scores.shape == (6, 4)
    at = {"own": 0.0, "median": np.median(scores, axis=0)}
    for threshold, value in at.items():
        accuracies = ((scores > value) == truth[:, None]).mean(0)
        for metric, expected in (("scorer_accuracy", accuracies.mean()), ("scorer_accuracy_sd", accuracies.std())):
            (record,) = records(defended[0], metric, condition={"threshold": threshold})
            assert record.value == pytest.approx(expected)
    for shadows in ("on its own shadows", "on others"):
        states = ("clean", "attacked")
        told = [next(v.evidence["learned"][f"AUC {shadows}"] for v in ours if v.state == state) for state in states]
        (record,) = records(defended[0], "shadow_AUC", condition={"shadows": shadows})
        assert (record.value, record.n) == (pytest.approx(np.mean(told)), 8)
    areas = [roc_auc_score(truth, each) for each in scores.T]
    assert records(defended[0], "scorer_AUC")[0].value == pytest.approx(np.mean(areas))
    assert records(defended[0], "scorer_AUC_sd")[0].value == pytest.approx(np.std(areas))


def test_recovered_triggers_are_shown_smallest_first(defended: tuple[Results, Path]) -> None:
    for verdict in (verdict for verdict in defended[0].verdicts if verdict.defense == "neural_cleanse"):
        norms = [trigger["norm"] for trigger in verdict.triggers]
        assert norms == sorted(norms)
        assert norms
        assert {trigger["class"] for trigger in verdict.triggers} <= {"red", "green", "blue"}
        assert all(trigger["png"] for trigger in verdict.triggers)


def test_a_certified_defense_is_measured_on_both_encoders_and_for_every_patch(
    defended: tuple[Results, Path],
) -> None:
    results, _ = defended
    for defense, patches, n in (("bands", (1, 3), 45), ("patchcleanser", (2, 4), 20)):
        for task, target in (("balls", "balls/red"), ("boxes", "boxes/blue")):
            for state in ("clean", "attacked"):
                place = {"defense": defense, "task": task, "condition": {"state": state}}
                (accuracy,) = records(results, "defended_accuracy", **place)
                assert accuracy.n == n
                assert records(results, "defended_ASR", target=target, **place)[0].n == n
                assert records(results, "defended_ASR_strict", target=target, **place)[0].n < n
                for patch in patches:
                    there = place | {"condition": {"state": state, "patch": patch}}
                    (certified,) = records(results, "certified_accuracy", **there)
                    (universal,) = records(results, "universal_certified_accuracy", **there)
                    assert universal.value >= certified.value
                    (bound,) = records(results, "ASR_strict_bound", target=target, **there)
                    known = records(results, "ASR_strict_bound_known_place", target=target, **there)
                    assert len(known) == (patch == 4), "a trigger of four pixels fits no smaller patch"
                    assert all(each.value <= bound.value for each in known)
                    if patch == 4:  # the defense's own size
                        (measured,) = records(results, "defended_ASR_strict", target=target, **place)
                        assert measured.value <= known[0].value


@dataclass(frozen=True)
class Answering:
    """A classifier's own answers, of which nothing is certified."""

    classifier: Classifier

    def predict(self, images: torch.Tensor, run: Run, change: Change | None = None) -> torch.Tensor:
        plain = to_float(images)
        with torch.no_grad():
            return self.classifier(plain if change is None else change(plain)).argmax(1)

    def certify(self, images: torch.Tensor, labels: torch.Tensor, patches: list[int], run: Run) -> list[Certified]:
        answers = self.predict(images, run)
        nothing = torch.zeros(len(images), dtype=torch.bool)
        return [Certified(labels=answers, certified=nothing, threat="none") for _ in patches]


@dataclass(frozen=True, kw_only=True)
class Nothing(Checked):
    """A certified defense that does nothing."""

    patch: int = 2

    kind: ClassVar[str] = "certify"
    needs: ClassVar[frozenset[str]] = frozenset()
    measures: ClassVar[Any] = CERTIFIED
    uses_encoder: ClassVar[bool] = True
    version: ClassVar[int] = 1
    source: ClassVar[str] = "tests"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, size: int) -> None: ...

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> Answering:
        return Answering(classifier)


NOTHING = {"sapper.defenses": {"nothing": f"{__name__}:Nothing"}}


def test_the_first_classifier_is_the_one_that_the_scenario_measures(
    data: Path, tmp_path: Path, install: Install
) -> None:
    """Under a defense that does nothing, classifiers answer as they were measured."""
    install("nothing", points=NOTHING)
    results = perform(experiment(data, *SHORT, extra='[[defense]]\nmethod = "nothing"\npatches = [2]\n'), tmp_path)
    pairs = {"defended_accuracy": ("CA", "BA"), "defended_ASR": ("ASR_B", "ASR")}
    pairs["defended_ASR_strict"] = ("ASR_B_strict", "ASR_strict")
    ids = {model.state: model.id for model in results.subjects}
    for metric, measured in pairs.items():
        for state, name in zip(("clean", "attacked"), measured):
            ours = records(results, metric, condition={"state": state})
            assert {record.subject for record in ours} == {ids[state]}
            usual = {(r.task, r.target): r.value for r in records(results, name, head="mlp")}
            for record in ours:
                target = record.target or next(target for task, target in usual if task == record.task)
                assert record.value == usual[record.task, target]
            assert len(ours) == 2


@pytest.mark.slow
def test_every_certified_defense_of_a_task_is_judged_on_the_same_images(
    data: Path, tmp_path: Path, install: Install
) -> None:
    install("nothing", points=NOTHING)
    table = '[[defense]]\nmethod = "nothing"\nname = "{}"\npatches = [{}]\ntest_images = {}\n'
    extra = table.format("one", 2, 20) + table.format("two", 3, 20) + table.format("all", 2, 45)
    results = perform(experiment(data, *SHORT, extra=extra), tmp_path)
    one, two, every = (
        [(r.value, r.n) for r in results.records if r.defense == name and r.metric.startswith("defended")]
        for name in ("one", "two", "all")
    )
    assert one == two != every


def test_a_defense_that_replaces_the_encoder_is_trained_once(data: Path, tmp_path: Path) -> None:
    bag = """
[[defense]]
method = "patchguard_bn"
patch = 2
patches = [2]
width = 4
epochs = 1
tasks = ["balls"]
"""
    results = perform(experiment(data, *SHORT, extra=bag), tmp_path)
    assert len(list((tmp_path / "store").glob("certify-*"))) == 1
    values = {
        state: [r.value for r in results.records if r.defense is not None and r.condition["state"] == state]
        for state in ("clean", "attacked")
    }
    assert values["clean"] == values["attacked"]
    assert len(values["clean"]) == 6


# What is counted, on verdicts and answers made by hand

PLACE = {"seed": 0, "task": "t", "attack": "a", "head": "mlp", "defense": "d", "condition": {}}


def left_by(folder: Path, values: dict[str, torch.Tensor]) -> Finished:
    folder.mkdir()
    tensors.save(folder / "defended.safetensors", values)
    return Finished(folder, 1.0, cached=False)


def model(state: State, seed: int = 0, tasks: tuple[str, ...] = ()) -> Subject:
    nothing: Any = None
    return Subject(id=f"{state}{''.join(tasks)}{seed}", state=state, seed=seed, stage=nothing, tasks=tasks)


def test_answers_are_counted_for_every_encoder_target_and_patch(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 2, 1])
    answered: dict[State, list[int]] = {"clean": [0, 1, 2, 0], "attacked": [2, 2, 2, 2]}
    sides = [
        (
            model(state),
            left_by(
                tmp_path / state,
                {
                    "clean": torch.tensor(plain),
                    "triggered/x": torch.tensor([2, 2, 2, 0]),
                    "triggered/y": torch.tensor([0, 0, 0, 1]),
                    "certified/10": torch.tensor([False, True, False, False]),
                    "certified/2": torch.tensor([True, True, False, True]),
                    "places/2/certified": torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]]).bool(),
                    "places/2/group": torch.tensor([[0, 0], [0, 1]]),
                    "box/x": torch.tensor([0, 1, 0, 2]),
                    "box/y": torch.tensor([1, 3, 1, 3]),
                },
            ),
        )
        for state, plain in answered.items()
    ]
    found = list(certifier_records(PLACE, CERTIFIED, labels, {"x": 2, "y": 0}, sides))
    told = [(r.metric, r.target, r.condition, r.value, r.n) for r in found if r.condition["state"] == "clean"]
    clean = {"state": "clean"}
    assert told == [
        ("defended_accuracy", None, clean, 0.75, 4),
        ("defended_ASR", "x", clean, 0.75, 4),
        ("defended_ASR_strict", "x", clean, pytest.approx(2 / 3), 3),
        ("defended_ASR", "y", clean, 0.75, 4),
        ("defended_ASR_strict", "y", clean, pytest.approx(2 / 3), 3),
        ("certified_accuracy", None, clean | {"patch": 2}, 0.75, 4),
        ("certified_accuracy", None, clean | {"patch": 10}, 0.25, 4),
        ("universal_certified_accuracy", None, clean | {"patch": 2}, 0.75, 4),
        ("ASR_strict_bound", "x", clean | {"patch": 2}, 0.0, 3),
        ("ASR_strict_bound_known_place", "x", clean | {"patch": 2}, 0.0, 3),
        ("ASR_strict_bound", "y", clean | {"patch": 2}, pytest.approx(1 / 3), 3),
        ("ASR_strict_bound_known_place", "y", clean | {"patch": 2}, pytest.approx(1 / 3), 3),
    ]
    attacked = [r for r in found if r.condition["state"] == "attacked"]
    assert [r.value for r in attacked if r.metric == "defended_accuracy"] == [0.25]
    assert {r.subject for r in attacked} == {"attacked0"}


def judged(state: State, score: float | None, suspect: int) -> Judged:
    flagged = None if score is None else score > 2
    return Judged(
        **{"seed": 0, "defense": "d", "task": "t", "subject": state, "state": state, "classifier": 0, "seconds": 1.0},
        **{"score": score, "threshold": 2.0, "flagged": flagged, "evidence": {"suspect": suspect}},
    )


def test_an_undecided_verdict_is_never_right_and_has_no_part_in_scores() -> None:
    verdicts = [judged("clean", 1.0, 0), judged("clean", 3.0, 1), judged("clean", None, 1)]
    verdicts += [judged("attacked", 2.5, 1), judged("attacked", None, 2), judged("attacked", 9.0, 0)]
    seconds: dict[State, float] = {"clean": 1.0, "attacked": 2.0}
    found = list(detector_records(PLACE, (*detection("index"), TARGET_NAMED), verdicts, frozenset({1}), seconds))
    assert {r.seconds for r in found if r.metric in ("detection_accuracy", "AUC")} == {3.0}
    told = {(r.metric, r.condition.get("state")): (r.value, r.n) for r in found}
    third = pytest.approx(1 / 3)
    assert told == {
        ("index", "clean"): (2.0, 2),
        ("flagged", "clean"): (third, 3),
        ("target_named", "clean"): (pytest.approx(2 / 3), 3),
        ("index", "attacked"): (5.75, 2),
        ("flagged", "attacked"): (pytest.approx(2 / 3), 3),
        ("target_named", "attacked"): (third, 3),
        ("detection_accuracy", None): (0.5, 6),
        ("AUC", None): (0.75, 4),
    }
    none_decided = [judged("clean", None, 0), judged("attacked", None, 0)]
    found = detector_records(PLACE, (*detection("index"), TARGET_NAMED), none_decided, frozenset(), seconds)
    assert {r.metric for r in found} == {"flagged", "target_named", "detection_accuracy"}


def test_of_few_encoders_the_first_of_each_seed_is_judged() -> None:
    made = [
        model(state, seed, tasks)
        for seed in range(3)
        for state, tasks in (("clean", ()), ("attacked", ("a",)), ("attacked", ("b",)))
    ]
    chosen = [(s.seed, s.state, s.task) for s in first_of_each(made, 2)]
    assert chosen == [(0, "clean", None), (1, "clean", None), (0, "attacked", "a"), (1, "attacked", "a")]
    every = [(s.seed, s.task) for s in first_of_each(made, None) if s.state == "attacked"]
    assert every == [(0, "a"), (1, "a"), (2, "a"), (0, "b"), (1, "b"), (2, "b")]


def of_seed(seed: int, state: State, score: float | None) -> Judged:
    return replace(judged(state, score, 0), seed=seed)


def test_a_threshold_from_other_seeds_has_not_seen_this_ones() -> None:
    """38 clean scores of seed 1, 19 of seed 0: 38 of 38 are needed for 95 % of 39, and 19 of 19 for 95 % of 20."""
    verdicts = [of_seed(1, "clean", float(score)) for score in range(37)] + [of_seed(1, "clean", 100.0)]
    verdicts += [of_seed(0, "clean", 36.5 - score) for score in range(19)]
    verdicts += [of_seed(0, "attacked", score) for score in (99.0, 101.0, None)]
    verdicts += [of_seed(1, "attacked", score) for score in (36.5, 36.6)]
    found = {r.condition["state"]: (r.seed, r.value, r.n) for r in held_out_records(PLACE, verdicts)}
    assert found == {
        "clean": (None, pytest.approx(1 / 57), 57),  # of seed 1, only 100 is above 36.5; of seed 0, none above 100
        "attacked": (None, pytest.approx(2 / 5), 5),
    }


def test_with_many_clean_models_a_few_may_exceed_the_threshold() -> None:
    verdicts = [of_seed(1, "clean", float(score)) for score in range(59)]
    verdicts += [of_seed(0, "attacked", score) for score in (56.0, 56.5)]
    (rate,) = held_out_records(PLACE, verdicts)  # 57 of 59 are 95 % of 60: the threshold is 56
    assert (rate.value, rate.n) == (0.5, 2)


def test_too_few_clean_models_of_other_seeds_promise_nothing() -> None:
    verdicts = [of_seed(seed, "clean", float(seed)) for seed in range(18)]
    assert list(held_out_records(PLACE, verdicts)) == []
    assert list(held_out_records(PLACE, [*verdicts, of_seed(18, "clean", 1.0)])) == []
    assert len(list(held_out_records(PLACE, [of_seed(0, "clean", 0.0)] * 19 + [of_seed(1, "clean", 1.0)]))) == 1


def test_a_second_run_takes_everything_from_the_store(defended: tuple[Results, Path], data: Path) -> None:
    first, folder = defended
    again = perform(scenario(data), folder)
    assert numbers(again) == numbers(first)
    assert again.verdicts == first.verdicts
    assert all(item["cached"] for item in again.timings)
    changed = perform(scenario(data, "defense.0.steps=11"), folder)
    assert [item["stage"] for item in changed.timings if not item["cached"]] == [
        f"neural_cleanse on the {encoder} encoder, balls" for encoder in ("clean", "backdoored")
    ]


def test_results_with_verdicts_are_read_as_they_were_written(defended: tuple[Results, Path], tmp_path: Path) -> None:
    write_results(defended[0], tmp_path)
    assert read_results(tmp_path).to_json() == defended[0].to_json()


def test_a_defender_may_have_fewer_images(data: Path, defended: tuple[Results, Path]) -> None:
    results, folder = defended
    file = folder / next(item.path for item in results.artifacts if item.state == "clean")
    train, test = (datasets.load(str(data / "balls"), split, size=16) for split in ("train", "test"))
    task = TaskData("balls", train, test)
    few, all_of_it = (
        Victim(task, encoders.load(file, Run()), scenario(data).primary, Run()).defender(n) for n in (10, None)
    )
    assert len(few.train) == len(few.features) == 10
    assert len(all_of_it.train) == len(train)
    place = {image.numpy().tobytes(): row for row, image in enumerate(train.images)}
    rows = [place[image.numpy().tobytes()] for image in few.train.images]
    assert len(set(rows)) == 10
    assert torch.equal(few.features, all_of_it.features[rows])


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ('tasks = ["balls"]', 'tasks = ["bals"]', "defense[0].tasks[0]"),
        ('method = "neural_cleanse"', 'method = "neural_clense"', "defense[0].method"),
        ("share = 0.3", "share = 0", "defense[1].share"),
        ("subjects = 2", "subjects = 0", "defense[0].subjects"),
        ("subjects = 2", "patches = [2]", "defense[0].patches"),
        ("patch = 3\n", "patch = 16\n", "defense[2].patch"),
        ("patches = [1, 3]", "patches = [1, 16]", "defense[2].patches"),
        ("patches = [1, 3]", "patches = []", "defense[2].patches"),
        ("views = 2", "share = 1.0", "defense[2].share"),
        ("views = 2", "share = -0.1", "defense[2].share"),
        ('name = "bands"', 'name = "patchcleanser"', "defense"),
    ],
)
def test_mistakes_are_told_with_file_key_and_remedy(data: Path, change: str, key: str, says: str) -> None:
    assert DEFENSES.count(change) == 1
    with pytest.raises(SapperError) as caught:
        experiment(data, *SHORT, extra=DEFENSES.replace(change, key))
    assert f"micro.toml: {says}" in str(caught.value.where)
    assert caught.value.remedy


def test_more_images_than_there_are_are_refused_before_any_training(data: Path, tmp_path: Path) -> None:
    for key in ("defense.0.train_images", "defense.3.test_images"):
        with pytest.raises(SapperError, match="are wanted") as caught:
            perform(scenario(data, f"{key}=1000"), tmp_path / "out")
        assert key.replace(".0", "[0]").replace(".3", "[3]") in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_defender_has_no_more_images_than_the_victim(data: Path, tmp_path: Path) -> None:
    changes = {
        "defense.0.train_images=40": "task.0.train_images=30",
        "defense.1.share=0.1": "task.1.train_images=20",
        "defense.3.test_images=20": "task.test_images=15",
    }
    for defense, task in changes.items():
        with pytest.raises(SapperError, match=r"the task has|for 3 classes") as caught:
            perform(scenario(data, defense, task), tmp_path / "out")
        assert f"defense[{defense[8]}]" in str(caught.value.where)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "knn"])
def test_heads_that_are_all_the_same_are_judged_once(data: Path, tmp_path: Path, head: str) -> None:
    primary = ("head.0.primary=false", f"head.1.method={head}", "head.1.primary=true")
    text = ATTACKED.replace("iterations = 20\n", "")
    with pytest.raises(SapperError, match="are the same") as caught:
        experiment(data, *SHORT, *primary, extra=DEFENSES, text=text)
    assert "defense[0].subjects" in str(caught.value.where)
    once = ("defense.0.subjects=1", "defense.1.subjects=1")
    results = perform(experiment(data, *SHORT, *primary, *once, extra=DEFENSES, text=text), tmp_path)
    assert {record.head for record in results.records if record.defense is not None} == {head}


@pytest.mark.slow
def test_every_variant_and_seed_has_its_own_section_and_numbers(data: Path, tmp_path: Path) -> None:
    variants = '\n[[variant]]\n"defense.2.views" = 1\n"attack.epochs" = 2\n\n[[variant]]\n"defense.2.views" = 1\n'
    plain = DEFENSES[: DEFENSES.index('[[defense]]\nmethod = "patchcleanser"')] + variants
    results = perform(experiment(data, *SHORT, "seeds=[0, 1]", "defense.0.tasks=['boxes']", extra=plain), tmp_path)
    write_report(results, tmp_path / "report.html")
    titles = [found.title for found in defenses.detections(results)]
    assert len(titles) == len(set(titles)) == 4
    for found in defenses.detections(results):
        assert "4 classifiers on the clean" in found.sentence or "6 classifiers on the clean" in found.sentence
    assert len(certified.certifications(results)) == 4
    assert len(defenses.sentences(results)) == 4
    assert len(certified.sentences(results)) == 2 * 4


def test_too_small_a_share_is_refused_before_any_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="for 3 classes") as caught:
        perform(scenario(data, "defense.1.share=0.01"), tmp_path / "out")
    assert "defense[1].share" in str(caught.value.where)
    assert not (tmp_path / "out").exists()


def test_defenses_need_an_attack(data: Path) -> None:
    with pytest.raises(SapperError, match="needs an attack"):
        experiment(data, extra=DEFENSES.replace('tasks = ["balls"]\n', ""), text=PLAIN)


def test_the_report_shows_verdicts_triggers_and_certificates(defended: tuple[Results, Path]) -> None:
    results, _ = defended
    page = render(results)
    assert 'id="detection"' in page
    assert 'id="certified"' in page
    assert 'id="other"' not in page, "all of it has a section of its own"
    for verdict in results.verdicts:
        if verdict.classifier == 0:
            assert all(trigger["png"] in page for trigger in verdict.triggers)
    told = " ".join(defenses.sentences(results) + certified.sentences(results))
    ours = [verdict for verdict in results.verdicts if verdict.task == "balls" and verdict.state == "clean"]
    flagged = sum(verdict.flagged is True for verdict in ours)
    assert f"neural_cleanse on balls: Flags {flagged} of 2 classifiers on the clean encoder" in told
    (record,) = records(
        results,
        "certified_accuracy",
        task="boxes",
        defense="patchcleanser",
        condition={"state": "attacked", "patch": 4},
    )
    assert f"{100 * record.value:.1f} % for 4×4" in told
    assert "Against one trigger at one place" in page
    table = certified.universal_table(results)
    assert table is not None
    assert len(table.rows) == 2 * 2 * (2 + 2), "defenses, tasks, and for each size a row of each classifier"
    assert len({len(row) for row in table.rows}) == 1


def test_what_a_detector_did_not_decide_or_compare_is_told(defended: tuple[Results, Path]) -> None:
    cleanse = [v for v in defended[0].verdicts if v.defense == "neural_cleanse"]
    norms = [[1.0, None, 2.0], [1.0, 3.0, 2.0]]
    partly = [replace(v, score=1.0, flagged=False, evidence={"norms": norms[i % 2]}) for i, v in enumerate(cleanse)]
    results = replace(defended[0], verdicts=(*partly[:-1], replace(partly[-1], score=None, flagged=None)))
    (told,) = (line for line in defenses.sentences(results) if line.startswith("neural_cleanse"))
    assert "It found triggers for 2 to 3 of 3 classes, and compares only these." in told
    assert "1 undecided" in told
    table = defenses.detection_table(results)
    assert table is not None
    assert "undecided" in table.columns
    assert f"1 of {len(partly)}" in str(table.rows)
    whole = replace(defended[0], verdicts=tuple(replace(v, evidence={"norms": norms[1]}) for v in cleanse))
    assert "compares only" not in " ".join(defenses.sentences(whole))


def test_sizes_are_columns_in_their_order(defended: tuple[Results, Path]) -> None:
    """Whichever defense certifies for which of them."""
    table = certified.certification_table(defended[0])
    assert table is not None
    sizes = [int(heading.partition("×")[2]) for heading in table.columns if "×" in heading]
    assert sizes == sorted(sizes)
    assert len(sizes) > 2
    assert len({len(row) for row in table.rows}) == 1


def test_without_defenses_there_are_no_such_sections(defended: tuple[Results, Path]) -> None:
    plain = replace(
        defended[0], verdicts=(), records=tuple(record for record in defended[0].records if record.defense is None)
    )
    assert defenses.sentences(plain) == []
    assert 'id="detection"' not in render(plain)
    assert 'id="certified"' not in render(plain)


class Pixels(torch.nn.Module):
    """Stands in for an encoder: its features are the pixels."""

    mean = torch.full((1, 3, 1, 1), 0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


@pytest.mark.parametrize(
    "method",
    [NeuralCleanse(), MNTDClassifier(share=1.0, shadows=1, validation=0), PatchGuardDS(), PatchCleanser()],
    ids=lambda method: type(method).__name__,
)
def test_a_head_of_other_classes_than_the_data_is_refused(method: Any) -> None:
    train = ImageSet(
        images=torch.zeros(12, 3, 4, 4, dtype=torch.uint8),
        labels=torch.arange(12) % 4,
        classes=tuple("abcd"),
        name="four",
    )
    owner = Defender.of(Pixels(), MLP(epochs=1), train, Run())  # type: ignore[arg-type]
    stranger = Classifier(owner.encoder, torch.nn.Linear(48, 3))
    tried = partial(method.prepare, stranger) if method.kind == "certify" else partial(method.judge, [stranger])
    with pytest.raises(SapperError, match="knows 3 classes, four has 4") as caught:
        tried(owner, Run())
    assert caught.value.remedy
