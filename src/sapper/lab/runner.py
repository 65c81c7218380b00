"""From a Scenario to Results: for each variant and seed the graph's stages, then the numbers.

data → pre-train → attack the encoder → build heads on the clean and the backdoored encoder → measure → defend → measure
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sapper import datasets
from sapper.attacks.references import choose_references, near_duplicates
from sapper.attacks.target import Target
from sapper.encoders import Encoder, load
from sapper.errors import located
from sapper.lab import stages
from sapper.lab.data import Data, defended_part, load_data, part, target_label, uses
from sapper.lab.defending import Victim, certify, detect
from sapper.lab.environment import environment
from sapper.lab.executors import Workers
from sapper.lab.findings import Findings, describe_images, unique
from sapper.lab.fleets import Fleet, claim, fit, judge
from sapper.lab.judging import (
    Subject,
    certifier_records,
    detector_records,
    encoder_judgments,
    first_of_each,
    held_out_records,
    judgments,
)
from sapper.lab.pictures import trigger_pictures
from sapper.lab.results import Judged, Results
from sapper.lab.scenario import DefensePlan, Scenario
from sapper.lab.sections import CertifySection, DetectSection, FleetSection, TaskSection
from sapper.lab.stages import TaskData
from sapper.lab.store import Stage, Store
from sapper.run import Run


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where scenarios are run: the store, the folder for results, the data, and the surroundings.

    ``run`` gives device, number format and progress; its seed is replaced by the scenario's. ``tell`` receives one
    line for each finished stage. ``command`` is what a user types to repeat the run. ``workers``: processes for work
    that goes faster in several.
    """

    store: Store
    out: Path
    run: Run
    command: str
    workers: Workers = field(default_factory=Workers)
    data_root: Path | None = None
    download: bool = False
    tell: Callable[[str], None] = lambda _line: None


def run_scenario(scenario: Scenario, lab: Lab) -> Results:
    """Run all variants and seeds; stages that the Store has are not repeated.

    Raises ``SapperError`` for data that is missing or does not fit, before any training starts.
    """
    variants = _variants(scenario)
    data = load_data(
        [variant.scenario for variant in variants], lab.run, data_root=lab.data_root, download=lab.download
    )
    found = Findings(out=lab.out, primary_head=scenario.primary_head)
    for variant in variants:
        _claim_fleets(variant.scenario, data, replace(lab.run, seed=scenario.seeds[0]))
    with lab.store.locked():
        for variant in variants:
            trials = [
                _Trial(variant=variant, data=data, lab=lab, found=found, run=replace(lab.run, seed=seed))
                for seed in scenario.seeds
            ]
            _judge(trials[0], [subject for trial in trials for subject in _perform(trial)])
            _hold_out(variant, found)
        found.place_files()
    return Results(
        scenario=scenario.content | {"primary_head": scenario.primary_head},
        environment=environment(lab.run),
        command=lab.command,
        records=tuple(found.records),
        artifacts=unique(found.artifacts),
        datasets=_datasets(data, [variant.scenario for variant in variants]),
        references=unique(found.references),
        curves=unique(found.curves),
        maps=tuple(found.maps),
        pictures=tuple(found.pictures),
        verdicts=tuple(found.verdicts),
        timings=tuple(found.timings),
        flags=unique(found.flags),
    )


def _datasets(data: Data, scenarios: list[Scenario]) -> tuple[dict[str, Any], ...]:
    """Every split with what the scenarios use of it."""
    found = [use for scenario in scenarios for use in uses(scenario)]
    return tuple(
        describe_images(images, [use for use in found if use.place == place]) for place, images in data.sets.items()
    )


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """A scenario with ``condition`` set; ``suffix`` is for names of what it makes.

    ``early`` and ``attacked`` are those of its pre-training and of its attacks, which it shares with variants that
    differ in later stages only.
    ``shown``: its pictures and maps are in the report; those of one variant are enough.
    """

    scenario: Scenario
    condition: dict[str, Any]
    suffix: str
    early: str
    attacked: str
    shown: bool


EARLY = ("encoder", "pretraining")
"""Tables whose keys a pre-training depends on."""


