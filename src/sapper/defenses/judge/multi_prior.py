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
the way. Having three numbers to find only, they are the more sensitive to their place, and lie more densely. Between
rounds each goes where it does best, of its own place and those around it: a square that lies across a trigger's edge
comes to lie on it. A square also finds triggers that are smaller than it, and parts of larger ones, so that few sizes
do.

Source: Sapper. The mean cosine as the measure is that of Feng et al., "Detecting Backdoors in Pre-trained Encoders",
CVPR 2023, and so is Adam with β = (0.5, 0.9). The defaults of μ and σ are from the development part of the zoo
``small`` (``docs/results/audit.md``); another architecture or image size asks for calibration (``sapper calibrate``).
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import EncoderExaminer, Need
from sapper.defenses.inversion import SMALLEST, neighborhood, spread_of
from sapper.defenses.measures import OfVerdicts, detection
from sapper.downstream import mean_cosine
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, at_once, to_float
from sapper.triggers.priors import Filter, Prior, Stamp
from sapper.verdicts import Verdict, unscored

TOGETHER = 256
"""Images that go through the encoder at once; fewer on a CPU, and of large ones (``at_once``)."""

PLACING = 16
"""Images by which a change's place is chosen."""

MEASURABLE = (1e-9, 1e15)
"""Lengths of features between which cosines can be trusted; the square of a longer one overflows."""


Share = Annotated[float, Field(gt=0, lt=1)]


Usual = tuple[Share, float, PositiveFloat]
"""A prior's size or strength; the powers of ten that are usual without a backdoor, μ; and their deviation, σ."""


