"""Opening encoders of others by name: ``open("timm:resnet50")``, ``open("checkpoint.pth")`` and so on."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sapper.encoders import code, files, sources
from sapper.encoders.encoder import PROJECTION, Card, Encoder
from sapper.encoders.names import kind_of
from sapper.encoders.recognition.layouts import Configured
from sapper.encoders.schemes import SCHEMES, Found, Opening, about, recognized
from sapper.errors import SapperError, located
from sapper.running import Run
from sapper.samples import PixelSpec

SAID = "as was said"

OPENED = (
    *("opened", "file", "sha256", "layout", "revision", "normalization"),
    *("prefix", "left_out", "head", "assumed", "recognized"),
)
"""What a card's origin says of how it was opened; a file's own words on that do not count."""


def open(uri: str, run: Run, opening: Opening = Opening()) -> Encoder:
    """The encoder that ``uri`` names, in ``eval`` mode on the run's device, without a classifier.

    ========================  ==========================================================================================
    ``timm:NAME``             with the weights that timm publishes; ``NAME`` may end with a tag, ``.a1_in1k``
    ``torchvision:NAME``      or ``torchvision:NAME/WEIGHTS``, as ``resnet50/IMAGENET1K_V1``
    ``open_clip:NAME/TAG``    the image tower, as ``RN50/openai``; needs the extra ``clip``
    ``hf-hub:ORG/MODEL``      and ``@REVISION``: timm's and open_clip's repositories, or a file of weights
    a path                    ``.safetensors``, or a state dict in ``.pt``, ``.pth``, ``.ckpt``; see ``layouts``; with
                              ``architecture="package.module:name"`` that of a network of your own
    ``https://…``             a file of weights, kept in torch's cache
    ``package.module:name``   your own function without arguments, only with ``trust_code``
    ========================  ==========================================================================================

    The card's ``origin`` says what was opened: ``opened`` (the URI), ``normalization`` (where mean, standard deviation
    and size are from), and for files ``file``, ``sha256`` and ``layout``. Raises ``SapperError`` when something is not
    there, does not fit, or must not be opened.
    """
    kind = kind_of(uri, trust_code=opening.trust_code)
    if kind == "file":
        found = _open_file(Path(uri), run, opening)
    elif kind == "address":
        with located(uri):
            path, since = sources.from_web(uri)
            found = _open_file(path, run, opening)
            if since is not None:
                known = found.about.get("recognized", [])
                found.about["recognized"] = [*known, f"a copy that was fetched on {since}, from torch's cache"]
    elif kind == "name":
        scheme, _, name = uri.partition(":")
        with located(uri):
            found = SCHEMES[scheme](name, run, opening)
    else:
        found = _open_code(uri, opening)
    encoder = _as_said(found, opening)
    _check_normalization(encoder.card, uri)
    _try(encoder, found.encoder.card.input_size, uri)
    origin = {key: value for key, value in encoder.card.origin.items() if key not in OPENED}
    origin |= {"opened": uri, **found.about}
    said = [name for name in ("mean", "std") if getattr(opening, name) is not None]
    rest = f"{said[0]} {SAID}; the rest {found.normalization}" if said else found.normalization
    origin["normalization"] = SAID if len(said) == 2 else rest
    encoder.card = replace(encoder.card, origin=origin)
    return encoder.to(run.device).eval()


def _check_normalization(card: Card, where: str) -> None:
    """Refuse a normalization that makes all images alike, whoever says it: the file, a configuration, the user."""
    fine = all(abs(value) <= 10 for value in card.mean) and all(1e-3 <= value <= 10 for value in card.std)
    if not fine:
        what = f"a normalization by mean {card.mean} and standard deviation {card.std} leaves nothing of images"
        raise SapperError(what, where=where, remedy="say what it was trained with: --mean, --std")


def _as_said(found: Found, opening: Opening) -> Encoder:
    """The encoder with the normalization that the user gave, where one was given."""
    encoder, card = found.encoder, found.encoder.card
    size, mean, std = opening.size or card.input_size, opening.mean or card.mean, opening.std or card.std
    said = Encoder(
        encoder.backbone, replace(card, input=PixelSpec(size=size, mean=mean, std=std)), encoder.feature_size
    )
    said.projection, said.text, said.head = encoder.projection, encoder.text, encoder.head
    return said.eval()


@torch.no_grad()
def _try(encoder: Encoder, native: int, where: str) -> None:
    """Show it two images: what comes out must be features (N, D) and finite. ``native``: the size it is made for."""
    size = encoder.card.input_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    try:
        features = encoder(images.to(device))
    except Exception as error:
        told = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        what = f"it does not take images of {size}×{size} pixels: {told}"
        remedy = f"it is made for {native} pixels: leave --size out" if native != size else "say --arch and --size"
        raise SapperError(what, where=where, remedy=remedy) from error
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or shape != (2, encoder.feature_size):
        what = f"it gives {shape} for two images; an encoder gives (2, features)"
        raise SapperError(what, where=where, remedy="give the model without its classifier, after pooling")
    if not features.isfinite().all():
        raise SapperError("its features are not finite", where=where, remedy="say mean and standard deviation")


def _open_file(path: Path, run: Run, opening: Opening) -> Found:
    """Weights on disk: one of ours, or of others, whose backbone is recognized or said."""
    weights = sources.read(path, allow_weak_sandbox=opening.allow_weak_sandbox)
    if files.CLASSIFIER in weights.metadata:
        what, remedy = "this is a classifier that sapper saved, no encoder", "open it with sapper.load_classifier"
        raise SapperError(what, where=str(path), remedy=remedy)
    if files.CARD in weights.metadata and opening.architecture is None:
        for option in _said(opening):
            what = f"its card says what it is, and --{option} something else"
            raise SapperError(what, where=str(path), remedy=f"leave --{option} out, or say --arch as well")
        encoder = files.restore(weights.tensors, weights.metadata[files.CARD], run, str(path))
        return Found(encoder, "from its card", about(weights, "sapper's own"))
    if files.CARD not in weights.metadata:
        return recognized(weights, run, opening, str(path))
    card = files.read_card(weights.metadata[files.CARD], str(path))
    if card.text is not None or PROJECTION in card.arguments:
        what = "its card has a projection or a text tower, which no architecture that is said has"
        raise SapperError(what, where=str(path), remedy="leave --arch out: the card says what it is")
    own = card.arguments if card.architecture == opening.architecture else {}
    seen = Configured(mean=card.mean, std=card.std, size=card.input_size, source="its card", arguments=own)
    found = recognized(weights, run, opening, str(path), seen)
    found.encoder.marked(backdoored=card.backdoored, origin=card.origin)
    return found


def _open_code(uri: str, opening: Opening) -> Found:
    """The user's own function, which is trusted."""
    for option in _said(opening):
        what = f"--{option} is for files, and your function returns the network with its weights"
        raise SapperError(what, where=uri, remedy=f"leave --{option} out, or name a file with --arch {uri}")
    encoder = code.wrapped(code.made_by(uri), uri, opening)
    plain = encoder.card.pixels == PixelSpec(size=encoder.card.input_size)
    return Found(encoder, code.UNNORMALIZED if plain else "from its card", {"layout": code.LAYOUT})


def _said(opening: Opening) -> list[str]:
    """Options that say what network is in a file, and which of its tensors are meant; as the command line has them."""
    names = ("stem", "heads", "patch", "pool", "activation", "prefix", "leave_out", "keys")
    return [name.replace("_", "-") for name in names if getattr(opening, name)]
