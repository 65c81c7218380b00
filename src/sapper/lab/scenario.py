"""A scenario: one experiment as a short TOML file, checked key by key before anything runs."""

import json
import tomllib
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from sapper import attacks, downstream, pretraining
from sapper.errors import SapperError, closest
from sapper.methods import find
from sapper.triggers import Blend, Patch, Trigger

TRIGGERS: dict[str, type] = {"patch": Patch, "blend": Blend}


class Section(BaseModel):
    """A table of the file: known keys only, exact types, fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


S = TypeVar("S", bound=Section)


class EncoderSection(Section):
    """``[encoder]``: what is pre-trained. See ``encoders.build``."""

    architecture: str = "resnet18"
    width: PositiveInt = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    input_size: PositiveInt = 32
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)


class PretrainingSection(Section):
    """``[pretraining]``: data set, how many of its images (all by default), and the method with its parameters."""

    dataset: str
    images: PositiveInt | None = None
    method: str = "simclr"
    preset: str | None = None


class AttackSection(Section):
    """``[attack]``: the method with its parameters, and the attacker's shadow images.

    ``shadow``: a data set, the pre-training's by default. ``encoders``: one backdoored encoder for each task that
    has targets, as in the paper's main table, or one for all targets at once.
    """

    method: str = "badencoder"
    preset: str | None = None
    shadow: str | None = None
    shadow_images: PositiveInt | None = None
    encoders: Literal["one-per-task", "one-for-all"] = "one-per-task"


class TaskSection(Section):
    """``[[task]]``: a downstream task. ``train_images``, ``test_images`` take a random part of a split."""

    dataset: str
    name: str = ""
    train_images: PositiveInt | None = None
    test_images: PositiveInt | None = None


class TargetSection(Section):
    """``[[target]]``: what the attacker wants of a task. ``class`` is a name or a number."""

    task: str
    target_class: str | NonNegativeInt = Field(alias="class")
    name: str = ""
    references: PositiveInt = 1
    trigger: dict[str, Any] = Field(default_factory=dict)


class HeadSection(Section):
    """``[[head]]``: a downstream classifier. One of them is primary: the summary speaks of it."""

    method: str
    preset: str | None = None
    name: str = ""
    primary: bool = False


class ScenarioSection(Section):
    """The file's own keys; the tables are read one by one.

    ``judge_on = "validation"`` measures on a fifth of each training split, held out of it, instead of the test
    split: for choosing parameters without having seen a test image.
    """

    name: str
    seeds: list[NonNegativeInt] = Field(min_length=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    judge_on: Literal["test", "validation"] = "test"
    encoder: dict[str, Any] = Field(default_factory=dict)
    pretraining: dict[str, Any]
    attack: dict[str, Any] | None = None
    task: list[dict[str, Any]] = Field(min_length=1)
    target: list[dict[str, Any]] = Field(default_factory=list)
    head: list[dict[str, Any]] = Field(default_factory=list)
    variant: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A method chosen in a scenario: its name and its parameters (an instance of its dataclass)."""

    name: str
    parameters: Any


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """A target before its data is there."""

    name: str
    task: str
    target_class: str | int
    references: int
    trigger: Trigger


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A checked scenario. ``content`` is the file's content after all overrides, as plain data."""

    name: str
    seeds: tuple[int, ...]
    precision: str
    judge_on: str
    encoder: EncoderSection
    pretraining: PretrainingSection
    pretraining_method: Named
    attack: AttackSection | None
    attack_method: Named | None
    tasks: tuple[TaskSection, ...]
    targets: tuple[TargetPlan, ...]
    heads: tuple[Named, ...]
    primary_head: str
    variants: tuple[dict[str, Any], ...]
    content: dict[str, Any]
    file: str

    def with_variant(self, changes: dict[str, Any]) -> "Scenario":
        """This scenario with a variant's keys changed and no variants of its own."""
        content = deepcopy(self.content)
        content.pop("variant", None)
        for key, value in changes.items():
            override(content, key, value, self.file)
        return replace(parse(content, self.file), content=content)

    PRIMARY_DEFAULT: ClassVar[dict[str, Any]] = {"method": "mlp", "primary": True}


