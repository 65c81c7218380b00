"""RAB: the mean of many classifiers, each trained on images with noise of its own, proves what poison cannot do.

Threat model: an attacker who changes the images of the task's training set, all together by an ℓ2 norm of less than R,
whatever they look like, and stamps the test image as it pleases. The labels and the number of images stay.

    D + ε_i      the training images with Gaussian noise of deviation σ, i = 1…n
    h_i          the head that is fitted to the encoder's features of them
    u_i          noise of deviation σ, the same for all test images, from a generator seeded with the SHA-256 of h_i
    q_c(x)       = mean_i softmax(h_i(f(x + u_i)))_c                       answer = arg max_c q_c
    R            = σ/2 · (Φ⁻¹(p_A) − Φ⁻¹(p_B))
    p_A, p_B     = q_y − t, max_{c ≠ y} q_c + t,     t = √(ln(m/α) / 2n)

As u_i depends on h_i alone, q is a function of the noised training set, and R is a bound for it (``smoothing``). t is
Hoeffding's: for two classes the two bounds are one event, m = 1; for K > 2 they are K, m = K. The answer on this test
image, with a trigger or without, is then what a training on D without that change would have given.

What it says nothing of: an encoder that was poisoned before. It is part of the training as it is, with its backdoor,
and a trigger of BadEncoder goes through every h_i. Nor does it cover changed labels, or rows that are added or left
out: BadNets changes labels, and a certificate then compares with the training set that has the changed labels, too.

Source: Weber, Xu, Karlaš, Zhang, Li, "RAB: Provable Robustness Against Backdoor Attacks", IEEE S&P 2023, and the
authors' ``utils.py`` and ``eval.py``: n = 1000, α = 0.001, radii of their CIFAR-10 runs; two classes only there. Ours
fits linear heads on the encoder where they train whole networks, and takes n in t for what it is (theirs is 1000,
however many models there are). σ is our choice.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.defenses.contracts import Need, Smoother
from sapper.defenses.defender import Defender
from sapper.defenses.masking import check_labels
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.defenses.smoothing import (
    SLACK,
    Gaussian,
    certain,
    check_radii,
    gaussian_radius,
    hoeffding,
    noised_heads,
)
from sapper.downstream import Classifier, Linear
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Change, at_once, check_pixels, to_float
from sapper.verdicts import Certified


@dataclass(frozen=True, kw_only=True)
class RAB(Checked, Smoother):
    """Certifies against poison of the task's training set by many heads on noised images (Weber et al., S&P 2023).

    ``sigma`` of the noise, ``models``: how many heads, ``alpha``: with which probability a certificate may be false.
    ``head``: fitted to the noised images, a ``linear`` one, or the ``owner``'s kind.
    """

    sigma: PositiveFloat = 0.5
    models: PositiveInt = 1000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    head: Literal["linear", "owner"] = "linear"

    kind: ClassVar[Literal["certify"]] = "certify"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels"})
    measures: ClassVar[tuple[OfAnswers, ...]] = CERTIFIED
    version: ClassVar[int] = 1
    uses_encoder: ClassVar[bool] = True
    source: ClassVar[str] = "Weber, Xu, Karlaš, Zhang, Li, IEEE S&P 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    covers_not: ClassVar[str] = (
        "poison of the encoder, which is taken as it is, with its backdoor; changed labels, and rows that are added or "
        "left out; larger changes of the training set"
    )

    @property
    def radii(self) -> tuple[float, ...]:
        """The authors' for CIFAR-10."""
        return 0.05, 0.1, 0.2, 0.5, 1.0

    @property
    def threat(self) -> str:
        """What it certifies against, in words."""
        return _threat("the radius", self.alpha)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_classes(2)

    def check(self, size: int) -> None:
        """Nothing to refuse: it takes images of every size."""

    def check_radii(self, radii: Sequence[float]) -> None:
        """Raises ``SapperError`` for a radius that there is not."""
        check_radii(radii)

    def check_classes(self, classes: int) -> None:
        """Raises ``SapperError`` for so few models that their bounds certify not even an answer all agree on."""
        least = next(count for count in range(1, sys.maxsize) if missed(count, classes, self.alpha) < 0.5)
        if self.models >= least:
            return
        what = f"{self.models} models can certify nothing about {classes} classes at an alpha of {self.alpha:g}"
        raise SapperError(what, where="models", remedy=f"take {least} or more, or a larger alpha")

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> "Ensemble":
        """Heads from noised training sets, in place of the classifier's own."""
        defender.check([classifier], run)
        self.check_classes(defender.classes)
        head = Linear() if self.head == "linear" else defender.head
        if head.kind != "fitted":
            what, remedy = "a head of this kind is not fitted to features", 'take head = "linear"'
            raise SapperError(what, where="rab.head", remedy=remedy)
        label = "heads from noised training sets (RAB)"
        made = noised_heads(defender, head, Gaussian(self.sigma), self.models, run.child("models"), label)
        return Ensemble(tuple(made), self.sigma, self.alpha)


