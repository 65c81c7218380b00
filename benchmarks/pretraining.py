"""How well the self-supervised pre-trainings do at the demo's budget: ``python -m benchmarks.pretraining``.

An encoder as in ``scenarios/demo.toml`` is pre-trained on the embedded objects by each method with each seed, on one
thread. One record for each epoch: ``kNN`` on training images held out by the monitor (``pretraining/monitor.py``),
``spread`` of the outputs, and ``healthy``, the spread of random directions. The last epoch's record also has the
accuracy on all test images of heads on the frozen encoder, fitted to all training images: ``test kNN`` (200 neighbors,
temperature 0.1) and ``test linear``. ``seconds`` of processor time are those of the whole training, the monitor's
included. ``untrained`` is the encoder as it is built, which is worth knowing where a budget is small.

Writes after each training; records of the same method, seed, images and epochs are replaced.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from sapper import datasets, pretraining
from sapper.downstream import KNN, Head, Linear, extract, predict
from sapper.encoders import Encoder, build
from sapper.engine.environment import environment
from sapper.files import write_atomically
from sapper.methods import find
from sapper.running import Run
from sapper.samples import Samples

UNTRAINED = "untrained"
NAMES = (UNTRAINED, "simclr", "moco", "byol", "simsiam")
BUDGET: dict[str, Any] = {"batch": 64, "view_size": 16, "crop_scale": 0.2}
OWN: dict[str, dict[str, Any]] = {"simclr": {"temperature": 0.2}}
"""What the demo sets beside the budget; other methods have their defaults."""
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "data" / "pretraining.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretraining", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(NAMES)}; by default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=8000, help="of the 8000 training images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"no method named {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    torch.set_num_threads(1)
    for seed in asked.seeds:
        for name in asked.names or NAMES:
            records = measure(name, seed, asked.images, asked.epochs)
            told = ("epoch", "test kNN", "test linear", "kNN", "spread", "healthy", "seconds")
            print(
                name, f"seed {seed}", *(f"{key} {records[-1][key]}" for key in told if key in records[-1]), flush=True
            )
            keep(records, asked.out)


def measure(name: str, seed: int, count: int, epochs: int) -> list[dict[str, Any]]:
    """The records of one training."""
    run = Run(seed=seed)
    train = datasets.load("objects", "train").sample(count, run.child("images").generator())
    encoder = build(run.child("encoder"), architecture="resnet10", width=16)
    known = environment(run)
    shared = {
        "method": name,
        "seed": seed,
        "images": len(train),
        "epochs": epochs,
        "hardware": ", ".join(f"{key} {known[key]}" for key in ("processor", "threads", "torch", "number format")),
    }
    records: list[dict[str, Any]] = [{"epoch": 0}]
    if name != UNTRAINED:
        kind = find("pretraining", pretraining.METHODS, name, "benchmarks.pretraining")
        method = kind(epochs=epochs, monitor=True, **BUDGET, **OWN.get(name, {}))
        began = time.process_time()
        curves = method(encoder, train, run.child("pretraining")).curves
        shared["seconds"] = round(time.process_time() - began, 1)
        shared["healthy"] = round(1 / math.sqrt(method.projection), 4)
        records = [
            {"epoch": epoch + 1, "kNN": round(accuracy, 4), "spread": round(spread, 5)}
            for epoch, (accuracy, spread) in enumerate(zip(curves["kNN accuracy"], curves["spread"]))
        ]
    records[-1] |= tested(encoder, train, datasets.load("objects", "test"), run)
    return [shared | record for record in records]


def tested(encoder: Encoder, train: Samples, test: Samples, run: Run) -> dict[str, float]:
    """Accuracies on ``test`` of heads that are fitted to ``train``."""
    known, asked = extract(encoder, train, run), extract(encoder, test, run)

    def accuracy(head: Head) -> float:
        fitted = head.fit(known, train.targets(), len(train.classes), run)
        return round(float((predict(fitted, asked) == test.targets()).double().mean()), 4)

    return {"test kNN": accuracy(KNN(neighbors=200, temperature=0.1)), "test linear": accuracy(Linear())}


def keep(records: list[dict[str, Any]], path: Path) -> None:
    """Put them into the file, in the place of older ones of the same training."""

    def training(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["method"], record["seed"], record["images"], record["epochs"]

    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    others = [record for record in known if training(record) != training(records[0])]
    lines = ",\n".join(json.dumps(record) for record in [*others, *records])
    write_atomically(path, f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
