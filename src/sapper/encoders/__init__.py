"""Encoders: from images in [0, 1] to features, with their own normalization, and where they come from.

``Encoder``   the module; ``Card`` what it knows about itself
``build``     a fresh, untrained one of a named architecture
``open``      one of others, by name or from a file, with ``Opening`` for what is not in it
``save``, ``load``   ours: safetensors with the card in the metadata
"""

from sapper.encoders.backbones import ARCHITECTURES, build
from sapper.encoders.encoder import Card, Encoder, Stem, Trained
from sapper.encoders.files import load, save
from sapper.encoders.opening import open
from sapper.encoders.schemes import Opening

__all__ = ["ARCHITECTURES", "Card", "Encoder", "Opening", "Stem", "Trained", "build", "load", "open", "save"]
