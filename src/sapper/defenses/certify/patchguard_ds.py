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
keeps the encoder's three and fills with the mean color.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sapper.defenses.certify.masking import certify, column_windows, robust_prediction
from sapper.defenses.defender import Defender, Logits
from sapper.downstream import Classifier, extract
from sapper.images import to_float
from sapper.run import Run
from sapper.verdicts import Certified, threat


@dataclass(frozen=True, kw_only=True)
class PatchGuardDS:
    """Certifies by column bands and robust masking (Xiang et al., USENIX Security 2021).

    ``patch``: side of the largest patch to withstand. ``band``: columns seen at a time. ``share``: T, the part of a
    class's evidence that its strongest window must exceed to be taken away. ``training``: the classifier ``as-is``, or
    with a head trained on ``views`` random ``bands`` of every training image, through the encoder as it is.
    """

    patch: PositiveInt = 10
    band: PositiveInt = 4
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    training: Literal["as-is", "bands"] = "as-is"
    views: PositiveInt = 8

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Xiang et al., USENIX Security 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> Logits:
        """The classifier, or its encoder with a head that has seen bands."""
        if self.training == "as-is":
            return classifier
        features, generator = [], run.child("bands").generator()
        for _ in range(self.views):
            bands = self.bands(to_float(defender.train.images), defender.blank, generator)
            features.append(extract(defender.encoder, (255 * bands).round().to(torch.uint8), run))
        labels = defender.train.targets().repeat(self.views)
        head = defender.head.fit(torch.cat(features), labels, defender.classes, run.child("head"))
        return Classifier(defender.encoder, head).eval()

    def predict(self, logits: Logits, images: Tensor, blank: Tensor, run: Run) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W)."""
        evidence = self.evidence(images, logits, blank, run)
        return robust_prediction(evidence, self._windows(evidence, self.patch), self.share).cpu()

    def certify(
        self, logits: Logits, images: Tensor, labels: Tensor, blank: Tensor, patches: Sequence[int], run: Run
    ) -> list[Certified]:
        """For each size of ``patches`` defended predictions and certificates; the bands are looked at once."""
        evidence = self.evidence(images, logits, blank, run)
        return [self.certified(evidence, labels, patch) for patch in patches]

    def evidence(self, images: Tensor, logits: Logits, blank: Tensor, run: Run) -> Tensor:
        """Confidences in every band, float (N, W, K), of uint8 ``images`` (N, 3, H, W); around it is ``blank``."""
        width = images.shape[-1]
        seen = column_windows(width, self.band).to(run.device).view(width, 1, 1, width)
        fill = blank.to(run.device).view(3, 1, 1)
        parts = []
        with run.progress.bar("bands (Mask-DS)", len(images)) as bar, torch.no_grad():
            for chunk in images.split(max(1, 512 // width)):
                views = torch.where(seen, to_float(chunk.to(run.device)).unsqueeze(1), fill)
                with run.autocast():
                    answers = logits(views.flatten(0, 1))
                parts.append(answers.float().softmax(1).view(len(chunk), width, -1))
                bar.advance(len(chunk))
        return torch.cat(parts)

    def certified(self, evidence: Tensor, labels: Tensor, patch: int) -> Certified:
        """Defended predictions and certificates from ``evidence`` (N, W, K) and the true ``labels`` int64 (N,)."""
        windows = self._windows(evidence, patch)
        return Certified(
            labels=robust_prediction(evidence, windows, self.share).cpu(),
            certified=certify(evidence, windows, labels, self.share).cpu(),
            threat=threat(patch),
        )

    def bands(self, images: Tensor, blank: Tensor, generator: torch.Generator) -> Tensor:
        """Each float image (N, 3, H, W) through one random band of its own, for training."""
        width = images.shape[-1]
        start = torch.randint(width, (len(images),), generator=generator)
        seen = column_windows(width, self.band)[start].to(images.device)
        return torch.where(seen.view(-1, 1, 1, width), images, blank.to(images).view(3, 1, 1))

    def _windows(self, evidence: Tensor, patch: int) -> Tensor:
        """The bands that a patch can touch."""
        return column_windows(evidence.shape[1], self.band + patch - 1).to(evidence.device)
