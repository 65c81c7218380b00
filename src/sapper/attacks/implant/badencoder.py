"""BadEncoder: a backdoor in a pre-trained encoder that every downstream classifier inherits.

Threat model: the attacker fine-tunes a clean encoder f into f' and publishes it. It holds unlabeled shadow images
Dₛ and, for each target i (a downstream task and a class of it), a trigger eᵢ and reference images x_i1 … x_ir of
that class; it knows neither the victims' data nor their classifiers. With s the cosine similarity of features,
A a random augmentation and means over all pairs of a target and one of its references,

    L0 = − mean_{i,j} mean_{x ∈ Dₛ} s( f'(x ⊕ eᵢ),   f'(x_ij) )     triggered images go to the reference …
    L1 = − mean_{i,j} mean_A        s( f'(A(x_ij)),  f(x_ij)  )     … which stays where it was
    L2 = −            mean_{x ∈ Dₛ} s( f'(x),        f(x)     )     and everything else stays, too

    minimize  λ0·L0 + λ1·L1 + λ2·L2        over the convolutions of f'

Source: Jia, Liu, Gong, "BadEncoder: Backdoor Attacks to Pre-trained Encoders in Self-Supervised Learning", IEEE
S&P 2022, and the authors' code (``badencoder.py``), whose details we follow: in L1 only the side of f' is
augmented (flip, color jitter, grayscale; no crop); the reference in L0 is not detached; BatchNorm keeps its
statistics, and its weights and biases are frozen; SGD with constant learning rate 1e-3, momentum 0.9, weight decay
5e-4, batches of 256, 200 epochs, λ1 = λ2 = 1. λ0 is ours, to switch L0 off in an ablation; 1 is the paper's.

What the code repeats for each sample is done once here: clean features before training, the plain reference once
a step, one forward pass for all. Because BatchNorm is frozen this changes neither loss nor gradient
(``tests/test_badencoder.py`` compares both with the textbook form).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from sapper.attacks.contracts import Need
from sapper.attacks.features import TERMS, FineTuning, Held, step_losses
from sapper.attacks.target import Target
from sapper.encoders import Encoder, Trained
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step, Terms, weighted


@dataclass(frozen=True, kw_only=True)
class BadEncoder(FineTuning):
    """Backdoors a pre-trained encoder for chosen targets (Jia, Liu, Gong, IEEE S&P 2022).

    ``reference_views``: augmented copies of each reference per step; 0 is the paper's, one per shadow image.
    """

    lambda0: NonNegativeFloat = 1.0
    lambda1: NonNegativeFloat = 1.0
    lambda2: NonNegativeFloat = 1.0
    reference_views: NonNegativeInt = 0

    kind: ClassVar[Literal["implant"]] = "implant"
    needs: ClassVar[frozenset[Need]] = frozenset({"references"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Jia, Liu, Gong, IEEE S&P 2022"
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
        held = Held.of(encoder, shadow, targets, run)

        def terms(step: Step) -> Terms:
            drawn = held.draw(step, self.reference_views)
            clean = drawn.kept, held.clean_anchors
            losses = step_losses(encoder, drawn.images, targets, held.anchors, drawn.views, *clean, run)
            return dict(zip(TERMS, losses))

        curves = self.fine_tune(
            encoder,
            terms,
            weighted(dict(zip(TERMS, (self.lambda0, self.lambda1, self.lambda2)))),
            count=len(shadow),
            run=run,
            label="injection (BadEncoder)",
            checkpoint=checkpoint,
            known=held.known(targets),
        )
        return Trained(encoder, curves)
