"""SimSiam against the formula of its paper, its training against a plain program, and what its parts are for."""

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.errors import SapperError
from sapper.pretraining.simsiam import SimSiam, negative_cosine
from sapper.training.heads import mlp
from tests.test_byol import cosine
from tests.two_views import RUN, batches, close, clouds, state_after, tiny


@pytest.mark.parametrize(("n", "dimension"), [(1, 3), (4, 8), (7, 2)])
def test_the_loss_equals_the_formula(n: int, dimension: int) -> None:
    generator = torch.Generator().manual_seed(n)
    predicted, other = (torch.randn(2 * n, dimension, dtype=torch.float64, generator=generator) for _ in range(2))
    total = 0.0
    for image in range(n):  # rows of ``other`` are those of the other view
        total -= cosine(predicted[image], other[image]) / 2 + cosine(predicted[image + n], other[image + n]) / 2
    assert float(negative_cosine(predicted, other)) == pytest.approx(total / n, rel=1e-9)


def test_gradients_go_to_predictions_alone() -> None:
    predicted, other = (torch.randn(4, 3, generator=RUN.generator(), requires_grad=True) for _ in range(2))
    negative_cosine(predicted, other + 1).backward()
    assert predicted.grad is not None
    assert other.grad is None


def test_training_is_that_of_a_plain_program(tmp_path: Path) -> None:
    """Two epochs of three steps with SGD. The projections that are predicted come from a pass without gradients."""
    data = clouds()
    settings: dict[str, Any] = {"epochs": 2, "batch": 16, "hidden": 8, "projection": 6, "bottleneck": 3}
    rates: dict[str, Any] = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.05, "weight_decay": 1e-3}
    method = SimSiam(**settings, **rates)
    state, curves = state_after(method, data, tmp_path), method(tiny(), data, RUN).curves["negative cosine"]

    encoder = tiny()
    projector = mlp(encoder.feature_size, 8, 6, RUN.child("projection"), norm_output=True)
    predictor = mlp(6, 3, 6, RUN.child("predictor"))
    model = nn.ModuleDict({"encoder": encoder, "projector": projector, "predictor": predictor}).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    losses = []
    for views, _ in batches(method, data):
        projected = projector(encoder(views))
        fixed = F.normalize(torch.tensor(projected.tolist()), dim=1)
        predicted = F.normalize(predictor(projected), dim=1)
        loss = -(predicted[:16] * fixed[16:]).sum() / 32 - (predicted[16:] * fixed[:16]).sum() / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert curves == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-4)
    close(state, "encoder", encoder)
    close(state, "projector", projector)
    close(state, "predictor", predictor)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["stop-gradient", "predictor"])
def test_without_its_parts_outputs_collapse_and_the_monitor_shows_it(missing: str) -> None:
    method = SimSiam(epochs=40, batch=24, view_size=8, hidden=16, projection=16, bottleneck=4, learning_rate=0.01)
    healthy = method(tiny(), clouds(), RUN).curves["spread"][-1]

    encoder = tiny()
    projector = mlp(encoder.feature_size, 16, 16, RUN.child("projection"), norm_output=True)
    predictor = mlp(16, 4, 16, RUN.child("predictor"))
    model = nn.ModuleDict({"encoder": encoder, "projector": projector, "predictor": predictor})

    def wrong(views: Tensor, _step: object) -> tuple[Tensor, Tensor]:
        projected = projector(encoder(views))
        predicted = projected if missing == "predictor" else predictor(projected)
        other = projected.roll(len(projected) // 2, 0)
        other = other if missing == "stop-gradient" else other.detach()
        return -F.cosine_similarity(predicted, other, dim=1).mean(), projected

    curves = method.learn(encoder, model, model.parameters(), wrong, clouds(), RUN, None, name="loss", label="").curves
    assert healthy > 0.9 / sqrt(16)
    assert curves["spread"][-1] < 0.7 / sqrt(16)


@pytest.mark.parametrize("values", [{"bottleneck": 0}, {"crop_scale": 0.0}, {"learning_rate": -1.0}])
def test_parameters_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(SapperError, match="does not fit"):
        SimSiam(**values)
