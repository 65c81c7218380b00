"""A scenario's images: loaded once, divided among attacker, victim and judge."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sapper import datasets
from sapper.defenses.contracts import EncoderLearner
from sapper.errors import SapperError, closest, located
from sapper.experiment.repairing import RepairPlan
from sapper.experiment.sifting import SiftPlan
from sapper.experiment.tasks import Aim, Goals, Nearest, Part, Task
from sapper.running import Run
from sapper.samples import ImageSet, PairSet, Samples
from sapper.scenario.defending import DefensePlan
from sapper.scenario.kinds import kind_of
from sapper.scenario.reading import Scenario, TaskTargetPlan
from sapper.scenario.sections import (
    AttackSection,
    AuditSection,
    CertifySection,
    ClassifierRepairSection,
    DetectSection,
    ExamineSection,
    FleetSection,
    RepairSection,
    ScreenSection,
    TaskSection,
)

Place = tuple[str, str, int]
"""A data set's name, the split, and the size in pixels."""


@dataclass(frozen=True)
class Use:
    """What a scenario wants of a split: ``count`` of its images, or all of them, or a ``share``, for ``purpose``.

    ``key`` names the split in the scenario, ``count_key`` the number. ``labels``: whether they are needed.
    """

    place: Place
    purpose: str
    count: int | None
    key: str
    count_key: str
    share: float = 1.0
    labels: bool = True

    @property
    def amount(self) -> str:
        """How many images, for people."""
        return f"{self.count}" if self.count else f"{100 * self.share:g} %" if self.share < 1 else "all"


REFERENCES = 1000
"""How many training images of a task are at hand for the attacks of a fleet, of which each takes one."""

VALIDATION_SHARE = 0.2
"""How much of a training split ``judge_on = "validation"`` holds out."""


@dataclass(frozen=True)
class Data:
    """The splits that a scenario and its variants name, each in memory once."""

    sets: dict[Place, ImageSet]
    pairs: dict[Place, PairSet] = field(default_factory=dict)

    def of_pretraining(self, scenario: Scenario, run: Run) -> Part[Samples]:
        """What is pre-trained on: images, or images with captions where the method needs them."""
        place = place_of_pretraining(scenario)
        whole: Part[Samples] = Part.whole(self.pairs[place] if needs_captions(scenario) else self.sets[place])
        return whole.sample(scenario.pretraining.images, run.child("pretraining images"))

    def images_of_pretraining(self, scenario: Scenario, run: Run) -> Part[ImageSet]:
        """The images of what is pre-trained on."""
        return self.of_pretraining(scenario, run).changed("images", images_of)

    def of_shadow(self, scenario: Scenario, attack: AttackSection, run: Run) -> Part[ImageSet]:
        """The attacker's shadow images: from those of the pre-training, unless the scenario says more."""
        place = place_of_shadow(scenario, attack)
        whole = self.images_of_pretraining(scenario, run) if place is None else Part.whole(self.sets[place])
        return whole.sample(attack.shadow_images, run.child("shadow images"))

    def of_repair(self, scenario: Scenario, plan: DefensePlan, run: Run) -> RepairPlan:
        """A repair with the clean images that its owner holds, of those that the encoder was pre-trained on."""
        assert isinstance(plan.section, RepairSection)
        whole = scenario.pretraining.images or len(self.sets[place_of_pretraining(scenario)])
        count = plan.section.owned(whole)
        images = self.images_of_pretraining(scenario, run).sample(count, run.child("an owner's images"))
        return RepairPlan(**vars(plan), images=images)

    def of_sift(self, scenario: Scenario, plan: DefensePlan) -> SiftPlan:
        """A sift; who pre-trains without labels has none to sift by."""
        labeled = "labels" in scenario.pretraining_method.parameters.needs
        return SiftPlan(**vars(plan), head=scenario.primary, labeled=labeled)

    def of_fleet(self, scenario: Scenario, plan: DefensePlan, run: Run) -> tuple[ImageSet, ImageSet]:
        """What a fleet is trained on, and images that its attacks may refer to, whatever the defense is called.

        As many images as the defender's share of those that the encoders see, from all of the same split.
        """
        split = self.sets[place_of_pretraining(scenario)]
        learner: EncoderLearner = plan.method.parameters
        count = round(learner.share * (scenario.pretraining.images or len(split)))
        own = split.sample(count, run.child("images of a fleet").generator())
        tasks = [task for task in scenario.tasks if scenario.targets_of(task) and plan.on(task.name)]
        some = [
            self.sets[places_of_task(scenario, task)[0]].sample(
                REFERENCES, run.child(f"references {task.name}").generator()
            )
            for task in tasks
        ]
        together = torch.cat([images.images for images in some])
        return own, ImageSet(images=together, name=" + ".join(task.name for task in tasks))

    def of_audit(self, scenario: Scenario, section: AuditSection) -> ImageSet:
        """The ordinary images that encoders are audited with."""
        return self.sets[_of_audit(scenario, section)]

    def of_task(self, scenario: Scenario, section: TaskSection, run: Run) -> Task:
        """A task: from its whole training split an attacker chooses references, and the victim has the rest."""
        train, judged = self.splits_of_task(scenario, section, run)
        plans = scenario.targets_of(section)
        labels = [target_label(plan, train(), scenario.file) for plan in plans]
        aims = tuple(
            Aim(name=plan.name, trigger=plan.trigger, rule=Nearest(label, plan.references))
            for plan, label in zip(plans, labels)
        )
        return Task(
            goals=Goals(task=section.name, candidates=train, aims=aims),
            train=train,
            test=judged.sample(section.test_images, run.child(f"test images {section.name}")),
            draw=run.child(f"train images {section.name}"),
            count=section.train_images,
            gray=section.gray,
            where=f"{scenario.file}: task {section.name!r}, what is left for seed {run.seed}",
        )

    def splits_of_task(self, scenario: Scenario, task: TaskSection, run: Run) -> tuple[Part[ImageSet], Part[ImageSet]]:
        """All training images of a task, and those that its classifiers are judged on."""
        train, judged = places_of_task(scenario, task)
        if train != judged:
            return Part.whole(self.sets[train]), Part.whole(self.sets[judged])
        whole = Part.whole(self.sets[train])
        rest, held_out = whole.halves(VALIDATION_SHARE, run.child(f"validation {task.name}"))
        return rest.called(f"{whole().split} without what is held out"), held_out


