"""What attacks on the training of a downstream classifier reach: ``python -m benchmarks.downstream_attacks``.

For every seed an encoder is pre-trained as ``scenarios/demo.toml`` says, and a victim builds a classifier for
``objects`` on it, by fine-tuning the encoder or with the demo's head on the frozen one; the target is ``arrow``.
Beside each attack stands the same victim without it. Targeted attacks have no trigger: theirs is the rate of chosen
test images that get the wanted class, beside the same without the attack. Results go to
``docs/results/data/downstream-attacks.json``; what is in there already is not computed again. With ``--validation``
nothing is kept, and the judges are held-out training images: so the settings below were chosen, with seed 7.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapper import encoders
from sapper.attacks import METHODS
from sapper.attacks.contracts import Hits
from sapper.attacks.references import choose_references
from sapper.attacks.target import Target
from sapper.attacks.training.trojannn import TrojanNN, covered
from sapper.datasets import worlds
from sapper.downstream import MLP, AnyHead, Classifier, Finetune, Linear, build
from sapper.encoders import Encoder
from sapper.engine.environment import environment
from sapper.experiment.results import Record, Results, read_results
from sapper.files import write_atomically
from sapper.methods import find
from sapper.metrics import Rate, attack_metrics, difference, share
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Blend, Patch, Trigger

KEPT = Path(__file__).resolve().parents[1] / "docs" / "results" / "data" / "downstream-attacks.json"
SEEDS = (0, 1, 2)
PRETRAINING = SimCLR(epochs=20, batch=64, temperature=0.2, crop_scale=0.2, view_size=16)
IMAGES, CLASS, HELD_OUT = 2000, "arrow", 0.125
HEADS: dict[str, AnyHead] = {
    "finetune": Finetune(epochs=6, batch=32, hidden=(64,)),
    "mlp": MLP(epochs=20, batch=128, learning_rate=0.003, schedule="cosine", dropout=0.2, standardize=True),
}
PATCH = Patch(size=10, position="top-left")
ATTACKS: dict[str, tuple[str, dict[str, Any], Trigger]] = {
    "badnets": ("badnets", {}, PATCH),
    "blend, noise": ("blend", {}, Blend(alpha=0.2)),
    "blend, cat": ("blend", {}, Blend(alpha=0.2, pattern="cat")),
    "blind": ("blind", {"threshold": 1.5, "window": 20}, PATCH),
    "trojannn": ("trojannn", {}, PATCH),
}
TARGETED: dict[str, tuple[str, dict[str, Any], AnyHead]] = {
    "feature_collision, 700 a class": (
        "feature_collision",
        {"base": 7, "victim": 3, "inputs": 50, "per_class": 700, "beta": 1e-4, "steps": 100},
        Linear(),
    ),
    "feature_collision, 50 a class": (
        "feature_collision",
        {"base": 7, "victim": 3, "inputs": 50, "per_class": 50, "beta": 1e-4, "steps": 100},
        Linear(penalty=1e-6),
    ),
    "model_reuse": ("model_reuse", {"wanted": 7, "inputs": 17, "references": 32, "steps": 25}, Linear()),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.downstream_attacks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join([*ATTACKS, *TARGETED])}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--validation", action="store_true", help="judge on held-out training images, keep nothing")
    parser.add_argument("--encoders", type=Path, help="a folder where pre-trained encoders are kept and looked for")
    given = parser.parse_args()
    for seed in given.seeds:
        run = Run(seed=seed)
        trial = Trial(run, given.encoders, validation=given.validation)
        names = given.names or [*ATTACKS, *TARGETED]
        for key, head, found in trial.measured(names, given.heads):
            told = {record.metric: round(100 * record.value, 1) for record in found}
            print(f"seed {seed}, {key}, {head}, {found[0].seconds:.0f} s: {told}", flush=True)
            if not given.validation:
                keep(found)


class Trial:
    """All attacks with one seed."""

    def __init__(self, run: Run, folder: Path | None, *, validation: bool):
        self.run, self.validation = run, validation
        train, self.judged = worlds.make("objects", "train"), worlds.make("objects", "test")
        self.encoder = pretrained(train, run, folder)
        if validation:
            train, self.judged = train.held_out(HELD_OUT, run.child("validation objects").generator())
        self.label = train.classes.index(CLASS)
        rows = choose_references(train, self.label, 1, self.encoder, run)
        self.references, self.all = train.take(rows), train.without(rows)
        self.train = self.all.sample(IMAGES, run.child("train images objects").generator())

    def measured(self, names: list[str], heads: list[str]) -> Iterator[tuple[str, str, list[Record]]]:
        """The records of each attack and head that are not there yet."""
        done = set() if self.validation else {(r.seed, r.condition["attack"], r.head) for r in kept()}
        for head in heads:
            wanted = [n for n in names if n in ATTACKS and (self.run.seed, n, head) not in done]
            if wanted:
                clean = build(HEADS[head], self.encoder, self.train, self.run.child(f"head {head}"))
            for name in wanted:
                yield name, head, self.attack(name, head, clean)
        for name in names:
            if name in TARGETED and (self.run.seed, name, "linear") not in done:
                yield name, "linear", self.choose(name)

    def attack(self, key: str, name: str, clean: Classifier) -> list[Record]:
        """An attack on the training, against the victim without it."""
        started, run = time.process_time(), self.run.child(f"attack {key}")
        method, parameters, trigger = ATTACKS[key]
        attack, head = find("attacks", METHODS, method, "here")(**parameters), HEADS[name]
        target = Target(
            name=CLASS,
            task="objects",
            label=self.label,
            class_name=CLASS,
            references=self.references,
            trigger=trigger,
        )
        if attack.kind == "poison":
            poisoned = attack(self.train, (target,), run)
            attacked = build(head, self.encoder, poisoned.samples, self.run.child(f"head {name}"))
        elif isinstance(attack, TrojanNN):  # on the very classifier that it is compared with
            mask = covered(trigger, self.train.size[0])
            found = attack.trojan(copy.deepcopy(clean), target, mask, len(self.train.classes), run, None)
            attacked, trigger = found.classifier, found.triggers[CLASS]
        else:
            attacked = attack(self.encoder, self.train, (target,), head, run).classifier
        seconds = time.process_time() - started
        metrics = attack_metrics(
            self.judged.targets(),
            self.label,
            clean_on_clean=answers(clean, self.judged),
            clean_on_triggered=answers(clean, self.judged, trigger),
            backdoored_on_clean=answers(attacked, self.judged),
            backdoored_on_triggered=answers(attacked, self.judged, trigger),
        )
        return self.records(key, name, "downstream", metrics, seconds)

    def choose(self, key: str) -> list[Record]:
        """A targeted attack, against the same classifiers without it."""
        started, (method, parameters, head) = time.process_time(), TARGETED[key]
        attack = find("attacks", METHODS, method, "here")(**parameters)
        train = self.all if method == "feature_collision" else self.train
        hits: Hits = attack(self.encoder, train, self.judged, head, self.run.child(f"attack {key}"))
        metrics = {"hit rate": share(hits.hit), "hit rate without": share(hits.before)}
        metrics["lift of the hit rate"] = difference(hits.hit, hits.before)
        for name, values in (("BA", hits.accuracy), ("CA", hits.accuracy_before)):
            mean = float(values.mean())
            metrics[name] = Rate(mean, mean, mean, len(values))
        return self.records(key, "linear", "targeted", metrics, time.process_time() - started)

    def records(self, key: str, head: str, stage: str, metrics: dict[str, Rate], seconds: float) -> list[Record]:
        common: dict[str, Any] = {"seed": self.run.seed, "task": "objects", "target": CLASS, "head": head}
        common |= {"attack": key.split(",")[0], "condition": {"attack": key}, "seconds": round(seconds, 1)}
        return [Record(stage=stage, metric=metric, **asdict(rate), **common) for metric, rate in metrics.items()]


@torch.no_grad()
def answers(classifier: Classifier, samples: ImageSet, trigger: Trigger | None = None) -> Tensor:
    """Predicted classes, int64 (N,)."""
    parts = samples.batches(500)
    return torch.cat([classifier(part if trigger is None else trigger(part)).argmax(1) for part in parts])


def pretrained(objects: ImageSet, run: Run, folder: Path | None) -> Encoder:
    """The demo's encoder of this seed; from ``folder`` if it is there."""
    path = folder / f"clean-{run.seed}.safetensors" if folder else None
    if path and path.exists():
        return encoders.load(path, run)
    encoder = encoders.build(run.child("encoder"), architecture="resnet10", width=16)
    PRETRAINING(encoder, objects, run.child("pretraining"))
    if path:
        encoders.save(encoder, path)
    return encoder


def kept() -> tuple[Record, ...]:
    """What was measured so far."""
    return read_results(KEPT).records if KEPT.exists() else ()


def keep(records: list[Record]) -> None:
    """Add records to those that were measured so far."""
    known = (*kept(), *records)
    settings = {key: {"method": name} | parameters for key, (name, parameters, _) in ATTACKS.items()}
    settings |= {key: {"method": name} | parameters for key, (name, parameters, _) in TARGETED.items()}
    results = Results(
        scenario={
            "name": "downstream-attacks",
            "seeds": sorted({record.seed for record in known if record.seed is not None}),
            "attack": settings,
            "primary_head": "finetune",
            "pretraining": asdict(PRETRAINING),
            "heads": {name: asdict(head) for name, head in HEADS.items()},  # type: ignore[call-overload]
            "train_images": IMAGES,
        },
        environment=environment(Run()),
        command="python -m benchmarks.downstream_attacks",
        records=known,
    )
    write_atomically(KEPT, results.to_json())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
