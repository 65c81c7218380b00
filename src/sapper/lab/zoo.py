"""A zoo: many small encoders, clean and backdoored, made to measure detectors of backdoors by.

A plan, a short TOML file, names families of encoders and, for each part of the zoo, how many clean and how many
backdoored ones every family gives. The parts are for choosing (development), for knowing what clean encoders look like
(calibration) and for judging, and no encoder is in two of them. Where a plan has a table instead of a value, each
encoder draws its own:

    { any = [1, 2, 3] }            one of these
    { between = [3, 12] }          uniform, the ends included; a whole number if both ends are
    { log_between = [6, 24] }      the same on a logarithmic scale

A backdoored encoder is the twin of the clean one with its number in its part. All victims' heads are built alike, so
that each encoder's attack success is known.
"""

import json
import math
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from sapper import attacks, datasets, downstream, encoders, pretraining
from sapper.attacks.references import choose_references
from sapper.attacks.target import Target
from sapper.downstream import extract
from sapper.errors import SapperError, closest, located
from sapper.files import write_atomically
from sapper.images import ImageSet
from sapper.lab import stages
from sapper.lab.checking import Section, check_plain, check_unique, read_instance, read_section
from sapper.lab.executors import Workers
from sapper.lab.scenario import TRIGGERS, Named, with_method
from sapper.lab.sections import AttackSection, EncoderSection, FileName, HeadSection, PretrainingSection
from sapper.lab.stages import TaskData
from sapper.lab.store import Store
from sapper.metrics import attack_metrics
from sapper.run import Run, Silent
from sapper.triggers import Trigger

MANIFEST = "zoo.json"
"""In a zoo's folder: its members, and where their files are."""

ATTACKERS_SHARE, ATTACKERS_IMAGES = 0.2, 2000
"""Of a victim's training split what the attacker has instead, to choose references from, and how many at most."""

WORKING = 0.5
"""The strict ASR from which on a backdoor is said to work."""

ATTACKERS_CHOICE = 3
"""Of how many classes, those that an encoder tells best, the attacker takes one."""


class PartSection(Section):
    """``[part.NAME]``: how many encoders of either kind each family gives; a clean one for each backdoored one."""

    clean: PositiveInt
    backdoored: NonNegativeInt = 0


class ImagesSection(Section):
    """``[family.images]``: ordinary images, which detectors may look at; not those of the pre-training."""

    dataset: str
    split: str = "test"
    images: PositiveInt | None = None


class VictimSection(Section):
    """``[family.victim]``: the downstream task that is attacked and judged, and the attacker's ``references``."""

    dataset: str
    references: PositiveInt = 1
    train_images: PositiveInt | None = None
    test_images: PositiveInt | None = None


class FamilySection(Section):
    """``[[family]]``: encoders that are made alike, but for what each draws."""

    name: FileName
    encoder: dict[str, Any] = Field(default_factory=dict)
    pretraining: dict[str, Any]
    images: dict[str, Any]
    attack: dict[str, Any]
    victim: dict[str, Any]
    trigger: dict[str, Any] = Field(default_factory=dict)
    head: dict[str, Any] = Field(default_factory=lambda: {"method": "linear"})


class PlanSection(Section):
    """The file's own keys."""

    name: FileName
    seed: NonNegativeInt
    part: dict[str, dict[str, Any]] = Field(min_length=1)
    family: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One encoder of the zoo before it is made, and its backdoored twin where it has one."""

    family: str
    part: str
    number: int
    encoder: EncoderSection
    pretraining: PretrainingSection
    pretraining_method: Named
    attack: AttackSection
    attack_method: Named
    victim: VictimSection
    trigger: Trigger
    head: Named
    twin: bool
    seed: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.part}-{self.number}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked plan. ``images``: for each family where its ordinary images are from, and their size in pixels."""

    name: str
    seed: int
    parts: tuple[str, ...]
    specimens: tuple[Specimen, ...]
    images: dict[str, tuple[ImagesSection, int]]
    content: dict[str, Any]

    def of_parts(self, names: Sequence[str]) -> list[Specimen]:
        """The specimens of some parts, or of all where none is named. Raises ``SapperError`` for an unknown part."""
        for name in names:
            if name not in self.parts:
                raise SapperError(f"no part {name!r}", where=f"zoo {self.name}", remedy=closest(name, list(self.parts)))
        return [specimen for specimen in self.specimens if not names or specimen.part in names]


