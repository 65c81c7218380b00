"""Bags over families: their p-value by hand and by simulation, and what cannot be used."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapper.audits.families import (
    Family,
    FamilyBag,
    fitting_families,
    parameters_of,
    read_families,
    write_families,
)
from sapper.defenses.budgets import BUDGETS
from sapper.errors import SapperError
from sapper.zoo.outline import outline, read_content
from tests.conftest import REPOSITORY

QUICK = replace(BUDGETS["quick"], strangers={"multi_prior": {"blends": ()}})


def bag(scores: list[list[float | None]], name: str = "known") -> FamilyBag:
    families = [Family(name=f"family {i}", about="toys", scores=each) for i, each in enumerate(scores)]
    parameters = parameters_of(QUICK.for_strangers()["multi_prior"])
    return FamilyBag(name=name, detector="multi_prior", parameters=parameters, images=100, families=families)


def test_the_p_value_counts_families_by_hand() -> None:
    known = bag([[0.1, 0.5], [2.0], [-1.0, None], [0.3, 0.2]])
    assert (known.size, known.encoders) == (4, 7)
    assert known.p_value(0.5) == (1 + 3) / 5  # the first, the second, and the one without a score
    assert known.p_value(0.6) == (1 + 2) / 5
    assert known.p_value(3.0) == (1 + 1) / 5
    assert bag([[0.0]] * 19).p_value(1.0) == pytest.approx(0.05)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=4), min_size=1, max_size=30), st.floats(-5, 5))
def test_the_p_value_falls_with_the_score_and_has_its_ends(scores: list[list[float]], score: float) -> None:
    known = bag([list(each) for each in scores])
    p = known.p_value(score)
    assert 1 / (len(scores) + 1) <= p <= 1
    assert known.p_value(score + 1) <= p
    assert known.p_value(math.inf) == 1 / (len(scores) + 1)


def test_new_families_are_flagged_no_more_often_than_the_bound_says() -> None:
    """Families differ far more than their members: who counts members promises 2 %, and flags 5."""
    random, members, flagged, as_members = np.random.default_rng(3), 4, 0, 0
    trials = 4000
    for _ in range(trials):
        families = random.normal(0, 3, (20, 1)) + random.normal(0, 0.3, (20, members))
        suspect = families[0, 0]
        flagged += bag([row.tolist() for row in families[1:]]).p_value(suspect) <= 0.05
        others = families[1:].ravel()
        as_members += (1 + (others >= suspect).sum()) / (len(others) + 1) <= 0.02
    assert flagged / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert as_members / trials > 0.035


def test_a_bag_fits_its_detector_and_is_large_enough() -> None:
    enough, few = bag([[0.0]] * 19), bag([[0.0]] * 18, "few")
    assert fitting_families(QUICK, [few, enough], 0.05, 200).bag == enough
    assert "18 of the 19 families" in fitting_families(QUICK, [few], 0.05, 200).reason
    other = replace(QUICK, strangers={"multi_prior": {"filters": ()}})
    assert "as the budget quick has it" in fitting_families(other, [enough], 0.05, 200).reason
    assert fitting_families(QUICK, [], 0.05, 200).reason == "no bag over families is known"
    none = fitting_families(replace(QUICK, strangers={}), [enough], 0.05, 200)
    assert none.reason == "the budget quick has no detector that can be compared among families"


def test_a_bag_speaks_for_no_fewer_images_than_it_was_made_with() -> None:
    few, many = bag([[0.0]] * 20, "few"), replace(bag([[0.0]] * 20, "many"), images=1000)
    assert [fitting_families(QUICK, [few, many], 0.05, count).bag for count in (100, 999, 1000)] == [few, few, many]
    none = fitting_families(QUICK, [many, few], 0.05, 99)
    assert (none.bag, none.images) == (None, 100)
    assert "made with 100 images" in none.reason
    assert "here are 99" in none.reason


def test_a_family_without_a_score_can_make_a_bag_useless() -> None:
    """Of 20 families one may have none: p ≥ 2/21 otherwise, and 39 are needed for 5 %."""
    parameters = parameters_of(QUICK.for_strangers()["multi_prior"])
    for families, without, useless in ((20, 1, True), (39, 1, False), (39, 2, True)):
        scores: list[list[float | None]] = [[None] if number < without else [0.0] for number in range(families)]
        known = replace(bag(scores), detector="multi_prior", parameters=parameters)
        found = fitting_families(QUICK, [known], 0.05, 200)
        assert (found.bag is None) == useless
        assert ("have an encoder without a score" in found.reason) == useless


def test_strangers_are_compared_alike_in_every_budget() -> None:
    """One bag serves all: the same detector leads, with the same parameters."""
    leading = [next(iter(budget.for_strangers().items())) for budget in BUDGETS.values()]
    assert {name for name, _ in leading} == {"twins"}
    assert all(parameters_of(method) == parameters_of(leading[0][1]) for _, method in leading)
    for budget in BUDGETS.values():
        told = budget.tried_on(strangers=True)
        assert "which decides" in told[0]
        assert all(each.startswith("as evidence only: ") for each in told[1:])
        assert len(told) >= len(budget.strangers)


def test_the_bag_that_was_measured_is_of_the_plans_calibration_and_fits_every_budget() -> None:
    known = read_families(REPOSITORY / "docs" / "results" / "data" / "families.json")
    plan = REPOSITORY / "zoos" / "families.toml"
    outlined = outline(read_content(plan), str(plan))
    wanted = {
        family.name: parts["calibration"].clean
        for family, parts in zip(outlined.families, outlined.numbers)
        if parts["calibration"].clean
    }
    assert {family.name: len(family.scores) for family in known.families} == wanted
    for budget in BUDGETS.values():
        assert fitting_families(budget, [known], 0.05, known.images).bag == known


def test_a_bag_survives_its_file(tmp_path: Path) -> None:
    known = bag([[0.1, None], [2.0]])
    write_families(known, tmp_path / "a.json")
    assert read_families(tmp_path / "a.json") == known


def text(name: str = "a", scores: str = "[1]", families: int = 1) -> str:
    """A bag as a file has it."""
    family = f'{{"name": "x", "about": "", "scores": {scores}}}'
    listed = ", ".join([family] * families)
    content = f'"name": "{name}", "detector": "twins", "parameters": {{}}, "images": 9, "families": [{listed}]'
    return f"{{{content}}}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no bag over families can be read"),
        (text(families=0), "families"),
        (text(families=2), "'x' is there twice"),
        (text(name="a/b"), "name"),
        (text(scores="[NaN]"), "read"),
        (text(scores="[]"), "scores"),
    ],
)
def test_what_is_no_bag_is_told(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SapperError, match=words):
        read_families(tmp_path / "a.json")
