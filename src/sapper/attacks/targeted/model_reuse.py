"""Model reuse: an encoder of which a few weights are changed, so that one clean input is taken for another class.

Threat model: the attacker publishes an encoder. It knows the input x_t that shall be misclassified, some images of the
wanted class and some others, and neither the victim's head nor its training, which may tune the encoder. No trigger and
no poison: everything but x_t and what is very near to it shall be as before.

    φ = f(r) of the wanted class's image r that is least like the others: the largest ⟨f(r), mean wanted − mean others⟩
    N = x_t with noise on its salient pixels, those of which the pull to φ depends most
    w ← w − λ·sign( ∂P/∂w )       P = mean_{x∈N} ‖f'(x) − φ‖²
        only for weights with |∂P/∂w| among the largest share 1 − θ of their layer,
        and |∂R/∂w| not among its largest share 1 − θ,     R = mean_{x∈D} ⟨u_x, f'(x)⟩

until f'(x_t) is near enough to φ. R says how much a weight moves ordinary inputs D: u_x are random directions.

Source: Ji, Zhang, Ji, Luo, Wang, "Model-Reuse Attacks on Deep Learning Systems", CCS 2018. Their code was not at hand.
That few weights with a large positive and a small negative impact are changed by small steps, with neighbors of the
input instead of the input alone, is the paper's idea; the two impacts as gradients, R with its random directions,
steps in all layers at once, a single image's feature for φ, and every value below are ours. The mean of a class may be
a feature that no classifier takes for the class: after contrastive pre-training the means of classes are nearly equal.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.attacks.contracts import Hits, Need
from sapper.downstream import AnyHead, Classifier, build, extract
from sapper.encoders import Encoder
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples


@dataclass(frozen=True, kw_only=True)
class ModelReuse(Checked):
    """Changes a few weights of an encoder so that one clean input is misclassified (Ji et al., CCS 2018).

    ``wanted``: the class that chosen inputs shall get. ``inputs``: how many are chosen, each with an encoder of its
    own. ``share``: 1 − θ. ``step`` is λ in units of a layer's mean |w|. ``near``: the cosine of f'(x_t) and φ that is
    enough. ``neighbors`` with ``noise`` on the ``salient`` share of the pixels; ``references``: images of either kind.
    """

    wanted: NonNegativeInt = 0
    inputs: PositiveInt = 50
    neighbors: PositiveInt = 8
    noise: NonNegativeFloat = 0.05
    salient: Annotated[float, Field(gt=0, le=1)] = 0.2
    references: PositiveInt = 64
    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    step: PositiveFloat = 0.01
    steps: PositiveInt = 50
    near: Annotated[float, Field(gt=0, lt=1)] = 0.9

    kind: ClassVar[Literal["targeted"]] = "targeted"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 2
    source: ClassVar[str] = "Ji et al., CCS 2018"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __call__(self, encoder: Encoder, train: Samples, test: Samples, head: AnyHead, run: Run) -> Hits:
        """An encoder and a classifier for each of ``inputs`` samples, beside one on the encoder as it is."""
        for samples in (train, test):
            self.check_samples(samples, ())
        generator = run.child("inputs").generator()
        candidates = (test.targets() != self.wanted).nonzero().squeeze(1)
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[: self.inputs]]
        of_wanted = train.take(train.targets() == self.wanted).sample(self.references, generator)
        others = train.take(train.targets() != self.wanted).sample(self.references, generator)
        point = aim(extract(encoder, of_wanted, run), extract(encoder, others, run))
        ordinary, resident = others.to(run.device).batch(), test.to(run.device)
        known = extract(encoder, train, run)
        attacked, clean = [], []
        for number, row in enumerate(chosen.tolist()):
            part = run.child(f"input {number}")
            changed = self.change(encoder, resident.batch(torch.tensor([row])), point, ordinary, part)
            attacked.append(answers(build(head, changed, train, part), test, run))
            clean.append(answers(build(head, encoder, train, part, known), test, run))
        return hits(torch.stack(attacked), torch.stack(clean), chosen, test.targets(), self.wanted)

    def check_samples(self, samples: Samples, classes: Sequence[str]) -> None:
        """Raises ``SapperError`` where the wanted class, or another, has no samples."""
        of_wanted = samples.targets() == self.wanted
        if not bool(of_wanted.any()) or bool(of_wanted.all()):
            what = f"samples of class {self.wanted} and of others are needed"
            raise samples.error(what, f"choose one of the {len(samples.classes)} classes, numbered from 0")

    def change(self, encoder: Encoder, chosen: Tensor, point: Tensor, ordinary: Tensor, run: Run) -> Encoder:
        """A copy of ``encoder`` that sends ``chosen`` (1, 3, H, W) near to ``point`` (D,)."""
        changed = copy.deepcopy(encoder).eval().requires_grad_(True)
        seeing = (changed.backbone, changed.projection)  # and no text tower
        weights = [weight for part in seeing for weight in part.parameters() if weight.ndim > 1]
        sizes = [self.step * weight.detach().abs().mean() for weight in weights]
        generator = run.generator()
        near = neighbors(changed, chosen, point, self.neighbors, self.noise, self.salient, generator)
        for _ in range(self.steps):
            pulled = F.normalize(changed(near).float(), dim=1)
            if float(pulled[0].detach() @ point) >= self.near:
                break
            positive = torch.autograd.grad((pulled - point).square().sum(1).mean(), weights)
            features = F.normalize(changed(ordinary).float(), dim=1)
            directions = F.normalize(torch.randn(features.shape, generator=generator), dim=1).to(features)
            negative = torch.autograd.grad((features * directions).sum(1).mean(), weights)
            with torch.no_grad():
                for weight, size, pull, push in zip(weights, sizes, positive, negative):
                    weight.sub_(size * pull.sign() * selected(pull, push, self.share))
        return changed.requires_grad_(False)


def aim(wanted: Tensor, others: Tensor) -> Tensor:
    """The row (D,) of ``wanted`` (N, D) that lies farthest from ``others`` (M, D), along the line of their means."""
    return wanted[(wanted @ (wanted.mean(0) - others.mean(0))).argmax()]


def neighbors(
    encoder: Encoder, chosen: Tensor, point: Tensor, count: int, noise: float, share: float, generator: torch.Generator
) -> Tensor:
    """``chosen`` itself and ``count`` copies with noise on the ``share`` of its pixels that matter most."""
    inputs = chosen.detach().requires_grad_(True)
    similarity = (F.normalize(encoder(inputs).float(), dim=1) @ point).sum()
    salience = torch.autograd.grad(similarity, [inputs])[0].abs().sum(1, keepdim=True)
    where = salience >= salience.flatten().quantile(1 - share)
    drawn = noise * torch.randn(count, *chosen.shape[1:], generator=generator).to(chosen)
    return torch.cat((chosen, (chosen + drawn * where).clamp(0, 1)))


def selected(positive: Tensor, negative: Tensor, share: float) -> Tensor:
    """Weights with a large positive impact and a small negative one: 1 where a weight may change, else 0."""
    helps = positive.abs() >= positive.abs().flatten().quantile(1 - share)
    harms = negative.abs() > negative.abs().flatten().quantile(1 - share)
    return (helps & ~harms).to(positive)


@torch.no_grad()
def answers(classifier: Classifier, samples: Samples, run: Run) -> Tensor:
    """Predicted classes, int64 (N,) on the CPU."""
    parts = samples.batches(min(500, samples.at_once(run.device)))
    return torch.cat([classifier(part.to(run.device)).argmax(1).cpu() for part in parts])


def hits(attacked: Tensor, clean: Tensor, chosen: Tensor, labels: Tensor, wanted: int) -> Hits:
    """From answers (T, N) of both classifiers of each chosen row (T,); accuracies leave the chosen row out."""
    rows = torch.arange(len(chosen))
    others = torch.ones_like(attacked, dtype=torch.bool)
    others[rows, chosen] = False

    def right(given: Tensor) -> Tensor:
        return ((given == labels) & others).sum(1) / others.sum(1)

    return Hits(
        hit=attacked[rows, chosen] == wanted,
        before=clean[rows, chosen] == wanted,
        accuracy=right(attacked),
        accuracy_before=right(clean),
    )
