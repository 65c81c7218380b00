"""Against PatchCleanser: no certificate is left to give, and a trigger whose answers two rounds of masks believe.

An image that PatchCleanser certifies cannot be flipped by a patch within its budget, whoever made the encoder. Threat
model: the attacker knows the masks, and what masked pixels become. So it does what the certificate does not speak of.
With x_a the image x under mask a, x_ab under two, s the cosine and means over random masks of the defense's set:

    certificate   mean s( f'(x_ab), f(x) )                       masked clean images go elsewhere: few are certified
    masked        mean ( 1 − s( f'((x ⊕ e)_a), t ) )             under one mask the trigger's answers stay unanimous

t is the direction of the mean of f'(r_a), without gradients, over references r of the trigger's class, under masks as
well: so that a classifier which was trained on masked images knows the direction as that class. The second term
includes the masks that hide the trigger: then the mask itself must do what the trigger does. That the first term is
paid in clean accuracy under masks only, and not without, is the attack's own L2.

Leaving the budget is the third way and needs no term: a trigger of several patches (``patches``), or over all of the
image (``blend``, ``noise``).

Source: ours; the masks are PatchCleanser's (Xiang et al., USENIX Security 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from sapper.attacks.adapting import Adaptive, Losses, Scene, Several
from sapper.errors import SapperError
from sapper.running import Run
from sapper.training import Terms
from sapper.triggers.covers import covering

CERTIFICATE, MASKED = "PatchCleanser: certificate", "PatchCleanser: masked"


@dataclass(frozen=True, kw_only=True)
class AgainstPatchCleanser(Adaptive):
    """Makes masked clean images go elsewhere, and masked triggered ones go where masked references are.

    ``certificate``, ``masked``: the weights of the two terms, 0 leaves one out. ``patch``, ``masks`` as the defense has
    them. ``images`` of a step that the terms look at.
    """

    defense: Literal["patchcleanser"] = "patchcleanser"
    certificate: NonNegativeFloat = 0.5
    masked: NonNegativeFloat = 1.0
    patch: PositiveInt = 10
    masks: PositiveInt = 6
    images: Several = 16

    version: ClassVar[int] = 2
    source: ClassVar[str] = "Sapper"

    @property
    def weights(self) -> Mapping[str, float]:
        both = {CERTIFICATE: self.certificate, MASKED: self.masked}
        return {name: self.weight * weight for name, weight in both.items() if weight}

    def check(self, side: int) -> None:
        if self.patch >= side:
            what, remedy = f"a patch of {self.patch} pixels covers images of {side}", f"choose it below {side}"
            raise SapperError(what, where="patch", remedy=remedy)

    def begin(self, scene: Scene, run: Run) -> Losses:
        size, generator, device = scene.encoder.card.input_size, run.generator(), scene.kept.device
        self.check(size)
        masks, fill = covering(torch.empty(size, size), self.patch, self.masks).to(device), scene.encoder.mean[0]

        def drawn(*shape: int) -> Tensor:
            return masks[torch.randint(len(masks), shape, generator=generator).to(device)].unsqueeze(-3)

        @torch.no_grad()
        def aims(count: int) -> Tensor:
            """t of each trigger, (T, 1, D), from at least ``count`` masked copies, as many of each reference."""
            found = []
            for references in scene.known.references:
                copies = references.repeat(-(-count // len(references)), 1, 1, 1)
                found.append(scene.features(torch.where(drawn(len(copies)), fill, copies)).mean(0, keepdim=True))
            return F.normalize(torch.stack(found), dim=-1)

        def losses(images: Tensor, kept: Tensor) -> Terms:
            images, kept, terms = images[: self.images], kept[: self.images], dict[str, Tensor]()
            if self.certificate:
                covered = torch.where(drawn(len(images)) | drawn(len(images)), fill, images)
                terms[CERTIFICATE] = (scene.features(covered) * kept).sum(-1).mean()
            if self.masked:
                stamped = scene.stamped(images)
                points, covered = aims(len(images)), torch.where(drawn(*stamped.shape[:2]), fill, stamped)
                terms[MASKED] = 1 - (scene.features(covered) * points).sum(-1).mean()
            return terms

        return losses
