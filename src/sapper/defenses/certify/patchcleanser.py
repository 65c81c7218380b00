"""PatchCleanser: certified predictions of any classifier by two rounds of masking.

Threat model: one patch of at most p×p pixels, anywhere in the image, different for each image, any content.

A set of masks M is R-covering when, wherever the patch lies, one of them covers all of it. Classify the image under
each mask. If all agree, that is the answer. If not, some first mask may have removed the patch: a dissenter's answer
is believed if it stays the same under every second mask; without such a dissenter the majority's answer stands.

Certificate. Let T[a, b] be the answer under masks a and b, T[a, a] that under a alone, y the true class.

    certified at place l  ⇔  some mask a that covers all of l has  T[a, b] = y  for every b ∈ M
    certified             ⇔  T[a, b] = y  for all a, b ∈ M              (every mask is the only one to cover some place)

Proof: mask a hides whatever a patch at l shows, so that under attack T[a, ·] = y still. If all first answers agree, it
is on y. If most are y, a dissenter b answers otherwise, but T[b, a] = y: it is not believed. If most are not y, then a
dissents and is believed; of the other dissenters only those that answer y are, too, again because of T[b, a] = y.  ∎

So of one trigger that lies at the same place on every image, whatever it shows on each, at most the share of images
that are not certified there is lost (``ByPlace``); the worst place is known from the same answers.

Only rows of T that can matter are computed: those of dissenters, and those whose first answer is y.

A classifier that never saw masks hardly bears them. The authors train with two random cut-outs; here it may be trained
on random pairs of M (``views``),

    minimize  mean_x CE( h(f(x under masks a and b)), y )        over head h, or over encoder f and head h

Masks of one axis: side n pixels, patch p, at most k masks: stride s = ⌈(n − p + 1) / k⌉, mask m = p + s − 1, at 0, s,
2s … up to n − m. Every patch position then lies wholly under one mask.

Source: Xiang, Mahloujifar, Mittal, "PatchCleanser", USENIX Security 2022; k = 6 and masked pixels of value 0 after the
normalization, as in the authors' code: the mean color of the encoder's training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Certifier, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.masking import by_place, check_patches, check_side
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.defenses.views import ThroughViews, random_part
from sapper.downstream import Classifier
from sapper.running import Run
from sapper.samples import Change, at_once, check_pixels, to_float
from sapper.triggers.covers import covering
from sapper.verdicts import Certified, threat


@dataclass(frozen=True, kw_only=True)
class PatchCleanser(ThroughViews, Certifier):
    """Certifies any classifier by two rounds of masking (Xiang et al., USENIX Security 2022).

    ``patch``: side of the largest patch to withstand, in pixels. ``masks``: how many there are along each axis at most.
    ``training``: the classifier ``as-is``; with a new ``head``, trained on every training image under ``views`` random
    pairs of masks; or with such a head and then the ``encoder`` and the head fine-tuned under pairs, for ``epochs``.
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
        """The classifier under masks, trained for them if that is wanted."""
        defender.check([classifier], run)
        view = random_part(~pairs(covering(defender.train.images, self.patch, self.masks)), defender.blank)
        return self.guard(self.learned(classifier, defender, view, run, "patchcleanser"), defender.blank)

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

        Only dissenters take a second round.
        """
        check_pixels(images)
        masks = covering(images, self.patch, self.masks)
        first = self._first(images, masks, run, "first masks (PatchCleanser)", change)
        wanted = dissenters(first)
        return resolve(self._table(images, masks, first, wanted, run, "second masks (PatchCleanser)", change))

    def certify(self, images: Tensor, labels: Tensor, patches: Sequence[int], run: Run) -> list[Certified]:
        """For each size of ``patches`` predictions and certificates, from at most M·(M + 1)/2 pairs of M masks."""
        check_pixels(images, labels)
        check_patches(patches, images)
        labels, results = labels.cpu(), []
        for patch in patches:
            masks, of = covering(images, patch, self.masks), f"for {patch}×{patch} (PatchCleanser)"
            first = self._first(images, masks, run, f"first masks {of}")
            wanted = dissenters(first) | (first == labels.unsqueeze(1))
            table = self._table(images, masks, first, wanted, run, f"second masks {of}")
            proven = (table == labels.view(-1, 1, 1)).all(2)
            places = by_place(proven, holding(masks, patch), patch)
            results.append(
                Certified(labels=resolve(table), certified=proven.all(1), threat=threat(patch), by_place=places)
            )
        return results

    def _first(self, images: Tensor, masks: Tensor, run: Run, label: str, change: Change | None = None) -> Tensor:
        """Predictions of every image under every mask, int64 (N, M)."""
        which = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(masks)))
        return self._answers(images, masks, which, run, label, change).view(len(images), len(masks))

    def _table(
        self,
        images: Tensor,
        masks: Tensor,
        first: Tensor,
        wanted: Tensor,
        run: Run,
        label: str,
        change: Change | None = None,
    ) -> Tensor:
        """Predictions under masks i and j together, int64 (N, M, M), where row i or row j is ``wanted``; else −1.

        ``first``: the diagonal, int64 (N, M). ``wanted`` bool (N, M).
        """
        table = torch.diag_embed(first + 1) - 1
        one, other = torch.triu_indices(len(masks), len(masks), 1)
        which = (wanted[:, one] | wanted[:, other]).nonzero()
        image, pair = which.unbind(1)
        answers = self._answers(images, masks[one] | masks[other], which, run, label, change)
        table[image, one[pair], other[pair]] = table[image, other[pair], one[pair]] = answers
        return table

    @torch.no_grad()
    def _answers(
        self, images: Tensor, masks: Tensor, which: Tensor, run: Run, label: str, change: Change | None
    ) -> Tensor:
        """Predictions, int64 (n,) on the CPU, for ``which`` (n, 2): an image and its mask."""
        answers = [torch.empty(0, dtype=torch.int64)]
        masks, fill = masks.to(run.device), self.blank.to(run.device).view(3, 1, 1)
        together = at_once(images, run.device)
        with run.progress.bar(label, len(which)) as bar:
            for image, mask in (rows.unbind(1) for rows in which.split(together) if len(rows)):
                pixels = to_float(images[image].to(run.device))
                changed = pixels if change is None else change(pixels)
                covered = torch.where(masks[mask.to(run.device)].unsqueeze(1), fill, changed)
                with run.autocast():
                    answers.append(self.logits(covered).argmax(1).cpu())
                bar.advance(len(image))
        return torch.cat(answers)


def dissenters(first: Tensor) -> Tensor:
    """Which first answers are not the majority's, bool (N, M), from int64 (N, M)."""
    return first != first.mode(1, keepdim=True).values


def resolve(table: Tensor) -> Tensor:
    """The two-round answer, int64 (N,), from ``table`` int64 (N, M, M): predictions under masks i and j together.

    The diagonal is the first round. The dissenter's answer counts whose row is constant; of several, the first. Other
    rows are not looked at.
    """
    first = table.diagonal(dim1=1, dim2=2)
    believed = (table == first.unsqueeze(2)).all(2) & dissenters(first)
    dissenter = first.gather(1, believed.int().argmax(1, keepdim=True)).squeeze(1)
    return torch.where(believed.any(1), dissenter, first.mode(1).values)


def holding(masks: Tensor, patch: int) -> Tensor:
    """Which masks (M, H, W) cover all of a patch, bool (H − p + 1, W − p + 1, M), by the patch's place."""
    shown = F.max_pool2d((~masks).float().unsqueeze(1), patch, stride=1).squeeze(1)
    return shown.permute(1, 2, 0) == 0


def pairs(masks: Tensor) -> Tensor:
    """What every two masks of (M, H, W) cover together, a mask with itself among them, bool (M·(M + 1)/2, H, W)."""
    one, other = torch.triu_indices(len(masks), len(masks))
    return masks[one] | masks[other]
