"""Every member of a zoo before the detectors of a budget; what was looked at is not looked at again."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from sapper import encoders
from sapper.audits.auditing import effect, scores, some_of
from sapper.audits.calibration import Key
from sapper.defenses.budgets import Budget
from sapper.defenses.contracts import Examiner
from sapper.defenses.inversion import neighborhood, spread_of
from sapper.downstream import extract
from sapper.encoders.names import packages_of
from sapper.engine.executors import Workers, execute
from sapper.engine.stage import Stage, Work
from sapper.engine.store import Finished, Store
from sapper.errors import located
from sapper.experiment.tasks import Part, method_key, packages
from sapper.files import sha256, write_atomically
from sapper.running import Run, Silent
from sapper.samples import ImageSet
from sapper.scenario.named import Named
from sapper.triggers import Trigger
from sapper.zoo.making import Member

DEVELOPMENT, CALIBRATION, JUDGEMENT = "development", "calibration", "judgement"
"""The parts of a zoo that detectors are chosen by or learn from, that bags are made of, and that all are judged on."""

LOOKED = 2
"""Counts the forms of what is kept of a look."""

SEEN = "seen.json"


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """The ``spread`` of features that a change leaves, and that of the images around (``inversion``)."""

    spread: float
    neighborhood: float

    @property
    def powers(self) -> float:
        """The powers of ten between the two, which a score rests on."""
        return math.log10(self.neighborhood / self.spread)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A member with each detector's score, own flag, seconds and plain evidence.

    ``gathered``: the share of images that the trigger which a detector recovered draws to one point.
    ``looks``: what an audit compares with a bag (``Key``). Families may share it. ``under_trigger``: what an attacked
    one's own trigger does, which a search that found it would see.
    """

    member: Member
    looks: str
    scores: dict[str, float | None]
    flagged: dict[str, bool | None]
    seconds: dict[str, float]
    gathered: dict[str, float | None] = field(default_factory=dict)
    evidence: dict[str, dict[str, Any]] = field(default_factory=dict)
    under_trigger: Gathering | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An encoder in a file, and ordinary images. ``sha256`` is the file's, ``architecture`` its network's."""

    file: Path
    sha256: str
    architecture: str
    images: Part

    @property
    def libraries(self) -> tuple[str, ...]:
        return packages_of(self.architecture)

    def key(self) -> dict[str, Any]:
        """It as plain data."""
        return {"encoder": self.sha256, "images": self.images.origin}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Show an encoder to one detector; leaves what it saw, as plain data."""

    shown: Shown
    method: Named

    name: ClassVar[str] = "look"

    @property
    def libraries(self) -> tuple[str, ...]:
        return self.shown.libraries + packages(self.method)

    def key(self) -> dict[str, Any]:
        return self.shown.key() | method_key(self.method) | {"looked": LOOKED}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        encoder, images = encoders.load(self.shown.file, run), self.shown.images()
        verdict = scores(encoder, images, {self.method.name: self.method.parameters}, run)[self.method.name]
        record: dict[str, Any] = {"score": verdict.score, "flagged": verdict.flagged, "seconds": verdict.seconds}
        record["evidence"] = verdict.evidence
        collapse = effect(encoder, verdict, images, run)
        record["gathered"] = None if collapse is None else collapse.gathered
        write_atomically(folder / SEEN, json.dumps(record))


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Show an encoder its own trigger; leaves what that does to its features (``Gathering``)."""

    shown: Shown
    trigger: Trigger

    name: ClassVar[str] = "stamp"

    @property
    def libraries(self) -> tuple[str, ...]:
        return self.shown.libraries

    def key(self) -> dict[str, Any]:
        return self.shown.key() | {"trigger": self.trigger.describe()}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        encoder, sample = encoders.load(self.shown.file, run), some_of(self.shown.images(), run)
        plain, stamped = (extract(encoder, sample, run, change).float() for change in (None, self.trigger))
        gathering = Gathering(spread=spread_of(stamped), neighborhood=neighborhood(plain, stamped))
        write_atomically(folder / SEEN, json.dumps(asdict(gathering)))


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One member before the detectors of a budget: a stage for each part of each detector, and one for its trigger."""

    member: Member
    file: Path
    images: ImageSet
    budget: Budget
    more: dict[str, Examiner]
    looks: dict[str, list[Stage]]
    stamp: Stage | None
    run: Run

    @staticmethod
    def of(
        member: Member, folder: Path, images: ImageSet, budget: Budget, more: dict[str, Examiner], run: Run
    ) -> "Examination":
        """Its stages, of the zoo in ``folder``; ``more``: detectors that have learned, whose looks are not kept."""
        file, trigger = folder / member.file, member.trigger(folder)
        architecture = str(member.about.get("encoder", {}).get("architecture", ""))
        shown = Shown(file=file, sha256=sha256(file), architecture=architecture, images=Part.whole(images))

        def stage(work: Work) -> Stage:
            return Stage(
                work, run, threads=1 if run.device.type == "cpu" else torch.get_num_threads(), where=member.name
            )

        looks = {}
        for name, method in budget.make().items():
            looks[name] = [
                stage(Look(shown=shown, method=Named(name=name, parameters=part))) for part in method.parts()
            ]
        stamp = None if trigger is None else stage(Stamp(shown=shown, trigger=trigger))
        return Examination(
            member=member, file=file, images=images, budget=budget, more=more, looks=looks, stamp=stamp, run=run
        )

    @property
    def stages(self) -> list[Stage]:
        """All of them."""
        return [*(look for looks in self.looks.values() for look in looks), *([self.stamp] if self.stamp else [])]

    def scored(self, done: Mapping[Stage, Finished]) -> Scored:
        """What was seen, once the stages are finished."""
        records = {name: together([_record(done[look]) for look in looks]) for name, looks in self.looks.items()}
        encoder = encoders.load(self.file, self.run)
        for name, judge in self.more.items():
            with located(self.member.name):
                verdict = judge.examine(encoder, self.images, self.run)
            records[name] = {"score": verdict.score, "flagged": verdict.flagged, "seconds": verdict.seconds}
            records[name] |= {"evidence": {}, "gathered": None}
        return Scored(
            member=self.member,
            looks=json.dumps(asdict(Key.of(encoder, self.images, self.budget)), sort_keys=True),
            scores={name: record["score"] for name, record in records.items()},
            flagged={name: record["flagged"] for name, record in records.items()},
            seconds={name: record["seconds"] for name, record in records.items()},
            gathered={name: record["gathered"] for name, record in records.items()},
            evidence={name: record["evidence"] for name, record in records.items()},
            under_trigger=None if self.stamp is None else Gathering(**_record(done[self.stamp])),
        )


