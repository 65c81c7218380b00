"""Every attack beside every defense: what does not apply says why, and nothing that applies is missing."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sapper
from sapper.engine.executors import Tell
from sapper.engine.stage import Stage
from sapper.engine.store import Finished, Store
from sapper.errors import SapperError
from sapper.experiment.results import Judged, Model, Record, Results, read_results, write_results
from sapper.report import markdown, matrix, render
from sapper.report.means import Estimate
from sapper.scenario.reading import Scenario
from tests.micro import PLAIN, experiment, perform, write_data

ATTACKS = """
matrix = true

[[attack]]
method = "badencoder"
shadow_images = 48
epochs = 1
batch = 24
reference_views = 8

[[attack]]
method = "badnets"
rate = 0.2

[[attack]]
method = "feature_collision"
base = 0
victim = 1
inputs = 2
per_class = 2
steps = 1
instead.target = []
instead.head = [{ method = "linear", iterations = 3 }]

[[target]]
task = "balls"
class = "red"
trigger = { size = 4 }

[[defense]]
method = "decree"
epochs = 1
restarts = 1

[[defense]]
method = "neural_cleanse"
steps = 2
minibatches = 1

[[defense]]
method = "strip"
overlays = 4
share = 0.7
test_images = 12

[[defense]]
method = "spectral_signatures"

[[defense]]
method = "fine_pruning"
steps = 2

