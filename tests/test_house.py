"""What the house promises and no linter checks."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sapper import attacks, defenses, downstream, pretraining
from sapper.attacks import adaptive
from sapper.defenses.certify.patchcleanser import PatchCleanser
from sapper.defenses.certify.patchguard_ds import PatchGuardDS
from sapper.defenses.judge.mntd_encoder import MNTDEncoder
from sapper.defenses.judge.neural_cleanse import NeuralCleanse
from sapper.errors import SapperError
from sapper.methods import HEADS, find
from sapper.pretraining.simclr import SimCLR
from sapper.scenario.sections import FleetSection

REPOSITORY = Path(__file__).resolve().parents[1]
TABLES = {
    "attacks": attacks.METHODS,
    "defenses": defenses.METHODS,
    "pretraining": pretraining.METHODS,
    "heads": HEADS,
    "adaptive": adaptive.METHODS,
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
    ("make", "where"),
    [
        (lambda: PatchGuardDS(share=1.5), "PatchGuardDS.share"),
        (lambda: PatchGuardDS(share=1.0), "PatchGuardDS.share"),
        (lambda: PatchGuardDS(training="foo"), "PatchGuardDS.training"),  # type: ignore[arg-type]
        (lambda: PatchGuardDS(patch=-1), "PatchGuardDS.patch"),
        (lambda: NeuralCleanse(steps=0), "NeuralCleanse.steps"),
        (lambda: MNTDEncoder(sides=(0, 3)), "MNTDEncoder.sides"),
        (lambda: SimCLR(temperature=-0.1), "SimCLR.temperature"),
        (lambda: replace(PatchCleanser(), masks=0), "PatchCleanser.masks"),
        (lambda: downstream.MLP(epochs=0), "MLP.epochs"),
    ],
)
def test_parameters_are_checked_in_python_as_in_a_file(make: Callable[[], object], where: str) -> None:
    with pytest.raises(SapperError, match="does not fit") as caught:
        make()
    assert caught.value.where == where
    assert caught.value.remedy


@pytest.mark.parametrize(
    "module", ["sapper.cli", "sapper.attacks", "sapper.defenses", "sapper.pretraining", "sapper.datasets"]
)
def test_listing_what_there_is_never_imports_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_nothing_in_the_package_unpickles_what_comes_from_outside() -> None:
    """The executors hand jobs from a process of ours to another; foreign pickles are read by a machine of our own."""
    between_our_processes = REPOSITORY / "src" / "sapper" / "engine" / "executors.py"
    for path in (REPOSITORY / "src").rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert "torch.load(" not in code, path
        assert not re.search(r"^\s*(import|from) _?pickle\b", code, re.MULTILINE) or path == between_our_processes, path
        assert "allow_pickle=True" not in code, path
