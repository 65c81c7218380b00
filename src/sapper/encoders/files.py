"""Encoders on disk: safetensors, which never executes code, with the card as JSON in the metadata."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

from sapper.encoders.backbones import blueprint, build_like
from sapper.encoders.encoder import Card, Encoder
from sapper.encoders.names import OF_CODE
from sapper.encoders.sources import check_finite, read
from sapper.encoders.text import TextTower
from sapper.errors import SapperError
from sapper.files import write_atomically
from sapper.running import Run

MARK = "BACKDOORED"
CARD, CLASSIFIER = "sapper.card", "sapper.classifier"
"""Keys in a file's metadata: of an encoder's card, and of what a classifier is made of (``downstream/files.py``)."""
_CARD = TypeAdapter(Card)


def file_name(stem: str, card: Card) -> str:
    """``stem`` with the mark of a backdoored encoder, if it is one, and the suffix."""
    return f"{stem}-{MARK}.safetensors" if card.backdoored else f"{stem}.safetensors"


def save(encoder: Encoder, path: str | Path) -> None:
    """Write the encoder; the file is whole or absent.

    Raises ``SapperError`` when a backdoored encoder is to be written under a name that does not say so, or when
    the disk refuses.
    """
    path = Path(path)
    check_name(path, "encoder", backdoored=encoder.card.backdoored)
    # One entry only: safetensors writes several in a random order, and equal encoders must be equal files.
    metadata = {CARD: card_text(encoder.card)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def check_name(path: Path, what: str, *, backdoored: bool) -> None:
    """Raises ``SapperError`` when something backdoored is to be written under a name that does not say so."""
    if backdoored and MARK not in path.name:
        remedy = f"put {MARK} into the file name"
        told = f"a backdoored {what} must say so in its file name, and what was made from one, too"
        raise SapperError(told, where=str(path), remedy=remedy)


def card_text(card: Card) -> str:
    """The card as files hold it, JSON."""
    written = asdict(card)
    for name in ("arguments", "text"):  # as in files from before there were any
        if not written[name]:
            del written[name]
    return json.dumps(written)


def load(path: Path, run: Run) -> Encoder:
    """The encoder in ``path``, in ``eval`` mode on the run's device.

    Raises ``SapperError`` when the file is missing, damaged, not one of ours, or its weights are not finite or do
    not fit its card. Files of others are for ``open``.
    """
    weights = read(path)
    if CARD not in weights.metadata:
        remedy = "give an encoder that sapper saved"
        raise SapperError("the metadata has no card of an encoder", where=str(path), remedy=remedy)
    return restore(weights.tensors, weights.metadata[CARD], run, str(path))


def restore(tensors: dict[str, torch.Tensor], card_text: str, run: Run, where: str) -> Encoder:
    """The encoder that ``save`` wrote as these tensors and this card (JSON)."""
    check_finite(tensors, where)
    card = read_card(card_text, where)
    if card.architecture.startswith(OF_CODE):
        what = f"its network is of somebody's own making, {card.architecture.removeprefix(OF_CODE)}"
        remedy = "name the function that returns it: --arch package.module:function --trust-code"
        raise SapperError(what, where=where, remedy=remedy)
    # Shapes first: a small file may name a network that fills the memory. (open_clip's sizes are the library's own.)
    known = card.architecture.startswith("open_clip:")
    plan = {} if known else blueprint(card.architecture, card.width, card.stem, card.input_size, card.arguments)
    plan = {f"backbone.{name}": value for name, value in plan.items()} | _text_plan(card)
    wrong = [name for name, value in plan.items() if _shape(tensors.get(name)) != value.shape]
    if wrong:
        what = f"the weights do not fit the card: {', '.join(wrong[:3])}"
        raise SapperError(what, where=where, remedy="give an encoder that sapper saved")
    encoder = build_like(card, run)
    if card.text is not None:
        if card.text.features != encoder.feature_size:
            what = f"its text tower gives {card.text.features} features, its image tower {encoder.feature_size}"
            raise SapperError(what, where=where, remedy="give an encoder that sapper saved")
        with run.seeded():
            encoder.join(TextTower(card.text))
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise SapperError(f"the weights do not fit the card: {str(error)[:300]}", where=where) from error
    encoder.card = card
    return encoder.eval()


def read_card(card_text: str, where: str) -> Card:
    """The card that a file's metadata holds as JSON. Raises ``SapperError`` for what is none."""
    try:
        card: Card = _CARD.validate_python(_renewed(json.loads(card_text)))
        return card
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise SapperError(f"the card is not JSON: {error}", where=where) from error
        first = error.errors()[0]
        key = f"{where}: card.{'.'.join(str(part) for part in first['loc'])}"
        raise SapperError(first["msg"], where=key) from error


def _renewed(card: Any) -> Any:
    """A card as it is written now; older ones have the parts of ``input`` as keys of their own."""
    if isinstance(card, dict) and "input_size" in card:
        old = {key: card.pop(key) for key in ("input_size", "mean", "std") if key in card}
        return card | {"input": {"size": old.pop("input_size")} | old}
    return card


def _text_plan(card: Card) -> dict[str, torch.Tensor]:
    """The tensors of a card's text tower, without memory for them."""
    if card.text is None:
        return {}
    with torch.device("meta"):
        return {f"text.{name}": value for name, value in TextTower(card.text).state_dict().items()}


def _shape(value: torch.Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape
