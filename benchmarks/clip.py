"""CLIP on the captioned objects, and BadEncoder on its image tower: ``python -m benchmarks.clip``.

An encoder as in ``scenarios/demo.toml`` is pre-trained with captions (``BUDGET``); BadEncoder, with the demo's
parameters, puts one target into its image tower, class ``arrow``, three references, a patch of 10×10. Classifiers on
the clean and on the backdoored encoder: zero-shot, by the text tower and class names alone, and heads that are fitted
to the training images without the references. One record for each seed and head: CA, BA, ASR and ASR-B as in
``docs/metrics.md``, the ``_strict`` ones without the target class. ``seconds`` of processor time.

``--validation`` measures on a fifth of the training images, held out of all trainings, instead of the test images; so
were the values of ``BUDGET`` chosen, with seed 100. Writes after each seed; records of the same seed and split are
replaced.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sapper import datasets
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.references import choose_references
from sapper.attacks.target import Target
from sapper.downstream import MLP, AnyHead, Linear, ZeroShot, build, extract, predict
from sapper.encoders import Encoder
from sapper.encoders import build as new_encoder
from sapper.engine.environment import environment
from sapper.files import write_atomically
from sapper.metrics import attack_metrics
from sapper.pretraining.clip import CLIP
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Patch

BUDGET: dict[str, Any] = {"epochs": 4, "batch": 64}
INJECTION: dict[str, Any] = {
    **{"epochs": 3, "batch": 16, "reference_views": 2, "optimizer": "adam", "learning_rate": 0.003},
    **{"schedule": "cosine", "weight_decay": 0.0, "lambda1": 2.0, "lambda2": 20.0},
}
CLASS, REFERENCES = "arrow", 3
HEADS: dict[str, AnyHead] = {
    "zero_shot": ZeroShot(),
    "zero_shot, other words": ZeroShot(templates=("there is a {} in the middle", "a drawing of a {} in red")),
    "mlp": MLP(epochs=20, batch=128, learning_rate=0.003, schedule="cosine", dropout=0.2, standardize=True),
    "linear": Linear(),
}
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "data" / "clip.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--validation", action="store_true", help="measure on held-out training images")
    parser.add_argument("--clean", action="store_true", help="no attack")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="other values than those of BUDGET")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    budget = BUDGET | {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in asked.set)}
    for seed in asked.seeds:
        records = measure(seed, budget, validation=asked.validation, attacked=not asked.clean)
        for record in records:
            print(json.dumps({key: value for key, value in record.items() if key != "hardware"}), flush=True)
        if not asked.clean:
            keep(records, asked.out)


def measure(seed: int, budget: dict[str, Any], *, validation: bool, attacked: bool) -> list[dict[str, Any]]:
    """One record for each head."""
    run = Run(seed=seed)
    pairs = datasets.load_pairs("objects", "train")
    judged: ImageSet = datasets.load("objects", "test")
    if validation:
        pairs, held = pairs.held_out(0.2, run.child("validation").generator())
        judged = replace(held.images, labels=held.labels, classes=held.classes)
    images = pairs.images
    began = time.process_time()
    encoder = new_encoder(run.child("encoder"), architecture="resnet10", width=16)
    clean = CLIP(**budget)(encoder, pairs, run.child("pretraining")).encoder
    pretrained = time.process_time()
    label = images.classes.index(CLASS)
    rows = choose_references(images, label, REFERENCES, clean, run)
    trigger = Patch(size=10, position="top-left")
    target = Target(
        name=CLASS, task="objects", label=label, class_name=CLASS, references=images.take(rows), trigger=trigger
    )
    before = predictions(clean, images.without(rows), judged, target, run)
    shared = {
        "seed": seed,
        "split": "held out" if validation else "test",
        "images": len(judged),
        "budget": budget,
        "seconds of pre-training": round(pretrained - began, 1),
    }
    if not attacked:
        right = {
            name: float((seen == judged.targets()).double().mean())
            for (name, view), seen in before.items()
            if view == "clean"
        }
        return [shared | {"head": name, "CA": round(value, 4)} for name, value in right.items()]
    began = time.process_time()
    backdoored = BadEncoder(**INJECTION)(clean, images, (target,), run.child("attack")).encoder
    injected = time.process_time()
    after = predictions(backdoored, images.without(rows), judged, target, run)
    known = environment(run)
    shared |= {
        "seconds of injection": round(injected - began, 1),
        "hardware": ", ".join(f"{key} {known[key]}" for key in ("processor", "threads", "torch", "number format")),
    }
    records = []
    for name in HEADS:
        rates = attack_metrics(
            judged.targets(),
            label,
            clean_on_clean=before[name, "clean"],
            clean_on_triggered=before[name, "triggered"],
            backdoored_on_clean=after[name, "clean"],
            backdoored_on_triggered=after[name, "triggered"],
        )
        records.append(shared | {"head": name} | {metric: round(rate.value, 4) for metric, rate in rates.items()})
    return records


def predictions(
    encoder: Encoder, train: ImageSet, judged: ImageSet, target: Target, run: Run
) -> dict[tuple[str, str], torch.Tensor]:
    """What every head on the encoder says of the images, plain and with the trigger."""
    features = extract(encoder, train, run)
    views = {"clean": extract(encoder, judged, run), "triggered": extract(encoder, judged, run, target.trigger)}
    said = {}
    for name, head in HEADS.items():
        classifier = build(head, encoder, train, run.child(f"head {name}"), features)
        said |= {(name, view): predict(classifier.head, values) for view, values in views.items()}
    return said


def keep(records: list[dict[str, Any]], path: Path) -> None:
    """Put them into the file, in the place of older ones of the same seed and split."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    mine = {(record["seed"], record["split"]) for record in records}
    others = [record for record in known if (record["seed"], record["split"]) not in mine]
    lines = ",\n".join(json.dumps(record) for record in [*others, *records])
    write_atomically(path, f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
