"""The plan of a zoo as far as it can be checked before torch is loaded: what it names, but not what it draws."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from sapper import datasets
from sapper.errors import SapperError, closest, located
from sapper.files import read_text, read_toml
from sapper.scenario.checking import Section, check_plain, check_unique, read_section
from sapper.scenario.sections import FileName

MANIFEST = "zoo.json"
"""In a zoo's folder: its plan, its members, and where their files are."""

SCHEMA = 2


class PartSection(Section):
    """``[part.NAME]``: how many encoders of either kind each family gives; a clean one for each backdoored one.

    A family may have none in a part: families as a whole are then in one part or another. They are numbered from
    ``first``: what encoder 7 is does not depend on how many there are, so a zoo can be made in portions.
    """

    first: NonNegativeInt = 0
    clean: NonNegativeInt
    backdoored: NonNegativeInt = 0


class ImagesSection(Section):
    """``[family.images]``: ordinary images, which detectors may look at; not those of the pre-training."""

    dataset: str
    split: str = "test"
    images: PositiveInt | None = None


class FamilySection(Section):
    """``[[family]]``: encoders that are made alike, but for what each draws. ``part``: numbers of its own."""

    name: FileName
    part: dict[str, dict[str, Any]] = Field(default_factory=dict)
    encoder: dict[str, Any] = Field(default_factory=dict)
    pretraining: dict[str, Any]
    images: dict[str, Any]
    attack: dict[str, Any]
    victim: dict[str, Any]
    trigger: dict[str, Any] = Field(default_factory=dict)
    head: dict[str, Any] = Field(default_factory=lambda: {"method": "linear"})


class PlanSection(Section):
    """The file's own keys. ``[template.NAME]``: tables of families that say ``like = ["NAME", …]``."""

    name: FileName
    seed: NonNegativeInt
    part: dict[FileName, dict[str, Any]] = Field(min_length=1)
    template: dict[FileName, dict[str, Any]] = Field(default_factory=dict)
    family: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A plan's families, each with its own numbers of encoders by part and its ordinary images."""

    name: str
    seed: int
    parts: tuple[str, ...]
    families: tuple[FamilySection, ...]
    numbers: tuple[dict[str, PartSection], ...]
    images: tuple[ImagesSection, ...]


def read_content(path: Path) -> dict[str, Any]:
    """The content of the TOML file of a plan. Raises ``SapperError`` for a file that cannot be read."""
    return read_toml(path, "name a TOML file of a zoo")


def outline(content: dict[str, Any], file: str) -> Outline:
    """Check the content of a plan before anything is drawn.

    Raises ``SapperError`` naming file, key and remedy for what is not as it should be.
    """
    check_plain(content, file)
    root = read_section(PlanSection, content, file, "")
    parts = _parts(root.part, file, "part")
    families = [
        read_section(FamilySection, _like(raw, root.template, f"{file}: family[{i}]"), file, f"family[{i}]")
        for i, raw in enumerate(root.family)
    ]
    check_unique([family.name for family in families], f"{file}: family", "family")
    numbers, images = [], []
    for i, family in enumerate(families):
        key = f"family[{i}]"
        chosen = read_section(ImagesSection, family.images, file, f"{key}.images")
        with located(f"{file}: {key}.images.dataset"):
            datasets.check_name(chosen.dataset)
        own = {name: {"first": root.part.get(name, {}).get("first", 0)} | raw for name, raw in family.part.items()}
        changed = _parts(own, file, f"{key}.part")
        with located(f"{file}: {key}.part"):
            check_parts(changed, tuple(parts))
        if not any(part.clean for part in (parts | changed).values()):
            what, remedy = "this family has no encoder in any part", "leave the family out, or give it some"
            raise SapperError(what, where=f"{file}: {key}.part", remedy=remedy)
        numbers.append(parts | changed)
        images.append(chosen)
    return Outline(
        name=root.name,
        seed=root.seed,
        parts=tuple(parts),
        families=tuple(families),
        numbers=tuple(numbers),
        images=tuple(images),
    )


def check_parts(names: Iterable[str], parts: tuple[str, ...]) -> None:
    """Raises ``SapperError`` for a part that a plan does not have."""
    for name in names:
        if name not in parts:
            raise SapperError(f"no part {name!r}", remedy=closest(name, list(parts)))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``zoo.json`` says in a zoo's folder: its ``plan`` and its ``members``, not yet checked.

    Raises ``SapperError`` for a folder without a zoo.
    """
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = json.loads(read_text(path, "sapper zoo build makes one", "no zoo can be read"))
        if not isinstance(content["members"], list) or not isinstance(content["plan"], dict):
            raise ValueError("no members, or no plan")
        if content["schema"] in (1, SCHEMA):
            return content if content["schema"] == SCHEMA else content | {"members": _renewed(content["members"])}
        raise ValueError("written by another version")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise SapperError(
            f"no zoo can be read: {error}", where=str(path), remedy="sapper zoo build makes one"
        ) from error


def _renewed(members: list[Any]) -> list[Any]:
    """Members of schema 1 in this one: there, an encoder was of the ``kind`` clean or backdoored, and had no parent."""
    states, renewed = {"clean": "clean", "backdoored": "attacked"}, []
    for member in members:
        if isinstance(member, dict) and "kind" in member:
            state, name = states.get(member["kind"], member["kind"]), str(member.get("name"))
            parent = f"{name.removesuffix('-backdoored')}-clean" if state == "attacked" else None
            member = {key: value for key, value in member.items() if key != "kind"} | {"state": state, "parent": parent}
        renewed.append(member)
    return renewed


def outline_of(folder: Path) -> Outline:
    """The outline of the plan of the zoo in a folder."""
    return outline(read_manifest(folder)["plan"], str(folder / MANIFEST))


def _like(raw: dict[str, Any], templates: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """A family's tables with what the templates say that it names; its own values win, then those of later ones.

    Of a table within a table all is taken: an { any = … }, say, is one value. Raises ``SapperError`` for an unknown
    template.
    """
    named, own = raw.get("like", []), {key: value for key, value in raw.items() if key != "like"}
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise SapperError("like is no list of names", where=f"{where}.like", remedy='write like = ["a", "b"]')
    made: dict[str, Any] = {}
    for name in named:
        if name not in templates:
            remedy = closest(name, list(templates))
            raise SapperError(f"there is no template {name!r}", where=f"{where}.like", remedy=remedy)
    for each in (*(templates[name] for name in named), own):
        for key, value in each.items():
            both = isinstance(value, dict) and isinstance(made.get(key), dict)
            made[key] = made[key] | value if both else value
    return made


def _parts(tables: dict[str, dict[str, Any]], file: str, key: str) -> dict[str, PartSection]:
    parts = {name: read_section(PartSection, raw, file, f"{key}.{name}") for name, raw in tables.items()}
    for name, part in parts.items():
        if part.backdoored > part.clean:
            what, remedy = f"{part.backdoored} twins of {part.clean} clean encoders", "a twin needs its clean one"
            raise SapperError(what, where=f"{file}: {key}.{name}.backdoored", remedy=remedy)
    return parts
