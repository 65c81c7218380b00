"""What can be said of an encoder's name before torch is loaded: whether it can be opened, and as what."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sapper.encoders.spelling import check_spelling
from sapper.errors import SapperError, closest

Stem = Literal["cifar", "cifar-pool", "imagenet"]
"""What comes first in a ResNet: a 3×3 convolution with stride 1, without or with max-pooling behind it, or a 7×7
convolution with stride 2 and max-pooling."""

ARCHITECTURES: dict[str, tuple[Literal["BasicBlock", "Bottleneck"], tuple[int, int, int, int]]] = {
    "resnet10": ("BasicBlock", (1, 1, 1, 1)),
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
    "resnet101": ("Bottleneck", (3, 4, 23, 3)),
    "resnet152": ("Bottleneck", (3, 8, 36, 3)),
}
"""ResNets that ``build`` makes of any width: torchvision's blocks, and how many of them each layer has."""

PREACT: dict[str, tuple[Literal["basic", "bottleneck"], tuple[int, int, int, int]]] = {
    "preact_resnet18": ("basic", (2, 2, 2, 2)),
    "preact_resnet34": ("basic", (3, 4, 6, 3)),
    "preact_resnet50": ("bottleneck", (3, 4, 6, 3)),
    "preact_resnet101": ("bottleneck", (3, 4, 23, 3)),
    "preact_resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Pre-activation ResNets: kind of block, and blocks of each layer. They have a stem of their own, as ``cifar``."""

SMALL = ("vgg11", "vgg13", "vgg16", "vgg19", "wrn16", "wrn28", "wrn40", "mobilenetv2")
"""Other networks for small images (``small.py``); they have no stem to exchange, as ``cifar``."""

OWN = (*ARCHITECTURES, *PREACT, *SMALL)
"""Networks that ``build`` makes itself, of any width."""

LIBRARIES = ("timm", "torchvision", "open_clip")
"""Libraries of models: an architecture may be ``timm:NAME`` and so on."""

SCHEMES = (*LIBRARIES, "hf-hub")
"""Where ``open`` finds encoders by name: ``timm:NAME`` and so on."""

CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""``package.module:factory``."""

SAME = re.compile(r"(?:timm|torchvision):(resnet(?:18|34|50|101|152))")
"""Models of libraries that are the same networks as ours with the stem ``imagenet``, down to the names of weights."""

OF_CODE = "code:"
"""What names of architectures begin with that a user's own code makes, in a card."""


def kind_of(uri: str, *, trust_code: bool = False) -> Literal["file", "name", "address", "code"]:
    """What ``open`` would open: something on disk, a model by name, a file's address, or the user's own function.

    Runs no code. Raises ``SapperError`` when nothing goes by that name, and for code without
    ``trust_code``.
    """
    scheme, colon, _ = uri.partition(":")
    if uri and _is_there(uri):
        return "file"
    if colon and scheme in SCHEMES:
        if scheme in LIBRARIES:
            check_spelling(scheme, uri.removeprefix(f"{scheme}:"))
        return "name"
    if uri.startswith("https://"):
        return "address"
    if not is_code(uri):
        raise _unknown(uri)
    check_trusted(uri, trust_code=trust_code)
    return "code"


def is_code(name: str) -> bool:
    """Whether it names a function of the user's own, ``package.module:factory``. Runs no code."""
    module = name.partition(":")[0]
    return CODE.fullmatch(name) is not None and module not in SCHEMES and _is_module(module)


def check_trusted(name: str, *, trust_code: bool) -> None:
    """Raises ``SapperError`` for code of the user's own, unless the user says that it is trusted."""
    if not trust_code:
        remedy = "read that code, then add --trust-code; or give a file of weights"
        raise SapperError("this runs code from your machine", where=name, remedy=remedy)


def check_architecture(
    architecture: str, where: str = "encoder.architecture", *, trust_code: bool | None = None
) -> None:
    """Raises ``SapperError`` for an architecture that is neither ours nor one that a library could have.

    ``trust_code``: whether a function of the user's own may make it; none where no such function can be named.
    """
    if trust_code is not None and is_code(architecture):
        check_trusted(architecture, trust_code=trust_code)
        return
    library, colon, _ = architecture.partition(":")
    if architecture not in OWN and not (colon and library in LIBRARIES):
        theirs = ", ".join(f"{name}:{architecture if architecture.isidentifier() else 'NAME'}" for name in LIBRARIES)
        remedy = f"{closest(architecture, OWN)}, or, where it is a library's, {theirs}"
        raise SapperError(f"unknown architecture {architecture!r}", where=where, remedy=remedy)


def packages_of(architecture: str) -> tuple[str, ...]:
    """The installed packages whose code a network of that name is made of, besides torch and torchvision."""
    library = architecture.partition(":")[0]
    return {"timm": ("timm",), "open_clip": ("open_clip_torch", "timm")}.get(library, ())


def _is_module(name: str) -> bool:
    """Whether there is code of that name, without running any."""
    package = name.partition(".")[0]
    try:
        return Path(package).is_dir() or Path(f"{package}.py").is_file() or find_spec(package) is not None
    except ValueError:  # __main__, which is no module of anybody's
        return False


def _is_there(uri: str) -> bool:
    try:
        return Path(uri).exists() or Path(uri).is_symlink()
    except ValueError:  # a NUL, which no path has
        return False
    except OSError as error:
        raise SapperError(f"cannot be used: {error.strerror}", where=uri, remedy="check the path") from error


def _unknown(uri: str) -> SapperError:
    scheme, colon, _ = uri.partition(":")
    if colon and "/" not in scheme:
        remedy = closest(scheme, [*SCHEMES]) + ", or a path, an address https://…, or package.module:factory"
        return SapperError(f"there is no scheme {scheme!r}", where=uri, remedy=remedy)
    here = Path(uri).parent
    names = [path.name for path in here.iterdir() if path.is_file()] if here.is_dir() else []
    near = closest(Path(uri).name, names) if names else f"{here} is no folder"
    remedy = f"{near}; models by name: {', '.join(f'{name}:NAME' for name in SCHEMES)}"
    return SapperError("there is no such file", where=uri, remedy=remedy)
