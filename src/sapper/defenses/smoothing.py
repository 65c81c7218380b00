"""Randomized smoothing: what an answer under random noise proves of the answer under a change.

Let F(z) say with which probability, or with which mean confidence in [0, 1], each class comes out for z under noise.
The smoothed classifier answers with the largest. F is any function: a classifier of images, backdoored or not, or a
whole training, whose input is the training set.

Gaussian noise of deviation σ (Cohen, Rosenfeld, Kolter, ICML 2019; Salman et al., NeurIPS 2019): Φ⁻¹(F_c) changes by
at most ‖δ‖₂/σ where z changes by δ. With a lower bound p_A of the true class and an upper bound p_B of all others,
nothing changes the answer that is smaller than

    R = σ/2 · (Φ⁻¹(p_A) − Φ⁻¹(p_B)),        σ · Φ⁻¹(p_A)  with  p_B = 1 − p_A

Ablation, where each pixel is blanked with probability 1 − k (after Levine, Feizi, AAAI 2020, who keep a fixed number):
z and its change in r pixels look the same where all r are blanked, which has probability (1 − k)^r. So F_c changes by
at most 1 − (1 − k)^r, and the answer stays if p_A − 1 + (1 − k)^r > 1/2.

Both are tight: some F reaches the bound. p_A comes from n draws: by Clopper and Pearson from votes, by Hoeffding from
confidences. Each bound is false with a probability of at most α, for each image by itself. What is certified is the
answer of infinitely many draws; the votes of n draws are what is measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sapper.defenses.defender import Defender
from sapper.defenses.views import drawn
from sapper.downstream import Classifier, Head, extract
from sapper.errors import SapperError
from sapper.running import Run

SLACK = 1e-9
"""A bound that rounding could turn around certifies nothing."""


def lower_bounds(hits: Tensor, draws: int, alpha: float) -> Tensor:
    """Clopper and Pearson's lower bounds of probabilities, float64 (N,), from ``hits`` int64 (N,) of so many draws.

    Each exceeds its probability in at most a share ``alpha`` of all experiments.
    """
    from scipy.special import betaincinv  # takes a moment to load

    some = hits.clamp_min(1).double().cpu().numpy()
    bounds = torch.from_numpy(betaincinv(some, draws - some + 1, alpha))
    return torch.where(hits.cpu() == 0, 0.0, bounds)


def hoeffding(draws: int, alpha: float) -> float:
    """By how much the mean of so many independent values in [0, 1] misses its expectation, but for a share ``alpha``.

    To one side; for the other side, or for another mean, it takes an ``alpha`` of its own.
    """
    return math.sqrt(math.log(1 / alpha) / (2 * draws))


def gaussian_radius(lower: Tensor, upper: Tensor, sigma: float) -> Tensor:
    """R, float64 (N,), from p_A and p_B, float64 (N,) in [0, 1]; negative where p_A < p_B."""
    return sigma / 2 * (torch.special.ndtri(lower) - torch.special.ndtri(upper))


def ablated_loss(keep: float, pixels: int) -> float:
    """The most that a probability changes where so many pixels change, each of which is kept with ``keep``."""
    return 1 - (1 - keep) ** pixels


class Noise(Protocol):
    """Random noise on images, and what it proves."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One draw for each of the float images (N, 3, H, W); randomness is drawn on the generator's device."""
        ...

    def certified(self, lower: Tensor, radius: float) -> Tensor:
        """Whether no change up to ``radius`` takes the majority from a class, bool (N,); ``lower``: its p_A, (N,)."""
        ...

    def check(self, radii: Sequence[float]) -> None:
        """Raises ``SapperError`` for a radius that there is not."""
        ...

    def within(self, radius: str) -> str:
        """A change up to that radius, in words."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Independent normal noise of deviation ``sigma`` on every value; nothing is cut to [0, 1]."""

    sigma: float

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator, device=generator.device)
        return images + self.sigma * noise.to(images)

    def certified(self, lower: Tensor, radius: float) -> Tensor:
        return gaussian_radius(lower, 1 - lower, self.sigma) > radius + SLACK

    def check(self, radii: Sequence[float]) -> None:
        check_radii(radii)

    def within(self, radius: str) -> str:
        return f"a change of ℓ2 norm up to {radius}, pixel values in [0, 1],"


@dataclass(frozen=True)
class Ablation:
    """Each pixel is kept with probability ``keep``, else it becomes ``blank``, float (3,)."""

    keep: float
    blank: Tensor

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        kept = torch.rand(count, 1, height, width, generator=generator, device=generator.device) < self.keep
        return torch.where(kept.to(images.device), images, self.blank.to(images).view(3, 1, 1))

    def certified(self, lower: Tensor, radius: float) -> Tensor:
        return lower - ablated_loss(self.keep, int(radius)) > 0.5 + SLACK

    def check(self, radii: Sequence[float]) -> None:
        check_radii(radii)
        for radius in radii:
            if radius != int(radius):
                what = f"a radius of {radius} pixels"
                raise SapperError(what, where="radii", remedy="pixels come whole: choose a whole number")

    def within(self, radius: str) -> str:
        return f"a change of up to {radius} pixels, to anything,"


def check_radii(radii: Sequence[float]) -> None:
    """Raises ``SapperError`` for a radius that is not above 0."""
    for radius in radii:
        if not radius > 0 or math.isinf(radius):
            raise SapperError(f"a radius of {radius}", where="radii", remedy="choose it above 0, and finite")


def certain(alpha: float) -> str:
    """With which probability a certificate of an image holds, in words."""
    return f"with a probability of {100 * (1 - alpha):.10g} % for each image"


def noised_heads(defender: Defender, head: Head, noise: Noise, count: int, run: Run, label: str) -> list[Classifier]:
    """``count`` classifiers on the defender's encoder, each with a head fitted to the training images under new noise.

    The noise and the seed of each are drawn independently of the images and of the others.
    """
    labels = defender.train.targets()
    made = []
    with run.progress.bar(label, count) as bar:
        for number in range(count):
            own = run.child(f"model {number}")
            dice = own.child("noise").generator(run.device)
            quiet = Run(own.seed, run.device, run.dtype)
            features = extract(defender.encoder, defender.train, quiet, drawn(noise, dice))
            fitted = head.fit(features, labels, defender.classes, quiet.child("head")).requires_grad_(False)
            made.append(Classifier(defender.encoder, fitted).eval())
            bar.advance()
    return made
