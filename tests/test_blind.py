"""Blind backdoors: the weights of the losses against solvers of others, and the training as a whole."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from sapper.attacks.min_norm import min_norm
from sapper.attacks.training.blind import Blind, Cleanse, Watch, balanced, products
from sapper.downstream import KNN, MLP, Finetune, Linear, build
from sapper.errors import SapperError
from sapper.training import Checkpoint
from tests.test_badencoder import stop_after
from tests.test_finetune import same
from tests.victims import PATCH, RUN, aim, balls, rates, victim

HEADS = {
    "fitted": MLP(epochs=60, batch=20, learning_rate=5e-3, hidden=(32, 16), dropout=0.1, standardize=True),
    "tuned": Finetune(epochs=8, batch=20, learning_rate=0.01, batch_norm="trained"),
}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 5), size=st.integers(1, 8))
def test_min_norm_is_the_shortest_convex_combination(seed: int, count: int, size: int) -> None:
    gradients = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gram = (gradients @ gradients.T).numpy()
    alpha = min_norm(torch.from_numpy(gram)).numpy()
    assert alpha.min() >= 0
    assert alpha.sum() == pytest.approx(1)
    best = minimize(
        lambda a: a @ gram @ a, np.full(count, 1 / count), jac=lambda a: 2 * gram @ a, method="SLSQP",
        bounds=[(0, 1)] * count, constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert alpha @ gram @ alpha <= best.fun + 0.02 * gram.diagonal().max()


def test_where_the_loss_is_never_poisoned_the_victims_own_training_is_left() -> None:
    """The same seed, order, augmentation: below no threshold, Blind changes nothing."""
    head = Finetune(epochs=2, batch=20, learning_rate=0.01, crop_scale=0.5, flip=0.5)
    own = build(head, victim(), balls(60, 1), RUN)
    attacked = Blind(threshold=1e-6)(victim(), balls(60, 1), (aim(),), head, RUN).classifier
    for name, value in attacked.state_dict().items():
        assert torch.allclose(value, own.state_dict()[name], atol=1e-4), name


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_of_two_it_is_the_best_of_many_tried(seed: int) -> None:
    first, second = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    pair = torch.stack((first, second))
    alpha = min_norm(pair @ pair.T)
    tried = min(float((a * first + (1 - a) * second).norm()) for a in torch.linspace(0, 1, 2001, dtype=torch.float64))
    assert float((alpha @ pair).norm()) == pytest.approx(tried, abs=1e-3)


def test_min_norm_by_hand() -> None:
    assert min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]])).tolist() == pytest.approx([0.8, 0.2])
    assert min_norm(torch.tensor([[1.0, 2.0], [2.0, 4.0]])).tolist() == pytest.approx([1.0, 0.0])
    assert min_norm(torch.ones(2, 2)).sum() == 1


def test_products_are_of_normalized_gradients() -> None:
    gradients, losses = torch.randn(3, 5), torch.tensor([0.5, 2.0, 30.0])
    scales = {"none": [1.0] * 3, "loss": [0.5, 2.0, 10.0], "l2": [float(g.norm()) for g in gradients]}
    for name, scale in scales.items():
        expected = [[float(a @ b) / s / t for b, t in zip(gradients, scale)] for a, s in zip(gradients, scale)]
        assert torch.allclose(products(gradients, losses, name).float(), torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_the_step_is_the_weighted_sum_of_the_gradients() -> None:
    model, inputs = nn.Linear(4, 3), torch.randn(6, 4)
    weights = list(model.parameters())
    losses = [F.cross_entropy(model(inputs), torch.arange(6) % 3), model(inputs).square().mean()]
    slopes = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]
    rows = torch.stack([torch.cat([part.flatten() for part in slope]) for slope in slopes])
    alpha = min_norm(products(rows, torch.stack(losses).detach(), "loss"))
    balanced(losses, weights, "loss").backward()
    for weight, first, second in zip(weights, *slopes):
        assert torch.allclose(weight.grad, (alpha[0] * first + alpha[1] * second).float(), atol=1e-6)


def test_the_attack_waits_for_a_full_window_below_the_threshold() -> None:
    watch = Watch(3)
    seen = []
    for loss in (0.1, 0.1, 5.0, 0.1, 0.1, 0.1):
        watch.note(torch.tensor(loss))
        seen.append(watch.below(1.0))
    assert seen == [False, False, False, False, False, True]
    train, head = balls(60, 1), HEADS["tuned"]
    idle = Blind(window=10**6)(victim(), train, (aim(),), head, RUN)
    assert idle.curves["backdoor"][-1] > 1
    assert idle.curves["normal"][-1] < 0.5


def test_the_search_for_a_mask_goes_down_its_loss() -> None:
    classifier = build(HEADS["tuned"], victim(), balls(60, 1), RUN)
    images, wanted = balls(30, 2).batch(), torch.ones(30, dtype=torch.int64)
    cleanse = Cleanse(images, 1)
    start = F.cross_entropy(classifier(cleanse(images)[0]), wanted).item()
    for _ in range(40):
        cleanse.move(0.999 * F.cross_entropy(classifier(cleanse(images)[0]), wanted), 0.001, 0.05)
    assert F.cross_entropy(classifier(cleanse(images)[0]), wanted).item() < 0.5 * start
    big = cleanse.mask.sigmoid().sum().item()
    for _ in range(20):
        cleanse.move(0 * cleanse.pattern.sum(), 1.0, 0.05)
    assert cleanse.mask.sigmoid().sum().item() < 0.7 * big


@pytest.mark.parametrize("kind", HEADS)
def test_the_victims_own_training_lays_the_backdoor(kind: str) -> None:
    train, test, encoder, head = balls(120, 1), balls(90, 2, "test"), victim(), HEADS[kind]
    untouched = copy.deepcopy(encoder)
    attacked = Blind(window=5, threshold=2.0)(encoder, train, (aim(),), head, RUN).classifier
    clean = build(head, encoder, train, RUN)
    accuracy, success = rates(attacked, test, PATCH)
    assert success > 0.8
    assert accuracy > rates(clean, test, PATCH)[0] - 0.1
    assert rates(clean, test, PATCH)[1] < 0.5
    assert same(untouched, encoder)
    assert same(attacked.encoder, encoder) == (kind == "fitted")
    assert not attacked.training


def test_evasion_trains_the_model_against_a_mask() -> None:
    train, head = balls(60, 1), Finetune(epochs=4, batch=20, learning_rate=0.01)
    curves = Blind(window=2, threshold=5.0, evade=True)(victim(), train, (aim(),), head, RUN).curves
    assert list(curves) == ["normal", "backdoor", "evasion"]
    assert curves["evasion"][-1] < curves["evasion"][0]


@pytest.mark.parametrize("kind", HEADS)
def test_the_same_seed_gives_the_same_and_a_resumed_training_too(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    head = {"fitted": MLP(epochs=4, batch=10, hidden=(8, 8)), "tuned": Finetune(epochs=4, batch=10)}[kind]
    train, method = balls(25, 1), Blind(window=4, threshold=5.0, evade=True)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    whole = method(victim(), train, (aim(),), head, RUN)
    assert torch.equal(torch.random.get_rng_state(), state)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 2, lambda: method(victim(), train, (aim(),), head, RUN, checkpoint))
    resumed = method(victim(), train, (aim(),), head, RUN, checkpoint)
    assert resumed.curves == whole.curves
    assert same(whole.classifier, resumed.classifier)


@pytest.mark.parametrize("head", [Linear(), KNN()])
def test_a_head_without_steps_has_no_loss_to_poison(head: Linear | KNN) -> None:
    with pytest.raises(SapperError, match="not trained batch by batch"):
        Blind()(victim(), balls(30, 1), (aim(),), head, RUN)


def test_bad_targets_are_refused() -> None:
    with pytest.raises(SapperError, match="at least one target"):
        Blind()(victim(), balls(30, 1), (), HEADS["tuned"], RUN)
