"""The Encoder: images in, features out, and nobody can feed it the wrong range."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sapper.augment import to_grayscale
from sapper.encoders.names import SAME, Stem
from sapper.encoders.text import TextCard, TextTower
from sapper.errors import SapperError
from sapper.samples import InputSpec, PixelSpec
from sapper.training import Curves
from sapper.triggers import Trigger

PROJECTION = "projection"
"""Among a card's arguments: the features of the linear map behind the network."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an encoder knows about itself; kept in the metadata of its file.

    ``architecture``, ``width``, ``stem``: what ``build`` needs. ``input``: what it takes. ``arguments``: in what the
    network differs from the architecture of that name, such as ``{"num_heads": 12}``. ``origin``: how it was made
    (method, parameters, data, seed). ``backdoored``: whether an attack of ours made it; marks a file, and no
    measurement reads it. ``text``: the text tower in the same file, where there is one.
    """

    architecture: str
    input: InputSpec
    width: int = 64
    stem: Stem = "cifar"
    arguments: dict[str, Any] = field(default_factory=dict)
    backdoored: bool = False
    origin: dict[str, Any] = field(default_factory=dict)
    text: TextCard | None = None

    @property
    def pixels(self) -> PixelSpec:
        """The images that it takes. Raises ``SapperError`` for an encoder of something else."""
        if not isinstance(self.input, PixelSpec):
            what, remedy = f"this encoder takes {self.input.modality}, images are needed", "name an encoder of images"
            raise SapperError(what, where=self.architecture, remedy=remedy)
        return self.input

    @property
    def input_size(self) -> int:
        """Height and width of the images that it takes, in pixels."""
        return self.pixels.size

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of the normalization, per channel, for images in [0, 1]."""
        return self.pixels.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Of the normalization, per channel, for images in [0, 1]."""
        return self.pixels.std

    @property
    def network(self) -> str:
        """The architecture, and in what the network differs from it: ``timm:vit_small_patch16_224, num_heads=12``."""
        return ", ".join([self.architecture, *(f"{name}={value}" for name, value in sorted(self.arguments.items()))])

    @property
    def kind(self) -> str:
        """The network whatever library calls it so: ``resnet50`` for ``timm:resnet50``, too."""
        same = SAME.fullmatch(self.architecture)
        return same[1] if same and not self.arguments and self.stem == "imagenet" else self.network


@dataclass(frozen=True, eq=False)
class Head:
    """The linear classifier that an encoder's file has behind it: logits = ``weight`` · features + ``bias``.

    ``weight`` float (K, D), ``bias`` float (K,). ``name`` of the weight in the file; ``classes``: what they are called,
    empty where nobody says.
    """

    weight: Tensor
    bias: Tensor
    name: str
    classes: tuple[str, ...] = ()

    def __call__(self, features: Tensor) -> Tensor:
        """Logits, float (N, K), of features (N, D)."""
        features = features.float()
        return features @ self.weight.to(features).T + self.bias.to(features)

    def called(self, label: int) -> str:
        """A class in words: ``stop``, or ``class 14 of 43`` where nobody names them."""
        return self.classes[label] if self.classes else f"class {label} of {len(self.bias)}"


class Encoder(nn.Module):
    """``encoder(images)``: float (N, 3, H, W) in [0, 1] to features float (N, D).

    Normalization is inside. ``card`` says where it comes from; ``feature_size`` is D. One that was trained with
    captions also has a linear ``projection`` into the space that images and texts share (``project``), and the ``text``
    tower, which ``forward`` does not use (``join``).

    ``gray``: whether it turns images gray first, as its user may want; not kept in its file.
    ``head``: the classifier that was found behind it in a stranger's file; ``forward`` does not use it, and it is no
    part of its state.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, card: Card, feature_size: int):
        super().__init__()
        self.backbone = backbone
        self.card = card
        self.feature_size = feature_size
        self.projection: nn.Module = nn.Identity()
        self.text: TextTower | None = None
        self.gray = False
        self.head: Head | None = None
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.gray:
            images = to_grayscale(images)  # one channel, which the next line makes three of
        normalized = (images - self.mean) / self.std
        return self.projection(self.backbone(normalized.contiguous(memory_format=torch.channels_last)))

    def project(self, features: int) -> None:
        """Give it a fresh projection to so many features, drawn from torch's global generator."""
        self.projection = nn.Linear(self.feature_size, features, bias=False).to(self.mean.device)
        self.feature_size = features
        self.card = replace(self.card, arguments=self.card.arguments | {PROJECTION: features})

    def join(self, text: TextTower) -> None:
        """Keep a text tower with it, whose features are in the same space."""
        self.text = text.to(self.mean.device)
        self.card = replace(self.card, text=text.card)

    def marked(self, *, backdoored: bool, origin: dict[str, Any]) -> "Encoder":
        """This encoder with another card: who made it, and whether it now holds a backdoor."""
        self.card = replace(self.card, backdoored=backdoored, origin=origin)
        return self


@dataclass(frozen=True)
class Trained:
    """What a training gives back: the encoder, in ``eval`` mode, and its losses per epoch.

    ``triggers``: of an attack that makes its own, by the names of the targets; others are left as they were.
    """

    encoder: Encoder
    curves: Curves
    triggers: Mapping[str, Trigger] = field(default_factory=dict)