def read(path: Path, overrides: tuple[str, ...] = ()) -> Scenario:
    """The scenario in ``path`` with overrides such as ``attack.epochs=50`` applied.

    Raises ``SapperError`` naming file, key and remedy for everything that is not as it should be.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SapperError(f"cannot be read: {error}", where=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise SapperError(f"not valid TOML: {error}", where=str(path)) from error
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SapperError(f"{text!r} is not KEY=VALUE", where="--set", remedy="write for example attack.epochs=50")
        override(content, key.strip(), _value(value.strip()), "--set")
    return parse(content, str(path))


def parse(content: dict[str, Any], file: str) -> Scenario:
    """Check the content of a scenario file."""
    root = _section(ScenarioSection, content, file, "")
    if len(set(root.seeds)) < len(root.seeds):
        raise SapperError("a seed occurs twice", where=f"{file}: seeds")
    pretraining_section, pretraining_method = _with_method(
        PretrainingSection, root.pretraining, "pretraining", pretraining.METHODS, file, "pretraining"
    )
    attack_section, attack_method = None, None
    if root.attack is not None:
        attack_section, attack_method = _with_method(
            AttackSection, root.attack, "attacks", attacks.METHODS, file, "attack"
        )
    tasks = tuple(_task(raw, f"task[{i}]", file) for i, raw in enumerate(root.task))
    _unique([task.name for task in tasks], f"{file}: task", "task")
    targets = tuple(_target(raw, f"target[{i}]", file, tasks) for i, raw in enumerate(root.target))
    _unique([target.name for target in targets], f"{file}: target", "target")
    if (attack_section is None) != (not targets):
        missing = "[attack]" if attack_section is None else "[[target]]"
        raise SapperError(f"{missing} is missing: an attack needs targets and targets an attack", where=file)
    heads, primary = _heads(root.head or [Scenario.PRIMARY_DEFAULT], file)
    scenario = Scenario(
        name=root.name,
        seeds=tuple(root.seeds),
        precision=root.precision,
        judge_on=root.judge_on,
        encoder=_section(EncoderSection, root.encoder, file, "encoder"),
        pretraining=pretraining_section,
        pretraining_method=pretraining_method,
        attack=attack_section,
        attack_method=attack_method,
        tasks=tasks,
        targets=targets,
        heads=heads,
        primary_head=primary,
        variants=tuple(root.variant),
        content=content,
        file=file,
    )
    for target in targets:
        _at(f"{file}: target {target.name!r}", lambda t=target: t.trigger.check(*(scenario.encoder.input_size,) * 2))
    for changes in scenario.variants:
        scenario.with_variant(changes)
    return scenario


def override(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted ``key`` in ``content``; a list of tables on the way is changed in every table, or at a number."""
    head, _, rest = key.partition(".")
    if not rest:
        content[head] = value
        return
    below = content.setdefault(head, {})
    if isinstance(below, list):
        first, _, others = rest.partition(".")
        if first.isdigit() and int(first) >= len(below):
            raise SapperError(f"there is no {head} number {first}", where=f"{where} {key}")
        for table in below if not first.isdigit() else [below[int(first)]]:
            override(table, others if first.isdigit() else rest, value, where)
    elif isinstance(below, dict):
        override(below, rest, value, where)
    else:
        raise SapperError(f"{head!r} is not a table", where=f"{where} {key}")


