"""Defenses in a scenario: their stages, on the classifiers of each trial and on the encoders of all, and records."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sapper.attacks.contracts import makes_triggers
from sapper.defenses.contracts import (
    Certifier,
    ClassifierJudge,
    EncoderExaminer,
    EncoderLearner,
    Screen,
    Smoother,
    guarantee,
)
from sapper.engine.executors import execute
from sapper.engine.stage import Stage
from sapper.engine.store import Finished
from sapper.errors import SapperError, located
from sapper.experiment.data import Data, defended_part, stream_part
from sapper.experiment.defending import Certify, Classifiers, Detect, Examine, Judge, needs_inputs
from sapper.experiment.findings import Findings
from sapper.experiment.fleets import Fleet, claimed, learn
from sapper.experiment.pipeline import Measured, tuned_head
from sapper.experiment.records import (
    by_detector,
    certifier_records,
    detector_records,
    first_of_each,
    held_out_records,
    records_of_encoders,
    verdicts_on_classifiers,
    verdicts_on_encoders,
)
from sapper.experiment.results import Guaranteed, State
from sapper.experiment.screening import ScreenInputs, judged_and_clean, screen_curves, screen_records
from sapper.experiment.streams import Stream
from sapper.experiment.subjects import REPAIRED, Subject
from sapper.experiment.trial import Lab, Session, Trial, Variant
from sapper.experiment.verdicts import verdicts
from sapper.experiment.works import read_choices
from sapper.running import Run
from sapper.scenario.defending import DefensePlan
from sapper.scenario.kinds import of_encoders
from sapper.scenario.reading import Scenario
from sapper.scenario.sections import CertifySection, DetectSection, ExamineSection, FleetSection, ScreenSection
from sapper.verdicts import Verdict


@dataclass(frozen=True, kw_only=True)
class Defended:
    """A defense of a task: one stage for each subject that its classifiers stand on, the baseline first."""

    plan: DefensePlan
    measured: Measured
    sides: tuple[tuple[Subject, Stage], ...]


def defended(trial: Trial, measured: Measured) -> list[Defended]:
    """Every defense of an attacked task, on the classifiers of both sides."""
    task, scenario, sides = measured.task, trial.scenario, (measured.baseline, measured.subject)
    subjects = [subject for subject in sides if subject is not None]
    if (
        measured.subject is None
        or measured.subject.state == REPAIRED
        or measured.subject.head not in (None, scenario.primary_head)
    ):
        return []
    defenses = []
    for plan in (plan for plan in scenario.defenses if plan.on(task.name)):
        if isinstance(plan.section, CertifySection | DetectSection | ScreenSection):
            made = tuple((subject, _on_classifiers(trial, plan, measured, subject)) for subject in subjects)
            defenses.append(Defended(plan=plan, measured=measured, sides=made))
    return defenses


def _on_classifiers(trial: Trial, plan: DefensePlan, measured: Measured, subject: Subject) -> Stage:
    task, section = measured.task, plan.section
    stood_on, made = subject.stage, None
    poisoned = subject.source if subject.of == "task" else None
    heads = measured.before if subject is measured.baseline else measured.after
    kept = subject.source if subject.of == "classifier" else _tuned(heads, trial)
    if isinstance(section, CertifySection):
        certifier: Certifier | Smoother = plan.method.parameters
        if not certifier.uses_encoder:  # a network of its own takes the place of all that was built
            stood_on, kept = measured.baseline.stage, _tuned(measured.before, trial)
    classifiers = Classifiers(
        task=task, head=trial.scenario.primary, poisoned=poisoned is not None, kept=kept is not None
    )
    inputs = [stood_on, trial.pipeline.choices[task.name], poisoned, kept]
    if isinstance(section, ScreenSection):
        judged, clean = judged_and_clean(task.test, section, task.name, trial.run)
        made, own = subjects_triggers(trial, measured), None if of_encoders(plan.method.parameters) else classifiers
        work: ScreenInputs | Certify | Detect = ScreenInputs(
            plan=plan, task=task, images=judged, clean=clean, classifiers=own, made_triggers=made is not None
        )
        inputs = inputs if own else [stood_on]
    elif isinstance(section, CertifySection):
        images = task.test.sample(section.test_images, trial.run.child(defended_part(task.name)))
        made = subjects_triggers(trial, measured)
        work = Certify(
            plan=plan, section=section, classifiers=classifiers, images=images, made_triggers=made is not None
        )
    else:
        assert isinstance(section, DetectSection)
        stream = None
        if needs_inputs(plan.method) and measured.subject is not None and measured.subject.of != "task":
            images = task.test.sample(section.inputs, trial.run.child(stream_part(task.name)))
            stream, made = Stream(images=images, triggered=section.triggered), subjects_triggers(trial, measured)
        work = Detect(
            plan=plan, section=section, classifiers=classifiers, stream=stream, made_triggers=made is not None
        )
    there = tuple(each for each in (*inputs, made) if each is not None)
    return Stage(work, trial.run, there, title=f"{plan.name} on the {subject.words}, {task.name}")


def _tuned(heads: Stage | None, trial: Trial) -> Stage | None:
    return None if heads is None else tuned_head(heads, trial.scenario.primary)


def subjects_triggers(trial: Trial, measured: Measured) -> Stage | None:
    """What leaves the triggers that an attack made, if it makes any of its own."""
    attack = trial.scenario.attack_method
    own = attack is not None and makes_triggers(attack.parameters)
    return measured.subject.source if own and measured.subject is not None else None


def record(trial: Trial, defense: Defended, session: Session) -> None:
    """What a defense of classifiers found."""
    plan, task, done, findings = defense.plan, defense.measured.task, session.done, session.findings
    choices = read_choices(done[trial.pipeline.choices[task.name]].folder)
    place = trial.place | {"task": task.name, "head": trial.scenario.primary_head, "defense": plan.name}
    sides = [(subject, done[stage]) for subject, stage in defense.sides]
    if isinstance(plan.section, CertifySection):
        images = task.test.sample(plan.section.test_images, trial.run.child(defended_part(task.name)))()
        wanted = {aim.name: choice.label for aim, choice in zip(task.aims, choices.of)}
        certifier: Certifier | Smoother = plan.method.parameters
        size_is: Literal["patch", "radius"] = "radius" if isinstance(certifier, Smoother) else "patch"
        findings.records += certifier_records(place, certifier.measures, images.targets(), wanted, sides, size_is)
        promised = guarantee(certifier)
        told = Guaranteed(defense=plan.name, size_is=size_is, threat=promised.threat, covers_not=promised.covers_not)
        findings.guarantees.append(told)
        return
    if isinstance(plan.section, ScreenSection):
        screen: Screen = plan.method.parameters
        place |= {"head": None} if of_encoders(screen) else {}
        targets = [aim.name for aim in task.aims]
        findings.records += screen_records(place, screen.measures, targets, sides)
        findings.rocs += screen_curves(place, targets, sides)
        return
    judged = verdicts_on_classifiers(place, task.test().classes, sides)
    findings.verdicts += judged
    seconds: dict[State, float] = {subject.state: finished.seconds for subject, finished in sides}
    ids: dict[State, str] = {subject.state: subject.id for subject, _ in sides}
    labels = frozenset(choice.label for choice in choices.of)
    detector: ClassifierJudge = plan.method.parameters
    findings.records += detector_records(place, detector.measures, judged, labels, seconds, ids)


def look_at_encoders(trials: Sequence[Trial], session: Session) -> None:
    """Every detector of encoders on those that all trials of a variant made."""
    first, findings = trials[0], session.findings
    made = [subject for trial in trials for subject in trial.pipeline.subjects if subject.of == "encoder"]
    subjects = [subject for subject in made if subject.state != REPAIRED]  # who knows what those should be called?
    for plan in first.scenario.defenses:
        section = plan.section
        if not isinstance(section, FleetSection | ExamineSection):
            continue
        chosen = first_of_each(subjects, section.subjects)
        with located(f"{first.scenario.file}: {plan.key}"):
            if isinstance(section, FleetSection):
                answers = _by_fleet(first, plan, section, chosen, session)
            else:
                answers = _by_images(first, plan, chosen, session)
        place = first.place | {"defense": plan.name}
        judged = verdicts_on_encoders(place, chosen, answers)
        findings.verdicts += judged
        detector: EncoderLearner | EncoderExaminer = plan.method.parameters
        findings.records += records_of_encoders(place, detector.measures, judged)


def _by_fleet(
    trial: Trial, plan: DefensePlan, section: FleetSection, chosen: Sequence[Subject], session: Session
) -> list[Verdict]:
    """Verdicts of a detector that has learned from a fleet."""
    learner: EncoderLearner = plan.method.parameters
    lab, pairs = trial.lab, learner.pairs
    fleet = _fleet(trial.scenario, plan, section, trial.data, trial.run)
    members, learned = fleet.store(lab.store, section), learn(plan, fleet, trial.run)
    there = sum((members.root / twin.place).exists() for twin in learned.inputs[1::2])
    known = f", {there} + {there} of them are there" if there else ""
    lab.tell(f"{plan.name}: a fleet of {pairs} + {pairs} encoders, trained on {len(fleet.images)} images{known}")
    if lab.store.find(learned.place) is None:
        twins = set(learned.inputs[1::2])
        ours = nullcontext() if members is lab.store else members.locked()  # the run has locked its own
        with ours, trial.run.progress.bar(f"fleet of {pairs} + {pairs} encoders", pairs) as bar:

            def tell(stage: Stage, _finished: Finished) -> None:
                bar.advance(stage in twins)

            grown = execute(learned.inputs, members, executor=lab.executor, tell=tell)
        seconds = round(sum(finished.seconds for finished in grown.values()), 2)
        cached = all(finished.cached for finished in grown.values())
        session.tell(trial, f"{plan.name}, its fleet", Finished(members.root, seconds, cached))
        session.done |= grown
    subjects = tuple(subject.stage for subject in chosen)
    judge = Stage(Judge(plan=plan), trial.run, (learned, *subjects), title=f"{plan.name} on {len(chosen)} encoders")
    session.make({learned: trial, judge: trial})
    return verdicts(session.done[judge].folder)


def _by_images(trial: Trial, plan: DefensePlan, chosen: Sequence[Subject], session: Session) -> list[Verdict]:
    """Verdicts of a detector that asks for ordinary images only; each encoder is a stage of its own."""
    work = Examine(plan=plan, images=trial.data.images_of_pretraining(trial.scenario, trial.run))
    stages = []
    for subject in chosen:
        whose = f"the {subject.words}{f' for {subject.task}' if subject.task else ''} of seed {subject.seed}"
        own = replace(trial.run, seed=subject.seed)
        stages.append(Stage(work, own, (subject.stage,), title=f"{plan.name} on {whose}"))
    session.make(dict.fromkeys(stages, trial))
    return [verdict for stage in stages for verdict in verdicts(session.done[stage].folder)]


def hold_out(variant: Variant, findings: Findings) -> None:
    """For every detector, what a threshold from other seeds would have flagged."""
    scenario = variant.scenario
    ours = (verdict for verdict in findings.verdicts if verdict.attack == scenario.attack_name)
    for place, judged in by_detector(verdict for verdict in ours if verdict.condition == variant.condition):
        head = None if place["task"] is None else scenario.primary_head
        findings.records += held_out_records(place | {"head": head}, judged)


def check_fleets(scenario: Scenario, data: Data, lab: Lab) -> None:
    """Raises ``SapperError`` when a folder for a fleet has something else in it: now rather than after the training."""
    for plan in scenario.defenses:
        if isinstance(plan.section, FleetSection) and plan.section.fleet:
            with located(f"{scenario.file}: {plan.key}.fleet"):
                folder = Path(plan.section.fleet)
                if folder.resolve() == lab.store.root.resolve():
                    what, remedy = "this is the store's own folder", "name another one, or leave `fleet` out"
                    raise SapperError(what, where=str(folder), remedy=remedy)
                claimed(folder, _fleet(scenario, plan, plan.section, data, lab.run))


def _fleet(scenario: Scenario, plan: DefensePlan, section: FleetSection, data: Data, run: Run) -> Fleet:
    """What a detector of encoders learns from: encoders as the scenario's, trained by somebody with fewer images."""
    assert plan.shadows is not None
    (pretraining, attack), seed = plan.shadows, scenario.seeds[0] if section.seed is None else section.seed
    seeded = replace(run, seed=seed)
    images, references = data.of_fleet(scenario, plan, seeded)
    return Fleet(
        spec=scenario.encoder, pretraining=pretraining, attack=attack, images=images, references=references, run=seeded
    )
