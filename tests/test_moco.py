"""MoCo against the formula of its paper, its queue against a list, and its training against a plain program."""

import copy
from math import exp, log, sqrt
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.augment import Augmentation
from sapper.errors import SapperError
from sapper.pretraining.moco import MoCo, Queue, in_groups, info_nce
from sapper.running import Run
from sapper.training.heads import mlp
from tests.two_views import RUN, batches, close, clouds, state_after, tiny


def unit(row: Tensor) -> list[float]:
    length = sqrt(sum(float(x) ** 2 for x in row))
    return [float(x) / length for x in row]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b))


def textbook(queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> float:
    """−log of the positive's share, averaged over queries, in plain loops."""
    total = 0.0
    for query, positive in zip(queries, positives):
        q = unit(query)
        own = exp(dot(q, unit(positive)) / temperature)
        total -= log(own / (own + sum(exp(dot(q, unit(n)) / temperature) for n in negatives)))
    return total / len(queries)


@pytest.mark.parametrize(("n", "keys", "dimension", "temperature"), [(2, 3, 4, 0.5), (5, 9, 8, 0.1), (4, 1, 3, 1.0)])
def test_info_nce_equals_the_formula(n: int, keys: int, dimension: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(n)
    queries, positives, negatives = (
        torch.randn(count, dimension, dtype=torch.float64, generator=generator) for count in (n, n, keys)
    )
    value = info_nce(queries, F.normalize(positives, dim=1), F.normalize(negatives, dim=1), temperature)
    assert float(value) == pytest.approx(textbook(queries, positives, negatives, temperature), rel=1e-9)


def test_gradients_go_to_queries_alone() -> None:
    queries, positives, negatives = (torch.randn(4, 3, generator=RUN.generator()) for _ in range(3))
    inputs = [queries.requires_grad_(), (positives + 1).requires_grad_(), (negatives - 1).requires_grad_()]
    info_nce(*inputs, 0.2).backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is None
    assert inputs[2].grad is None


# --- the queue ----------------------------------------------------------------------------------------------------


def rows(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(1).repeat(1, 2)


def test_the_queue_replaces_the_oldest_and_wraps_around() -> None:
    queue = Queue(5, 2, RUN)
    expected = queue.keys[:, 0].tolist()
    for written in ((1, 2, 3), (4, 5, 6), (7,)):
        queue.write(rows(*written))
        for number in written:
            expected[(number - 1) % 5] = number
        assert queue.keys[:, 0].tolist() == expected
        assert int(queue.pointer) == written[-1] % 5


@pytest.mark.parametrize("count", [5, 7, 12])
def test_of_more_keys_than_fit_the_last_stay(count: int) -> None:
    queue = Queue(5, 2, RUN)
    queue.write(rows(100, 101))
    queue.write(rows(*range(count)))
    assert sorted(queue.keys[:, 0].tolist()) == list(range(count - 5, count))
    oldest = queue.keys[int(queue.pointer), 0]
    assert int(oldest) == count - 5


def test_the_queue_begins_with_random_directions() -> None:
    queue = Queue(50, 8, RUN)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(50))
    assert not torch.equal(queue.keys, Queue(50, 8, Run(seed=6)).keys)
    assert set(queue.state_dict()) == {"keys", "pointer"}


def test_keys_in_groups_come_back_in_their_order_and_are_normalized_apart() -> None:
    views, order = torch.randn(12, 3, generator=RUN.generator()), torch.randperm(12, generator=RUN.generator())
    linear = nn.Linear(3, 2)
    assert torch.allclose(in_groups(linear, views, order, 3), linear(views))
    normed = in_groups(nn.BatchNorm1d(3), views, order, 3)
    for group in (order[:4], order[4:8], order[8:]):
        assert torch.allclose(normed[group].mean(0), torch.zeros(3), atol=1e-6)
        expected = (views[group] - views[group].mean(0)) / (views[group].var(0, correction=0) + 1e-5).sqrt()
        assert torch.allclose(normed[group], expected, atol=1e-5)


# --- the training -------------------------------------------------------------------------------------------------


def test_training_is_that_of_a_plain_program(tmp_path: Path) -> None:
    """Two epochs of three steps with SGD: both networks with their own statistics, the queue, its pointer, the loss."""
    data = clouds()
    method = MoCo(
        **{"epochs": 2, "batch": 16, "queue": 40, "groups": 2, "temperature": 0.3, "hidden": 8, "projection": 6},
        **{"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.05, "weight_decay": 1e-3, "momentum": 0.8},
    )
    state = state_after(method, data, tmp_path)
    curves = method(tiny(), data, RUN).curves["InfoNCE"]

    encoder = tiny()
    head = mlp(encoder.feature_size, 8, 6, RUN.child("projection"), norm_hidden=False)
    online = nn.Sequential(encoder, head).train()
    target = copy.deepcopy(online)
    optimizer = torch.optim.SGD(online.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    memory = list(Queue(40, 6, RUN.child("queue")).keys)
    place, losses = 0, []
    for step, (views, generator) in enumerate(batches(method, data)):
        order = torch.randperm(32, generator=generator)
        keys = torch.zeros(32, 6)
        with torch.no_grad():
            for part in (order[:16], order[16:]):
                keys[part] = F.normalize(target(views[part]), dim=1)
        queries = F.normalize(online(views), dim=1)
        first, second = queries.split(16)
        negatives = torch.stack(memory)
        directions = [(first, keys[16:]), (second, keys[:16])]
        loss = torch.zeros(())
        for asking, wanted in directions:
            positive = ((asking * wanted).sum(1) / 0.3).exp()
            loss = loss - 0.5 * (positive / (positive + (asking @ negatives.T / 0.3).exp().sum(1))).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for key in keys:
            memory[place] = key
            place = (place + 1) % 40
        momentum = 0.99 - (0.99 - 0.8) * (torch.cos(torch.tensor(torch.pi * step / 6)).item() + 1) / 2
        with torch.no_grad():
            for own, other in zip(target.parameters(), online.parameters()):
                own.copy_(momentum * own + (1 - momentum) * other)
        losses.append(loss.item())

    assert curves == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-4)
    close(state, "online", online)
    close(state, "target.network", target)
    assert int(state["queue.pointer"]) == place == 6 * 32 % 40
    torch.testing.assert_close(state["queue.keys"], torch.stack(memory), rtol=1e-3, atol=1e-4)
    name = "0.backbone.bn1.running_mean"
    assert not torch.allclose(state[f"online.{name}"], state[f"target.network.{name}"], atol=1e-5)


@pytest.mark.slow
def test_the_two_views_of_an_image_come_to_recognize_each_other() -> None:
    """What it is for: among the views of all images, the nearest one is more often that of the same image."""

    def recognized(encoder: nn.Module) -> float:
        images = clouds(96).images / 255
        views = Augmentation(crop=(0.7, 1.0))(torch.cat((images, images)), torch.Generator().manual_seed(3))
        with torch.no_grad():
            features = F.normalize(encoder.eval()(views), dim=1)
        first, second = F.normalize(features - features.mean(0), dim=1).split(96)
        return float(((first @ second.T).argmax(1) == torch.arange(96)).float().mean())

    before = recognized(tiny())
    method = MoCo(epochs=40, batch=32, queue=32, learning_rate=0.01, crop_scale=0.7)
    trained = method(tiny(), clouds(96), RUN)
    assert recognized(trained.encoder) > 2 * before
    assert trained.curves["InfoNCE"][-1] < log(33) - 0.1, "better than a guess among the positive and 32 negatives"


@pytest.mark.parametrize(
    ("method", "named"), [(MoCo(queue=49), "queue"), (MoCo(queue=48, batch=8, groups=9), "groups")]
)
def test_what_does_not_fit_the_data_is_refused_before_training(method: MoCo, named: str) -> None:
    with pytest.raises(SapperError, match=named) as caught:
        method(tiny(), clouds(48), RUN)
    assert caught.value.where == named
    assert caught.value.remedy


def test_a_queue_as_long_as_the_data_is_taken() -> None:
    assert MoCo(epochs=1, queue=48, batch=64, view_size=8)(tiny(), clouds(48), RUN).curves["InfoNCE"]
