"""Mask-BN: PatchGuard over a network of small receptive fields, trained in place of the encoder.

Threat model: one patch of at most p×p pixels, anywhere, different for each image, any content.

A network in the manner of BagNet gives class scores at every place of a map, each from a few pixels only: here from
r×r of them, r = 9, at every s-th pixel, s = 2. A patch touches at most ⌈(p + r − 1) / s⌉ places along each axis: all of
them lie in a window of the map, for which ``masking`` certifies. The scores s become local evidence
u = log(1 + exp s) ≥ 0.

Training takes away from the true class its strongest window before the mean ("provable adversarial training"), so that
the network learns to find evidence in many places:

    minimize  CE( (Σ_i u(i) − e_y · max_w Σ_{i ∈ w} u_y(i)) / P, y )

The encoder and its backdoor are not used: this is what an owner pays who gives both up.

Source: Xiang et al., "PatchGuard", USENIX Security 2021, and the authors' ``mask_bn.py`` and ``nets/bagnet.py``: the
BagNet of Brendel and Bethge, ICLR 2019, on CIFAR-10 images scaled up to 192 pixels, pre-trained on ImageNet, 20 epochs
of SGD, windows of 6 places, negative scores cut to 0 afterwards. Ours is small enough to be trained from scratch on
images of 32 pixels, with Adam and a rate that falls to zero; the training window is that of ``patch``. The smooth
evidence is ours, too: trained on scores as they are, a network may make all of them negative, since a window of
negative scores is then gladly lost, and nothing is left after the cut; trained on scores that are cut, they may die.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.defenses.contracts import Certifier, Need
from sapper.defenses.defender import Defender
from sapper.defenses.masking import RobustMasking, check_side, patch_spans, square_windows
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.downstream import Classifier
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Change, to_float
from sapper.training import Step, Terms, check_finite, train, warm_cosine

RECEPTIVE, STRIDE = 9, 2
"""r and s of ``Bag``."""


@dataclass(frozen=True, kw_only=True)
class PatchGuardBN(Checked, Certifier):
    """Certifies by a network of small receptive fields and robust masking (Xiang et al., USENIX Security 2021).

    ``patch``: side of the largest patch to withstand. ``share``: T, the part of a class's evidence that its strongest
    window must exceed to be taken away. ``width`` of the network's first layer; trained for ``epochs``.
    ``provable``: take the strongest window away in training, too.
    """

    patch: PositiveInt = 10
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    width: PositiveInt = 32
    epochs: PositiveInt = 20
    batch: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    provable: bool = True

    kind: ClassVar[Literal["certify"]] = "certify"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels"})
    measures: ClassVar[tuple[OfAnswers, ...]] = CERTIFIED
    version: ClassVar[int] = 4
    uses_encoder: ClassVar[bool] = False
    source: ClassVar[str] = "Xiang et al., USENIX Security 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, size: int) -> None:
        """Raises ``SapperError`` when its patch covers images of so many pixels."""
        check_side(self.patch, size, "patch")

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> RobustMasking:
        """A network of its own, trained on the defender's images."""
        return self.guard(self.fit(defender, run), defender.train.size)

    def guard(self, net: "Bag", size: tuple[int, int]) -> RobustMasking:
        """A network on images of that height and width under robust masking."""
        height, width = (-(-side // STRIDE) for side in size)

        def windows(patch: int) -> Tensor:
            return square_windows(height, width, window(patch))

        return RobustMasking(partial(_evidence, net), windows, touched, self.patch, self.share)

    def fit(self, defender: Defender, run: Run) -> "Bag":
        """The network, trained on the defender's images from scratch."""
        images, labels = defender.train.to(run.device), defender.train.targets().to(run.device)
        with run.seeded():
            encoder = defender.encoder
            net = Bag(self.width, defender.classes, encoder.mean, encoder.std).to(run.device)
            order = run.child("order").generator()

            def terms(step: Step) -> Terms:
                with run.autocast():
                    scores = net(images.batch(step.rows))
                return {"loss": self.loss(local_evidence(scores), labels[step.rows.to(run.device)])}

            train(
                net,
                terms,
                torch.optim.Adam(net.parameters(), lr=self.learning_rate, fused=True),
                lambda step: self.learning_rate * warm_cosine(step.epoch / self.epochs, 0.0),
                count=len(images),
                batch=self.batch,
                epochs=self.epochs,
                run=run,
                label="network of small receptive fields (Mask-BN)",
                order=lambda _epoch: order,
            )
        check_finite(net, "patchguard_bn")
        return net.eval().requires_grad_(False)

    def loss(self, evidence: Tensor, labels: Tensor) -> Tensor:
        """The training loss from evidence (N, K, h, w) ≥ 0 and int64 labels (N,)."""
        total = evidence.sum((2, 3))
        if self.provable:
            true = evidence[torch.arange(len(labels)), labels].unsqueeze(1)
            sides = [min(window(self.patch), side) for side in evidence.shape[2:]]
            strongest = (F.avg_pool2d(true, sides, stride=1) * sides[0] * sides[1]).amax((1, 2, 3))
            total = total - F.one_hot(labels, total.shape[1]) * strongest.unsqueeze(1)
        return F.cross_entropy(total / evidence[0, 0].numel(), labels)


def local_evidence(scores: Tensor) -> Tensor:
    """u of the scores s, float32 of the same shape, above 0."""
    return F.softplus(scores.float())


@torch.no_grad()
def _evidence(net: "Bag", images: Tensor, run: Run, change: Change | None = None) -> Tensor:
    """Evidence at every place, float (N, h·w, K) ≥ 0, of uint8 images (N, 3, H, W)."""
    maps = []
    with run.progress.bar("local evidence (Mask-BN)", len(images)) as bar:
        for chunk in images.split(256):
            pixels = to_float(chunk.to(run.device))
            with run.autocast():
                scores = net(pixels if change is None else change(pixels))
            maps.append(local_evidence(scores).flatten(2).transpose(1, 2))
            bar.advance(len(chunk))
    return torch.cat(maps)


class Bag(nn.Module):
    """Four 3×3 convolutions, the last of stride 2, then 1×1 only: scores (N, K, H/2, W/2), each from 9×9 pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, classes: int, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        wide = 4 * width
        self.body = nn.Sequential(
            *_layer(3, width, 3),
            *_layer(width, width, 3),
            *_layer(width, 2 * width, 3),
            *_layer(2 * width, wide, 3, stride=STRIDE),
            *_layer(wide, wide, 1),
            *_layer(wide, wide, 1),
            nn.Conv2d(wide, classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        normalized = (images - self.mean) / self.std
        scores: Tensor = self.body(normalized.contiguous(memory_format=torch.channels_last))
        return scores


def _layer(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def window(patch: int) -> int:
    """How many places along an axis a patch of that side can touch at most."""
    return -(-(patch + RECEPTIVE - 1) // STRIDE)


def touched(patch: int, size: tuple[int, int]) -> Tensor:
    """Places of the map that see a part of a patch, bool (H − p + 1, W − p + 1, h·w), by the patch's place."""
    rows, columns = (patch_spans(side, patch).float() @ _seen(side).float().T > 0 for side in size)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2)


def _seen(side: int) -> Tensor:
    """The pixels that each place of the map sees along an axis, bool (places, pixels): r around every s-th."""
    centers = torch.arange(0, side, STRIDE).unsqueeze(1)
    return (torch.arange(side) - centers).abs() <= RECEPTIVE // 2
