"""The zero-shot head: a classifier made of class names, by the text tower of an encoder that learned from captions.

Each class's name is put into every template, and the text features of the prompts, normalized to length 1, are averaged
over the templates and normalized again: a row of W for each class. With the scale s of the pre-training,

    logits = s · W x        for normalized features x of an image

No image is trained on. Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021; the order of averaging and normalizing is open_clip's (``zero_shot_classifier.py``). The default, one
template, is BadEncoder's (``zero_shot.py``), which has "A traffic sign photo of a {}" for traffic signs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.encoders import Encoder
from sapper.encoders.text import TextTower
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples.texts import UNKNOWN, words

PROMPTS = 512
"""So many prompts are in the text tower at once."""


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Checked):
    """Classifies by class names alone, with the encoder's own text tower (Radford et al., ICML 2021).

    ``templates``: sentences with {} where the name of the class goes; several are averaged.
    """

    templates: tuple[str, ...] = ("a photo of a {}",)

    kind: ClassVar[Literal["zero_shot"]] = "zero_shot"
    version: ClassVar[int] = 1
    seeded: ClassVar[bool] = False
    source: ClassVar[str] = "Radford et al., ICML 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "signs": {"templates": ("a traffic sign photo of a {}",)},
    }
    layers: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if template.count("{}") != 1:
                what, remedy = f"{template!r} does not say once where the class goes", 'write {}, as "a photo of a {}"'
                raise SapperError(what, where="ZeroShot.templates", remedy=remedy)
        if not self.templates:
            raise SapperError("there is no template", where="ZeroShot.templates", remedy='say "a photo of a {}"')

    def build(self, encoder: Encoder, classes: tuple[str, ...], run: Run) -> nn.Module:
        """A module from normalized features (N, D) to logits (N, K), in ``eval`` mode; no randomness is used.

        Raises ``SapperError`` for an encoder without a text tower, and where it cannot tell the classes' names apart.
        """
        tower = encoder.text
        if tower is None:
            what = "a zero-shot classifier needs an encoder with a text tower, and this one has none"
            raise SapperError(what, where=encoder.card.architecture, remedy="pre-train with clip, or take another head")
        prompts = [[template.replace("{}", name) for template in self.templates] for name in classes]
        check_prompts(prompts, classes, tower)
        return FromTexts(averaged(prompts, tower), tower.scale).eval()


class FromTexts(nn.Module):
    """logits = scale · x · Wᵀ, with a row of W (K, D) for each class; nothing in it is trained."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * (features @ self.weight.T)


def averaged(prompts: Sequence[Sequence[str]], tower: TextTower) -> Tensor:
    """One normalized feature for each class, float32 (K, D), of its prompts; every class has as many."""
    texts = list(chain.from_iterable(prompts))
    features = torch.cat([tower.encode(texts[start : start + PROMPTS]) for start in range(0, len(texts), PROMPTS)])
    return F.normalize(features.unflatten(0, (len(prompts), -1)).mean(1), dim=1)


def check_prompts(prompts: Sequence[Sequence[str]], classes: tuple[str, ...], tower: TextTower) -> None:
    """Raises ``SapperError`` when the tower would cut a prompt off, or reads two classes as one or as nothing."""
    known, length = set(tower.card.vocabulary), tower.card.length
    where, remedy = "zero-shot head", "use words that the captions of the pre-training had"
    longest = max(chain.from_iterable(prompts), key=lambda prompt: len(words(prompt)))
    if len(words(longest)) > length:
        what = f"{longest!r} has {len(words(longest))} words, the text tower takes {length}"
        raise SapperError(what, where=where, remedy="take a shorter template")
    readings: dict[tuple[str, ...], str] = {}
    for name in classes:
        reading = tuple(word if word in known else UNKNOWN for word in words(name))
        if set(reading) <= {UNKNOWN}:
            raise SapperError(f"the text tower does not know the class {name!r}", where=where, remedy=remedy)
        if reading in readings:
            what = f"the text tower does not tell the classes {readings[reading]!r} and {name!r} apart"
            raise SapperError(what, where=where, remedy=remedy)
        readings[reading] = name
