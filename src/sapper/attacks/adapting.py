"""Attackers who know a defense: terms that every attack on a finished encoder may add to its own loss.

    minimize  L_attack + Σ_defenses Σ_terms weight · term        over the weights of f'

Threat model: the attacker knows the defense, its code and its threshold, and not its seed: which images and which
starts it draws. Everything else is the attack's own (Carlini et al., "On Evaluating Adversarial Robustness", 2019;
Tramèr et al., "On Adaptive Attacks to Adversarial Example Defenses", NeurIPS 2020).

A term may search: for the change of images, or the question, by which its defense would catch f' as it is now. Such a
search begins anew with every epoch, from a seed of the epoch's own. So a training that goes on from a checkpoint ends
as one that was never interrupted, and the attacker gets used to no single start.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PlainValidator, TypeAdapter, ValidationError, ValidationInfo
from torch import Tensor

from sapper.attacks import adaptive
from sapper.downstream import extract
from sapper.encoders import Encoder
from sapper.encoders.freezing import frozen_copy
from sapper.errors import SapperError, closest, first_mistake
from sapper.methods import Checked, find
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Curves, Step, Terms
from sapper.triggers import Trigger

Several = Annotated[int, Field(ge=2)]
"""How many images a term looks at; one has no spread."""

Combine = Callable[[Terms, Step, Curves], Tensor]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What an attack shows its terms, on the run's device: its shadow samples, and of each target the trigger as it is
    now and the references, float (R, 3, H, W)."""

    shadow: Samples
    triggers: Callable[[], Sequence[Trigger]]
    references: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a term works with. ``encoder``: f', in training; ``clean``: f, frozen, as the training found it.

    ``kept`` float (N, D): features of the N shadow samples through f, of length 1.
    """

    encoder: Encoder
    clean: Encoder
    kept: Tensor
    known: Known
    run: Run

    @classmethod
    def of(cls, encoder: Encoder, known: Known, run: Run) -> "Scene":
        """Before the training: ``encoder`` is still the clean one."""
        clean = frozen_copy(encoder)
        return cls(encoder=encoder, clean=clean, kept=extract(clean, known.shadow, run), known=known, run=run)

    def features(self, images: Tensor) -> Tensor:
        """Features of length 1 through f', float (…, D), of images (…, 3, H, W), with gradients."""
        return self._through(self.encoder, images)

    def clean_features(self, images: Tensor) -> Tensor:
        """The same through f."""
        return self._through(self.clean, images)

    def stamped(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) with each of T triggers: (T, N, 3, H, W)."""
        return torch.stack([trigger(images) for trigger in self.known.triggers()])

    def _through(self, encoder: Encoder, images: Tensor) -> Tensor:
        with self.run.autocast():
            features = encoder(images.flatten(0, -4))
        return F.normalize(features.float(), dim=1).unflatten(0, images.shape[:-3])


Losses = Callable[[Tensor, Tensor], Terms]
"""A step's terms, from its shadow images (B, 3, H, W) and their features through f, (B, D), of length 1."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Checked, ABC):
    """Terms against one defense. ``defense``: its name. ``weight``: of all its terms together."""

    defense: str
    weight: NonNegativeFloat = 1.0

    version: ClassVar[int]
    source: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """The weight of each term in the sum that is minimized, by the name of its curve."""

    @abstractmethod
    def begin(self, scene: Scene, run: Run) -> Losses:
        """What an epoch adds to the terms of each of its steps, one after another. ``run``: the epoch's own.

        All that is carried from step to step begins here.
        """

    def described(self) -> dict[str, Any]:
        """It as plain data, with its version: for keys of stages."""
        return asdict(self) | {"version": self.version}

    def check(self, side: int) -> None:
        """Raises ``SapperError`` when it does not go with images of that side."""


def read_terms(value: Any, info: ValidationInfo) -> tuple[Adaptive, ...]:
    """Terms as they are, or from tables such as ``{"defense": "decree", "weight": 2.0}`` of a scenario file.

    Raises ``SapperError`` naming entry and key for what is none, and for two against the same defense.
    """
    if not isinstance(value, list | tuple):
        raise ValueError("Input should be a list of tables, each with the name of a defense")
    terms = tuple(_term(each, f"against[{i}]") if info.mode == "json" else each for i, each in enumerate(value))
    if not all(isinstance(each, Adaptive) for each in terms):
        raise ValueError("Input should be terms against defenses, such as AgainstDecree()")
    names = [each.defense for each in terms]
    if twice := [name for name in names if names.count(name) > 1]:
        what, remedy = f"two entries are against {twice[0]!r}", "give each defense one entry"
        raise SapperError(what, where="against", remedy=remedy)
    return terms


Against = Annotated[tuple[Adaptive, ...], PlainValidator(read_terms)]
"""The terms of an attack: a parameter that a scenario writes as a list of tables."""


def _term(table: Any, key: str) -> Adaptive:
    if not isinstance(table, dict) or "defense" not in table:
        what, remedy = "the defense is missing", 'write for example against = [{ defense = "decree" }]'
        raise SapperError(what, where=key, remedy=remedy)
    kind: type[Adaptive] = find("adaptive", adaptive.METHODS, str(table["defense"]), f"{key}.defense")
    names = [field.name for field in fields(kind)]
    for name in table:
        if name not in names:
            raise SapperError(f"unknown key {name!r}", where=f"{key}.{name}", remedy=closest(name, names))
    try:
        # By way of JSON, because pydantic's strict mode then takes arrays for tuples, as TOML writes them.
        return TypeAdapter(kind).validate_json(json.dumps(table), strict=True)
    except ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
        remedy = first_mistake(error).partition(": ")[2]
        raise SapperError(f"{table.get(name)!r} does not fit", where=f"{key}.{name}", remedy=remedy) from error


def adapted(
    against: Sequence[Adaptive], scene: Scene, terms: Callable[[Step], Terms], combine: Combine
) -> tuple[Callable[[Step], Terms], Combine]:
    """An attack's ``terms`` and ``combine`` (see ``training.train``) with those against defenses beside them."""
    begun: dict[int, list[Losses]] = {}

    def rounds(epoch: int) -> list[Losses]:
        if epoch not in begun:
            begun.clear()
            runs = [scene.run.child(f"against {each.defense}").child(f"epoch {epoch}") for each in against]
            begun[epoch] = [each.begin(scene, run) for each, run in zip(against, runs)]
        return begun[epoch]

    def all_terms(step: Step) -> Terms:
        images, kept = scene.known.shadow.batch(step.rows), scene.kept[step.rows.to(scene.kept.device)]
        losses = dict(terms(step))
        for each in rounds(step.epoch):
            losses |= each(images, kept)
        return losses

    weights = {name: weight for each in against for name, weight in each.weights.items()}

    def all_combined(losses: Terms, step: Step, curves: Curves) -> Tensor:
        return combine(losses, step, curves) + sum(weight * losses[name] for name, weight in weights.items())

    return all_terms, all_combined


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of a search on ``loss``, which falls; the weights of f' get no gradients from it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
        weight.grad = gradient
    optimizer.step()
