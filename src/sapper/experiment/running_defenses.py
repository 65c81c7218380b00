"""Defenses tried on what trials made: on the classifiers of each, and on the encoders of all of them together."""

from dataclasses import replace
from pathlib import Path

from sapper.attacks.target import Target
from sapper.defenses.contracts import Certifier, ClassifierJudge, EncoderExaminer, EncoderLearner
from sapper.errors import SapperError, located
from sapper.experiment.data import Data, defended_part, part
from sapper.experiment.defending import Victim, certify, detect, examine, verdicts
from sapper.experiment.findings import Findings
from sapper.experiment.fleets import Fleet, claim, fit, home, judge, twins
from sapper.experiment.judging import (
    Subject,
    certifier_records,
    detector_records,
    encoder_judgments,
    first_of_each,
    held_out_records,
    judgments,
)
from sapper.experiment.results import Judged
from sapper.experiment.stages import TaskData
from sapper.experiment.trial import Lab, Trial, Variant
from sapper.run import Run
from sapper.scenario.reading import DefensePlan, Scenario
from sapper.scenario.sections import CertifySection, DetectSection, ExamineSection, FleetSection
from sapper.verdicts import Verdict


def defend(trial: Trial, task: TaskData, targets: tuple[Target, ...], files: dict[str, Path]) -> None:
    """Every defense on the classifiers of a task, those on the clean encoder and those on the backdoored one."""
    scenario, store, run = trial.scenario, trial.lab.store, trial.run
    victims = {encoder: Victim(file, task, scenario.primary, run) for encoder, file in files.items()}
    for plan in (plan for plan in scenario.defenses if plan.on(task.name)):
        section = plan.section
        place = trial.place | {"task": task.name, "head": scenario.primary_head, "defense": plan.name}
        titles = {encoder: f"{plan.name} on the {encoder} encoder, {task.name}" for encoder in victims}
        if isinstance(section, CertifySection):
            images = part(task.test, section.test_images, run, defended_part(task.name))
            left = {
                encoder: trial.done(titles[encoder], certify(store, plan, section, victim, images, targets, run))
                for encoder, victim in victims.items()
            }
            certifier: Certifier = plan.method.parameters
            trial.found.records += certifier_records(place, certifier.measures, images.targets(), targets, left)
        elif isinstance(section, DetectSection):
            left = {
                encoder: trial.done(titles[encoder], detect(store, plan, section, victim, run))
                for encoder, victim in victims.items()
            }
            judged = judgments(place, task.train.classes, left)
            trial.found.verdicts += judged
            seconds = {encoder: stage.seconds for encoder, stage in left.items()}
            detector: ClassifierJudge = plan.method.parameters
            trial.found.records += detector_records(place, detector.measures, judged, targets, seconds)


def judge_encoders(trial: Trial, subjects: list[Subject]) -> None:
    """Every detector of encoders on those that all seeds made; ``trial`` has the first seed."""
    for i, plan in enumerate(trial.scenario.defenses):
        section = plan.section
        if not isinstance(section, FleetSection | ExamineSection):
            continue
        chosen = first_of_each(subjects, section.subjects)
        with located(f"{trial.scenario.file}: defense[{i}]"):
            detector: EncoderLearner | EncoderExaminer = plan.method.parameters
            if isinstance(section, FleetSection):
                said = _by_fleet(trial, plan, section, chosen)
            else:
                said = _by_images(trial, plan, chosen)
        place = trial.place | {"seed": None, "defense": plan.name}
        judged = encoder_judgments(place, chosen, said)
        trial.found.verdicts += judged
        seconds = {
            kind: sum(verdict.seconds for verdict in judged if verdict.encoder == kind)
            for kind in ("clean", "backdoored")
        }
        trial.found.records += detector_records(place, detector.measures, judged, (), seconds)


def _by_fleet(trial: Trial, plan: DefensePlan, section: FleetSection, chosen: list[Subject]) -> list[Verdict]:
    """Verdicts of a detector that has learned from a fleet."""
    store, run = trial.lab.store, trial.run
    method: EncoderLearner = plan.method.parameters
    fleet, pairs = _fleet(trial.scenario, plan, section, trial.data, run), method.pairs
    there = min(pairs, twins(home(store, section, fleet)))
    known = f", {there} + {there} of them are there" if there else ""
    trial.lab.tell(f"{plan.name}: a fleet of {pairs} + {pairs} encoders, trained on {len(fleet.images)} images{known}")
    fitted = trial.done(plan.name, fit(store, plan, section, fleet, trial.lab.workers, run))
    files = [subject.file for subject in chosen]
    return verdicts(trial.done(f"{plan.name} on {len(chosen)} encoders", judge(store, plan, fitted, files, run)))


def _by_images(trial: Trial, plan: DefensePlan, chosen: list[Subject]) -> list[Verdict]:
    """Verdicts of a detector that asks for ordinary images only; each encoder is a stage of its own."""
    images = trial.data.of_pretraining(trial.scenario, trial.run)
    said = []
    for subject in chosen:
        whose = f"the clean encoder of seed {subject.seed}"
        if subject.task is not None:
            whose = f"the backdoored encoder for {subject.task} of seed {subject.seed}"
        left = examine(trial.lab.store, plan, subject.file, images, replace(trial.run, seed=subject.seed))
        said += verdicts(trial.done(f"{plan.name} on {whose}", left))
    return said


def hold_out(variant: Variant, found: Findings) -> None:
    """For every detector, what a threshold from other seeds would have flagged."""
    scenario = variant.scenario
    attack = scenario.attack_method.name if scenario.attack_method is not None else None
    groups: dict[tuple[str, str | None], list[Judged]] = {}
    for verdict in (verdict for verdict in found.verdicts if verdict.condition == variant.condition):
        task = None if verdict.classifier is None else verdict.task
        groups.setdefault((verdict.defense, task), []).append(verdict)
    for (defense, task), judged in groups.items():
        head = None if task is None else scenario.primary_head
        place = {"task": task, "attack": attack, "head": head, "defense": defense, "condition": variant.condition}
        found.records += held_out_records(place, judged)


def claim_fleets(scenario: Scenario, data: Data, lab: Lab) -> None:
    """Raises ``SapperError`` when a folder for a fleet has something else in it: now rather than after the training."""
    for i, plan in enumerate(scenario.defenses):
        if isinstance(plan.section, FleetSection) and plan.section.fleet:
            with located(f"{scenario.file}: defense[{i}].fleet"):
                folder = Path(plan.section.fleet)
                if folder.resolve() == lab.store.root.resolve():
                    what, remedy = "this is the store's own folder", "name another one, or leave `fleet` out"
                    raise SapperError(what, where=str(folder), remedy=remedy)
                claim(folder, _fleet(scenario, plan, plan.section, data, lab.run))


def _fleet(scenario: Scenario, plan: DefensePlan, section: FleetSection, data: Data, run: Run) -> Fleet:
    """What a detector of encoders learns from: encoders as the scenario's, trained by somebody with fewer images."""
    assert plan.shadows is not None
    (pretraining, attack), seed = plan.shadows, scenario.seeds[0] if section.seed is None else section.seed
    seeded = replace(run, seed=seed)
    images, references = data.of_fleet(scenario, plan, seeded)
    return Fleet(
        spec=scenario.encoder, pretraining=pretraining, attack=attack, images=images, references=references, run=seeded
    )
