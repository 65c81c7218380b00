"""Class by class: which class of a classifier does a small square reach from everywhere?

Threat model: a classifier whose weights are at hand, and unlabeled ordinary images; the attacker's trigger is a small
patch that sends every image to one class. That is Neural Cleanse's question (``neural_cleanse``). Its mask of free
shape has to shrink to where the trigger is, and may end where nothing is; here squares of a given small size are raced
from many starts instead (``racing``), for each class t:

    minimize_θ   mean_x CE( f(T_θ(x)), t )          T_θ(x) = x with a square replaced by θ ∈ [0, 1]^{3×s×s}

``defenses/reaching.py`` has the search. What counts is measured on images that it has not seen, and that do not belong
to the class as they are: the share r_t that the best square sends there,

    score = max_t r_t                                flagged above ``threshold``

A square of an eighth of the side rarely does that to a clean network; how rarely depends on the network, which is why
an audit shows this beside its verdict and does not decide by it.

Source: Sapper; the question is that of Wang et al., "Neural Cleanse", IEEE S&P 2019.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.inversion import anomaly_index
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.defenses.reaching import ReachSearch
from sapper.downstream import Classifier
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers.priors import Prior, Stamp
from sapper.verdicts import Reached, Verdict, unscored


@dataclass(frozen=True, kw_only=True)
class ClassWise(ReachSearch, ClassifierJudge):
    """Races small squares towards each class (Sapper's own, with Neural Cleanse's question).

    Squares, starts and rounds are those of the search. ``threshold`` of the score.
    """

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.9

    kind: ClassVar[Literal["judge"]] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("share"), TARGET_NAMED)
    version: ClassVar[int] = 2
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
        plain = self.answers(logits, None, unseen, run)
        if not plain.isfinite().all():
            return unscored("logits of ordinary images are not finite", self.threshold, time.perf_counter() - started)
        found = self.reach(logits, seen, unseen, classes, run)
        if not found:
            return unscored("nearly all images belong to one class", self.threshold, time.perf_counter() - started)
        suspect = max(found.values(), key=lambda each: (each.share, -each.loss))
        index, _ = anomaly_index([each.loss for each in found.values()])
        return Verdict(
            score=suspect.share,
            threshold=self.threshold,
            flagged=suspect.share > self.threshold,
            trigger=suspect.change.trigger(),
            reached=tuple(
                Reached(label=label, trigger=each.change.trigger(), pixels=_pixels(each.change), success=each.share)
                for label, each in found.items()
            ),
            evidence={
                "suspect": suspect.label,
                "share": suspect.share,
                "there_before": float((plain.argmax(1) == suspect.label).double().mean()),
                "anomaly_index": index,
                "classes": classes,
                "looked": {str(label): {"share": each.share, "loss": each.loss} for label, each in found.items()},
            },
            seconds=time.perf_counter() - started,
        )

    def _split(self, images: ImageSet, run: Run) -> tuple[Tensor, Tensor]:
        """Images to optimize on, and held-out ones; half each where they are few."""
        rows = torch.randperm(len(images), generator=run.child("images").generator())[: self.images + self.held_out]
        held = min(self.held_out, len(rows) // 2)
        shown = images.images[rows].to(run.device)
        return shown[held:], shown[:held]


def _pixels(square: Prior) -> float:
    assert isinstance(square, Stamp)
    return float(square.masks[0].sum())
