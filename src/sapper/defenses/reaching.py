"""Searches for a small square that sends images to a class, from everywhere: what ``classwise`` and ``twins`` share.

For each class t, squares are raced from many starts (``racing``):

    minimize_θ   mean_x CE( f(T_θ(x)), t )          T_θ(x) = x with a square replaced by θ ∈ [0, 1]^{3×s×s}

First all starts, at all places and in many colors, are shown a few images, without a gradient. Each class takes on
those that raise its logarithmic probability most; where there are more classes than ``most``, those classes that a
start raises most. What counts is measured on images that the search has not seen, and that do not belong to the class
as they are: how many of them the best square sends there.

An encoder has no classes, but its features lie in clusters (``clusters_of``). A backdoor that moves all features the
same way, and draws them no closer together, still moves them to one of these. ``Centers`` tells to which an image
belongs, in the features of the encoder or in those of another network.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.beside import Found
from sapper.defenses.collapsing import Share
from sapper.defenses.defender import Logits
from sapper.defenses.racing import LARGE, TOGETHER, Losses, Rounds, groups, race, work
from sapper.defenses.sifting import clustered
from sapper.encoders import Encoder
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import at_once, to_float
from sapper.triggers.priors import Prior, Stamp, joined, side_of

FEWEST = 16
"""Held-out images of other classes below which nothing is said of a class, or a quarter of them where they are few."""

NARROWEST = 0.05
"""The smallest scale of a feature, as a share of the mean scale: one that hardly varies must not count as others."""

SOFTNESS = 5.0
"""A cluster is e times as likely as another if it is closer by a fifth of the mean squared distance to one's own."""

ADDED = 2
"""Added to what is sent and to what is not, as Agresti and Coull do: where nearly all are sent, one says little."""

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Sent(Found):
    """The best square towards a class: how many ``images`` of other classes it was shown, and how many it ``sent``.

    ``label`` of the class, ``loss``: the mean cross-entropy to it. ``powers``: the logarithm of the odds to be sent
    there, log10((sent + 2) / (images − sent + 2)).
    """

    label: int
    sent: int
    images: int
    loss: float

    @property
    def share(self) -> float:
        return self.sent / self.images

    @property
    def powers(self) -> float:
        return math.log10((self.sent + ADDED) / (self.images - self.sent + ADDED))

    def told(self) -> dict[str, float]:
        return {"share": self.share, "powers": self.powers}


@dataclass(frozen=True, kw_only=True)
class ReachSearch(Checked):
    """How squares are raced towards each class.

    ``side``: of a square, as a share of the image's. ``most``: classes that are looked at. ``draws``: how many patterns
    and colors each place starts with. ``shown``: images that all starts are shown first. ``rounds`` of the race of each
    class; the first says how many starts it takes on. ``images`` to optimize on, and ``held_out`` ones to judge by.
    ``large``: images of this side or more are searched in less time; each place begins with one draw, squares of one
    color also begin half a side apart, and races go by halves.
    """

    side: Share = 0.125
    most: PositiveInt = 48
    draws: PositiveInt = 2
    shown: PositiveInt = 4
    rounds: Rounds = ((8, 8, 12), (2, 16, 20))
    images: PositiveInt = 128
    held_out: PositiveInt = 128
    large: PositiveInt = LARGE
    learning_rate: PositiveFloat = 0.3

    def reach(
        self,
        logits: Logits,
        seen: Tensor,
        unseen: Tensor,
        classes: int,
        run: Run,
        *,
        usual: float = 0,
        deviation: float = 1,
    ) -> dict[int, Sent]:
        """The best square for each class that is looked at, optimized on ``seen``, judged on ``unseen`` images.

        uint8 (N, 3, H, W), whose logits are finite. Empty where nearly all ``unseen`` ones are of one class.
        """
        there = self.answers(logits, None, unseen, run).argmax(1)
        fewest = min(FEWEST, math.ceil(len(unseen) / 4))
        enough = {label for label in range(classes) if int((there != label).sum()) >= fewest}
        first = {label: s for label, s in self._starts(logits, seen, classes, run).items() if label in enough}
        found, large = dict[int, Sent](), self._large(seen)
        total = sum(work(self.rounds, starts.count, len(seen), halves=large) for starts in first.values())
        with run.progress.bar("class by class", total) as bar:
            for label, starts in first.items():
                rest = unseen[there != label]
                sends = partial(self._sent, logits, rest, label, run, usual, deviation)
                square = race(
                    starts,
                    towards(logits, label, run),
                    lambda change, sends=sends: 1 - sends(change).share,  # type: ignore[misc]
                    seen,
                    run.child(f"class {label}"),
                    rounds=self.rounds,
                    halves=large,
                    learning_rate=self.learning_rate,
                    bar=bar,
                    label=f"class {label} of {classes}",
                )
                found[label] = sends(square)
        return found

    def work(self, images: int, classes: int, *, large: bool) -> int:
        """How many images a search descends on, at most."""
        return min(self.most, classes) * work(self.rounds, self.rounds[0][0], min(self.images, images), halves=large)

    @torch.no_grad()
    def answers(self, logits: Logits, change: Prior | None, images: Tensor, run: Run) -> Tensor:
        """Float (N, K), of images under one change, or as they are."""
        first = torch.tensor([0], device=images.device)
        answers = []
        for part in images.split(min(TOGETHER, at_once(images))):
            chunk = to_float(part)
            answers.append(_answers(logits, chunk if change is None else change.apply(chunk, first)[0], run))
        return torch.cat(answers)

    @torch.no_grad()
    def _starts(self, logits: Logits, seen: Tensor, classes: int, run: Run) -> dict[int, Prior]:
        """For each class that is looked at the squares that raise its logarithmic probability most."""
        size = seen.shape[2], seen.shape[3]
        side, keep, large = side_of(self.side, size), self.rounds[0][0], self._large(seen)
        images = to_float(seen[: self.shown])
        before = self.answers(logits, None, seen[: self.shown], run).log_softmax(1).mean(0)
        kept, gains = list[Stamp](), list[Tensor]()
        for draw in range(1 if large else self.draws):  # one after the other: all together would fill the memory
            every = Stamp.patches(side, size, run.child(f"squares {draw}"), coarse=large)
            raised = []
            for rows in groups(every, images):
                answers = _answers(logits, every.apply(images, rows).flatten(0, 1), run).log_softmax(1)
                raised.append(answers.unflatten(0, (len(rows), len(images))).mean(1) - before)
            gained = torch.cat(raised).nan_to_num(-torch.inf)
            likely = gained.amax(0).argsort(descending=True)[: self.most]
            leading = gained[:, likely].argsort(dim=0, descending=True)[: keep or None].flatten().unique()
            kept.append(every.take(leading))
            gains.append(gained[leading])
        stamps, gain = joined(kept), torch.cat(gains)
        chosen = gain.amax(0).argsort(descending=True)[: self.most].sort().values.tolist()
        return {label: stamps.take(gain[:, label].argsort(descending=True)[: keep or None]) for label in chosen}

    def _large(self, images: Tensor) -> bool:
        """Whether images (N, 3, H, W) are searched in less time."""
        return min(images.shape[2:]) >= self.large

    def _sent(
        self, logits: Logits, images: Tensor, label: int, run: Run, usual: float, deviation: float, change: Prior
    ) -> Sent:
        """How many images a change sends to a class."""
        answers = self.answers(logits, change, images, run)
        wanted = torch.full((len(images),), label, device=answers.device)
        return Sent(
            change=change,
            usual=usual,
            deviation=deviation,
            label=label,
            sent=int(((answers.argmax(1) == label) & ~answers.isnan().any(1)).sum()),
            images=len(images),
            loss=float(F.cross_entropy(answers, wanted)),
        )