def load_data(scenarios: list[Scenario], run: Run, *, data_root: Path | None, download: bool) -> Data:
    """Every split that the scenarios name.

    Raises ``SapperError`` naming file and key for data that is missing.
    """
    wanted: dict[Place, str] = {}
    labeled: set[Place] = set()
    for scenario in scenarios:
        for use in uses(scenario):
            wanted.setdefault(use.place, scenario.place(f"{scenario.file}: {use.key}"))
            labeled |= {use.place} if use.labels else set()
    data = Data({})
    with run.progress.bar("data", len(wanted)) as bar:
        for place, where in wanted.items():
            name, split, size = place
            bar.advance(0, f"{name}, {split}")
            with located(where):
                data.sets[place] = datasets.load(
                    name, split, data_root=data_root, size=size, download=download, labels=place in labeled
                )
            bar.advance()
    for scenario in scenarios:
        with scenario.placed():
            if needs_captions(scenario) and (place := place_of_pretraining(scenario)) not in data.pairs:
                name, split, size = place
                with located(f"{scenario.file}: pretraining.dataset"):
                    data.pairs[place] = datasets.load_pairs(name, split, size=size)
    return data


def part(images: ImageSet, count: int | None, run: Run, name: str) -> ImageSet:
    """A random part of a set, or all of it."""
    return images.sample(count, run.child(name).generator()) if count else images


def target_label(plan: TaskTargetPlan, train: ImageSet, file: str) -> int:
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


