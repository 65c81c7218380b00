"""Fleets: pairs of a clean encoder and its attacked twin that a defender trains, and what is learned from them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sapper import encoders, tensors
from sapper.defenses.contracts import EncoderLearner
from sapper.encoders import Encoder
from sapper.encoders.names import packages_of
from sapper.engine.stage import Stage, place_of, surroundings
from sapper.engine.store import Store
from sapper.errors import SapperError
from sapper.experiment.pipeline import AttackPlan, pipeline
from sapper.experiment.tasks import Aim, Goals, Part, Task, method_key, packages
from sapper.experiment.works import LEARNED, encoder_file
from sapper.files import LEFTOVERS, read_text, write_atomically
from sapper.pretraining.contracts import Pretraining
from sapper.running import Run, Silent
from sapper.samples import ImageSet
from sapper.scenario.defending import DefensePlan
from sapper.scenario.named import Named
from sapper.scenario.sections import EncoderSection, FleetSection

MANIFEST = "fleet.json"
"""In a fleet's folder: what its members are made from."""


@dataclass(frozen=True)
class Given:
    """One reference image that was drawn before."""

    row: int

    def __call__(self, candidates: ImageSet, encoder: Encoder, run: Run) -> tuple[int, Tensor]:
        return 0, torch.tensor([self.row])


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

    @property
    def threads(self) -> int:
        """On a CPU each pair is trained by one process with one thread."""
        return 1 if self.run.device.type == "cpu" else torch.get_num_threads()

    def key(self) -> dict[str, Any]:
        """What the pairs are made from, as plain data."""
        libraries = packages(self.pretraining, self.attack) + packages_of(self.spec.architecture)
        return surroundings(self.run, libraries, self.threads) | {
            "encoder": self.spec.model_dump(mode="json"),
            "pretraining": method_key(self.pretraining),
            "attack": method_key(self.attack),
            "images": self.images.digest,
            "references": self.references.digest,
        }

    def pairs(self, count: int, draw: Callable[..., Any]) -> list[tuple[Stage, Stage]]:
        """The stages of the first ``count`` pairs; ``draw`` gives the attack on a twin, see ``EncoderLearner.draw``."""
        images, references = Part.whole(self.images), Part.whole(self.references)
        made = []
        for number in range(count):
            run = replace(self.run.child(f"pair {number}"), progress=Silent())
            row, trigger = draw(len(self.references), self.images.size, run.child("attack of the twin"))
            aim = Aim(name=f"pair {number}", trigger=trigger, rule=Given(row))
            goals = Goals(task=self.references.name, candidates=references, aims=(aim,))
            task = Task(goals=goals, train=references, test=references, draw=run)  # which nobody measures
            clean, twin = pipeline(
                self.spec,
                self.pretraining,
                images,
                run,
                tasks=[task],
                attack=AttackPlan(method=self.attack, shadow=images),
                threads=self.threads,
                where=f"pair {number} of the fleet",
            ).subjects
            made.append((clean.stage, twin.stage))
        return made

    def store(self, around: Store, section: FleetSection) -> Store:
        """Where its members lie: in the folder that the section names, or within the store."""
        return claimed(Path(section.fleet), self) if section.fleet else around.within(place_of("fleet", self.key()))


def claimed(folder: Path, fleet: Fleet) -> Store:
    """The folder as this fleet's own. Raises ``SapperError`` when it has another's, or something else, in it."""
    wanted, path = json.loads(json.dumps(fleet.key())), folder / MANIFEST
    remedy = "name a new folder, or leave `fleet` out"
    try:
        if not folder.exists() or all(file.match(LEFTOVERS) for file in folder.iterdir()):
            write_atomically(path, json.dumps(wanted, indent=1) + "\n")
        there = dict(json.loads(read_text(path, remedy, "the folder holds no readable fleet")))
    except (OSError, ValueError, TypeError) as error:
        raise SapperError(f"the folder holds no readable fleet: {error}", where=str(path), remedy=remedy) from error
    if differing := [key for key in wanted | there if wanted.get(key) != there.get(key)]:
        what = f"this fleet was made from something else: other {', '.join(differing)}"
        raise SapperError(what, where=str(path), remedy=remedy)
    return Store(folder)


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Learn from a fleet, whose pairs are the inputs: clean, twin, clean, twin …; leaves what was learned."""

    plan: str
    method: Named
    images: Part

    name: ClassVar[str] = "fit"

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages(self.method)

    def key(self) -> dict[str, Any]:
        return method_key(self.method) | {"name": self.plan, "images": self.images.origin}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        opened = [encoders.load(encoder_file(each), run) for each in inputs]
        pairs = list(zip(opened[::2], opened[1::2]))
        method: EncoderLearner = self.method.parameters
        learned = method.fit(pairs, self.images(), run.child(f"defense {self.plan}"))
        tensors.save(folder / LEARNED, learned.state_dict())


def learn(plan: DefensePlan, fleet: Fleet, run: Run) -> Stage:
    """The stage in which a detector learns from its fleet; its inputs are the fleet's."""
    method: EncoderLearner = plan.method.parameters
    members = [stage for pair in fleet.pairs(method.pairs, method.draw) for stage in pair]
    work = Learn(plan=plan.name, method=plan.method, images=Part.whole(fleet.images))
    return Stage(work, run, tuple(members), title=plan.name)