@dataclass(frozen=True, kw_only=True)
class Member:
    """An encoder of the zoo. ``file`` is relative to the zoo's folder.

    ``about``: what was drawn for it, and of a backdoored one its trigger, target and attack success.
    """

    name: str
    family: str
    part: str
    kind: str
    file: str
    about: dict[str, Any] = field(default_factory=dict)


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises ``SapperError`` naming file, key and remedy for everything that does not fit."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SapperError(f"cannot be read: {error}", where=str(path), remedy="name a TOML file of a zoo") from error
    except (ValueError, RecursionError) as error:
        raise SapperError(f"not valid TOML: {error}", where=str(path), remedy="mend that place") from error
    return parse_plan(content, str(path))


def parse_plan(content: dict[str, Any], file: str) -> Plan:
    """Check the content of a plan, by drawing all of its members."""
    check_plain(content, file)
    root = read_section(PlanSection, content, file, "")
    parts = {name: read_section(PartSection, raw, file, f"part.{name}") for name, raw in root.part.items()}
    for name, part in parts.items():
        if part.backdoored > part.clean:
            what, remedy = f"{part.backdoored} twins of {part.clean} clean encoders", "a twin needs its clean one"
            raise SapperError(what, where=f"{file}: part.{name}.backdoored", remedy=remedy)
    families = [read_section(FamilySection, raw, file, f"family[{i}]") for i, raw in enumerate(root.family)]
    check_unique([family.name for family in families], f"{file}: family", "family")
    images, specimens = {}, []
    for i, family in enumerate(families):
        key = f"family[{i}]"
        chosen = read_section(ImagesSection, family.images, file, f"{key}.images")
        with located(f"{file}: {key}.images.dataset"):
            datasets.check_name(chosen.dataset)
        trained_on = family.pretraining.get("dataset"), family.pretraining.get("split", "train")
        if (chosen.dataset, chosen.split) == trained_on and chosen.images is None:
            what, remedy = "these are the images of the pre-training", "name another split: a defender has other images"
            raise SapperError(what, where=f"{file}: {key}.images.split", remedy=remedy)
        for part_name, part in parts.items():
            for number in range(part.clean):
                twin = number < part.backdoored
                specimens.append(_specimen(family, part_name, number, twin, root.seed, file, key))
        kinds = {specimen.encoder for specimen in specimens if specimen.family == family.name}
        if len(kinds) > 1:
            what, remedy = "its encoders differ", "give encoders of each kind a family: a bag is of one kind"
            raise SapperError(what, where=f"{file}: {key}.encoder", remedy=remedy)
        images[family.name] = chosen, specimens[-1].encoder.input_size
    order = {name: place for place, name in enumerate(parts)}
    specimens.sort(key=lambda each: (order[each.part], each.number))  # a family is never far ahead of another
    return Plan(
        name=root.name,
        seed=root.seed,
        parts=tuple(parts),
        specimens=tuple(specimens),
        images=images,
        content=content,
    )


def _specimen(family: FamilySection, part: str, number: int, twin: bool, seed: int, file: str, key: str) -> Specimen:
    run = Run(seed=seed).child(f"{family.name} {part} {number}")

    def drawn(table: str) -> dict[str, Any]:
        with located(f"{file}: {key}.{table}"):
            values: dict[str, Any] = draw(getattr(family, table), run.child(table).generator())
        return values

    encoder = read_section(EncoderSection, drawn("encoder"), file, f"{key}.encoder")
    first, first_method = with_method(
        PretrainingSection, drawn("pretraining"), "pretraining", pretraining.METHODS, file, f"{key}.pretraining"
    )
    attack, attack_method = with_method(
        AttackSection, drawn("attack"), "attacks", attacks.METHODS, file, f"{key}.attack"
    )
    victim = read_section(VictimSection, drawn("victim"), file, f"{key}.victim")
    for table, dataset in (("pretraining", first.dataset), ("victim", victim.dataset)):
        with located(f"{file}: {key}.{table}.dataset"):
            datasets.check_name(dataset)
    _, head = with_method(HeadSection, drawn("head"), "heads", downstream.HEADS, file, f"{key}.head")
    return Specimen(
        family=family.name,
        part=part,
        number=number,
        encoder=encoder,
        pretraining=first,
        pretraining_method=first_method,
        attack=attack,
        attack_method=attack_method,
        victim=victim,
        trigger=_trigger(drawn("trigger"), encoder.input_size, run.child("place").generator(), file, f"{key}.trigger"),
        head=head,
        twin=twin,
        seed=run.seed,
    )


