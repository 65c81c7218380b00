"""PatchCleanser: certified predictions of any classifier by two rounds of masking.

Threat model: one patch of at most p×p pixels, anywhere in the image, different for each image, any content.

A set of masks M is R-covering when, wherever the patch lies, one of them covers all of it. Classify the image under
each mask. If all agree, that is the answer. If not, some first mask may have removed the patch: a dissenter's answer
is believed if it stays the same under every second mask; without such a dissenter the majority's answer stands.

Certificate. The prediction under every pair of masks is the true class y. Then under attack the mask that covers the
patch gives y, so that either all agree on y, or a dissenter from y meets, with that mask as the second, y and is not
believed, while y itself, if it dissents, is believed.

Masks of one axis: side n pixels, patch p, at most k masks: stride s = ⌈(n − p + 1) / k⌉, mask m = p + s − 1, at 0, s,
2s … up to n − m. Every patch position then lies wholly under one mask.

Source: Xiang, Mahloujifar, Mittal, "PatchCleanser", USENIX Security 2022; k = 6 and masked pixels of value 0 after the
normalization, as in the authors' code: the mean color of the encoder's training images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from sapper.defenses.certify.masking import rectangles
from sapper.errors import SapperError
from sapper.run import Run, Silent
from sapper.verdicts import Certified

Predict = Callable[[Tensor], Tensor]
"""Classes, int64 (N,), of float images (N, 3, H, W) in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class PatchCleanser:
    """Certifies any classifier by two rounds of masking, without training (Xiang et al., USENIX Security 2022).

    ``patch``: side of the largest patch to withstand, in pixels. ``masks``: how many there are along each axis at most.
    """

    patch: PositiveInt = 10
    masks: PositiveInt = 6

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Xiang, Mahloujifar, Mittal, USENIX Security 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def predict(self, images: Tensor, classify: Predict, color: Tensor, run: Run) -> Tensor:
        """The defended predictions, int64 (N,). ``color`` float (3,): what masked pixels are set to.

        Only images whose first round is not unanimous take a second one.
        """
        masks = self.masks_for(images)
        first = _answers(images, masks, classify, color, run, "first masks (PatchCleanser)")
        unsure = (first != first[:, :1]).any(1).nonzero().squeeze(1)
        answers, silent = first[:, 0].clone(), replace(run, progress=Silent())
        with run.progress.bar("second masks (PatchCleanser)", len(unsure)) as bar:
            for row in unsure.tolist():
                table = _answers(_covered(images[row : row + 1], masks, color), masks, classify, color, silent, "")
                answers[row] = resolve(table.unsqueeze(0))[0]
                bar.advance()
        return answers

    def certify(self, images: Tensor, labels: Tensor, classify: Predict, color: Tensor, run: Run) -> Certified:
        """Defended predictions and certificates, from the predictions under all M·(M + 1)/2 pairs of M masks."""
        masks = self.masks_for(images)
        first, second = torch.triu_indices(len(masks), len(masks))
        pairs = _answers(images, masks[first] | masks[second], classify, color, run, "mask pairs (PatchCleanser)")
        table = pairs.new_empty(len(images), len(masks), len(masks))
        table[:, first, second] = table[:, second, first] = pairs
        certified = (table == labels.view(-1, 1, 1)).all(2).all(1)
        return Certified(
            labels=resolve(table), certified=certified, threat=f"one {self.patch}×{self.patch} patch anywhere"
        )

    def masks_for(self, images: Tensor) -> Tensor:
        """The R-covering set for images of this size, bool (M, H, W)."""
        down, across = ((axis_masks(side, self.patch, self.masks), side) for side in images.shape[-2:])
        return rectangles(down, across)


def resolve(table: Tensor) -> Tensor:
    """The two-round answer, int64 (N,), from ``table`` int64 (N, M, M): predictions under masks i and j together.

    The diagonal is the first round. The dissenter's answer counts whose row is constant; of several, the first.
    """
    first = table.diagonal(dim1=1, dim2=2)
    majority = first.mode(1).values
    believed = (table == first.unsqueeze(2)).all(2) & (first != majority.unsqueeze(1))
    dissenter = first.gather(1, believed.int().argmax(1, keepdim=True)).squeeze(1)
    return torch.where(believed.any(1), dissenter, majority)


def axis_masks(side: int, patch: int, count: int) -> list[tuple[int, int]]:
    """Starts and ends of at most ``count`` masks along ``side`` pixels; any ``patch`` pixels in a row lie under one.

    Raises ``SapperError`` when the patch is larger than the side.
    """
    if patch > side:
        what, remedy = f"a patch of {patch} pixels does not fit an image of {side}", f"choose it at most {side}"
        raise SapperError(what, where="patch", remedy=remedy)
    stride = -(-(side - patch + 1) // count)
    mask = patch + stride - 1
    return [(min(start, side - mask), min(start, side - mask) + mask) for start in range(0, side - patch + 1, stride)]


def _answers(images: Tensor, masks: Tensor, classify: Predict, color: Tensor, run: Run, label: str) -> Tensor:
    """Predictions of every image under every mask, int64 (N, M); some 500 masked images at a time."""
    answers = []
    with run.progress.bar(label, len(images)) as bar:
        for chunk in images.split(max(1, 500 // len(masks))):
            answers.append(classify(_covered(chunk, masks, color)).view(len(chunk), len(masks)))
            bar.advance(len(chunk))
    return torch.cat(answers)


def _covered(images: Tensor, masks: Tensor, color: Tensor) -> Tensor:
    """Every image under every mask, one image's after another's, (N·M, 3, H, W)."""
    return torch.where(masks.unsqueeze(1), color.view(3, 1, 1), images.unsqueeze(1)).flatten(0, 1)
