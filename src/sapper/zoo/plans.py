"""The plan of a zoo, a short TOML file: families of encoders, and how many of each.

For each part of the zoo every family gives some clean and some backdoored encoders. The parts are for choosing
(development), for knowing what clean encoders look like (calibration) and for judging, and no encoder is in two of
them. Where a plan has a table instead of a value, each encoder draws its own:

    { any = [1, 2, 3] }            one of these
    { between = [3, 12] }          uniform, the ends included; a whole number if both ends are
    { log_between = [6, 24] }      the same on a logarithmic scale

A backdoored encoder is the twin of the clean one with its number in its part. All victims' heads are built alike, so
that each encoder's attack success is known.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt

from sapper import attacks, datasets, pretraining
from sapper.attacks.contracts import Relabeling
from sapper.attacks.target import TargetPlan
from sapper.errors import SapperError, located
from sapper.methods import HEADS
from sapper.pretraining.contracts import Pretraining
from sapper.running import Run
from sapper.samples import PixelSpec
from sapper.scenario.checking import Section, read_section
from sapper.scenario.kinds import check_choosy, check_makes_encoders, check_relabels
from sapper.scenario.named import Named, with_method
from sapper.scenario.reading import check_encoder, check_views, read_trigger
from sapper.scenario.sections import AttackSection, EncoderSection, HeadSection, PretrainingSection
from sapper.triggers import Trigger
from sapper.zoo.outline import FamilySection, ImagesSection, check_parts, outline, read_content


class VictimSection(Section):
    """``[family.victim]``: the downstream task that is attacked and judged, and the attacker's ``references``."""

    dataset: str
    references: PositiveInt = 1
    train_images: PositiveInt | None = None
    test_images: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One encoder of the zoo before it is made, and its backdoored twin where it has one."""

    family: str
    part: str
    number: int
    encoder: EncoderSection
    pretraining: PretrainingSection
    pretraining_method: Named[Pretraining]
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

    @property
    def captioned(self) -> bool:
        """Whether it learns from images with captions."""
        return "captions" in self.pretraining_method.parameters.needs


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
        with located(f"zoo {self.name}"):
            check_parts(names, self.parts)
        return [specimen for specimen in self.specimens if not names or specimen.part in names]


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises ``SapperError`` naming file, key and remedy for everything that does not fit."""
    return parse_plan(read_content(path), str(path))


def parse_plan(content: dict[str, Any], file: str) -> Plan:
    """Check the content of a plan, by drawing all of its members."""
    plan = outline(content, file)
    images, specimens = {}, []
    for i, (family, numbers, chosen) in enumerate(zip(plan.families, plan.numbers, plan.images)):
        key = f"family[{i}]"
        for part_name, part in numbers.items():
            for number in range(part.first, part.first + part.clean):
                twin = number < part.first + part.backdoored
                specimens.append(_specimen(family, part_name, number, twin, plan.seed, file, key))
        its = [specimen for specimen in specimens if specimen.family == family.name]
        if (chosen.dataset, chosen.split) in {(each.pretraining.dataset, each.pretraining.split) for each in its}:
            what, remedy = "these are the images of the pre-training", "name another split: a defender has other images"
            raise SapperError(what, where=f"{file}: {key}.images.split", remedy=remedy)
        if len({specimen.encoder for specimen in its}) > 1:
            what, remedy = "its encoders differ", "give encoders of each kind a family: a bag is of one kind"
            raise SapperError(what, where=f"{file}: {key}.encoder", remedy=remedy)
        images[family.name] = chosen, its[-1].encoder.input_size
    order = {name: place for place, name in enumerate(plan.parts)}
    specimens.sort(key=lambda each: (order[each.part], each.number))  # a family is never far ahead of another
    return Plan(
        name=plan.name,
        seed=plan.seed,
        parts=plan.parts,
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
    if attack.name is not None or attack.instead:
        what, remedy = "an attack of a family has neither a name nor tables of its own", "leave name and instead out"
        raise SapperError(what, where=f"{file}: {key}.attack", remedy=remedy)
    check_makes_encoders(attack_method.name, attack_method.parameters, f"{file}: {key}.attack.method")
    check_relabels(attack_method.name, attack_method.parameters, first_method, f"{file}: {key}.attack.of")
    with located(f"{file}: {key}", "."):
        check_encoder(encoder, encoder.input_size, "encoder.input_size")
        check_views(encoder, first_method, "pretraining.view_size")
    victim = read_section(VictimSection, drawn("victim"), file, f"{key}.victim")
    if isinstance(attack_method.parameters, Relabeling) and victim.dataset != first.dataset:
        what = f"{attack_method.name} changes labels of {first.dataset}, and the victim's task is {victim.dataset}"
        remedy = "name the data set of the pre-training as the victim's"
        raise SapperError(what, where=f"{file}: {key}.victim.dataset", remedy=remedy)
    for table, dataset in (("pretraining", first.dataset), ("victim", victim.dataset)):
        with located(f"{file}: {key}.{table}.dataset"):
            datasets.check_name(dataset)
    _, head = with_method(HeadSection, drawn("head"), "heads", HEADS, file, f"{key}.head")
    trigger = _trigger(drawn("trigger"), encoder.input_size, run.child("place").generator(), file, f"{key}.trigger")
    plan = TargetPlan(name=family.name, trigger=trigger, references=victim.references, side=encoder.input_size)
    check_choosy(attack_method.parameters, [plan], [head.parameters], f"{file}: {key}.attack")
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
        trigger=trigger,
        head=head,
        twin=twin,
        seed=run.seed,
    )


def _trigger(values: dict[str, Any], size: int, generator: torch.Generator, file: str, key: str) -> Trigger:
    """A trigger from its table. A patch whose position is ``anywhere`` is put there, uniformly."""
    if values.get("position") == "anywhere":
        side = values.get("size", 10)
        sides = side if isinstance(side, list) and len(side) == 2 else [side, side]
        free = [max(1, size - each + 1) if isinstance(each, int) else 1 for each in sides]
        values["position"] = [int(torch.randint(most, (), generator=generator)) for most in free]
    trigger = read_trigger(values, file, key)
    with located(f"{file}: {key}"):
        trigger.check(PixelSpec(size=size))
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
