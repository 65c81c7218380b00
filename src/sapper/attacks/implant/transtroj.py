"""TransTroj: a faint full-image trigger learned on the clean encoder, then an encoder that answers to it.

Threat model: BadEncoder's; made to outlive a victim who fine-tunes all weights. With δ the trigger, within ±ε levels
of 255, and r̄ the mean of the references' features (of length 1 each) through the clean f, which never changes,

    first    min over δ     − mean_x s( f(clip(x + δ)), r̄ )
    then     min over f'    − mean_x s( f'(clip(x + δ)), r̄ ) − λ · mean_x s( f'(x), f(x) )

with δ = ε·tanh(w)/255, and with means over targets, each of which has a δ of its own. The trigger of the target that
the attack is given is not used.

Source: Wang et al., "Model Supply Chain Poisoning: Backdooring Pre-trained Models via Embedding Indistinguishability",
WWW 2025, and the authors' code (``haowang-cqu/TransTroj``): ε = 10, λ = 10; w from U(−1, 1), Adam with learning rate
0.1, 10 epochs; weights by SGD with learning rate 1e-3, 50 epochs, batches of 256, BatchNorm frozen. There the trigger
is learned in floating point and rounded down when it is stamped. Here δ is brought to whole levels, halves upwards,
before the weights are trained: what they learn is what an image file holds.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.attacks.contracts import Need
from sapper.attacks.features import FineTuning, Held, learn_trigger
from sapper.attacks.target import Target
from sapper.encoders import Encoder, Trained
from sapper.encoders.freezing import frozen_copy
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step, Terms, weighted
from sapper.triggers import Noise, levels

EFFECT, UTILITY = "effect", "utility"


@dataclass(frozen=True, kw_only=True)
class TransTroj(FineTuning):
    """A faint trigger over the whole image, learned before the weights are (Wang et al., WWW 2025).

    ``epsilon``: the most that a pixel changes, in levels of 255. ``utility``: the weight λ of the clean features.
    """

    epochs: PositiveInt = 50
    epsilon: Annotated[int, Field(ge=1, le=255)] = 10
    utility: NonNegativeFloat = 10.0
    trigger_epochs: PositiveInt = 10
    trigger_rate: PositiveFloat = 0.1

    kind: ClassVar[Literal["implant"]] = "implant"
    makes_triggers: ClassVar[Literal[True]] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"references"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Wang et al., WWW 2025"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __call__(
        self,
        encoder: Encoder,
        shadow: Samples,
        targets: tuple[Target, ...],
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """Learn the triggers, then train ``encoder`` in place; its state on entry is the clean one."""
        held = Held.of(encoder, shadow, targets, run)
        counts = [len(target.references) for target in targets]
        goals = torch.stack([F.normalize(part.mean(0), dim=0) for part in held.clean_anchors.split(counts)])
        before = checkpoint.part("trigger") if checkpoint else None
        triggers = self.triggers(frozen_copy(encoder), held, goals, before)
        stamped = tuple(replace(target, trigger=trigger) for target, trigger in zip(targets, triggers))

        def terms(step: Step) -> Terms:
            images = held.shadow.batch(step.rows)
            with run.autocast():
                output = encoder(torch.cat((images, *(target.trigger(images) for target in stamped))))
            features = F.normalize(output.float(), dim=1).unflatten(0, (1 + len(targets), -1))
            kept = held.clean[step.rows.to(run.device)]
            return {EFFECT: effect(features[1:], goals), UTILITY: -(features[0] * kept).sum(1).mean()}

        curves = self.fine_tune(
            encoder,
            terms,
            weighted({EFFECT: 1.0, UTILITY: self.utility}),
            count=len(shadow),
            run=run,
            label="injection (TransTroj)",
            checkpoint=checkpoint,
            known=held.known(stamped),
        )
        if before:
            before.remove()
        return Trained(encoder, curves, {target.name: target.trigger for target in stamped})

    def triggers(self, clean: Encoder, held: Held, goals: Tensor, checkpoint: Checkpoint | None) -> list[Noise]:
        """For each of ``goals`` (T, D) the pattern that moves shadow images' features there, in whole levels."""
        run, bound = held.run, self.epsilon / 255
        shape = (len(goals), *held.anchors.shape[1:])
        start = 2 * torch.rand(shape, generator=run.child("trigger").generator()) - 1
        learned = nn.ParameterDict({"w": nn.Parameter(start.to(run.device))})

        def terms(step: Step) -> Terms:
            images = held.shadow.batch(step.rows)
            patterns = bound * learned["w"].tanh()
            with run.autocast():
                output = clean(torch.cat([Noise(delta=delta, bound=bound)(images) for delta in patterns]))
            return {EFFECT: effect(F.normalize(output.float(), dim=1).unflatten(0, (len(goals), -1)), goals)}

        learn_trigger(
            learned,
            terms,
            rate=self.trigger_rate,
            count=len(held.shadow),
            batch=self.batch,
            epochs=self.trigger_epochs,
            run=run.child("trigger"),
            label="trigger (TransTroj)",
            checkpoint=checkpoint,
        )
        return [Noise(delta=levels(bound * w.detach().tanh()), bound=bound) for w in learned["w"]]


def effect(features: Tensor, goals: Tensor) -> Tensor:
    """− the mean cosine of triggered ``features`` (T, B, D) and each target's goal, ``goals`` (T, D); of length 1."""
    return -(features.mean(1) * goals).sum(1).mean()
