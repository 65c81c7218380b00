"""BYOL against the formula of its paper, and its training against a plain program."""

import copy
from math import cos, pi, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.errors import SapperError
from sapper.pretraining.byol import BYOL, regression
from sapper.training.heads import mlp
from tests.two_views import RUN, batches, close, clouds, state_after, tiny


def cosine(a: Tensor, b: Tensor) -> float:
    product = sum(float(x) * float(y) for x, y in zip(a, b))
    return product / sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


@pytest.mark.parametrize(("n", "dimension"), [(1, 3), (4, 8), (7, 2)])
def test_the_loss_equals_the_formula(n: int, dimension: int) -> None:
    generator = torch.Generator().manual_seed(n)
    predicted, wanted = (torch.randn(2 * n, dimension, dtype=torch.float64, generator=generator) for _ in range(2))
    total = 0.0
    for image in range(n):  # rows of ``wanted`` are those of the other view
        total += 2 - 2 * cosine(predicted[image], wanted[image])
        total += 2 - 2 * cosine(predicted[image + n], wanted[image + n])
    assert float(regression(predicted, wanted)) == pytest.approx(total / n, rel=1e-9)


def test_gradients_go_to_predictions_alone() -> None:
    predicted, wanted = (torch.randn(4, 3, generator=RUN.generator(), requires_grad=True) for _ in range(2))
    regression(predicted, wanted + 1).backward()
    assert predicted.grad is not None
    assert wanted.grad is None


def test_training_is_that_of_a_plain_program(tmp_path: Path) -> None:
    """Two epochs of three steps with SGD: three networks, the target's own statistics, and the loss."""
    data = clouds()
    settings: dict[str, Any] = {"epochs": 2, "batch": 16, "hidden": 8, "projection": 6, "momentum": 0.7}
    rates: dict[str, Any] = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.02, "weight_decay": 1e-3}
    method = BYOL(**settings, **rates)
    state, curves = state_after(method, data, tmp_path), method(tiny(), data, RUN).curves["regression"]

    encoder = tiny()
    online = nn.Sequential(encoder, mlp(encoder.feature_size, 8, 6, RUN.child("projection"))).train()
    predictor = mlp(6, 8, 6, RUN.child("predictor")).train()
    target = copy.deepcopy(online)
    weights = [*online.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.02, momentum=0.9, weight_decay=1e-3)
    losses = []
    for step, (views, _) in enumerate(batches(method, data)):
        with torch.no_grad():
            first, second = F.normalize(target(views), dim=1).split(16)
        to_second, to_first = F.normalize(predictor(online(views)), dim=1).split(16)
        one, other = (to_second - second).square().sum(1), (to_first - first).square().sum(1)  # = 2 − 2·cosine
        loss = (one + other).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        momentum = 1 - (1 - 0.7) * (cos(pi * step / 6) + 1) / 2
        with torch.no_grad():
            for own, followed in zip(target.parameters(), online.parameters()):
                own.copy_(momentum * own + (1 - momentum) * followed)
        losses.append(loss.item())

    assert curves == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-4)
    close(state, "online", online)
    close(state, "predictor", predictor)
    close(state, "target.network", target)
    for name in ("0.backbone.bn1.running_mean", "1.1.running_var"):
        assert not torch.allclose(state[f"online.{name}"], state[f"target.network.{name}"], atol=1e-5)


def test_projector_and_predictor_have_batch_norm(tmp_path: Path) -> None:
    state = state_after(BYOL(epochs=1, batch=16, hidden=8, projection=6), clouds(16), tmp_path)
    assert state["online.1.1.running_mean"].shape == (8,)
    assert state["predictor.1.running_mean"].shape == (8,)
    assert state["predictor.3.weight"].shape == (6, 8)
    assert state["target.network.1.3.weight"].shape == (6, 8)


@pytest.mark.parametrize("values", [{"momentum": 1.5}, {"final_momentum": -0.1}, {"batch": 1}, {"hidden": 0}])
def test_parameters_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(SapperError, match="does not fit"):
        BYOL(**values)