def _value(text: str) -> Any:
    """A value as TOML has it; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _task(raw: dict[str, Any], key: str, file: str) -> TaskSection:
    task = _section(TaskSection, raw, file, key)
    return task if task.name else task.model_copy(update={"name": Path(task.dataset).stem})


def _target(raw: dict[str, Any], key: str, file: str, tasks: tuple[TaskSection, ...]) -> TargetPlan:
    section = _section(TargetSection, raw, file, key)
    names = [task.name for task in tasks]
    if section.task not in names:
        raise SapperError(f"no task {section.task!r}", where=f"{file}: {key}.task", remedy=closest(section.task, names))
    trigger = dict(section.trigger)
    kind = trigger.pop("kind", "patch")
    if kind not in TRIGGERS:
        where = f"{file}: {key}.trigger.kind"
        raise SapperError(f"unknown trigger {kind!r}", where=where, remedy=closest(str(kind), list(TRIGGERS)))
    return TargetPlan(
        name=section.name or f"{section.task}/{section.target_class}",
        task=section.task,
        target_class=section.target_class,
        references=section.references,
        trigger=_instance(TRIGGERS[kind], trigger, file, f"{key}.trigger"),
    )


def _heads(raws: list[dict[str, Any]], file: str) -> tuple[tuple[Named, ...], str]:
    sections, heads = [], []
    for i, raw in enumerate(raws):
        section, method = _with_method(HeadSection, raw, "heads", downstream.HEADS, file, f"head[{i}]")
        sections.append(section)
        heads.append(Named(name=section.name or section.method, parameters=method.parameters))
    _unique([head.name for head in heads], f"{file}: head", "head")
    primary = [head.name for section, head in zip(sections, heads) if section.primary or len(sections) == 1]
    if len(primary) != 1:
        remedy = "write primary = true in one [[head]]"
        raise SapperError(f"{len(primary)} heads are primary instead of one", where=f"{file}: head", remedy=remedy)
    return tuple(heads), primary[0]


def _with_method(
    model: type[Section], raw: dict[str, Any], kind: str, table: dict[str, str], file: str, key: str
) -> tuple[Any, Named]:
    """A section whose table also holds the parameters of its method: the section, and the method."""
    own = {field.alias or name for name, field in model.model_fields.items()}
    section: Any = _section(model, {k: v for k, v in raw.items() if k in own}, file, key)
    method = find(kind, table, section.method, f"{file}: {key}.method")
    if section.preset is not None and section.preset not in method.presets:
        remedy = closest(section.preset, list(method.presets)) if method.presets else f"{section.method} has none"
        raise SapperError(f"unknown preset {section.preset!r}", where=f"{file}: {key}.preset", remedy=remedy)
    given = {k: v for k, v in raw.items() if k not in own}
    parameters = _instance(method, method.presets.get(section.preset, {}) | given, file, key, also=sorted(own))
    return section, Named(name=section.method, parameters=parameters)


def _instance(kind: type, values: dict[str, Any], file: str, key: str, also: list[str] | None = None) -> Any:
    """An instance of a dataclass from a table; ``also`` are keys of the table that are not its own."""
    known = [field.name for field in fields(kind)]
    for name in values:
        if name not in known:
            remedy = closest(name, known + (also or []))
            raise SapperError(f"unknown key {name!r}", where=f"{file}: {key}.{name}", remedy=remedy)
    return _validated(TypeAdapter(kind), values, file, key, known)


def _section(model: type[S], values: dict[str, Any], file: str, key: str) -> S:
    known = [field.alias or name for name, field in model.model_fields.items()]
    result: S = _validated(TypeAdapter(model), values, file, key, known)
    return result


def _validated(adapter: TypeAdapter[Any], values: Any, file: str, key: str, known: list[str]) -> Any:
    try:
        # By way of JSON, because pydantic's strict mode then takes arrays for tuples, as TOML writes them.
        return adapter.validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([*([key] if key else []), *(str(part) for part in first["loc"])])
        name = str(first["loc"][-1]) if first["loc"] else key
        what, remedy = f"{first['msg']} (got {first['input']!r})", None
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            what, remedy = f"unknown key {name!r}", closest(name, known)
        elif first["type"] in ("missing", "missing_argument"):
            what, remedy = f"the key {name!r} is missing", f"add it to [{key}]" if key else "add it"
        raise SapperError(what, where=f"{file}: {path}", remedy=remedy) from error


def _unique(names: list[str], where: str, what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SapperError(f"two of them are called {name!r}", where=where, remedy=f"give each {what} its own name")


def _at(where: str, check: Any) -> None:
    """Run a check of the ground floor and say in which file and section it failed."""
    try:
        check()
    except SapperError as error:
        raise SapperError(
            error.what, where=f"{where}: {error.where}" if error.where else where, remedy=error.remedy
        ) from error
