"""DRUPE: BadEncoder whose triggered features lie among the clean ones instead of in one point.

Threat model: BadEncoder's, with at least two references of every target (the paper: three or more). u_x = f'(x) is
not normalized, s_j(x) = s(f'(x ⊕ e), f'(x_j)) for the references x_j of one target, means are over targets, too.

    L0 = − mean_x max_j s_j(x)                          each triggered image goes to the nearest reference …
    L1, L2 as BadEncoder                                 … which stay, as everything else does
    σ  = std_j mean_x s_j(x)                             … and each reference gets its share
    L3 = mean_{i<j} s(f'(x_i), f'(x_j))                  references move apart
    Sb = mean_{x≠y} s(f'(x ⊕ e), f'(y ⊕ e))              triggered features move apart
    W  = sliced Wasserstein({u_{x⊕e}}, {u_x}) / mean_d std_x u_x      and spread like the clean ones

    first 1/120 of all steps    λ1·L1 + λ2·L2 + w·L3,  w = 0.3 below L3 = 0.2, else 0.5
    up to 4/120                 L0 + λ1·L1 + λ2·L2 + v·L3 + 2·σ,  v = 1 above L3 = 0.5, 0.2 above 0.4, else 0
    then                        L0 + λ1·L1 + λ2·L2 + v·L3 + 0.5·σ (2·σ above σ = 0.1) + c·(σ + Sb) + c1·W

c and c1 start at 0.1 and 0.001. From 20/120 of the epochs on, an epoch that ends with L0 < −0.96, L1 < −0.9 and
L2 < −0.9 is a good one. It lifts c to 1.25 times as much, unless the one before was good and had Sb < 0.5; any other
divides c by 1.25^1.25. A good one with Sb < 0.6 lifts c1 to 1.25 times as much; any other divides c1 by 1.25^1.25.

Source: Tao et al., IEEE S&P 2024, and the authors' code (``Gwinhen/DRUPE``, ``main.py``): 120 epochs, SGD with learning
rate 0.05 (its README), 50 projections.
What differs, on purpose. L3 there counts the pairs i = j, too, so that for three references its thresholds 0.5 and
0.4 mean cosines of 0 and −0.2, which features behind a ReLU never have below 0; ours are cosines of two different
references. Sb there has the diagonal, at a memory of B³; ours is that of different images, at a memory of B·D. W is the
mean distance between sorted projections (exponent 1). Stages are shares of the training instead of epochs. c and c1
follow from the curves of finished epochs alone, and Sb is the epoch's mean instead of the last batch's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.attacks.contracts import Need
from sapper.attacks.features import TERMS, Features, FineTuning, Held, encoded, kept_losses
from sapper.attacks.target import Target, TargetPlan
from sapper.downstream import AnyHead, mean_cosine
from sapper.encoders import Encoder, Trained
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Curves, Step, Terms

NAMES = (*TERMS, "σ evenness", "L3 references", "Sb triggered", "W distance")
UP, DOWN = 1.25, 1.25**-1.25
"""By what a weight is multiplied."""


@dataclass(frozen=True, kw_only=True)
class DRUPE(FineTuning):
    """BadEncoder that keeps triggered features among the clean ones (Tao et al., IEEE S&P 2024).

    ``warm_up``, ``spread_from``, ``adapt_from``: shares of the training. ``reached``: what −L0 must be for the weights
    of the spreading terms to rise (the code has 0.91 for ImageNet); ``spread`` and ``distance``: where they start.
    """

    epochs: PositiveInt = 120
    learning_rate: PositiveFloat = 0.05
    lambda1: NonNegativeFloat = 1.0
    lambda2: NonNegativeFloat = 1.0
    reference_views: NonNegativeInt = 0
    projections: PositiveInt = 50
    warm_up: Annotated[float, Field(ge=0, le=1)] = 1 / 120
    spread_from: Annotated[float, Field(ge=0, le=1)] = 4 / 120
    adapt_from: Annotated[float, Field(ge=0, le=1)] = 20 / 120
    reached: Annotated[float, Field(ge=0, le=1)] = 0.96
    spread: NonNegativeFloat = 0.1
    distance: NonNegativeFloat = 0.001

    kind: ClassVar[Literal["implant"]] = "implant"
    needs: ClassVar[frozenset[Need]] = frozenset({"references"})
    version: ClassVar[int] = 2
    source: ClassVar[str] = "Tao et al., IEEE S&P 2024"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __call__(
        self,
        encoder: Encoder,
        shadow: Samples,
        targets: tuple[Target, ...],
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """Train ``encoder`` in place into the backdoored one; its state on entry is the clean one."""
        self.check_plan(TargetPlan.of(targets), ())
        counts = [len(target.references) for target in targets]
        held = Held.of(encoder, shadow, targets, run)

        def terms(step: Step) -> Terms:
            drawn = held.draw(step, self.reference_views)
            output = encoded(encoder, drawn.images, targets, held.anchors, drawn.views, run)
            sizes = len(targets), len(drawn.images), len(held.anchors)
            raw, unit = Features.of(output, *sizes), Features.of(F.normalize(output, dim=1), *sizes)
            kept = kept_losses(unit, drawn.kept, held.clean_anchors)
            random = torch.randn(encoder.feature_size, self.projections, generator=step.generator)
            directions = F.normalize(random, dim=0).to(output)
            l0, *others = spreading(raw, unit, counts, directions)
            return dict(zip(NAMES, (l0, *kept, *others)))

        curves = self.fine_tune(
            encoder,
            terms,
            self.combine,
            count=len(shadow),
            run=run,
            label="injection (DRUPE)",
            checkpoint=checkpoint,
            known=held.known(targets),
        )
        return Trained(encoder, curves)

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for a target with a single reference, besides what all attacks refuse."""
        super().check_plan(plans, heads)
        if min((plan.references for plan in plans), default=2) < 2:
            what, remedy = "DRUPE needs at least two references of each target", "set references = 3"
            raise SapperError(what, where="target.references", remedy=remedy)

    def combine(self, terms: Terms, step: Step, curves: Curves) -> Tensor:
        """What is minimized in this part of the training."""
        l0, l1, l2, evenness, apart, spread, distance = (terms[name] for name in NAMES)
        kept = self.lambda1 * l1 + self.lambda2 * l2
        if step.done < self.warm_up:
            return kept + (0.3 if apart < 0.2 else 0.5) * apart
        attack = l0 + kept + (1.0 if apart > 0.5 else 0.2 if apart > 0.4 else 0.0) * apart
        if step.done < self.spread_from:
            return attack + 2 * evenness
        c, c1 = self.weights(curves)
        return attack + (2.0 if evenness > 0.1 else 0.5) * evenness + c * (evenness + spread) + c1 * distance

    def weights(self, curves: Curves) -> tuple[float, float]:
        """c and c1 after the finished epochs that ``curves`` tell of."""
        c, c1, held = self.spread, self.distance, False
        for l0, l1, l2, spread in list(zip(*(curves.get(name, []) for name in (*TERMS, "Sb triggered"))))[
            round(self.adapt_from * self.epochs) :
        ]:
            good = l0 < -self.reached and l1 < -0.9 and l2 < -0.9
            c *= DOWN if not good else 1.0 if held else UP
            c1 *= UP if good and spread < 0.6 else DOWN
            held = good and spread < 0.5
        return c, c1


def spreading(raw: Features, unit: Features, counts: list[int], directions: Tensor) -> tuple[Tensor, ...]:
    """L0, σ, L3, Sb and W of one batch, from features as they are and of length 1; ``counts``: references a target."""
    width, rows = raw.plain.std(0).mean(), []
    for stamped, full, anchors in zip(unit.stamped, raw.stamped, unit.anchors.split(counts)):
        pull = stamped @ anchors.T
        distance = sliced_wasserstein(full, raw.plain, directions) / width
        rows.append((-pull.amax(1).mean(), pull.mean(0).std(), mean_cosine(anchors), mean_cosine(stamped), distance))
    return tuple(torch.stack(column).mean() for column in zip(*rows))


def sliced_wasserstein(ours: Tensor, theirs: Tensor, directions: Tensor) -> Tensor:
    """The mean over ``directions`` (D, P), of length 1, of the first Wasserstein distance between projections.

    ``ours`` and ``theirs`` (N, D), as many rows: on a line, the nearest matching pairs them in order.
    """
    return ((ours @ directions).sort(dim=0).values - (theirs @ directions).sort(dim=0).values).abs().mean()
