"""Class by class: which class of a classifier does a small square reach from everywhere?

Threat model: a classifier whose weights are at hand, and unlabeled ordinary images; the attacker's trigger is a small
patch that sends every image to one class. That is Neural Cleanse's question (``neural_cleanse``). Its mask of free
shape has to shrink to where the trigger is, and may end where nothing is; here squares of a given small size are raced
from many starts instead (``racing``), for each class t:

    minimize_θ   mean_x CE( f(T_θ(x)), t )          T_θ(x) = x with a square replaced by θ ∈ [0, 1]^{3×s×s}

First all starts, at all places and in many colors, are shown a few images, without a gradient. Each class takes on
those that raise its logarithmic probability most; where there are more classes than ``most``, those classes that a
start raises most. What counts is measured on images that the search has not seen, and that do not belong to the class
as they are: the share r_t that the best square sends there,

    score = max_t r_t                                flagged above ``threshold``

A square of an eighth of the side rarely does that to a clean network; how rarely depends on the network, which is why
an audit shows this beside its verdict and does not decide by it.

Source: Sapper; the question is that of Wang et al., "Neural Cleanse", IEEE S&P 2019.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.inversion import anomaly_index
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.defenses.racing import LARGE, TOGETHER, Losses, Rounds, groups, race, work
from sapper.downstream import Classifier
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, at_once, to_float
from sapper.triggers.priors import Prior, Stamp, joined
from sapper.verdicts import Reached, Verdict, unscored

FEWEST = 16
"""Held-out images of other classes below which nothing is said of a class, or a quarter of them where they are few."""

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class ClassWise(Checked, ClassifierJudge):
    """Races small squares towards each class (Sapper's own, with Neural Cleanse's question).

    ``side``: of a square, as a share of the image's. ``most``: classes that are looked at. ``draws``: how many patterns
    and colors each place starts with. ``shown``: images that all starts are shown first. ``rounds`` of the race of each
    class; the first says how many starts it takes on. ``images`` to optimize on, and ``held_out`` ones to judge by.
    ``large``: images of this side or more are searched in less time; each place begins with one draw, squares of one
    color also begin half a side apart, and races go by halves. ``threshold`` of the score.
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
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.9

    kind: ClassVar[Literal["judge"]] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("share"), TARGET_NAMED)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Sapper"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, images: int, classes: int) -> None:
        """Any number of classes and images will do."""

    def judge(self, classifiers: Sequence[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        """A verdict for each classifier; see ``examine``."""
        defender.check(classifiers, run)
        return [
            self.examine(classifier, defender.train, defender.classes, run.child(f"classifier {i}"))
            for i, classifier in enumerate(classifiers)
        ]

    def examine(self, logits: Logits, images: ImageSet, classes: int, run: Run) -> Verdict:
        """Which of ``classes`` a small square reaches, by ordinary ``images``, whose labels are not looked at.

        Evidence: ``suspect``, ``share`` of images that the best square sends there, ``there_before``: the share that is
        there as it is, ``anomaly_index``: how far the suspect's loss lies below those of the other classes, ``looked``:
        each class's ``share`` and ``loss``, of ``classes``. The trigger is the suspect's, ``reached`` has all.
        """
        started = time.perf_counter()
        seen, unseen = self._split(images, run)
        plain = self._logits(logits, None, unseen, run)
        if not plain.isfinite().all():
            return unscored("logits of ordinary images are not finite", self.threshold, time.perf_counter() - started)
        there = plain.argmax(1)
        found: dict[int, tuple[Prior, float, float]] = {}
        fewest = min(FEWEST, math.ceil(len(unseen) / 4))
        enough = {label for label in range(classes) if int((there != label).sum()) >= fewest}
        first = {label: s for label, s in self._starts(logits, seen, classes, run).items() if label in enough}
        large = self._large(seen)
        total = sum(work(self.rounds, starts.count, len(seen), halves=large) for starts in first.values())
        with run.progress.bar("class by class", total) as bar:
            for label, starts in first.items():
                rest = unseen[there != label]
                square = race(
                    starts,
                    towards(logits, label, run),
                    partial(self._missed, logits, rest, label, run),
                    seen,
                    run.child(f"class {label}"),
                    rounds=self.rounds,
                    halves=large,
                    learning_rate=self.learning_rate,
                    bar=bar,
                    label=f"class {label} of {classes}",
                )
                found[label] = (square, *self._share(logits, square, rest, label, run))
        if not found:
            return unscored("nearly all images belong to one class", self.threshold, time.perf_counter() - started)
        suspect = max(found, key=lambda label: (found[label][1], -found[label][2]))
        square, share, _ = found[suspect]
        index, _ = anomaly_index([loss for _, _, loss in found.values()])
        pixels = float(_pixels(square))
        return Verdict(
            score=share,
            threshold=self.threshold,
            flagged=share > self.threshold,
            trigger=square.trigger(),
            reached=tuple(
                Reached(label=label, trigger=each.trigger(), pixels=pixels, success=reach)
                for label, (each, reach, _) in found.items()
            ),
            evidence={
                "suspect": suspect,
                "share": share,
                "there_before": float((there == suspect).double().mean()),
                "anomaly_index": index,
                "classes": classes,
                "looked": {str(label): {"share": reach, "loss": loss} for label, (_, reach, loss) in found.items()},
            },
            seconds=time.perf_counter() - started,
        )

    def _split(self, images: ImageSet, run: Run) -> tuple[Tensor, Tensor]:
        """Images to optimize on, and held-out ones; half each where they are few."""
        rows = torch.randperm(len(images), generator=run.child("images").generator())[: self.images + self.held_out]
        held = min(self.held_out, len(rows) // 2)
        shown = images.images[rows].to(run.device)
        return shown[held:], shown[:held]

    @torch.no_grad()
    def _starts(self, logits: Logits, seen: Tensor, classes: int, run: Run) -> dict[int, Prior]:
        """For each class that is looked at the squares that raise its logarithmic probability most."""
        size = seen.shape[2], seen.shape[3]
        side, keep, large = max(1, round(self.side * min(size))), self.rounds[0][0], self._large(seen)
        images = to_float(seen[: self.shown])
        before = self._logits(logits, None, seen[: self.shown], run).log_softmax(1).mean(0)
        kept, gains = list[Stamp](), list[Tensor]()
        for draw in range(1 if large else self.draws):  # one after the other: all together would fill the memory
            every = Stamp.patches(side, size, run.child(f"squares {draw}"), coarse=large)
            raised = []
            for rows in groups(every, images):
                answers = _answers(logits, every.apply(images, rows).flatten(0, 1), run).log_softmax(1)
                raised.append(answers.unflatten(0, (len(rows), len(images))).mean(1) - before)
            gained = torch.cat(raised).nan_to_num(-torch.inf)
            likely = gained.amax(0).argsort(descending=True)[: self.most]
            best = gained[:, likely].argsort(dim=0, descending=True)[: keep or None].flatten().unique()
            kept.append(every.take(best))
            gains.append(gained[best])
        stamps, gain = joined(kept), torch.cat(gains)
        chosen = gain.amax(0).argsort(descending=True)[: self.most].sort().values.tolist()
        return {label: stamps.take(gain[:, label].argsort(descending=True)[: keep or None]) for label in chosen}

    def _large(self, images: Tensor) -> bool:
        """Whether images (N, 3, H, W) are searched in less time."""
        return min(images.shape[2:]) >= self.large

    def _missed(self, logits: Logits, images: Tensor, label: int, run: Run, change: Prior) -> float:
        """The share of images that a change does not send to a class."""
        return 1 - self._share(logits, change, images, label, run)[0]

    def _share(self, logits: Logits, change: Prior, images: Tensor, label: int, run: Run) -> tuple[float, float]:
        """The share of images that a change sends to a class, and the cross-entropy to it."""
        answers = self._logits(logits, change, images, run)
        wanted = torch.full((len(images),), label, device=answers.device)
        return float((answers.argmax(1) == label).double().mean()), float(F.cross_entropy(answers, wanted))

    @torch.no_grad()
    def _logits(self, logits: Logits, change: Prior | None, images: Tensor, run: Run) -> Tensor:
        """Float (N, K), of images under one change, or as they are."""
        first = torch.tensor([0], device=images.device)
        chunks = to_float(images).split(min(TOGETHER, at_once(images)))
        return torch.cat([_answers(logits, x if change is None else change.apply(x, first)[0], run) for x in chunks])


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


def _pixels(square: Prior) -> Tensor:
    assert isinstance(square, Stamp)
    return square.masks[0].sum()
