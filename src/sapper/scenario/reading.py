"""A scenario: one experiment as a short TOML file, checked key by key before anything runs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from sapper import attacks, encoders, pretraining
from sapper.attacks.target import TargetPlan
from sapper.errors import SapperError, located
from sapper.methods import HEADS, TRIGGERS, find
from sapper.pretraining.contracts import Pretraining
from sapper.running import Run
from sapper.samples import PixelSpec
from sapper.scenario.checking import check_unique, read_instance
from sapper.scenario.defending import DefensePlan, read_defense
from sapper.scenario.kinds import (
    DoesNotApplyError,
    check_attack,
    check_choosy,
    check_gray,
    check_relabels,
    check_subjects,
)
from sapper.scenario.named import Named, with_method
from sapper.scenario.outline import changed, outline, outline_single, read_content, trigger_kind
from sapper.scenario.sections import (
    AttackSection,
    AuditSection,
    DetectSection,
    EncoderSection,
    HeadSection,
    PretrainingSection,
    TargetSection,
    TaskSection,
)
from sapper.scenario.singles import Single, singles
from sapper.triggers import Trigger


@dataclass(frozen=True, kw_only=True)
class TaskTargetPlan(TargetPlan):
    """A target of a scenario before its data is there; its class by name or number."""

    task: str
    target_class: str | int


class LeftOut(NamedTuple):
    """A defense of a matrix that does not apply to the attack, and why."""

    defense: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A checked scenario. ``content`` is the file's content after all overrides, as plain data.

    ``variants``: for each the dotted keys that it changes, such as ``attack.lambda1``, and their values.
    ``singles``: of several attacks, or of one with tables of its own, the scenario of each; then what is said here is
    that of the first. ``only``: the names of those that are to be run; none for all. ``moved``: see
    ``singles.Single``. ``left_out``: of a matrix, defenses that do not apply.
    """

    name: str
    seeds: tuple[int, ...]
    precision: str
    judge_on: str
    encoder: EncoderSection
    pretraining: PretrainingSection
    pretraining_method: Named[Pretraining]
    attack: AttackSection | None
    attack_method: Named | None
    tasks: tuple[TaskSection, ...]
    targets: tuple[TaskTargetPlan, ...]
    heads: tuple[Named, ...]
    primary_head: str
    defenses: tuple[DefensePlan, ...]
    left_out: tuple[LeftOut, ...]
    audit: AuditSection | None
    variants: tuple[dict[str, Any], ...]
    content: dict[str, Any]
    file: str
    singles: tuple["Scenario", ...] = ()
    only: tuple[str, ...] | None = None
    moved: dict[str, str] = field(default_factory=dict)

    def with_variant(self, changes: dict[str, Any]) -> "Scenario":
        """This scenario with a variant's keys changed and no variants of its own."""
        return parse(changed(self.content, changes, self.file), self.file)

    @property
    def chosen(self) -> tuple["Scenario", ...]:
        """Those of the ``singles`` that are to be run."""
        return tuple(each for each in self.singles if self.only is None or each.attack_name in self.only)

    @property
    def attack_name(self) -> str | None:
        """What records call the attack."""
        named = self.attack_method.name if self.attack_method is not None else None
        return self.attack.name or named if self.attack is not None else None

    def placed(self) -> AbstractContextManager[None]:
        """Errors from inside name the key that stands in the file (``singles.Single``)."""
        return Single(self.content, self.moved).placed(self.file)

    def place(self, where: str) -> str:
        """A place in this scenario as one in the file."""
        return Single(self.content, self.moved).place(where, self.file)

    @property
    def primary(self) -> Named:
        """The head that the summary speaks of, and that defenses look at."""
        return next(head for head in self.heads if head.name == self.primary_head)

    def targets_of(self, task: TaskSection) -> list[TaskTargetPlan]:
        """What the attacker wants of ``task``."""
        return [plan for plan in self.targets if plan.task == task.name]

    PRIMARY_DEFAULT: ClassVar[dict[str, Any]] = {"method": "mlp", "primary": True}


def read(path: Path, overrides: tuple[str, ...] = ()) -> Scenario:
    """The scenario in ``path`` with overrides such as ``attack.epochs=50`` applied.

    Raises ``SapperError`` naming file, key and remedy for everything that is not as it should be.
    """
    return parse(read_content(path, overrides), str(path))


def parse(content: dict[str, Any], file: str) -> Scenario:
    """Check the content of a scenario file."""
    outlined, split, alone = outline(content, file), singles(content, file), list[Scenario]()
    targets = (target for single in split for target in single.content.get("target", ()))
    elsewhere = frozenset(str(target.get("task")) for target in targets) if outlined.root.matrix else frozenset()
    for single in split:
        with single.placed(file):
            alone.append(_single(single, file, elsewhere))
    own = isinstance(content.get("attack"), list) or alone[0].moved.keys() > {"attack"}
    scenario = replace(
        alone[0],
        content=content,
        variants=outlined.variants,
        singles=tuple(alone) if own else (),
        only=None if outlined.root.only is None else tuple(outlined.root.only),
        moved={},
    )
    _check_same_names(alone)
    for i, changes in enumerate(scenario.variants):
        replace(scenario, file=f"{file}: variant[{i}]").with_variant(changes)
    return scenario


