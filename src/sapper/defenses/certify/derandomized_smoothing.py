"""Derandomized smoothing: votes of a classifier that sees one band, or one block, of the image at a time.

Threat model: one patch of at most p×p pixels, anywhere, different for each image, any content.

There is a view for each place of the band (b neighboring columns) or of the block (b×b pixels); both wrap around the
image's edges, and everything else is blank. A view votes for every class to which the classifier gives a confidence of
at least θ, so for none or for several. With n_c votes for class c the answer is arg max_c n_c, the first of equal ones.

Certificate. A patch touches at most Δ views, Δ = b + p − 1 bands or (b + p − 1)² blocks, and with each it can take away
a vote for the true class y and give one to another. Certified, for every c ≠ y, if

    n_y − n_c > 2Δ,   or   n_y − n_c = 2Δ and y < c                                       (``rule = "counts"``)

Whatever a patch at place l does, the votes of the views that do not touch it stay. With n_c(l) of these, and Δ(l) views
that touch the place, it is enough that at every place

    n_y(l) − n_c(l) > Δ(l),   or   n_y(l) − n_c(l) = Δ(l) and y < c                       (``rule = "places"``)

which holds wherever the first rule does, and more often. Whatever the ``rule``, what no patch at one known place can
change is told by this one.

The classifier may be a backdoored one: the votes are those of a function, and a function is certified, not its honesty.
As patchguard_ds has the same views and other sums, the two can be compared; what the classifier learns is shared
(``views``).

Source: Levine, Feizi, "(De)Randomized Smoothing for Certifiable Defense against Patch Attacks", NeurIPS 2020, and the
authors' ``utils_band.py`` and ``utils_block.py``: the rule of counts. θ = 0.2 and bands of 4 of 32 columns as
PatchGuard's authors run it for CIFAR-10. The rule of places is ours. The authors' networks have six channels, the view
and one minus it, so that a blank is told from black, and are trained from scratch; ours keep the encoder's three, fill
with the mean color, and go on from the encoder's weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Certifier, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.masking import check_labels, check_patches, check_side, square_windows
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.defenses.views import ThroughViews, blocks, column_bands, confidences, random_part
from sapper.downstream import Classifier
from sapper.running import Run
from sapper.samples import Change, check_pixels
from sapper.verdicts import ByPlace, Certified, threat

Rule = Literal["counts", "places"]


@dataclass(frozen=True, kw_only=True)
class DerandomizedSmoothing(ThroughViews, Certifier):
    """Certifies by the votes of all bands or blocks of an image (Levine, Feizi, NeurIPS 2020).

    ``patch``: side of the largest patch to withstand. ``parts``: what is seen at a time, ``side`` columns of it, or a
    square of that side. ``threshold``: θ, the confidence from which on a view votes for a class. ``rule``: the
    certificate. ``training``, ``views``, ``epochs``, ``batch``, ``learning_rate``: see ``ThroughViews``.
    """

    patch: PositiveInt = 10
    parts: Literal["bands", "blocks"] = "bands"
    side: PositiveInt = 4
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.2
    rule: Rule = "counts"

    kind: ClassVar[Literal["certify"]] = "certify"
    needs: ClassVar[frozenset[Need]] = frozenset()
    measures: ClassVar[tuple[OfAnswers, ...]] = CERTIFIED
    version: ClassVar[int] = 2
    uses_encoder: ClassVar[bool] = True
    source: ClassVar[str] = "Levine, Feizi, NeurIPS 2020"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def check(self, size: int) -> None:
        """Raises ``SapperError`` when its patch or what it sees at a time covers images of so many pixels."""
        check_side(self.patch, size, "patch")
        check_side(self.side, size, "side")

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> "Voting":
        """The classifier seen through bands or blocks, trained for it if that is wanted."""
        self.check(min(defender.train.size))
        defender.check([classifier], run)
        view = random_part(self._seen(defender.train.size), defender.blank)
        learned = self.learned(classifier, defender, view, run, "derandomized_smoothing")
        return self.guard(learned, defender.blank, defender.train.size)

    def guard(self, logits: Logits, blank: Tensor, size: tuple[int, int]) -> "Voting":
        """A classifier of images of that height and width, as it is; around a view is ``blank``, float (3,)."""
        return Voting(logits, blank, self._seen(size), self.patch, self.threshold, self.rule)

    def _seen(self, size: tuple[int, int]) -> Tensor:
        """What each view shows, bool (V, H, W)."""
        return (column_bands if self.parts == "bands" else blocks)(*size, self.side)


@dataclass(frozen=True)
class Voting:
    """A classifier by the votes of views.

    ``seen``: what each shows, bool (V, H, W); ``blank``: what the rest becomes, float (3,). ``patch`` to withstand.
    """

    logits: Logits
    blank: Tensor
    seen: Tensor
    patch: int
    threshold: float
    rule: Rule

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given."""
        check_pixels(images)
        if len(images) == 0:
            return torch.empty(0, dtype=torch.int64)
        return winners(self.votes(images, run, change))

    def certify(self, images: Tensor, labels: Tensor, patches: Sequence[int], run: Run) -> list[Certified]:
        """For each size of ``patches`` defended predictions and certificates; the votes are counted once."""
        check_pixels(images, labels)
        check_patches(patches, images)
        votes = self.votes(images, run)
        check_labels(labels, votes.shape[2])
        answers = winners(votes)
        return [self._certified(votes, answers, labels, patch) for patch in patches]

    def _certified(self, votes: Tensor, answers: Tensor, labels: Tensor, patch: int) -> Certified:
        """For one size of patch; places where a patch touches the same views are one group."""
        kinds, group = self.touched(patch).unique(dim=0, return_inverse=True)
        there, (height, width) = at_places(votes, kinds, labels), self.seen.shape[1:]
        places = ByPlace(patch=patch, certified=there, group=group.view(height - patch + 1, width - patch + 1))
        anywhere = there.all(1) if self.rule == "places" else certify(votes, kinds, labels, self.rule)
        return Certified(labels=answers, certified=anywhere, threat=threat(patch), by_place=places)

    def votes(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Which view votes for which class, bool (N, V, K) on the CPU."""
        label = "votes (derandomized smoothing)"
        return (confidences(self.logits, self.seen, self.blank, images, run, label, change) >= self.threshold).cpu()

    def touched(self, patch: int) -> Tensor:
        """Which views a patch touches at each place, bool (L, V)."""
        height, width = self.seen.shape[1:]
        places = square_windows(height, width, patch)
        return places.float() @ self.seen.flatten(1).float().T > 0


def winners(votes: Tensor) -> Tensor:
    """The classes of most votes, int64 (N,), from ``votes`` bool (N, V, K); the first of equal ones."""
    return votes.sum(1).argmax(1)


def certify(votes: Tensor, touched: Tensor, labels: Tensor, rule: Rule) -> Tensor:
    """Whether no change of the votes of the views of any one place makes ``winners`` differ from ``labels``, bool (N,).

    ``votes`` bool (N, V, K); ``touched`` bool (L, V): the views of each place; ``labels`` int64 (N,).
    """
    if rule == "places":
        return at_places(votes, touched, labels).all(1)
    most = int(touched.sum(1).amax())
    return _ahead(votes.sum(1), labels, torch.tensor(2 * most))


def at_places(votes: Tensor, touched: Tensor, labels: Tensor, chunk: int = 64) -> Tensor:
    """The same for the views of each place by itself, bool (N, L); ``chunk`` images at a time bound the memory."""
    free, size = (~touched).double(), touched.sum(1)  # sums of counts are exact
    proven = []
    for some, wanted in zip(votes.split(chunk), labels.split(chunk)):
        left = (free @ some.double()).long()  # (n, L, K)
        proven.append(_ahead(left, wanted.unsqueeze(1).expand(-1, len(size)), size))
    return torch.cat(proven)


def _ahead(counts: Tensor, labels: Tensor, lead: Tensor) -> Tensor:
    """Whether the label has so many votes more than every other class, bool (…); counts int64 (…, K), labels (…).

    A lead of exactly that many counts where the label comes before the other class, for ties are its then.
    """
    own = counts.gather(-1, labels.unsqueeze(-1))
    numbers = torch.arange(counts.shape[-1])
    needed = lead.unsqueeze(-1) + (numbers < labels.unsqueeze(-1)).long()
    return ((own - counts >= needed) | (numbers == labels.unsqueeze(-1))).all(-1)
