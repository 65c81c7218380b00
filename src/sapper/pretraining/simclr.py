"""SimCLR: contrastive pre-training without labels.

Two random views of every image are encoded and projected; each view must recognize the other among all views of
the batch. With projections z normalized to length 1, temperature τ and the two views i, j of one image,

    ℓ(i, j) = − log  exp(zᵢ·zⱼ / τ) / Σ_{k ≠ i} exp(zᵢ·z_k / τ)        (NT-Xent, averaged over all 2N views)

Source: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020. The preset ``paper`` is BadEncoder's pre-training (``pretraining_encoder.py`` of the authors' code: Adam,
learning rate 1e-3 without schedule, weight decay 1e-6, batch 256, τ = 0.5, 1000 epochs, projection 512–512–128,
crop, flip, color jitter and grayscale, no blur). Our default replaces its constant learning rate by a warm-up and
half a cosine, which reaches the same quality in fewer epochs. One difference remains in both: the two views go
through the network as one batch, so that BatchNorm sees 2N images instead of N twice.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.encoders import Encoder, Trained
from sapper.pretraining.two_views import TwoViews
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step
from sapper.training.contrast import nt_xent
from sapper.training.heads import mlp


@dataclass(frozen=True, kw_only=True)
class SimCLR(TwoViews):
    """Contrastive pre-training with NT-Xent (Chen et al., ICML 2020).

    Other parameters: see ``TwoViews``.
    """

    temperature: PositiveFloat = 0.5
    projection: PositiveInt = 128

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Chen et al., ICML 2020"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"epochs": 1000, "batch": 256, "learning_rate": 1e-3, "schedule": "constant", "temperature": 0.5}
    }

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on ``samples``; with ``checkpoint``, resumably."""
        head = projection_head(encoder.feature_size, self.projection, run.child("projection"))
        model = nn.ModuleDict({"encoder": encoder, "head": head}).to(run.device)

        def loss(views: Tensor, _step: Step) -> tuple[Tensor, Tensor]:
            with run.autocast():
                projected = head(encoder(views))
            return nt_xent(projected.float(), self.temperature), projected

        return self.learn(
            encoder, model, model.parameters(), loss, samples, run, checkpoint, name="NT-Xent", label="SimCLR"
        )


def projection_head(features: int, projection: int, run: Run) -> nn.Module:
    """Linear without bias – BatchNorm – ReLU – Linear, as in the authors' ``simclr_model.py``."""
    return mlp(features, features, projection, run)
