"""PatchGuard's robust masking: aggregate local evidence so that a patch, which spoils few places, cannot win.

A network of small receptive fields gives evidence u ≥ 0, (P places, K classes), for each image: its class scores at
each place. A patch changes u only inside of one window x of a known family of windows. The defense knows the family,
not x:

    S_c(w) = Σ_{i ∈ w} u_c(i)        G_c = Σ_i u_c(i)        m_c = max_w S_c(w)
    score_c = G_c − m_c  if  m_c > T · G_c,   else  G_c             prediction = arg max_c score_c

that is, each class loses its strongest window if that window holds more than the share T of its evidence.

Certificate. Let the patch put anything ≥ 0 into window x. With r_c = G_c − S_c(x), what is left outside:

    wrong class c:   score_c ≤ r_c / (1 − T)        (either x, which holds all that was added, is taken away,
                                                     or what was added is at most T of all)
    true class y:    score_y ≥ r_y − M             M = max_w Σ_{i ∈ w∖x} u_y(i)  over all windows if that exceeds T·r_y,
                                                    else over those that overlap x: only these can still go
    certified at x  ⇔  max_{c ≠ y} r_c / (1 − T)  <  r_y − M            certified  ⇔  at every x

The certificate at one x is a statement of its own. Proof: what the patch leaves in x has the sum A_c ≥ 0, so that
G_c = r_c + A_c. A wrong class: x is a window, m_c ≥ A_c. If the window of m_c is taken away, r_c + A_c − m_c ≤ r_c is
left; if not, A_c ≤ m_c ≤ T·(r_c + A_c), so G_c ≤ r_c / (1 − T). The true class: where the window w is taken away, it
loses Σ_{w∖x} u_y, and of A_y what lies in w, so it keeps r_y − Σ_{w∖x} u_y at least. A w apart from x holds what it
held before, and is taken away only if that exceeds T·G_y ≥ T·r_y. If no window exceeds it, w overlaps x.  ∎

So of one trigger that lies at the same place on every image, whatever it shows on each, at most the share of images
that are not certified there is lost (``ByPlace``). A patch at a place l touches some places of evidence; every x that
holds them all will do:

    certified at l  ⇔  certified at some x that holds all that a patch at l touches

Source: Xiang, Bhagoji, Sehwag, Mittal, "PatchGuard", USENIX Security 2021. Overlap is decided place by place, so that
windows that wrap around the edge of the image are treated as what they are; the authors' code forgets them, and then
certifies too much for T > 0 (``tests/test_masking.py`` has a counter-example). Ties never certify.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import Change, check_pixels
from sapper.triggers.covers import inside, rectangles
from sapper.verdicts import ByPlace, Certified, threat


def column_windows(width: int, size: int) -> Tensor:
    """Windows of ``size`` neighboring columns that wrap around, bool (width, width); one of all columns if they fit."""
    size = min(size, width)
    offsets = (torch.arange(width).unsqueeze(0) - torch.arange(width).unsqueeze(1)) % width
    return offsets < size


def square_windows(height: int, width: int, size: int) -> Tensor:
    """Square windows inside a map, bool ((height−s+1)·(width−s+1), height·width), s cut to the map's sides."""
    tall, wide = min(size, height), min(size, width)
    down = [(start, start + tall) for start in range(height - tall + 1)]
    across = [(start, start + wide) for start in range(width - wide + 1)]
    return rectangles((down, height), (across, width)).flatten(1)


def masked_scores(evidence: Tensor, windows: Tensor, share: float = 0.0) -> Tensor:
    """Each class's evidence (N, K) without its strongest window, where that holds more than ``share`` (T) of it.

    ``evidence`` float (N, P, K) ≥ 0; ``windows`` bool (n, P).
    """
    total = evidence.sum(1)
    strongest = _window_sums(evidence, windows).amax(1)
    return torch.where(strongest > share * total, total - strongest, total)


def robust_prediction(evidence: Tensor, windows: Tensor, share: float = 0.0) -> Tensor:
    """The classes, int64 (N,), of the largest masked scores; the first of equal ones."""
    return masked_scores(evidence, windows, share).argmax(1)


def certify(evidence: Tensor, windows: Tensor, labels: Tensor, share: float = 0.0, chunk: int = 64) -> Tensor:
    """Whether no change inside of any one window makes ``robust_prediction`` differ from ``labels``, bool (N,).

    All is as in ``certify_windows``.
    """
    return certify_windows(evidence, windows, labels, share, chunk).all(1)


def certify_windows(evidence: Tensor, windows: Tensor, labels: Tensor, share: float = 0.0, chunk: int = 64) -> Tensor:
    """Whether no change inside of each window makes ``robust_prediction`` differ from ``labels``, bool (N, n).

    Shapes as in ``masked_scores``; ``labels`` int64 (N,); 0 ≤ ``share`` < 1. ``chunk`` images at a time bound the
    memory.
    """
    parts = zip(evidence.split(chunk), labels.to(evidence.device).split(chunk))
    return torch.cat([_certify(part, windows.to(evidence.device), wanted, share) for part, wanted in parts])