def _trigger(values: dict[str, Any], size: int, generator: torch.Generator, file: str, key: str) -> Trigger:
    """A trigger from its table. A patch whose position is ``anywhere`` is put there, uniformly."""
    kind = values.pop("kind", "patch")
    if not isinstance(kind, str) or kind not in TRIGGERS:
        what, remedy = f"unknown kind {kind!r} of trigger", closest(str(kind), list(TRIGGERS))
        raise SapperError(what, where=f"{file}: {key}.kind", remedy=remedy)
    if values.get("position") == "anywhere":
        side = values.get("size", 10)
        sides = side if isinstance(side, list) and len(side) == 2 else [side, side]
        free = [max(1, size - each + 1) if isinstance(each, int) else 1 for each in sides]
        values["position"] = [int(torch.randint(most, (), generator=generator)) for most in free]
    trigger: Trigger = read_instance(TRIGGERS[kind], values, file, key, also=["kind"])
    with located(f"{file}: {key}"):
        trigger.check(size, size)
    return trigger


def draw(value: Any, generator: torch.Generator) -> Any:
    """``value`` with every table that describes a draw replaced by what was drawn."""
    match value:
        case {"any": list(choices)} if len(value) == 1:
            if not choices:
                raise SapperError("there is nothing to draw from", remedy="name one value or more")
            return choices[int(torch.randint(len(choices), (), generator=generator))]
        case {"between": ends} if len(value) == 1:
            return _between(ends, generator, lambda x: x, lambda x: x)
        case {"log_between": ends} if len(value) == 1:
            return _between(ends, generator, math.log, math.exp)
        case dict():
            return {name: draw(each, generator) for name, each in value.items()}
        case list():
            return [draw(each, generator) for each in value]
    return value


