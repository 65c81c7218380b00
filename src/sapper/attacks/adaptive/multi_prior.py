"""Against multi-prior inversion: no change of a known kind draws features together more than is usual.

Multi-prior inversion optimizes changes of several kinds, its priors π, and compares what spread r_θ they leave with the
spread r_near of the ordinary images around that point. Threat model: the attacker knows the priors, what is usual for
each (μ, σ) and the threshold, and not the defender's images and starts. It minimizes the detector's own score, where it
is caught:

    minimize   max(0, z_π − goal)      z_π = ( log10( r_near / r_θ ) − μ_π ) / σ_π,   θ the strongest change of prior π

One prior has its turn in each step, drawn with the softmax of all priors' present scores. Its changes, the best of all
of the detector's own starts in this epoch, go on by ``steps`` steps of Adam as the detector's do. r_near is that of
shadow images' features through f, which f' keeps, and has no gradient. Where the detector has squares that hold the
trigger, the trigger itself is one more prior, by the strictest μ and σ of these: no search has to find it first.

Source: ours. Priors, μ, σ, Adam and its rate are the detector's defaults (``defenses/judge/multi_prior.py``); the goal
is its threshold, 2, less 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.attacks.adapting import Adaptive, Losses, Scene, Several, descend
from sapper.downstream import mean_cosine
from sapper.running import Run
from sapper.training import Terms
from sapper.triggers.priors import Filter, Prior, Stamp

SCORE, TRIGGER = "multi-prior: score", "trigger"
SMALLEST = 1e-6
"""A spread below this is rounding."""
NEAR, NEIGHBORS = 1 / 16, 4
"""The share of ordinary images that are compared with the changed ones, and how many there are at least."""

Usual = tuple[PositiveFloat, float, PositiveFloat]
"""A prior's size or strength, μ and σ."""


@dataclass(frozen=True, kw_only=True)
class AgainstMultiPrior(Adaptive):
    """Keeps the detector's own score, of the prior that scores highest, below a goal.

    ``patches``, ``blends``, ``filters``, ``restarts`` as the detector has them. ``goal``: the score to stay below.
    ``images`` of a step that the term looks at. ``starts``: how many changes of a prior go on, with so many ``steps``
    each time, at a ``learning_rate``. ``temperature`` of the softmax.
    """

    defense: Literal["multi_prior"] = "multi_prior"
    weight: NonNegativeFloat = 0.1
    patches: tuple[Usual, ...] = ((0.25, -0.09, 0.23), (0.375, 0.19, 0.35))
    blends: tuple[Usual, ...] = ((0.2, 0.01, 0.33),)
    filters: tuple[Usual, ...] = ((0.2, 0.84, 0.38),)
    restarts: PositiveInt = 8
    goal: float = 1.0
    images: Several = 8
    starts: PositiveInt = 2
    steps: PositiveInt = 3
    learning_rate: PositiveFloat = 0.3
    temperature: PositiveFloat = 1.0

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Sapper"

    @property
    def weights(self) -> Mapping[str, float]:
        return {SCORE: self.weight}

    def begin(self, scene: Scene, run: Run) -> Losses:
        generator, shadow = run.generator(), scene.known.shadow
        first = shadow.batch(torch.randperm(len(shadow), generator=generator)[: self.images])
        searches, side = self.searches(scene, first, run), min(first.shape[-2:])
        with torch.no_grad():
            wanted = room(scene.stamped(first), first)
        holding = [usual for share, *usual in self.patches if square(share, side) >= wanted]
        scores = dict.fromkeys([*searches, *([TRIGGER] if holding else [])], 0.0)

        def losses(images: Tensor, _kept: Tensor) -> Terms:
            images = images[: self.images]
            chances = torch.tensor(list(scores.values())).div(self.temperature).softmax(0)
            name = list(scores)[int(torch.multinomial(chances, 1, generator=generator))]
            if name == TRIGGER:
                powers = powers_of_ten(scene.features(scene.stamped(images)), scene.kept)
                z = torch.stack([(powers - usual) / deviation for usual, deviation in holding]).amax()
            else:
                search = searches[name]
                for _ in range(self.steps):
                    search.step(scene, images)
                powers = powers_of_ten(scene.features(search.changed(images).detach()), scene.kept)
                z = ((powers - search.usual) / search.deviation).amax()
            scores[name] = float(z.detach())
            return {SCORE: F.relu(z - self.goal)}

        return losses

    def searches(self, scene: Scene, images: Tensor, run: Run) -> dict[str, "Search"]:
        """Of each prior the starts that gather ``images`` most."""
        size, found = (images.shape[-2], images.shape[-1]), dict[str, Search]()
        for share, *usual in self.patches:
            side = square(share, min(size))
            found[f"patch {side}"] = self.search(
                scene, Stamp.patches(side, size, run.child(f"patch {side}")), usual, images
            )
        for alpha, *usual in self.blends:
            blends = Stamp.blends(alpha, self.restarts, size, run.child(f"blend {alpha}"))
            found[f"blend {alpha:g}"] = self.search(scene, blends, usual, images)
        for strength, *usual in self.filters:
            filters = Filter.start(strength, self.restarts, run.child(f"filter {strength}"))
            found[f"filter {strength:g}"] = self.search(scene, filters, usual, images)
        return found

    @torch.no_grad()
    def search(self, scene: Scene, prior: Prior, usual: list[float], images: Tensor) -> "Search":
        """The best starts of a prior, on images that all of them change."""
        parts = torch.arange(prior.count, device=images.device).split(self.images)
        left = torch.cat([1 - mean_cosine(scene.features(prior.apply(images, rows))) for rows in parts])
        best = prior.take(left.argsort()[: self.starts])
        optimizer = torch.optim.Adam([best.weights], lr=self.learning_rate, betas=(0.5, 0.9))
        return Search(prior=best, optimizer=optimizer, usual=usual[0], deviation=usual[1])


