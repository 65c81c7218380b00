"""Networks of a user's own making: a function without arguments that returns one, ``package.module:function``.

It is run in this process, and only where the user says that it is trusted. The card names what the function built and
not the function, so that encoders of one kind are known as such wherever their weights are from.
"""

import hashlib
import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from sapper.encoders.encoder import Card, Encoder
from sapper.encoders.names import OF_CODE
from sapper.encoders.options import Opening
from sapper.errors import SapperError
from sapper.samples import PixelSpec

STRUCTURE = "structure"
"""Among a card's arguments: a digest of the names and shapes of the network's weights."""

LAYOUT = "your code"

UNNORMALIZED = "none: images in [0, 1]"

EXAMPLE = (
    "# nets.py, in the folder that you stand in",
    "def net():",
    "    model = YourNetwork()            # imported from where it is defined; its weights come from the file",
    "    model.fc = torch.nn.Identity()   # features instead of classes, whatever the last layer is called",
    "    return model",
    "sapper audit FILE --arch nets:net --trust-code --size 32 --images …",
)
"""How a network of one's own is told to Sapper, for errors."""


def made_by(uri: str) -> nn.Module:
    """What the function returns, in ``eval`` mode. Raises ``SapperError`` where that is no network."""
    module, _, name = uri.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a command does not look there by itself
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise SapperError(what, where=uri, remedy="call the function by itself to see where it fails") from error
    finally:
        sys.path.remove(here)
    if not isinstance(made, nn.Module):
        raise SapperError(f"it returns {type(made).__name__}", where=uri, remedy="return an nn.Module")
    return made.eval()


def wrapped(made: nn.Module, uri: str, opening: Opening) -> Encoder:
    """The network as an encoder of images in [0, 1]; one that is an ``Encoder`` already is left as it is.

    Raises ``SapperError`` where the size of its images is not known, or where it does not take them.
    """
    if isinstance(made, Encoder):
        return made
    if opening.size is None:
        raise SapperError("the size of images is not known", where=uri, remedy="say it with --size")
    pixels = PixelSpec(size=opening.size)
    try:
        with torch.no_grad():
            features = made(torch.zeros(1, 3, opening.size, opening.size))
        arguments = {STRUCTURE: structure(made)}  # after that: some layers have no shape before they have seen anything
        card = Card(architecture=name_of(made), stem="imagenet", input=pixels, arguments=arguments)
        return Encoder(made, card, features.shape[-1])
    except Exception as error:
        told = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        what = f"it does not take images of {opening.size}×{opening.size} pixels: {told}"
        raise SapperError(what, where=uri, remedy="return a network that turns images into features") from error


def name_of(made: nn.Module) -> str:
    """What the network is called: by its own ``architecture``, where it has such a text, else by its class."""
    said = getattr(made, "architecture", None)
    return f"{OF_CODE}{said if isinstance(said, str) and said else type(made).__name__}"


def structure(made: nn.Module) -> str:
    """Eight hex digits of the names and shapes of a network's weights: another width is another structure."""
    told = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(made.state_dict().items()))
    return hashlib.sha256(told.encode()).hexdigest()[:8]
