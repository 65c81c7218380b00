"""What self-supervised pre-trainings share that compare two random views of every image.

Both views of a batch go through a network as one batch of 2N, rows i and i + N being the views of one image. So a step
is one forward pass, and BatchNorm takes its statistics from 2N images, not from N twice.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.augment import Augmentation
from sapper.encoders import Encoder, Trained
from sapper.methods import Checked
from sapper.pretraining.contracts import Need
from sapper.pretraining.monitor import monitored, spread
from sapper.running import Run
from sapper.samples import Samples, only_images
from sapper.training import Checkpoint, Step, Terms, part_done, train, warm_cosine, weighted

SGD_MOMENTUM = 0.9
"""Of SGD, wherever a source uses it."""


@dataclass(frozen=True, kw_only=True)
class TwoViews(Checked):
    """Parameters of every such pre-training, and its training.

    ``learning_rate`` is the peak of the ``cosine`` schedule, reached after the ``warmup`` share of all steps, or
    the rate throughout when ``schedule`` is ``constant``. ``crop_scale`` is the smallest share of the image's area
    that a crop keeps, ``view_size`` the height and width of a view in pixels, 0 for the images' own: smaller views cost
    less, and objects that crops enlarge then come closer to their size in whole images (Touvron et al., NeurIPS 2019).
    ``monitor`` adds the accuracy of nearest neighbors to the curves after every epoch; only this looks at labels.
    """

    epochs: PositiveInt = 200
    batch: Annotated[int, Field(ge=2)] = 256
    learning_rate: PositiveFloat = 2e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: NonNegativeFloat = 1e-6
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    view_size: Annotated[int, Field(ge=0, le=4096)] = 0
    monitor: bool = False

    needs: ClassVar[frozenset[Need]] = frozenset()
    jitter: ClassVar[tuple[float, float, float, float]] = (0.4, 0.4, 0.4, 0.1)

    def learn(
        self,
        encoder: Encoder,
        model: nn.Module,
        trained: Iterable[nn.Parameter],
        loss: Callable[[Tensor, Step], tuple[Tensor, Tensor]],
        samples: Samples,
        run: Run,
        checkpoint: Checkpoint | None,
        *,
        name: str,
        label: str,
        after_step: Callable[[Step], None] | None = None,
    ) -> Trained:
        """Train ``encoder`` by ``loss``, called ``name`` on the curves; ``spread`` is the collapse monitor's.

        ``loss(views, step)`` gets float views (2N, 3, H, W), and gives the loss and the outputs (2N, D) to watch.
        ``model``, on the run's device, holds all that a checkpoint must keep, ``trained`` are those of its parameters
        that are trained. Raises ``SapperError`` for samples that do not fit the encoder or lack what is needed.
        """
        images = only_images(samples, label)
        images.check(encoder.card.pixels)
        if self.monitor:
            samples.targets()  # fails now rather than after an epoch
        augmentation = Augmentation(crop=(self.crop_scale, 1.0), size=self.view_size, jitter=self.jitter)
        resident = images.to(run.device)

        def terms(step: Step) -> Terms:
            value, outputs = loss(augmentation.views(resident, step.rows.repeat(2), step.generator), step)
            return {name: value, "spread": spread(outputs)}

        curves = train(
            model,
            terms,
            self.make_optimizer(trained),
            self.rate,
            count=len(samples),
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label=f"pre-training ({label})",
            checkpoint=checkpoint,
            combine=weighted({name: 1.0}),
            after_step=after_step,
            after_epoch=monitored(encoder, samples, run) if self.monitor else None,
        )
        return Trained(encoder.eval(), curves)

    def make_optimizer(self, trained: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, or SGD with momentum."""
        if self.optimizer == "adam":
            return torch.optim.Adam(trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(trained, lr=self.learning_rate, momentum=SGD_MOMENTUM, weight_decay=self.weight_decay)

    def rate(self, step: Step) -> float:
        """The learning rate of a step."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * warm_cosine(part_done(step.index, step.total), self.warmup)


def swapped(outputs: Tensor) -> Tensor:
    """Outputs (2N, D) in the order of the other views: row i is that of the other view of image i mod N."""
    return outputs.roll(len(outputs) // 2, 0)