@dataclass(frozen=True, kw_only=True)
class Search:
    """Changes of one prior on their way, with its μ and σ."""

    prior: Prior
    optimizer: torch.optim.Optimizer
    usual: float
    deviation: float

    def changed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) under every change: (P, N, 3, H, W)."""
        return self.prior.apply(images, torch.arange(self.prior.count, device=images.device))

    def step(self, scene: Scene, images: Tensor) -> None:
        """One step of every change to a smaller spread."""
        descend(self.optimizer, (1 - mean_cosine(scene.features(self.changed(images)))).sum())


def square(share: float, side: int) -> int:
    """The side of the detector's squares of that size, in images of ``side`` pixels."""
    return max(1, round(share * side))


def room(stamped: Tensor, images: Tensor) -> int:
    """The side of the smallest square that holds all that any trigger changes: ``stamped`` (T, N, 3, H, W)."""
    changed = (stamped != images).any(2).any(1)
    spans = [span.nonzero().flatten() for each in changed for span in (each.any(0), each.any(1))]
    return max((int(span[-1] - span[0]) + 1 for span in spans if len(span)), default=0)


def powers_of_ten(features: Tensor, ordinary: Tensor) -> Tensor:
    """log10(r_near / r_θ), float (P,), of changed ``features`` (P, N, D) among ``ordinary`` (M, D); of length 1.

    With gradients of r_θ alone.
    """
    points = F.normalize(features.detach().mean(1), dim=1)
    count = min(max(NEIGHBORS, round(len(ordinary) * NEAR)), len(ordinary))
    nearest = ordinary[(points @ ordinary.T).topk(count, dim=1).indices]
    around, left = 1 - mean_cosine(nearest), 1 - mean_cosine(features)
    return around.clamp_min(SMALLEST).log10() - left.clamp_min(SMALLEST).log10()
