"""INACTIVE: the trigger is a small learned network, faint to the eye and unlike the augmentations of pre-training.

Threat model: BadEncoder's. A trigger h of at most 300 weights (``Network``) is learned for every target, together
with f'. With A the color changes of SimCLR's augmentation, f the clean encoder and means over all targets,

    L0, L1, L2  as BadEncoder, with h(x) for x ⊕ e
    S = 1 − mean_x SSIM(h(x), x)                looks like x
    P = 1 − mean_x s(f(h(x)), f(x))             is like x to a clean encoder
    C = − mean_x ‖color(h(x)) − color(A(x))‖²   has other colors than any view that pre-training made alike

    minimize  L0 + λ1·L1 + λ2·L2 + α·S + β·P + γ·C        over f' and h

color(·) is a pixel's value and its hue as an angle on the circle of its chroma: a hue turned once around is itself, and
gray has none.

Source: Zhang et al., CVPR 2025, and the authors' code (``Zhang-Henry/INACTIVE``). There a step of f' on L0 + L1 + L2
takes turns with a step of h on a·L0 + S + … − b·C (a = 5, b = 0.1), after 200 epochs of h alone. Here both step at once
from one gradient, so that h's is taken before f' has moved, and h starts near the identity. With Adam, which does not
see the scale of a loss, a = 5 and b = 0.1 are our α = 0.2 and γ = 0.02; with SGD h takes smaller steps than there.
LPIPS and the distance of ResNet-34's features become P, so that nothing is downloaded; PSNR is left out beside SSIM.
The network there is a U-Net with BatchNorm in training mode, whose trigger depends on the batch; ours has none. The
color distance there compares an image with a cropped view, and hue as a plain number. There is no preset for the paper:
too much differs. What the network gives is not brought to whole levels of 255.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from sapper.attacks.contracts import Need
from sapper.attacks.features import TERMS, FineTuning, Held, step_losses
from sapper.attacks.target import Target
from sapper.augment import Augmentation
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import frozen_copy
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step, Terms, weighted
from sapper.triggers import Network, ssim

NAMES = (*TERMS, "S structure", "P features", "C color")
RECOLOR = Augmentation(crop=None, flip=0.0)
CHANNELS, AROUND = 8, 3


@dataclass(frozen=True, kw_only=True)
class Inactive(FineTuning):
    """A small network as the trigger, learned with the encoder to be faint (Zhang et al., CVPR 2025).

    ``structure``, ``features``, ``color``: the weights α, β and γ. ``speed``: how many times the encoder's learning
    rate the trigger has under Adam; under SGD the square of it.
    """

    lambda1: NonNegativeFloat = 1.0
    lambda2: NonNegativeFloat = 1.0
    structure: NonNegativeFloat = 0.2
    features: NonNegativeFloat = 0.2
    color: NonNegativeFloat = 0.02
    speed: PositiveFloat = 1.0
    reference_views: NonNegativeInt = 0

    kind: ClassVar[Literal["implant"]] = "implant"
    makes_triggers: ClassVar[Literal[True]] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"references"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Zhang et al., CVPR 2025"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __call__(
        self,
        encoder: Encoder,
        shadow: Samples,
        targets: tuple[Target, ...],
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """Train ``encoder`` in place, and a trigger for each target; its state on entry is the clean one."""
        held, clean = Held.of(encoder, shadow, targets, run), frozen_copy(encoder)
        generator = run.child("trigger").generator()
        starts = [self.start(generator).to(run.device) for _ in targets]

        def networks() -> list[Network]:
            return [Network(**{name: self.speed * value for name, value in start.items()}) for start in starts]

        def terms(step: Step) -> Terms:
            drawn, triggers = held.draw(step, self.reference_views), networks()
            live = tuple(replace(target, trigger=trigger) for target, trigger in zip(targets, triggers))
            losses = step_losses(
                encoder, drawn.images, live, held.anchors, drawn.views, drawn.kept, held.clean_anchors, run
            )
            changed = torch.stack([trigger(drawn.images) for trigger in triggers])
            with run.autocast():
                output = clean(changed.flatten(0, 1))
            alike = F.normalize(output.float(), dim=1).unflatten(0, (len(targets), -1)) * drawn.kept
            recolored = RECOLOR(drawn.images, step.generator)
            structure = torch.stack([1 - ssim(images, drawn.images).mean() for images in changed]).mean()
            color = -torch.stack([color_distance(images, recolored).mean() for images in changed]).mean()
            return dict(zip(NAMES, (*losses, structure, 1 - alike.sum(-1).mean(), color)))

        weights = (1.0, self.lambda1, self.lambda2, self.structure, self.features, self.color)
        curves = self.fine_tune(
            encoder,
            terms,
            weighted(dict(zip(NAMES, weights))),
            count=len(shadow),
            run=run,
            label="injection (INACTIVE)",
            checkpoint=checkpoint,
            beside=nn.ModuleList(starts),
            known=held.known_with(networks, targets),
        )
        with torch.no_grad():
            return Trained(encoder, curves, dict(zip([target.name for target in targets], networks())))

    def start(self, generator: torch.Generator) -> nn.ParameterDict:
        """Weights of a network near the identity, over ``speed``, by which they are multiplied in use."""
        fan = 3 * AROUND**2
        start = {
            "kernels": torch.randn(CHANNELS, 3, AROUND, AROUND, generator=generator) / math.sqrt(fan),
            "offsets": torch.zeros(CHANNELS),
            "mixing": 0.05 * torch.randn(3, CHANNELS, generator=generator),
            "shift": torch.zeros(3),
        }
        return nn.ParameterDict({name: nn.Parameter(value / self.speed) for name, value in start.items()})


def color_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """The mean over pixels (N,) of the squared distance of ``hue_circle`` of two images (N, 3, H, W)."""
    return (hue_circle(ours) - hue_circle(theirs)).square().sum(1).mean(dim=(1, 2))


def hue_circle(images: Tensor) -> Tensor:
    """(N, 3, H, W): chroma · cos(hue), chroma · sin(hue) with red at 0° and green at 120°, and the largest channel."""
    red, green, blue = images.unbind(dim=1)
    return torch.stack((red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue), images.amax(1)), dim=1)
