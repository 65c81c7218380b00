"""What an audit left on disk, as far as it can be read before torch is loaded."""

import json
from pathlib import Path
from typing import Any

from sapper.errors import SapperError
from sapper.files import read_text, sha256

SCHEMA = 1
"""Counts the forms of ``audit.json``."""

WORDS = {
    "backdoor": "Evidence of a backdoor",
    "no-evidence": "No evidence of a backdoor",
    "undecided": "Undecided",
}
"""A verdict, in words."""

TRIGGERS = "triggers.safetensors"
"""Beside ``audit.json``: the recovered triggers."""

OPENING: dict[str, type] = {
    **dict.fromkeys(("uri", "arch", "prefix", "mean", "std", "pool", "activation", "stem"), str),
    **dict.fromkeys(("size", "heads", "patch"), int),
    **dict.fromkeys(("leave_out", "keys"), list),
}
"""What an audit records of how it opened the encoder, in the words of its options."""

DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading raises for a file that is missing, or whose content is not what an audit writes."""

UNREAD = "no audit can be read"
REMEDY = "name the audit.json that sapper audit wrote, with its other files beside it"


def read_content(path: Path) -> dict[str, Any]:
    """The content of an ``audit.json``, whose triggers lie beside it.

    Raises ``SapperError`` when one of them is missing, damaged, or of another audit.
    """
    try:
        try:
            content: dict[str, Any] = json.loads(read_text(path, REMEDY, UNREAD))
        except ValueError as error:
            raise ValueError(f"it is not JSON ({error})") from error
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']} is not read")
        if sha256(path.parent / TRIGGERS) != content["triggers"]["sha256"]:
            raise ValueError(f"{TRIGGERS} is not the one that this audit wrote")
        opening = content["opening"]
        fine = isinstance(opening, dict) and {"uri"} <= opening.keys() <= OPENING.keys()
        if not fine or not all(type(value) is OPENING[name] for name, value in opening.items()):
            raise ValueError("it does not say how the encoder was opened")
        texts = [*opening.get("leave_out", []), *opening.get("keys", [])]
        if not all(isinstance(text, str) for text in texts) or not all("=" in text for text in opening.get("keys", [])):
            raise ValueError("it does not say how the encoder was opened")
        if not isinstance(content["images"], dict) or not isinstance(content["encoder"], dict):
            raise ValueError("it does not say which images and which encoder it saw")
    except DAMAGED as error:
        raise unreadable(error, path) from error
    return content


def unreadable(error: Exception, path: Path) -> SapperError:
    """The message about an audit that cannot be read."""
    return SapperError(f"{UNREAD}: {error}", where=str(path), remedy=REMEDY)
