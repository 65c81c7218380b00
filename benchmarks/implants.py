"""What each attack on a finished encoder reaches in the demo's setting. ``python -m benchmarks.implants``.

For every seed an encoder is pre-trained as ``scenarios/demo.toml`` says, attacked for one target (``arrow`` of
``objects``: a patch of 10×10, three references) by each method, and judged by the demo's head on test images. Beside
the metrics stands the mean cosine of two different triggered test images' features, which BadEncoder drives to 1.
Results go to ``docs/results/data/implants.json``. With ``--validation`` nothing is kept, and the judges are held-out
training images: so the settings below were chosen.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sapper import encoders
from sapper.attacks import METHODS
from sapper.attacks.references import choose_references
from sapper.attacks.target import Target
from sapper.datasets import worlds
from sapper.downstream import MLP, extract, predict
from sapper.encoders import Encoder
from sapper.engine.environment import environment
from sapper.experiment.results import Record, Results, read_results
from sapper.files import write_atomically
from sapper.methods import find
from sapper.metrics import attack_metrics
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run, native_dtype
from sapper.samples import ImageSet
from sapper.triggers import Patch

KEPT = Path(__file__).resolve().parents[1] / "docs" / "results" / "data" / "implants.json"
SEEDS = (0, 1, 2)
PRETRAINING = SimCLR(epochs=20, batch=64, temperature=0.2, crop_scale=0.2, view_size=16)
HEAD = MLP(epochs=20, batch=128, learning_rate=0.003, schedule="cosine", dropout=0.2, standardize=True)
CLASS, HELD_OUT = "arrow", 0.2
SHORT: dict[str, Any] = {
    "batch": 16,
    "optimizer": "adam",
    "learning_rate": 0.003,
    "schedule": "cosine",
    "weight_decay": 0.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "badencoder": SHORT | {"epochs": 4, "reference_views": 2, "lambda1": 2.0, "lambda2": 20.0},
    "drupe": SHORT
    | {"epochs": 6, "reference_views": 2, "lambda1": 2.0, "lambda2": 20.0}
    | {"warm_up": 0.02, "spread_from": 0.3, "adapt_from": 0.5, "reached": 0.9, "spread": 0.1, "distance": 0.002},
    "inactive": SHORT
    | {"epochs": 4, "reference_views": 2, "lambda1": 2.0, "lambda2": 10.0}
    | {"speed": 3.0, "structure": 0.1, "features": 0.02, "color": 0.02},
    "transtroj": SHORT | {"epochs": 6, "utility": 10.0, "trigger_epochs": 3},
    "lba": SHORT | {"epochs": 3, "learning_rate": 0.001, "trigger_epochs": 10},
}
SHADOW = 2000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.implants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(SETTINGS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--validation", action="store_true", help="judge on held-out training images, keep nothing")
    parser.add_argument("--encoders", type=Path, help="a folder where pre-trained encoders are kept and looked for")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other parameters, for a trial")
    given = parser.parse_args()
    changes = {key: _value(text) for key, _, text in (each.partition("=") for each in given.set)}
    settings = {name: SETTINGS[name] | changes for name in given.names or SETTINGS}
    for seed in given.seeds:
        run = Run(seed=seed, dtype=native_dtype(torch.device("cpu")))
        for records in trial(run, settings, given.encoders, validation=given.validation):
            if not given.validation:
                keep(records, settings, run)


def keep(records: list[Record], settings: dict[str, dict[str, Any]], run: Run) -> None:
    """Put the records of one attack and seed into the file, in the place of older ones."""
    new = {(record.seed, record.attack) for record in records}
    known = read_results(KEPT).records if KEPT.exists() else ()
    kept = [record for record in known if (record.seed, record.attack) not in new] + records
    order = {name: number for number, name in enumerate(SETTINGS)}
    kept.sort(key=lambda record: (record.seed, order[str(record.attack)]))
    seeds = sorted({record.seed for record in kept if record.seed is not None})
    scenario: dict[str, Any] = {"name": "implants", "seeds": seeds, "primary_head": "mlp"}
    scenario |= {"attack": SETTINGS | settings, "pretraining": asdict(PRETRAINING), "head": asdict(HEAD)}
    results = Results(
        scenario=scenario | {"shadow_images": SHADOW},
        environment=environment(run),
        command=f"python -m benchmarks.implants --seeds {' '.join(map(str, seeds))}",
        records=tuple(kept),
    )
    write_atomically(KEPT, results.to_json())


def trial(
    run: Run, settings: dict[str, dict[str, Any]], folder: Path | None, *, validation: bool
) -> Iterator[list[Record]]:
    """The attacks of one seed, one after another: what each reaches."""
    objects = worlds.make("objects", "train")
    clean = pretrained(objects, run, folder)
    train, judged = objects, worlds.make("objects", "test")
    if validation:
        train, judged = objects.held_out(HELD_OUT, run.child("validation objects").generator())
    label = train.classes.index(CLASS)
    rows = choose_references(train, label, 3, clean, run)
    references, train = train.take(rows), train.without(rows)
    trigger = Patch(size=10, position="top-left")
    target = Target(name=CLASS, task="objects", label=label, class_name=CLASS, references=references, trigger=trigger)
    shadow = objects.sample(SHADOW, run.child("shadow images").generator())

    head = HEAD.fit(extract(clean, train, run), train.targets(), len(train.classes), run.child("head mlp"))
    on_clean = predict(head, extract(clean, judged, run))
    for name, parameters in settings.items():
        records: list[Record] = []
        started = time.process_time()
        attack = find("attacks", METHODS, name, "here")(**parameters)
        trained = attack(copy.deepcopy(clean), shadow, (target,), run.child("attack"))
        seconds = time.process_time() - started
        used = replace(target, trigger=trained.triggers.get(target.name, target.trigger))
        attacked = HEAD.fit(extract(trained.encoder, train, run), train.targets(), 10, run.child("head mlp"))
        stamped = extract(trained.encoder, judged, run, used.trigger)
        metrics = attack_metrics(
            judged.targets(),
            label,
            clean_on_clean=on_clean,
            clean_on_triggered=predict(head, extract(clean, judged, run, used.trigger)),
            backdoored_on_clean=predict(attacked, extract(trained.encoder, judged, run)),
            backdoored_on_triggered=predict(attacked, stamped),
        )
        common: dict[str, Any] = {"seed": run.seed, "task": "objects", "target": CLASS, "attack": name}
        common |= {"condition": {"attack": name}, "seconds": round(seconds, 1)}
        for metric, rate in metrics.items():
            records.append(Record(stage="downstream", metric=metric, head="mlp", **asdict(rate), **common))
        n = len(stamped)
        spread = float((stamped.sum(0).square().sum() - n) / (n * n - n))
        change = float((used.trigger(judged.batch()) - judged.batch()).abs().mean())
        for metric, value in (("mean cosine", spread), ("mean change of a pixel", change)):
            records.append(Record(stage="features", metric=metric, value=value, unit="", **common))
        told = {key: round(100 * rate.value, 1) for key, rate in metrics.items()}
        ends = {key: round(series[-1], 3) for key, series in trained.curves.items()}
        print(
            f"seed {run.seed}, {name}, {seconds:.0f} s: {told}, cosine {spread:.3f}, change {change:.4f}, {ends}",
            flush=True,
        )
        yield records


def pretrained(objects: ImageSet, run: Run, folder: Path | None) -> Encoder:
    """The demo's encoder of this seed, made in float32; from ``folder`` if it is there."""
    run = replace(run, dtype=torch.float32)
    path = folder / f"clean-{run.seed}.safetensors" if folder else None
    if path and path.exists():
        return encoders.load(path, run)
    encoder = encoders.build(run.child("encoder"), architecture="resnet10", width=16)
    PRETRAINING(encoder, objects, run.child("pretraining"))
    if path:
        encoders.save(encoder, path)
    return encoder


def _value(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