def uses(scenario: Scenario) -> Iterator[Use]:
    """The splits that a scenario uses, and what for."""
    first = scenario.pretraining
    key = f"pretraining.{'dataset' if first.split == 'train' else 'split'}"
    yield Use(place_of_pretraining(scenario), "pre-training", first.images, key, "pretraining.images")
    for i, task in enumerate(scenario.tasks):
        train, judged = places_of_task(scenario, task)
        yield Use(train, f"training on {task.name}", task.train_images, f"task[{i}].dataset", f"task[{i}].train_images")
        yield Use(judged, f"judging {task.name}", task.test_images, f"task[{i}].dataset", f"task[{i}].test_images")
        for plan in scenario.defenses:
            section = plan.section
            if isinstance(section, DetectSection | CertifySection) and defended(scenario, plan, task):
                purpose, own = f"{plan.name} on {task.name}", f"task[{i}].dataset"
                count = section.train_images or task.train_images
                yield Use(train, f"{purpose}, at hand", count, own, f"{plan.key}.train_images")
                if isinstance(section, CertifySection):
                    count = section.test_images or task.test_images
                    yield Use(judged, f"{purpose}, judged", count, own, f"{plan.key}.test_images")
                elif doubted(scenario, plan):
                    count = section.inputs or task.test_images
                    yield Use(judged, f"{purpose}, in doubt", count, own, f"{plan.key}.inputs")
            if isinstance(section, ClassifierRepairSection) and defended(scenario, plan, task):
                purpose, own, whole = (
                    f"{plan.name} on {task.name}, its owner's",
                    f"task[{i}].dataset",
                    task.train_images,
                )
                count = section.images if whole is None else section.owned(whole)
                share = 1.0 if section.images else section.share
                yield Use(train, purpose, count, own, f"{plan.key}.images", share)
            if isinstance(section, ScreenSection) and defended(scenario, plan, task):
                purpose, own = f"{plan.name} on {task.name}", f"task[{i}].dataset"
                count = task.test_images and round(section.share * task.test_images)
                share = 1.0 if count else section.share
                yield Use(judged, f"{purpose}, at hand", count, own, f"{plan.key}.share", share)
                yield Use(judged, f"{purpose}, judged", section.test_images, own, f"{plan.key}.test_images")
    for plan in scenario.defenses:
        if isinstance(plan.section, FleetSection):
            learner: EncoderLearner = plan.method.parameters
            share, whole, count_key = learner.share, first.images, f"{plan.key}.share"
            count = None if whole is None else round(share * whole)
            yield Use(place_of_pretraining(scenario), f"{plan.name}, its fleet", count, key, count_key, share)
        elif isinstance(plan.section, ExamineSection):
            yield Use(
                place_of_pretraining(scenario), f"{plan.name}, ordinary images", first.images, key, "pretraining.images"
            )
        elif isinstance(plan.section, RepairSection):
            purpose, share = f"{plan.name}, its owner's", 1.0 if plan.section.images else plan.section.share
            count, count_key = plan.section.images, f"{plan.key}.images"
            yield Use(place_of_pretraining(scenario), purpose, count, key, count_key, share)
    if scenario.audit is not None:
        key = f"audit.{'images' if scenario.audit.split is None else 'split'}"
        yield Use(_of_audit(scenario, scenario.audit), "audits", None, key, "audit.images", labels=False)
    if scenario.attack is not None and scenario.attack_method is not None:
        if kind_of(scenario.attack_method.parameters) != "implant":
            return
        key = f"attack.{'shadow' if scenario.attack.shadow_split is None else 'shadow_split'}"
        place, count = place_of_shadow(scenario, scenario.attack), scenario.attack.shadow_images
        if place is None:
            place, count = place_of_pretraining(scenario), count or first.images
        yield Use(place, "shadow", count, key, "attack.shadow_images")


def place_of_pretraining(scenario: Scenario) -> Place:
    return scenario.pretraining.dataset, scenario.pretraining.split, scenario.encoder.input_size


def needs_captions(scenario: Scenario) -> bool:
    """Whether what the encoder learns from are images with captions."""
    return "captions" in scenario.pretraining_method.parameters.needs


def images_of(samples: Samples) -> ImageSet:
    """The images alone, where there are captions, too."""
    assert isinstance(samples, ImageSet | PairSet)
    return samples.images if isinstance(samples, PairSet) else samples


def place_of_shadow(scenario: Scenario, attack: AttackSection) -> Place | None:
    """None: the very images of the pre-training."""
    if attack.shadow is None and attack.shadow_split is None:
        return None
    name = attack.shadow or scenario.pretraining.dataset
    return name, attack.shadow_split or "train", scenario.encoder.input_size


def _of_audit(scenario: Scenario, section: AuditSection) -> Place:
    return section.images, section.split or datasets.usual_split(section.images), scenario.encoder.input_size


def places_of_task(scenario: Scenario, task: TaskSection) -> tuple[Place, Place]:
    """The split to train on and the one to judge on; the same one where a part of it is held out for that."""
    train = task.dataset, "train", scenario.encoder.input_size
    return train, train if scenario.judge_on == "validation" else (task.dataset, "test", scenario.encoder.input_size)


def defended(scenario: Scenario, plan: DefensePlan, task: TaskSection) -> bool:
    """Whether a defense is tried on the classifiers of a task that is attacked."""
    return plan.on(task.name) and bool(scenario.targets_of(task))


def doubted(scenario: Scenario, plan: DefensePlan) -> bool:
    """Whether some of a task's test images come into service in part with a trigger, for a defense to look at.

    Where the attack is on the training set, that is looked at instead.
    """
    attack = scenario.attack_method
    poison = attack is not None and kind_of(attack.parameters) == "poison task"
    return "inputs" in plan.method.parameters.needs and not poison


def stream_part(task: str) -> str:
    """What the part of a task's test images is called that comes into service, the same for every such defense."""
    return f"test images {task}, in doubt"


def defended_part(task: str) -> str:
    """What the part of a task's test images is called that certified defenses are judged on."""
    return f"test images {task}, defended"
