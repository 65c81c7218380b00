"""Methods as sections name them."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sapper.errors import SapperError, closest
from sapper.methods import imported
from sapper.scenario.checking import Section, read_instance, read_section
from sapper.scenario.outline import keys, with_place

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Named(Generic[M]):
    """A method chosen in a scenario: its name and its parameters (an instance of its dataclass)."""

    name: str
    parameters: M


def with_method(
    model: type[Section], raw: dict[str, Any], kind: str, table: dict[str, str], file: str, key: str
) -> tuple[Any, Named]:
    """A section whose table also holds the parameters of its method: the section, and the method."""
    section: Any
    section, place = with_place(model, raw, kind, table, file, key)
    method, own = imported(place), keys(model)
    if section.preset is not None and section.preset not in method.presets:
        remedy = closest(section.preset, list(method.presets)) if method.presets else f"{section.method} has none"
        raise SapperError(f"unknown preset {section.preset!r}", where=f"{file}: {key}.preset", remedy=remedy)
    whole = method.presets.get(section.preset, {}) | raw
    section = read_section(model, {k: v for k, v in whole.items() if k in own}, file, key)
    given = {k: v for k, v in whole.items() if k not in own}
    parameters = read_instance(method, given, file, key, also=sorted(own))
    return section, Named(name=section.method, parameters=parameters)
