"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data sets on this machine: SAPPER_DATA, else ../shared/data beside the repository, else skip."""
    root = Path(os.environ.get("SAPPER_DATA") or REPOSITORY.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set SAPPER_DATA to run this")
    return root
