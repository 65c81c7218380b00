"""Encoders on disk: safetensors, which never executes code, with the card as JSON in the metadata."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

from sapper.encoders.backbones import build
from sapper.encoders.encoder import Card, Encoder
from sapper.errors import SapperError
from sapper.files import write_atomically
from sapper.run import Run

MARK = "BACKDOORED"
_CARD = TypeAdapter(Card)


def file_name(stem: str, card: Card) -> str:
    """``stem`` with the mark of a backdoored encoder, if it is one, and the suffix."""
    return f"{stem}-{MARK}.safetensors" if card.backdoored else f"{stem}.safetensors"


def save(encoder: Encoder, path: Path) -> None:
    """Write the encoder; the file is whole or absent.

    Raises ``SapperError`` when a backdoored encoder is to be written under a name that does not say so, or when
    the disk refuses.
    """
    if encoder.card.backdoored and MARK not in path.name:
        remedy = f"put {MARK} into the file name"
        raise SapperError("a backdoored encoder must say so in its file name", where=str(path), remedy=remedy)
    # One entry only: safetensors writes several in a random order, and equal encoders must be equal files.
    metadata = {"sapper.card": json.dumps(asdict(encoder.card))}
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load(path: Path, run: Run) -> Encoder:
    """The encoder in ``path``, in ``eval`` mode on the run's device.

    Raises ``SapperError`` when the file is missing, damaged, not one of ours, or its weights are not finite or do
    not fit its card.
    """
    card, tensors = _read(path)
    encoder = build(
        run,
        architecture=card.architecture,
        width=card.width,
        input_size=card.input_size,
        stem=card.stem,
        mean=card.mean,
        std=card.std,
    )
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise SapperError(f"weights are not finite: {', '.join(broken[:3])}", where=str(path))
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise SapperError(f"the weights do not fit the card: {str(error)[:300]}", where=str(path)) from error
    encoder.card = card
    return encoder.eval()


def _read(path: Path) -> tuple[Card, dict[str, torch.Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return _CARD.validate_json(metadata["sapper.card"]), tensors
    except (safetensors.SafetensorError, OSError) as error:
        raise SapperError(f"not a readable safetensors file: {error}", where=str(path)) from error
    except KeyError as error:
        remedy = "give an encoder that sapper saved"
        raise SapperError("the metadata has no card of an encoder", where=str(path), remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{path}: card.{'.'.join(str(part) for part in first['loc'])}"
        raise SapperError(first["msg"], where=where) from error
