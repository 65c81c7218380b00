"""Benchmarks take minutes; that each can be loaded and is known by its name is told in a moment."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import NAMES
from benchmarks.timing import Row

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_loaded_and_takes_a_number_format(name: str) -> None:
    signature = inspect.signature(importlib.import_module(f"benchmarks.{name}").run)
    first, *others = signature.parameters.values()
    assert first.annotation is torch.dtype
    assert all(other.default is not other.empty for other in others)
    assert signature.return_annotation is Row


def test_none_is_forgotten() -> None:
    there = {path.stem for path in FOLDER.glob("*.py") if "\ndef run(" in path.read_text(encoding="utf-8")}
    assert there == set(NAMES)
