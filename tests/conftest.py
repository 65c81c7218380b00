"""Fixtures that several test files share."""

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from hypothesis import settings

from sapper import cli
from sapper.__main__ import main
from tests.program import Ended, Install, Sapper

# The tests' networks are tiny: a second thread gains nothing, and on a busy machine the two wait for one another.
# Set here because torch reads it when it is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says something of the machine, and nothing of us.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data sets on this machine: SAPPER_DATA, else ../shared/data beside the repository, else skip."""
    root = Path(os.environ.get("SAPPER_DATA") or REPOSITORY.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set SAPPER_DATA to run this")
    return root


@pytest.fixture(scope="session")
def sandbox_holds() -> None:
    """Skips where this machine has no filter of system calls: there foreign pickles are refused unread."""
    program = "from sapper.sandbox import lockdown; print(lockdown.lock() or '')"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    if hole := (said.stdout + said.stderr).strip():
        pytest.skip(f"no sandbox here: {hole}")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAPPER_DATA", "SAPPER_STORE", "SAPPER_KEY_PASSPHRASE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sapper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sapper:
    """Calls the program in this process, on a terminal of 80 columns."""

    def call(*words: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sapper", *map(str, words)])
        monkeypatch.setattr(cli.out, "_width", 80)
        monkeypatch.setattr(cli.err, "_width", 80)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Puts packages before all others on Python's path, as far as they say something about themselves."""

    def put(package: str, version: str = "1.0", points: dict[str, dict[str, str]] | None = None) -> None:
        site = tmp_path_factory.mktemp("site")
        about = site / f"{package}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        groups = ConfigParser()
        groups.optionxform = str  # type: ignore[assignment, method-assign]  # names stay as they are
        groups.read_dict(points or {})
        with (about / "entry_points.txt").open("w") as file:
            groups.write(file)
        monkeypatch.syspath_prepend(str(site))

    return put
