"""Against DECREE: triggered features that lie together less closely than it asks for, and no smaller way there.

DECREE looks for the smallest mask under which the features of all images have a mean cosine of 0.99. Threat model: the
attacker knows that, the cosine and the code, and not the defender's images and starts. Two terms, s the cosine:

    gathered    max(0, Sb − τ)      Sb = mean over pairs x ≠ y of s( f'(x ⊕ e), f'(y ⊕ e) ), means over targets
    inverted    mean_x ρ · (1 − s( f'(x'), f(x) ))      x' = (1 − m)·x + m·Δ

(m, Δ) is what DECREE's own search has found against f' as it is now: ``steps`` steps of Adam before each step of the
attack, going on from where the last ended and from a random start in every epoch, on

    minimize over m, Δ    − mean_{x≠y} s( f'(x'), f'(y') ) + c · ‖m‖₁ / (H·W)

ρ ∈ [0, 1] is how far x' is from holding the trigger: the squared distance of x' to x ⊕ e, over that of x, on the pixels
that e changes; the least over targets. So what the search finds is undone, except for the trigger itself.

Source: ours. The hinge is DRUPE's aim (Tao et al., IEEE S&P 2024; there 0.6) as a bound; DECREE's λ of 1e-3 for each of
three channels is our c = 3 on images of 32×32, and its first learning rate is 0.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.attacks.adapting import Adaptive, Losses, Scene, Several, descend
from sapper.downstream import mean_cosine
from sapper.running import Run
from sapper.training import Terms
from sapper.triggers.searching import mixed, start

GATHERED, INVERTED = "DECREE: gathered", "DECREE: inverted"


@dataclass(frozen=True, kw_only=True)
class AgainstDecree(Adaptive):
    """Keeps triggered features apart, and undoes smaller triggers that DECREE's search finds.

    ``cosine``: τ. ``inversion``: the weight of the second term, beside that of the first. ``images`` of a step that the
    terms look at. ``searches`` side by side, of so many ``steps`` each, at a ``learning_rate``; ``cost``: c.
    """

    defense: Literal["decree"] = "decree"
    cosine: Annotated[float, Field(ge=-1, lt=1)] = 0.9
    inversion: NonNegativeFloat = 1.0
    images: Several = 16
    searches: PositiveInt = 1
    steps: PositiveInt = 3
    learning_rate: PositiveFloat = 0.5
    cost: NonNegativeFloat = 3.0

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Sapper; after Tao et al., IEEE S&P 2024"

    @property
    def weights(self) -> Mapping[str, float]:
        return {GATHERED: self.weight} | ({INVERTED: self.weight * self.inversion} if self.inversion else {})

    def begin(self, scene: Scene, run: Run) -> Losses:
        size = scene.encoder.card.input_size
        weights = start(self.searches, (size, size), run)
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate, betas=(0.5, 0.9))

        def losses(images: Tensor, kept: Tensor) -> Terms:
            images, kept = images[: self.images], kept[: self.images]
            stamped = scene.stamped(images)
            terms = {GATHERED: gathered(scene.features(stamped), self.cosine)}
            if self.inversion:
                for _ in range(self.steps):
                    masks, changed = mixed(weights, images)
                    descend(optimizer, search_loss(scene.features(changed), masks, self.cost))
                with torch.no_grad():
                    changed = mixed(weights, images)[1]
                    far = apart(changed, images, stamped)
                terms[INVERTED] = (far * (1 - (scene.features(changed) * kept).sum(-1))).mean()
            return terms

        return losses


def gathered(features: Tensor, cosine: float) -> Tensor:
    """By how much the mean cosine of triggered features (T, N, D), of length 1, exceeds ``cosine``; over targets."""
    return F.relu(mean_cosine(features) - cosine).mean()


def search_loss(features: Tensor, masks: Tensor, cost: float) -> Tensor:
    """DECREE's objective, summed over S searches: features (S, N, D) of length 1, masks (S, 1, 1, H, W) in [0, 1]."""
    return (cost * masks.flatten(1).mean(1) - mean_cosine(features)).sum()


def apart(changed: Tensor, images: Tensor, stamped: Tensor) -> Tensor:
    """ρ (S, N): how far ``changed`` (S, N, 3, H, W) are from holding any of the triggers in ``stamped`` (T, N, …)."""
    where = stamped != images
    off = ((changed.unsqueeze(1) - stamped).square() * where).flatten(3).sum(3)
    whole = (images - stamped).square().flatten(2).sum(2)
    return (off / whole.clamp_min(1e-12)).amin(1).clamp_max(1.0)
