"""SCAn against per-class numpy: the estimate of what varies, the likelihood ratio; and that it works."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sapper.defenses.defender import Defender
from sapper.defenses.judge.scan import SCAn, divided, means, untangle
from sapper.downstream import MLP
from sapper.errors import SapperError
from sapper.running import Run
from tests.planted import as_they_come, colors, trained, training_set
from tests.victims import balls, victim

SIZE, CLASSES = 4, 5


def clusters(per_class: list[int], seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows float64 (N, 4) of classes with identities of their own and one variation, and their labels."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    identities = 3 * np.random.default_rng(1).normal(size=(len(per_class), SIZE))
    labels = np.repeat(np.arange(len(per_class)), per_class)
    rows = identities[labels] + spread * random.normal(size=(len(labels), SIZE)) @ mixing
    return torch.from_numpy(rows), torch.from_numpy(labels)


def estimated(rows: np.ndarray, labels: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """S_μ and S_ε, class by class and row by row, with inverses written out."""
    identity = {k: rows[labels == k].mean(0) for k in set(labels)}
    u = np.array([identity[k] for k in labels])
    between, inside = np.cov(u.T), np.cov((rows - u).T)
    for _ in range(steps):
        identity = {
            k: between @ np.linalg.inv((labels == k).sum() * between + inside) @ rows[labels == k].sum(0)
            for k in set(labels)
        }
        u = np.array([identity[k] for k in labels])
        between, inside = np.cov(u.T), np.cov((rows - u).T)
    return between, inside


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("counts", [[30] * CLASSES, [4, 9, 17, 30, 6]])
def test_em_is_that_of_a_loop_over_classes(steps: int, counts: list[int]) -> None:
    rows, labels = clusters(counts, 2)
    found = untangle(rows, labels, len(counts), 1e-9, steps)
    between, inside = estimated((rows - rows.mean(0)).numpy(), labels.numpy(), steps)
    axes = found.axes.numpy()
    assert axes.T @ inside @ axes == pytest.approx(np.eye(SIZE), abs=1e-5)
    assert axes.T @ between @ axes == pytest.approx(np.diag(found.between.numpy()), abs=1e-4)


def test_the_ratio_is_that_of_a_loop_over_rows() -> None:
    """Twice the logarithm of two normal densities' ratio, for the division that was found."""
    rows, labels = clusters([20] * CLASSES, 3)
    model = untangle(rows, labels, CLASSES, 1e-9, 5)
    between, inside = estimated((rows - rows.mean(0)).numpy(), labels.numpy(), 5)
    other, of = clusters([8, 15, 3, 30, 12], 4, spread=1.5)
    ratios, side = model.ratios(other, of, 8, 100, Run(seed=1))
    inverse, centered = np.linalg.inv(inside), (other - rows.mean(0)).numpy()

    def density(row: np.ndarray, middle: np.ndarray) -> float:
        return -0.5 * float((row - middle) @ inverse @ (row - middle))

    for label in range(CLASSES):
        own, sides = centered[of.numpy() == label], side[of == label].numpy()
        one = between @ np.linalg.inv(len(own) * between + inside) @ own.sum(0)
        two = [own[sides == each].mean(0) for each in (False, True)]
        total = sum(2 * (density(row, two[int(each)]) - density(row, one)) for row, each in zip(own, sides))
        assert float(ratios[label]) == pytest.approx(total / len(own), rel=1e-4)


def test_classes_that_are_divided_at_once_are_divided_as_well_as_by_trying_everything() -> None:
    rows, of = clusters([6, 5, 7], 5)
    rows[:2] += 9
    side = divided(rows, of, 3, 40, 100, Run(seed=2))
    for label in range(3):
        own, ours = rows[of == label].numpy(), side[of == label].numpy()

        def cost(chosen: np.ndarray, own: np.ndarray = own) -> float:
            parts = [own[chosen == each] for each in (False, True)]
            return sum(float(((part - part.mean(0)) ** 2).sum()) for part in parts if len(part))

        every = [np.array([bit >> row & 1 for row in range(len(own))], dtype=bool) for bit in range(2 ** len(own))]
        assert cost(ours) == pytest.approx(min(map(cost, every)))
    assert side[0] == side[1] != side[2]


def test_an_empty_side_has_the_mean_of_the_class() -> None:
    rows, of = clusters([3, 3], 6)
    first, second = means(rows, of, torch.zeros(6, dtype=torch.bool), 2)
    assert torch.allclose(first[0], rows[:3].mean(0))
    assert torch.equal(first, second)


def test_directions_in_which_nothing_varies_are_left_out() -> None:
    """They would be divided by rounding."""
    rows, labels = clusters([30] * CLASSES, 7)
    flat = torch.cat((rows, rows[:, :1] + 1e-9 * torch.randn(len(rows), 1, dtype=torch.float64)), 1)
    found = untangle(flat, labels, CLASSES, 1e-3, 100)
    assert found.axes.shape == (5, 4)
    with pytest.raises(SapperError, match="the same features"):
        untangle(labels.double().unsqueeze(1).expand(-1, 4), labels, CLASSES, 1e-3, 5)


@pytest.mark.slow
def test_a_poisoned_training_set_gives_its_class_away() -> None:
    """And the clean one none, neither by its training set nor by images that come with a trigger."""
    own = colors(400, 7)
    verdict = SCAn().examine(trained(colors, 3, 4), own, training_set(colors, 4), Run(seed=3))
    assert verdict.flagged is True
    assert verdict.evidence["suspect"] == 4
    for doubted in (training_set(colors), as_they_come(colors)):
        assert SCAn().examine(trained(colors, 3), own, doubted, Run(seed=3)).flagged is False


def test_labels_are_those_of_the_set_or_the_classifiers_answers() -> None:
    clean, stream = balls(60, 1), balls(30, 2)
    defender = Defender.of(victim(), MLP(epochs=1, hidden=(8, 8)), clean, Run(seed=1), stream)
    classifier = defender.build(Run())
    (labeled,) = SCAn(per_class=10).judge([classifier], defender, Run())
    assert labeled.evidence["inputs"] == [10, 10, 10]
    bare = replace(stream, labels=None, classes=())
    (answered,) = SCAn(per_class=10).judge([classifier], replace(defender, stream=bare), Run())
    with torch.no_grad():
        answers = classifier(stream.batch()).argmax(1)
    assert answered.evidence["inputs"] == torch.bincount(answers, minlength=3).tolist()


def test_bad_input_is_told() -> None:
    clean = balls(60, 1)
    two = replace(clean.take(clean.targets() < 2), classes=("red", "green"))
    cases = [
        (clean, None, "judges by images in doubt, and there are none"),
        (balls(45, 1), balls(9, 2), "20 clean images of each of 3 classes are needed"),
        (replace(balls(90, 1), classes=tuple("abcd")), balls(9, 2), "class 'd' has 0 clean images|other classes"),
        (two, balls(9, 2), "an outlier among 2 classes"),
        (clean, replace(balls(9, 2), classes=tuple("abc")), "labels of other classes"),
    ]
    for train, stream, says in cases:
        defender = Defender.of(victim(), MLP(epochs=1, hidden=(8, 8)), train, Run(seed=1), stream)
        with pytest.raises(SapperError, match=says) as caught:
            SCAn(per_class=20).judge([defender.build(Run())], defender, Run())
        assert caught.value.remedy
