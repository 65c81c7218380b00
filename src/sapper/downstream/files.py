"""Classifiers on disk: safetensors, which never executes code, with what they are made of as JSON in the metadata.

The encoder is in the file as ``encoder/…``, the head as ``head/0.…``, ``head/1.…`` for its parts one after another.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from sapper import tensors
from sapper.downstream.classifier import Classifier
from sapper.downstream.heads import Neighbors, Standardize
from sapper.downstream.zero_shot import FromTexts
from sapper.encoders.files import CLASSIFIER, card_text, check_name, restore
from sapper.encoders.sources import check_finite, read
from sapper.errors import SapperError
from sapper.files import write_atomically
from sapper.running import Run

GIVE = "give a classifier that sapper saved"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a file says of its classifier: the names of the classes, whether an attack of ours made it, and how."""

    classes: tuple[str, ...]
    backdoored: bool = False
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Content(About):
    """All of the metadata. ``encoder``: its card as JSON. ``head``: name and arguments of each part.

    ``gray``: whether the encoder turns images gray first.
    """

    encoder: str
    gray: bool = False
    head: tuple[tuple[str, tuple[int | float, ...]], ...]


_CONTENT = TypeAdapter(_Content)


def save(classifier: Classifier, about: About, path: Path) -> None:
    """Write the classifier; the file is whole or absent.

    Raises ``SapperError`` when a backdoored one is to be written under a name that does not say so, for a head with
    parts that no file can hold, or when the disk refuses.
    """
    check_name(path, "classifier", backdoored=about.backdoored)
    head = nn.Sequential(*_parts(classifier.head))
    encoder = classifier.encoder
    parts = tuple(map(_written, head))
    content = _Content(**vars(about), encoder=card_text(encoder.card), gray=encoder.gray, head=parts)
    values = {f"encoder/{name}": value for name, value in encoder.state_dict().items()}
    values |= {f"head/{name}": value for name, value in head.state_dict().items()}
    plain = {name: value.detach().cpu().contiguous() for name, value in values.items()}
    write_atomically(path, safetensors.torch.save(plain, {CLASSIFIER: _CONTENT.dump_json(content).decode()}))


def load(path: Path, run: Run) -> tuple[Classifier, About]:
    """The classifier in ``path``, in ``eval`` mode on the run's device, and what the file says of it.

    Raises ``SapperError`` when the file is missing, damaged, not one of ours, or its weights are not finite or do not
    fit what it says.
    """
    weights, where = read(path), str(path)
    if CLASSIFIER not in weights.metadata:
        raise SapperError("the metadata does not say of what classifier it is", where=where, remedy=GIVE)
    try:
        content = _CONTENT.validate_json(weights.metadata[CLASSIFIER])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SapperError(first["msg"], where=f"{where}: {place}", remedy=GIVE) from error
    own = tensors.below("head", weights.tensors)
    check_finite(own, where)
    try:
        with torch.device("meta"):  # shapes first: a small file may name a head that fills the memory
            head = nn.Sequential(*(PARTS[name](*arguments) for name, arguments in content.head))
        head.load_state_dict(own, assign=True)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SapperError(f"the head does not fit what is said of it: {error}", where=where, remedy=GIVE) from error
    encoder = restore(tensors.below("encoder", weights.tensors), content.encoder, run, where)
    encoder.gray = content.gray
    classifier = Classifier(encoder, head).to(run.device).eval()
    return classifier, About(classes=content.classes, backdoored=content.backdoored, origin=content.origin)


def _parts(head: nn.Module) -> list[nn.Module]:
    return list(head) if isinstance(head, nn.Sequential) else [head]


def _written(part: nn.Module) -> tuple[str, tuple[int | float, ...]]:
    """A part of a head: its name in ``PARTS``, and what that is called with."""
    match part:
        case nn.Linear():
            return "linear", (part.in_features, part.out_features, int(part.bias is not None))
        case nn.Dropout():
            return "dropout", (part.p,)
        case nn.ReLU():
            return "relu", ()
        case nn.Identity():
            return "identity", ()
        case Standardize():
            return "standardize", (len(part.mean),)
        case Neighbors():
            return "neighbors", (*part.bank.shape, part.classes, part.neighbors, part.temperature)
        case FromTexts():
            return "texts", tuple(part.weight.shape)
    what = f"a head with a part {type(part).__name__} cannot be kept in a file"
    raise SapperError(what, where="head", remedy=f"make it of parts such as {', '.join(PARTS)}")


PARTS: dict[str, Callable[..., nn.Module]] = {
    "linear": nn.Linear,
    "dropout": nn.Dropout,
    "relu": nn.ReLU,
    "identity": nn.Identity,
    "standardize": lambda features: Standardize(torch.zeros(1, features)),
    "neighbors": lambda rows, features, *rest: Neighbors(torch.zeros(rows, features), torch.zeros(rows), *rest),
    "texts": lambda classes, features: FromTexts(torch.zeros(classes, features), torch.zeros(())),
}
"""What heads are made of."""
