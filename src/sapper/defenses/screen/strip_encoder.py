"""STRIP for a bare encoder: an input is suspect if its features stay put when other images are blended over it.

Threat model: the defender has an encoder's features and some clean images without labels, no task and no head; the
trigger draws the features of whatever carries it to one point, and can be seen through what is blended over it.

    s(x) = 1/(N² − N) · Σ_{n ≠ m} cos(f(xₙ′) − c, f(xₘ′) − c)        xₙ′ = min(1, a·x + b·xₙ)

with f of length 1, N clean images xₙ, and c the mean feature of blends of two clean images. Features of a clean input's
blends go along with what is blended over it; those of a triggered input all lie near the attacker's feature. Without c,
which all images share, every cosine would be near 1.

Ours: STRIP (Gao et al., ACSAC 2019) looks at a classifier's entropy, and has no form for encoders. What it does with an
input, N = 100 and the weights 1 and 1, is STRIP's; that dispersion of features takes the place of entropy is ours.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sapper.defenses.contracts import Looks, Model, Need, Screen
from sapper.defenses.measures import SCREENED, OfScores
from sapper.defenses.screening import Blending, Calibrated, asked, blended, over_blends
from sapper.downstream import mean_cosine
from sapper.running import Run
from sapper.samples import ImageSet


@dataclass(frozen=True, kw_only=True)
class STRIPEncoder(Blending, Screen):
    """Rejects inputs whose features an encoder keeps together whatever is blended over them (ours, after STRIP).

    ``overlays``: N, how many clean images are blended over each input. ``weights``: a of the input, b of the overlay.
    """

    overlays: Annotated[int, Field(ge=2)] = 100

    kind: ClassVar[Literal["screen"]] = "screen"
    looks_at: ClassVar[Looks] = "encoder"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    measures: ClassVar[tuple[OfScores, ...]] = SCREENED
    version: ClassVar[int] = 1
    source: ClassVar[str] = "ours, after Gao et al., ACSAC 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def prepare(self, model: Model, clean: ImageSet, run: Run) -> Calibrated:
        """The screen of an encoder, its overlays and its threshold drawn from the clean images."""
        known, held = self.parted(model, clean, run, self.overlays)
        overlays = known.to(run.device).batch()
        with torch.no_grad():
            shown = blended(overlays, overlays.roll(1, 0), self.weights)
            center = F.normalize(asked(model, shown, run), dim=1).mean(0)

        def score(images: Tensor) -> Tensor:
            return closeness(over_blends(model, images, overlays, self.weights, run), center)

        return self.calibrated(score, held, self.overlays, run, "STRIP of features")


def closeness(features: Tensor, center: Tensor) -> Tensor:
    """The mean cosine of two features of an image, seen from the center: float (n, N, D) and (D,) to (n,)."""
    return mean_cosine(F.normalize(F.normalize(features, dim=2) - center, dim=2))