def _between(
    ends: Any, generator: torch.Generator, scale: Callable[[float], float], back: Callable[[float], float]
) -> float:
    match ends:
        case [int() | float() as low, int() | float() as high] if low <= high and (scale is not math.log or low > 0):
            share = float(torch.rand((), generator=generator, dtype=torch.float64))
            if isinstance(low, int) and isinstance(high, int):
                # Each whole number has the part of the scale up to the next one.
                return min(high, math.floor(back(scale(low) + share * (scale(high + 1) - scale(low)))))
            return back(scale(low) + share * (scale(high) - scale(low)))
    remedy = "write [low, high], positive on a logarithmic scale"
    raise SapperError(f"{ends!r} is no range to draw from", remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process needs to make a specimen and its twin. Travels to other processes.

    ``task`` is the victim's, ``candidates`` are the attacker's images of it; both are there where there is a twin.
    """

    specimen: Specimen
    images: ImageSet
    shadow: ImageSet
    task: TaskData | None
    candidates: ImageSet | None
    run: Run

    def make(self, store: Store) -> list[Member]:
        """Train both, or find them in the store; measure the attack."""
        specimen, run = self.specimen, self.run
        with located(specimen.name):
            first = stages.pretrain(store, specimen.encoder, specimen.pretraining_method, self.images, run)
            clean = stages.encoder_file(first)
            members = [self._member("clean", clean, store, {})]
            if self.task is not None and self.candidates is not None:
                target = self._target(clean, self.candidates)
                attack = stages.attack(store, clean, specimen.attack_method, self.shadow, (target,), run)
                twin = stages.encoder_file(attack)
                members.append(
                    self._member("backdoored", twin, store, self._success(store, clean, twin, self.task, target))
                )
        return members

    def _target(self, clean: Path, candidates: ImageSet) -> Target:
        """One of the classes that the encoder tells best: an attacker's reference is of no use in any other."""
        encoder = encoders.load(clean, self.run)
        told = neighbor_recall(extract(encoder, candidates.images, self.run), candidates.targets())
        best = told.argsort(descending=True)[:ATTACKERS_CHOICE]
        label = int(best[torch.randint(len(best), (), generator=self.run.child("target").generator())])
        rows = choose_references(candidates, label, self.specimen.victim.references, encoder, self.run)
        return Target(
            name=self.specimen.name,
            task=candidates.name,
            label=label,
            class_name=candidates.classes[label],
            references=candidates.take(rows),
            trigger=self.specimen.trigger,
        )

    def _success(self, store: Store, clean: Path, twin: Path, task: TaskData, target: Target) -> dict[str, Any]:
        """What the backdoor does, measured on a victim's classifiers."""
        heads, targets = (self.specimen.head,), (target,)
        before, after = (
            stages.load_tensors(
                stages.downstream(store, file, task, targets, heads, self.run).folder / "predictions.safetensors"
            )
            for file in (clean, twin)
        )
        plain, stamped = f"{heads[0].name}/clean", f"{heads[0].name}/triggered/{target.name}"
        rates = attack_metrics(
            task.test.targets(),
            target.label,
            clean_on_clean=before[plain],
            clean_on_triggered=before[stamped],
            backdoored_on_clean=after[plain],
            backdoored_on_triggered=after[stamped],
        )
        attack = {"method": self.specimen.attack_method.name} | asdict(self.specimen.attack_method.parameters)
        return {
            "attack": attack,
            "target": stages.describe(target) | {"class": target.class_name},
            "metrics": {metric: rate.value for metric, rate in rates.items()},
        }

    def _member(self, kind: str, file: Path, store: Store, about: dict[str, Any]) -> Member:
        specimen = self.specimen
        drawn = {
            "encoder": specimen.encoder.model_dump(mode="json"),
            "pretraining": {"method": specimen.pretraining_method.name, "images": len(self.images)}
            | asdict(specimen.pretraining_method.parameters),
        }
        return Member(
            name=f"{specimen.name}-{kind}",
            family=specimen.family,
            part=specimen.part,
            kind=kind,
            file=str(file.relative_to(store.root)),
            about=drawn | about,
        )


def build(
    plan: Plan, folder: Path, run: Run, workers: Workers, *, parts: Sequence[str] = (), data: "Pantry"
) -> list[Member]:
    """Make the members of some parts of a zoo, or of all; those that are there are not made again.

    Leaves ``zoo.json``. On a CPU one process a core with one thread each trains them, on an accelerator they are
    trained one after another. Raises ``SapperError`` for a folder that holds another zoo.
    """
    specimens = plan.of_parts(parts)
    _claim(folder, plan)
    store = Store(folder)
    jobs = Jobs(specimens, data, store, run)
    with store.locked(), run.progress.bar(f"zoo of {_count(specimens)} encoders", len(jobs)) as bar:
        made = workers.run_on(run.device, Job.make, jobs, bar.advance)
        members = [member for pair in made for member in pair]
        kept = [member for member in read_members(folder) if member.part not in {each.part for each in members}]
        content = {"schema": 1, "plan": plan.content, "members": [asdict(member) for member in kept + members]}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    return members


@dataclass(frozen=True)
class Jobs(Sequence[tuple[Job, Store]]):
    """What processes need for each specimen, made when it is asked for: all images at once would be gigabytes."""

    specimens: Sequence[Specimen]
    data: "Pantry"
    store: Store
    run: Run

    def __len__(self) -> int:
        return len(self.specimens)

    def __getitem__(self, place: Any) -> Any:
        specimen = self.specimens[place]
        return self.data.job(specimen, replace(self.run, seed=specimen.seed, progress=Silent())), self.store


def _count(specimens: Sequence[Specimen]) -> str:
    twins = sum(specimen.twin for specimen in specimens)
    return f"{len(specimens)} clean and {twins} backdoored"


def summary(members: Sequence[Member]) -> str:
    """How many there are, and how many of the backdoors work, in words."""
    told = [member.about["metrics"]["ASR_strict"] for member in members if member.kind == "backdoored"]
    clean, working = len(members) - len(told), sum(asr >= WORKING for asr in told)
    text = f"{clean} clean and {len(told)} backdoored encoders"
    return f"{text}, {working} of them with a strict ASR of {WORKING:.0%} or more" if told else text


def read_members(folder: Path) -> list[Member]:
    """The members of the zoo in a folder. Raises ``SapperError`` if there is none."""
    try:
        return [Member(**member) for member in _manifest(folder)["members"]]
    except TypeError as error:
        raise SapperError(f"a member cannot be read: {error}", where=str(folder / MANIFEST)) from error


def plan_of(folder: Path) -> Plan:
    """The plan of the zoo in a folder."""
    return parse_plan(_manifest(folder)["plan"], str(folder / MANIFEST))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] == 1 and isinstance(content["members"], list) and isinstance(content["plan"], dict):
            return content
        raise ValueError("written by another version")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SapperError(
            f"no zoo can be read: {error}", where=str(path), remedy="sapper zoo build makes one"
        ) from error


