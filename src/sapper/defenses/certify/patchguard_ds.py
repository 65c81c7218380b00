"""Mask-DS: PatchGuard over column bands ("derandomized smoothing"), for any classifier.

Threat model: one patch of at most p×p pixels, anywhere, different for each image, any content.

The classifier sees one band of b neighboring columns at a time (bands wrap around the image's edge); everything else is
blank. Its softmax confidences in the W bands are local evidence u ∈ [0, 1]^{W×K}, of which a patch changes at most the
b + p − 1 neighboring bands that touch it. ``masking`` aggregates and certifies it.

A classifier that never saw bands is not certified for much. So there are three ways to come by one: as the victim built
it; with a new head, trained on bands through the encoder as it is; and with the encoder fine-tuned on bands, too,

    minimize  mean_x CE( h(f(x through one random band)), y )        over head h, or over encoder f and head h

Source: Xiang et al., "PatchGuard", USENIX Security 2021, over Levine, Feizi, "(De)Randomized Smoothing for Certifiable
Defense against Patch Attacks", NeurIPS 2020. Bands of 4 of 32 columns, T = 0, as in the authors' ``mask_ds.py`` for
CIFAR-10. There the network has six channels, the band and one minus it, so that a blank is told from black, and is
trained from scratch for 200 epochs of SGD; ours keeps the encoder's three, fills with the mean color, and goes on from
the encoder's weights, with Adam and a rate that falls to zero.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Certifier, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.masking import RobustMasking, check_side, column_windows
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.downstream import Classifier, extract
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Change, to_float
from sapper.training import Step, Terms, check_finite, train, warm_cosine


@dataclass(frozen=True, kw_only=True)
class PatchGuardDS(Checked, Certifier):
    """Certifies by column bands and robust masking (Xiang et al., USENIX Security 2021).

    ``patch``: side of the largest patch to withstand. ``band``: columns seen at a time. ``share``: T, the part of a
    class's evidence that its strongest window must exceed to be taken away. ``training``: the classifier ``as-is``;
    with a new ``head``, trained on ``views`` random bands of every training image; or with such a head and then the
    ``encoder`` and the head fine-tuned on bands, for ``epochs``.
    """

    patch: PositiveInt = 10
    band: PositiveInt = 4
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    training: Literal["as-is", "head", "encoder"] = "as-is"
    views: PositiveInt = 8
    epochs: PositiveInt = 20
    batch: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3

    kind: ClassVar[Literal["certify"]] = "certify"
    needs: ClassVar[frozenset[Need]] = frozenset()
    measures: ClassVar[tuple[OfAnswers, ...]] = CERTIFIED
    version: ClassVar[int] = 2
    uses_encoder: ClassVar[bool] = True
    source: ClassVar[str] = "Xiang et al., USENIX Security 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def check(self, size: int) -> None:
        """Raises ``SapperError`` when its patch or its band covers images of so many pixels."""
        check_side(self.patch, size, "patch")
        check_side(self.band, size, "band")

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> RobustMasking:
        """The classifier seen through bands, trained for it if that is wanted."""
        defender.check([classifier], run)
        if self.band >= (width := defender.train.size[1]):
            what, remedy = f"a band of {self.band} columns covers images of {width}", f"choose it below {width}"
            raise SapperError(what, where="patchguard_ds.band", remedy=remedy)
        if self.training != "as-is":
            classifier = self._with_head(defender, run)
        if self.training == "encoder":
            classifier = self._fine_tuned(classifier, defender, run)
        return self.guard(classifier, defender.blank, defender.train.size[1])

    def guard(self, logits: Logits, blank: Tensor, width: int) -> RobustMasking:
        """A classifier of images ``width`` pixels wide through bands, as it is; around a band is ``blank``, (3,)."""

        def windows(patch: int) -> Tensor:
            return column_windows(width, self.band + patch - 1)

        return RobustMasking(partial(self._evidence, logits, blank), windows, self.patch, self.share)

    @torch.no_grad()
    def _evidence(
        self, logits: Logits, blank: Tensor, images: Tensor, run: Run, change: Change | None = None
    ) -> Tensor:
        """Confidences in every band, float (N, W, K), of uint8 ``images`` (N, 3, H, W)."""
        width = images.shape[-1]
        seen = column_windows(width, self.band).to(run.device).view(width, 1, 1, width)
        fill = blank.to(run.device).view(3, 1, 1)
        parts = []
        with run.progress.bar("bands (Mask-DS)", len(images)) as bar:
            for chunk in images.split(max(1, 512 // width)):
                pixels = to_float(chunk.to(run.device))
                views = torch.where(seen, (pixels if change is None else change(pixels)).unsqueeze(1), fill)
                with run.autocast():
                    answers = logits(views.flatten(0, 1))
                parts.append(answers.float().softmax(1).view(len(chunk), width, -1))
                bar.advance(len(chunk))
        return torch.cat(parts)

    def bands(self, images: Tensor, blank: Tensor, generator: torch.Generator) -> Tensor:
        """Each float image (N, 3, H, W) through one random band of its own, for training."""
        width = images.shape[-1]
        start = torch.randint(width, (len(images),), generator=generator)
        seen = column_windows(width, self.band)[start].to(images.device)
        return torch.where(seen.view(-1, 1, 1, width), images, blank.to(images).view(3, 1, 1))

    def _with_head(self, defender: Defender, run: Run) -> Classifier:
        """The encoder as it is, with a head of the owner's kind that has seen bands."""
        if defender.head.kind != "fitted":
            what, remedy = "a head of this kind cannot be fitted to bands", "make an mlp or linear head primary"
            raise SapperError(what, where="patchguard_ds.training", remedy=remedy)
        train, generator = defender.train, run.child("bands").generator()
        banded = partial(self.bands, blank=defender.blank, generator=generator)
        features = [extract(defender.encoder, train, run, banded) for _ in range(self.views)]
        labels = train.targets().repeat(self.views)
        head = defender.head.fit(torch.cat(features), labels, defender.classes, run.child("head"))
        return Classifier(defender.encoder, head).eval()

    def _fine_tuned(self, classifier: Classifier, defender: Defender, run: Run) -> Classifier:
        """A copy of the classifier, all of it trained on random bands; the owner's encoder stays as it is."""
        if not any(True for _ in classifier.head.parameters()):
            what, remedy = "a head without weights knows the encoder as it was", "make an mlp or linear head primary"
            raise SapperError(what, where="patchguard_ds.training", remedy=remedy)
        tuned = deepcopy(classifier).requires_grad_(True).train()
        images, labels = defender.train.to(run.device), defender.train.targets().to(run.device)
        dice = run.child("tuning")
        with dice.seeded():
            generator = dice.child("order").generator()

            def terms(step: Step) -> Terms:
                views = self.bands(images.batch(step.rows), defender.blank, generator)
                with run.autocast():
                    answers = tuned(views)
                return {"cross-entropy": F.cross_entropy(answers.float(), labels[step.rows.to(run.device)])}

            train(
                tuned,
                terms,
                torch.optim.Adam(tuned.parameters(), lr=self.learning_rate, fused=True),
                lambda step: self.learning_rate * warm_cosine(step.done, 0.0),
                count=len(images),
                batch=self.batch,
                epochs=self.epochs,
                run=run,
                label="training on bands (Mask-DS)",
                order=lambda _epoch: generator,
            )
        check_finite(tuned, "patchguard_ds")
        return tuned.eval().requires_grad_(False)
