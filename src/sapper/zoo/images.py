"""The images of a zoo: what its plan names, in memory once, and what each specimen draws of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sapper import datasets
from sapper.errors import located
from sapper.experiment.data import Place, images_of
from sapper.experiment.tasks import Aim, Goals, Part, Task
from sapper.pretraining.contracts import check_count
from sapper.running import Run
from sapper.samples import ImageSet, PairSet, Samples
from sapper.zoo.making import BestTold, Planned, planned
from sapper.zoo.plans import Plan, Specimen

ATTACKERS_SHARE, ATTACKERS_IMAGES = 0.2, 2000
"""Of a victim's training split what the attacker has instead, to choose references from, and how many at most."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits that a plan names, each in memory once. ``load`` it from a plan. ``pairs``: those with captions."""

    sets: dict[Place, ImageSet]
    pairs: dict[Place, PairSet] = field(default_factory=dict)

    @staticmethod
    def load(plan: Plan, run: Run, *, parts: Sequence[str] = (), data_root: Path | None, download: bool) -> "Splits":
        """Every split that some parts of the plan need, or all, those for detectors included.

        Raises ``SapperError`` for data that is missing, or too few for a pre-training.
        """
        wanted = dict.fromkeys(place for specimen in plan.of_parts(parts) for place in _places(specimen))
        wanted |= {(section.dataset, section.split, size): None for section, size in plan.images.values()}
        captioned = dict.fromkeys(_first(specimen) for specimen in plan.of_parts(parts) if specimen.captioned)
        sets, pairs = {}, {}
        with run.progress.bar("data", len(wanted)) as bar:
            for name, split, size in wanted:
                bar.advance(0, f"{name}, {split}")
                sets[name, split, size] = datasets.load(name, split, data_root=data_root, size=size, download=download)
                bar.advance()
        for name, split, size in captioned:
            pairs[name, split, size] = datasets.load_pairs(name, split, size=size)
        for specimen in plan.of_parts(parts):
            first = specimen.pretraining
            with located(f"zoo {plan.name}: family {specimen.family!r}.pretraining", "."):
                check_count(
                    specimen.pretraining_method.parameters,
                    first.images or len(sets[first.dataset, first.split, specimen.encoder.input_size]),
                )
        return Splits(sets=sets, pairs=pairs)

    def planned(self, specimen: Specimen, run: Run) -> Planned:
        """The stages of a specimen: each member draws its own part of the images."""
        first, attack, place = specimen.pretraining, specimen.attack, _first(specimen)
        whole: Part[Samples] = Part.whole(self.pairs[place] if specimen.captioned else self.sets[place])
        images = whole.sample(first.images, run.child("pretraining images"))
        shown = images.changed("images", images_of) if specimen.captioned else images
        shadow = shown.sample(attack.shadow_images, run.child("shadow images"))
        return planned(specimen, images, shadow, self._task(specimen, run) if specimen.twin else None, run)

    def _part(self, place: tuple[str, str, int], count: int | None, run: Run, name: str) -> Part:
        return Part.whole(self.sets[place]).sample(count, run.child(name))

    def _task(self, specimen: Specimen, run: Run) -> Task:
        """The victim's task, and the attacker's images of it, which the victim does not have."""
        victim, size = specimen.victim, specimen.encoder.input_size
        train = Part.whole(self.sets[victim.dataset, "train", size])
        rest, held = train.halves(ATTACKERS_SHARE, run.child("attacker's images"))
        aim = Aim(name=specimen.name, trigger=specimen.trigger, rule=BestTold(victim.references))
        candidates = held.sample(ATTACKERS_IMAGES, run.child("candidates"))
        return Task(
            goals=Goals(task=victim.dataset, candidates=candidates, aims=(aim,)),
            train=rest,
            test=self._part((victim.dataset, "test", size), victim.test_images, run, "test images"),
            draw=run.child("train images"),
            count=victim.train_images,
        )


def _first(specimen: Specimen) -> Place:
    """What it is pre-trained on."""
    return specimen.pretraining.dataset, specimen.pretraining.split, specimen.encoder.input_size


def _places(specimen: Specimen) -> Iterator[Place]:
    size = specimen.encoder.input_size
    yield _first(specimen)
    if specimen.twin:
        yield specimen.victim.dataset, "train", size
        yield specimen.victim.dataset, "test", size


def ordinary_images(plan: Plan, family: str, run: Run, *, data_root: Path | None, download: bool) -> ImageSet:
    """The images that detectors may look at for a family's encoders."""
    section, size = plan.images[family]
    whole = datasets.load(section.dataset, section.split, data_root=data_root, size=size, download=download)
    return whole.sample(section.images or len(whole), run.child("ordinary images").generator())