def _claim(folder: Path, plan: Plan) -> None:
    """The folder as this plan's own."""
    if not (folder / MANIFEST).exists():
        content = {"schema": 1, "plan": plan.content, "members": []}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    elif _manifest(folder)["plan"] != json.loads(json.dumps(plan.content)):
        remedy = "name another folder with --out"
        raise SapperError("this folder holds a zoo of another plan", where=str(folder), remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Pantry:
    """The splits that a plan names, each in memory once. ``load`` it from a plan."""

    sets: dict[tuple[str, str, int], ImageSet]

    @staticmethod
    def load(plan: Plan, run: Run, *, parts: Sequence[str] = (), data_root: Path | None, download: bool) -> "Pantry":
        """Every split that some parts of the plan need, or all, those for detectors included.

        Raises ``SapperError`` for data that is missing.
        """
        wanted = dict.fromkeys(place for specimen in plan.of_parts(parts) for place in _places(specimen))
        wanted |= {(section.dataset, section.split, size): None for section, size in plan.images.values()}
        sets = {}
        with run.progress.bar("data", len(wanted)) as bar:
            for name, split, size in wanted:
                bar.advance(0, f"{name}, {split}")
                sets[name, split, size] = datasets.load(name, split, data_root=data_root, size=size, download=download)
                bar.advance()
        return Pantry(sets=sets)

    def job(self, specimen: Specimen, run: Run) -> Job:
        """The specimen with its images: each member draws its own part of them."""
        size = specimen.encoder.input_size
        first, attack = specimen.pretraining, specimen.attack
        images = self._part((first.dataset, first.split, size), first.images, run, "pretraining images")
        shadow = images.sample(attack.shadow_images or len(images), run.child("shadow images").generator())
        task, candidates = self._attacked(specimen, run) if specimen.twin else (None, None)
        return Job(specimen=specimen, images=images, shadow=shadow, task=task, candidates=candidates, run=run)

    def _part(self, place: tuple[str, str, int], count: int | None, run: Run, name: str) -> ImageSet:
        whole = self.sets[place]
        return whole.sample(count or len(whole), run.child(name).generator())

    def _attacked(self, specimen: Specimen, run: Run) -> tuple[TaskData, ImageSet]:
        """The victim's task, and the attacker's images of it, which the victim does not have."""
        victim, size = specimen.victim, specimen.encoder.input_size
        train = self.sets[victim.dataset, "train", size]
        rest, held = train.held_out(ATTACKERS_SHARE, run.child("attacker's images").generator())
        task = TaskData(
            name=victim.dataset,
            train=rest.sample(victim.train_images or len(rest), run.child("train images").generator()),
            test=self._part((victim.dataset, "test", size), victim.test_images, run, "test images"),
        )
        datasets.check_task(task.train, task.test)
        return task, held.sample(ATTACKERS_IMAGES, run.child("candidates").generator())


def neighbor_recall(features: Tensor, labels: Tensor, neighbors: int = 5) -> Tensor:
    """For each class the share of its images whose nearest other ones are mostly of that class, float (K,).

    ``features`` float (N, D), ``labels`` int64 (N,) with K − 1 as the largest; nearness is the cosine.
    """
    normal = F.normalize(features.cpu().float(), dim=1)
    similarity = normal @ normal.T
    similarity.fill_diagonal_(-math.inf)
    nearest = similarity.topk(min(neighbors, len(labels) - 1), dim=1).indices
    votes = F.one_hot(labels[nearest], int(labels.max()) + 1).sum(1)
    hits = (votes.argmax(1) == labels).double()
    counts = torch.bincount(labels).clamp_min(1)
    return torch.zeros(len(counts), dtype=torch.double).index_add_(0, labels, hits) / counts


def _places(specimen: Specimen) -> Iterator[tuple[str, str, int]]:
    size = specimen.encoder.input_size
    yield specimen.pretraining.dataset, specimen.pretraining.split, size
    if specimen.twin:
        yield specimen.victim.dataset, "train", size
        yield specimen.victim.dataset, "test", size


def ordinary_images(plan: Plan, family: str, run: Run, *, data_root: Path | None, download: bool) -> ImageSet:
    """The images that detectors may look at for a family's encoders."""
    section, size = plan.images[family]
    whole = datasets.load(section.dataset, section.split, data_root=data_root, size=size, download=download)
    return whole.sample(section.images or len(whole), run.child("ordinary images").generator())
