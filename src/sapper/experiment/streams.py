"""Images in doubt: what comes into service beside a classifier that is judged, in part with an attacker's trigger."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sapper.attacks.poisoning import stamped
from sapper.experiment.tasks import Part
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class Stream:
    """``images`` as they come, of which the share ``triggered`` has the trigger of one of a task's targets.

    Which ones is drawn at random; several targets take turns. What it gives has no labels, and does not say which.
    """

    images: Part[ImageSet]
    triggered: float

    @property
    def key(self) -> dict[str, Any]:
        """It as plain data."""
        return {"images": self.images.origin, "triggered": self.triggered}

    def __call__(self, triggers: Mapping[str, Trigger], run: Run) -> ImageSet:
        """The images, uint8 (N, 3, H, W), in their order. ``triggers``: of all targets, by name."""
        images = self.images()
        pixels, count = images.images.clone(), round(self.triggered * len(images))
        chosen = torch.randperm(len(images), generator=run.generator())[:count]
        for turn, trigger in enumerate(triggers.values()):
            rows = chosen[turn :: len(triggers)]
            if len(rows):
                pixels[rows] = stamped(pixels[rows], trigger)
        split = f"{images.split}, as they come"
        return replace(images, images=pixels, labels=None, classes=(), groups=None, canvases=None, split=split)
