"""A whole experiment in a second: colored squares, an encoder of four channels, two epochs of everything."""

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sapper.engine.store import Store
from sapper.experiment.results import Record, Results
from sapper.experiment.runner import run_scenario
from sapper.experiment.trial import Lab
from sapper.running import Run
from sapper.scenario.reading import Scenario, read

SIZE = 16
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}

PLAIN = """
name = "micro"
seeds = [0]

[encoder]
architecture = "resnet10"
width = 4
input_size = 16

[pretraining]
dataset = "{data}/photos"
epochs = 2
batch = 32

[[task]]
dataset = "{data}/balls"

[[task]]
dataset = "{data}/boxes"

[[head]]
method = "mlp"
primary = true
epochs = 10
learning_rate = 0.01
hidden = [16, 8]

[[head]]
method = "linear"
iterations = 20
"""

ATTACKED = (
    PLAIN
    + """
[attack]
method = "badencoder"
encoders = "one-for-all"
shadow_images = 48
epochs = 2
batch = 24
learning_rate = 0.02
reference_views = 8

[[target]]
task = "balls"
class = "red"
trigger = {{ size = 4, position = "top-left" }}

[[target]]
task = "boxes"
class = "blue"
trigger = {{ size = 4 }}
"""
)


class InterruptedAt:
    """Progress that interrupts at a given step of a bar whose label begins with given words."""

    def __init__(self, words: str, step: int):
        self.words, self.step = words, step

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator["InterruptedAt"]:
        self.done = 0 if label.startswith(self.words) else -math.inf
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        if self.done >= self.step:
            raise KeyboardInterrupt


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 16, 16, 3) with a square of its class's color on gray noise, and int64 (count,) labels."""
    random = np.random.default_rng(seed)
    images = random.integers(90, 150, (count, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.arange(count) % len(COLORS)
    for image, label in zip(images, labels):
        top, left = random.integers(0, SIZE - 7, 2)
        image[top : top + 7, left : left + 7] = list(COLORS.values())[label]
    return images, labels


def write_npz(file: Path, count: int, seed: int, *, labeled: bool = True) -> None:
    """A split as an npz file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images, labels = squares(count, seed)
    np.savez(file, image=images, **({"label": labels} if labeled else {}))


def write_parquet(file: Path, count: int, seed: int) -> None:
    """A split as a parquet file in the Hugging Face image layout, with paths as GTSRB has: five frames to a track."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images, labels = squares(count, seed)
    tracks = np.arange(count) // len(COLORS) // 5
    paths = [f"{label:05}/{track:05}_{row:05}.png" for row, (label, track) in enumerate(zip(labels, tracks))]
    rows = [{"bytes": _png(image), "path": path} for image, path in zip(images, paths)]
    pq.write_table(pa.table({"image": rows, "label": labels}), file)


def write_data(folder: Path) -> Path:
    """Photos without labels to pre-train on, and the tasks "balls" (npz) and "boxes" (parquet) of three classes."""
    write_npz(folder / "photos" / "train.npz", 64, seed=1, labeled=False)
    for seed, (split, count) in enumerate({"train": 60, "test": 45}.items()):
        write_npz(folder / "balls" / f"{split}.npz", count, seed=10 + seed)
        write_parquet(folder / "boxes" / f"{split}.parquet", count, seed=20 + seed)
    for task in ("balls", "boxes"):
        (folder / task / "classes.json").write_text(json.dumps(list(COLORS)))
    return folder


def write_scenario(file: Path, data: Path, extra: str = "", text: str = ATTACKED) -> Path:
    """A scenario on that data as a file, with more TOML at its end."""
    file.write_text(text.format(data=data.as_posix()) + extra)
    return file


def experiment(data: Path, *overrides: str, extra: str = "", text: str = ATTACKED) -> Scenario:
    """The same, checked, with overrides such as ``attack.epochs=1``."""
    return read(write_scenario(data / "micro.toml", data, extra, text), overrides)


def perform(scenario: Scenario, folder: Path, **lab: Any) -> Results:
    """Run it with results in ``folder`` and, if no other is given, the store below it."""
    settings = {"store": Store(folder / "store"), "out": folder, "run": Run(), "command": "sapper run micro.toml"}
    return run_scenario(scenario, Lab(**settings | lab))


def rates(results: Results) -> list[Record]:
    """What classifiers were measured by, without what triggers do to features and pixels, and times."""
    return [record for record in results.records if record.stage not in ("features", "trigger", "attack")]


def numbers(results: Results) -> list[Any]:
    """The records without times."""
    return [replace(record, seconds=None) for record in results.records if record.metric != "attack_seconds"]


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
