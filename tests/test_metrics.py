"""Metrics against hand counts, intervals against scipy and against simulation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from sapper.metrics import attack_metrics, auc, auc_rate, difference, is_constant, least_share, share

bits = st.lists(st.booleans(), min_size=1, max_size=60)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(bits)
def test_share_is_wilsons_interval(hits: list[bool]) -> None:
    rate = share(torch.tensor(hits))
    expected = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    assert rate.value == pytest.approx(sum(hits) / len(hits))
    assert (rate.low, rate.high, rate.n) == (
        pytest.approx(expected.low, abs=1e-9),
        pytest.approx(expected.high, abs=1e-9),
        len(hits),
    )


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=40))
def test_the_least_share_has_wilsons_interval_for_all_columns_at_once(rows: list[list[bool]]) -> None:
    hits = torch.tensor(rows)
    rate = least_share(hits)
    intervals = [
        binomtest(int(column.sum()), len(rows)).proportion_ci(confidence_level=1 - 0.05 / 3, method="wilson")
        for column in hits.T
    ]
    assert rate.value == pytest.approx(min(float(column.double().mean()) for column in hits.T))
    assert rate.low == pytest.approx(min(each.low for each in intervals), abs=1e-9)
    assert rate.high == pytest.approx(min(each.high for each in intervals), abs=1e-9)
    one, alone = least_share(hits[:, :1]), share(hits[:, 0])
    assert (one.value, one.low, one.high) == pytest.approx((alone.value, alone.low, alone.high))


@given(pairs)
def test_difference_is_within_its_interval_and_antisymmetric(drawn: list[tuple[bool, bool]]) -> None:
    ours, theirs = torch.tensor(drawn).T
    forth, back = difference(ours, theirs), difference(theirs, ours)
    assert -1 <= forth.low <= forth.value + 1e-12
    assert forth.value - 1e-12 <= forth.high <= 1
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_difference_equals_newcombes_formula_on_a_table_worked_by_hand() -> None:
    """36 both, 12 only the first, 2 only the second, 0 neither: φ < 0, so no continuity correction."""
    table = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    ours, theirs = torch.tensor(table).T
    rate = difference(ours, theirs)
    assert rate.value == pytest.approx(0.20)
    # Newcombe 1998, table II, method 10 gives 0.0569 to 0.3404 for these counts.
    assert rate.low == pytest.approx(0.0569, abs=5e-5)
    assert rate.high == pytest.approx(0.3404, abs=5e-5)


def test_difference_covers_the_truth_in_95_of_100_cases() -> None:
    generator = torch.Generator().manual_seed(0)
    covered, rounds, n = 0, 1500, 80
    for _ in range(rounds):
        both = torch.rand(n, generator=generator)
        ours, theirs = both < 0.9, (both < 0.15) | (torch.rand(n, generator=generator) < 0.1)
        rate = difference(ours, theirs)
        covered += rate.low <= 0.9 - (0.15 + 0.85 * 0.1) <= rate.high
    assert 0.93 <= covered / rounds <= 0.985


def test_all_metrics_of_a_case_counted_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    rates = attack_metrics(
        labels,
        target=1,
        clean_on_clean=torch.tensor([0, 0, 1, 0, 2]),
        clean_on_triggered=torch.tensor([0, 1, 1, 1, 2]),
        backdoored_on_clean=torch.tensor([0, 1, 1, 0, 2]),
        backdoored_on_triggered=torch.tensor([1, 1, 1, 1, 2]),
    )
    values = {name: rate.value for name, rate in rates.items()}
    assert values == pytest.approx(
        {"CA": 0.8, "BA": 0.6, "ASR": 0.8, "ASR_strict": 2 / 3, "ASR_B": 0.6, "ASR_B_strict": 1 / 3, "lift": 1 / 3}
    )
    assert rates["ASR"].n == 5
    assert rates["ASR_strict"].n == rates["lift"].n == 3


def test_target_class_images_cannot_raise_the_strict_rate() -> None:
    """A classifier that ignores the trigger has a paper's ASR of the class share, and a strict one of zero."""
    labels = torch.arange(100) % 10
    perfect = dict.fromkeys(
        ["clean_on_clean", "clean_on_triggered", "backdoored_on_clean", "backdoored_on_triggered"], labels
    )
    rates = attack_metrics(labels, 3, **perfect)
    assert rates["ASR"].value == pytest.approx(0.1)
    assert rates["ASR_strict"].value == 0
    assert rates["lift"].value == 0


def test_constant_predictions_are_noticed() -> None:
    assert is_constant(torch.full((100,), 4))
    assert not is_constant(torch.arange(100) % 10)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_auc_is_that_of_scikit_learn(positive: list[int], negative: list[int]) -> None:
    truth = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(truth, positive + negative)
    assert auc(torch.tensor(positive), torch.tensor(negative)) == pytest.approx(expected)


def test_two_that_have_no_score_are_a_tie() -> None:
    assert auc(torch.tensor([-torch.inf, 5.0]), torch.tensor([-torch.inf, 1.0])) == (0.5 + 0 + 1 + 1) / 4


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_the_auc_is_in_its_interval_and_mirrored(positive: list[int], negative: list[int]) -> None:
    rate = auc_rate(torch.tensor(positive), torch.tensor(negative))
    mirror = auc_rate(torch.tensor(negative), torch.tensor(positive))
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.n == len(positive) + len(negative)
    assert (1 - rate.high, 1 - rate.low) == (pytest.approx(mirror.low, abs=1e-9), pytest.approx(mirror.high, abs=1e-9))


def test_the_ends_of_the_auc_interval_are_two_deviations_away() -> None:
    """By hand for 4 positive and 3 negative scores: a distance of 1.96 deviations, each taken at the end itself."""
    rate = auc_rate(torch.tensor([3.0, 5.0, 6.0, 7.0]), torch.tensor([1.0, 4.0, 2.0]))
    assert rate.value == pytest.approx(11 / 12)
    for end in (rate.low, rate.high):
        both_above, both_below = end / (2 - end), 2 * end**2 / (1 + end)
        variance = (end * (1 - end) + 2.5 * (both_above - end**2) + 2.5 * (both_below - end**2)) / 12
        assert abs(rate.value - end) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-4)


@pytest.mark.parametrize("area", [0.5, 0.9, 0.98])
def test_the_auc_interval_covers_as_often_as_it_says(area: float) -> None:
    random, shift = np.random.default_rng(1), math.sqrt(2) * norm.ppf(area)
    covered = 0
    for _ in range(500):
        positive, negative = (torch.from_numpy(random.normal(at, 1, 10)) for at in (shift, 0.0))
        rate = auc_rate(positive, negative)
        covered += rate.low <= area <= rate.high
    assert 0.92 <= covered / 500 <= 0.995
