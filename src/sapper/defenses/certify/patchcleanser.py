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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Certifier, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.masking import check_patches, check_side
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.downstream import Classifier
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Change, check_pixels, to_float
from sapper.triggers.covers import covering
from sapper.verdicts import Certified, threat


@dataclass(frozen=True, kw_only=True)
class PatchCleanser(Checked, Certifier):
    """Certifies any classifier by two rounds of masking, without training (Xiang et al., USENIX Security 2022).

    ``patch``: side of the largest patch to withstand, in pixels. ``masks``: how many there are along each axis at most.
    """

    patch: PositiveInt = 10
    masks: PositiveInt = 6

    kind: ClassVar[Literal["certify"]] = "certify"
    needs: ClassVar[frozenset[Need]] = frozenset()
    measures: ClassVar[tuple[OfAnswers, ...]] = CERTIFIED
    version: ClassVar[int] = 2
    uses_encoder: ClassVar[bool] = True
    source: ClassVar[str] = "Xiang, Mahloujifar, Mittal, USENIX Security 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, size: int) -> None:
        """Raises ``SapperError`` when its patch covers images of so many pixels."""
        check_side(self.patch, size, "patch")

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> "TwoRounds":
        """The classifier as it is, under masks."""
        defender.check([classifier], run)
        return self.guard(classifier, defender.blank)

    def guard(self, logits: Logits, blank: Tensor) -> "TwoRounds":
        """Any classifier under masks; masked pixels become ``blank``, float (3,)."""
        return TwoRounds(logits, blank, self.patch, self.masks)


@dataclass(frozen=True)
class TwoRounds:
    """A classifier, what masked pixels become, the patch to withstand, and how many masks an axis has at most."""

    logits: Logits
    blank: Tensor
    patch: int
    masks: int

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given.

        Only images whose first round is not unanimous take a second one.
        """
        check_pixels(images)
        masks = covering(images, self.patch, self.masks)
        first = self._answers(images, masks, run, "first masks (PatchCleanser)", change)
        unsure = (first != first[:, :1]).any(1).nonzero().squeeze(1)
        second = self._tables(images[unsure], masks, run, "second masks (PatchCleanser)", change)
        answers = first[:, 0].clone()
        answers[unsure] = resolve(second)
        return answers

    def certify(self, images: Tensor, labels: Tensor, patches: Sequence[int], run: Run) -> list[Certified]:
        """For each size of ``patches`` predictions and certificates, from M·(M + 1)/2 pairs of M masks."""
        check_pixels(images, labels)
        check_patches(patches, images)
        results = []
        for patch in patches:
            masks = covering(images, patch, self.masks)
            table = self._tables(images, masks, run, f"mask pairs for {patch}×{patch} (PatchCleanser)")
            certified = (table == labels.view(-1, 1, 1)).all(2).all(1)
            results.append(Certified(labels=resolve(table), certified=certified, threat=threat(patch)))
        return results

    def _tables(self, images: Tensor, masks: Tensor, run: Run, label: str, change: Change | None = None) -> Tensor:
        """Predictions under masks i and j together, int64 (N, M, M)."""
        first, second = torch.triu_indices(len(masks), len(masks))
        pairs = self._answers(images, masks[first] | masks[second], run, label, change)
        table = pairs.new_empty(len(images), len(masks), len(masks))
        table[:, first, second] = table[:, second, first] = pairs
        return table

    @torch.no_grad()
    def _answers(self, images: Tensor, masks: Tensor, run: Run, label: str, change: Change | None) -> Tensor:
        """Predictions of every image under every mask, int64 (N, M) on the CPU; 512 masked images at a time."""
        which = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(masks)))
        answers = [torch.empty(0, dtype=torch.int64)]
        masks, fill = masks.to(run.device), self.blank.to(run.device).view(3, 1, 1)
        with run.progress.bar(label, len(which)) as bar:
            for image, mask in (rows.unbind(1) for rows in which.split(512)):
                pixels = to_float(images[image].to(run.device))
                changed = pixels if change is None else change(pixels)
                covered = torch.where(masks[mask.to(run.device)].unsqueeze(1), fill, changed)
                with run.autocast():
                    answers.append(self.logits(covered).argmax(1).cpu())
                bar.advance(len(image))
        return torch.cat(answers).view(len(images), len(masks))


def resolve(table: Tensor) -> Tensor:
    """The two-round answer, int64 (N,), from ``table`` int64 (N, M, M): predictions under masks i and j together.

    The diagonal is the first round. The dissenter's answer counts whose row is constant; of several, the first.
    """
    first = table.diagonal(dim1=1, dim2=2)
    majority = first.mode(1).values
    believed = (table == first.unsqueeze(2)).all(2) & (first != majority.unsqueeze(1))
    dissenter = first.gather(1, believed.int().argmax(1, keepdim=True)).squeeze(1)
    return torch.where(believed.any(1), dissenter, majority)
