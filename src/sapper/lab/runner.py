"""From a Scenario to Results: for each variant and seed the graph's stages, then the numbers.

data → pre-train → attack the encoder → build heads on the clean and the backdoored encoder → measure
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from sapper.lab.findings import Findings, describe_images, unique
from sapper.lab.judging import certifier_records, detector_records, judgments
from sapper.lab.pictures import trigger_pictures
from sapper.lab.results import Results
from sapper.lab.scenario import Scenario
from sapper.lab.sections import CertifySection, TaskSection
from sapper.lab.stages import TaskData
from sapper.lab.store import Stage, Store
from sapper.run import Run


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where scenarios are run: the store, the folder for results, the data, and the surroundings.

    ``run`` gives device, number format and progress; its seed is replaced by the scenario's. ``tell`` receives one
    line for each finished stage. ``command`` is what a user types to repeat the run.
    """

    store: Store
    out: Path
    run: Run
    command: str
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
    with lab.store.locked():
        for variant in variants:
            for seed in scenario.seeds:
                _run_once(variant, seed, data, lab, found)
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

    ``early`` is the suffix of its pre-training, which it shares with variants that differ in later stages only.
    ``shown``: its pictures and maps are in the report; those of one variant are enough.
    """

    scenario: Scenario
    condition: dict[str, Any]
    suffix: str
    early: str
    shown: bool


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
            early=suffix(changes, "encoder", "pretraining"),
            shown=i == 0,
        )
        for i, changes in enumerate(scenario.variants or ({},))
    ]


def _run_once(variant: _Variant, seed: int, data: Data, lab: Lab, found: Findings) -> None:
    """One variant with one seed."""
    scenario, condition, run = variant.scenario, variant.condition, replace(lab.run, seed=seed)
    label = ", ".join([f"seed {seed}", *(f"{key} = {value}" for key, value in condition.items())])

    def done(name: str, stage: Stage) -> Stage:
        found.add_timing(seed, f"{name}{variant.suffix}", stage)
        lab.tell(f"{name} ({label}): {'from the store' if stage.cached else f'{stage.seconds:.0f} s'}")
        return stage

    images = data.of_pretraining(scenario, run)
    pretrained = done(
        "pre-training", stages.pretrain(lab.store, scenario.encoder, scenario.pretraining_method, images, run)
    )
    found.add_training(seed, f"pre-training{variant.early}", pretrained, "clean-encoder", f"clean{variant.early}")
    clean = stages.encoder_file(pretrained)
    encoder = load(clean, run)

    tasks: dict[str, tuple[TaskData, tuple[Target, ...], Stage]] = {}
    for section in scenario.tasks:
        task, targets, rows = _prepare(section, data, encoder, run, scenario)
        for target in targets:
            found.add_references(seed, target, task, rows[target.name])
        built = done(
            f"heads on the clean encoder, {task.name}",
            stages.downstream(lab.store, clean, task, targets, scenario.heads, run),
        )
        tasks[task.name] = task, targets, built

    common: dict[str, Any] = {"seed": seed, "condition": condition}
    for task, targets, built in tasks.values():
        if not targets:
            found.add_accuracy(common, task, built)
    if scenario.attack is None or scenario.attack_method is None:
        return

    common["attack"] = scenario.attack_method.name
    shadow = data.of_shadow(scenario, scenario.attack, images, run)
    attacked = [name for name, (_, targets, _) in tasks.items() if targets]
    for names in [attacked] if scenario.attack.encoders == "one-for-all" else [[name] for name in attacked]:
        together = " + ".join(names)
        targets = tuple(target for name in names for target in tasks[name][1])
        injected = done(
            f"attack on {together}",
            stages.attack(lab.store, clean, scenario.attack_method, shadow, targets, run),
        )
        found.add_training(
            *(seed, f"attack on {together}{variant.suffix}", injected, "backdoored-encoder"),
            f"{'+'.join(names)}{variant.suffix}",
        )
        for name in names:
            task, targets, before = tasks[name]
            after = done(
                f"heads on the backdoored encoder, {name}",
                stages.downstream(lab.store, stages.encoder_file(injected), task, targets, scenario.heads, run),
            )
            found.add_attack(common, task, targets, before, after)
            files = {"clean": clean, "backdoored": stages.encoder_file(injected)}
            _defend(scenario, task, targets, files, lab, run, common, done, found)
            if variant.shown:
                found.add_maps(seed, task, targets, before, after)
    if variant.shown and seed == scenario.seeds[0]:
        for task, targets, _ in tasks.values():
            found.pictures += trigger_pictures(task, targets, run)


def _defend(
    scenario: Scenario,
    task: TaskData,
    targets: tuple[Target, ...],
    files: dict[str, Path],
    lab: Lab,
    run: Run,
    common: dict[str, Any],
    done: Callable[[str, Stage], Stage],
    found: Findings,
) -> None:
    """Every defense on the classifiers of a task, those on the clean encoder and those on the backdoored one."""
    victims = {encoder: Victim(file, task, scenario.primary, run) for encoder, file in files.items()}
    for plan in scenario.defenses:
        if not plan.on(task.name):
            continue
        section = plan.section
        place = common | {"task": task.name, "head": scenario.primary_head, "defense": plan.name}
        titles = {encoder: f"{plan.name} on the {encoder} encoder, {task.name}" for encoder in victims}
        if isinstance(section, CertifySection):
            images = part(task.test, section.test_images, run, defended_part(task.name, plan.name))
            left = {
                encoder: done(titles[encoder], certify(lab.store, plan, section, victim, images, targets, run))
                for encoder, victim in victims.items()
            }
            found.records += certifier_records(place, images.targets(), targets, left)
        else:
            left = {
                encoder: done(titles[encoder], detect(lab.store, plan, section, victim, run))
                for encoder, victim in victims.items()
            }
            judged = judgments(place, task.train.classes, left)
            found.verdicts += judged
            found.records += detector_records(place, plan.method.parameters.metric, judged, targets, left)


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