def _record(finished: Finished) -> dict[str, Any]:
    """What a finished stage left."""
    record: dict[str, Any] = json.loads((finished.folder / SEEN).read_text(encoding="utf-8"))
    return record


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a detector sees that is several in one (``EncoderExaminer.parts``). Budgets may have parts in common."""
    best = max(parts, key=lambda part: math.inf if part["score"] is None else part["score"])
    if len(parts) == 1 or best["score"] is None:
        return best
    evidence = {
        key: {name: each for part in parts for name, each in part["evidence"][key].items()}
        if isinstance(value, dict)
        else value
        for key, value in best["evidence"].items()
    }
    return best | {"seconds": sum(part["seconds"] for part in parts), "evidence": evidence}


def examine(
    members: Sequence[Member],
    folder: Path,
    images: dict[str, ImageSet],
    budget: Budget,
    run: Run,
    workers: Workers,
    more: dict[str, dict[str, Examiner]] | None = None,
) -> list[Scored]:
    """Every member before the budget's detectors; those that were looked at are not looked at again.

    ``images``: each family's ordinary ones. ``more``: further detectors of a family.
    A member's draws depend on its name and nothing else.
    """
    store, examinations = Store(folder / "scores"), []
    for member in members:
        child, learned = replace(run.child(member.name), progress=Silent()), (more or {}).get(member.family, {})
        examination = Examination.of(member, folder, images[member.family], budget, learned, child)
        examinations.append(examination)
    last = {each.stages[-1] for each in examinations}
    with store.locked(), run.progress.bar(f"{len(members)} encoders examined", len(members)) as bar:

        def tell(stage: Stage, _finished: Finished) -> None:
            bar.advance(stage in last)

        done = execute([stage for each in examinations for stage in each.stages], store, executor=workers, tell=tell)
        return [each.scored(done) for each in examinations]
