"""The Encoder: images in, features out, and nobody can feed it the wrong range."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sapper.encoders.names import Stem
from sapper.errors import SapperError, closest
from sapper.training import Curves


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an encoder knows about itself; kept in the metadata of its file.

    ``architecture``, ``width``, ``stem``: what ``build`` needs. ``input_size`` in pixels. ``mean``, ``std``: per
    channel, for images in [0, 1]. ``arguments``: in what the network differs from the architecture of that name, such
    as ``{"num_heads": 12}``. ``origin``: how it was made (method, parameters, data, seed).
    ``backdoored``: whether an attack of ours made it; marks a file, and no measurement reads it.
    """

    architecture: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    width: int = 64
    stem: Stem = "cifar"
    arguments: dict[str, Any] = field(default_factory=dict)
    backdoored: bool = False
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """The architecture, and in what the network differs from it: ``timm:vit_small_patch16_224, num_heads=12``."""
        return ", ".join([self.architecture, *(f"{name}={value}" for name, value in sorted(self.arguments.items()))])


class Encoder(nn.Module):
    """``encoder(images)``: float (N, 3, H, W) in [0, 1] to features float (N, D).

    Normalization is inside. ``card`` says where it comes from; ``feature_size`` is D.
    """

    modality = "image"
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, card: Card, feature_size: int):
        super().__init__()
        self.backbone = backbone
        self.card = card
        self.feature_size = feature_size
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        normalized = (images - self.mean) / self.std
        return self.backbone(normalized.contiguous(memory_format=torch.channels_last))

    def activations(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Outputs of the named inner modules ("backbone.layer3"), differentiable, shapes as they are inside.

        Raises ``SapperError`` for a name that the encoder does not have.
        """
        inside = dict(self.named_modules())
        kept: dict[str, Tensor] = {}
        handles = []
        try:
            for name in names:
                if name not in inside:
                    raise SapperError(f"no layer {name!r} inside", remedy=closest(name, list(inside)))
                handles.append(inside[name].register_forward_hook(_keep_as(name, kept)))
            self(images)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def marked(self, *, backdoored: bool, origin: dict[str, Any]) -> "Encoder":
        """This encoder with another card: who made it, and whether it now holds a backdoor."""
        self.card = replace(self.card, backdoored=backdoored, origin=origin)
        return self


def _keep_as(name: str, kept: dict[str, Tensor]) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept[name] = output

    return keep


@dataclass(frozen=True)
class Trained:
    """What a training gives back: the encoder, in ``eval`` mode, and its losses per epoch."""

    encoder: Encoder
    curves: Curves
