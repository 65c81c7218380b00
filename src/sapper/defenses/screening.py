"""What screens of inputs share: who holds which clean images, the threshold, scores of a stream, blends.

A screen learns from some of the defender's clean images; others, which it has not seen, choose the threshold τ:

    τ = number ⌈(n + 1)(1 − α)⌉ of the n scores s(x₁) ≤ … ≤ s(xₙ) of clean images      x is rejected  ⇔  s(x) > τ

If a further clean image is drawn as those were, it is rejected with a probability of at most α (``false_rejections``),
whatever the scores' distribution. That holds on average over the choice of the n images: with 500 of them and α = 5 %,
the rate that one threshold has in the end differs from 5 % by about a point.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.conformal import conformal_threshold, fewest
from sapper.defenses.contracts import Looks, Model
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, at_once, check_pixels, to_float
from sapper.verdicts import Scores

Score = Callable[[Tensor], Tensor]
"""Float images (n, 3, H, W) in [0, 1] on the run's device to float (n,): the higher, the more suspicious."""


@dataclass(frozen=True, kw_only=True)
class Screening(Checked):
    """What every screen has: the share of clean inputs that it may reject, and how many images choose its threshold.

    ``held_out``: at most so many; they are clean, and nothing is learned from them.
    """

    false_rejections: Annotated[float, Field(gt=0, lt=1)] = 0.05
    held_out: PositiveInt = 500

    looks_at: ClassVar[Looks]

    @property
    def learns_from(self) -> int:
        """Of how many clean images it must know at least, besides those that choose the threshold."""
        return 1

    def check(self, images: int) -> None:
        """Raises ``SapperError`` for so few clean images that it cannot begin, or could not keep its promise."""
        choose = fewest(self.false_rejections)
        if self.held_out < choose:
            what = f"{self.held_out} images that choose the threshold cannot promise a rate of "
            what += f"{100 * self.false_rejections:g} %"
            remedy = f"set held_out to {choose} or more, and give {self.learns_from + choose} clean images or more"
            raise SapperError(what, where="held_out", remedy=remedy)
        if images < self.learns_from + choose:
            what = f"{images} clean images are too few: it learns from {self.learns_from}, and {choose} others choose "
            what += f"a threshold that rejects at most {100 * self.false_rejections:g} %"
            raise SapperError(what, where="images", remedy=f"give {self.learns_from + choose} or more")

    def parted(self, model: Model, clean: ImageSet, run: Run, learn: int) -> tuple[ImageSet, ImageSet]:
        """``learn`` of the clean images, and at most ``held_out`` others. Near-duplicates are on one side.

        Raises ``SapperError`` where there are too few, and for images or a model of another kind.
        """
        check_model(self.looks_at, model, clean)
        self.check(len(clean))
        if isinstance(model, nn.Module):
            model.eval()
        generator = run.child("held out").generator()
        names = torch.arange(len(clean)) if clean.groups is None else clean.groups.unique(return_inverse=True)[1]
        place = torch.randperm(int(names.max()) + 1, generator=generator)[names]
        order = place.argsort(stable=True)
        end = place[order[min(learn, len(clean)) - 1]]
        known, others = order[place[order] <= end], order[place[order] > end]
        if len(others) < fewest(self.false_rejections):
            what = f"{len(others)} clean images are left to choose a threshold, near-duplicates of others not counted"
            raise clean.error(what, f"give more of them: it takes {fewest(self.false_rejections)}")
        return clean.take(known[:learn]), clean.take(others[: self.held_out])

    def calibrated(self, score: Score, held: ImageSet, copies: int, run: Run, label: str) -> "Calibrated":
        """The screen with the threshold that the images ``held`` choose; ``copies``: see ``Calibrated``."""
        begun = Calibrated(score=score, threshold=torch.inf, size=held.size, copies=copies, run=run)
        with run.progress.bar(f"threshold ({label})", len(held)) as bar:
            scores = []
            for part in begun.parts(held.images):
                scores.append(begun.scores(part))
                bar.advance(len(part))
        threshold = conformal_threshold(torch.cat(scores).tolist(), self.false_rejections)
        assert threshold is not None, "parted"
        if threshold == torch.inf:
            what = "the model gives numbers that are not finite for clean images"
            raise SapperError(what, where=label, remedy="give a model that was trained")
        return replace(begun, threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class Blending(Screening):
    """The same of a screen that blends other images over an input.

    ``overlays``: N, how many clean images are blended over each input. ``weights``: a of the input, b of the overlay.
    """

    overlays: PositiveInt = 100
    weights: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)

    @property
    def learns_from(self) -> int:
        """The overlays."""
        return self.overlays


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A screen that knows its model. ``copies``: so many changed ones of each image go through the model.

    Each image is scored as if it came alone: what is mixed into it, or hidden of it, is the same for all.
    """

    score: Score
    threshold: float
    size: tuple[int, int]
    copies: int
    run: Run

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Float32 (N,) on the CPU of uint8 images (N, 3, H, W), the higher, the more suspicious.

        Where the model gives no number, ∞. Raises ``SapperError`` for images of another size or type.
        """
        check_pixels(images)
        if tuple(images.shape[-2:]) != self.size:
            given, known = ("×".join(map(str, size)) for size in (images.shape[-2:], self.size))
            what, remedy = f"images are {given}, the screen knows {known}", "give them in the model's size"
            raise SapperError(what, where="images", remedy=remedy)
        found = [self.score(to_float(part.to(self.run.device))).float().cpu() for part in self.parts(images)]
        return torch.cat([torch.empty(0), *found]).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def __call__(self, images: Tensor) -> Scores:
        """The same with what is rejected: what scores above the threshold."""
        values = self.scores(images)
        return Scores(values=values, threshold=self.threshold, flagged=values > self.threshold)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """The images, as many at a time as go through a model at once."""
        there = images[:1].to(self.run.device)
        yield from images.split(max(1, at_once(there) // self.copies))


def check_model(looks_at: Looks, model: Model, clean: ImageSet) -> None:
    """Raises ``SapperError`` for an encoder in the place of a classifier or the other way, and images of another size.

    Of a model of somebody's own code nothing is known.
    """
    if looks_at == "classifier" and isinstance(model, Encoder):
        what, remedy = "this screen looks at a classifier's answers, and an encoder has none", "give a classifier on it"
        raise SapperError(what, where="model", remedy=f"{remedy}, or take a screen of encoders")
    if looks_at == "encoder" and isinstance(model, Classifier):
        what = "this screen looks at an encoder's features, and this is a classifier"
        raise SapperError(what, where="model", remedy="give its encoder")
    if isinstance(model, Encoder | Classifier):
        clean.check((model if isinstance(model, Encoder) else model.encoder).card.input)


def asked(model: Model, images: Tensor, run: Run) -> Tensor:
    """What a model gives for float images (n, 3, H, W), float32 (n, D)."""
    with run.autocast():
        return torch.cat([model(part).float() for part in images.split(at_once(images))])


def blended(images: Tensor, others: Tensor, weights: tuple[float, float]) -> Tensor:
    """min(1, a·x + b·x′) of float images in [0, 1], with a and b the ``weights``; shapes are broadcast.

    With 1 and 1 it is the saturating sum of 8-bit images.
    """
    own, other = weights
    return (own * images + other * others).clamp(max=1)


def over_blends(model: Model, images: Tensor, overlays: Tensor, weights: tuple[float, float], run: Run) -> Tensor:
    """What a model gives for every image (n, 3, H, W) under every overlay (N, 3, H, W), float32 (n, N, D)."""
    blends = blended(images.unsqueeze(1), overlays, weights)
    return asked(model, blends.flatten(0, 1), run).unflatten(0, blends.shape[:2])
