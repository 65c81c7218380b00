"""Samples of any modality on disk: the tensors of their fields, and the rest as plain data."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from sapper import tensors
from sapper.samples.base import Samples
from sapper.samples.images import Canvases


def write_samples(path: Path, samples: Samples, **more: Tensor) -> None:
    """Write the set, and ``more`` tensors that ``read_samples`` gives back with it."""
    plain, values = _parts(samples)
    tensors.save(path, values | {f"more/{name}": value for name, value in more.items()}, plain)


def read_samples(path: Path) -> tuple[Samples, dict[str, Tensor]]:
    """What ``write_samples`` wrote."""
    values = tensors.load(path)
    return _whole(tensors.load_plain(path), tensors.below("samples", values)), tensors.below("more", values)


def _parts(samples: Samples, place: str = "samples") -> tuple[dict[str, Any], dict[str, Tensor]]:
    plain: dict[str, Any] = {"kind": type(samples).__name__}
    values: dict[str, Tensor] = {}
    for field in fields(samples):
        value = getattr(samples, field.name)
        if isinstance(value, Tensor):
            values[f"{place}/{field.name}"] = value
        elif isinstance(value, Canvases):
            plain[field.name] = {"kind": "Canvases"}
            values |= {f"{place}/{field.name}/{name}": part for name, part in vars(value).items()}
        elif isinstance(value, Samples):
            plain[field.name], below = _parts(value, f"{place}/{field.name}")
            values |= below
        elif value is not None:
            plain[field.name] = value
    return plain, values


def _whole(plain: Mapping[str, Any], values: Mapping[str, Tensor]) -> Samples:
    kinds = {kind.__name__: kind for kind in _kinds(Samples)}  # type: ignore[type-abstract]
    made: dict[str, Any] = {name: value for name, value in values.items() if "/" not in name}
    for name, value in plain.items():
        if isinstance(value, dict) and value["kind"] == "Canvases":
            made[name] = Canvases(**tensors.below(name, values))
        elif isinstance(value, dict):
            made[name] = _whole(value, tensors.below(name, values))
        elif name != "kind":
            made[name] = tuple(value) if isinstance(value, list) else value
    samples: Samples = kinds[plain["kind"]](**made)
    return samples


def _kinds(parent: type[Samples]) -> Iterator[type[Samples]]:
    for kind in parent.__subclasses__():
        yield kind
        yield from _kinds(kind)
