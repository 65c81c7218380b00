"""I-BAU: unlearn whatever one change of all images moves features most, found anew in every round.

Threat model: the owner holds the suspect encoder f and unlabeled ordinary samples, and knows no trigger. With one
disturbance δ for all images, and K(θ, δ) = 1 − mean s( f_θ(x + δ), f(x) ),

    minimize over θ   mean over a batch, whose share ρ is disturbed by δ*(θ),  of  1 − s( f_θ(x [+ δ*]), f(x) )
    where   δ*(θ) = argmin_δ   − K(θ, δ) + c·‖δ‖²

The gradient goes through δ*(θ), too (implicit hypergradient): with the map Φ(δ, θ) = δ − η·∇_δ(−K + c‖δ‖²), whose
fixed point δ* is, and g = ∂(outer)/∂δ, the vector v = Σ_{k<K} (∂Φ/∂δ)ᵀᵏ g is found in K steps, and

    d(outer)/dθ = ∂(outer)/∂θ + (∂Φ/∂θ)ᵀ v

Source: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, and the authors'
code (``YiZeng623/I-BAU``): 5 rounds, K = 5, η = 0.1, c = 0.001, δ by SGD with learning rate 10 from zero in one pass,
ρ = 1 %, θ by Adam with learning rate 1e-3, with cross-entropy for 1 − s. For features a start at zero has no gradient,
since the cosine with itself is at its largest there: δ starts with noise of ``start``, and ρ is larger. In the code the
inner loss always sees the first batch; here each step sees its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sapper.defenses.contracts import Need, Owner
from sapper.defenses.repairing import apart, begin, check_count, encoded
from sapper.downstream import extract
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import freeze_batch_norm, trained
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint, Step, Terms, train

OUTER, IMPLICIT = "disturbed", "implicit"

Objective = Callable[[Tensor], Tensor]
"""Of δ, with gradients in θ, too; a scalar."""


@dataclass(frozen=True, kw_only=True)
class IBAU(Checked):
    """Unlearns universal disturbances by an implicit hypergradient (Zeng et al., ICLR 2022).

    ``rounds`` of a search for δ and a pass over the images. ``disturbed``: ρ. ``inner_rate``: the learning rate of δ;
    ``start``: the deviation of its first values; ``size``: c. ``fixed_steps``: K; ``fixed_rate``: η.
    """

    rounds: PositiveInt = 20
    batch: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 1e-3
    disturbed: Annotated[float, Field(gt=0, le=1)] = 0.5
    inner_rate: PositiveFloat = 10.0
    start: PositiveFloat = 0.01
    size: NonNegativeFloat = 0.001
    fixed_steps: PositiveInt = 5
    fixed_rate: PositiveFloat = 0.1

    kind: ClassVar[Literal["repair"]] = "repair"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Zeng et al., ICLR 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"rounds": 5, "batch": 100, "disturbed": 0.01}}

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for too few images."""
        check_count(images)

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place."""
        images = begin(encoder, owner, run, "I-BAU")
        known = extract(encoder, images, run)
        freeze_batch_norm(encoder)
        found: dict[int, Tensor] = {}

        def terms(step: Step) -> Terms:
            if step.epoch not in found:
                found.clear()
                found[step.epoch] = self.search(encoder, images, known, run.child(f"search {step.epoch}"))
            shown, wanted = images.batch(step.rows), known[step.rows.to(run.device)]
            count = max(1, round(self.disturbed * len(shown)))

            def inner(delta: Tensor) -> Tensor:
                return self.size * delta.square().sum() - apart(encoded(encoder, shown + delta, run), wanted)

            def outer(delta: Tensor) -> Tensor:
                mixed = torch.cat((shown[:count] + delta, shown[count:]))
                return apart(encoded(encoder, mixed, run), wanted)

            implicit, loss = hypergradient(inner, outer, found[step.epoch], self.fixed_steps, self.fixed_rate)
            return {OUTER: loss, IMPLICIT: implicit}

        with sdpa_kernel(SDPBackend.MATH):  # the only attention of torch's that has second derivatives
            curves = train(
                encoder,
                terms,
                torch.optim.Adam(trained(encoder), lr=self.learning_rate, fused=True),
                lambda _step: self.learning_rate,
                count=len(images),
                batch=self.batch,
                epochs=self.rounds,
                run=run,
                label="I-BAU",
                checkpoint=checkpoint,
                mode=lambda: freeze_batch_norm(encoder),
            )
        del curves[IMPLICIT]  # its value is nought; it is there for its gradient
        return Trained(encoder.eval().requires_grad_(True), curves)

    def search(self, encoder: Encoder, images: ImageSet, known: Tensor, run: Run) -> Tensor:
        """δ of a round, float (1, 3, H, W): one pass of gradient descent over the images."""
        generator = run.generator()
        delta = self.start * torch.randn(1, *images.images.shape[1:], generator=generator)
        delta = delta.to(run.device).requires_grad_()
        for rows in torch.randperm(len(images), generator=generator).split(self.batch):
            features = encoded(encoder, images.batch(rows) + delta, run)
            loss = self.size * delta.square().sum() - apart(features, known[rows.to(run.device)])
            (slope,) = torch.autograd.grad(loss, [delta])
            with torch.no_grad():
                delta.sub_(self.inner_rate * slope)
        return delta.detach()


def hypergradient(inner: Objective, outer: Objective, delta: Tensor, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    """What makes ``outer``'s gradient in θ the one through δ*(θ), too: a term whose value is nought, and ``outer``.

    ``inner`` and ``outer`` are functions of δ that give scalars and depend on θ; ``delta`` is near the inner minimum.
    """
    delta = delta.detach().requires_grad_()
    loss = outer(delta)
    (direct,) = torch.autograd.grad(loss, [delta], retain_graph=True)
    (slope,) = torch.autograd.grad(inner(delta), [delta], create_graph=True)
    mapped = delta - rate * slope
    vector = torch.zeros_like(direct)
    for _ in range(steps):
        (pulled,) = torch.autograd.grad(mapped, [delta], grad_outputs=vector, retain_graph=True)
        vector = pulled + direct
    implicit = (vector * mapped).sum()
    return implicit - implicit.detach(), loss
