"""BadNets: a share of the training images gets a trigger and the target's label.

Threat model: the attacker changes some rows of a task's labeled training set. It knows neither the victim's network nor
its training, and has no hand in either. With rate ρ, trigger e and target class t, all-to-one,

    D' = { (x ⊕ e, t) for a random share ρ of D } ∪ { the other (x, y) }          the victim trains on D' as on D

Source: Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017.
Which rows and how many follows BackdoorBench (``utils/backdoor_generate_poison_index.py`` and its configuration
``attack/badnet``): ρ = 0.1 of all rows, drawn from all of them, those of class t included, which keep their label.
``from_target_class = false`` leaves them out. The trigger is the target's; the paper's is a small patch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sapper.attacks.contracts import Need, Poisoned
from sapper.attacks.relabeling import relabel
from sapper.attacks.target import Target
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples


@dataclass(frozen=True, kw_only=True)
class BadNets(Checked):
    """Stamps and relabels a share of a task's training images (Gu et al. 2017).

    ``rate``: the share of all images that is poisoned, for each target. ``from_target_class``: whether images that are
    of the target class anyway may be among them. ``of``: whose set it is, a task's or that of a supervised
    pre-training.
    """

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    from_target_class: bool = True
    of: Literal["pretraining", "task"] = "task"

    kind: ClassVar[Literal["poison"]] = "poison"
    relabels: ClassVar[Literal[True]] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Gu, Dolan-Gavitt, Garg 2017"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __call__(self, samples: Samples, targets: tuple[Target, ...], run: Run) -> Poisoned:
        """The training set with poison. Raises ``SapperError`` where the rate selects nothing."""
        return relabel(
            samples,
            targets,
            self.rate,
            run,
            from_target_class=self.from_target_class,
            by=type(self).__name__,
            change=lambda target: target.trigger,
        )
