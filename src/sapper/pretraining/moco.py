"""MoCo v2: contrastive pre-training with a queue of keys from a slowly moving network.

A view's query q must recognize the key k⁺ of the image's other view among the keys n of earlier batches. Queries come
from the encoder f and a head g; keys from their moving average f', g', through which no gradient goes, and which has
BatchNorm statistics of its own. With all of them normalized to length 1 and temperature τ,

    L = − log  exp(q·k⁺/τ) / ( exp(q·k⁺/τ) + Σ_{n ∈ queue} exp(q·n/τ) )        q = g(f(v₁)),  k⁺ = g'(f'(v₂))

averaged over both directions (v₁ asks for v₂, and v₂ for v₁). The queue is written after the loss, with the keys of
both views, the oldest going first; so no key is its own negative. It begins with random directions.

Source: He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020;
Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020. Both are about ImageNet, so the
preset ``paper`` is lightly's benchmark for CIFAR-10 (``cifar10_benchmark.py``: 800 epochs of batches of 512, SGD 0.24,
weight decay 5e-4, half a cosine without warm-up, head 512–512–128 without BatchNorm, τ 0.1, queue 8192, momentum 0.99,
symmetric loss, no blur). Our defaults are Sapper's choice for runs of a few thousand steps on a small encoder: Adam
with a warm-up as in our SimCLR, τ 0.2, a head and a queue in proportion. A lower momentum does not make up for few
steps: keys then differ by their age, which a query can learn instead of what images show (in 120 steps on 96 images, at
a learning rate of 0.01, outputs collapsed at 0.95 and did not at 0.99).

BatchNorm can betray which keys belong to a query's batch, as both have its statistics. The paper shuffles keys over
GPUs, lightly's queries and keys go through BatchNorm in 8 parts. Here keys go through the network in ``groups`` of
random images, queries as one batch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.encoders import Encoder, Trained
from sapper.errors import SapperError
from sapper.pretraining.averaging import MovingAverage, momentum_at
from sapper.pretraining.two_views import TwoViews, swapped
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step
from sapper.training.heads import mlp


@dataclass(frozen=True, kw_only=True)
class MoCo(TwoViews):
    """Contrastive pre-training with a momentum encoder and a queue (He et al., CVPR 2020; Chen et al., 2020).

    ``queue``: how many keys are kept. No more than there are images: else many are keys of the query's own image.
    ``momentum`` of the moving average goes to ``final_momentum`` by half a cosine. ``groups``: in how many parts the
    keys go through the network. Other parameters: see ``TwoViews``.
    """

    temperature: PositiveFloat = 0.2
    hidden: PositiveInt = 128
    projection: PositiveInt = 128
    queue: PositiveInt = 1024
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    final_momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    groups: PositiveInt = 4

    version: ClassVar[int] = 1
    source: ClassVar[str] = "He et al., CVPR 2020; Chen et al., 2020"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            **{"epochs": 800, "batch": 512, "optimizer": "sgd", "learning_rate": 0.24, "warmup": 0.0},
            **{"weight_decay": 5e-4, "temperature": 0.1, "hidden": 512, "queue": 8192, "groups": 8},
        }
    }

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on ``samples``; with ``checkpoint``, resumably."""
        self.check(len(samples))
        head = mlp(encoder.feature_size, self.hidden, self.projection, run.child("projection"), norm_hidden=False)
        online = nn.Sequential(encoder, head)
        target, queue = MovingAverage(online), Queue(self.queue, self.projection, run.child("queue"))
        model = nn.ModuleDict({"online": online, "target": target, "queue": queue}).to(run.device)

        def loss(views: Tensor, step: Step) -> tuple[Tensor, Tensor]:
            order = torch.randperm(len(views), generator=step.generator).to(views.device)
            with run.autocast():
                queries, keys = online(views), in_groups(target, views, order, self.groups)
            keys = F.normalize(keys.float(), dim=1)
            value = info_nce(queries.float(), swapped(keys), queue.keys.clone(), self.temperature)
            queue.write(keys)
            return value, queries

        def follow(step: Step) -> None:
            target.follow(online, momentum_at(step.done, self.momentum, self.final_momentum))

        return self.learn(
            *(encoder, model, online.parameters(), loss, samples, run, checkpoint),
            name="InfoNCE",
            label="MoCo",
            after_step=follow,
        )

    def check(self, count: int) -> None:
        """Raises ``SapperError`` for a queue longer than the ``count`` samples, and for groups of a single view."""
        if self.queue > count:
            what = f"a queue of {self.queue} keys is longer than the {count} samples: they would be their own negatives"
            raise SapperError(what, where="queue", remedy=f"choose it at most {count}")
        if self.groups > (most := min(self.batch, count)):
            what = f"the views of {most} samples make no {self.groups} groups of two"
            raise SapperError(what, where="groups", remedy=f"choose it at most {most}")


class Queue(nn.Module):
    """``size`` keys of length 1, (K, D), as a ring: ``pointer`` is the place of the oldest, the next to be replaced."""

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dimension: int, run: Run):
        super().__init__()
        drawn = torch.randn(size, dimension, generator=run.generator())
        self.register_buffer("keys", F.normalize(drawn, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def write(self, keys: Tensor) -> None:
        """Put ``keys`` (n, D) in the place of the oldest; of more than fit, the last."""
        size = len(self.keys)
        keys = keys[-size:]
        self.keys[(self.pointer + torch.arange(len(keys), device=keys.device)) % size] = keys
        self.pointer.copy_((self.pointer + len(keys)) % size)


def in_groups(network: nn.Module, views: Tensor, order: Tensor, groups: int) -> Tensor:
    """The network's outputs for ``views``, passed through it in so many parts, taken in ``order`` int64 (2N,)."""
    parts = [network(part) for part in views[order].tensor_split(groups)]
    return torch.cat(parts)[order.argsort()]


def info_nce(queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE of queries (n, D) with a positive key each, (n, D), and the same negatives (K, D) for all. A scalar.

    Keys have length 1. Gradients go to ``queries`` alone.
    """
    q = F.normalize(queries, dim=1)
    own = (q * positives.detach()).sum(1, keepdim=True)
    logits = torch.cat((own, q @ negatives.detach().T), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))
