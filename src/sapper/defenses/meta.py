"""MNTD's meta-classifier: asks a model some questions and tells from its answers whether it holds a backdoor.

    z = (f(q₁), …, f(q_Q))        score = w · ReLU(W·z + b) + c

The queries q are images (or what a model takes) and are learned with W, b, w, c from models that are known to be clean
or backdoored, one model in each step: binary cross-entropy, or for one class, with clean models only,

    ½‖w‖² + ½‖W‖² + ½‖b‖² + max(0, r − s) / v − r        s = w · ReLU(W·z + b),  r the v-quantile of s

Several meta-classifiers are trained side by side. Each has its own start and its own order of models, and Adam works on
every element by itself, so that each becomes what it would have become alone (``tests/test_mntd.py``).

Source: Xu et al., "Detecting AI Trojans Using Meta Neural Analysis", IEEE S&P 2021, and the authors'
``meta_classifier.py``: 10 queries drawn as mean + deviation · N(0, 1) of the training images, 20 hidden units, Adam
with rate 1e-3, 10 epochs, the epoch of the best validation AUC; v = 0.1. The models stay in ``eval`` mode, always.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.metrics import auc
from sapper.running import Run
from sapper.samples import ImageSet, to_float

Model = Callable[[Tensor], Tensor]

Learned = dict[str, list[float]]
"""Each meta-classifier's AUC on shadows: ``AUC on its own shadows`` and, where there are any, ``AUC on others``."""

TRAINED, APART = "on its own shadows", "on others"

OUTLIERS = 0.1
"""v, the share of clean models that a one-class meta-classifier may call backdoored."""


@dataclass(frozen=True)
class Fleet:
    """Models, and which of them hold a backdoor, bool (S,)."""

    models: list[Model]
    backdoored: Tensor

    @staticmethod
    def of(kinds: Mapping[bool, Sequence[Model]]) -> "Fleet":
        """From the clean models (False) and the backdoored ones (True)."""
        models = [(model, kind) for kind, some in kinds.items() for model in some]
        return Fleet([model for model, _ in models], torch.tensor([kind for _, kind in models]))


