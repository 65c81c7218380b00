"""Beatrix against plain loops: Gram matrices order by order, bounds, the two-sample test; and that it works."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapper.defenses.defender import Defender
from sapper.defenses.inversion import anomaly_index
from sapper.defenses.judge.beatrix import ALIKE, Beatrix, Bounds, bounds, excess, gram, kmmd, median
from sapper.downstream import MLP
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from tests.planted import as_they_come, gratings, trained
from tests.victims import balls, plain, victim


def noise(*shape: int, seed: int = 0, signed: bool = True) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values if signed else values.relu()


def textbook(image: np.ndarray, order: int) -> list[float]:
    """Of one image (C, places): every pair of channels, one after another."""
    numbers = []
    for i in range(len(image)):
        for j in range(i, len(image)):
            total = sum(float(a) ** order * float(b) ** order for a, b in zip(image[i], image[j]))
            numbers.append(np.sign(total) * abs(total) ** (1 / order))
    return numbers


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("order", range(1, 9))
def test_gram_matrices_are_those_of_a_loop_over_pairs_of_channels(order: int, signed: bool) -> None:
    maps = noise(3, 4, 5, seed=order, signed=signed)
    ours = gram(maps, order).double().numpy()
    for image, numbers in zip(maps.double().numpy(), ours):
        assert numbers == pytest.approx(textbook(image, order), rel=1e-3, abs=1e-4)


def test_the_second_order_is_no_monotone_map_of_the_first() -> None:
    """As it would be without the power of the features, which a public port left out."""
    maps = noise(200, 2, 3, seed=1, signed=False)
    first, second = (gram(maps, order)[:, 1] for order in (1, 2))
    assert not torch.equal(first.argsort(), second.argsort())
    products = maps @ maps.transpose(1, 2)
    assert torch.equal(first.argsort(), products[:, 0, 1].sqrt().argsort())


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 9), columns=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_bounds_and_deviations_are_numpys(rows: int, columns: int, seed: int) -> None:
    values, other = noise(rows, columns, seed=seed), 5 * noise(4, columns, seed=seed + 1)
    middle = np.median(values.double().numpy(), axis=0)
    assert median(values).numpy() == pytest.approx(middle, abs=1e-6)
    spread = np.median(abs(values.double().numpy() - middle), axis=0)
    low, high = bounds(values, 2.0)
    assert low.numpy() == pytest.approx(middle - 2 * spread, abs=1e-5)
    assert high.numpy() == pytest.approx(middle + 2 * spread, abs=1e-5)
    for row, found in zip(other.tolist(), excess(other, low, high).tolist()):
        parts = []
        for value, least, most in zip(row, low.tolist(), high.tolist()):
            under = (least - value) / (abs(least) + 1e-6) if value < least else 0.0
            parts.append((value - most) / (abs(most) + 1e-6) if value > most else under)
        assert found == pytest.approx(sum(parts) / len(parts), rel=1e-4)


def test_nothing_changes_where_a_channel_is_scaled() -> None:
    """Bounds are taken on scaled channels: deviations do not know the scale."""
    method = Beatrix(per_class=6, orders=(1, 3))
    clean, other = noise(3, 6, 4, 5, seed=2, signed=False), noise(7, 4, 5, seed=3, signed=False)
    labels, scale = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.tensor([1.0, 2.0, 16.0, 0.5]).view(-1, 1)
    small, large = (Bounds.of(factor * clean, method) for factor in (1, scale))
    assert torch.allclose(small.deviation(other, labels), large.deviation(scale * other, labels), rtol=1e-3)
    assert torch.allclose(small.cuts, large.cuts, rtol=1e-3)


def test_cuts_and_deviations_are_those_of_a_loop_over_images_folds_and_orders() -> None:
    method = Beatrix(per_class=10, orders=(1, 2, 5), cut=0.8)
    clean, other = noise(2, 10, 3, 4, seed=4, signed=False), noise(5, 3, 4, seed=5, signed=False)
    known, labels = Bounds.of(clean, method), torch.tensor([1, 0, 1, 1, 0])
    scaled = (clean / known.scale.view(-1, 1)).double().numpy()

    def deviation(image: np.ndarray, among: np.ndarray) -> float:
        found = []
        for order in method.orders:
            of_clean = np.array([textbook(each, order) for each in among])
            middle = np.median(of_clean, axis=0)
            spread = 10 * np.median(abs(of_clean - middle), axis=0)
            for number, low, high in zip(textbook(image, order), middle - spread, middle + spread):
                found.append(max(0.0, low - number) / (abs(low) + 1e-6) + max(0.0, number - high) / (abs(high) + 1e-6))
        return float(np.mean(found))

    for label, images in enumerate(scaled):
        folded = []
        for fold in range(5):
            inside = [row for row in range(10) if row // 2 == fold]
            rest = images[[row for row in range(10) if row not in inside]]
            folded += [deviation(images[row], rest) for row in inside]
        assert float(known.cuts[label]) == pytest.approx(sorted(folded)[8], rel=1e-3)
    for image, label, found in zip(
        (other / known.scale.view(-1, 1)).double().numpy(), labels, known.look(other, labels)
    ):
        assert float(found[0]) == pytest.approx(deviation(image, scaled[label]), rel=1e-3, abs=1e-6)
    assert torch.allclose(known.look(other, labels)[:, 1:], other.mean(2))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), m=st.integers(1, 6), size=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_the_two_sample_test_is_a_double_loop_over_pairs(n: int, m: int, size: int, seed: int) -> None:
    one, other = noise(n, size, seed=seed), 1 + noise(m, size, seed=seed + 1)
    every = [row for rows in (one, other) for row in rows.double().tolist()]
    squares = [[sum((a - b) ** 2 for a, b in zip(x, y)) for y in every] for x in every]
    width = float(np.median(squares))
    if width == 0:
        assert kmmd(one, other) == 0
        return
    total = 0.0
    for i in range(n + m):
        for j in range(n + m):
            kernel = exp(-squares[i][j] / width) + exp(-squares[i][j] / (width / 2))
            weight = (1 / n if i < n else -1 / m) * (1 / n if j < n else -1 / m)
            total += weight * kernel
    assert kmmd(one, other) == pytest.approx(n * m / (n + m) * total, rel=1e-6, abs=1e-9)


def test_features_without_places_are_looked_at_too() -> None:
    defender = owner(balls(90, 1), balls(60, 2))
    (verdict,) = Beatrix(per_class=10, layer="features").judge([defender.build(Run())], defender, Run())
    assert sum(verdict.evidence["inputs"]) == 60
    assert len(verdict.evidence["distances"]) == 3


@pytest.mark.slow
def test_images_with_the_trigger_of_badnets_give_its_class_away() -> None:
    """A tenth of the images that come have the trigger; the clean classifier is shown the same ones."""
    own, stream = gratings(400, 7), as_they_come(gratings)
    bad = Beatrix().examine(trained(gratings, 1, 0), own, stream, Run(seed=0))
    assert bad.flagged is True
    assert bad.evidence["suspect"] == 0
    assert Beatrix().examine(trained(gratings, 0), own, stream, Run(seed=0)).flagged is False


def test_a_few_abnormal_inputs_are_no_outlier_where_other_classes_have_none() -> None:
    """Most classes have a distance of 0 then, and so has their deviation."""
    distances = [-each for each in (0.0, 0.0, 0.0, 1.9, 0.0, 2.3)]
    index, suspect = anomaly_index(distances, ALIKE)
    assert (index, suspect) == (2.3, 5)


def owner(train: ImageSet, stream: ImageSet | None, encoder: Encoder | None = None) -> Defender:
    return Defender.of(encoder or victim(), MLP(epochs=2, hidden=(8, 8)), train, Run(seed=1), stream)


def test_bad_input_is_told() -> None:
    clean, method = balls(60, 1), Beatrix(per_class=10)
    cases = [
        (method, clean, None, "judges by images in doubt, and there are none"),
        (Beatrix(per_class=30), clean, balls(9, 2), "30 clean images of each of 3 classes are needed"),
        (method, replace(balls(60, 1), classes=("a", "b", "c", "d")), balls(9, 2), "class 'd' has 0 clean images"),
        (method, pair(balls(60, 1)), balls(9, 2), "an outlier among 2 classes"),
        (method, clean, small(balls(9, 2)), "images in doubt are 8×8, clean ones 16×16"),
    ]
    for judge, train, stream, says in cases:
        defender = owner(train, stream)
        with pytest.raises(SapperError, match=says) as caught:
            judge.judge([defender.build(Run())], defender, Run())
        assert caught.value.remedy
    defender = owner(clean, balls(9, 2))
    bare = replace(defender, train=replace(plain(clean), classes=clean.classes))
    with pytest.raises(SapperError, match="needs labels"):
        method.judge([defender.build(Run())], bare, Run())


def pair(images: ImageSet) -> ImageSet:
    return replace(images.take(images.targets() < 2), classes=("red", "green"))


def small(images: ImageSet) -> ImageSet:
    return replace(images, images=images.images[:, :, ::2, ::2].contiguous())


def test_classes_that_no_input_is_called_are_not_compared() -> None:
    """With inputs of one class alone there is nothing to compare."""
    own = gratings(300, 7)
    stream = own.take(own.targets() == 2)
    verdict = Beatrix(per_class=10).examine(trained(gratings, 0), own, stream, Run())
    assert sum(count > 0 for count in verdict.evidence["inputs"]) < 3
    assert (verdict.score, verdict.flagged) == (None, None)
