"""What all self-supervised pre-trainings promise, and the parts that they share."""

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sapper import pretraining
from sapper.errors import SapperError
from sapper.methods import find
from sapper.pretraining.averaging import MovingAverage, momentum_at
from sapper.pretraining.byol import BYOL
from sapper.pretraining.moco import MoCo
from sapper.pretraining.monitor import spread
from sapper.pretraining.simclr import SimCLR
from sapper.pretraining.simsiam import SimSiam
from sapper.pretraining.two_views import swapped
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint
from sapper.training.heads import mlp
from tests.test_badencoder import stop_after
from tests.two_views import RUN, clouds, tiny

SMALL: dict[str, Any] = {"epochs": 3, "batch": 16, "view_size": 8}
METHODS = [
    SimCLR(**SMALL),
    MoCo(**SMALL, queue=40, groups=2),
    BYOL(**SMALL),
    SimSiam(**SMALL),
    SimSiam(**SMALL, optimizer="sgd", learning_rate=0.05),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


@each_method
def test_an_interrupted_training_ends_the_same(method: Any, tmp_path: Path) -> None:
    whole = method(tiny(), clouds(), RUN)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 1, lambda: method(tiny(), clouds(), RUN, checkpoint))
    resumed = method(tiny(), clouds(), RUN, checkpoint)
    assert resumed.curves == whole.curves
    assert not resumed.encoder.training
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, resumed.encoder.state_dict()[name]), name


@each_method
def test_the_global_generator_is_left_alone_and_the_encoder_trains(method: Any) -> None:
    subject, state = tiny(), torch.random.get_rng_state()
    before = {name: value.clone() for name, value in subject.named_parameters()}
    curves = method(subject, clouds(), RUN).curves
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(not torch.equal(value, before[name]) for name, value in subject.named_parameters())
    assert all(value.requires_grad for value in subject.parameters())
    assert len(curves["spread"]) == 3
    assert all(0 < value <= 1 / sqrt(method.projection) for value in curves["spread"])


@each_method
def test_what_cannot_be_trained_on_is_refused(method: Any) -> None:
    large = ImageSet(images=torch.zeros(48, 3, 20, 20, dtype=torch.uint8), name="large")
    with pytest.raises(SapperError, match="16×16"):
        method(tiny(), large, RUN)
    with pytest.raises(SapperError, match="labels"):
        replace(method, monitor=True)(tiny(), clouds(), RUN)


@pytest.mark.parametrize("name", pretraining.METHODS)
def test_a_method_keeps_the_contract(name: str) -> None:
    method = find("pretraining", pretraining.METHODS, name, "here")()
    assert method.needs <= {"labels", "captions"}
    assert method.batch >= 2
    assert method.view_size >= 0


# --- the collapse monitor -----------------------------------------------------------------------------------------


def test_spread_is_zero_for_a_constant_and_one_over_root_d_for_random_directions() -> None:
    assert float(spread(torch.randn(1, 32, generator=RUN.generator()).expand(50, -1))) == pytest.approx(0, abs=1e-6)
    scales = torch.rand(20000, 1, generator=RUN.generator()) + 0.1
    directions = torch.randn(20000, 32, generator=RUN.generator()) * scales
    assert float(spread(directions)) == pytest.approx(1 / sqrt(32), rel=0.01)


def test_spread_equals_its_definition() -> None:
    outputs = torch.randn(6, 4, dtype=torch.float64, generator=RUN.generator())
    units = [[float(x) / sqrt(sum(float(y) ** 2 for y in row)) for x in row] for row in outputs]
    deviations = []
    for column in zip(*units):
        mean = sum(column) / len(column)
        deviations.append(sqrt(sum((x - mean) ** 2 for x in column) / len(column)))
    assert float(spread(outputs)) == pytest.approx(sum(deviations) / 4, rel=1e-5)


# --- the moving average -------------------------------------------------------------------------------------------


def test_parameters_follow_by_the_formula_and_no_gradient_goes_through() -> None:
    network = nn.Linear(2, 1)
    target = MovingAverage(network)
    first = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.fill_(3.0)
    target.follow(network, 0.9)
    target.follow(network, 0.75)
    by_hand = 0.75 * (0.9 * first + 0.1 * 3.0) + 0.25 * 3.0
    assert torch.allclose(target.network.weight, by_hand)
    inputs = torch.ones(1, 2, requires_grad=True)
    assert not target(inputs).requires_grad
    assert not any(value.requires_grad for value in target.parameters())
    assert network.weight.requires_grad


def test_statistics_of_batch_norm_are_its_own() -> None:
    network = nn.BatchNorm1d(3)
    target = MovingAverage(network)
    generator = RUN.generator()
    ours, theirs = torch.randn(8, 3, generator=generator) + 2, torch.randn(8, 3, generator=generator) - 5
    network(theirs)
    target.follow(network, 0.0)
    assert torch.equal(target.network.running_mean, torch.zeros(3))
    output = target(ours)
    assert torch.allclose(target.network.running_mean, 0.1 * ours.mean(0), atol=1e-6)
    assert torch.allclose(output.mean(0), torch.zeros(3), atol=1e-5), "normalized by its own batch"
    assert torch.allclose(network.running_mean, 0.1 * theirs.mean(0), atol=1e-6)


def test_momentum_rises_by_half_a_cosine() -> None:
    assert momentum_at(0, 0.9, 1.0) == pytest.approx(0.9)
    assert momentum_at(0.5, 0.9, 1.0) == pytest.approx(0.95)
    assert momentum_at(1, 0.9, 1.0) == pytest.approx(1.0)
    assert momentum_at(0.25, 0.9, 1.0) == pytest.approx(1 - 0.1 * (sqrt(0.5) + 1) / 2)
    assert momentum_at(0.3, 0.99, 0.99) == 0.99


# --- heads, views, rates ------------------------------------------------------------------------------------------


def test_heads_have_the_layers_that_were_asked_for() -> None:
    def shape(head: nn.Sequential) -> list[str]:
        return [type(layer).__name__ for layer in head]

    full = mlp(4, 6, 3, RUN, norm_output=True)
    assert shape(full) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert full[0].bias is None
    assert full[3].bias is None
    plain = mlp(4, 6, 3, RUN, norm_hidden=False)
    assert shape(plain) == ["Linear", "ReLU", "Linear"]
    assert plain[0].bias is not None
    assert plain[2].bias is not None
    assert plain[0].weight.shape == (6, 4)
    assert plain[2].weight.shape == (3, 6)
    assert torch.equal(mlp(4, 6, 3, Run(seed=5))[0].weight, full[0].weight)


def test_swapped_gives_the_other_view() -> None:
    assert swapped(torch.tensor([[1], [2], [3], [-1], [-2], [-3]])).flatten().tolist() == [-1, -2, -3, 1, 2, 3]


def test_presets_name_the_sources_settings() -> None:
    moco, byol, siam = (kind(**kind.presets["paper"]) for kind in (MoCo, BYOL, SimSiam))
    for method in (moco, byol, siam):
        assert (method.epochs, method.batch, method.optimizer, method.warmup) == (800, 512, "sgd", 0)
        assert isinstance(method.make_optimizer([nn.Parameter(torch.zeros(1))]), torch.optim.SGD)
    assert (moco.temperature, moco.queue, moco.momentum, moco.final_momentum) == (0.1, 8192, 0.99, 0.99)
    assert (byol.hidden, byol.projection, byol.momentum, byol.final_momentum) == (1024, 256, 0.99, 0.99)
    assert (siam.hidden, siam.projection, siam.bottleneck, siam.crop_scale) == (2048, 2048, 512, 0.2)
