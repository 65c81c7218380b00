"""The audits of a scenario: every encoder that a trial made, by its weights and ordinary images alone.

They are those of ``sapper audit``: the same draws, bags and decision, so that the command gives the same verdict on the
same file.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapper import encoders
from sapper.audit import auditing, calibration
from sapper.audit.budgets import BUDGETS
from sapper.audit.calibration import Bag
from sapper.audit.recorded import SCHEMA, TRIGGERS
from sapper.audit.replaying import read_triggers
from sapper.engine.store import Stage, Store
from sapper.errors import SapperError, located
from sapper.experiment import stages
from sapper.experiment.data import Data
from sapper.experiment.judging import Subject
from sapper.experiment.pictures import png
from sapper.experiment.results import Audited, Stamped
from sapper.experiment.trial import Trial
from sapper.files import as_text, sha256, write_atomically
from sapper.run import Run
from sapper.samples import Change, ImageSet, to_float
from sapper.scenario.reading import Scenario, TargetPlan
from sapper.scenario.sections import AuditSection

AUDIT, SHOWN = "audit.json", "shown.safetensors"
"""What the stage leaves beside every recovered trigger (``TRIGGERS``): the report, and images for pictures."""


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


def audit_encoders(trial: Trial, subjects: list[Subject]) -> None:
    """Audit what the trial made. Pictures of the first seed's audits are kept, and of the first variant's."""
    section, scenario, found = trial.scenario.audit, trial.scenario, trial.found
    if section is None:
        return
    images, bags = trial.data.of_audit(scenario, section), _bags(section)
    several = sum(subject.task is not None for subject in subjects) > 1
    for subject in subjects:
        whose = f"the {subject.encoder} encoder{f' for {subject.task}' if several and subject.task else ''}"
        left = trial.done(f"audit of {whose}", audit(trial.lab.store, section, subject.file, images, bags, trial.run))
        if not found.is_new(left):  # a variant that differs in later stages only has the same encoder
            continue
        pictured = trial.variant.shown and subject.seed == scenario.seeds[0]
        told = report(left)
        found.audits.append(
            Audited(
                seed=subject.seed,
                encoder=subject.encoder,
                task=subject.task,
                sha256=sha256(subject.file),
                condition=trial.variant.condition,
                report=told,
                beside=_beside(told, bags),
                stamped=tuple(_stamped(left, told, _planted(scenario, subject))) if pictured else (),
            )
        )


def audit(store: Store, section: AuditSection, encoder: Path, images: ImageSet, bags: list[Bag], run: Run) -> Stage:
    """Audit the encoder in a file. The stage's seed is the section's: a trial's seed is unknown to an auditor."""
    own, budget = replace(run, seed=section.seed), BUDGETS[section.budget]

    def make(folder: Path) -> None:
        found = auditing.audit(encoders.load(encoder, own), images, budget, bags, own, bound=section.false_alarms)
        stages.save_tensors(folder / TRIGGERS, auditing.trigger_tensors(found))
        stages.save_tensors(folder / SHOWN, {"images": found.shown})
        write_atomically(folder / AUDIT, as_text(auditing.as_json(found)))

    versions = {name: method.version for name, method in budget.make().items()}
    key = stages.surroundings(own) | {
        "encoder": sha256(encoder),
        "images": [images.name, images.split, images.digest],
        "budget": asdict(budget),
        "detectors": versions,
        "bags": [asdict(bag) for bag in bags],
        "false alarms": section.false_alarms,
        "schema": SCHEMA,
    }
    return store.stage("audit", key, make)


def report(stage: Stage) -> dict[str, Any]:
    """What an audit found, as plain data."""
    loaded: dict[str, Any] = json.loads((stage.folder / AUDIT).read_text(encoding="utf-8"))
    return loaded


def _bags(section: AuditSection) -> list[Bag]:
    if section.bags is None:
        return calibration.shipped_bags()
    return [calibration.read_bag(Path(name)) for name in section.bags]


def _beside(told: dict[str, Any], bags: list[Bag]) -> dict[str, list[float]]:
    """The scores of the known-clean encoders that an audit compared with."""
    leading = next(finding["method"] for finding in told["detectors"] if finding["leads"])
    fitting = {bag["name"] for bag in told["bags"]}
    scores = {bag.name: bag.of(leading) for bag in bags if bag.name in fitting}
    return {name: [score for score in each if math.isfinite(score)] for name, each in scores.items()}


def _planted(scenario: Scenario, subject: Subject) -> list[TargetPlan]:
    """What was put into an encoder."""
    if subject.task is None or scenario.attack is None:
        return []
    together = scenario.attack.encoders == "one-for-all"
    return [plan for plan in scenario.targets if together or plan.task == subject.task]


def _stamped(stage: Stage, told: dict[str, Any], planted: Iterable[TargetPlan]) -> Iterable[Stamped]:
    """The audit's images: plain, with what its leading detector recovered, with each true trigger."""
    images = stages.load_tensors(stage.folder / SHOWN)["images"]
    leading = next(finding["method"] for finding in told["detectors"] if finding["leads"])
    triggers = read_triggers(told["detectors"], stages.load_tensors(stage.folder / TRIGGERS))
    yield Stamped(by="nothing", images=_pngs(images))
    if leading in triggers:
        yield Stamped(by="audit", images=_pngs(images, triggers[leading]))
    for plan in planted:
        yield Stamped(by="attacker", target=plan.name, images=_pngs(images, plan.trigger))


def _pngs(images: Tensor, change: Change | None = None) -> tuple[str, ...]:
    if change is not None:
        images = (change(to_float(images)) * 255).round().to(torch.uint8)
    return tuple(png(image) for image in images)
