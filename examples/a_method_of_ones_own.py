"""An attack of one's own: the trigger shall move features away from where they were, towards nothing in particular.

It has the contract of BadEncoder, and can be named in a scenario when a package offers it as an entry point:

    [project.entry-points."sapper.attacks"]
    untargeted = "my_package.untargeted:Untargeted"

python examples/a_method_of_ones_own.py [EPOCHS]
"""

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt

import sapper
from sapper.attacks.contracts import Need
from sapper.attacks.target import check_targets
from sapper.downstream import extract
from sapper.methods import Checked
from sapper.training import Checkpoint, Step, Terms, train, weighted


@dataclass(frozen=True, kw_only=True)
class Untargeted(Checked):
    """minimize  mean s( f'(x ⊕ e), f(x) ) − λ·mean s( f'(x), f(x) )     with s the cosine similarity"""

    epochs: PositiveInt = 3
    batch: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
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
        check_targets(targets, shadow, encoder.card.input)
        clean, resident = extract(encoder, shadow, run), shadow.to(run.device)

        def terms(step: Step) -> Terms:
            images, kept = resident.batch(step.rows), clean[step.rows]
            stamped = torch.cat([target.trigger(images) for target in targets])
            features = torch.nn.functional.normalize(encoder(torch.cat((images, stamped))), dim=1)
            plain, moved = features[: len(images)], features[len(images) :]
            return {
                "similarity": (moved * kept.repeat(len(targets), 1)).sum(1).mean(),
                "utility": -(plain * kept).sum(1).mean(),
            }

        curves = train(
            encoder,
            terms,
            torch.optim.Adam(encoder.parameters()),
            lambda _step: self.learning_rate,
            count=len(shadow),
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label="untargeted",
            checkpoint=checkpoint,
            combine=weighted({"similarity": 1.0, "utility": self.utility}),
        )
        return sapper.Trained(encoder.eval(), curves)


if __name__ == "__main__":
    run = sapper.Run(seed=0)
    images = sapper.load_data("objects", "train").sample(1000, run.generator())
    target = sapper.Target(
        name="anything", task="objects", label=0, class_name="", references=images, trigger=sapper.Patch(size=6)
    )
    encoder = sapper.build(run, architecture="resnet10", width=8)
    trained = Untargeted(epochs=int(sys.argv[1]) if sys.argv[1:] else 3)(encoder, images, (target,), run)
    for name, curve in trained.curves.items():
        print(name, [round(value, 3) for value in curve])
