"""Foreign checkpoints: what is harmless comes through whole, and what is not is refused and does nothing."""

import argparse
import pickle
import resource
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sapper import sandbox
from sapper.encoders import sources
from sapper.errors import SapperError
from sapper.sandbox import lockdown
from tests import hostile

ZIPPED = ("STACK_GLOBAL", "INST", "BUILD", "getattr", "reduce, protocol 2")


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_come_through_bit_by_bit(tmp_path: Path, zipped: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(6, 5, generator=generator)
    tensors = {
        "single": torch.randn(3, 4, generator=generator),
        "half": torch.randn(7, generator=generator).half(),
        "brain": torch.randn(2, 2, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "turned": table.T,
        "part": table[2:4],
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
    }
    notes = {"arch": "resnet18", "epoch": 3, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": tensors, "optimizer": {"a": 1}} | notes, path, _use_new_zipfile_serialization=zipped)
    converted = sandbox.convert(path, tmp_path / "out.safetensors")
    back = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert back.keys() == {f"state_dict.{name}" for name in tensors}
    for name, value in tensors.items():
        assert back[f"state_dict.{name}"].dtype == value.dtype
        assert torch.equal(back[f"state_dict.{name}"], value.detach()), name
    assert converted.notes == {"arch": "resnet18", "epoch": 3, "best": 0.5, "args.lr": 0.1}


def test_the_payloads_are_alive(tmp_path: Path) -> None:
    """Opened as the field opens checkpoints, each of them runs its command: else the refusals below show nothing."""
    for number, make in enumerate(hostile.PICKLES.values()):
        (tmp_path / f"{number}.pkl").write_bytes(make(f"touch {tmp_path}/ran-{number}"))
    program = """
import pickle, sys
from pathlib import Path
import torch.serialization
for path in Path(sys.argv[1]).glob("*.pkl"):
    with path.open("rb") as file:
        for _ in range(2):  # one of them is the second pickle of its file
            try:
                pickle.load(file)
            except Exception:
                pass
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    asleep = [name for number, name in enumerate(hostile.PICKLES) if not (tmp_path / f"ran-{number}").exists()]
    assert asleep == []


def attempt(path: Path) -> str:
    """What opening says: its error, or that there was none."""
    try:
        sources.read(path)
    except SapperError as error:
        return str(error) if error.where and error.remedy else f"no place or no remedy: {error}"
    return "opened"


def attempt_all(names: Sequence[str], folder: Path) -> dict[str, str]:
    """The files of these names, opened two at a time; what each said. Whatever they are, they run nothing."""
    paths: dict[str, Path] = {}
    canary = folder / "canary"
    for number, name in enumerate(names):
        place = folder / str(number)
        place.mkdir()
        paths[name] = place / ("model.safetensors" if "safetensors" in name else "model.pth")
        program = hostile.PICKLES.get(name.removesuffix(", zipped"))
        if program is None:
            hostile.FILES[name](paths[name], f"touch {canary}")
        else:
            hostile.write_pickle(program(f"touch {canary}"), paths[name], zipped=name.endswith(", zipped"))
    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(paths, pool.map(attempt, paths.values())))
    assert not canary.exists()
    return said


REASONS = {
    "reduce, protocol 4": "would run posix.system",
    "INST, zipped": "would run os.system",
    "a bomb": "compressed",
    "a link out of the archive": "is a link",
    "entries that share their bytes": "overlap",
    "two entries of one name": "two entries of one name",
    "TorchScript": "TorchScript",
    "a terabyte of views on one number": "larger than the file",
    "weights that are not a number": "1 of its 2 tensors are not finite",
    "a whole module": "other things than weights",
    "a dict that holds itself": "hold themselves",
    "a million marks": "no file of weights that torch can read",
    "a symbolic link": "symbolic link",
    "a pipe": "no regular file",
    "a web page": "HTML",
    "empty": "is empty",
    "safetensors with a header of exabytes": "its header claims",
    "safetensors cut short": "not a readable safetensors file",
    "a pickle that is called safetensors": "called safetensors, and is something else",
}


@pytest.fixture(scope="module")
def reasons(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    request.getfixturevalue("sandbox_holds")
    return attempt_all(list(REASONS), tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", REASONS)
def test_a_hostile_file_is_refused_with_a_reason(name: str, reasons: dict[str, str]) -> None:
    assert REASONS[name] in reasons[name]


CORPUS = (*hostile.PICKLES, *(f"{name}, zipped" for name in ZIPPED), *hostile.FILES)


def test_the_corpus_is_large() -> None:
    assert len(set(CORPUS)) >= 60


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    request.getfixturevalue("sandbox_holds")
    return attempt_all(CORPUS, tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_every_hostile_file_is_refused_and_does_nothing(name: str, outcomes: dict[str, str]) -> None:
    said = outcomes[name]
    if name == "safetensors of another backbone":  # a sound file, which only no encoder can be made of
        assert said == "opened"
        return
    assert said != "opened"
    assert not said.startswith("no place")
    assert "Traceback" not in said
    payload = name.removesuffix(", zipped") in hostile.PICKLES
    assert (
        "would run" in said or "other things than weights" in said or "no file of weights that torch can read" in said
    ) or not payload
    assert "brought the process down" not in said  # caught by what looks at it, not by what it broke


@pytest.mark.usefixtures("reasons")
def test_nothing_filled_the_memory() -> None:
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 2**20  # KiB: what torch itself takes, and some


LOCKED = """
import os, socket, subprocess, sys, threading, ctypes
from sapper.sandbox import lockdown
kept = os.open("/dev/null", os.O_WRONLY)
assert lockdown.lock() is None
attempts = {
    "open": lambda: open("/etc/passwd"),
    "write": lambda: open("/tmp/x", "w"),
    "list": lambda: os.listdir("/"),
    "unlink": lambda: os.unlink("/tmp/x"),
    "rename": lambda: os.rename("/tmp/x", "/tmp/y"),
    "chmod": lambda: os.chmod("/tmp", 0o777),
    "socket": lambda: socket.socket(),
    "pair": lambda: socket.socketpair(),
    "fork": lambda: os.fork(),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "run": lambda: subprocess.run(["/bin/true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "pipe": lambda: os.pipe(),
    "memfd": lambda: os.memfd_create("x"),
    "priority": lambda: os.nice(1),
}
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except PermissionError:
        pass
try:
    threading.Thread(target=print).start()
    done.append("thread")
except RuntimeError:
    pass
os.write(kept, b"x")
assert sum(range(1000)) == 499500
print(done)
"""


@pytest.mark.usefixtures("sandbox_holds")
def test_a_locked_process_can_do_nothing_but_compute() -> None:
    said = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "[]\n"


@pytest.mark.parametrize(
    "header", ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"]
)
def test_the_numbers_of_system_calls_are_the_kernels(header: str) -> None:
    path, column = Path(header), 0 if "x86" in header else 1
    if not path.exists():
        pytest.skip(f"{header} is not here")
    words = [line.split() for line in path.read_text().splitlines() if line.startswith("#define __NR")]
    numbers = {each[1]: each[2] for each in words if len(each) > 2}
    for name, ours in lockdown.CALLS.items():
        known = numbers[f"__NR_{name}"]
        assert numbers.get(known, known) == str(ours[column]), name


def test_without_a_filter_nothing_is_opened_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the filter cannot be set, here because the machine's name is unknown to it."""
    path, canary = tmp_path / "a.pth", tmp_path / "canary"
    torch.save(hostile.checkpoint(), path)
    monkeypatch.setattr(sandbox.outside, "PROGRAM", ("-c", UNKNOWN_MACHINE))
    with pytest.raises(SapperError, match=r"nothing here can lock it in.*\n.*--allow-weak-sandbox"):
        sandbox.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sandbox.convert(path, tmp_path / "out", allow_weak_sandbox=True)
    assert safetensors.torch.load_file(tmp_path / "out").keys() == {"state_dict.conv1.weight"}
    path.write_bytes(pickle.dumps(hostile.Reduced(canary.touch, ())))
    with pytest.raises(SapperError, match="refused"):
        sandbox.convert(path, tmp_path / "out", allow_weak_sandbox=True)
    assert not canary.exists()


UNKNOWN_MACHINE = """
import platform, runpy
platform.machine = lambda: "pdp11"
runpy.run_module("sapper.sandbox.inside", run_name="__main__")
"""


def test_a_reader_that_dies_or_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    torch.save(hostile.checkpoint(), path)
    monkeypatch.setattr(sandbox.outside, "SECONDS", 1)
    for program, said in (
        ("import os; os.abort()", "out of memory, or worse"),
        ("import time; time.sleep(60)", "did not come to an end"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("print('[]')", "exit code 0"),
    ):
        monkeypatch.setattr(sandbox.outside, "PROGRAM", ("-c", program))
        with pytest.raises(SapperError, match=said):
            sandbox.convert(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
