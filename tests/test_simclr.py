"""SimCLR against the formula of its paper, and its training loop."""

from math import exp, log

import pytest
import torch
import torch.nn.functional as F

from sapper.encoders import build
from sapper.errors import SapperError
from sapper.pretraining.simclr import SimCLR, projection_head
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint, Step, shuffled, steps_per_epoch, warm_cosine
from sapper.training.contrast import nt_xent
from tests.test_badencoder import images, stop_after


def textbook(z: torch.Tensor, temperature: float) -> float:
    """ℓ(i, j) of the paper, summed over all 2N views in plain loops."""
    z, n = F.normalize(z, dim=1), len(z) // 2
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i)
        total -= log(exp(float(z[i] @ z[j]) / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize(("n", "dimension", "temperature"), [(2, 3, 0.5), (5, 8, 0.1), (9, 4, 1.0)])
def test_nt_xent_equals_the_formula(n: int, dimension: int, temperature: float) -> None:
    z = torch.randn(2 * n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    assert float(nt_xent(z, temperature)) == pytest.approx(textbook(z, temperature), rel=1e-9)


def test_nt_xent_prefers_views_that_agree() -> None:
    z = torch.eye(4)
    assert nt_xent(torch.cat((z, z)), 0.1) < nt_xent(torch.cat((z, z.roll(1, 0))), 0.1)


def tiny(seed: int = 0):  # type: ignore[no-untyped-def]
    return build(Run(seed=seed), architecture="resnet10", width=4, input_size=16)


def test_training_lowers_the_loss_and_resumes_exactly(tmp_path) -> None:  # type: ignore[no-untyped-def]
    coarse = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    pixels = (F.interpolate(coarse, size=16, mode="bilinear") * 255).to(torch.uint8)
    data = ImageSet(images=pixels, name="clouds")
    run, method = Run(seed=5), SimCLR(epochs=8, batch=32, learning_rate=0.01)
    whole = method(tiny(), data, run)
    losses = whole.curves["NT-Xent"]
    assert losses[-1] < losses[0]
    assert not whole.encoder.training

    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 1, lambda: method(tiny(), data, run, checkpoint))
    resumed = method(tiny(), data, run, checkpoint)
    assert resumed.curves == whole.curves
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, resumed.encoder.state_dict()[name]), name


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    SimCLR(epochs=1, batch=32)(tiny(), images(32, 1), Run(seed=5))
    assert torch.equal(before, torch.random.get_rng_state())


def test_monitor_reports_accuracy_of_neighbors() -> None:
    pixels = torch.zeros(60, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(60) % 2
    pixels[labels == 1, :, 4:12, 4:12] = 255
    data = ImageSet(images=pixels, labels=labels, classes=("empty", "square"), name="two")
    curves = SimCLR(epochs=1, batch=30, monitor=True)(tiny(), data, Run(seed=5)).curves
    assert curves["kNN accuracy"] == [1.0]
    assert "kNN accuracy" not in SimCLR(epochs=1, batch=30)(tiny(), data, Run(seed=5)).curves


def test_monitor_without_labels_is_refused_before_the_training() -> None:
    images = ImageSet(images=torch.zeros(8, 3, 16, 16, dtype=torch.uint8), name="photos")
    with pytest.raises(SapperError, match="labels"):
        SimCLR(epochs=10**6, batch=4, monitor=True)(tiny(), images, Run())


def step(index: int) -> Step:
    return Step(rows=torch.arange(2), epoch=0, index=index, total=1000, generator=torch.Generator())


def test_paper_preset_keeps_its_learning_rate() -> None:
    paper = SimCLR(**SimCLR.presets["paper"])
    assert (paper.epochs, paper.batch, paper.temperature, paper.weight_decay) == (1000, 256, 0.5, 1e-6)
    assert {paper.rate(step(index)) for index in range(0, 1000, 100)} == {1e-3}
    assert projection_head(512, 128, Run())[0].weight.shape == (512, 512)


def test_schedule_warms_up_and_falls_to_zero() -> None:
    rates = [warm_cosine(step / 100, 0.1) for step in range(101)]
    assert rates[5] == pytest.approx(0.5)
    assert max(rates) == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (9, 3), (2, 5)])
def test_batches_visit_every_row_once(count: int, batch: int) -> None:
    rows = torch.cat(list(shuffled(count, batch, torch.Generator().manual_seed(0), drop_last=False)))
    assert sorted(rows.tolist()) == list(range(count))
    batches = list(shuffled(count, batch, torch.Generator().manual_seed(0)))
    assert len(batches) == steps_per_epoch(count, batch)
