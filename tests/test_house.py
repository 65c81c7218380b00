"""What the house promises and no linter checks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sapper import attacks, defenses, downstream, pretraining
from sapper.lab.sections import FleetSection
from sapper.methods import find

REPOSITORY = Path(__file__).resolve().parents[1]
TABLES = {
    "attacks": attacks.METHODS,
    "defenses": defenses.METHODS,
    "pretraining": pretraining.METHODS,
    "heads": downstream.HEADS,
}
METHODS = [(kind, name) for kind, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_method_says_what_it_is_and_where_it_comes_from(kind: str, name: str) -> None:
    method = find(kind, TABLES[kind], name, "here")
    assert method.__doc__
    assert method.source
    assert method.version >= 1
    assert method() == method(), "parameters have defaults and compare by value"
    for values in method.presets.values():
        method(**{key: value for key, value in values.items() if key not in FleetSection.model_fields})
    with pytest.raises(AttributeError):
        method().version = 2


@pytest.mark.parametrize(
    "module", ["sapper.cli", "sapper.attacks", "sapper.defenses", "sapper.pretraining", "sapper.datasets"]
)
def test_listing_what_there_is_never_imports_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_nothing_in_the_package_unpickles_what_comes_from_outside() -> None:
    """The executors hand jobs from a process of ours to another; and one program opens foreign files, locked in."""
    between_our_processes = REPOSITORY / "src" / "sapper" / "lab" / "executors.py"
    locked_in = REPOSITORY / "src" / "sapper" / "sandbox" / "inside.py"
    for path in (REPOSITORY / "src").rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert "torch.load(" not in code or path == locked_in, path
        assert not re.search(r"^import pickle$", code, re.MULTILINE) or path == between_our_processes, path
        assert "allow_pickle=True" not in code, path