@dataclass(frozen=True)
class Ensemble:
    """Classifiers whose mean confidence decides."""

    classifiers: Sequence[Classifier]
    sigma: float
    alpha: float

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given."""
        check_pixels(images)
        if len(images) == 0:
            return torch.empty(0, dtype=torch.int64)
        return self.confidences(images, run, change).argmax(1)

    def certify(self, images: Tensor, labels: Tensor, radii: Sequence[float], run: Run) -> list[Certified]:
        """For each radius predictions and certificates; the classifiers are asked once."""
        check_pixels(images, labels)
        check_radii(radii)
        means = self.confidences(images, run)
        check_labels(labels, means.shape[1])
        found = certified_radius(means, labels, len(self.classifiers), self.sigma, self.alpha)
        return [
            Certified(
                labels=means.argmax(1), certified=found > radius + SLACK, threat=_threat(f"{radius:g}", self.alpha)
            )
            for radius in radii
        ]

    @torch.no_grad()
    def confidences(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """q, float64 (N, K) on the CPU, of uint8 images (N, 3, H, W)."""
        shape, found = images.shape[1:], []
        noises = [hashed_noise(each.head, shape, self.sigma).to(run.device) for each in self.classifiers]
        with run.progress.bar("answers of all heads (RAB)", len(images)) as bar:
            for chunk in images.split(at_once(images, run.device)):
                pixels = to_float(chunk.to(run.device))
                changed, total = pixels if change is None else change(pixels), torch.zeros(())
                for classifier, noise in zip(self.classifiers, noises):
                    with run.autocast():
                        answers = classifier(changed + noise)
                    total = total + answers.double().softmax(1).cpu()
                found.append(total / len(self.classifiers))
                bar.advance(len(chunk))
        return torch.cat(found)


def missed(models: int, classes: int, alpha: float) -> float:
    """t, by how much a mean confidence of so many models may miss its expectation."""
    return hoeffding(models, alpha if classes == 2 else alpha / classes)


def certified_radius(means: Tensor, labels: Tensor, models: int, sigma: float, alpha: float) -> Tensor:
    """R for the true class, float64 (N,), from mean confidences float64 (N, K) and int64 labels (N,).

    0 or less where nothing is certified. K bounds hold together with probability 1 − ``alpha``; for K = 2 they are one.
    """
    off = missed(models, means.shape[1], alpha)
    lower = (means.gather(1, labels.unsqueeze(1)).squeeze(1) - off).clamp(0, 1)
    others = means.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) + off
    return gaussian_radius(lower, torch.minimum(others.clamp(0, 1), 1 - lower), sigma)


def hashed_noise(head: nn.Module, shape: torch.Size, sigma: float) -> Tensor:
    """Noise of deviation ``sigma`` and that shape, seeded with the SHA-256 of the head's weights, on the CPU."""
    sha = hashlib.sha256()
    for name, value in sorted(head.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().numpy().data)
    seed = int.from_bytes(sha.digest()[:7], "big")
    return sigma * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _threat(radius: str, alpha: float) -> str:
    change = Gaussian(1.0).within(radius)
    return f"{change} to the images of the task's training set, all together, labels unchanged; {certain(alpha)}"