def _single(single: Single, file: str, elsewhere: frozenset[str]) -> Scenario:
    """The scenario with one of its attacks. ``elsewhere``: of a matrix, the tasks that any attack is on."""
    content = single.content
    outlined = outline_single(content, file)
    root, encoder, tasks = outlined.root, outlined.encoder, outlined.tasks
    pretraining_section, pretraining_method = with_method(
        PretrainingSection, root.pretraining, "pretraining", pretraining.METHODS, file, "pretraining"
    )
    attack_section, attack_method = None, None
    if isinstance(root.attack, dict):
        attack_section, attack_method = with_method(
            AttackSection, root.attack, "attacks", attacks.METHODS, file, "attack"
        )
        asked = [target.task for target in outlined.targets]
        check_attack(attack_method.name, attack_method.parameters, root.attack, asked, f"{file}: attack")
        check_relabels(attack_method.name, attack_method.parameters, pretraining_method, f"{file}: attack.of")
        _check_shadow(attack_section, pretraining_section, file)
    size = encoder.input_size
    targets = tuple(_target(section, size, f"target[{i}]", file) for i, section in enumerate(outlined.targets))
    heads, primary = _heads(root.head or [Scenario.PRIMARY_DEFAULT], file)
    for i, head in enumerate(heads):
        if head.parameters.kind == "zero_shot" and "captions" not in pretraining_method.parameters.needs:
            what = f"{head.name} needs captions, and {pretraining_method.name} learns from images alone"
            raise SapperError(what, where=f"{file}: head[{i}].method", remedy="pre-train with clip")
    if attack_method is not None:
        check_choosy(attack_method.parameters, targets, [head.parameters for head in heads], f"{file}: attack")
    attacked = list(dict.fromkeys(target.task for target in targets))
    defenses, left_out = list[DefensePlan](), list[LeftOut]()
    kind = next(head for head in heads if head.name == primary)
    for i, raw in enumerate(root.defense if attack_method is not None else ()):
        assert attack_method is not None
        methods, where = (pretraining_method, attack_method), f"{file}: defense[{i}]"
        try:
            plan = read_defense(raw, f"defense[{i}]", file, attacked, encoder.input_size, methods, elsewhere)
            colored, reason = _in_colors(plan, tasks, attacked, where)
        except DoesNotApplyError as error:
            if not root.matrix:
                raise
            left_out.append(LeftOut(str(raw.get("name", raw["method"])), error.what))
            continue
        if reason is not None:
            if not root.matrix:
                raise reason
            left_out.append(LeftOut(plan.name, reason.what))
            plan = replace(plan, section=plan.section.model_copy(update={"tasks": colored}))
        if isinstance(plan.section, DetectSection):
            _check_subjects(plan.section.subjects, kind, attack_method, f"{where}.subjects")
        defenses.append(plan)
    check_unique([raw.get("name", raw["method"]) for raw in root.defense], f"{file}: defense", "defense")
    scenario = Scenario(
        name=root.name,
        seeds=tuple(root.seeds),
        precision=root.precision,
        judge_on=root.judge_on,
        encoder=encoder,
        pretraining=pretraining_section,
        pretraining_method=pretraining_method,
        attack=attack_section,
        attack_method=attack_method,
        tasks=tasks,
        targets=targets,
        heads=heads,
        primary_head=primary,
        defenses=tuple(defenses),
        left_out=tuple(left_out),
        audit=outlined.audit,
        variants=(),
        content=content,
        file=file,
        moved=single.moved,
    )
    size = scenario.encoder.input_size
    with located(file):
        check_encoder(scenario.encoder, size, "encoder.input_size")
        check_views(scenario.encoder, pretraining_method, "pretraining.view_size")
        for plan in defenses:
            if plan.shadows is not None:
                check_views(scenario.encoder, plan.shadows[0], f"{plan.key}.pretraining.view_size")
    for target in targets:
        with located(f"{file}: target {target.name!r}"):
            target.trigger.check(PixelSpec(size=size))
    return scenario


def _in_colors(
    plan: DefensePlan, tasks: Sequence[TaskSection], attacked: Sequence[str], where: str
) -> tuple[list[str], DoesNotApplyError | None]:
    """The attacked tasks that a defense can be tried on, and why not on the others, which are gray.

    Raises ``DoesNotApplyError`` where none is left.
    """
    ours = [task for task in tasks if task.name in attacked and plan.on(task.name)]
    gray, colored = ([task.name for task in ours if task.gray is kind] for kind in (True, False))
    try:
        check_gray(plan.method.name, plan.method.parameters, gray, where)
    except DoesNotApplyError as error:
        if not colored:
            raise
        return colored, error
    return [task.name for task in ours], None


