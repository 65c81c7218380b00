"""Encoders: from images in [0, 1] to features, with their own normalization, and where they come from.

``Encoder``   the module; ``Card`` what it knows about itself
``build``     a fresh, untrained one of a named architecture
``open``      one of others, by name or from a file, with ``Opening`` for what is not in it
``save``, ``load``   ours: safetensors with the card in the metadata

What needs torch is imported when it is first asked for: checking a name (``names.py``) must be quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sapper.encoders.names import ARCHITECTURES, Stem
from sapper.encoders.options import Opening

if TYPE_CHECKING:
    from sapper.encoders.backbones import build
    from sapper.encoders.encoder import Card, Encoder, Trained
    from sapper.encoders.files import load, save
    from sapper.encoders.opening import open

__all__ = ["ARCHITECTURES", "Card", "Encoder", "Opening", "Stem", "Trained", "build", "load", "open", "save"]

_HOMES = {
    "backbones": ("build",),
    "encoder": ("Card", "Encoder", "Trained"),
    "files": ("load", "save"),
    "opening": ("open",),
}
"""In which module each name is."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