def _variants(scenario: Scenario) -> list[_Variant]:
    """The scenario's variants, or the scenario itself as the only one."""
    ends = {key: key.rpartition(".")[2] for changes in scenario.variants for key in changes}
    uses = Counter(ends.values())
    names = {key: end if uses[end] == 1 else key for key, end in ends.items()}

    def suffix(changes: dict[str, Any], *tables: str) -> str:
        """``-lambda1-0.25`` for the keys below ``tables``; with the whole key where its end could mean another."""
        return "".join(f"-{names[key]}-{value}" for key, value in changes.items() if key.startswith(tables))

    return [
        _Variant(
            scenario=scenario.with_variant(changes) if changes else scenario,
            condition=changes,
            suffix=suffix(changes, ""),
            early=suffix(changes, *EARLY),
            attacked=suffix(changes, *EARLY, "attack", "task", "target"),
            shown=i == 0,
        )
        for i, changes in enumerate(scenario.variants or ({},))
    ]


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One variant with one seed, ``run``'s, and where what it finds goes."""

    variant: _Variant
    data: Data
    lab: Lab
    found: Findings
    run: Run

    @property
    def scenario(self) -> Scenario:
        return self.variant.scenario

    @property
    def place(self) -> dict[str, Any]:
        """What all records share, but those of a task that nobody attacks: they have no ``attack``."""
        attack = self.scenario.attack_method
        attacked = {"attack": attack.name} if attack is not None else {}
        return {"seed": self.run.seed, "condition": self.variant.condition} | attacked

    def done(self, name: str, stage: Stage) -> Stage:
        """Keep the time that a stage took, and tell of it."""
        told = [f"seed {self.run.seed}", *(f"{key} = {value}" for key, value in self.variant.condition.items())]
        self.found.add_timing(self.run.seed, f"{name}{self.variant.suffix}", stage)
        self.lab.tell(f"{name} ({', '.join(told)}): {'from the store' if stage.cached else f'{stage.seconds:.0f} s'}")
        return stage


def _perform(trial: _Trial) -> list[Subject]:
    """Pre-train, attack, build heads, measure, defend; the encoders that were made."""
    scenario, variant, run, store, found = trial.scenario, trial.variant, trial.run, trial.lab.store, trial.found
    images = trial.data.of_pretraining(scenario, run)
    pretrained = trial.done(
        "pre-training", stages.pretrain(store, scenario.encoder, scenario.pretraining_method, images, run)
    )
    found.add_training(run.seed, f"pre-training{variant.early}", pretrained, "clean-encoder", f"clean{variant.early}")
    clean = stages.encoder_file(pretrained)
    encoder = load(clean, run)
    subjects = [Subject(seed=run.seed, encoder="clean", file=clean)]

    tasks: dict[str, tuple[TaskData, tuple[Target, ...], Stage]] = {}
    for section in scenario.tasks:
        task, targets, rows = _prepare(section, trial.data, encoder, run, scenario)
        for target in targets:
            found.add_references(run.seed, target, task, rows[target.name])
        built = trial.done(
            f"heads on the clean encoder, {task.name}",
            stages.downstream(store, clean, task, targets, scenario.heads, run),
        )
        tasks[task.name] = task, targets, built
        if not targets:
            found.add_accuracy({key: trial.place[key] for key in ("seed", "condition")}, task, built)
    if scenario.attack is None or scenario.attack_method is None:
        return subjects

    shadow = trial.data.of_shadow(scenario, scenario.attack, images, run)
    attacked = [name for name, (_, targets, _) in tasks.items() if targets]
    for names in [attacked] if scenario.attack.encoders == "one-for-all" else [[name] for name in attacked]:
        together = " + ".join(names)
        targets = tuple(target for name in names for target in tasks[name][1])
        injected = trial.done(
            f"attack on {together}",
            stages.attack(store, clean, scenario.attack_method, shadow, targets, run),
        )
        backdoored = stages.encoder_file(injected)
        subjects.append(Subject(seed=run.seed, encoder="backdoored", file=backdoored, task=together))
        found.add_training(
            *(run.seed, f"attack on {together}{variant.attacked}", injected, "backdoored-encoder"),
            f"{'+'.join(names)}{variant.attacked}",
        )
        for name in names:
            task, targets, before = tasks[name]
            after = trial.done(
                f"heads on the backdoored encoder, {name}",
                stages.downstream(store, backdoored, task, targets, scenario.heads, run),
            )
            found.add_attack(trial.place, task, targets, before, after)
            _defend(trial, task, targets, {"clean": clean, "backdoored": backdoored})
            if variant.shown:
                found.add_maps(run.seed, task, targets, before, after)
    if variant.shown and run.seed == scenario.seeds[0]:
        for task, targets, _ in tasks.values():
            found.pictures += trigger_pictures(task, targets, run)
    return subjects


