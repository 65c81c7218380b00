"""From a Scenario to Results: for each variant and seed the graph's stages, then the numbers.

data → pre-train → attack the encoder → build heads on the clean and the backdoored encoder → measure
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sapper import datasets
from sapper.attacks.references import choose_references, near_duplicates
from sapper.attacks.target import Target
from sapper.encoders import Encoder, load
from sapper.errors import SapperError, closest
from sapper.images import ImageSet
from sapper.lab import stages
from sapper.lab.environment import environment
from sapper.lab.findings import Findings, describe_images, unique
from sapper.lab.pictures import trigger_pictures
from sapper.lab.results import Results
from sapper.lab.scenario import Scenario, TargetPlan, TaskSection
from sapper.lab.stages import TaskData
from sapper.lab.store import Stage, Store
from sapper.run import Run

Data = dict[tuple[str, str], ImageSet]
"""Data sets by name and split."""

VALIDATION_SHARE = 0.2
"""How much of a training split ``judge_on = "validation"`` holds out."""


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
    variants = [(scenario.with_variant(changes), changes) for changes in scenario.variants] or [(scenario, {})]
    data = load_data([variant for variant, _ in variants], lab)
    found = Findings(out=lab.out, primary_head=scenario.primary_head)
    with lab.store.locked():
        for variant, condition in variants:
            for seed in scenario.seeds:
                _run_once(variant, condition, seed, data, lab, found)
    return Results(
        scenario=scenario.content | {"primary_head": scenario.primary_head},
        environment=environment(lab.run),
        command=lab.command,
        records=tuple(found.records),
        artifacts=unique(found.artifacts),
        datasets=tuple(describe_images(images) for images in data.values()),
        references=unique(found.references),
        curves=unique(found.curves),
        maps=tuple(found.maps),
        pictures=tuple(found.pictures),
        timings=tuple(found.timings),
        flags=unique(found.flags),
    )


def load_data(scenarios: list[Scenario], lab: Lab) -> Data:
    """Every data set that the scenarios name, checked against their tasks and targets."""
    data: Data = {}
    for scenario in scenarios:
        wanted = [(scenario.pretraining.dataset, "train")]
        wanted += [(task.dataset, split) for task in scenario.tasks for split in ("train", "test")]
        if scenario.attack is not None and scenario.attack.shadow:
            wanted.append((scenario.attack.shadow, "train"))
        for name, split in wanted:
            if (name, split) not in data:
                data[name, split] = datasets.load(
                    name, split, data_root=lab.data_root, size=scenario.encoder.input_size, download=lab.download
                )
        for task in scenario.tasks:
            datasets.check_task(data[task.dataset, "train"], data[task.dataset, "test"])
        for plan in scenario.targets:
            dataset = next(task.dataset for task in scenario.tasks if task.name == plan.task)
            target_label(plan, data[dataset, "train"], scenario.file)
    return data


def target_label(plan: TargetPlan, train: ImageSet, file: str) -> int:
    """The number of a target's class, which a scenario may name or number. Raises ``SapperError`` if there is none."""
    where, names = f"{file}: target {plan.name!r}.class", list(train.classes)
    if isinstance(plan.target_class, int):
        if plan.target_class >= len(names):
            remedy = f"{train.name} has the classes 0…{len(names) - 1}"
            raise SapperError(f"class {plan.target_class} is out of range", where=where, remedy=remedy)
        return plan.target_class
    if plan.target_class not in names:
        raise SapperError(f"no class {plan.target_class!r}", where=where, remedy=closest(plan.target_class, names))
    return names.index(plan.target_class)


def _run_once(scenario: Scenario, condition: dict[str, Any], seed: int, data: Data, lab: Lab, found: Findings) -> None:
    """One variant with one seed."""
    run = replace(lab.run, seed=seed)
    label = ", ".join([f"seed {seed}", *(f"{key} = {value}" for key, value in condition.items())])
    suffix = "".join(f"-{key.rpartition('.')[2]}-{value}" for key, value in condition.items())

    def done(name: str, stage: Stage) -> Stage:
        found.add_timing(seed, f"{name}{suffix}", stage)
        lab.tell(f"{name} ({label}): {'from the store' if stage.cached else f'{stage.seconds:.0f} s'}")
        return stage

    images = _part(data[scenario.pretraining.dataset, "train"], scenario.pretraining.images, run, "pretraining images")
    pretrained = done(
        "pre-training", stages.pretrain(lab.store, scenario.encoder, scenario.pretraining_method, images, run)
    )
    found.add_training(seed, "pre-training", pretrained, "clean-encoder", "clean")
    clean = stages.encoder_file(pretrained)
    encoder = load(clean, run)

    tasks: dict[str, tuple[TaskData, tuple[Target, ...], Stage]] = {}
    for section in scenario.tasks:
        plans = [plan for plan in scenario.targets if plan.task == section.name]
        task, targets, rows = _prepare(section, plans, data, encoder, run, scenario)
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
    shadow = data[scenario.attack.shadow, "train"] if scenario.attack.shadow else images
    shadow = _part(shadow, scenario.attack.shadow_images, run, "shadow images")
    attacked = [name for name, (_, targets, _) in tasks.items() if targets]
    for names in [attacked] if scenario.attack.encoders == "one-for-all" else [[name] for name in attacked]:
        together = " + ".join(names)
        targets = tuple(target for name in names for target in tasks[name][1])
        injected = done(
            f"attack on {together}",
            stages.attack(lab.store, clean, scenario.attack_method, shadow, targets, run),
        )
        found.add_training(
            seed, f"attack on {together}{suffix}", injected, "backdoored-encoder", f"{'+'.join(names)}{suffix}"
        )
        for name in names:
            task, targets, before = tasks[name]
            after = done(
                f"heads on the backdoored encoder, {name}",
                stages.downstream(lab.store, stages.encoder_file(injected), task, targets, scenario.heads, run),
            )
            found.add_attack(common, task, targets, before, after)
            if not scenario.variants and not condition:
                found.add_maps(seed, task, targets, before, after)
    if not condition and seed == scenario.seeds[0]:
        for task, targets, _ in tasks.values():
            found.pictures += trigger_pictures(task, targets, run)


def _prepare(
    section: TaskSection, plans: list[TargetPlan], data: Data, encoder: Encoder, run: Run, scenario: Scenario
) -> tuple[TaskData, tuple[Target, ...], dict[str, list[int]]]:
    """A task as its victim has it, its targets, and the rows of the training split that each attacker took.

    References are chosen on the whole training split and taken out of it, near-duplicates included, before the
    victim's part is drawn.
    """
    train, test = data[section.dataset, "train"], data[section.dataset, "test"]
    if scenario.judge_on == "validation":
        train, test = train.held_out(VALIDATION_SHARE, run.child(f"validation {section.name}").generator())
    targets, rows, gone = [], {}, []
    for plan in plans:
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
        train=_part(victims, section.train_images, run, f"train images {section.name}"),
        test=_part(test, section.test_images, run, f"test images {section.name}"),
    )
    return task, tuple(targets), rows


def _part(images: ImageSet, count: int | None, run: Run, name: str) -> ImageSet:
    """A random part of a set, or all of it."""
    return images.sample(count, run.child(name).generator()) if count else images
