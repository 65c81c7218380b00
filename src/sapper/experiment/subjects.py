"""Subjects: models that are measured, and with what each is compared."""

from dataclasses import dataclass
from typing import Literal

from sapper.engine.stage import Stage
from sapper.experiment.results import State

CLEAN: State = "clean"
ATTACKED: State = "attacked"
REPAIRED: State = "repaired"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is measured: an encoder, or the data or training of classifiers that an attacker had a hand in.

    ``stage`` leaves the encoder that its classifiers stand on. ``of`` says what was made: an encoder, a task's training
    set, or a classifier; ``source`` is what the attack left: all targets' triggers, and that set or classifier.
    ``head`` of a classifier: its name. ``parent``: the id of the subject that it was made from. ``tasks`` and
    ``targets``: what it was attacked for; ``attack``: by which attack, where there are several; ``repair``: by which it
    was repaired, or its data was sifted; then ``source`` is what the sift left of the set. A repaired clean encoder has
    no ``tasks``.
    """

    id: str
    state: State
    seed: int
    stage: Stage
    of: Literal["encoder", "task", "classifier"] = "encoder"
    source: Stage | None = None
    head: str | None = None
    parent: str | None = None
    tasks: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    attack: str | None = None
    repair: str | None = None

    @property
    def task(self) -> str | None:
        """The tasks that it was attacked for, in words."""
        return " + ".join(self.tasks) or None

    @property
    def control(self) -> bool:
        """Whether it is a clean encoder that was repaired, to see what a repair costs where nothing was planted."""
        return self.state == REPAIRED and not self.tasks

    @property
    def words(self) -> str:
        """What classifiers stand on, for people."""
        if self.control:
            return f"clean encoder repaired by {self.repair}"
        words = {CLEAN: "clean", ATTACKED: "backdoored", REPAIRED: "repaired"}[self.state] + " encoder"
        if self.of == "task":
            what = "sifted" if self.state == REPAIRED else "poisoned"
            words = f"clean encoder with a {what} training set"
        if self.of == "classifier":
            words = "clean encoder with an attacked training" if self.state == ATTACKED else "repaired classifier"
        told = ", ".join(filter(None, [self.attack, self.repair]))
        return f"{words} ({told})" if told else words
