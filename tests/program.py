"""The program as tests call it: words in, exit code and texts out; and packages that tests install beside it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a call of the program ended."""

    code: int
    out: str
    err: str


Sapper = Callable[..., Ended]

Install = Callable[..., None]
"""Installs a package: its name and version, and its entry points as ``{group: {name: "module:Class"}}``."""


def told(end: Ended) -> str:
    """The one message of a call that was refused."""
    assert end.code == 2
    assert end.err.count("error") == 1
    assert "remedy: " in end.err
    assert "Traceback" not in end.err
    return end.err