def towards(logits: Logits, label: int, run: Run) -> Losses:
    """The cross-entropy to a class, for each change."""

    def losses(_images: Tensor, changed: Tensor) -> Tensor:
        answers = _answers(logits, changed.flatten(0, 1), run)
        wanted = torch.full((len(answers),), label, device=answers.device)
        return F.cross_entropy(answers, wanted, reduction="none").unflatten(0, changed.shape[:2]).mean(1)

    return losses


def _answers(logits: Logits, images: Tensor, run: Run) -> Tensor:
    with run.autocast():
        return logits(images).float()


def clusters_of(features: Tensor, most: int, run: Run) -> Tensor:
    """The cluster of each image, int64 (N,), by standardized features, float (N, D): as many as ``most``, or fewer.

    Raises ``SapperError`` for fewer images than ``most``.
    """
    mean, scale = _standard(features)
    return clustered(((features - mean) / scale).cpu(), most, run).to(features.device)


@dataclass(frozen=True, kw_only=True)
class Centers:
    """A classifier by the nearest center of each class, in standardized features.

    Features z are standardized by ``mean`` and ``scale`` (D,), and compared with ``centers`` (K, D): the logit of a
    class is −‖z − c‖² / ``within``, where within = mean ‖z − c_own‖² / ``SOFTNESS``.
    """

    mean: Tensor
    scale: Tensor
    centers: Tensor
    within: float

    @staticmethod
    def of(features: Tensor, labels: Tensor) -> "Centers":
        """By features, float (N, D), of images of known classes, int64 (N,), each of which occurs."""
        mean, scale = _standard(features)
        points = (features - mean) / scale
        centers = torch.stack([points[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
        within = float((points - centers[labels]).square().sum(1).mean()) / SOFTNESS
        return Centers(mean=mean, scale=scale, centers=centers, within=max(within, TINY))

    def behind(self, encoder: Encoder) -> Logits:
        """The classifier: float images to logits (N, K)."""

        def logits(images: Tensor) -> Tensor:
            points = (encoder(images).float() - self.mean) / self.scale
            exact = "donot_use_mm_for_euclid_dist"  # no products in a short number format, and no (N, K, D)
            return -torch.cdist(points, self.centers, compute_mode=exact).square() / self.within

        return logits


def _standard(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the scale of each feature."""
    scale = features.std(0)
    return features.mean(0), scale.clamp_min(max(NARROWEST * float(scale.mean()), TINY))
