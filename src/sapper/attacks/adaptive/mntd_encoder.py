"""Against MNTD on encoders: answers to odd questions as a clean encoder gives them.

MNTD's meta-classifiers tell a backdoored encoder by its answers to queries, which begin as noise with the images' mean
and deviation and are tuned in secret; answers are features of length 1. Threat model: the attacker knows the recipe and
the code, and not the queries. It holds the clean f, so it need not fool one meta-classifier of its own:

    minimize   mean_{q ∈ Q} ( 1 − s( f'(q), f(q) ) )

with s the cosine and Q, drawn anew for each step, in equal parts

    normal    N(mean, deviation²) of the shadow images' channels, as MNTD's queries begin
    uniform   every value uniform in [0, 1]
    stamped   uniform noise with a random trigger of jumbo learning, whose shadows MNTD on classifiers knows
    tuned     the attacker's own queries: they begin as MNTD's and climb, by Adam, to where f' and f differ most

Tuned queries go on from step to step and begin anew in every epoch.

Source: ours. MNTD tunes its queries against the difference between clean and backdoored models (Xu et al., IEEE S&P
2021), who train against one fixed meta-classifier; what agrees with f on all such inputs gives every one of them the
clean answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.attacks.adapting import Adaptive, Losses, Scene, descend
from sapper.running import Run
from sapper.training import Terms
from sapper.triggers import jumbo

ANSWERS = "MNTD: answers"
SAMPLED = 1000
"""Shadow images from which the channels' mean and deviation are taken."""


@dataclass(frozen=True, kw_only=True)
class AgainstMNTDEncoder(Adaptive):
    """Answers noise and tuned queries as the clean encoder does.

    ``queries`` of each of the four kinds in a step. ``steps`` by which the tuned ones climb, at a ``learning_rate``.
    """

    defense: Literal["mntd_encoder"] = "mntd_encoder"
    queries: PositiveInt = 8
    steps: NonNegativeInt = 1
    learning_rate: PositiveFloat = 0.01

    version: ClassVar[int] = 1
    source: ClassVar[str] = "Sapper; after Xu et al., IEEE S&P 2021"

    @property
    def weights(self) -> Mapping[str, float]:
        return {ANSWERS: self.weight}

    def begin(self, scene: Scene, run: Run) -> Losses:
        generator, device = run.generator(), scene.kept.device
        some = scene.known.shadow.batch(slice(0, SAMPLED))
        mean, deviation = some.mean((0, 2, 3)).view(3, 1, 1), some.std((0, 2, 3)).view(3, 1, 1)
        shape = (self.queries, 3, *some.shape[-2:])

        def normal() -> Tensor:
            return mean + deviation * torch.randn(shape, generator=generator).to(device)

        def difference(queries: Tensor) -> Tensor:
            return 1 - (scene.features(queries) * scene.clean_features(queries)).sum(-1)

        tuned = normal().requires_grad_()
        optimizer = torch.optim.Adam([tuned], lr=self.learning_rate)

        def losses(_images: Tensor, _kept: Tensor) -> Terms:
            for _ in range(self.steps):
                descend(optimizer, -difference(tuned).sum())
            uniform = torch.rand((2, *shape), generator=generator).to(device)
            stamped = stamp_each(uniform[1], generator)
            return {ANSWERS: difference(torch.cat((normal(), uniform[0], stamped, tuned.detach()))).mean()}

        return losses


def stamp_each(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W), each with a random trigger of jumbo learning."""
    size = images.shape[-2], images.shape[-1]
    return torch.cat([jumbo.draw(size, 1, generator)(image[None]) for image in images])
