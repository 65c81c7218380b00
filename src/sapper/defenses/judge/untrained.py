"""Untrained copies: does a change collapse the features of an encoder, and not those of its architecture as such?

Threat model: an encoder f whose weights are at hand, and unlabeled ordinary images. How far a small change can draw
features together differs between architectures and image sizes: a square that fills one cell of a stem does more than
one that is spread over many. So a score of one kind of encoder means nothing for another (``multi_prior``), and for
most kinds nobody has clean encoders to compare with. But a network says of itself what it makes of a change before it
has learned anything: a copy g_c with freshly drawn weights has the same layers, strides and normalization, and no
backdoor. Statistics of its batch normalization are measured on the images, since those of no images would make one
feature of everything. The same search, from the same starts and on the same images, looks for the change of each prior
that gathers features most, in f and in its copies (``defenses/collapsing.py``). With P the powers of ten that it
reaches,

    score = max_priors ( P(f) − mean_c P(g_c) − μ ) / σ                                      flagged above ``threshold``

Training takes away what μ tells, since features that mean something hold out longer against a square than random ones
do; a backdoor adds more than that. Both are much the same for many kinds of encoders: μ and σ are mean and deviation
over clean encoders of several families. How far a clean encoder of another family can go is measured on many of them
(``audits/families.py``). A copy costs a search, and no training, unlike a student (``twins``). An attacker who knows
this can spread a backdoor over several changes, or make the encoder collapse under it no further than an untrained one
does.

Source: Sapper. Defaults are from the development part of the zoo ``families`` (``docs/results/strangers.md``).
"""

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from sapper.defenses.collapsing import CollapseSearch, Usual, beyond
from sapper.defenses.contracts import EncoderExaminer, Need
from sapper.defenses.measures import OfVerdicts, detection
from sapper.encoders import Encoder
from sapper.encoders.redrawing import redrawn, settled
from sapper.running import KeptFor, Run
from sapper.samples import ImageSet, to_float
from sapper.verdicts import Verdict, unscored


@dataclass(frozen=True, kw_only=True)
class Untrained(CollapseSearch, EncoderExaminer):
    """Compares a search for triggers in an encoder with the same in untrained copies of it (Sapper's own).

    ``copies``: how many. Priors, starts and rounds are those of the search; μ and σ of each are of the difference in
    powers of ten. ``threshold`` of the score.
    """

    patches: tuple[Usual, ...] = ((0.25, -0.76, 0.45), (0.375, -0.61, 0.57))
    blends: tuple[Usual, ...] = ()
    filters: tuple[Usual, ...] = ()
    copies: PositiveInt = 2
    threshold: float = 2.0

    kind: ClassVar[Literal["examine"]] = "examine"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = detection("score")
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Sapper"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """Whether ``encoder`` has a backdoor, by unlabeled ordinary ``images`` of its size.

        Evidence: ``priors``, for each its numbers as of ``multi_prior``, ``beside``, the powers of ten that each copy
        reaches, and the ``score`` beside these; ``prior``, the one that counts; ``spread`` of all images as they are.
        Its trigger is what the search found in the encoder. No score where features cannot be
        measured, in the encoder or in a copy.
        """
        started = time.perf_counter()
        encoder.to(run.device).eval().requires_grad_(False)
        seen, unseen = self.split(images, run, "untrained")
        looked = self.search(encoder, seen, unseen, run)
        if looked.why is not None:
            return unscored(looked.why, self.threshold, time.perf_counter() - started)
        searches = []
        for number in range(self.copies):
            copy = redrawn(encoder, run.child(f"copy {number}")).to(run.device).requires_grad_(False)
            settled(copy, to_float(seen))
            own = replace(run, kept=KeptFor(run.kept, f"copy-{number}"))
            searches.append(self.search(copy, seen, unseen, own))  # from the same starts
            if searches[-1].why is not None:
                why = f"an untrained copy says nothing: {searches[-1].why}"
                none = unscored(why, self.threshold, time.perf_counter() - started)
                return replace(none, evidence=none.evidence | {"of": "copy"})
        priors = beyond(looked, searches)
        winner = max(priors, key=lambda name: float(priors[name]["score"]))
        score = priors[winner]["score"]
        return Verdict(
            score=score,
            threshold=self.threshold,
            flagged=score > self.threshold,
            trigger=looked.found[winner].change.trigger(),
            evidence={"prior": winner, "spread": looked.spread, "priors": priors},
            seconds=time.perf_counter() - started,
        )
