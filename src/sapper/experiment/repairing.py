"""The works of an owner who repairs an encoder: recover a trigger where the repair needs one, and repair."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sapper import encoders
from sapper.defenses.contracts import EncoderExaminer, Owner, Repair
from sapper.encoders import Trained
from sapper.experiment.tasks import Part, identity, method_key, packages
from sapper.experiment.verdicts import FORM, leave_verdicts, verdicts
from sapper.experiment.works import encoder_file, leave
from sapper.files import sha256
from sapper.running import Run
from sapper.scenario.defending import DefensePlan
from sapper.scenario.named import Named
from sapper.training import Checkpoint


@dataclass(frozen=True, kw_only=True)
class RepairPlan(DefensePlan):
    """A repair of attacked encoders, with the ``images`` that its owner holds."""

    method: Named[Repair]
    images: Part[Any]


@dataclass(frozen=True, kw_only=True)
class RecoverTrigger:
    """Let a detector examine an encoder, the input; leaves what ``leave_verdicts`` says."""

    detector: Named[EncoderExaminer]
    images: Part[Any]

    name: ClassVar[str] = "recover"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.detector)

    def key(self) -> dict[str, Any]:
        return method_key(self.detector) | {"images": self.images.origin, "form": FORM}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        encoder = encoders.load(encoder_file(inputs[0]), run)
        leave_verdicts(folder, [self.detector.parameters.examine(encoder, self.images(), run.child("recovery"))])


@dataclass(frozen=True, kw_only=True)
class RepairEncoder:
    """Repair an encoder, the first input; what ``RecoverTrigger`` left may follow. Leaves encoder and curves.

    Where a trigger is needed and none was recovered, the encoder stays as it is. What came of an encoder that was
    backdoored on purpose stays marked: a repair proves nothing.
    """

    plan: RepairPlan

    name: ClassVar[str] = "repair"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.plan.method)

    def key(self) -> dict[str, Any]:
        recovered = {"needs a trigger": True} if self.plan.detector is not None else {}
        return method_key(self.plan.method) | {"images": self.plan.images.origin} | recovered

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        suspect, clean = encoder_file(inputs[0]), self.plan.images()
        encoder, checkpoint = encoders.load(suspect, run), Checkpoint(folder / "checkpoint.safetensors")
        marked = encoder.card.backdoored
        found = [verdict.trigger for each in inputs[1:] for verdict in verdicts(each)]
        owner = Owner(clean=clean, triggers=tuple(trigger for trigger in found if trigger is not None))
        made_from: dict[str, Any] = {"repaired": sha256(suspect), "images": identity(clean)}
        made_from["triggers"] = [trigger.describe() for trigger in owner.triggers]
        if self.plan.detector is not None and not owner.triggers:  # nothing to work with: the encoder stays
            trained = Trained(encoder, {})
            made_from["repaired"] = f"not at all: {self.plan.detector.name} recovered no trigger"
        else:
            trained = self.plan.method.parameters(encoder, owner, run.child("repair"), checkpoint)
        leave(folder, trained, self.plan.method, run, made_from, attacked=marked)
        checkpoint.remove()