def _check_subjects(subjects: int, head: Named, attack: Named, where: str) -> None:
    """Raises ``SapperError`` where several classifiers are to be judged, and the attack or the head makes one only."""
    check_subjects(subjects, attack.name, attack.parameters, where)
    if subjects > 1 and not head.parameters.seeded:
        what, remedy = f"{head.name} heads of every seed are the same", "judge one, or make an mlp head primary"
        raise SapperError(what, where=where, remedy=remedy)


def _check_same_names(scenarios: list[Scenario]) -> None:
    """What two attacks call the same is the same: the data set of a task, in colors or gray, the class of a target."""
    known: dict[tuple[str, ...], str | int] = {}
    for scenario in scenarios:
        named: list[tuple[str, str, str | int]] = [
            ("task", task.name, f"{task.dataset}{', gray' if task.gray else ''}") for task in scenario.tasks
        ]
        named += [("target", f"{plan.task}: {plan.name}", plan.target_class) for plan in scenario.targets]
        for table, name, meaning in named:
            if known.setdefault((table, name), meaning) != meaning:
                what = f"the {table} {name!r} is {meaning!r} here and {known[table, name]!r} for another attack"
                with scenario.placed():
                    raise SapperError(what, where=f"{scenario.file}: {table}", remedy="give one of them another name")


def check_views(section: EncoderSection, pretraining: Named[Pretraining], key: str) -> None:
    """The encoder takes views of the size that a pre-training makes, where it makes any of its own."""
    view, size = pretraining.parameters.view_size, section.input_size
    if view > size:
        what, remedy = f"views of {view} pixels are larger than the images", f"choose it at most {size}"
        raise SapperError(what, where=key, remedy=remedy)
    if view:
        check_encoder(section, view, key)


@cache
def check_encoder(section: EncoderSection, size: int, key: str) -> None:
    """Show two images to an encoder that a library makes; ours take images of any size."""
    if section.architecture in encoders.ARCHITECTURES and not section.arguments:
        return
    encoder = encoders.build(Run(), **section.model_dump())
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(2, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        what = f"{section.architecture} does not take images of {size} pixels: {error}"
        raise SapperError(what, where=key, remedy="name the size that it is made for") from error


def _check_shadow(attack: AttackSection, first: PretrainingSection, file: str) -> None:
    """Shadow images that are taken from those of the pre-training cannot be more."""
    own = attack.shadow is not None or attack.shadow_split is not None
    if not own and (attack.shadow_images or 0) > (first.images or attack.shadow_images or 0):
        what = f"{attack.shadow_images} images are wanted of the {first.images} that the encoder is pre-trained on"
        raise SapperError(what, where=f"{file}: attack.shadow_images", remedy="ask for fewer, or for all")


def _target(section: TargetSection, side: int, key: str, file: str) -> TaskTargetPlan:
    return TaskTargetPlan(
        name=section.name,
        task=section.task,
        target_class=section.target_class,
        references=section.references,
        side=side,
        trigger=read_trigger(section.trigger, file, f"{key}.trigger"),
    )


def read_trigger(table: dict[str, Any], file: str, key: str) -> Trigger:
    """The trigger that a table describes: its ``kind``, a patch if none is named, and its parameters."""
    values = {name: value for name, value in table.items() if name != "kind"}
    kind: type[Trigger] = find("triggers", TRIGGERS, trigger_kind(table, file, key), f"{file}: {key}.kind")
    if kind.needs_tensors():
        what, remedy = f"a trigger of the kind {kind.kind!r} cannot be written down", "choose one without tensors"
        raise SapperError(what, where=f"{file}: {key}.kind", remedy=remedy)
    trigger: Trigger = read_instance(kind, values, file, key, also=["kind"])
    return trigger


def _heads(raws: list[dict[str, Any]], file: str) -> tuple[tuple[Named, ...], str]:
    sections, heads = [], []
    for i, raw in enumerate(raws):
        section, method = with_method(HeadSection, raw, "heads", HEADS, file, f"head[{i}]")
        sections.append(section)
        heads.append(Named(name=section.name or section.method, parameters=method.parameters))
    check_unique([head.name for head in heads], f"{file}: head", "head")
    primary = [head.name for section, head in zip(sections, heads) if section.primary or len(sections) == 1]
    if len(primary) != 1:
        remedy = "write primary = true in one [[head]]"
        raise SapperError(f"{len(primary)} heads are primary instead of one", where=f"{file}: head", remedy=remedy)
    return tuple(heads), primary[0]
