"""Does what was loaded fit a scenario? Asked of all of it before anything runs."""

from dataclasses import replace
from typing import Any

from sapper import datasets, encoders
from sapper.attacks.contracts import Rated, Selective
from sapper.attacks.poisoning import check_enough, selected
from sapper.defenses.contracts import ClassifierJudge, EncoderLearner, Repair, Screen, Sift, Smoother
from sapper.errors import SapperError, located
from sapper.experiment.data import (
    Data,
    defended,
    defended_part,
    doubted,
    needs_captions,
    part,
    place_of_pretraining,
    place_of_shadow,
    places_of_task,
    target_label,
    uses,
)
from sapper.experiment.screening import judged_and_clean
from sapper.experiment.tasks import Part
from sapper.pretraining.contracts import check_count
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.defending import DefensePlan
from sapper.scenario.kinds import kind_of
from sapper.scenario.reading import Scenario, TaskTargetPlan
from sapper.scenario.sections import (
    CertifySection,
    ClassifierRepairSection,
    ExamineSection,
    FleetSection,
    RepairSection,
    ScreenSection,
    SiftSection,
    TaskSection,
)


def check_fit(scenario: Scenario, data: Data, run: Run) -> None:
    """Raises ``SapperError`` where what was loaded does not fit."""
    _check_pretraining(scenario, data.sets[place_of_pretraining(scenario)])
    _check_fleets(scenario, data.sets[place_of_pretraining(scenario)])
    _check_repairs(scenario, data.sets[place_of_pretraining(scenario)], run)
    _check_sifts(scenario, data.sets[place_of_pretraining(scenario)])
    _check_poison(scenario, data)
    _check_labels(scenario, data)
    for use in uses(scenario):
        images, (name, split, _) = data.sets[use.place], use.place
        _check_enough(use.count, images, f"{name} {split}", f"{scenario.file}: {use.count_key}")
    for i, task in enumerate(scenario.tasks):
        with located(f"{scenario.file}: task[{i}].dataset"):
            datasets.check_task(*(data.sets[place] for place in places_of_task(scenario, task)))
        for seed in scenario.seeds:
            seeded = replace(run, seed=seed)
            train, judged = (part() for part in data.splits_of_task(scenario, task, seeded))
            with located(f"{scenario.file}: task {task.name!r}, its part for seed {seed}"):
                datasets.check_task(
                    part(train, task.train_images, seeded, f"train images {task.name}"),
                    part(judged, task.test_images, seeded, f"test images {task.name}"),
                )
            for plan in scenario.targets_of(task):
                _check_references(plan, train, scenario.file)
            _check_defenders(scenario, task, train, judged, seeded)
    for seed in scenario.seeds:
        _check_attacked(scenario, data, replace(run, seed=seed))


def _check_defenders(scenario: Scenario, task: TaskSection, train: ImageSet, judged: ImageSet, run: Run) -> None:
    """Raises ``SapperError`` unless every defense that is tried on the task has the images that it asks for."""
    victims = part(train, task.train_images, run, f"train images {task.name}")
    test = part(judged, task.test_images, run, f"test images {task.name}")
    for plan in scenario.defenses:
        section, where = plan.section, f"{scenario.file}: {plan.key}"
        if isinstance(section, FleetSection | ExamineSection | RepairSection) or not defended(scenario, plan, task):
            continue
        if isinstance(section, ClassifierRepairSection):
            _check_classifier_repair(scenario, plan, section, victims, run, where)
            continue
        if isinstance(section, ScreenSection):
            screen: Screen = plan.method.parameters
            every = section.model_copy(update={"test_images": None})
            rest, clean = judged_and_clean(Part.whole(test), every, task.name, run)
            _check_enough(section.test_images, rest(), "what is judged of the task", f"{where}.test_images")
            with located(where):
                screen.check(len(clean()))
            continue
        if isinstance(section, SiftSection):
            _check_sift_of_task(scenario, plan.method.parameters, victims, where)
            continue
        _check_enough(section.train_images, victims, "the task", f"{where}.train_images")
        if isinstance(section, CertifySection):
            _check_enough(section.test_images, test, "the task", f"{where}.test_images")
            with located(f"{where}.test_images"):
                datasets.check_task(victims, part(test, section.test_images, run, defended_part(task.name)))
            if isinstance(plan.method.parameters, Smoother):
                with located(where, "."):
                    plan.method.parameters.check_classes(len(victims.classes))
        else:
            if doubted(scenario, plan):
                _check_enough(section.inputs, test, "the task", f"{where}.inputs")
            detector: ClassifierJudge = plan.method.parameters
            with located(where, "."):
                detector.check(section.train_images or len(victims), len(train.classes))


