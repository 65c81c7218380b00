"""The program as tests call it: words in, exit code and texts out."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a call of the program ended."""

    code: int
    out: str
    err: str


Sapper = Callable[..., Ended]


def told(end: Ended) -> str:
    """The one message of a call that was refused."""
    assert end.code == 2
    assert end.err.count("error") == 1
    assert "remedy: " in end.err
    assert "Traceback" not in end.err
    return end.err