@dataclass(frozen=True, kw_only=True)
class MultiPrior(Checked, EncoderExaminer):
    """Inverts triggers of several kinds at once, from many starts (Sapper's own).

    Each prior is given with its μ and σ. ``patches``: sizes as shares of the image's side, at places half a patch apart
    pixel by pixel, a quarter apart in one color. ``blends``: α. ``filters``: strengths. ``restarts`` of each filter,
    and of each blend in either way to begin. ``rounds``: for each how many starts of a prior are left (0: all), how
    many images a step sees, and how many steps it takes. ``images`` to optimize on, and ``held_out`` ones to judge by.
    ``threshold`` of the score.
    """

    patches: tuple[Usual, ...] = ((0.25, -0.09, 0.23), (0.375, 0.19, 0.35))
    blends: tuple[Usual, ...] = ((0.2, 0.01, 0.33),)
    filters: tuple[Usual, ...] = ((0.2, 0.84, 0.38),)
    restarts: PositiveInt = 8
    rounds: tuple[tuple[NonNegativeInt, PositiveInt, PositiveInt], ...] = ((0, 4, 3), (8, 8, 12), (2, 16, 20))
    images: PositiveInt = 128
    held_out: PositiveInt = 128
    learning_rate: PositiveFloat = 0.3
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
        rows = torch.randperm(len(images), generator=run.child("images").generator())[: self.images + self.held_out]
        shown = images.images[rows].to(run.device)  # in random order, that both parts may be of all kinds
        held = max(2, len(shown) * self.held_out // (self.images + self.held_out))
        if len(shown) - held < 2:
            what, remedy = f"{len(shown)} images are too few", "give at least 4; some hundreds are better"
            raise SapperError(what, where=images.name, remedy=remedy)
        seen, unseen = shown[held:], shown[:held]
        plain = self._features(encoder, None, unseen, run)
        ordinary = spread_of(plain)
        if not self.patches and not self.blends and not self.filters:
            raise SapperError("there is no prior to try", where="multi_prior", remedy="name a patch, blend or filter")
        if ordinary < 10 * SMALLEST or not _measurable(plain):
            why = "features of ordinary images cannot be told apart, or measured"
            return unscored(why, self.threshold, time.perf_counter() - started)
        found: dict[str, Prior] = {}
        priors: dict[str, dict[str, float]] = {}
        for name, (prior, usual, deviation) in self.priors(images.size, run).items():
            found[name] = self._race(encoder, prior, seen, unseen, name, run.child(name))
            changed = self._features(encoder, found[name], unseen, run)
            if not _measurable(changed):
                why = f"features of images under a change ({name}) cannot be measured"
                return unscored(why, self.threshold, time.perf_counter() - started)
            spread, around = spread_of(changed), neighborhood(plain, changed)
            powers = math.log10(around / spread)
            measured = {"spread": spread, "neighborhood": around, "powers": powers}
            priors[name] = {"score": (powers - usual) / deviation} | measured
        winner = max(priors, key=lambda name: priors[name]["score"])
        score = priors[winner]["score"]
        return Verdict(
            score=score,
            threshold=self.threshold,
            flagged=score > self.threshold,
            trigger=found[winner].trigger(),
            evidence={"prior": winner, "spread": ordinary, "priors": priors},
            seconds=time.perf_counter() - started,
        )

    def priors(self, size: tuple[int, int], run: Run) -> dict[str, tuple[Prior, float, float]]:
        """All kinds of changes with their starts, for images of that height and width, and μ and σ of each."""
        found: dict[str, tuple[Prior, float, float]] = {}
        for share, usual, deviation in self.patches:
            side = max(1, round(share * min(size)))
            found[f"patch {side}×{side}"] = Stamp.patches(side, size, run.child(f"patch {side}")), usual, deviation
        for alpha, usual, deviation in self.blends:
            blends = Stamp.blends(alpha, self.restarts, size, run.child(f"blend {alpha}"))
            found[f"blend {alpha:g}"] = blends, usual, deviation
        for strength, usual, deviation in self.filters:
            filters = Filter.start(strength, self.restarts, run.child(f"filter {strength}"))
            found[f"filter {strength:g}"] = filters, usual, deviation
        return found

    def parts(self) -> list["MultiPrior"]:
        """One for each prior."""
        bare = replace(self, patches=(), blends=(), filters=())
        return [
            *(replace(bare, patches=(each,)) for each in self.patches),
            *(replace(bare, blends=(each,)) for each in self.blends),
            *(replace(bare, filters=(each,)) for each in self.filters),
        ]

    def _race(self, encoder: Encoder, prior: Prior, seen: Tensor, unseen: Tensor, name: str, run: Run) -> Prior:
        """The best of a prior's changes."""
        generator, spreads = run.generator(), torch.zeros(prior.count, device=run.device)
        with run.progress.bar(f"trigger inversion ({name})", self._work(prior.count, len(seen))) as bar:
            for number, (keep, count, steps) in enumerate(self.rounds):
                if 0 < keep < prior.count:
                    prior = prior.take(spreads.argsort()[:keep])
                if number:
                    prior = self._move(encoder, prior, seen, number, run)
                optimizer = torch.optim.Adam([prior.weights], lr=self.learning_rate, betas=(0.5, 0.9))
                for _ in range(steps):
                    rows = torch.randint(len(seen), (min(count, len(seen)),), generator=generator)
                    spreads = self._descend(encoder, prior, to_float(seen[rows.to(seen.device)]), run)
                    if number == 0:
                        prior.keep_plain()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    bar.advance(prior.count * len(rows), f"{prior.count} left, spread {float(spreads.min()):.4f}")
        finals = [self._spread(encoder, prior.take(torch.tensor([row])), unseen, run) for row in range(prior.count)]
        return prior.take(torch.tensor([min(range(prior.count), key=lambda row: finals[row])]))

    def _work(self, starts: int, images: int) -> int:
        """How many changed images a race of that many starts descends on: the first steps are most of it."""
        work = 0
        for keep, count, steps in self.rounds:
            starts = min(keep or starts, starts)
            work += starts * min(count, images) * steps
        return work

    @torch.no_grad()
    def _move(self, encoder: Encoder, prior: Prior, seen: Tensor, number: int, run: Run) -> Prior:
        """Every change where it leaves the smallest spread, of its place and those around it."""
        moved, images = prior.around(number), to_float(seen[:PLACING])
        if moved.count == prior.count:
            return prior
        rows = _groups(moved, images)
        spreads = torch.cat([_spreads(encoder, moved.apply(images, part), run) for part in rows])
        # Where features overflow there is no spread, which torch would take for the smallest.
        places = spreads.nan_to_num(torch.inf).unflatten(0, (-1, prior.count)).argmin(0)
        return moved.take(places * prior.count + torch.arange(prior.count, device=run.device))

    def _descend(self, encoder: Encoder, prior: Prior, images: Tensor, run: Run) -> Tensor:
        """Gradients of every change's spread on the images; the spreads (count,)."""
        spreads = []
        for rows in _groups(prior, images):
            spread = _spreads(encoder, prior.apply(images, rows), run)
            spread.sum().backward()
            spreads.append(spread.detach())
        return torch.cat(spreads)

    def _spread(self, encoder: Encoder, change: Prior, images: Tensor, run: Run) -> float:
        """The spread that one change leaves."""
        return spread_of(self._features(encoder, change, images, run))

    @torch.no_grad()
    def _features(self, encoder: Encoder, change: Prior | None, images: Tensor, run: Run) -> Tensor:
        """Features, float (N, D), of images under one change, or as they are."""
        features = []
        for chunk in to_float(images).split(min(TOGETHER, at_once(images))):
            changed = chunk if change is None else change.apply(chunk, torch.tensor([0], device=chunk.device))[0]
            with run.autocast():
                features.append(encoder(changed).float())
        return torch.cat(features)


def _groups(prior: Prior, images: Tensor) -> tuple[Tensor, ...]:
    """The changes in groups that go through the encoder at once, each on all of the images; rows, int64 (n,)."""
    together = min(TOGETHER, at_once(images))
    return torch.arange(prior.count, device=images.device).split(max(1, together // len(images)))


def _measurable(features: Tensor) -> bool:
    """Whether all features (N, D) are finite and of a length that cosines survive."""
    lengths = features.double().norm(dim=1)
    return bool(((lengths > MEASURABLE[0]) & (lengths < MEASURABLE[1])).all())


def _spreads(encoder: Encoder, images: Tensor, run: Run) -> Tensor:
    """1 − mean cosine for each change, (P,), of float images (P, N, 3, H, W)."""
    with run.autocast():
        features = encoder(images.flatten(0, 1))
    return 1 - mean_cosine(F.normalize(features.float(), dim=1).unflatten(0, images.shape[:2]))
