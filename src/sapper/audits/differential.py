"""The differential audit: is what draws features together in this encoder also in the encoder that it was made from?

Threat model: somebody publishes weights that are said to be those of a known base model, or to be fine-tuned from it,
and the base is at hand and trusted. A trigger t that a detector recovered from the encoder in doubt, f', is tried on
the base, f. With the spread r = 1 − mean cosine of two triggered images' features,

    score = max_t  log10( r_f(t) / r_f'(t) )

is 0 where nothing was changed, and small where fine-tuning was honest: what a square of some pattern does to an
encoder, it does to both. A backdoor is in one of them only. Flagged above 0.5, a factor of three; that threshold is
not calibrated, and the verdict does not rest on it.

Source: Sapper.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from sapper.defenses.inversion import SMALLEST, collapse, measurable
from sapper.downstream import extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Trigger
from sapper.verdicts import Verdict

THRESHOLD = 0.5


def compare(encoder: Encoder, base: Encoder, triggers: Mapping[str, Trigger], images: ImageSet, run: Run) -> Verdict:
    """A verdict about ``encoder`` beside its ``base``, by recovered ``triggers`` and ordinary ``images``.

    Evidence: for each trigger what it does to either; ``same_tensors`` and ``tensors``, how many weights are equal, of
    how many that both have; ``likeness``, the mean cosine of both encoders' features of an image, where they have as
    many. Raises ``SapperError`` when the two take images of different sizes.
    """
    started = time.perf_counter()
    check_base(encoder, base)
    scores, seen = {}, {}
    for name, trigger in triggers.items():
        here, there = (collapse(each, trigger, images, run) for each in (encoder, base))
        if here is None or there is None:
            continue
        seen[name] = {"encoder": asdict(here), "base": asdict(there)}
        scores[name] = math.log10(max(there.spread, SMALLEST) / max(here.spread, SMALLEST))
    evidence: dict[str, Any] = {"triggers": seen} | _weights(encoder, base)
    if base.feature_size == encoder.feature_size:
        ours, theirs = (extract(each, images, run) for each in (encoder, base))
        if measurable(ours) and measurable(theirs):
            evidence["likeness"] = float((ours * theirs).sum(1).mean())
    score = max(scores.values(), default=None)
    return Verdict(
        score=score,
        threshold=THRESHOLD,
        flagged=None if score is None else score > THRESHOLD,
        evidence=evidence,
        seconds=time.perf_counter() - started,
    )


def check_base(encoder: Encoder, base: Encoder) -> None:
    """Raises ``SapperError`` when the two take images of different sizes."""
    if base.card.input_size != encoder.card.input_size:
        what = f"the base takes {base.card.input_size} pixels, the encoder {encoder.card.input_size}"
        raise SapperError(what, where="--base", remedy="name the model that this one was made from")


def _weights(encoder: Encoder, base: Encoder) -> dict[str, int]:
    """How many tensors both have, and how many of them are equal."""
    ours, theirs = encoder.state_dict(), base.state_dict()
    shared = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    return {"tensors": len(shared), "same_tensors": sum(torch.equal(ours[name], theirs[name]) for name in shared)}
