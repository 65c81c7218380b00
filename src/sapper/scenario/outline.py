"""A scenario as far as it can be checked before torch is loaded: all but the parameters of its methods."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapper import attacks, datasets, defenses, pretraining
from sapper.defenses.budgets import BUDGETS
from sapper.encoders.names import check_architecture
from sapper.errors import SapperError, closest, located
from sapper.files import read_toml
from sapper.methods import HEADS, TRIGGERS, known, place_of
from sapper.scenario.checking import Section, check_plain, check_unique, read_section
from sapper.scenario.overrides import apply, override, variant
from sapper.scenario.sections import (
    AttackSection,
    AuditSection,
    DefenseSection,
    EncoderSection,
    HeadSection,
    PretrainingSection,
    ScenarioSection,
    TargetSection,
    TaskSection,
)
from sapper.scenario.singles import check_only, singles


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The tables of a scenario that no method has a part in; of several attacks those of the first.

    ``sets``: the data sets of the attacks that are run, by their keys.
    """

    root: ScenarioSection
    encoder: EncoderSection
    tasks: tuple[TaskSection, ...]
    targets: tuple[TargetSection, ...]
    audit: AuditSection | None
    sets: dict[str, str]
    variants: tuple[dict[str, Any], ...] = ()


def read_content(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a TOML file, with overrides such as ``attack.epochs=50`` applied.

    Raises ``SapperError`` for a file that cannot be read, and for an override that cannot be made.
    """
    content = read_toml(path)
    for change in overrides:
        apply(content, change)
    return content


def outline(content: dict[str, Any], file: str) -> Outline:
    """Check a scenario file's content but for the parameters of methods.

    Raises ``SapperError`` naming file, key and remedy for what is not as it should be.
    """
    check_plain(content, file)
    root = read_section(ScenarioSection, content, file, "")
    if root.matrix and (root.attack is None or root.variant):
        what = "a matrix needs attacks" if root.attack is None else "a matrix has no variants"
        raise SapperError(what, where=f"{file}: matrix", remedy="leave it out, or add [[attack]] and no [[variant]]")
    outlines, sets, split = [], dict[str, str](), singles(content, file)
    if root.only is not None:
        check_only(root.only, split, file)
    for single in split:
        with single.placed(file):
            outlines.append(outline_single(single.content, file))
        if root.only is not None and single.name not in root.only:
            continue
        sets |= {
            single.place(f"{file}: {key}", file).removeprefix(f"{file}: "): name
            for key, name in outlines[-1].sets.items()
        }
    return replace(outlines[0], variants=tuple(_variants(root.variant, content, file)), sets=sets)


def outline_single(content: dict[str, Any], file: str) -> Outline:
    """The same for a scenario with one attack at most, and without variants."""
    root = read_section(ScenarioSection, content, file, "")
    if len(set(root.seeds)) < len(root.seeds):
        raise SapperError("a seed occurs twice", where=f"{file}: seeds", remedy="name each seed once")
    first, _ = with_place(PretrainingSection, root.pretraining, "pretraining", pretraining.METHODS, file, "pretraining")
    sets = {"pretraining.dataset": first.dataset}
    if isinstance(root.attack, dict):
        attack, _ = with_place(AttackSection, root.attack, "attacks", attacks.METHODS, file, "attack")
        sets |= {"attack.shadow": attack.shadow} if attack.shadow else {}
    tasks = tuple(_task(raw, f"task[{i}]", file) for i, raw in enumerate(root.task))
    sets |= {f"task[{i}].dataset": task.dataset for i, task in enumerate(tasks)}
    for key in ("pretraining.dataset", *(f"task[{i}].dataset" for i in range(len(tasks)))):
        with located(f"{file}: {key}"):
            datasets.check_name(sets[key])
    check_unique([task.name for task in tasks], f"{file}: task", "task")
    targets = tuple(_target(raw, f"target[{i}]", file, tasks) for i, raw in enumerate(root.target))
    check_unique([target.name for target in targets], f"{file}: target", "target")
    if root.attack is None and targets:
        remedy = "an attack needs targets, and targets need an attack"
        raise SapperError("[attack] is missing", where=file, remedy=remedy)
    for i, raw in enumerate(root.head):
        with_place(HeadSection, raw, "heads", HEADS, file, f"head[{i}]")
    encoder = read_section(EncoderSection, root.encoder, file, "encoder")
    with located(file):
        check_architecture(encoder.architecture)
    if root.defense and root.attack is None:
        what, remedy = "a defense needs an attack", "add [attack] and [[target]], or leave [[defense]] out"
        raise SapperError(what, where=f"{file}: defense", remedy=remedy)
    for i, raw in enumerate(root.defense):
        common = {field: raw[field] for field in DefenseSection.model_fields if field in raw}
        with_place(DefenseSection, common, "defenses", defenses.METHODS, file, f"defense[{i}]")
    audit = None if root.audit is None else _audit(root.audit, file)
    sets |= {} if audit is None else {"audit.images": audit.images}
    return Outline(root=root, encoder=encoder, tasks=tasks, targets=targets, audit=audit, sets=sets)


def with_place(
    model: type[Section], raw: dict[str, Any], kind: str, table: dict[str, str], file: str, key: str
) -> tuple[Any, str]:
    """A section whose table also holds the parameters of its method, without these; and the place of the method."""
    section: Any = read_section(model, {name: value for name, value in raw.items() if name in keys(model)}, file, key)
    name, where = section.method, f"{file}: {key}.method"
    others = (words for other, (names, words) in TABLES.items() if other != kind and name in known(other, names))
    belongs = next(others, None)
    if belongs is not None and name not in known(kind, table):
        raise SapperError(f"{name} is no method of this section", where=where, remedy=f"put it into {belongs}")
    return section, place_of(kind, table, name, where)


TABLES = {
    "pretraining": (pretraining.METHODS, "[pretraining]"),
    "attacks": (attacks.METHODS, "[attack]"),
    "defenses": (defenses.METHODS, "[[defense]]"),
    "heads": (HEADS, "[[head]]"),
}
"""The methods that sections choose from, and how these are written in a file."""


def keys(model: type[Section]) -> set[str]:
    """The keys that a section has in a file."""
    return {field.alias or name for name, field in model.model_fields.items()}


def changed(content: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    """A scenario's content with a variant's keys changed and no variants of its own."""
    content = deepcopy(content)
    content.pop("variant", None)
    for key, value in changes.items():
        override(content, key, value, where)
    return content


def trigger_kind(table: dict[str, Any], file: str, key: str) -> str:
    """The kind of trigger that a table describes: a patch if none is named."""
    kind = table.get("kind", "patch")
    there = known("triggers", TRIGGERS)
    if not isinstance(kind, str) or kind not in there:
        remedy = closest(str(kind), list(there))
        raise SapperError(f"unknown trigger {kind!r}", where=f"{file}: {key}.kind", remedy=remedy)
    return kind


def _task(raw: dict[str, Any], key: str, file: str) -> TaskSection:
    task = read_section(TaskSection, raw, file, key)
    return task if task.name else task.model_copy(update={"name": Path(task.dataset).stem})


def _audit(raw: dict[str, Any], file: str) -> AuditSection:
    section = read_section(AuditSection, raw, file, "audit")
    with located(f"{file}: audit.images"):
        datasets.check_name(section.images)
    if section.budget not in BUDGETS:
        remedy = closest(section.budget, list(BUDGETS))
        raise SapperError(f"no budget {section.budget!r}", where=f"{file}: audit.budget", remedy=remedy)
    return section


def _target(raw: dict[str, Any], key: str, file: str, tasks: tuple[TaskSection, ...]) -> TargetSection:
    """A target with its name, which is ``TASK/CLASS`` where none is given."""
    target = read_section(TargetSection, raw, file, key)
    names = [task.name for task in tasks]
    if target.task not in names:
        raise SapperError(f"no task {target.task!r}", where=f"{file}: {key}.task", remedy=closest(target.task, names))
    trigger_kind(target.trigger, file, f"{key}.trigger")
    return target.model_copy(update={"name": target.name or f"{target.task}/{target.target_class}"})


def _variants(raws: list[dict[str, Any]], content: dict[str, Any], file: str) -> Iterator[dict[str, Any]]:
    """What each variant changes; no two change the same, and each makes a scenario."""
    seen: list[dict[str, Any]] = []
    for i, raw in enumerate(raws):
        where = f"{file}: variant[{i}]"
        changes = variant(raw, where)
        if changes in seen:
            what, remedy = "an earlier variant changes the same", "leave one of them out"
            raise SapperError(what, where=where, remedy=remedy)
        outline(changed(content, changes, where), where)
        seen.append(changes)
        yield changes
