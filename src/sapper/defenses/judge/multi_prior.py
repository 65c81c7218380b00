"""Multi-prior inversion: how small a change collapses the features of ordinary images onto one point.

Threat model: an encoder whose weights are at hand, and unlabeled ordinary images. The attacker's trigger is unknown in
kind, size and place, and its target is one point of the feature space, where every triggered image comes to lie: that
is how a downstream class is reached from everywhere, in BadEncoder and in what is built on it. For each kind of change
T_θ (a *prior*) θ is optimized so that features coincide,

    minimize_θ   r_θ = 1 − mean_{i≠j} cos( f(T_θ(x_i)), f(T_θ(x_j)) )

    patch    T_θ(x) = x with a square replaced by θ ∈ [0, 1]^{3×s×s}, for sizes s and a grid of places
    blend    T_θ(x) = (1 − α)·x + α·θ, θ ∈ [0, 1]^{3×H×W}
    filter   T_θ(x) = clip((I + A)·x + b) for each pixel's color, |A|, |b| ≤ the filter's strength

and compared, on images that the optimization has not seen, with the spread r_near of those ordinary images whose
features lie nearest to where the changed ones come to lie. Features of a supervised classifier, say, lie in one heap
for each class, and a patch of some pattern sends every image into one of them; but there they are spread as the heap
is. What a backdoor draws together is far denser than anything around it. How many powers of ten a prior reaches on
encoders without a backdoor differs between priors: what is usual there, μ, and how far that varies, σ, are measured on
clean encoders, contrastive and supervised ones. The largest excess is the score,

    score = max_priors ( log10( r_near / r_θ ) − μ ) / σ

A mask of free shape (``decree``) must find where the trigger is by shrinking from all of the image, and may end in a
place where nothing is; a square that is given its place needs some steps only. So there are many starts, and they are
raced: all of them take few steps on few images, the best go on with more. Some begin, and stay for the first round, in
one color, whichever: what a whole square of a color does is then found at once, where pixels one by one would not show
the way. Having three numbers to find only, they are the more sensitive to their place, and lie more densely, but in
large images. Between rounds each goes where it does best, of its own place and those around it: a square that lies
across a trigger's edge comes to lie on it. A square also finds triggers that are smaller than it, and parts of larger
ones, so that few sizes do.

Source: Sapper. The mean cosine as the measure is that of Feng et al., "Detecting Backdoors in Pre-trained Encoders",
CVPR 2023, and so is Adam with β = (0.5, 0.9). The defaults of μ and σ are from the development part of the zoo
``small`` (``docs/results/audit.md``); another architecture or image size asks for calibration (``sapper calibrate``).
"""

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from sapper.defenses.collapsing import CollapseSearch
from sapper.defenses.contracts import EncoderExaminer, Need
from sapper.defenses.measures import OfVerdicts, detection
from sapper.encoders import Encoder
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.verdicts import Verdict, unscored


@dataclass(frozen=True, kw_only=True)
class MultiPrior(CollapseSearch, EncoderExaminer):
    """Inverts triggers of several kinds at once, from many starts (Sapper's own).

    Priors, starts and rounds are those of the search. ``threshold`` of the score.
    """

    threshold: float = 2.0

    kind: ClassVar[Literal["examine"]] = "examine"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = detection("score")
    version: ClassVar[int] = 5
    source: ClassVar[str] = "Sapper"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """Whether ``encoder`` has a backdoor, by unlabeled ordinary ``images`` of its size.

        Evidence: ``priors``, for each its ``score``, the ``spread`` that it leaves, that of its ``neighborhood`` and
        its ``powers`` of ten; ``spread`` of all images as they are; ``prior``, the one whose score counts. Its trigger
        is a ``Mask`` for a patch or a blend, ``Colors`` for a filter.

        Where features are all alike, too long or too short for cosines, or not finite, there is no score, and ``why``
        says so: an encoder could hide behind that.
        """
        started = time.perf_counter()
        encoder.to(run.device).eval().requires_grad_(False)
        looked = self.search(encoder, *self.split(images, run, "multi_prior"), run)
        if looked.why is not None:
            return unscored(looked.why, self.threshold, time.perf_counter() - started)
        winner = max(looked.found, key=lambda name: looked.found[name].score)
        best = looked.found[winner]
        return Verdict(
            score=best.score,
            threshold=self.threshold,
            flagged=best.score > self.threshold,
            trigger=best.change.trigger(),
            evidence={
                "prior": winner,
                "spread": looked.spread,
                "priors": {name: {"score": each.score} | each.told() for name, each in looked.found.items()},
            },
            seconds=time.perf_counter() - started,
        )

    def parts(self) -> list["MultiPrior"]:
        """One for each prior."""
        bare = replace(self, patches=(), blends=(), filters=())
        return [
            *(replace(bare, patches=(each,)) for each in self.patches),
            *(replace(bare, blends=(each,)) for each in self.blends),
            *(replace(bare, filters=(each,)) for each in self.filters),
        ]
