"""Interval bounds for patches: a small network, trained in place of the encoder on the worst that a patch can do.

Threat model: one patch of at most p×p pixels, anywhere, different for each image, any content.

For a patch at place l, every value under it may be anything in [0, 1], all others are the image's own. A layer takes an
interval with middle m and radius r, for every value, to one that holds all it can give out:

    linear, convolution    m' = W m + b,   r' = |W| r
    ReLU                   [max(0, m − r), max(0, m + r)]

and the last layer, taken together with the difference of two classes, gives a lower bound of each margin

    margin_c(l) = (w_y − w_c)·m + b_y − b_c − |w_y − w_c|·r            margin_c = min_l margin_c(l)

    certified   ⇔  margin_c > 0  for every c ≠ y, over all places, or at one that is known
    minimize    CE( −margin, y )                                        margin_y = 0

in training over all places, or over random ones of each image. There the interval grows from the image to [0, 1]: at
first it is x ± ε, cut to [0, 1], with ε from 0 to 1.

The encoder and its backdoor are not used: this is what an owner pays who gives both up. It works for small networks;
nothing of a ResNet's outputs is left by such bounds.

Source: Chiang, Ni, Abdelkader, Zhu, Studer, Goldstein, "Certified Defenses for Adversarial Patches", ICLR 2020, and the
authors' ``train.py``, ``bound_layers.py`` and ``model_defs.py``: the multilayer perceptron and the network of five
convolutions, ten random places, 200 epochs of Adam with 0.001, a batch of 256; ε is 0 for 5 % of the epochs and 1 after
65 %, then the rate is halved every 5 %. Theirs keeps the epoch of the best certified test accuracy and shifts and
mirrors the images; ours keeps the last, and takes the images as they are. Theirs may also pool neighboring places, or
let a network choose them; ours does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as again

from sapper.defenses.contracts import Certifier, Need
from sapper.defenses.defender import Defender
from sapper.defenses.masking import check_labels, check_patches, check_side
from sapper.defenses.measures import CERTIFIED, OfAnswers
from sapper.downstream import Classifier
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Change, check_pixels, in_memory, to_float
from sapper.training import Step, Terms, check_finite, train
from sapper.verdicts import ByPlace, Certified, threat

Interval = tuple[Tensor, Tensor]
"""Middle and radius, of the same shape; the radius is not negative."""

START, FULL, HALVED = 0.05, 0.65, 0.05
"""Until which share of the epochs ε is 0, from which on it is 1, and after which the rate is halved again and again."""

SLACK = 1e-4
"""A margin of less than that share of the largest one could come from rounding."""


@dataclass(frozen=True, kw_only=True)
class IBP(Checked, Certifier):
    """Certifies by interval bounds of a small network, trained on the worst of a patch (Chiang et al., ICLR 2020).

    ``patch``: side of the largest patch to withstand. ``network``: ``mlp``, one hidden layer of 255, or ``cnn``, five
    convolutions of 4·``width`` and 8·``width`` channels and a hidden layer of 32·``width``. ``places``: how many random
    ones each image has in a step, or ``all``. Trained for ``epochs``.
    """

    patch: PositiveInt = 5
    network: Literal["mlp", "cnn"] = "cnn"
    width: PositiveInt = 16
    places: PositiveInt | Literal["all"] = 10
    epochs: PositiveInt = 200
    batch: PositiveInt = 256
    learning_rate: PositiveFloat = 1e-3

    kind: ClassVar[Literal["certify"]] = "certify"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels"})
    measures: ClassVar[tuple[OfAnswers, ...]] = CERTIFIED
    version: ClassVar[int] = 3
    uses_encoder: ClassVar[bool] = False
    source: ClassVar[str] = "Chiang et al., ICLR 2020"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def check(self, size: int) -> None:
        """Raises ``SapperError`` when its patch covers images of so many pixels."""
        check_side(self.patch, size, "patch")

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> "Bounded":
        """A network of its own, trained on the defender's images."""
        self.check(min(defender.train.size))
        return self.guard(self.fit(defender, run))

    def guard(self, net: nn.Sequential) -> "Bounded":
        """A network of linear layers, convolutions, ReLU and flattening, in [0, 1]; the last layer is linear."""
        return Bounded(net, self.patch)

    def fit(self, defender: Defender, run: Run) -> nn.Sequential:
        """The network, trained on the defender's images from scratch."""
        images, labels = defender.train.to(run.device), defender.train.targets().to(run.device)
        encoder = defender.encoder
        with run.seeded():
            net = network(self.network, self.width, defender.train.size, defender.classes, encoder.mean, encoder.std)
            net = net.to(run.device)
            order, dice = (run.child(name).generator() for name in ("order", "places"))

            def terms(step: Step) -> Terms:
                pixels, wanted = images.batch(step.rows), labels[step.rows.to(run.device)]
                corners = self._corners(len(pixels), defender.train.size, dice).to(run.device)
                least = least_margins(net, pixels, corners, wanted, self.patch, growth(step.done))
                return {"loss": F.cross_entropy(-least, wanted)}

            train(
                net,
                terms,
                torch.optim.Adam(net.parameters(), lr=self.learning_rate, fused=True),
                lambda step: self.learning_rate * 0.5 ** int(max(0.0, step.done - FULL) / HALVED),
                count=len(images),
                batch=self.batch,
                epochs=self.epochs,
                run=run,
                label="network with interval bounds (IBP)",
                order=lambda _epoch: order,
            )
        check_finite(net, "ibp")
        return net.eval().requires_grad_(False)

    def _corners(self, count: int, size: tuple[int, int], dice: torch.Generator) -> Tensor:
        """The places of the patch in a step, int64 (count, L, 2): random ones of each image, or all."""
        if self.places == "all":
            return all_corners(size, self.patch).expand(count, -1, -1)
        down, across = (torch.randint(side - self.patch + 1, (count, self.places), generator=dice) for side in size)
        return torch.stack([down, across], 2)


