"""SimSiam: pre-training without labels, negatives or a second network; the stop-gradient alone prevents collapse.

From the projection z = g(f(v)) of one view, a predictor p predicts that of the other, which is held fixed (sg: no
gradient). With s the cosine,

    L = − ½ s( p(z₁), sg z₂ )  −  ½ s( p(z₂), sg z₁ )

averaged over images. The curve ``spread`` shows whether all outputs become one, which would minimize it.

Source: Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021. BatchNorm is on both layers of the
projector, its output too, and on the predictor's hidden layer, which is a quarter as wide as the projection. The preset
``paper`` is lightly's benchmark for CIFAR-10 (``cifar10_benchmark.py``: 800 epochs of batches of 512, SGD 0.06, weight
decay 5e-4, half a cosine without warm-up, projector of two layers 512–2048–2048, predictor 2048–512–2048, crops of a
fifth of the area or more, no blur). Our defaults are Sapper's choice for runs of a few thousand steps on a small
encoder: Adam with a warm-up as in our SimCLR, and heads in proportion.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sapper.encoders import Encoder, Trained
from sapper.pretraining.two_views import TwoViews, swapped
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step
from sapper.training.heads import mlp


@dataclass(frozen=True, kw_only=True)
class SimSiam(TwoViews):
    """Pre-training by predicting one view from the other, with a stop-gradient (Chen & He, CVPR 2021).

    ``hidden`` and ``projection``: sizes of the projector. ``bottleneck``: of the predictor's hidden layer. Other
    parameters: see ``TwoViews``.
    """

    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    hidden: PositiveInt = 256
    projection: PositiveInt = 256
    bottleneck: PositiveInt = 64

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Chen & He, CVPR 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            **{"epochs": 800, "batch": 512, "optimizer": "sgd", "learning_rate": 0.06, "warmup": 0.0},
            **{"weight_decay": 5e-4, "hidden": 2048, "projection": 2048, "bottleneck": 512},
        }
    }

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on ``samples``; with ``checkpoint``, resumably."""
        projector = mlp(encoder.feature_size, self.hidden, self.projection, run.child("projection"), norm_output=True)
        predictor = mlp(self.projection, self.bottleneck, self.projection, run.child("predictor"))
        model = nn.ModuleDict({"encoder": encoder, "projector": projector, "predictor": predictor}).to(run.device)

        def loss(views: Tensor, _step: Step) -> tuple[Tensor, Tensor]:
            with run.autocast():
                projected = projector(encoder(views))
                predicted = predictor(projected)
            return negative_cosine(predicted.float(), swapped(projected).float()), projected

        return self.learn(
            *(encoder, model, model.parameters(), loss, samples, run, checkpoint),
            name="negative cosine",
            label="SimSiam",
        )


def negative_cosine(predicted: Tensor, other: Tensor) -> Tensor:
    """SimSiam's loss of predictions (2N, D) for both views and the other views' projections (2N, D). A scalar.

    Gradients go to ``predicted`` alone.
    """
    return -F.cosine_similarity(predicted, other.detach(), dim=1).mean()