def by_place(proven: Tensor, holds: Tensor, patch: int) -> ByPlace:
    """Certificates for what happens inside of windows as certificates for patches at places.

    ``proven`` bool (N, n): whether nothing inside of a window changes an image's answer. ``holds`` bool (H − p + 1,
    W − p + 1, n): which windows hold all that a patch of side p there touches, for each place at least one.
    """
    sets, group = holds.flatten(0, 1).unique(dim=0, return_inverse=True)
    assert bool(sets.any(1).all())
    certified = proven.float() @ sets.float().T > 0
    return ByPlace(patch=patch, certified=certified, group=group.view(holds.shape[:2]))


def patch_spans(side: int, patch: int) -> Tensor:
    """Where a patch can lie along an axis, bool (side − p + 1, side): the pixels that it covers from each start."""
    return inside([(start, start + patch) for start in range(side - patch + 1)], side)


class Evidence(Protocol):
    """Local evidence, float (N, P, K) ≥ 0, of uint8 images (N, 3, H, W), after ``change`` if given."""

    def __call__(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor: ...


@dataclass(frozen=True)
class RobustMasking:
    """A classifier by its local evidence, under robust masking against a patch of side ``patch``.

    ``windows``: from a patch's side to the windows of places that it can touch, bool (n, P). ``touched``: from a
    patch's side and the images' size to what it touches from each place, bool (H − p + 1, W − p + 1, P). ``share``: T.
    """

    evidence: Evidence
    windows: Callable[[int], Tensor]
    touched: Callable[[int, tuple[int, int]], Tensor]
    patch: int
    share: float

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given."""
        check_pixels(images)
        if len(images) == 0:
            return torch.empty(0, dtype=torch.int64)
        evidence = self.evidence(images, run, change)
        return robust_prediction(evidence, self.windows(self.patch).to(evidence.device), self.share).cpu()

    def certify(self, images: Tensor, labels: Tensor, patches: Sequence[int], run: Run) -> list[Certified]:
        """For each size of ``patches`` defended predictions and certificates; the evidence is computed once."""
        check_pixels(images, labels)
        check_patches(patches, images)
        evidence, results = self.evidence(images, run), []
        check_labels(labels, evidence.shape[2])
        for patch in patches:
            windows = self.windows(patch).to(evidence.device)
            answers = robust_prediction(evidence, windows, self.share).cpu()
            proven = certify_windows(evidence, windows, labels, self.share).cpu()
            touched = self.touched(patch, (images.shape[-2], images.shape[-1]))
            holds = touched.float() @ (~windows.cpu()).float().T == 0
            results.append(
                Certified(
                    labels=answers,
                    certified=proven.all(1),
                    threat=threat(patch),
                    by_place=by_place(proven, holds, patch),
                )
            )
        return results


def check_patches(patches: Sequence[int], images: Tensor) -> None:
    """Raises ``SapperError`` for a patch that has no pixel, or none of which leaves any of the images to see."""
    for patch in patches:
        if not 1 <= patch < min(images.shape[-2:]):
            what = f"a patch of {patch} pixels on images of {images.shape[-2]}×{images.shape[-1]}"
            raise SapperError(what, where="patches", remedy=f"choose it from 1 to {min(images.shape[-2:]) - 1}")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises ``SapperError`` for labels, int64 (N,), of classes that there are not."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        what = f"labels run from {int(labels.min())} to {int(labels.max())}, there are {classes} classes"
        raise SapperError(what, where="labels", remedy="give those of the classifier's own task")


def check_side(side: int, size: int, name: str) -> None:
    """Raises ``SapperError`` when what a parameter names, of that side, covers images of ``size`` pixels."""
    if side >= size:
        what = f"a {name} of {side} pixels covers images of {size}"
        raise SapperError(what, where=name, remedy=f"choose it below {size}")


def _certify(evidence: Tensor, windows: Tensor, labels: Tensor, share: float) -> Tensor:
    """``certify_windows`` of a few images."""
    left = evidence.sum(1, keepdim=True) - _window_sums(evidence, windows)  # r: (N, n, K), windows as the patch's
    wanted = labels.view(-1, 1, 1).expand(-1, left.shape[1], 1)
    ours = left.gather(2, wanted).squeeze(2)
    others = left.scatter(2, wanted, -torch.inf).amax(2) / (1 - share)
    true = evidence.gather(2, labels.view(-1, 1, 1).expand(-1, evidence.shape[1], 1)).squeeze(2)
    lost = _largest_loss(true, windows, share * ours)
    # A bound that rounding could turn around certifies nothing.
    slack = 1e-5 * evidence.sum(1).amax(1, keepdim=True)
    return ours - lost > others + slack


def _largest_loss(evidence: Tensor, windows: Tensor, allowed: Tensor) -> Tensor:
    """M for each image and patch window (N, n), from one class's evidence (N, P); ``allowed`` is T · r."""
    member = windows.to(evidence.dtype)
    remaining = (evidence.unsqueeze(1) * (1 - member)) @ member.T  # (N, patch window, masked window)
    overlap = (member @ member.T) > 0
    anywhere = remaining.amax(2)
    nearby = remaining.masked_fill(~overlap, -torch.inf).amax(2)
    return torch.where(anywhere > allowed, anywhere, nearby)


def _window_sums(evidence: Tensor, windows: Tensor) -> Tensor:
    """S: float (N, n, K)."""
    return windows.to(evidence.dtype) @ evidence
