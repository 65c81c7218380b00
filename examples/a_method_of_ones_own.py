"""An attack of one's own: the trigger shall move features away from where they were, towards nothing in particular.

    minimize  mean s( f'(x ⊕ e), f(x) ) − λ·mean s( f'(x), f(x) )     with s the cosine similarity

It has the contract of BadEncoder, and can be named in a scenario when a package offers it as an entry point:

    [project.entry-points."sapper.attacks"]
    untargeted = "my_package.untargeted:Untargeted"

python examples/a_method_of_ones_own.py [EPOCHS]
"""

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch.nn.functional import normalize

import sapper
from sapper.attacks.contracts import Need
from sapper.attacks.features import FineTuning, Held
from sapper.training import Checkpoint, Step, Terms, weighted


@dataclass(frozen=True, kw_only=True)
class Untargeted(FineTuning):
    """Moves triggered features away from the clean ones. ``utility``: λ; other parameters are those of all attacks."""

    utility: PositiveFloat = 2.0

    kind: ClassVar[Literal["implant"]] = "implant"
    needs: ClassVar[frozenset[Need]] = frozenset()
    version: ClassVar[int] = 1
    source: ClassVar[str] = "this example"
    presets: ClassVar[dict[str, dict[str, object]]] = {}

    def __call__(
        self,
        encoder: sapper.Encoder,
        shadow: sapper.Samples,
        targets: tuple[sapper.Target, ...],
        run: sapper.Run,
        checkpoint: Checkpoint | None = None,
    ) -> sapper.Trained:
        """Train ``encoder`` in place."""
        held = Held.of(encoder, shadow, targets, run)

        def terms(step: Step) -> Terms:
            images, kept = held.shadow.batch(step.rows), held.clean[step.rows]
            stamped = torch.cat([target.trigger(images) for target in targets])
            plain, *moved = normalize(encoder(torch.cat((images, stamped))), dim=1).split(len(images))
            similarity = torch.stack([(each * kept).sum(1).mean() for each in moved]).mean()
            return {"similarity": similarity, "utility": -(plain * kept).sum(1).mean()}

        sum_of = weighted({"similarity": 1.0, "utility": self.utility})
        count, label = len(shadow), "untargeted"
        curves = self.fine_tune(encoder, terms, sum_of, count=count, run=run, label=label, checkpoint=checkpoint)
        return sapper.Trained(encoder, curves)


if __name__ == "__main__":
    run = sapper.Run(seed=0)
    images = sapper.load_data("objects", "train").sample(1000, run.generator())
    target = sapper.Target(
        name="anything", task="objects", label=0, class_name="", references=images.take(torch.arange(1)),
        trigger=sapper.Patch(size=6),
    )  # fmt: skip
    encoder = sapper.build(run, architecture="resnet10", width=8)
    epochs = int(sys.argv[1]) if sys.argv[1:] else 3
    method = Untargeted(epochs=epochs, batch=32, learning_rate=0.003, utility=1.2, optimizer="adam")
    trained = method(encoder, images, (target,), run)
    for name, curve in trained.curves.items():
        print(name, [round(value, 3) for value in curve])
