"""STRIP: an input is suspect if a classifier's answer stays the same when other images are blended over it.

Threat model: the defender has a classifier's answers and some clean images without labels; the attacker's trigger is
the same for every input, and strong enough to be seen through what is blended over it.

    H(x) = − 1/N · Σₙ Σ_c p_c(min(1, a·x + b·xₙ)) · log₂ p_c(min(1, a·x + b·xₙ))        in bits, from 0 to log₂ K

with N clean images xₙ. Blends of a clean input are taken for many classes, or for none with certainty; blends of an
input with a trigger are taken for the attacker's class. The score is −H(x).

Source: Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019, with the authors'
code: N = 100, both weights 1 on 8-bit images, so that sums saturate, and a false rejection rate of 1 % (the preset
``paper``). On purpose different:

* The threshold is a rank among clean scores (``screening``). The authors fit a normal distribution to 2,000 of them
  and take its 1 % quantile.
* The same N images are blended over every input. The authors draw them anew for each; then an input's score would
  depend on what came before it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from sapper.defenses.contracts import Looks, Model, Need, Screen
from sapper.defenses.measures import SCREENED, OfScores
from sapper.defenses.screening import Blending, Calibrated, over_blends
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet


@dataclass(frozen=True, kw_only=True)
class STRIP(Blending, Screen):
    """Rejects inputs of which a classifier says the same whatever is blended over them (Gao et al., ACSAC 2019).

    ``overlays``: N, how many clean images are blended over each input. ``weights``: a of the input, b of the overlay.
    """

    kind: ClassVar[Literal["screen"]] = "screen"
    looks_at: ClassVar[Looks] = "classifier"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})
    measures: ClassVar[tuple[OfScores, ...]] = SCREENED
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Gao, Xu, Wang, Chen, Ranasinghe, Nepal, ACSAC 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"false_rejections": 0.01}}

    def prepare(self, model: Model, clean: ImageSet, run: Run) -> Calibrated:
        """The screen of a classifier, its overlays and its threshold drawn from the clean images."""
        known, held = self.parted(model, clean, run, self.overlays)
        overlays = known.to(run.device).batch()

        def score(images: Tensor) -> Tensor:
            answers = over_blends(model, images, overlays, self.weights, run)
            if answers.shape[2] < 2:
                what, remedy = "an answer has one number, and its entropy is always 0", "give a classifier's logits"
                raise SapperError(what, where="model", remedy=remedy)
            return -entropy(answers.log_softmax(2)).mean(1)

        return self.calibrated(score, held, self.overlays, run, "STRIP")


def entropy(log_probabilities: Tensor) -> Tensor:
    """In bits over the last axis, that of the classes: float (…,) of natural logarithms (…, K); 0 … log₂ K."""
    return -(log_probabilities.exp() * log_probabilities.clamp(min=FLOOR)).sum(-1) / LOG2


FLOOR, LOG2 = -1e4, 0.6931471805599453
"""Where the logarithm of 0 is cut: 0 · log 0 is 0. And the natural logarithm of 2."""