def _check_classifier_repair(
    scenario: Scenario, plan: DefensePlan, section: ClassifierRepairSection, victims: ImageSet, run: Run, where: str
) -> None:
    """Raises ``SapperError`` where the repair, or what recovers its trigger, cannot work with what its owner has."""
    _check_enough(section.images, victims, "the task", f"{where}.images")
    count, repair = section.owned(len(victims)), plan.method.parameters
    encoder = encoders.build(run, **scenario.encoder.model_dump())
    with located(where, "."):
        repair.check(encoder, count)
    if plan.detector is not None:
        with located(f"{where}.detector", "."):
            plan.detector.parameters.check(count, len(victims.classes))


def _check_pretraining(scenario: Scenario, images: ImageSet) -> None:
    """Raises ``SapperError`` where so many images are too few for what an encoder is pre-trained by."""
    with located(f"{scenario.file}: pretraining", "."):
        check_count(scenario.pretraining_method.parameters, scenario.pretraining.images or len(images))


def _check_fleets(scenario: Scenario, images: ImageSet) -> None:
    """Raises ``SapperError`` unless a defender's share of the images is enough for its fleet."""
    whole = scenario.pretraining.images or len(images)
    for plan in scenario.defenses:
        if isinstance(plan.section, FleetSection) and plan.shadows is not None:
            learner: EncoderLearner = plan.method.parameters
            (first, attack), own = (each.parameters for each in plan.shadows), round(learner.share * whole)
            with located(f"{scenario.file}: {plan.key}", "."):
                learner.check(whole, images.size)
            with located(f"{scenario.file}: {plan.key}.pretraining", "."):
                check_count(first, own)
            with located(f"{scenario.file}: {plan.key}.attack", "."):
                if isinstance(attack, Rated):
                    selected(attack.rate, own)


def _check_labels(scenario: Scenario, data: Data) -> None:
    """Raises ``SapperError`` where labels of the pre-training's or the shadow images are needed, and there are none."""
    images = data.sets[place_of_pretraining(scenario)]
    needing = [scenario.pretraining_method.name] if "labels" in scenario.pretraining_method.parameters.needs else []
    attack = scenario.attack_method
    if attack is not None and kind_of(attack.parameters) == "poison pretraining":
        needing += [attack.name] if "labels" in attack.parameters.needs else []
        if "captions" in attack.parameters.needs and not needs_captions(scenario):
            what = f"{attack.name} poisons captions, and {scenario.pretraining_method.name} learns from images alone"
            raise SapperError(what, where=f"{scenario.file}: pretraining.method", remedy="pre-train with clip")
    if needing and images.labels is None:
        what, remedy = f"{needing[0]} needs labels, and {images.name} has none", "pre-train on a set with labels"
        raise SapperError(what, where=f"{scenario.file}: pretraining.dataset", remedy=remedy)
    if scenario.attack is not None and attack is not None and kind_of(attack.parameters) == "implant":
        shadow = data.sets[place_of_shadow(scenario, scenario.attack) or place_of_pretraining(scenario)]
        if "labels" in attack.parameters.needs and shadow.labels is None:
            what, remedy = f"{attack.name} needs labels, and {shadow.name} has none", "name a set with labels"
            raise SapperError(what, where=f"{scenario.file}: attack.shadow", remedy=remedy)


def _check_attacked(scenario: Scenario, data: Data, run: Run) -> None:
    """Raises ``SapperError`` where an attack cannot work with the samples that it would be given."""
    section, method = scenario.attack, scenario.attack_method
    if section is None or method is None:
        return
    kind, selective = kind_of(method.parameters), method.parameters
    if not isinstance(selective, Selective):
        return
    if kind == "targeted":
        for split in (split for task in scenario.tasks for split in data.splits_of_task(scenario, task, run)):
            with located(f"{scenario.file}: attack"):
                selective.check_samples(split(), ())
    if kind not in ("implant", "poison pretraining"):  # others work on what the attacker's references leave
        return
    given: Part[Any] = data.of_pretraining(scenario, run)
    if kind == "implant":
        given = data.of_shadow(scenario, section, run)
    groups: dict[str, list[str]] = {}
    for task in scenario.tasks:
        train = data.sets[places_of_task(scenario, task)[0]]
        for plan in scenario.targets_of(task):
            wanted = train.classes[target_label(plan, train, scenario.file)]
            groups.setdefault("all" if section.encoders == "one-for-all" else task.name, []).append(wanted)
    for classes in groups.values():
        with located(f"{scenario.file}: attack"):
            selective.check_samples(given(), classes)


