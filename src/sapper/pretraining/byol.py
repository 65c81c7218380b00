"""BYOL: pre-training without labels and without negatives, by predicting what a slowly moving network says.

From one view, the encoder f, a projector g and a predictor p predict the projection of the other view by the moving
average f', g', through which no gradient goes, and which has BatchNorm statistics of its own. With s the cosine,

    L = ( 2 − 2·s( p(g(f(v₁))), g'(f'(v₂)) ) )  +  ( 2 − 2·s( p(g(f(v₂))), g'(f'(v₁)) ) )

averaged over images. That all outputs become one, which would minimize it, is kept off by the predictor and the moving
average; the curve ``spread`` shows whether it happens.

Source: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020. It is about
ImageNet, so the preset ``paper`` is lightly's benchmark for CIFAR-10 (``cifar10_benchmark.py``: 800 epochs of batches
of 512, SGD, half a cosine without warm-up, heads 512–1024–256 and 256–1024–256, momentum 0.99). Its loss is a quarter
of this one but for a constant, its learning rate 0.24 and its weight decay 5e-4; 0.06 and 2e-3 here make equal steps.
Our defaults are Sapper's choice for runs of a few thousand steps on a small encoder: Adam with a warm-up as in our
SimCLR, heads in proportion, a momentum that begins low enough to follow in so few steps and ends at 1, as the paper's.
After 434 steps on the embedded objects a linear head has 40 % on held-out training images with 0.95, 35 % with 0.99.

Views: color jitter (0.4, 0.4, 0.2, 0.1) as in the paper and in lightly. Blur and solarization are left out: both views
are drawn alike.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sapper.encoders import Encoder, Trained
from sapper.pretraining.averaging import MovingAverage, momentum_at
from sapper.pretraining.two_views import TwoViews, swapped
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step
from sapper.training.heads import mlp


@dataclass(frozen=True, kw_only=True)
class BYOL(TwoViews):
    """Pre-training by predicting the output of a moving average of itself (Grill et al., NeurIPS 2020).

    ``hidden`` and ``projection``: sizes of projector and predictor. ``momentum`` of the moving average goes to
    ``final_momentum`` by half a cosine. Other parameters: see ``TwoViews``.
    """

    hidden: PositiveInt = 256
    projection: PositiveInt = 128
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.95
    final_momentum: Annotated[float, Field(ge=0, le=1)] = 1.0

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Grill et al., NeurIPS 2020"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            **{"epochs": 800, "batch": 512, "optimizer": "sgd", "learning_rate": 0.06, "warmup": 0.0},
            **{"weight_decay": 2e-3, "hidden": 1024, "projection": 256},
            **{"momentum": 0.99, "final_momentum": 0.99},
        }
    }
    jitter: ClassVar[tuple[float, float, float, float]] = (0.4, 0.4, 0.2, 0.1)

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on ``samples``; with ``checkpoint``, resumably."""
        online = nn.Sequential(
            encoder, mlp(encoder.feature_size, self.hidden, self.projection, run.child("projection"))
        )
        predictor = mlp(self.projection, self.hidden, self.projection, run.child("predictor"))
        target = MovingAverage(online)
        model = nn.ModuleDict({"online": online, "predictor": predictor, "target": target}).to(run.device)

        def loss(views: Tensor, _step: Step) -> tuple[Tensor, Tensor]:
            with run.autocast():
                projected, wanted = online(views), target(views)
                predicted = predictor(projected)
            return regression(predicted.float(), swapped(wanted).float()), projected

        def follow(step: Step) -> None:
            target.follow(online, momentum_at(step.done, self.momentum, self.final_momentum))

        return self.learn(
            *(encoder, model, [*online.parameters(), *predictor.parameters()], loss, samples, run, checkpoint),
            name="regression",
            label="BYOL",
            after_step=follow,
        )


def regression(predicted: Tensor, wanted: Tensor) -> Tensor:
    """BYOL's loss of predictions (2N, D) for both views and what each of them is to be, (2N, D). A scalar.

    The two directions add up, so it is twice the mean over all 2N. Gradients go to ``predicted`` alone.
    """
    return 2 * (2 - 2 * F.cosine_similarity(predicted, wanted.detach(), dim=1)).mean()
