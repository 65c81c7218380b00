"""How a process settles: before torch, and never against the user's own settings."""

import os
import subprocess
import sys

import pytest

SHOW = "import os; from sapper.process import settle; settle(); print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_sleep_soon_unless_the_user_said_otherwise(given: dict[str, str], spins: str) -> None:
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    surroundings = {name: value for name, value in os.environ.items() if name not in ours} | given
    shown = subprocess.run([sys.executable, "-c", SHOW], env=surroundings, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == spins


REUSE = """
import platform, resource, sys
from sapper.process import settle
if platform.libc_ver()[0] != "glibc":
    print("not glibc")
    sys.exit()
settle()
import numpy as np
faults = []
for _ in range(6):
    np.ones(16 * 2**20)  # 128 MiB, allocated, written and freed
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""


@pytest.mark.parametrize(("given", "reused"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_stays_unless_the_user_said_otherwise(given: dict[str, str], reused: bool) -> None:
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC"))}
    shown = subprocess.run(
        [sys.executable, "-c", REUSE], env=surroundings | given, capture_output=True, text=True, check=True
    )
    if "glibc" in shown.stdout:
        pytest.skip("memory is settled with glibc only")
    assert (int(shown.stdout) < 100) == reused