def _check_repairs(scenario: Scenario, images: ImageSet, run: Run) -> None:
    """Raises ``SapperError`` for repairs that cannot work on such an encoder, or with so many images."""
    whole = scenario.pretraining.images or len(images)
    repairs = [plan for plan in scenario.defenses if plan.repairs]
    encoder = encoders.build(run, **scenario.encoder.model_dump()) if repairs else None
    for plan in repairs:
        section = plan.section
        assert isinstance(section, RepairSection)
        assert encoder is not None
        where, count = f"{scenario.file}: {plan.key}", section.owned(whole)
        if count > whole:
            what = f"{count} images are wanted of the {whole} that the encoder is pre-trained on"
            raise SapperError(what, where=f"{where}.images", remedy="ask for fewer, or leave it out")
        repair: Repair = plan.method.parameters
        with located(where, "."):
            repair.check(encoder, count)


def _check_sifts(scenario: Scenario, images: ImageSet) -> None:
    """Raises ``SapperError`` for sifts that cannot work on the set of a pre-training, if that is what is poisoned."""
    if scenario.attack_method is None or kind_of(scenario.attack_method.parameters) != "poison pretraining":
        return
    labeled = "labels" in scenario.pretraining_method.parameters.needs
    for plan in scenario.defenses:
        if isinstance(plan.section, SiftSection):
            sift: Sift = plan.method.parameters
            with located(f"{scenario.file}: {plan.key}", "."):
                sift.check(scenario.pretraining.images or len(images), len(images.classes) if labeled else 0)


def _check_sift_of_task(scenario: Scenario, sift: Sift, victims: ImageSet, where: str) -> None:
    """Raises ``SapperError`` for a sift that cannot work on the ``victims``' training set, if that is poisoned."""
    if scenario.attack_method is not None and kind_of(scenario.attack_method.parameters) == "poison task":
        with located(where, "."):
            sift.check(len(victims), len(victims.classes))


def _check_poison(scenario: Scenario, data: Data) -> None:
    """Raises ``SapperError`` for a poison whose rate selects nothing, or more than all, of the set that it works on."""
    section, attack = scenario.attack, None if scenario.attack_method is None else scenario.attack_method.parameters
    if section is None or not isinstance(attack, Rated):
        return
    targets = {task.name: len(scenario.targets_of(task)) for task in scenario.tasks if scenario.targets_of(task)}
    if attack.of == "task":
        tasks = [task for task in scenario.tasks if task.name in targets]
        sizes = {task.name: task.train_images or len(data.sets[places_of_task(scenario, task)[0]]) for task in tasks}
    else:
        targets = {"all": sum(targets.values())} if section.encoders == "one-for-all" else targets
        sizes = dict.fromkeys(targets, scenario.pretraining.images or len(data.sets[place_of_pretraining(scenario)]))
    for name, size in sizes.items():
        with located(f"{scenario.file}: attack", "."):
            check_enough(targets[name] * selected(attack.rate, size), size, "samples for all targets together")


def _check_enough(count: int | None, images: ImageSet, owner: str, where: str) -> None:
    if count is not None and count > len(images):
        what = f"{count} images are wanted, but {owner} has {len(images)}"
        raise SapperError(what, where=where, remedy="ask for fewer, or for all")


def _check_references(plan: TaskTargetPlan, train: ImageSet, file: str) -> None:
    """Raises ``SapperError`` unless the target's class has images for the attacker and some are left for the victim."""
    ours = train.targets() == target_label(plan, train, file)
    there = int(ours.sum()) if train.groups is None else len(train.groups[ours].unique())
    if there <= plan.references:
        kind = "training images" if train.groups is None else "groups of near-duplicate training images"
        what = f"{plan.references} references are wanted, but {train.name} has {there} {kind} of the class"
        remedy = "ask for fewer; at least one must be left for the victim"
        raise SapperError(what, where=f"{file}: target {plan.name!r}.references", remedy=remedy)
