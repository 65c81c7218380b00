"""Every attack beside every defense: what does not apply says why, and nothing that applies is missing."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapper.errors import SapperError
from sapper.experiment.results import Results, read_results, write_results
from sapper.report import markdown, matrix, render
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
    "badencoder poisons no data, so there are no rows to sift",
    "badnets attacks no encoder, so there is none to judge or repair",
    "feature_collision attacks no encoder, so there is none to judge or repair",
    "feature_collision poisons no data, so there are no rows to sift",
    "classifiers of feature_collision are not kept, so no defense can look at them",
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
    assert "Does not apply to badnets, feature_collision: attacks no encoder" in told["decree"]
    for defense, words in told.items():
        for attack in ("badencoder", "badnets", "feature_collision"):
            assert attack in words, f"{defense} says nothing of {attack}"


def test_without_a_score_it_is_undecided(results: Results) -> None:
    blind = replace(results, verdicts=tuple(replace(each, score=None) for each in results.verdicts))
    told = dict(line.split(": ", 1) for line in matrix.sentences(blind))
    assert told["neural_cleanse"].startswith("Undecided: badencoder, badnets.")
    content = matrix.section(blind)
    assert content is not None
    (row,) = [row for block in content.blocks for row in block.rows if row.name == "neural_cleanse"]
    assert [(square.text, square.heat) for square in row.squares] == [("?", None), ("?", None), ("–", None)]


@pytest.mark.parametrize(
    ("measure", "value", "words"),
    [
        (matrix.DETECTS, 0.9, "Sees (AUC of 90 % or more)"),
        (matrix.DETECTS, 0.89, "Sees in part (70 to 90 %)"),
        (matrix.DETECTS, 0.69, "Misses (less than 70 %)"),
        (matrix.DETECTS, 0.0, "Misses (less than 70 %)"),
        (matrix.REPAIRS, 0.1, "Takes out (strict ASR of 10 % or less)"),
        (matrix.REPAIRS, 0.49, "Takes out in part (10 to 50 %)"),
        (matrix.CERTIFIES, 0.51, "Lets through (more than 50 %)"),
    ],
)
def test_limits_in_words(measure: matrix.Measure, value: float, words: str) -> None:
    assert measure.verdict(value) == words


def test_the_page_has_the_map(results: Results) -> None:
    page = render(results)
    assert "Every attack and every defense" in page
    squares = matrix.squares(results).items()
    worked = [each for (_, column), each in squares if column.worked or each.measure in (matrix.DETECTS, matrix.SIFTS)]
    assert page.count('class="number heat"') == sum(bool(each.numbers) for each in worked) > 3
    assert 'title="badencoder poisons no data, so there are no rows to sift"' in page
    plain = replace(results, scenario={**results.scenario, "matrix": False})
    assert "Every attack and every defense" not in render(plain)
    assert page.count("<summary>Show</summary>") >= 5
    assert "<summary>Show</summary>" not in render(plain)
    assert matrix.sentences(plain) == []


def test_pages_have_the_attacks_as_rows(results: Results) -> None:
    lines = markdown.matrices(results).splitlines()
    (head,) = [line for line in lines if "spectral_signatures" in line and line.startswith("| attack")]
    assert head == "| attack | strict ASR, alone | accuracy, alone | spectral_signatures |"
    (row,) = [line for line in lines[lines.index(head) :][:5] if line.startswith("| badnets |")]
    (found,) = [each for (name, _), each in matrix.squares(results).items() if name == "spectral_signatures"]
    assert row.endswith(f"| {found.numbers[0].number} |")
    assert [line.removeprefix("* ") for line in lines if line.startswith("* ")] == matrix.sentences(results)
    with pytest.raises(SapperError, match="not the results of a matrix"):
        markdown.matrices(replace(results, scenario={**results.scenario, "matrix": False}))


def test_without_matrix_a_defense_has_to_apply(data: Path) -> None:
    with pytest.raises(SapperError, match="poisons no data") as caught:
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
