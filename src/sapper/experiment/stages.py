"""The stages of a scenario: each a function of its parameters, its inputs' hashes and its seed.

That is why a stage can be looked up in the Store, resumed, or made on another machine.
"""

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import sapper
from sapper import encoders
from sapper.attacks.target import Target
from sapper.downstream import extract, predict
from sapper.encoders import Encoder, Trained
from sapper.encoders.files import file_name
from sapper.engine.store import Stage, Store
from sapper.errors import SapperError
from sapper.files import sha256, write_atomically
from sapper.pretraining.contracts import Pretraining
from sapper.run import Run
from sapper.samples import ImageSet
from sapper.scenario.reading import Named
from sapper.scenario.sections import EncoderSection
from sapper.training import Checkpoint, check_finite

VERSION = 2
"""Raise it when a change outside the methods (augmentation, features, backbones) changes what stages make."""

MAP_IMAGES = 500
"""How many test images the feature maps show."""


@dataclass(frozen=True)
class TaskData:
    """A downstream task as its victim has it: the attacker's references are not in ``train``."""

    name: str
    train: ImageSet
    test: ImageSet


def pretrain(store: Store, spec: EncoderSection, method: Named[Pretraining], images: ImageSet, run: Run) -> Stage:
    """Pre-train an encoder on ``images``; leaves its file and ``curves.json``."""

    def make(folder: Path) -> None:
        encoder = encoders.build(run.child("encoder"), **spec.model_dump())
        checkpoint = Checkpoint(folder / "checkpoint.safetensors")
        trained = method.parameters(encoder, images, run.child("pretraining"), checkpoint)
        origin = {
            "method": method.name,
            "parameters": asdict(method.parameters),
            "images": identity(images),
            "seed": run.seed,
        }
        _leave(folder, trained, "clean", backdoored=False, origin=origin)
        checkpoint.remove()

    key = (
        surroundings(run) | method_key(method) | {"encoder": spec.model_dump(), "images": [images.name, images.digest]}
    )
    return store.stage("pretraining", key, make)


def attack(store: Store, clean: Path, method: Named, shadow: ImageSet, targets: tuple[Target, ...], run: Run) -> Stage:
    """Put a backdoor for ``targets`` into the encoder in the file ``clean``; leaves what ``pretrain`` does."""
    described = [describe(target) for target in targets]

    def make(folder: Path) -> None:
        checkpoint = Checkpoint(folder / "checkpoint.safetensors")
        encoder = encoders.load(clean, run)
        trained = method.parameters(encoder, shadow, targets, run.child("attack"), checkpoint)
        origin = {
            "method": method.name,
            "parameters": asdict(method.parameters),
            "clean": sha256(clean),
            "shadow": identity(shadow),
            "targets": described,
            "seed": run.seed,
        }
        _leave(folder, trained, "backdoored", backdoored=True, origin=origin)
        checkpoint.remove()

    key = surroundings(run) | method_key(method)
    key |= {"clean": sha256(clean), "shadow": [shadow.name, shadow.digest], "targets": described}
    return store.stage("attack", key, make)


def downstream(
    store: Store, encoder: Path, task: TaskData, targets: tuple[Target, ...], heads: tuple[Named, ...], run: Run
) -> Stage:
    """Build every head on the encoder in the file ``encoder`` and let it predict the test images.

    Leaves ``predictions.safetensors`` (``<head>/clean`` and ``<head>/triggered/<target>``, int64 (N,)) and
    ``map.safetensors`` (features of ``MAP_IMAGES`` test images, plain and with each target's trigger, and of the
    references).
    """

    def make(folder: Path) -> None:
        module = encoders.load(encoder, run)
        train = extract(module, task.train, run)
        views = {"clean": extract(module, task.test, run)}
        for target in targets:
            views[f"triggered/{target.name}"] = extract(module, task.test, run, target.trigger)
        predictions: dict[str, Tensor] = {}
        for head in heads:
            classes = len(task.test.classes)
            fitted = head.parameters.fit(train, task.train.targets(), classes, run.child(f"head {head.name}"))
            predictions |= {f"{head.name}/{view}": predict(fitted, features) for view, features in views.items()}
        save_tensors(folder / "predictions.safetensors", predictions)
        save_tensors(folder / "map.safetensors", _map_features(module, task, targets, views, run))

    key = surroundings(run) | {
        "encoder": sha256(encoder),
        "train": task.train.digest,
        "test": task.test.digest,
        "targets": [describe(target) for target in targets],
        "heads": [{"name": head.name} | method_key(head) for head in heads],
        "map images": MAP_IMAGES,
    }
    return store.stage("downstream", key, make)


def surroundings(run: Run) -> dict[str, Any]:
    """What a stage's result depends on besides its inputs: seed, versions, device kind, number format, threads."""
    return {
        "seed": run.seed,
        "sapper": sapper.__version__,
        "stages": VERSION,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "device": run.device.type,
        "dtype": str(run.dtype),
        "threads": torch.get_num_threads(),
    }


def method_key(method: Named) -> dict[str, Any]:
    """A method for a stage's key: name, version and every parameter."""
    return {"method": method.name, "version": method.parameters.version, "parameters": asdict(method.parameters)}


def describe(target: Target) -> dict[str, Any]:
    """A target as plain data: what it wants, with which trigger and which reference images."""
    return {
        "name": target.name,
        "task": target.task,
        "label": target.label,
        "trigger": target.trigger.describe(),
        "references": target.references.digest,
    }


def identity(images: ImageSet) -> dict[str, Any]:
    """Which images these are, for cards and reports."""
    return {"name": images.name, "split": images.split, "n": len(images), "sha256": images.digest}


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """What ``load_tensors`` reads."""
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(plain))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors that a stage left in a file."""
    return safetensors.torch.load_file(path)


def encoder_file(stage: Stage) -> Path:
    """The encoder that a stage left."""
    return next(path for path in stage.folder.glob("*.safetensors"))


def curves(stage: Stage) -> dict[str, list[float]]:
    """The losses per epoch that a training stage left."""
    loaded: dict[str, list[float]] = json.loads((stage.folder / "curves.json").read_text(encoding="utf-8"))
    return loaded


def _leave(folder: Path, trained: Trained, name: str, *, backdoored: bool, origin: dict[str, Any]) -> None:
    _check_finite(trained, origin)
    encoder = trained.encoder.marked(backdoored=backdoored, origin=origin)
    encoders.save(encoder, folder / file_name(name, encoder.card))
    write_atomically(folder / "curves.json", json.dumps(trained.curves))


def _check_finite(trained: Trained, origin: dict[str, Any]) -> None:
    where = f"{origin['method']}, seed {origin['seed']}"
    check_finite(trained.encoder, where)
    if not all(math.isfinite(value) for series in trained.curves.values() for value in series):
        raise SapperError("the training diverged: losses are not finite", where=where, remedy="lower its learning_rate")


def _map_features(
    encoder: Encoder, task: TaskData, targets: tuple[Target, ...], views: dict[str, Tensor], run: Run
) -> dict[str, Tensor]:
    """Features for the maps; the same test images for every encoder of a seed."""
    rows = torch.randperm(len(task.test), generator=run.child("map").generator())[:MAP_IMAGES]
    features = {view: values[rows.to(values.device)] for view, values in views.items()}
    features |= {f"references/{target.name}": extract(encoder, target.references, run) for target in targets}
    return features | {"rows": rows}
