"""Every member of a zoo before the detectors of a budget; what was looked at is not looked at again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sapper import encoders
from sapper.audit.auditing import scores
from sapper.audit.budgets import Budget
from sapper.audit.calibration import Key
from sapper.audit.stored import StoredJudge
from sapper.errors import located
from sapper.files import sha256, write_atomically
from sapper.images import ImageSet
from sapper.lab import stages
from sapper.lab.executors import Workers
from sapper.lab.scenario import Named
from sapper.lab.store import Store
from sapper.run import Run, Silent
from sapper.zoo.making import Member

DEVELOPMENT, CALIBRATION, JUDGEMENT = "development", "calibration", "judgement"
"""The parts of a zoo that detectors are chosen by or learn from, that bags are made of, and that all are judged on."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A member with each detector's score, own flag, seconds and plain evidence.

    ``looks``: what an audit compares with a bag (``Key``). Families may share it.
    """

    member: Member
    looks: str
    scores: dict[str, float | None]
    flagged: dict[str, bool | None]
    seconds: dict[str, float]
    evidence: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One member before the detectors of a budget. Travels to other processes."""

    member: Member
    file: Path
    images: ImageSet
    budget: Budget
    more: dict[str, StoredJudge]
    run: Run

    def make(self, store: Store) -> Scored:
        """Look, or find in the store what was seen."""
        detectors, encoder = self.budget.make(), encoders.load(self.file, self.run)
        digest = sha256(self.file)
        key = stages.surroundings(self.run) | {"encoder": digest, "images": self.images.digest}
        found: dict[str, dict[str, Any]] = {}
        for name, method in detectors.items():

            def look(folder: Path, name: str = name, method: Any = method) -> None:
                verdict = scores(encoder, self.images, {name: method}, self.run)[name]
                plain = {k: v for k, v in verdict.evidence.items() if not isinstance(v, torch.Tensor)}
                seen = {"score": verdict.score, "flagged": verdict.flagged, "seconds": verdict.seconds}
                write_atomically(folder / "seen.json", json.dumps(seen | {"evidence": plain}))

            with located(self.member.name):
                described = stages.method_key(Named(name=name, parameters=method))
                stage = store.stage("look", key | described, look)
            found[name] = json.loads((stage.folder / "seen.json").read_text(encoding="utf-8"))
        for name, judge in self.more.items():
            verdict = judge.examine(encoder, self.images, self.run)
            found[name] = {"score": verdict.score, "flagged": verdict.flagged, "seconds": verdict.seconds}
            found[name]["evidence"] = {}
        return Scored(
            member=self.member,
            looks=json.dumps(asdict(Key.of(encoder, self.images, self.budget)), sort_keys=True),
            scores={name: seen["score"] for name, seen in found.items()},
            flagged={name: seen["flagged"] for name, seen in found.items()},
            seconds={name: seen["seconds"] for name, seen in found.items()},
            evidence={name: seen["evidence"] for name, seen in found.items()},
        )


def examine(
    members: Sequence[Member],
    folder: Path,
    images: dict[str, ImageSet],
    budget: Budget,
    run: Run,
    workers: Workers,
    more: dict[str, dict[str, StoredJudge]] | None = None,
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
