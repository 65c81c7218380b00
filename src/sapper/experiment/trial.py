"""A trial: one variant of a scenario with one seed, its graph of stages, and the session that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sapper.engine.executors import HERE, Executor, execute
from sapper.engine.stage import Stage
from sapper.engine.store import Finished, Store
from sapper.experiment.data import Data
from sapper.experiment.findings import Findings
from sapper.experiment.pipeline import AttackPlan, Pipeline, pipeline
from sapper.experiment.repairing_classifiers import ClassifierRepairPlan
from sapper.running import Run
from sapper.scenario.reading import Scenario
from sapper.scenario.sections import ClassifierRepairSection


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where scenarios are run: the store, the folder for results, the data, and the surroundings.

    ``run`` gives device, number format and progress; its seed is replaced by the scenario's. ``tell`` receives one
    line for each finished stage. ``command`` is what a user types to repeat the run. ``executor``: makes what goes
    faster side by side, a fleet; with ``side_by_side`` all stages.
    """

    store: Store
    out: Path
    run: Run
    command: str
    executor: Executor = HERE
    side_by_side: bool = False
    data_root: Path | None = None
    download: bool = False
    tell: Callable[[str], None] = lambda _line: None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A scenario with ``condition`` set; ``suffix`` is for names of what it makes.

    ``early`` and ``attacked`` are those of its pre-training and of its attacks, which it shares with variants that
    differ in later stages only.
    ``shown``: its pictures and maps are in the report; those of one variant are enough. ``attack``: its name, where the
    scenario has several. ``own``: without any attack, too, it is other than the scenario.
    """

    scenario: Scenario
    condition: dict[str, Any]
    suffix: str
    early: str
    attacked: str
    shown: bool
    attack: str | None = None
    own: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One variant with one seed, ``run``'s."""

    variant: Variant
    data: Data
    lab: Lab
    run: Run

    @property
    def scenario(self) -> Scenario:
        return self.variant.scenario

    @cached_property
    def pipeline(self) -> Pipeline:
        """The stages of its encoders and classifiers."""
        scenario, variant, seed = self.scenario, self.variant, f"-seed{self.run.seed}"
        attack = None
        if scenario.attack is not None and scenario.attack_method is not None:
            shadow = self.data.of_shadow(scenario, scenario.attack, self.run)
            together = scenario.attack.encoders == "one-for-all"
            attack = AttackPlan(method=scenario.attack_method, shadow=shadow, together=together, name=variant.attack)
        return pipeline(
            scenario.encoder,
            scenario.pretraining_method,
            self.data.of_pretraining(scenario, self.run),
            self.run,
            tasks=[self.data.of_task(scenario, section, self.run) for section in scenario.tasks],
            attack=attack,
            heads=scenario.heads,
            repairs=[self.data.of_repair(scenario, plan, self.run) for plan in scenario.defenses if plan.repairs],
            classifier_repairs=[
                ClassifierRepairPlan(**vars(plan), head=scenario.primary)
                for plan in scenario.defenses
                if isinstance(plan.section, ClassifierRepairSection)
            ],
            sifts=[self.data.of_sift(scenario, plan) for plan in scenario.defenses if plan.sifts],
            threads=torch.get_num_threads(),
            early=f"{variant.early}{seed}",
            late=f"{variant.attacked}{seed}",
            last=f"{variant.suffix}{f'-{variant.attack}' if variant.attack else ''}{seed}",
        )

    @property
    def place(self) -> dict[str, Any]:
        """What all records share. Those of a task that nobody attacks have no ``attack``, but for ``own`` variants."""
        name = self.scenario.attack_name
        attacked = {"attack": name} if name is not None else {}
        return {"seed": self.run.seed, "condition": self.variant.condition} | attacked

    @property
    def title(self) -> str:
        """Seed and condition, for people."""
        condition = self.variant.condition.items()
        return ", ".join([f"seed {self.run.seed}", *(f"{key} = {value}" for key, value in condition)])


@dataclass(kw_only=True)
class Session:
    """A scenario that is run: what is finished, and what was found in it."""

    lab: Lab
    findings: Findings
    done: dict[Stage, Finished] = field(default_factory=dict)

    def make(self, stages: Mapping[Stage, Trial]) -> None:
        """Make those that are not there; each is told of once, however many trials share it."""

        def tell(stage: Stage, finished: Finished) -> None:
            self.tell(stages[stage], stage.title, finished)

        executor = self.lab.executor if self.lab.side_by_side else HERE
        self.done |= execute(stages, self.lab.store, executor=executor, tell=tell, known=self.done)

    def tell(self, trial: Trial, title: str, finished: Finished) -> None:
        """Keep the time that a stage took, and tell of it."""
        self.findings.add_timing(trial.run.seed, f"{title}{trial.variant.suffix}", finished)
        how_long = "from the store" if finished.cached else f"{finished.seconds:.0f} s"
        self.lab.tell(f"{title} ({trial.title}): {how_long}")
