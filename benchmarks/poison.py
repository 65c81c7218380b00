"""How well poisons of the pre-training set work: ``python -m benchmarks.poison MINUTES [PLAN ...]``.

Pre-trains the demo's small encoder on ``objects`` with and without poison, as often as the minutes allow, and puts a
head on it for the same classes. A plan is ATTACK:RATE:SEED, such as ``ctrl:0.05:0``; ``clean:0:SEED`` goes first by
itself. Results go to ``docs/results/data/poison.json``; what is in there already is not computed again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapper import attacks, datasets, encoders
from sapper.attacks.target import Target
from sapper.augment import to_grayscale
from sapper.downstream import MLP, Linear, extract, predict
from sapper.encoders import Encoder
from sapper.engine.environment import environment
from sapper.files import write_atomically
from sapper.methods import find
from sapper.metrics import attack_metrics
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Frequency, Patch, RandomPatch, Trigger

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "data" / "poison.json"
ENCODER = {"architecture": "resnet10", "width": 16}
PRETRAINING = SimCLR(epochs=20, batch=64, temperature=0.2, crop_scale=0.2, view_size=16)
HEADS = {
    "mlp": MLP(epochs=20, batch=128, learning_rate=0.003, schedule="cosine", dropout=0.2, standardize=True),
    "linear": Linear(),
}
CLASS, REFERENCES = "arrow", 3
TRIGGERS: dict[str, Trigger] = {
    "ssl_backdoor": RandomPatch(size=8, color="magenta"),
    "ctrl": Frequency(coefficients=((7, 7), (15, 15))),
    "corruptencoder": Patch(size=8, color="magenta"),
}
ATTACKS: dict[str, dict[str, Any]] = {"ssl_backdoor": {}, "ctrl": {}, "corruptencoder": {}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.poison", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("plans", nargs="*", metavar="ATTACK:RATE:SEED")
    parser.add_argument("--images", type=int, default=8000, help="how many images to pre-train on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    train, test = datasets.load("objects", "train"), datasets.load("objects", "test")
    train = train.sample(given.images, Run().child("images").generator())
    for plan in given.plans:
        if time.process_time() - started > 60 * given.minutes:
            break
        name, rate, seed = plan.split(":")
        measure(name, float(rate), Run(seed=int(seed)), train, test)


def measure(name: str, rate: float, run: Run, train: ImageSet, test: ImageSet) -> None:
    """Pre-train with this poison, put heads on the encoder, and keep what they predict."""
    label = train.classes.index(CLASS)
    rows = (train.targets() == label).nonzero().squeeze(1)
    references = rows[torch.randperm(len(rows), generator=run.child("references").generator())[:REFERENCES]]
    place = {"attack": name, "rate": rate, "seed": run.seed, "images": len(train)}
    if any(place.items() <= each.items() for each in kept()["records"]):
        return
    began = time.process_time()
    images, count = train, 0
    if name != "clean":
        target = Target(
            name=CLASS,
            task="objects",
            label=label,
            class_name=CLASS,
            references=train.take(references),
            trigger=TRIGGERS[name],
        )
        method = find("attacks", attacks.METHODS, name, "attack")(rate=rate, **ATTACKS[name])
        poisoned = method(train, (target,), run.child("poison"))
        images, count = poisoned.samples, len(poisoned.rows)
    encoder = encoders.build(run.child("encoder"), **ENCODER)
    PRETRAINING(encoder, images, run.child("pretraining"))
    predictions = dict(views(encoder, train.without(references), test, None if name == "clean" else name, run))
    record = place | {"poisoned": count, "predictions": predictions}
    keep(record | {"seconds": round(time.process_time() - began)}, test.targets())


def views(encoder: Encoder, train: ImageSet, test: ImageSet, attack: str | None, run: Run) -> Iterator[tuple[str, str]]:
    """Predictions of each head for test images, plain and triggered; for frequencies also where all inputs are gray.

    Each prediction is a digit.
    """
    for color, convert in (("", lambda images: images), ("gray ", gray)):
        names = [name for name in TRIGGERS if attack in (None, name) and (not color or name == "ctrl")]
        if not names:
            continue
        features = extract(encoder, train, run, convert)
        shown = {"clean": extract(encoder, test, run, convert)}
        shown |= {name: extract(encoder, test, run, both(TRIGGERS[name], convert)) for name in names}
        for head, parameters in HEADS.items():
            fitted = parameters.fit(features, train.targets(), len(train.classes), run.child(f"head {head}"))
            for name, values in shown.items():
                yield f"{color}{head}/{name}", "".join(map(str, predict(fitted, values).tolist()))


def both(trigger: Trigger, convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """First the trigger, then what the victim does to all its inputs."""
    return lambda images: convert(trigger(images))


def gray(images: Tensor) -> Tensor:
    """Luminance in all three channels."""
    return to_grayscale(images).expand(-1, 3, -1, -1)


def classes(digits: str) -> Tensor:
    """Predictions that were kept, int64 (N,)."""
    return torch.tensor([int(digit) for digit in digits])


def kept() -> dict[str, Any]:
    """What was measured so far."""
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"records": []}
    return content


def keep(record: dict[str, Any], labels: Tensor) -> None:
    """Add a record, with metrics against the clean encoder of its seed, and print it."""
    content = kept()
    content["settings"] = {
        "encoder": ENCODER,
        "pretraining": asdict(PRETRAINING),
        "heads": {name: asdict(head) for name, head in HEADS.items()},
        "class": CLASS,
        "references": REFERENCES,
        "triggers": {name: trigger.describe() for name, trigger in TRIGGERS.items()},
        "attacks": ATTACKS,
    }
    content["environment"] = environment(Run())
    records, name = content["records"], record["attack"]
    if name != "clean":
        wanted = {key: record[key] for key in ("seed", "images")} | {"attack": "clean"}
        clean = next(each for each in records if wanted.items() <= each.items())
        ours, theirs = ({key: classes(v) for key, v in each["predictions"].items()} for each in (record, clean))
        target = datasets.load("objects", "test").classes.index(CLASS)
        record["metrics"] = {
            head: {
                key: [round(rate.value, 4), round(rate.low, 4), round(rate.high, 4)]
                for key, rate in attack_metrics(
                    labels,
                    target,
                    clean_on_clean=theirs[f"{head}/clean"],
                    clean_on_triggered=theirs[f"{head}/{name}"],
                    backdoored_on_clean=ours[f"{head}/clean"],
                    backdoored_on_triggered=ours[f"{head}/{name}"],
                ).items()
            }
            for head in dict.fromkeys(key.split("/")[0] for key in ours)
        }
        shown = {
            head: {key: values[0] for key, values in metrics.items()} for head, metrics in record["metrics"].items()
        }
        print(name, record["rate"], record["seed"], json.dumps(shown), f"{record['seconds']} s", flush=True)
        del record["predictions"]
    else:
        for key, values in record["predictions"].items():
            if key.endswith("/clean"):
                accuracy = (classes(values) == labels).double().mean().item()
                print("clean", record["seed"], key, round(accuracy, 4), f"{record['seconds']} s", flush=True)
    records.append(record)
    write_atomically(RESULTS, json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
