"""Encoders: from images in [0, 1] to features, with their own normalization, and their files.

``Encoder``   the module; ``Card`` what it knows about itself
``build``     a fresh, untrained one of a named architecture
``save``, ``load``   safetensors with the card in the metadata
"""

from sapper.encoders.backbones import ARCHITECTURES, build
from sapper.encoders.encoder import Card, Encoder, Stem, Trained
from sapper.encoders.files import load, save

__all__ = ["ARCHITECTURES", "Card", "Encoder", "Stem", "Trained", "build", "load", "save"]