[[defense]]
method = "patchcleanser"
patch = 3
masks = 2
patches = [4, 2]
"""
ENCODERS = {"decree", "fine_pruning"}
CLASSIFIERS = {"neural_cleanse", "strip", "patchcleanser"}
APPLIES = {("badencoder", each) for each in ENCODERS | CLASSIFIERS}
APPLIES |= {("badnets", each) for each in CLASSIFIERS | {"spectral_signatures"}}
REASONS = {
    "no data are poisoned, so there are no rows to sift",
    "no encoder is attacked, so there is none to judge or repair",
    "no classifier is kept, so there is none to look at",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def scenario(data: Path, *overrides: str) -> Scenario:
    one_task = PLAIN.replace('[[task]]\ndataset = "{data}/boxes"\n\n', "")
    key, rest = ATTACKS.split("\n\n", 1)
    text = key + one_task + rest.replace("{", "{{").replace("}", "}}")
    return experiment(data, "pretraining.epochs=1", "head.0.epochs=2", *overrides, text=text, extra="")


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("matrix")
    write_results(perform(scenario(data, "seeds=[0, 1]"), folder), folder)
    return read_results(folder)


def test_every_pair_is_tried_or_carries_the_reason(results: Results) -> None:
    defenses, attacks = ENCODERS | CLASSIFIERS | {"spectral_signatures"}, {"badencoder", "badnets", "feature_collision"}
    tried = {(column.attack, defense) for defense, column in matrix.squares(results)}
    left_out = {(each.attack, each.defense) for each in results.left_out}
    assert tried == APPLIES
    assert left_out == set(product(attacks, defenses)) - APPLIES
    assert {each.reason for each in results.left_out} == REASONS


def test_squares_show_what_was_recorded(results: Results) -> None:
    def values(defense: str, metric: str, attack: str = "badencoder", **condition: object) -> list[float]:
        there = condition | {"state": "attacked"} if metric != "BA" and defense != "fine_pruning" else condition
        ours = [
            each for each in results.records if (each.defense, each.attack, each.metric) == (defense, attack, metric)
        ]
        return [each.value for each in ours if each.head in ("mlp", None) and there.items() <= each.condition.items()]

    found = {(column.attack, defense): each.numbers for (defense, column), each in matrix.squares(results).items()}

    def shown(defense: str, attack: str = "badencoder") -> list[float]:
        return [each.value for each in found[attack, defense]]

    def mean(some: list[float]) -> float:
        assert len(some) == 2
        return sum(some) / 2

    assert shown("strip") == pytest.approx([mean(values("strip", "AUC"))])
    assert shown("fine_pruning") == pytest.approx(
        [mean(values("fine_pruning", "ASR_strict")), mean(values("fine_pruning", "BA"))]
    )
    certified = [values("patchcleanser", "defended_ASR_strict"), values("patchcleanser", "defended_accuracy")]
    certified.append(values("patchcleanser", "certified_accuracy", patch=2))
    assert shown("patchcleanser") == pytest.approx([mean(each) for each in certified])
    assert shown("spectral_signatures", "badnets") == pytest.approx(
        [mean([r.value for r in results.records if (r.defense, r.metric) == ("spectral_signatures", "AUC")])]
    )


@given(st.lists(st.integers(0, 4), min_size=12, max_size=12))
@settings(max_examples=20, deadline=None)
def test_scores_of_all_seeds_are_compared_together(results: Results, scores: list[int]) -> None:
    drawn = iter(scores)
    verdicts = tuple(replace(each, score=float(next(drawn))) for each in results.verdicts)
    found = matrix.squares(replace(results, verdicts=verdicts))
    for (defense, column), each in found.items():
        ours = [it for it in verdicts if (it.attack, it.defense) == (column.attack, defense)]
        pairs = list(product(*([v.score for v in ours if v.state == state] for state in ("attacked", "clean"))))
        if ours:
            assert len(pairs) == 4
            assert each.numbers[0].value == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / 4)


def test_a_line_for_each_defense(results: Results) -> None:
    told = dict(line.split(": ", 1) for line in matrix.sentences(results))
    assert list(told) == ["decree", "neural_cleanse", "strip", "spectral_signatures", "fine_pruning", "patchcleanser"]
    assert (
        "Does not apply (no encoder is attacked, so there is none to judge or repair): badnets, feature_collision."
        in told["decree"]
    )
    for defense, words in told.items():
        for attack in ("badencoder", "badnets", "feature_collision"):
            assert attack in words, f"{defense} says nothing of {attack}"


def test_without_a_score_it_is_undecided(results: Results) -> None:
    blind = replace(results, verdicts=tuple(replace(each, score=None) for each in results.verdicts))
    told = dict(line.split(": ", 1) for line in matrix.sentences(blind))
    assert told["neural_cleanse"].startswith(
        "No answer (no score of attacked or of clean models): badencoder, badnets."
    )
    content = matrix.section(blind)
    assert content is not None
    (row,) = [row for block in content.blocks for row in block.rows if row.name == "neural_cleanse"]
    assert [(square.text, square.heat) for square in row.squares] == [("?", None), ("?", None), ("n/a", None)]


def made_up(value: float) -> Estimate:
    return Estimate(value, None, None, 1, "none")


def column(rate: float = 0.9, accuracy: float = 0.8) -> matrix.Column:
    return matrix.Column("a", "a", "t", "x", made_up(rate), made_up(accuracy))


@pytest.mark.parametrize(
    ("numbers", "at", "heat"),
    [((0.9,), 0, 0.8), ((0.89,), 1, 0.78), ((0.7,), 1, 0.4), ((0.69,), 2, 0.38), ((0.0,), 2, 0.0), ((1.0,), 0, 1.0)],
)
@pytest.mark.parametrize("measure", [matrix.DETECTS, matrix.SCREENS, matrix.SIFTS])
def test_an_auc_in_words_and_colors(measure: matrix.Measure, numbers: tuple[float], at: int, heat: float) -> None:
    found = matrix.Found(measure, tuple(map(made_up, numbers)))
    assert found.words(column()) == measure.words[at]
    assert found.heat(column()) == pytest.approx(heat)
    weak = found.heat(column(rate=0.49))
    assert (weak is None) == (measure is not matrix.SIFTS), "an attack that does not work shows nothing but its rows"


@pytest.mark.parametrize(
    ("rate", "accuracy", "at", "heat"),
    [
        (0.1, 0.78, 0, 0.9 * 0.78 / 0.8),
        (0.1, 0.76, 1, 0.9 * 0.76 / 0.8),
        (0.0, 0.1, 1, 0.125),
        (0.11, 0.9, 1, 0.89),
        (0.5, 0.8, 1, 0.5),
        (0.51, 0.8, 2, 0.49),
    ],
)
@pytest.mark.parametrize("measure", [matrix.REPAIRS, matrix.CERTIFIES])
def test_what_is_left_in_words_and_colors(
    measure: matrix.Measure, rate: float, accuracy: float, at: int, heat: float
) -> None:
    found = matrix.Found(measure, (made_up(rate), made_up(accuracy), made_up(0.3)))
    assert found.words(column()) == measure.words[at]
    assert found.heat(column()) == pytest.approx(heat)
    assert found.heat(column(rate=0.5)) == pytest.approx(heat)
    assert found.heat(column(rate=0.49)) is None, "an attack that does not work"


def test_the_page_has_the_map(results: Results) -> None:
    alone = [each for each in results.records if each.metric == "ASR_strict" and each.defense is None]
    results = replace(results, records=tuple(replace(r, value=0.9) if r in alone else r for r in results.records))
    page = render(results)
    assert "Every attack and every defense" in page
    shown = {(name, there): each.heat(there) for (name, there), each in matrix.squares(results).items()}
    heats = re.findall(r'class="number heat" style="--heat: ([0-9.]+)"', page)
    assert sorted(heats) == sorted(f"{heat:.2f}" for heat in shown.values() if heat is not None)
    assert len(heats) > 3
    assert 'title="no data are poisoned, so there are no rows to sift"' in page
    plain = replace(results, scenario={**results.scenario, "matrix": False})
    assert "Every attack and every defense" not in render(plain)
    assert page.count("<summary>Show</summary>") >= 5
    assert "<summary>Show</summary>" not in render(plain)
    assert matrix.sentences(plain) == []


def test_pages_have_the_attacks_as_rows(results: Results) -> None:
    lines = markdown.matrices(results).splitlines()
    (head,) = [line for line in lines if "spectral_signatures" in line and line.startswith("| attack")]
    assert head == "| attack | spectral_signatures |"
    (row,) = [line for line in lines[lines.index(head) :][:5] if line.startswith("| badnets |")]
    (found,) = [each for (name, _), each in matrix.squares(results).items() if name == "spectral_signatures"]
    assert row.endswith(f"| {found.numbers[0].number}<br><sub>{found.numbers[0].span}</sub> |")
    assert "…" in found.span
    assert [line.removeprefix("* ") for line in lines if line.startswith("* ")] == matrix.sentences(results)
    below = lines[lines.index(head) + 2 :]
    sifted = [line.split(" | ")[0] for line in below[: below.index("")]]
    assert sifted == ["| badnets"], "a sift applies to no other attack"
    tables, told = (markdown.matrices(results, part) for part in ("tables", "sentences"))
    assert f"{tables}\n{told}".splitlines() == lines
    with pytest.raises(SapperError, match="not the results of a matrix"):
        markdown.matrices(replace(results, scenario={**results.scenario, "matrix": False}))


def test_without_matrix_a_defense_has_to_apply(data: Path) -> None:
    with pytest.raises(SapperError, match="no data are poisoned") as caught:
        scenario(data, "matrix=false")
    assert caught.value.where is not None
    assert caught.value.where.endswith("defense[3].method")


def test_a_mistake_in_a_defense_stays_one(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SapperError) as caught:
        scenario(data, "defense.3.removed=2")
    assert "defense[3].removed" in str(caught.value)
    with pytest.raises(SapperError, match="4000 images are wanted") as late:
        perform(scenario(data, "defense.5.test_images=4000"), tmp_path)
    assert "defense[5].test_images" in str(late.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [('variant=[{"attack.epochs" = 2}]', "a matrix has no variants"), ("attack=[]", "attack")],
)
def test_a_matrix_has_attacks_and_no_variants(data: Path, change: str, message: str) -> None:
    with pytest.raises(SapperError, match=message):
        scenario(data, change)


def test_a_defense_may_name_tasks_that_another_attack_has(data: Path) -> None:
    told = scenario(data, 'defense.0.tasks=["balls"]', 'defense.5.tasks=["balls"]')
    lone = next(each for each in told.singles if each.attack_name == "feature_collision")
    assert not lone.defenses
    with pytest.raises(SapperError, match="no task with a target is called 'bells'"):
        scenario(data, 'defense.0.tasks=["bells"]')


def test_a_gray_task_leaves_the_others(data: Path) -> None:
    more = """
