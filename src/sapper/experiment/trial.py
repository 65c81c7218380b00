"""What a trial is: one variant of a scenario with one seed, and the surroundings that it runs in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapper.engine.executors import Workers
from sapper.engine.store import Stage, Store
from sapper.experiment.data import Data
from sapper.experiment.findings import Findings
from sapper.run import Run
from sapper.scenario.reading import Scenario


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where scenarios are run: the store, the folder for results, the data, and the surroundings.

    ``run`` gives device, number format and progress; its seed is replaced by the scenario's. ``tell`` receives one
    line for each finished stage. ``command`` is what a user types to repeat the run. ``workers``: processes for work
    that goes faster in several.
    """

    store: Store
    out: Path
    run: Run
    command: str
    workers: Workers = field(default_factory=Workers)
    data_root: Path | None = None
    download: bool = False
    tell: Callable[[str], None] = lambda _line: None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A scenario with ``condition`` set; ``suffix`` is for names of what it makes.

    ``early`` and ``attacked`` are those of its pre-training and of its attacks, which it shares with variants that
    differ in later stages only.
    ``shown``: its pictures and maps are in the report; those of one variant are enough.
    """

    scenario: Scenario
    condition: dict[str, Any]
    suffix: str
    early: str
    attacked: str
    shown: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One variant with one seed, ``run``'s, and where what it finds goes."""

    variant: Variant
    data: Data
    lab: Lab
    found: Findings
    run: Run

    @property
    def scenario(self) -> Scenario:
        return self.variant.scenario

    @property
    def place(self) -> dict[str, Any]:
        """What all records share, but those of a task that nobody attacks: they have no ``attack``."""
        attack = self.scenario.attack_method
        attacked = {"attack": attack.name} if attack is not None else {}
        return {"seed": self.run.seed, "condition": self.variant.condition} | attacked

    def done(self, name: str, stage: Stage) -> Stage:
        """Keep the time that a stage took, and tell of it."""
        told = [f"seed {self.run.seed}", *(f"{key} = {value}" for key, value in self.variant.condition.items())]
        self.found.add_timing(self.run.seed, f"{name}{self.variant.suffix}", stage)
        self.lab.tell(f"{name} ({', '.join(told)}): {'from the store' if stage.cached else f'{stage.seconds:.0f} s'}")
        return stage
