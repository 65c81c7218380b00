"""DeDe: an input is suspect if it cannot be told from its feature what it looks like.

Threat model: the defender has an encoder's features and clean images without labels, which need not be those that the
encoder was trained on; no task and no head. A triggered input's feature is that of something else.

    train on clean images:   min_D  mean over hidden patches of |x − D(f(x), x with most patches hidden)|²
    score an input:          s(x) = the same mean, with nearly all hidden: what comes back is what the feature tells

D is a masked autoencoder in which the feature takes the place of the class token. f is of length 1 and not trained.

Source: "DeDe", CVPR 2025, with the authors' code: Adam at 1e-3, 90 % hidden in training and 99 % in the test. On
purpose different:

* D is small, one transformer of ``depth`` blocks of ``width`` channels for 64 patches, whatever the image's size. The
  authors have 12 + 4 blocks of 192 channels and patches of 4 pixels; 200 epochs with batches of 256. Here ``steps``
  count, in whole epochs, because a few hundred images are as many epochs as thousands are not.
* Features are computed once. The authors send gradients through the encoder that nothing uses.
* The same patches are left visible of every input, so that scores can be compared.
* The threshold is a rank among clean scores. The authors' code takes the median over the judged images, half of which
  are then rejected, whatever they are.
"""

from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.conformal import fewest
from sapper.defenses.contracts import Looks, Model, Need, Screen
from sapper.defenses.measures import SCREENED, OfScores
from sapper.defenses.screening import Calibrated, Screening, asked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Step, Terms, steps_per_epoch, train, warm_cosine

CELLS = 8
"""Patches along each axis."""

HEAD = 32
"""Channels of an attention head."""

SEEN = 256
"""From how many images the pixels' mean and deviation are taken."""

LEAST = 16
"""Images below which no decoder can be trained."""

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class DeDe(Screening, Screen):
    """Rejects inputs that a decoder cannot make again from their features (CVPR 2025).

    ``hidden``, ``hidden_at_test``: the share of patches that the decoder does not see; at least one is left.
    ``steps`` of Adam, in whole epochs. ``width`` in channels, a multiple of 32.
    """

    hidden: Share = 0.9
    hidden_at_test: Share = 0.99
    width: Annotated[int, Field(ge=HEAD, multiple_of=HEAD)] = 64
    depth: PositiveInt = 4
    steps: PositiveInt = 1000
    batch: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-3

    kind: ClassVar[Literal["screen"]] = "screen"
    looks_at: ClassVar[Looks] = "encoder"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    measures: ClassVar[tuple[OfScores, ...]] = SCREENED
    version: ClassVar[int] = 1
    source: ClassVar[str] = "DeDe, CVPR 2025"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    @property
    def learns_from(self) -> int:
        return LEAST

    def prepare(self, model: Model, clean: ImageSet, run: Run) -> Calibrated:
        """The screen of an encoder: a decoder trained on three quarters of the clean images or more."""
        choose = max(fewest(self.false_rejections), min(self.held_out, len(clean) // 4))
        known, held = self.parted(model, clean, run, max(LEAST, len(clean) - choose))
        decoder = self.trained(model, known.to(run.device), run)
        order = torch.randperm(CELLS**2, generator=run.child("visible").generator()).to(run.device)
        hidden = order >= visible(self.hidden_at_test)

        def score(images: Tensor) -> Tensor:
            with run.autocast():
                made = decoder(features_of(model, images, run), decoder.patches(images), hidden.expand(len(images), -1))
            return errors(made.float(), decoder.patches(images), hidden.expand(len(images), -1))

        return self.calibrated(score, held, 1, run, "DeDe")

    def trained(self, model: Model, images: ImageSet, run: Run) -> "Decoder":
        """The decoder of an encoder's features, in ``eval`` mode; ``images`` are on the run's device."""
        with torch.no_grad():
            features = torch.cat([features_of(model, part, run) for part in images.batches(self.batch)])
        with run.child("decoder").seeded():
            decoder = Decoder(features.shape[1], images.size, self.width, self.depth).to(run.device)
        decoder.standardize(images.batch(slice(0, SEEN)))

        def terms(step: Step) -> Terms:
            patches = decoder.patches(images.batch(step.rows))
            drawn = torch.rand(len(patches), CELLS**2, generator=step.generator).argsort(1).argsort(1)
            hidden = (drawn >= visible(self.hidden)).to(run.device)
            with run.autocast():
                made = decoder(features[step.rows.to(run.device)], patches, hidden)
            return {"reconstruction": errors(made.float(), patches, hidden).mean()}

        train(
            decoder,
            terms,
            torch.optim.Adam(decoder.parameters(), lr=self.learning_rate),
            lambda step: self.learning_rate * warm_cosine(step.done, 0.05),
            count=len(images),
            batch=self.batch,
            epochs=ceil(self.steps / steps_per_epoch(len(images), self.batch)),
            run=run.child("decoder"),
            label="decoder (DeDe)",
        )
        return decoder.eval().requires_grad_(False)


class Decoder(nn.Module):
    """From features (n, F) and the visible ones of 8 × 8 patches to all patches of images of that height and width."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, size: tuple[int, int], width: int, depth: int):
        super().__init__()
        self.sides = ceil(size[0] / CELLS), ceil(size[1] / CELLS)
        self.missing = CELLS * self.sides[0] - size[0], CELLS * self.sides[1] - size[1]
        pixels = 3 * self.sides[0] * self.sides[1]
        self.told, self.shown = nn.Linear(features, width), nn.Linear(pixels, width)
        self.made = nn.Linear(width, pixels)
        self.places = nn.Parameter(0.02 * torch.randn(CELLS**2, width))
        self.unknown = nn.Parameter(0.02 * torch.randn(width))
        block = nn.TransformerEncoderLayer(
            width, width // HEAD, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def standardize(self, images: Tensor) -> None:
        """Take the mean and the deviation of these images' pixels for those of all."""
        self.mean, self.std = images.mean().view(1), images.std().clamp(min=1e-3).view(1)

    def patches(self, images: Tensor) -> Tensor:
        """Float (n, 64, pixels) of images (n, 3, H, W); where 8 does not divide a side, the edge is repeated."""
        padded = F.pad(images, (0, self.missing[1], 0, self.missing[0]), mode="replicate")
        return F.unfold(padded, self.sides, stride=self.sides).transpose(1, 2)

    def forward(self, features: Tensor, patches: Tensor, hidden: Tensor) -> Tensor:
        """All patches, as far as they can be told; ``hidden`` bool (n, 64): patches that are not looked at."""
        shown = self.shown((patches - self.mean) / self.std)
        tokens = torch.where(hidden.unsqueeze(2), self.unknown.to(shown.dtype), shown) + self.places
        told = self.told(features).unsqueeze(1)
        out: Tensor = self.made(self.blocks(torch.cat((told, tokens), 1))[:, 1:])
        return out * self.std + self.mean


def visible(hidden: float) -> int:
    """How many patches are left when that share is hidden."""
    return min(CELLS**2 - 1, max(1, round((1 - hidden) * CELLS**2)))


def features_of(model: Model, images: Tensor, run: Run) -> Tensor:
    """Features of length √F, so that no entry is small: float32 (n, F)."""
    features = asked(model, images, run)
    return F.normalize(features, dim=1) * features.shape[1] ** 0.5


def errors(made: Tensor, patches: Tensor, hidden: Tensor) -> Tensor:
    """The mean squared error over the hidden patches of each image: (n, P, pixels) twice, bool (n, P) to (n,)."""
    each = (made - patches).square().mean(2)
    return (each * hidden).sum(1) / hidden.sum(1)
