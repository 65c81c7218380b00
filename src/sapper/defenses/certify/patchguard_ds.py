"""Mask-DS: PatchGuard over column bands ("derandomized smoothing"), for any classifier.

Threat model: one patch of at most p×p pixels, anywhere, different for each image, any content.

The classifier sees one band of b neighboring columns at a time (bands wrap around the image's edge); everything else is
blank. Its softmax confidences in the W bands are local evidence u ∈ [0, 1]^{W×K}, of which a patch changes at most the
b + p − 1 neighboring bands that touch it. ``masking`` aggregates and certifies it.

A classifier that never saw bands is not certified for much: Levine and Feizi train on one random band for each batch.
``bands`` makes such views for training a head, or an encoder, on them.

Source: Xiang et al., "PatchGuard", USENIX Security 2021, over Levine, Feizi, "(De)Randomized Smoothing for Certifiable
Defense against Patch Attacks", NeurIPS 2020. Bands of 4 of 32 columns, T = 0, as in the authors' ``mask_ds.py`` for
CIFAR-10. There the network has six channels, the band and one minus it, so that a blank is told from black; ours
keeps the encoder's three and fills with ``color``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sapper.defenses.certify.masking import certify, column_windows, robust_prediction
from sapper.images import to_float
from sapper.run import Run
from sapper.verdicts import Certified


@dataclass(frozen=True, kw_only=True)
class PatchGuardDS:
    """Certifies by column bands and robust masking (Xiang et al., USENIX Security 2021).

    ``patch``: side of the largest patch to withstand. ``band``: columns seen at a time. ``share``: T, the part of a
    class's evidence that its strongest window must exceed to be taken away.
    """

    patch: PositiveInt = 10
    band: PositiveInt = 4
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Xiang et al., USENIX Security 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def evidence(self, images: Tensor, logits: Callable[[Tensor], Tensor], color: Tensor, run: Run) -> Tensor:
        """Confidences in every band, float (N, W, K), of uint8 ``images`` (N, 3, H, W); computed once for all patches.

        ``logits``: float images in [0, 1] to logits (N, K). ``color``: float (3,), what the rest is filled with.
        """
        width = images.shape[-1]
        seen = column_windows(width, self.band).to(run.device)
        parts = []
        with run.progress.bar("bands (Mask-DS)", len(images)) as bar, torch.no_grad():
            for chunk in images.split(max(1, 512 // width)):
                views = torch.where(seen.view(width, 1, 1, width), _pixels(chunk, run), _fill(color, run))
                with run.autocast():
                    answers = logits(views.flatten(0, 1))
                parts.append(answers.float().softmax(1).view(len(chunk), width, -1))
                bar.advance(len(chunk))
        return torch.cat(parts)

    def certify(self, evidence: Tensor, labels: Tensor) -> Certified:
        """Defended predictions and certificates from ``evidence`` (N, W, K) and the true ``labels`` int64 (N,)."""
        windows = column_windows(evidence.shape[1], self.band + self.patch - 1).to(evidence.device)
        return Certified(
            labels=robust_prediction(evidence, windows, self.share).cpu(),
            certified=certify(evidence, windows, labels, self.share).cpu(),
            threat=f"one {self.patch}×{self.patch} patch anywhere",
        )

    def bands(self, images: Tensor, color: Tensor, generator: torch.Generator) -> Tensor:
        """Each float image (N, 3, H, W) through one random band of its own, for training."""
        width = images.shape[-1]
        start = torch.randint(width, (len(images),), generator=generator)
        seen = column_windows(width, self.band)[start].to(images.device)
        return torch.where(seen.view(-1, 1, 1, width), images, color.to(images).view(3, 1, 1))


def _pixels(chunk: Tensor, run: Run) -> Tensor:
    return to_float(chunk.to(run.device)).unsqueeze(1)


def _fill(color: Tensor, run: Run) -> Tensor:
    return color.to(run.device).view(3, 1, 1)
