"""The images of a zoo: what its plan names, in memory once, and what each specimen draws of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sapper import datasets
from sapper.experiment.stages import TaskData
from sapper.run import Run
from sapper.samples import ImageSet
from sapper.zoo.making import Job
from sapper.zoo.plans import Plan, Specimen

ATTACKERS_SHARE, ATTACKERS_IMAGES = 0.2, 2000
"""Of a victim's training split what the attacker has instead, to choose references from, and how many at most."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits that a plan names, each in memory once. ``load`` it from a plan."""

    sets: dict[tuple[str, str, int], ImageSet]

    @staticmethod
    def load(plan: Plan, run: Run, *, parts: Sequence[str] = (), data_root: Path | None, download: bool) -> "Splits":
        """Every split that some parts of the plan need, or all, those for detectors included.

        Raises ``SapperError`` for data that is missing.
        """
        wanted = dict.fromkeys(place for specimen in plan.of_parts(parts) for place in _places(specimen))
        wanted |= {(section.dataset, section.split, size): None for section, size in plan.images.values()}
        sets = {}
        with run.progress.bar("data", len(wanted)) as bar:
            for name, split, size in wanted:
                bar.advance(0, f"{name}, {split}")
                sets[name, split, size] = datasets.load(name, split, data_root=data_root, size=size, download=download)
                bar.advance()
        return Splits(sets=sets)

    def job(self, specimen: Specimen, run: Run) -> Job:
        """The specimen with its images: each member draws its own part of them."""
        size = specimen.encoder.input_size
        first, attack = specimen.pretraining, specimen.attack
        images = self._part((first.dataset, first.split, size), first.images, run, "pretraining images")
        shadow = images.sample(attack.shadow_images or len(images), run.child("shadow images").generator())
        task, candidates = self._attacked(specimen, run) if specimen.twin else (None, None)
        return Job(specimen=specimen, images=images, shadow=shadow, task=task, candidates=candidates, run=run)

    def _part(self, place: tuple[str, str, int], count: int | None, run: Run, name: str) -> ImageSet:
        whole = self.sets[place]
        return whole.sample(count or len(whole), run.child(name).generator())

    def _attacked(self, specimen: Specimen, run: Run) -> tuple[TaskData, ImageSet]:
        """The victim's task, and the attacker's images of it, which the victim does not have."""
        victim, size = specimen.victim, specimen.encoder.input_size
        train = self.sets[victim.dataset, "train", size]
        rest, held = train.held_out(ATTACKERS_SHARE, run.child("attacker's images").generator())
        task = TaskData(
            name=victim.dataset,
            train=rest.sample(victim.train_images or len(rest), run.child("train images").generator()),
            test=self._part((victim.dataset, "test", size), victim.test_images, run, "test images"),
        )
        datasets.check_task(task.train, task.test)
        return task, held.sample(ATTACKERS_IMAGES, run.child("candidates").generator())


def _places(specimen: Specimen) -> Iterator[tuple[str, str, int]]:
    size = specimen.encoder.input_size
    yield specimen.pretraining.dataset, specimen.pretraining.split, size
    if specimen.twin:
        yield specimen.victim.dataset, "train", size
        yield specimen.victim.dataset, "test", size


def ordinary_images(plan: Plan, family: str, run: Run, *, data_root: Path | None, download: bool) -> ImageSet:
    """The images that detectors may look at for a family's encoders."""
    section, size = plan.images[family]
    whole = datasets.load(section.dataset, section.split, data_root=data_root, size=size, download=download)
    return whole.sample(section.images or len(whole), run.child("ordinary images").generator())
