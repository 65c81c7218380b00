"""PatchGuard's masking and certificate against plain loops, and against attackers who try everything."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapper.defenses.masking import certify, column_windows, masked_scores, robust_prediction, square_windows


def evidence(images: int, places: int, classes: int, seed: int) -> Tensor:
    """Random evidence in which the class 0 leads, by more or less."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(images, places, classes, generator=generator, dtype=torch.float64)
    lead = torch.rand(images, 1, generator=generator, dtype=torch.float64)
    values[:, :, 1:] *= lead.unsqueeze(2) ** 2
    return values


def score(column: list[float], windows: list[set[int]], share: float) -> float:
    """One class's masked score, from its evidence at each place."""
    total = sum(column)
    strongest = max(sum(column[place] for place in window) for window in windows)
    return total - strongest if strongest > share * total else total


def as_sets(windows: Tensor) -> list[set[int]]:
    return [set(window.nonzero().flatten().tolist()) for window in windows]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("windows", [column_windows(7, 3), square_windows(3, 4, 2)], ids=["columns", "squares"])
def test_masked_scores_are_those_of_the_loops(windows: Tensor, share: float) -> None:
    values = evidence(20, windows.shape[1], 3, seed=1)
    expected = [[score(values[i, :, c].tolist(), as_sets(windows), share) for c in range(3)] for i in range(20)]
    torch.testing.assert_close(masked_scores(values, windows, share), torch.tensor(expected, dtype=torch.float64))


def test_windows_are_all_there_and_wrap_around() -> None:
    assert as_sets(column_windows(5, 2)) == [{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 0}]
    assert as_sets(square_windows(2, 3, 2)) == [{0, 1, 3, 4}, {1, 2, 4, 5}]
    assert column_windows(4, 9).all()


def reachable(column: list[float], windows: list[set[int]], spoiled: set[int], share: float) -> tuple[float, float]:
    """The lowest and highest masked score that an attacker gets out of the places ``spoiled``, trying everything."""
    outside = sum(value for place, value in enumerate(column) if place not in spoiled)
    edge = share * outside / (1 - share)
    values = sorted({0.0, edge / len(spoiled), edge * 0.999, edge * 1.001, 10.0, 0.3 * edge, 0.6 * edge})
    scores = []
    for choice in product(values, repeat=len(spoiled)):
        attacked = list(column)
        for place, value in zip(sorted(spoiled), choice):
            attacked[place] = value
        scores.append(score(attacked, windows, share))
    return min(scores), max(scores)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    places=st.integers(4, 8),
    size=st.integers(1, 3),
    share=st.sampled_from([0.0, 0.2, 0.4, 0.59, 0.8]),
    wraps=st.booleans(),
)
def test_nothing_that_an_attacker_tries_changes_a_certified_image(
    seed: int, places: int, size: int, share: float, wraps: bool
) -> None:
    windows = column_windows(places, size) if wraps else square_windows(1, places, size)
    values = evidence(6, places, 3, seed)
    labels = torch.zeros(6, dtype=torch.int64)
    for row in certify(values, windows, labels, share).nonzero().flatten().tolist():
        for spoiled in as_sets(windows):
            bounds = [reachable(values[row, :, c].tolist(), as_sets(windows), spoiled, share) for c in range(3)]
            assert bounds[0][0] > max(bounds[1][1], bounds[2][1])


def test_the_published_bound_is_unsound_where_windows_wrap_around_and_ours_is_not() -> None:
    """The authors' code certifies this image, and columns 9, 0 and 1 set to zero and filled anew flip it."""
    true = (0.24, 0.22, 0.35, 0.40, 0.05, 0.33, 0.18, 0.27, 0.20, 0.42)
    other = (0, 0, 0, 0.12, 0.07, 0.10, 0.10, 0.12, 0, 0)
    image = torch.tensor([true, other]).T.unsqueeze(0)
    windows, label = column_windows(10, 3), torch.tensor([0])
    assert robust_prediction(image, windows, 0.59).item() == 0
    attacked = image.clone()
    attacked[0, [9, 0, 1]] = 0
    attacked[0, 1, 0], attacked[0, 0, 1] = 0.775, 0.54
    assert robust_prediction(attacked, windows, 0.59).item() == 1
    assert not certify(image, windows, label, 0.59).item()


@pytest.mark.parametrize(("lead", "certified"), [(3.2, True), (3.1, False)])
def test_a_patch_of_ten_pixels_needs_three_times_the_evidence_everywhere(lead: float, certified: bool) -> None:
    """Bands of 4 columns of 32: a 10-pixel patch spoils 13, and (32 − 2·13)·ȳ > (32 − 13)·c̄ must hold, ȳ > 3.17 c̄."""
    image = torch.tensor([lead, 1.0]).expand(1, 32, 2)
    assert certify(image, column_windows(32, 13), torch.tensor([0])).item() == certified


def test_a_wrong_prediction_is_never_certified_and_a_right_one_without_rivals_always() -> None:
    image = torch.zeros(1, 8, 3)
    image[:, :, 1] = 1
    assert certify(image, column_windows(8, 3), torch.tensor([1])).item()
    assert not certify(image, column_windows(8, 3), torch.tensor([0])).item()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_true_class_with_more_evidence_stays_certified(share: float) -> None:
    values, windows = evidence(100, 8, 3, seed=3), column_windows(8, 2)
    labels = torch.zeros(100, dtype=torch.int64)
    before = certify(values, windows, labels, share)
    values[:, :, 0] += 0.2
    assert 0 < before.sum() < 100
    assert (certify(values, windows, labels, share) >= before).float().mean() > 0.95