def _defend(trial: _Trial, task: TaskData, targets: tuple[Target, ...], files: dict[str, Path]) -> None:
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
            trial.found.records += certifier_records(place, images.targets(), targets, left)
        elif isinstance(section, DetectSection):
            left = {
                encoder: trial.done(titles[encoder], detect(store, plan, section, victim, run))
                for encoder, victim in victims.items()
            }
            judged = judgments(place, task.train.classes, left)
            trial.found.verdicts += judged
            seconds = {encoder: stage.seconds for encoder, stage in left.items()}
            metric = plan.method.parameters.metric
            trial.found.records += detector_records(place, metric, judged, targets, seconds)


def _judge(trial: _Trial, subjects: list[Subject]) -> None:
    """Every detector of encoders on those that all seeds made; ``trial`` has the first seed."""
    scenario, store, run = trial.scenario, trial.lab.store, trial.run
    for plan in scenario.defenses:
        section = plan.section
        if not isinstance(section, FleetSection):
            continue
        fleet, pairs = _fleet(scenario, plan, trial.data, run), plan.method.parameters.pairs
        trial.lab.tell(f"{plan.name}: a fleet of {pairs} + {pairs} encoders, trained on {len(fleet.images)} images")
        fitted = trial.done(plan.name, fit(store, plan, section, fleet, trial.lab.workers, run))
        chosen = first_of_each(subjects, section.subjects)
        stage = trial.done(
            f"{plan.name} on {len(chosen)} encoders", judge(store, plan, fitted, [s.file for s in chosen], run)
        )
        place = trial.place | {"seed": None, "defense": plan.name}
        judged = encoder_judgments(place, chosen, stage)
        trial.found.verdicts += judged
        seconds = {"clean": stage.seconds, "backdoored": stage.seconds}
        trial.found.records += detector_records(place, plan.method.parameters.metric, judged, (), seconds)


def _hold_out(variant: _Variant, found: Findings) -> None:
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


def _fleet(scenario: Scenario, plan: DefensePlan, data: Data, run: Run) -> Fleet:
    """What a detector of encoders learns from: encoders as the scenario's, trained by somebody with fewer images."""
    assert plan.shadows is not None
    (pretraining, attack), (images, references) = plan.shadows, data.of_fleet(scenario, plan, run)
    return Fleet(
        spec=scenario.encoder, pretraining=pretraining, attack=attack, images=images, references=references, run=run
    )


def _claim_fleets(scenario: Scenario, data: Data, run: Run) -> None:
    """Raises ``SapperError`` when a folder for a fleet has another's in it: now rather than after the training."""
    for i, plan in enumerate(scenario.defenses):
        if isinstance(plan.section, FleetSection) and plan.section.fleet:
            with located(f"{scenario.file}: defense[{i}].fleet"):
                claim(Path(plan.section.fleet), _fleet(scenario, plan, data, run))


def _prepare(
    section: TaskSection, data: Data, encoder: Encoder, run: Run, scenario: Scenario
) -> tuple[TaskData, tuple[Target, ...], dict[str, list[int]]]:
    """A task as its victim has it, its targets, and the rows of the training split that each attacker took.

    References are chosen on the whole training split and taken out of it, near-duplicates included, before the
    victim's part is drawn.
    """
    train, test = data.of_task(scenario, section, run)
    targets, rows, gone = [], {}, []
    for plan in scenario.targets_of(section):
        label = target_label(plan, train, scenario.file)
        chosen = choose_references(train, label, plan.references, encoder, run)
        rows[plan.name] = chosen.tolist()
        gone += near_duplicates(train, chosen).tolist()
        targets.append(
            Target(
                name=plan.name,
                task=section.name,
                label=label,
                class_name=train.classes[label],
                references=train.take(chosen),
                trigger=plan.trigger,
            )
        )
    victims = train.without(torch.tensor(gone, dtype=torch.int64)) if gone else train
    task = TaskData(
        name=section.name,
        train=part(victims, section.train_images, run, f"train images {section.name}"),
        test=part(test, section.test_images, run, f"test images {section.name}"),
    )
    with located(f"{scenario.file}: task {section.name!r}, what is left for seed {run.seed}"):
        datasets.check_task(task.train, task.test)
    return task, tuple(targets), rows
