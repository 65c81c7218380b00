"""From a Scenario to Results: for each variant and seed the graph's stages, then the numbers.

data → pre-train → attack the encoder → build heads on the clean and the backdoored encoder → measure → defend → measure
→ audit the encoders
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from sapper import datasets
from sapper.attacks.references import choose_references, near_duplicates
from sapper.attacks.target import Target
from sapper.encoders import Encoder, load
from sapper.engine.environment import environment
from sapper.engine.store import Stage
from sapper.errors import located
from sapper.experiment import stages
from sapper.experiment.audits import audit_encoders, check_audit
from sapper.experiment.data import Data, load_data, part, target_label, uses
from sapper.experiment.findings import Findings, describe_images, unique
from sapper.experiment.judging import Subject
from sapper.experiment.pictures import trigger_pictures
from sapper.experiment.results import Results
from sapper.experiment.running_defenses import claim_fleets, defend, hold_out, judge_encoders
from sapper.experiment.stages import TaskData
from sapper.experiment.trial import Lab, Trial, Variant
from sapper.run import Run
from sapper.scenario.reading import Scenario
from sapper.scenario.sections import TaskSection


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
        claim_fleets(variant.scenario, data, lab)
        check_audit(variant.scenario, data)
    with lab.store.locked():
        for variant in variants:
            trials = [
                Trial(variant=variant, data=data, lab=lab, found=found, run=replace(lab.run, seed=seed))
                for seed in scenario.seeds
            ]
            subjects = []
            for trial in trials:
                made = _perform(trial)
                audit_encoders(trial, made)
                subjects += made
            judge_encoders(trials[0], subjects)
            hold_out(variant, found)
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
        audits=tuple(found.audits),
        timings=tuple(found.timings),
        flags=unique(found.flags),
    )


def _datasets(data: Data, scenarios: list[Scenario]) -> tuple[dict[str, Any], ...]:
    """Every split with what the scenarios use of it."""
    found = [use for scenario in scenarios for use in uses(scenario)]
    return tuple(
        describe_images(images, [use for use in found if use.place == place]) for place, images in data.sets.items()
    )


EARLY = ("encoder", "pretraining")
"""Tables whose keys a pre-training depends on."""


def _variants(scenario: Scenario) -> list[Variant]:
    """The scenario's variants, or the scenario itself as the only one."""
    ends = {key: key.rpartition(".")[2] for changes in scenario.variants for key in changes}
    uses = Counter(ends.values())
    names = {key: end if uses[end] == 1 else key for key, end in ends.items()}

    def suffix(changes: dict[str, Any], *tables: str) -> str:
        """``-lambda1-0.25`` for the keys below ``tables``; with the whole key where its end could mean another."""
        return "".join(f"-{names[key]}-{value}" for key, value in changes.items() if key.startswith(tables))

    return [
        Variant(
            scenario=scenario.with_variant(changes) if changes else scenario,
            condition=changes,
            suffix=suffix(changes, ""),
            early=suffix(changes, *EARLY),
            attacked=suffix(changes, *EARLY, "attack", "task", "target"),
            shown=i == 0,
        )
        for i, changes in enumerate(scenario.variants or ({},))
    ]


def _perform(trial: Trial) -> list[Subject]:
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
            defend(trial, task, targets, {"clean": clean, "backdoored": backdoored})
            if variant.shown:
                found.add_maps(run.seed, task, targets, before, after)
    if variant.shown and run.seed == scenario.seeds[0]:
        for task, targets, _ in tasks.values():
            found.pictures += trigger_pictures(task, targets, run)
    return subjects


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
