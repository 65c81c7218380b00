"""Fleets: pairs of a clean encoder and its backdoored twin that a defender trains, and what is learned from them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sapper import encoders
from sapper.attacks.target import Target
from sapper.defenses.contracts import EncoderLearner
from sapper.encoders import Encoder
from sapper.engine.executors import Workers
from sapper.engine.store import Stage, Store
from sapper.errors import SapperError, located
from sapper.experiment import stages
from sapper.experiment.defending import FORM, leave_verdicts
from sapper.files import LEFTOVERS, read_text, sha256, write_atomically
from sapper.pretraining.contracts import Pretraining
from sapper.run import Run, Silent
from sapper.samples import ImageSet
from sapper.scenario.reading import DefensePlan, Named
from sapper.scenario.sections import EncoderSection, FleetSection

MANIFEST = "fleet.json"
"""In a fleet's folder: what its members are made from."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What all pairs have in common. Each has its own seed, from ``run``, whatever their number.

    ``images``: what the pairs are pre-trained and attacked on. ``references``: images that their attacks may take.
    """

    spec: EncoderSection
    pretraining: Named[Pretraining]
    attack: Named
    images: ImageSet
    references: ImageSet
    run: Run

    def key(self) -> dict[str, Any]:
        """What the pairs are made from, as plain data."""
        threads = {"threads": 1} if self.run.device.type == "cpu" else {}
        return (
            stages.surroundings(self.run)
            | threads
            | {
                "encoder": self.spec.model_dump(mode="json"),
                "pretraining": stages.method_key(self.pretraining),
                "attack": stages.method_key(self.attack),
                "images": self.images.digest,
                "references": self.references.digest,
            }
        )

    def pair(self, number: int, draw: Callable[..., Any]) -> "Pair":
        """The pair with that number; ``draw`` gives its attack, see ``EncoderLearner.draw``."""
        run = replace(self.run.child(f"pair {number}"), progress=Silent())
        row, trigger = draw(len(self.references), self.images.size, run.child("attack of the twin"))
        target = Target(
            name=f"pair {number}",
            task=self.references.name,
            label=0,
            class_name="a reference image",
            references=self.references.take(torch.tensor([row])),
            trigger=trigger,
        )
        return Pair(
            spec=self.spec,
            pretraining=self.pretraining,
            attack=self.attack,
            images=self.images,
            target=target,
            run=run,
        )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clean encoder and its backdoored twin, before they are there. Travels to other processes."""

    spec: EncoderSection
    pretraining: Named[Pretraining]
    attack: Named
    images: ImageSet
    target: Target
    run: Run

    def make(self, store: Store) -> tuple[Path, Path]:
        """Train both, or find them in the store; their files."""
        with located(f"{self.target.name} of the fleet"):
            clean = stages.encoder_file(stages.pretrain(store, self.spec, self.pretraining, self.images, self.run))
            twin = stages.attack(store, clean, self.attack, self.images, (self.target,), self.run)
        return clean, stages.encoder_file(twin)


def grow(
    fleet: Fleet, count: int, draw: Callable[..., Any], store: Store, workers: Workers, note: Callable[[], object]
) -> list[tuple[Encoder, Encoder]]:
    """The first ``count`` pairs of a fleet, in memory; those that ``store`` does not have are trained.

    On a CPU by one process for each core with one thread each, on an accelerator one after another. ``note`` is called
    after each pair.
    """
    run, jobs = fleet.run, [(fleet.pair(number, draw), store) for number in range(count)]
    with run.progress.bar(f"fleet of {count} + {count} encoders", count) as bar:

        def done() -> None:
            note()
            bar.advance()

        files = workers.run_on(run.device, Pair.make, jobs, done)
    return [(encoders.load(clean, run), encoders.load(twin, run)) for clean, twin in files]


def claim(folder: Path, fleet: Fleet) -> Store:
    """The folder as this fleet's own. Raises ``SapperError`` when it has another's, or something else, in it."""
    wanted, path = json.loads(json.dumps(fleet.key())), folder / MANIFEST
    remedy = "name a new folder, or leave `fleet` out"
    try:
        if not folder.exists() or all(file.match(LEFTOVERS) for file in folder.iterdir()):
            write_atomically(path, json.dumps(wanted, indent=1) + "\n")
        found = dict(json.loads(read_text(path, remedy, "the folder holds no readable fleet")))
    except (OSError, ValueError, TypeError) as error:
        raise SapperError(f"the folder holds no readable fleet: {error}", where=str(path), remedy=remedy) from error
    if differing := [key for key in wanted | found if wanted.get(key) != found.get(key)]:
        what = f"this fleet was made from something else: other {', '.join(differing)}"
        raise SapperError(what, where=str(path), remedy=remedy)
    return Store(folder)


def home(store: Store, section: FleetSection, fleet: Fleet) -> Store:
    """Where a fleet's members lie: in the folder that the section names, or in one of the store's."""
    return claim(Path(section.fleet), fleet) if section.fleet else Store(store.folder("fleet", fleet.key()))


def twins(place: Store) -> int:
    """How many backdoored members are there already."""
    return sum(1 for _ in place.root.glob("attack-*"))


def fit(store: Store, plan: DefensePlan, section: FleetSection, fleet: Fleet, workers: Workers, run: Run) -> Stage:
    """Grow the fleet and learn from it; leaves ``learned.safetensors``."""
    method: EncoderLearner = plan.method.parameters
    place = home(store, section, fleet)

    def make(folder: Path) -> None:
        with place.locked():  # a file that changes here tells the Store how long an interrupted fleet took
            pairs = grow(fleet, method.pairs, method.draw, place, workers, (folder / "growing").touch)
        (folder / "growing").unlink(missing_ok=True)
        learned = method.fit(pairs, fleet.images, run.child(f"defense {plan.name}"))
        stages.save_tensors(folder / "learned.safetensors", learned.state_dict())

    key = stages.surroundings(run) | stages.method_key(plan.method) | {"fleet": fleet.key(), "name": plan.name}
    return store.stage("fit", key, make)


def judge(store: Store, plan: DefensePlan, fitted: Stage, subjects: Sequence[Path], run: Run) -> Stage:
    """Judge the encoders in the files; leaves what ``defending.detect`` does, the verdicts in their order."""
    learned = fitted.folder / "learned.safetensors"

    def make(folder: Path) -> None:
        judge = method.restore(stages.load_tensors(learned))
        leave_verdicts(folder, judge.judge([encoders.load(file, run) for file in subjects], run))

    method: EncoderLearner = plan.method.parameters
    key = stages.surroundings(run) | stages.method_key(plan.method)
    key |= {"form": FORM, "learned": sha256(learned), "subjects": [sha256(file) for file in subjects]}
    return store.stage("judge", key, make)
