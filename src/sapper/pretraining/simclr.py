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
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.augment import Augmentation
from sapper.encoders import Encoder, Trained
from sapper.methods import Checked
from sapper.pretraining.monitor import monitored
from sapper.run import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint, Step, Terms, part_done, train, warm_cosine


@dataclass(frozen=True, kw_only=True)
class SimCLR(Checked):
    """Contrastive pre-training with NT-Xent (Chen et al., ICML 2020).

    ``learning_rate`` is the peak of the ``cosine`` schedule, reached after the ``warmup`` share of all steps, or
    the rate throughout when ``schedule`` is ``constant``. ``crop_scale`` is the smallest share of the image's area
    that a crop keeps, ``view_size`` the height and width of a view in pixels, 0 for the images' own: smaller views cost
    less, and objects that crops enlarge then come closer to their size in whole images (Touvron et al., NeurIPS 2019).
    ``monitor`` adds the accuracy of nearest neighbors to the curves after every epoch; only this
    looks at labels.
    """

    epochs: PositiveInt = 200
    batch: Annotated[int, Field(ge=2)] = 256
    learning_rate: PositiveFloat = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: NonNegativeFloat = 1e-6
    temperature: PositiveFloat = 0.5
    projection: PositiveInt = 128
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    view_size: Annotated[int, Field(ge=0, le=4096)] = 0
    monitor: bool = False

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Chen et al., ICML 2020"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"epochs": 1000, "batch": 256, "learning_rate": 1e-3, "schedule": "constant", "temperature": 0.5}
    }

    def __call__(self, encoder: Encoder, images: ImageSet, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on ``images``; with ``checkpoint``, resumably."""
        if self.monitor:
            images.targets()  # fails now rather than after an epoch
        head = projection_head(encoder.feature_size, self.projection, run.child("projection"))
        model = nn.ModuleDict({"encoder": encoder, "head": head}).to(run.device)
        augmentation = Augmentation(crop=(self.crop_scale, 1.0), size=self.view_size)
        resident = images.to(run.device)

        def terms(step: Step) -> Terms:
            views = augmentation.views(resident, step.rows.repeat(2), step.generator)
            with run.autocast():
                projected = head(encoder(views))
            return {"NT-Xent": nt_xent(projected.float(), self.temperature)}

        curves = train(
            model,
            terms,
            torch.optim.Adam(model.parameters(), weight_decay=self.weight_decay, fused=True),
            self.rate,
            count=len(images),
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label="pre-training (SimCLR)",
            checkpoint=checkpoint,
            after_epoch=monitored(encoder, images, run) if self.monitor else None,
        )
        return Trained(encoder.eval(), curves)

    def rate(self, step: Step) -> float:
        """The learning rate of a step."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * warm_cosine(part_done(step.index, step.total), self.warmup)


def projection_head(features: int, projection: int, run: Run) -> nn.Module:
    """Linear without bias – BatchNorm – ReLU – Linear, as in the authors' ``simclr_model.py``."""
    with run.seeded():
        return nn.Sequential(
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(inplace=True),
            nn.Linear(features, projection),
        )


def nt_xent(projected: Tensor, temperature: float) -> Tensor:
    """NT-Xent of 2N projections, float (2N, D); rows i and i + N are the two views of one image. A scalar."""
    z = F.normalize(projected, dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    n = len(z) // 2
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)
