"""The audits of a scenario: every encoder that a trial made, by its weights and ordinary images alone.

They are those of ``sapper audit``: the same draws, bags and decision, so that the command gives the same verdict on the
same file.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sapper import encoders, tensors
from sapper.audits import auditing, calibration, found
from sapper.audits.calibration import Bag
from sapper.audits.recorded import SCHEMA
from sapper.audits.recorded import TRIGGERS as RECOVERED
from sapper.audits.replaying import read_triggers as recovered_triggers
from sapper.defenses.budgets import BUDGETS
from sapper.engine.stage import Stage
from sapper.errors import SapperError, located
from sapper.experiment.data import Data
from sapper.experiment.pictures import png
from sapper.experiment.results import Audited, Stamped
from sapper.experiment.subjects import Subject
from sapper.experiment.tasks import Part, packages
from sapper.experiment.trial import Session, Trial
from sapper.experiment.works import TRIGGERS, encoder_file
from sapper.files import as_text, sha256, write_atomically
from sapper.running import Run
from sapper.samples import Change, to_float
from sapper.scenario.named import Named
from sapper.scenario.reading import Scenario
from sapper.scenario.sections import AuditSection
from sapper.triggers import Trigger, read_triggers

AUDIT, SHOWN = "audit.json", "shown.safetensors"
"""What the stage leaves beside every recovered trigger (``RECOVERED``): the report, and images for pictures."""


def check_audit(scenario: Scenario, data: Data) -> None:
    """Raises ``SapperError`` where the audits could not be done, before anything is trained."""
    if scenario.audit is None:
        return
    images = data.of_audit(scenario, scenario.audit)
    if len(images) < auditing.FEWEST:
        what, remedy = f"{len(images)} images are too few", f"give at least {auditing.FEWEST}; 256 or more are better"
        raise SapperError(what, where=f"{scenario.file}: audit.images", remedy=remedy)
    with located(f"{scenario.file}: audit.bags"):
        calibration.distinct(_bags(scenario.audit))


@dataclass(frozen=True, kw_only=True)
class AuditEncoder:
    """Audit an encoder, the input; leaves the report, every recovered trigger, and images for pictures."""

    section: AuditSection
    images: Part
    bags: tuple[Bag, ...]

    name: ClassVar[str] = "audit"

    @property
    def detectors(self) -> list[Named]:
        """Those of the budget."""
        return [Named(name=name, parameters=method) for name, method in BUDGETS[self.section.budget].make().items()]

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(*self.detectors)

    def key(self) -> dict[str, Any]:
        return {
            "images": self.images.origin,
            "budget": asdict(BUDGETS[self.section.budget]),
            "detectors": {method.name: method.parameters.version for method in self.detectors},
            "bags": [asdict(bag) for bag in self.bags],
            "false alarms": self.section.false_alarms,
            "schema": SCHEMA,
        }

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        encoder, budget, bound = encoders.load(encoder_file(inputs[0]), run), BUDGETS[self.section.budget], self.section
        made = auditing.audit(encoder, self.images(), budget, self.bags, run, bound=bound.false_alarms)
        tensors.save(folder / RECOVERED, found.trigger_tensors(made))
        tensors.save(folder / SHOWN, {"images": made.shown})
        write_atomically(folder / AUDIT, as_text(found.as_json(made)))


def audits(trial: Trial) -> list[tuple[Subject, Stage]]:
    """An audit of every encoder of a trial. Its seed is the section's: a trial's seed is unknown to an auditor."""
    section = trial.scenario.audit
    if section is None:
        return []
    images = Part.whole(trial.data.of_audit(trial.scenario, section))
    work, run = AuditEncoder(section=section, images=images, bags=_bags(section)), replace(trial.run, seed=section.seed)
    subjects = [subject for subject in trial.pipeline.subjects if subject.of == "encoder"]
    several = len(subjects) > 2
    return [
        (
            subject,
            Stage(
                work,
                run,
                (subject.stage,),
                title=f"audit of the {subject.words}{f' for {subject.task}' if several and subject.task else ''}",
            ),
        )
        for subject in subjects
    ]


def record_audit(trial: Trial, subject: Subject, audit: Stage, session: Session) -> None:
    """What an audit found. Pictures of the first seed's are kept, and of the first variant's."""
    scenario, folder = trial.scenario, session.done[audit].folder
    bags = () if scenario.audit is None else _bags(scenario.audit)
    content = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
    pictured = trial.variant.shown and subject.seed == scenario.seeds[0]
    left = {} if subject.source is None else read_triggers(session.done[subject.source].folder / TRIGGERS)
    planted = {name: left[name] for name in subject.targets}
    session.findings.audits.append(
        Audited(
            seed=subject.seed,
            subject=subject.id,
            state=subject.state,
            task=subject.task,
            attack=subject.attack,
            repair=subject.repair,
            sha256=sha256(encoder_file(session.done[subject.stage].folder)),
            condition=trial.variant.condition,
            report=content,
            beside=_beside(content, bags),
            stamped=tuple(_stamped(folder, content, planted)) if pictured else (),
        )
    )


def _bags(section: AuditSection) -> tuple[Bag, ...]:
    if section.bags is None:
        return tuple(calibration.shipped_bags())
    return tuple(calibration.read_bag(Path(name)) for name in section.bags)


def _beside(content: dict[str, Any], bags: Iterable[Bag]) -> dict[str, list[float]]:
    """The scores of the known-clean encoders that an audit compared with."""
    leading = next(finding["method"] for finding in content["detectors"] if finding["leads"])
    fitting = {bag["name"] for bag in content["bags"]}
    scores = {bag.name: bag.of(leading) for bag in bags if bag.name in fitting}
    return {name: [score for score in each if math.isfinite(score)] for name, each in scores.items()}


def _stamped(folder: Path, content: dict[str, Any], planted: Mapping[str, Trigger]) -> Iterable[Stamped]:
    """The audit's images: plain, with what its leading detector recovered, with each true trigger by its target."""
    images = tensors.load(folder / SHOWN)["images"]
    leading = next(finding["method"] for finding in content["detectors"] if finding["leads"])
    recovered = recovered_triggers(content["detectors"], tensors.load(folder / RECOVERED))
    yield Stamped(by="nothing", images=_pngs(images))
    if leading in recovered:
        yield Stamped(by="audit", images=_pngs(images, recovered[leading]))
    for name, trigger in planted.items():
        yield Stamped(by="attacker", target=name, images=_pngs(images, trigger))


def _pngs(images: Tensor, change: Change | None = None) -> tuple[str, ...]:
    if change is not None:
        images = (change(to_float(images)) * 255).round().to(torch.uint8)
    return tuple(png(image) for image in images)
