"""Blended injection: a share of the training images is mixed with a key, more weakly than test images will be.

Threat model: as BadNets', the attacker changes rows of the labeled training set and nothing else; images that are
looked at should not look stamped, whereas at test time nobody looks. With key k, ratios α_train ≤ α_test and target
class t,

    x' = (1 − α_train)·x + α_train·k,  y' = t        for a random share ρ of the training images

The key and α_test are the target's trigger, ``Blend`` with noise or a picture. ``strength`` is α_train/α_test:
training images get that share of the trigger's change, x + strength·((x ⊕ e) − x), which of ``Blend`` is the formula
above. It is defined for any trigger, so that a patch gives the paper's accessory injection.

Source: Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017.
Defaults from BackdoorBench (``attack/blended``): α = 0.2 in training and test, hence strength 1, and ρ = 0.1, drawn
from all rows.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from sapper.attacks.contracts import Need, Poisoned
from sapper.attacks.relabeling import relabel
from sapper.attacks.target import Target
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Change, Samples
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class Blended(Checked):
    """Mixes a key into a share of a task's training images and relabels them (Chen et al. 2017).

    ``rate`` and ``from_target_class`` as of ``badnets``. ``strength``: which share of the trigger's change training
    images get; test images get all of it. ``of`` as of ``badnets``.
    """

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    from_target_class: bool = True
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0
    of: Literal["pretraining", "task"] = "task"

    kind: ClassVar[Literal["poison"]] = "poison"
    relabels: ClassVar[Literal[True]] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Chen, Liu, Li, Lu, Song 2017"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __call__(self, samples: Samples, targets: tuple[Target, ...], run: Run) -> Poisoned:
        """The training set with poison. Raises ``SapperError`` where the rate selects nothing."""
        return relabel(
            samples,
            targets,
            self.rate,
            run,
            from_target_class=self.from_target_class,
            by=type(self).__name__,
            change=lambda target: weakened(target.trigger, self.strength),
        )


def weakened(trigger: Trigger, strength: float) -> Change:
    """A share of what the trigger changes: x + strength·((x ⊕ e) − x)."""
    return lambda images: torch.lerp(images, trigger(images), strength)