def look(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Mean (3, H, W) and deviation (3, 1, 1) of each channel: queries begin as noise that looks like the images."""
    pixels = to_float(images.images)
    mean, deviation = (values.view(3, 1, 1) for values in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))))
    return mean.expand(3, *images.size), deviation


@dataclass(frozen=True, kw_only=True)
class Training:
    """How meta-classifiers are trained."""

    epochs: int
    learning_rate: float
    tune_queries: bool
    one_class: bool


class MetaClassifiers(nn.Module):
    """M meta-classifiers side by side. ``queries`` float (M, Q, *shape); ``radius`` (M,) is the one-class r."""

    radius: Tensor

    def __init__(self, queries: Tensor, first: Tensor, bias: Tensor, second: Tensor, offset: Tensor, radius: Tensor):
        """``first``: W, (M, Q·K, hidden); ``bias``: b and ``second``: w, (M, hidden); ``offset``: c, (M,)."""
        super().__init__()
        self.queries, self.first, self.bias, self.second, self.offset = (
            nn.Parameter(value) for value in (queries, first, bias, second, offset)
        )
        self.register_buffer("radius", radius)

    @staticmethod
    def draw(
        runs: Sequence[Run], queries: int, mean: Tensor, deviation: Tensor, outputs: int, hidden: int
    ) -> "MetaClassifiers":
        """One for each of ``runs``. ``mean`` and ``deviation`` broadcast to a query's shape, ``outputs``: K."""
        drawn = [_draw(run, queries, mean, deviation, queries * outputs, hidden) for run in runs]
        asked, first, bias, second, offset = (torch.stack(some).to(runs[0].device) for some in zip(*drawn))
        radius = torch.zeros(len(runs), device=runs[0].device)
        return MetaClassifiers(asked, first, bias, second, offset, radius)

    def activity(self, answers: Tensor) -> Tensor:
        """w · ReLU(W·z + b), float (M,), from every meta-classifier's ``answers`` (M, Q·K)."""
        hidden = F.relu(torch.einsum("mz,mzh->mh", answers, self.first) + self.bias)
        return (hidden * self.second).sum(1)

    def scores(self, answers: Tensor, *, one_class: bool) -> Tensor:
        """The higher, the more backdoored, float (M,); 0 is the threshold."""
        activity = self.activity(answers)
        return self.radius - activity if one_class else activity + self.offset


def _draw(run: Run, queries: int, mean: Tensor, deviation: Tensor, inputs: int, hidden: int) -> tuple[Tensor, ...]:
    """One meta-classifier's start: queries, W (inputs, hidden), b, w, c; the linear parts as torch's own."""
    generator = run.generator()

    def uniform(*shape: int, fan_in: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1) / sqrt(fan_in)

    images = mean + deviation * torch.randn(queries, *torch.broadcast_shapes(mean.shape), generator=generator)
    first, bias = uniform(inputs, hidden, fan_in=inputs), uniform(hidden, fan_in=inputs)
    return images, first, bias, uniform(hidden, fan_in=hidden), uniform(1, fan_in=hidden).squeeze(0)


def train(
    metas: MetaClassifiers,
    trunk: Model,
    shadows: Fleet,
    validation: Fleet | None,
    settings: Training,
    runs: Sequence[Run],
) -> Learned:
    """Fit the meta-classifiers to the shadows, one shadow in each step.

    ``trunk`` is what all models have in common: model f is ``models[i](trunk(x))``. With ``validation`` each
    meta-classifier is left as it was after the epoch of its best AUC there. How well it then tells either fleet's clean
    models from the backdoored ones comes back.
    """
    metas.queries.requires_grad_(settings.tune_queries)
    optimizer = torch.optim.Adam([p for p in metas.parameters() if p.requires_grad], lr=settings.learning_rate)
    fixed = None if settings.tune_queries else _trunk_answers(metas, trunk)
    best = torch.full((len(runs),), -1.0)
    kept = [value.detach().clone() for value in metas.parameters()]
    with runs[0].progress.bar("meta-classifiers (MNTD)", settings.epochs * len(shadows.models)) as bar:
        for epoch in range(settings.epochs):
            children = [run.child(f"epoch {epoch}") for run in runs]
            orders = torch.stack([torch.randperm(len(shadows.models), generator=run.generator()) for run in children])
            seen: list[Tensor] = []
            for chosen in orders.T:
                answers = _answers(fixed or _trunk_answers(metas, trunk), [shadows.models[i] for i in chosen.tolist()])
                if settings.one_class:
                    activity = metas.activity(answers)
                    seen.append(activity.detach())
                    loss = one_class_loss(metas, activity)
                else:
                    wanted = shadows.backdoored[chosen].float().to(answers.device)
                    loss = binary_loss(metas, answers, wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if settings.one_class:
                    metas.radius = torch.stack(seen).quantile(OUTLIERS, dim=0)
                bar.advance(1, f"epoch {epoch + 1} of {settings.epochs}")
            if validation is not None:
                areas = _areas(metas, trunk, validation, one_class=settings.one_class)
                better, best = areas > best, torch.maximum(areas, best)
                for old, new in zip(kept, metas.parameters()):
                    old[better] = new.detach()[better]
    if validation is not None:
        for value, old in zip(metas.parameters(), kept):
            value.data.copy_(old)
    return {
        f"AUC {place}": _areas(metas, trunk, fleet, one_class=settings.one_class).tolist()
        for place, fleet in ((TRAINED, shadows), (APART, validation))
        if fleet is not None and 0 < int(fleet.backdoored.sum()) < len(fleet.models)
    }


def binary_loss(metas: MetaClassifiers, answers: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy, summed over the meta-classifiers; ``wanted`` float (M,) is 1 for a backdoored model."""
    return F.binary_cross_entropy_with_logits(metas.scores(answers, one_class=False), wanted, reduction="sum")


def one_class_loss(metas: MetaClassifiers, activity: Tensor) -> Tensor:
    """The one-class objective, summed over the meta-classifiers; ``activity`` float (M,) of a clean model each."""
    weights = metas.second.square().sum(1) + metas.first.square().sum((1, 2)) + metas.bias.square().sum(1)
    return (weights / 2 + F.relu(metas.radius - activity) / OUTLIERS - metas.radius).sum()


@torch.no_grad()
def ask(metas: MetaClassifiers, trunk: Model, models: Sequence[Model], *, one_class: bool) -> Tensor:
    """Every model's scores by every meta-classifier, float (models, M)."""
    common = _trunk_answers(metas, trunk)
    return torch.stack([metas.scores(_answers(common, [model] * len(common)), one_class=one_class) for model in models])


def _trunk_answers(metas: MetaClassifiers, trunk: Model) -> list[Tensor]:
    """What the models' common part makes of each meta-classifier's queries."""
    count = metas.queries.shape[1]
    return list(trunk(metas.queries.flatten(0, 1)).split(count))


def _answers(common: Sequence[Tensor], models: Sequence[Model]) -> Tensor:
    """z of meta-classifier m and its model, float (M, Q·K)."""
    return torch.stack([model(queries).float().flatten() for queries, model in zip(common, models)])


def _areas(metas: MetaClassifiers, trunk: Model, fleet: Fleet, *, one_class: bool) -> Tensor:
    """Each meta-classifier's AUC on a fleet, float (M,)."""
    scores = ask(metas, trunk, fleet.models, one_class=one_class).cpu()
    return torch.tensor([auc(each[fleet.backdoored], each[~fleet.backdoored]) for each in scores.T])
