"""Verdicts as stages leave them, with the triggers that were recovered."""

import json
from collections.abc import Sequence
from pathlib import Path

from sapper import tensors
from sapper.files import write_atomically
from sapper.verdicts import Verdict, from_tensors, to_tensors

VERDICTS, RECOVERED = "verdicts.json", "triggers.safetensors"

FORM = 2
"""Counts the forms of what ``leave_verdicts`` writes; in the key of every work that calls it."""


def leave_verdicts(folder: Path, verdicts: Sequence[Verdict]) -> None:
    """Write ``verdicts.json``, a list, and ``triggers.safetensors``, in which verdict i's tensors are ``i/name``."""
    written = [to_tensors(verdict) for verdict in verdicts]
    write_atomically(folder / VERDICTS, json.dumps([plain for plain, _ in written]))
    values = {f"{i}/{name}": value for i, (_, own) in enumerate(written) for name, value in own.items()}
    tensors.save(folder / RECOVERED, values)


def verdicts(folder: Path) -> list[Verdict]:
    """What ``leave_verdicts`` left."""
    values = tensors.load(folder / RECOVERED)
    written = json.loads((folder / VERDICTS).read_text(encoding="utf-8"))
    return [from_tensors(plain, tensors.below(f"{i}", values), str(folder)) for i, plain in enumerate(written)]
