"""A masking test: an input is suspect if hiding one place moves its features far, and hiding others does not.

Threat model: the defender has an encoder's features and some clean images without labels, no task and no head; the
trigger lies in one place of the image, and what it does to the features is undone when it is hidden.

    dₘ(x) = 1 − cos(f(x), f(x hidden by mask m))            for M masks, the same for every input
    s(x)  = mean of the far dₘ − mean of the near dₘ        where the d₁ … d_M are split in two groups as Otsu does:
                                                            by the cut between which the variance is largest

Hidden pixels get the mean color of the defender's images. ``regular`` masks are squares of ``window`` of the side, at
``places`` places along each axis: one of them hides a trigger of that size or smaller, and all others leave most of the
image. ``random`` masks hide the share ``hidden`` of 8 × 8 cells, and there are as many of them.

Ours, in the spirit of two papers. TrojanDec (arXiv 2501.04108) masks random patches of a test input, and clusters the
features of what is left by the gap statistic; BackdoorIDS (2026) hides ever more of it, and counts the clusters that
the features on that path form. From them is the idea: without its trigger, an input becomes another one for the
encoder. The masks, the cut of the distances in place of clusters in feature space, and a threshold from clean images
are ours. Neither paper's numbers can be expected of it, and nothing is restored.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sapper.conformal import fewest
from sapper.defenses.contracts import Looks, Model, Need, Screen
from sapper.defenses.measures import SCREENED, OfScores
from sapper.defenses.screening import Calibrated, Screening, asked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers.covers import rectangles

CELLS = 8
"""Into how many cells an axis is divided for random masks."""

COLORS = 32
"""From how many clean images the mean color is taken."""


@dataclass(frozen=True, kw_only=True)
class MaskingTest(Screening, Screen):
    """Rejects inputs that become others for an encoder when one place is hidden (ours, after TrojanDec, BackdoorIDS).

    ``masks``: squares at regular places, or cells drawn at random. ``window``: a square's side as a share of the
    image's. ``places``: along each axis; their square is the number of masks. ``hidden``: the share of random cells.
    """

    masks: Literal["regular", "random"] = "regular"
    window: Annotated[float, Field(gt=0, lt=1)] = 0.4
    places: Annotated[int, Field(ge=2)] = 6
    hidden: Annotated[float, Field(gt=0, lt=1)] = 0.5

    kind: ClassVar[Literal["screen"]] = "screen"
    looks_at: ClassVar[Looks] = "encoder"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    measures: ClassVar[tuple[OfScores, ...]] = SCREENED
    version: ClassVar[int] = 1
    source: ClassVar[str] = "ours, after TrojanDec (arXiv 2501.04108) and BackdoorIDS (2026)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def prepare(self, model: Model, clean: ImageSet, run: Run) -> Calibrated:
        """The screen of an encoder, with its masks; the clean images give a color and the threshold."""
        left = len(clean) - fewest(self.false_rejections)
        known, held = self.parted(model, clean, run, max(1, min(COLORS, len(clean) // 4, left)))
        color = known.to(run.device).batch().mean((0, 2, 3)).view(3, 1, 1)
        masks = self.hiding(clean.size, run).to(run.device)

        def score(images: Tensor) -> Tensor:
            hidden = torch.where(masks.unsqueeze(1), color, images.unsqueeze(1))
            seen = torch.cat((images.unsqueeze(1), hidden), 1)
            features = F.normalize(asked(model, seen.flatten(0, 1), run), dim=1).unflatten(0, seen.shape[:2])
            return gap(1 - (features[:, 1:] * features[:, :1]).sum(2))

        return self.calibrated(score, held, len(masks) + 1, run, "masking test")

    def hiding(self, size: tuple[int, int], run: Run) -> Tensor:
        """The masks for images of that height and width, bool (M, H, W): what is hidden is true."""
        if self.masks == "regular":
            down, across = ((spans(side, max(1, round(self.window * side)), self.places), side) for side in size)
            return rectangles(down, across)
        drawn = torch.rand(self.places**2, CELLS**2, generator=run.child("masks").generator())
        cells = drawn.argsort(1).argsort(1) < max(1, round(self.hidden * CELLS**2))
        return F.interpolate(cells.view(-1, 1, CELLS, CELLS).float(), size, mode="nearest")[:, 0] > 0.5


def spans(side: int, length: int, places: int) -> list[tuple[int, int]]:
    """Starts and ends of ``places`` spans of that length, evenly along ``side`` pixels from edge to edge."""
    starts = [round(at * (side - length) / (places - 1)) for at in range(places)]
    return [(start, start + length) for start in starts]


def gap(distances: Tensor) -> Tensor:
    """How far apart the two groups of each row's values lie, in which Otsu's cut splits them: float (n, M) to (n,).

    The cut makes w·(1 − w)·(difference of the groups' means)² largest, w being the share of the lower group. M ≥ 2.
    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE Trans. SMC 1979.
    """
    ordered, count = distances.double().sort(1).values, distances.shape[1]
    lower = torch.arange(1, count, device=distances.device)
    sums = ordered.cumsum(1)
    apart = (sums[:, -1:] - sums[:, :-1]) / (count - lower) - sums[:, :-1] / lower
    cut = (lower * (count - lower) * apart.square()).argmax(1, keepdim=True)
    return apart.gather(1, cut).squeeze(1).to(distances.dtype)
