"""Twins: does a change collapse the features of an encoder, and not those of its students?

Threat model: an encoder f whose weights are at hand, and unlabeled ordinary images in which no trigger occurs. How far
a small change can draw features together differs between architectures, pre-trainings and data, so that a score means
nothing by itself (``multi_prior``), and for most encoders nobody has clean ones of the same kind to compare with. But
everybody can make some: a twin is a network of the same architecture with fresh weights that learns f's features of
ordinary images and of views of them,

    h_t = argmin_h  1 − mean s( h(v), f(v) )                                               s the cosine

as in distillation. What f does with a trigger is nowhere in these images, so that twins have no reason to learn it,
whereas what is natural to the architecture, the data and the representation they learn as well. The same search, from
the same starts, looks for the change of each prior (``defenses/collapsing.py``) that gathers features most, in f and in
its twins. With P the powers of ten that it reaches, and what is usual of the excess, μ and σ, the score is the largest
one,

    score = max_priors ( P(f) − mean_t P(h_t) − μ ) / σ

A twin that is fitted badly may collapse by itself, and hide what f does: ``fit`` in the evidence is its distance to f
on images that it was not trained on, and where that is above ``worst_fit`` there is no score. An attacker who knows
this can train the trigger into what ordinary images show.

Source: Sapper. Neither threshold nor defaults were calibrated yet.
"""

import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.collapsing import CollapseSearch, Search, Usual, beyond
from sapper.defenses.contracts import EncoderExaminer, Need
from sapper.defenses.measures import OfVerdicts, detection
from sapper.defenses.repairing import Distilling, answers, apart, fresh
from sapper.encoders import Encoder
from sapper.encoders.freezing import trained
from sapper.errors import SapperError
from sapper.running import KeptFor, Run
from sapper.samples import ImageSet, to_float
from sapper.verdicts import Verdict, unscored

FEWEST = 32
"""Images below which no twin learns anything; others are held out."""


@dataclass(frozen=True, kw_only=True)
class Twins(CollapseSearch, EncoderExaminer):
    """Compares a search for triggers in an encoder with the same in students of it (Sapper's own).

    ``twins``: how many students. ``steps``, ``batch``, ``student_rate``: of the distillation, at least so many steps of
    Adam with a falling rate; ``augmented``: the share of each batch that is augmented, with crops of ``crop_scale`` of
    the image's area or more. ``worst_fit``: 1 − the mean cosine of a twin and the encoder above which nothing is said.
    Priors, starts and rounds are those of the search. ``threshold`` of the score.
    """

    patches: tuple[Usual, ...] = ((0.25, 0.0, 0.23), (0.375, 0.0, 0.35))
    blends: tuple[Usual, ...] = ((0.2, 0.0, 0.33),)
    filters: tuple[Usual, ...] = ((0.2, 0.0, 0.38),)
    twins: PositiveInt = 2
    steps: PositiveInt = 1500
    batch: Annotated[int, Field(ge=2)] = 64
    student_rate: PositiveFloat = 3e-3
    augmented: Annotated[float, Field(ge=0, le=1)] = 0.5
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    worst_fit: Annotated[float, Field(gt=0, le=2)] = 0.5
    threshold: float = 2.0

    kind: ClassVar[Literal["examine"]] = "examine"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = detection("score")
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Sapper"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """Whether ``encoder`` has a backdoor, by unlabeled ordinary ``images`` of its size.

        Evidence: ``priors``, for each its numbers as of ``multi_prior``, ``beside``, the powers of ten that each twin
        reaches, and the ``score`` beside these; ``prior``, the one that counts; ``fit`` of each twin.
        Its trigger is what the search found in the encoder. No score where features cannot be measured, in the encoder
        or in a twin, and where a twin is unlike it.

        Raises ``SapperError`` for fewer images than a twin needs.
        """
        started = time.perf_counter()
        encoder.to(run.device).eval().requires_grad_(False)
        seen, unseen = self.split(images, run, "twins")
        shown = _without(images, unseen)
        if len(shown) < FEWEST:
            what = f"{len(images)} images are too few for twins: {len(shown)} are left to learn from"
            raise SapperError(what, where=images.name, remedy=f"give {2 * FEWEST} or more; hundreds are better")
        looked = self.search(encoder, seen, unseen, run)
        if looked.why is not None:
            return unscored(looked.why, self.threshold, time.perf_counter() - started)
        searches, fits = list[Search](), list[float]()
        for number in range(self.twins):
            twin, fit = self.twin(encoder, shown, unseen, run.child(f"twin {number}"))
            own = replace(run, kept=KeptFor(run.kept, f"twin-{number}"))
            searches.append(self.search(twin, seen, unseen, own))  # from the same starts
            fits.append(fit)
            why = searches[-1].why or (None if fit <= self.worst_fit else f"it differs from the encoder by {fit:.2f}")
            if why is not None:
                return unscored(f"twin {number} says nothing: {why}", self.threshold, time.perf_counter() - started)
        priors = beyond(looked, searches)
        winner = max(priors, key=lambda name: float(priors[name]["score"]))
        score = priors[winner]["score"]
        return Verdict(
            score=score,
            threshold=self.threshold,
            flagged=score > self.threshold,
            trigger=looked.found[winner].change.trigger(),
            evidence={"prior": winner, "spread": looked.spread, "fit": fits, "priors": priors},
            seconds=time.perf_counter() - started,
        )

    def parts(self) -> list["Twins"]:
        """Itself: all priors are tried on the same twins."""
        return [self]

    def twin(self, encoder: Encoder, images: ImageSet, unseen: Tensor, run: Run) -> tuple[Encoder, float]:
        """A student that learns the encoder's features of ``images``, in ``eval`` mode and frozen.

        And 1 − the mean cosine of both on ``unseen`` ones, uint8 (N, 3, H, W).
        """
        student, shown = fresh(encoder, run.child("weights")).to(run.device).train(), images.to(run.device)
        key = f"twin-{run.seed}-{images.digest[:16]}-{self.steps}"
        if (kept := run.kept.get(key)) is not None:
            student.load_state_dict(kept)
            return self._finished(student, encoder, unseen, run)
        learning = Distilling(
            steps=self.steps,
            batch=min(self.batch, len(shown)),
            learning_rate=self.student_rate,
            augmented=self.augmented,
            crop_scale=self.crop_scale,
        )
        learning.retrain(
            student,
            learning.answers_of(encoder, student, shown, run),
            trained(student),
            count=len(shown),
            run=run,
            label="twin",
            checkpoint=None,
        )
        run.kept.put(key, student.state_dict())
        return self._finished(student, encoder, unseen, run)

    def _finished(self, student: Encoder, encoder: Encoder, unseen: Tensor, run: Run) -> tuple[Encoder, float]:
        student.eval().requires_grad_(False)
        pixels = to_float(unseen)
        return student, float(apart(answers(student, pixels, run), answers(encoder, pixels, run)))


def _without(images: ImageSet, held: Tensor) -> ImageSet:
    """The images without those that are held out, uint8 (N, 3, H, W), and their copies."""
    known = {row.tobytes() for row in held.cpu().numpy()}
    rows = [row for row, each in enumerate(images.images.numpy()) if each.tobytes() not in known]
    return images.take(torch.tensor(rows, dtype=torch.int64))
