"""Searches for a change of images that collapses features: what multi-prior inversion and twins share.

For each kind of change, a *prior*, many starts are raced (``racing``). ``defenses/judge/multi_prior.py`` tells why, and
what the numbers mean.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.beside import Found
from sapper.defenses.inversion import SMALLEST, neighborhood, spread_of
from sapper.defenses.racing import LARGE, RACE, TOGETHER, Losses, Rounds, race, work
from sapper.downstream import mean_cosine
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, at_once, to_float
from sapper.triggers.priors import Filter, Prior, Stamp, side_of

MEASURABLE = (1e-9, 1e15)
"""Lengths of features between which cosines can be trusted; the square of a longer one overflows."""


Share = Annotated[float, Field(gt=0, lt=1)]


Usual = tuple[Share, float, PositiveFloat]
"""A prior's size or strength; the powers of ten that are usual without a backdoor, μ; and their deviation, σ."""


@dataclass(frozen=True, kw_only=True)
class Gathered(Found):
    """What the best change of a prior does: the ``spread`` of features that it leaves, and that of their neighborhood.

    ``powers``: of ten between the two.
    """

    spread: float
    neighborhood: float

    @property
    def powers(self) -> float:
        return math.log10(self.neighborhood / self.spread)

    def told(self) -> dict[str, float]:
        return {"spread": self.spread, "neighborhood": self.neighborhood, "powers": self.powers}


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search found: for each prior its best change, and the ``spread`` of images as they are.

    ``why`` there is nothing, where features cannot be measured.
    """

    found: dict[str, Gathered]
    spread: float = math.nan
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class CollapseSearch(Checked):
    """The priors of a search, and how their starts are raced.

    Each prior is given with its μ and σ. ``patches``: sizes as shares of the image's side, at places half a patch apart
    pixel by pixel, a quarter apart in one color. ``blends``: α. ``filters``: strengths. ``restarts`` of each filter,
    and of each blend in either way to begin. ``rounds`` of the race. ``images`` to optimize on, and ``held_out`` ones
    to judge by. ``large``: images of this side or more are searched in about half the time; their races go by halves,
    and squares of one color also begin half a patch apart.
    """

    patches: tuple[Usual, ...] = ((0.25, -0.09, 0.23), (0.375, 0.19, 0.35))
    blends: tuple[Usual, ...] = ((0.2, 0.01, 0.33),)
    filters: tuple[Usual, ...] = ((0.2, 0.84, 0.38),)
    restarts: PositiveInt = 8
    rounds: Rounds = RACE
    images: PositiveInt = 128
    held_out: PositiveInt = 128
    large: PositiveInt = LARGE
    learning_rate: PositiveFloat = 0.3

    def split(self, images: ImageSet, run: Run, where: str) -> tuple[Tensor, Tensor]:
        """Images to optimize on and held-out ones, uint8, drawn at random, that both may be of all kinds.

        Raises ``SapperError`` for too few images, and where there is no prior.
        """
        rows = torch.randperm(len(images), generator=run.child("images").generator())[: self.images + self.held_out]
        shown = images.images[rows].to(run.device)
        held = max(2, len(shown) * self.held_out // (self.images + self.held_out))
        if len(shown) - held < 2:
            what, remedy = f"{len(shown)} images are too few", "give at least 4; some hundreds are better"
            raise SapperError(what, where=images.name, remedy=remedy)
        if not self.patches and not self.blends and not self.filters:
            raise SapperError("there is no prior to try", where=where, remedy="name a patch, blend or filter")
        return shown[held:], shown[:held]

    def search(self, encoder: Encoder, seen: Tensor, unseen: Tensor, run: Run) -> Search:
        """The change of each prior that gathers features most, optimized on ``seen`` and judged on ``unseen`` images.

        uint8 (N, 3, H, W) of the encoder's size, which is in ``eval`` mode and frozen.
        """
        plain = self._features(encoder, None, unseen, run)
        ordinary = spread_of(plain)
        if ordinary < 10 * SMALLEST or not measurable(plain):
            return Search(found={}, why="features of ordinary images cannot be told apart, or measured")
        found: dict[str, Gathered] = {}
        priors = self.priors((unseen.shape[2], unseen.shape[3]), run)
        best = self._best(encoder, {name: prior for name, (prior, _, _) in priors.items()}, seen, unseen, run)
        for name, (_, usual, deviation) in priors.items():
            change = best[name]
            changed = self._features(encoder, change, unseen, run)
            if not measurable(changed):
                return Search(found={}, why=f"features of images under a change ({name}) cannot be measured")
            found[name] = Gathered(
                change=change,
                spread=spread_of(changed),
                neighborhood=neighborhood(plain, changed),
                usual=usual,
                deviation=deviation,
            )
        return Search(found=found, spread=ordinary)

    def priors(self, size: tuple[int, int], run: Run) -> dict[str, tuple[Prior, float, float]]:
        """All kinds of changes with their starts, for images of that height and width, and μ and σ of each."""
        found: dict[str, tuple[Prior, float, float]] = {}
        for share, usual, deviation in self.patches:
            side = side_of(share, size)
            squares = Stamp.patches(side, size, run.child(f"patch {side}"), coarse=self._large(size))
            found[f"patch {side}×{side}"] = squares, usual, deviation
        for alpha, usual, deviation in self.blends:
            blends = Stamp.blends(alpha, self.restarts, size, run.child(f"blend {alpha}"))
            found[f"blend {alpha:g}"] = blends, usual, deviation
        for strength, usual, deviation in self.filters:
            filters = Filter.start(strength, self.restarts, run.child(f"filter {strength}"))
            found[f"filter {strength:g}"] = filters, usual, deviation
        return found

    def passes(self, images: ImageSet) -> int:
        """How many images a search descends on."""
        size, seen = images.size, min(self.images, len(images))
        coarse = self._large(size)
        starts = [Stamp.places(side_of(share, size), size, coarse=coarse) for share, _, _ in self.patches]
        starts += [2 * self.restarts] * len(self.blends) + [self.restarts] * len(self.filters)
        return sum(work(self.rounds, count, seen, halves=coarse) for count in starts)

    def _large(self, size: tuple[int, int]) -> bool:
        """Whether images of that height and width are searched in less time."""
        return min(size) >= self.large

    def _best(
        self, encoder: Encoder, priors: dict[str, Prior], seen: Tensor, unseen: Tensor, run: Run
    ) -> dict[str, Prior]:
        """The best change of each prior."""
        found, halves = dict[str, Prior](), self._large((seen.shape[2], seen.shape[3]))
        total = sum(work(self.rounds, prior.count, len(seen), halves=halves) for prior in priors.values())
        with run.progress.bar("trigger inversion", total) as bar:
            for name, prior in priors.items():
                found[name] = race(
                    prior,
                    collapse_losses(encoder, run),
                    lambda change: self._spread(encoder, change, unseen, run),
                    seen,
                    run.child(name),
                    rounds=self.rounds,
                    halves=halves,
                    learning_rate=self.learning_rate,
                    bar=bar,
                    label=name,
                )
        return found

    def _spread(self, encoder: Encoder, change: Prior, images: Tensor, run: Run) -> float:
        """The spread that one change leaves."""
        return spread_of(self._features(encoder, change, images, run))

    @torch.no_grad()
    def _features(self, encoder: Encoder, change: Prior | None, images: Tensor, run: Run) -> Tensor:
        """Features, float (N, D), of images under one change, or as they are."""
        features, first = [], torch.tensor([0], device=images.device)
        for part in images.split(min(TOGETHER, at_once(images))):
            chunk = to_float(part)
            with run.autocast():
                features.append(encoder(chunk if change is None else change.apply(chunk, first)[0]).float())
        return torch.cat(features)


def measurable(features: Tensor) -> bool:
    """Whether all features (N, D) are finite and of a length that cosines survive."""
    lengths = features.double().norm(dim=1)
    return bool(((lengths > MEASURABLE[0]) & (lengths < MEASURABLE[1])).all())


def collapse_losses(encoder: Encoder, run: Run) -> Losses:
    """1 − the mean cosine of two images' features, for each change."""

    def losses(_images: Tensor, changed: Tensor) -> Tensor:
        with run.autocast():
            features = encoder(changed.flatten(0, 1))
        return 1 - mean_cosine(F.normalize(features.float(), dim=1).unflatten(0, changed.shape[:2]))

    return losses
