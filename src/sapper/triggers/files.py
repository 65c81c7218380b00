"""Triggers on disk: one file of tensors and plain data for all of them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sapper import tensors
from sapper.triggers.base import Trigger, from_tensors, to_tensors


def write_triggers(path: Path, triggers: Mapping[str, Trigger]) -> None:
    """Write the triggers with their names."""
    listed, values = [], dict[str, Tensor]()
    for number, (name, trigger) in enumerate(triggers.items()):
        plain, own = to_tensors(trigger)
        listed.append({"name": name, "trigger": plain})
        values |= {f"{number}/{key}": value for key, value in own.items()}
    tensors.save(path, values, listed)


def read_triggers(path: Path) -> dict[str, Trigger]:
    """What ``write_triggers`` wrote."""
    values = tensors.load(path)
    return {
        each["name"]: from_tensors(each["trigger"], tensors.below(f"{number}", values), str(path))
        for number, each in enumerate(tensors.load_plain(path))
    }
