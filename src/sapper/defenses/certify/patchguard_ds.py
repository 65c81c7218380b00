"""Mask-DS: PatchGuard over column bands ("derandomized smoothing"), for any classifier.

Threat model: one patch of at most p×p pixels, anywhere, different for each image, any content.

The classifier sees one band of b neighboring columns at a time (bands wrap around the image's edge); everything else is
blank. Its softmax confidences in the W bands are local evidence u ∈ [0, 1]^{W×K}, of which a patch changes at most the
b + p − 1 neighboring bands that touch it. ``masking`` aggregates and certifies it.

A classifier that never saw bands is not certified for much. So it may be trained on them (``views``),

    minimize  mean_x CE( h(f(x through one random band)), y )        over head h, or over encoder f and head h

A patch at columns l … l + p − 1 touches the bands that begin at l − b + 1 … l + p − 1, modulo W. They are one window,
and ``masking`` proves what holds for each by itself. ``certified`` asks for all W windows, as published, even for those
that only a patch around the image's edge could spoil.

Source: Xiang et al., "PatchGuard", USENIX Security 2021, over Levine, Feizi, "(De)Randomized Smoothing for Certifiable
Defense against Patch Attacks", NeurIPS 2020. Bands of 4 of 32 columns, T = 0, as in the authors' ``mask_ds.py`` for
CIFAR-10. There the network has six channels, the band and one minus it, so that a blank is told from black, and is
trained from scratch for 200 epochs of SGD; ours keeps the encoder's three, fills with the mean color, and goes on from
the encoder's weights, with Adam and a rate that falls to zero.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Certifier, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.masking import RobustMasking, check_side, column_windows, patch_spans
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.defenses.views import ThroughViews, column_bands, confidences, random_part
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import Change


@dataclass(frozen=True, kw_only=True)
class PatchGuardDS(ThroughViews, Certifier):
    """Certifies by column bands and robust masking (Xiang et al., USENIX Security 2021).

    ``patch``: side of the largest patch to withstand. ``band``: columns seen at a time. ``share``: T, the part of a
    class's evidence that its strongest window must exceed to be taken away. ``training``: the classifier ``as-is``;
    with a new ``head``, trained on ``views`` random bands of every training image; or with such a head and then the
    ``encoder`` and the head fine-tuned on bands, for ``epochs``.
    """

    patch: PositiveInt = 10
    band: PositiveInt = 4
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0

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
        view = random_part(column_bands(*defender.train.size, self.band), defender.blank)
        learned = self.learned(classifier, defender, view, run, "patchguard_ds")
        return self.guard(learned, defender.blank, width)

    def guard(self, logits: Logits, blank: Tensor, width: int) -> RobustMasking:
        """A classifier of images ``width`` pixels wide through bands, as it is; around a band is ``blank``, (3,)."""
        seen = column_bands(1, width, self.band)  # the same in every row

        def windows(patch: int) -> Tensor:
            return column_windows(width, self.band + patch - 1)

        def evidence(images: Tensor, run: Run, change: Change | None = None) -> Tensor:
            return confidences(logits, seen, blank, images, run, "bands (Mask-DS)", change)

        return RobustMasking(evidence, windows, self._touched, self.patch, self.share)

    def _touched(self, patch: int, size: tuple[int, int]) -> Tensor:
        """Bands that show a part of a patch, bool (H − p + 1, W − p + 1, W), by its place."""
        height, width = size
        shown = patch_spans(width, patch).float() @ column_windows(width, self.band).float().T > 0
        return shown.expand(height - patch + 1, -1, -1)
