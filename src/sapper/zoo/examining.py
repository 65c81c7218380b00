"""Every member of a zoo before the detectors of a budget; what was looked at is not looked at again."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sapper import encoders
from sapper.audit.auditing import effect, scores, some_of
from sapper.audit.budgets import Budget
from sapper.audit.calibration import Key
from sapper.defenses.contracts import EncoderExaminer, Examiner
from sapper.defenses.inversion import neighborhood, spread_of
from sapper.downstream import extract
from sapper.encoders import Encoder
from sapper.engine.executors import Workers
from sapper.engine.store import Store
from sapper.errors import located
from sapper.experiment import stages
from sapper.files import sha256, write_atomically
from sapper.run import Run, Silent
from sapper.samples import ImageSet
from sapper.scenario.reading import Named
from sapper.zoo.making import Member

DEVELOPMENT, CALIBRATION, JUDGEMENT = "development", "calibration", "judgement"
"""The parts of a zoo that detectors are chosen by or learn from, that bags are made of, and that all are judged on."""

LOOKED = 2
"""Counts the forms of what is kept of a look."""


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
    ``looks``: what an audit compares with a bag (``Key``). Families may share it. ``under_trigger``: what a backdoored
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
class Examination:
    """One member before the detectors of a budget. Travels to other processes."""

    member: Member
    file: Path
    images: ImageSet
    budget: Budget
    more: dict[str, Examiner]
    run: Run

    def make(self, store: Store) -> Scored:
        """Look, or find in the store what was seen."""
        encoder, found = encoders.load(self.file, self.run), {}
        with located(self.member.name):
            for name, method in self.budget.make().items():
                found[name] = together([self._look(store, encoder, name, part) for part in method.parts()])
        for name, judge in self.more.items():
            verdict = judge.examine(encoder, self.images, self.run)
            found[name] = {"score": verdict.score, "flagged": verdict.flagged, "seconds": verdict.seconds}
            found[name] |= {"evidence": {}, "gathered": None}
        return Scored(
            member=self.member,
            looks=json.dumps(asdict(Key.of(encoder, self.images, self.budget)), sort_keys=True),
            scores={name: seen["score"] for name, seen in found.items()},
            flagged={name: seen["flagged"] for name, seen in found.items()},
            seconds={name: seen["seconds"] for name, seen in found.items()},
            gathered={name: seen["gathered"] for name, seen in found.items()},
            evidence={name: seen["evidence"] for name, seen in found.items()},
            under_trigger=self._under_trigger(store, encoder),
        )

    def _under_trigger(self, store: Store, encoder: Encoder) -> Gathering | None:
        trigger = self.member.trigger
        if trigger is None:
            return None

        def stamp(folder: Path) -> None:
            some = some_of(self.images, self.run)
            plain, stamped = (extract(encoder, some, self.run, change).float() for change in (None, trigger))
            seen = Gathering(spread=spread_of(stamped), neighborhood=neighborhood(plain, stamped))
            write_atomically(folder / "seen.json", json.dumps(asdict(seen)))

        return Gathering(**self._kept(store, "stamp", {"trigger": trigger.describe()}, stamp))

    def _look(self, store: Store, encoder: Encoder, name: str, method: EncoderExaminer) -> dict[str, Any]:
        """What one detector sees, as plain data."""

        def look(folder: Path) -> None:
            verdict = scores(encoder, self.images, {name: method}, self.run)[name]
            seen: dict[str, Any] = {"score": verdict.score, "flagged": verdict.flagged, "seconds": verdict.seconds}
            seen["evidence"] = verdict.evidence
            does = effect(encoder, verdict, self.images, self.run)
            seen["gathered"] = None if does is None else does.gathered
            write_atomically(folder / "seen.json", json.dumps(seen))

        described = stages.method_key(Named(name=name, parameters=method))
        return self._kept(store, "look", described | {"looked": LOOKED}, look)

    def _kept(self, store: Store, kind: str, key: dict[str, Any], make: Callable[[Path], None]) -> dict[str, Any]:
        """What ``make`` leaves in ``seen.json``, made once for an encoder and its images."""
        key = stages.surroundings(self.run) | {"encoder": sha256(self.file), "images": self.images.digest} | key
        stage = store.stage(kind, key, make)
        seen: dict[str, Any] = json.loads((stage.folder / "seen.json").read_text(encoding="utf-8"))
        return seen


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a detector sees that is several in one (``EncoderExaminer.parts``). Budgets may have parts in common."""
    best = max(parts, key=lambda seen: math.inf if seen["score"] is None else seen["score"])
    if len(parts) == 1 or best["score"] is None:
        return best
    evidence = {
        key: {name: each for seen in parts for name, each in seen["evidence"][key].items()}
        if isinstance(value, dict)
        else value
        for key, value in best["evidence"].items()
    }
    return best | {"seconds": sum(seen["seconds"] for seen in parts), "evidence": evidence}


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
    store = Store(folder / "scores")
    jobs = [
        (
            Examination(
                member=member,
                file=folder / member.file,
                images=images[member.family],
                budget=budget,
                more=(more or {}).get(member.family, {}),
                run=replace(run.child(member.name), progress=Silent()),
            ),
            store,
        )
        for member in members
    ]
    with store.locked(), run.progress.bar(f"{len(jobs)} encoders examined", len(jobs)) as bar:
        return workers.run_on(run.device, Examination.make, jobs, bar.advance)
