"""Randomized smoothing against backdoors: the majority of many answers, each under noise of its own.

Threat model, by ``smoothed``. ``input``: an attacker who holds the encoder, or the classifier, and adds a trigger to
the image: of a small ℓ2 norm, or of few pixels anywhere. ``training-set``: one who changes images of the task's
training set, too; then the changes of all of them and of the image together must be small.

With F(z) the share of draws of the noise under which class c comes out, and n draws,

    input         z is the image;                          c = arg max h(f(z + noise))
    training-set  z is all training images and the image;  c = arg max h_D(f(x + noise)), h_D fitted to f(D + noise)
    answer        arg max_c of the n draws
    certified     p > 1/2 by more than a change of that size can move it, p the lower bound of the true class's share

``smoothing`` has the bounds: Gaussian noise for ℓ2 norms, ablation of single pixels for numbers of pixels. The bound of
p is Clopper and Pearson's, of the true class; that class is known before anything is drawn, so no draws are needed to
guess it.

A backdoored classifier is smoothed as every other function, and the certificate holds for it: a trigger within the
radius does not change the answer. It says nothing of larger triggers, and published ones are much larger: a square of
10×10 pixels changes 100 pixels and has a norm of several, a certified radius is a few σ or a few pixels. Wang et al.
found it feasible and of little effect. For ``training-set``, the encoder is part of F: its own poison is not undone.

Source: Wang, Cao, Jia, Gong, "On Certifying Robustness against Backdoor Attacks via Randomized Smoothing", 2020 (arXiv
2002.11750), who smooth training and test together; the bounds are those of Cohen, Rosenfeld, Kolter, ICML 2019, and of
Levine, Feizi, AAAI 2020. Ours leaves labels alone, and fits heads on the encoder in place of whole networks. n, σ, α
and k are our choices: a bound from 1000 draws is 0.993 at most, a radius of 2.46 σ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Need, Smoother
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.masking import check_labels
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.defenses.smoothing import Ablation, Gaussian, Noise, certain, lower_bounds, noised_heads
from sapper.defenses.views import ThroughViews
from sapper.downstream import Classifier, Linear
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import Change, at_once, check_pixels, to_float
from sapper.verdicts import Certified


@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing(ThroughViews, Smoother):
    """Certifies by the majority under random noise, on the image or on all of the training, too (Wang et al., 2020).

    ``smoothed``: the ``input``, or ``training-set`` and input together. ``noise``: ``gaussian`` of deviation ``sigma``,
    or ``ablation``, which keeps a pixel with probability ``keep``. ``draws``: how many answers there are, and for
    ``training-set`` how many heads, linear ones. ``alpha``: with which probability a certificate may be false.
    ``training``, ``views``, ``epochs``, ``batch``, ``learning_rate``: how the classifier of a smoothed input learns to
    see noise; see ``ThroughViews``.
    """

    smoothed: Literal["input", "training-set"] = "input"
    noise: Literal["gaussian", "ablation"] = "gaussian"
    sigma: PositiveFloat = 0.25
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.05
    draws: PositiveInt = 1000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001

    kind: ClassVar[Literal["certify"]] = "certify"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels"})
    measures: ClassVar[tuple[OfAnswers, ...]] = CERTIFIED
    version: ClassVar[int] = 1
    uses_encoder: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ("scipy",)
    source: ClassVar[str] = "Wang, Cao, Jia, Gong, arXiv 2002.11750"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    covers_not: ClassVar[str] = (
        "larger triggers, and published ones are larger; whether there is a backdoor: the function is certified, not "
        "its honesty; for a smoothed training also changed labels, rows that are added or left out, and poison of the "
        "encoder"
    )

    @property
    def radii(self) -> tuple[float, ...]:
        """Radii that are worth asking for: parts of σ, or pixels."""
        if self.noise == "ablation":
            return 1.0, 2.0, 4.0, 8.0
        return self.sigma / 2, self.sigma, 2 * self.sigma

    @property
    def threat(self) -> str:
        """What it certifies against, in words."""
        return self._threat("the radius")

    def check(self, size: int) -> None:
        """Nothing to refuse: it takes images of every size."""

    def check_classes(self, classes: int) -> None:
        """Nothing to refuse: it takes any number of classes."""

    def check_radii(self, radii: Sequence[float]) -> None:
        """Raises ``SapperError`` for a radius that there is not."""
        self._noise(torch.zeros(3)).check(radii)

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> "Majority":
        """The classifier under noise, trained for it if that is wanted, or heads from noised training sets."""
        defender.check([classifier], run)
        noise = self._noise(defender.blank)
        if self.smoothed == "training-set":
            if self.training != "as-is":
                what = "every head is fitted to its own noise, so there is nothing to train on noise before"
                raise SapperError(what, where="randomized_smoothing.training", remedy="leave it out")
            label = "heads from noised training sets (randomized smoothing)"
            made = noised_heads(defender, Linear(), noise, self.draws, run.child("heads"), label)
            return self._majority(AsManyHeads(made), noise)
        return self.guard(self.learned(classifier, defender, noise, run, "randomized_smoothing"), defender.blank)

    def guard(self, logits: Logits, blank: Tensor) -> "Majority":
        """Any classifier with noise on its input, as it is; pixels that are not kept become ``blank``, float (3,)."""
        return self._majority(AsOne(logits, self.draws), self._noise(blank))

    def _majority(self, answers: "Answering", noise: Noise) -> "Majority":
        return Majority(answers, noise, self.alpha, self._threat)

    def _noise(self, blank: Tensor) -> Noise:
        return Gaussian(self.sigma) if self.noise == "gaussian" else Ablation(self.keep, blank)

    def _threat(self, radius: str) -> str:
        of = "the image" if self.smoothed == "input" else "all training images and the image together"
        return f"{self._noise(torch.zeros(3)).within(radius)} to {of}; {certain(self.alpha)}"


class Answering(Protocol):
    """``draws`` classifiers, or one that is asked so often."""

    @property
    def draws(self) -> int: ...

    def votes(self, images: Tensor, noise: Noise, generator: torch.Generator, run: Run) -> Tensor:
        """How many of the draws vote for each class, int64 (n, K), of float images (n, 3, H, W)."""
        ...


@dataclass(frozen=True)
class AsOne:
    """One classifier, asked under new noise so often."""

    logits: Logits
    draws: int

    def votes(self, images: Tensor, noise: Noise, generator: torch.Generator, run: Run) -> Tensor:
        """How many of the draws vote for each class; as many at once as are fast."""
        group, done, found = max(1, at_once(images) // len(images)), 0, []
        while done < self.draws:
            often = min(group, self.draws - done)
            found.append(_votes(self.logits, noise(images.repeat(often, 1, 1, 1), generator), run, often))
            done += often
        return torch.stack(found).sum(0)


@dataclass(frozen=True)
class AsManyHeads:
    """Classifiers from noised training sets; each is asked once, under new noise."""

    classifiers: Sequence[Classifier]

    @property
    def draws(self) -> int:
        """How many there are."""
        return len(self.classifiers)

    def votes(self, images: Tensor, noise: Noise, generator: torch.Generator, run: Run) -> Tensor:
        """How many of the classifiers vote for each class."""
        return torch.stack([_votes(each, noise(images, generator), run, 1) for each in self.classifiers]).sum(0)


def _votes(logits: Logits, images: Tensor, run: Run, often: int) -> Tensor:
    """Votes for each class, int64 (n, K), of float images (often·n, 3, H, W)."""
    with run.autocast():
        answers = logits(images)
    return F.one_hot(answers.argmax(1), answers.shape[1]).view(often, -1, answers.shape[1]).sum(0)


class Told(Protocol):
    """The threat of a radius, in words."""

    def __call__(self, radius: str) -> str: ...


@dataclass(frozen=True)
class Majority:
    """The most frequent answer under noise."""

    answers: Answering
    noise: Noise
    alpha: float
    told: Told

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given."""
        check_pixels(images)
        if len(images) == 0:
            return torch.empty(0, dtype=torch.int64)
        return self.votes(images, run, change).argmax(1)

    def certify(self, images: Tensor, labels: Tensor, radii: Sequence[float], run: Run) -> list[Certified]:
        """For each radius predictions and certificates; the votes are counted once."""
        check_pixels(images, labels)
        self.noise.check(radii)
        votes = self.votes(images, run)
        check_labels(labels, votes.shape[1])
        lower = lower_bounds(votes.gather(1, labels.unsqueeze(1)).squeeze(1), self.answers.draws, self.alpha)
        answers = votes.argmax(1)
        return [
            Certified(labels=answers, certified=self.noise.certified(lower, radius), threat=self.told(f"{radius:g}"))
            for radius in radii
        ]

    @torch.no_grad()
    def votes(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """How many draws answer with each class, int64 (N, K) on the CPU; 32 images at a time.

        ``run``'s seed makes the noise: the same noise for the same number of images.
        """
        generator, found = run.child("noise").generator(run.device), []
        with run.progress.bar("answers under noise (randomized smoothing)", len(images)) as bar:
            for chunk in images.split(32):
                pixels = to_float(chunk.to(run.device))
                changed = pixels if change is None else change(pixels)
                found.append(self.answers.votes(changed, self.noise, generator, run).cpu())
                bar.advance(len(chunk))
        return torch.cat(found)