@dataclass(frozen=True)
class Bounded:
    """A network and the patch to withstand."""

    net: nn.Sequential
    patch: int

    @torch.no_grad()
    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given.

        In float32 whatever the run's format: the bounds are those of this function.
        """
        check_pixels(images)
        answers = [torch.empty(0, dtype=torch.int64)]
        for chunk in images.split(512):
            pixels = to_float(chunk.to(run.device))
            answers.append(self.net(pixels if change is None else change(pixels)).argmax(1).cpu())
        return torch.cat(answers)

    def certify(self, images: Tensor, labels: Tensor, patches: Sequence[int], run: Run) -> list[Certified]:
        """For each size of ``patches`` predictions and certificates, from the bounds at all places."""
        check_pixels(images, labels)
        check_patches(patches, images)
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        check_labels(labels, last.out_features)
        answers, results = self.predict(images, run), []
        for patch in patches:
            there = self._proven(images, labels, patch, run)
            group = torch.arange(there.shape[1]).view(*(side - patch + 1 for side in images.shape[-2:]))
            places = ByPlace(patch=patch, certified=there, group=group)
            results.append(Certified(labels=answers, certified=there.all(1), threat=threat(patch), by_place=places))
        return results

    @torch.no_grad()
    def _proven(self, images: Tensor, labels: Tensor, patch: int, run: Run) -> Tensor:
        """Whether all margins are above 0 at each place, bool (N, L) on the CPU."""
        height, width = images.shape[-2:]
        corners = all_corners((height, width), patch).to(run.device)
        budget = in_memory(images)  # two maps of each are in the network
        count, found = max(1, budget // len(corners)), [torch.empty(0, len(corners), dtype=torch.bool)]
        with run.progress.bar(f"bounds for {patch}×{patch} (IBP)", len(images)) as bar:
            for chunk, wanted in zip(images.split(count), labels.split(count)):
                pixels, own = to_float(chunk.to(run.device)), wanted.to(run.device)
                least = [
                    margins(self.net, under_patch(pixels, some.expand(len(chunk), -1, -1), patch), own)
                    for some in corners.split(budget)
                ]
                found.append(proven(torch.cat(least, 1), own).cpu())
                bar.advance(len(chunk))
        return torch.cat(found)


def growth(done: float) -> float:
    """ε after that share of the training."""
    return min(1.0, max(0.0, (done - START) / (FULL - START)))


def all_corners(size: tuple[int, int], patch: int) -> Tensor:
    """The upper left corners of all places of a patch, int64 (L, 2): row and column."""
    return torch.cartesian_prod(*(torch.arange(side - patch + 1) for side in size)).view(-1, 2)


def under_patch(images: Tensor, corners: Tensor, patch: int, reach: float = 1.0) -> Interval:
    """What images (N, 3, H, W) in [0, 1] may be with a patch at each of ``corners``, int64 (N, L, 2): (N, L, 3, H, W).

    Under the patch values may change by ``reach`` within [0, 1].
    """
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    down, across = corners[..., :1], corners[..., 1:]
    high = (rows >= down) & (rows < down + patch)
    wide = (columns >= across) & (columns < across + patch)
    covered = (high.unsqueeze(-1) & wide.unsqueeze(-2)).unsqueeze(2)
    lower, upper = (images - reach).clamp_min(0).unsqueeze(1), (images + reach).clamp_max(1).unsqueeze(1)
    radius = torch.where(covered, (upper - lower) / 2, 0.0)
    return torch.where(covered, (upper + lower) / 2, images.unsqueeze(1)), radius


def bounds(net: nn.Sequential, interval: Interval) -> Interval:
    """What comes out of the layers of ``net`` for values in the interval, (M, …); at least all that can."""
    middle, radius = interval
    for layer in net:
        match layer:
            case nn.ReLU():
                lower, upper = (middle - radius).clamp_min(0), (middle + radius).clamp_min(0)
                middle, radius = (lower + upper) / 2, (upper - lower) / 2
            case nn.Linear():
                middle, radius = layer(middle), F.linear(radius, layer.weight.abs())
            case nn.Conv2d():
                radius = F.conv2d(
                    radius, layer.weight.abs(), None, layer.stride, layer.padding, layer.dilation, layer.groups
                )
                middle = layer(middle)
            case Normalize():
                middle, radius = layer(middle), radius / layer.std
            case nn.Flatten():
                middle, radius = layer(middle), layer(radius)
            case _:
                raise AssertionError(f"no bounds for {type(layer).__name__}")
    return middle, radius


def margins(net: nn.Sequential, interval: Interval, labels: Tensor) -> Tensor:
    """Lower bounds of the label's logit over every class's, float (N, L, K), 0 for the label itself.

    ``interval`` (N, L, 3, H, W); ``labels`` int64 (N,).
    """
    count, places = interval[0].shape[:2]
    last = net[-1]
    assert isinstance(last, nn.Linear)
    middle, radius = (each.unflatten(0, (count, places)) for each in bounds(net[:-1], _flat(interval)))
    difference = last.weight[labels].unsqueeze(1) - last.weight  # (N, K, D)
    offset = (last.bias[labels].unsqueeze(1) - last.bias).unsqueeze(1)
    return middle @ difference.mT - radius @ difference.abs().mT + offset


def least_margins(
    net: nn.Sequential, images: Tensor, corners: Tensor, labels: Tensor, patch: int, reach: float
) -> Tensor:
    """The least margin over the places of each image, float (N, K), with gradients; ``corners`` int64 (N, L, 2).

    A few images at a time: what their gradients need is computed again when they are wanted, or it would not fit.
    """

    def some(pixels: Tensor, places: Tensor, own: Tensor) -> Tensor:
        return margins(net, under_patch(pixels, places, patch, reach), own).amin(1)

    count = max(1, in_memory(images) // corners.shape[1])
    if len(images) <= count:
        return some(images, corners, labels)
    parts = zip(images.split(count), corners.split(count), labels.split(count))
    return torch.cat([again(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def _flat(interval: Interval) -> Interval:
    return interval[0].flatten(0, 1), interval[1].flatten(0, 1)


def proven(least: Tensor, labels: Tensor) -> Tensor:
    """Whether the bounds of margins (N, L, K) are clearly above 0 for all other classes, at each place, bool (N, L)."""
    others = least.scatter(2, labels.view(-1, 1, 1).expand(-1, least.shape[1], 1), torch.inf)
    return others.amin(2) > SLACK * least.abs().amax((1, 2)).unsqueeze(1)


class Normalize(nn.Module):
    """Images less the mean of each channel, over its deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def network(
    kind: Literal["mlp", "cnn"], width: int, size: tuple[int, int], classes: int, mean: Tensor, std: Tensor
) -> nn.Sequential:
    """The untrained network for images of that height and width; draws from torch's global generator."""
    first = Normalize(mean, std)
    if kind == "mlp":
        return nn.Sequential(
            first, nn.Flatten(), nn.Linear(3 * size[0] * size[1], 255), nn.ReLU(), nn.Linear(255, classes)
        )
    layers: list[nn.Module] = [first]
    for inputs, outputs, stride in ((3, 4, 1), (4, 4, 1), (4, 8, 2), (8, 8, 1), (8, 8, 1)):
        known = inputs if inputs == 3 else inputs * width
        layers += [nn.Conv2d(known, outputs * width, 3, stride=stride, padding=1), nn.ReLU()]
    places = -(-size[0] // 2) * -(-size[1] // 2)
    hidden = nn.Linear(8 * width * places, 32 * width)
    return nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(32 * width, classes))