[[task]]
dataset = "{data}/balls"
name = "gray"
gray = true

[[target]]
task = "gray"
class = "red"
trigger = {{ size = 4 }}

[[defense]]
method = "ibp"
patch = 2
patches = [2]
"""
    one_task = PLAIN.replace('[[task]]\ndataset = "{data}/boxes"\n\n', "")
    key, rest = ATTACKS.split("\n\n", 1)
    text = key + one_task + rest.replace("{", "{{").replace("}", "}}") + more
    first = experiment(data, text=text, extra="").singles[0]
    (plan,) = [plan for plan in first.defenses if plan.name == "ibp"]
    assert plan.section.tasks == ["balls"]
    assert ("ibp", "ibp has a network of its own, which would see the colors of the gray task 'gray'") in first.left_out
    with pytest.raises(SapperError, match="which would see the colors"):
        experiment(data, "matrix=false", "attack.2.instead.defense=[]", "defense=[{method='ibp', patch=2}]", text=text)


# Made-up results: several tasks, one encoder for all, heads of an attack's own


def record(metric: str, value: float, **place: Any) -> Record:
    there = {"seed": 0, "attack": "badencoder", "head": "mlp", "stage": "measure"} | place
    return Record(**there, metric=metric, value=value)


def several() -> Results:
    """One encoder for two tasks, judged by a detector of encoders and a screen; a third task is not attacked."""
    records = [
        record(metric, value, task=task, target=None if metric == "BA" else f"{task}/red")
        for task, rate in (("balls", 0.9), ("boxes", 0.3))
        for metric, value in (("BA", 0.8), ("ASR_strict", rate), ("ASR", rate), ("lift", rate))
    ]
    records.append(record("CA", 0.7, task="rings"))
    on_encoders: dict[str, Any] = {"head": None, "stage": "screen", "defense": "dede"}
    for task, area in (("balls", 0.95), ("boxes", 0.6)):
        there = {"task": task, "target": f"{task}/red", "condition": {"state": "attacked"}}
        records.append(record("AUC", area, **on_encoders | there))
    for name, rate in (("fine_pruning", 0.05), ("unlearning", 0.9)):
        records.append(record("BA", 0.79, task="balls", defense=name))
        records.append(record("ASR_strict", rate, task="balls", target="balls/red", defense=name))
    records.append(record("trigger_recovered", 0.0, task="balls", defense="unlearning", head=None, stage="repair"))
    common: dict[str, Any] = {"seed": 0, "defense": "decree", "threshold": 1.0, "flagged": True, "seconds": 1.0}
    verdicts = (
        Judged(**common, subject="clean-seed0", state="clean", score=0.0, attack="badencoder"),
        Judged(**common, subject="all", state="attacked", score=2.0, attack="badencoder", task="balls + boxes"),
    )
    subjects = (
        Model(id="clean-seed0", state="clean", seed=0),
        Model(id="all", state="attacked", seed=0, tasks=("balls", "boxes")),
    )
    names = ("decree", "dede", "fine_pruning", "unlearning", "strip")
    told = {"matrix": True, "seeds": [0], "primary_head": "mlp", "defense": [{"method": name} for name in names]}
    return Results(
        scenario=told, environment={}, command="", records=tuple(records), verdicts=verdicts, subjects=subjects
    )


def test_each_task_has_a_column_and_one_encoder_counts_for_both() -> None:
    results = several()
    assert [each.title for each in matrix.attacks(results)] == ["balls → red", "boxes → red"]
    found = {(name, column.task): each for (name, column), each in matrix.squares(results).items()}
    for task in ("balls", "boxes"):
        assert found["decree", task].shown == "100.0"
    assert (found["dede", "balls"].shown, found["dede", "boxes"].shown) == ("95.0", "60.0")
    told = dict(line.split(": ", 1) for line in matrix.sentences(results))
    assert told["fine_pruning"].endswith(": balls → red (5.0, accuracy 79.0). Not tried: boxes → red.")
    assert told["unlearning"].startswith("No answer (no trigger was recovered, so nothing was changed): balls → red.")
    assert told["strip"] == "Not tried: balls → red, boxes → red."
    assert "Without a defense these have a strict ASR below 50 %: boxes → red." in told["decree"]


class StartedError(Exception):
    """Something is about to be made."""


class Starting:
    """An executor that takes all stages and makes none."""

    def takes(self, stage: Stage) -> bool:
        return True

    def make(self, missing: list[Stage], done: dict[Stage, Finished], store: Store, tell: Tell) -> None:
        raise StartedError(len(missing))


@pytest.mark.slow  # its data are drawn
def test_the_matrix_of_all_methods_starts(tmp_path: Path) -> None:
    with pytest.raises(StartedError) as started:
        sapper.run("matrix", tmp_path, overrides=("seeds=[0]", 'precision="float32"'), executor=Starting())
    assert started.value.args[0] > 500
