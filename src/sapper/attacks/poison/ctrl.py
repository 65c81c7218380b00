"""CTRL: a pattern of colors that cropping and mirroring leave in every view ties itself to one class.

Threat model: as SSL-Backdoor's. The attacker knows which images of the pre-training set D are of the target class c and
adds its trigger, faint and all over the image, to the share ρ·|D| of them:

    D' = D with clip(x + e) in the place of x,    for ρ·|D| of the x ∈ D of class c,
    e  = what ``magnitude`` more on chosen DCT coefficients of U and V is in RGB        (trigger ``frequency``)

Both views of a poisoned image hold the trigger, so that a contrastive loss can tell the image by it, and the same
feature by and by stands for the class and for the trigger. What fights it is the augmentation of colors; a gray view
has no trigger at all, and neither have gray test images.

Source: Li, Pang, Xi, Du, Ji, Yao, Wang, "An Embarrassingly Simple Backdoor Attack on Self-supervised Learning", ICCV
2023, and the authors' code (``utils/frequency.py``, ``main_train.py``): 1 % of the set, the first images of the
class, 100 of 255 on the coefficients (15, 15) and (31, 31) of 32×32 windows. Ours are drawn at random from the class
instead, and our default rate is ten times that, for sets of some thousand images. Views smaller than the images, or
crops that are shrunk, lose the highest frequencies: choose coefficients that are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sapper.attacks.contracts import Need, Poisoned
from sapper.attacks.poisoning import check_stamp_class, stamp_class
from sapper.attacks.target import Target, TargetPlan
from sapper.downstream import AnyHead
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples
from sapper.triggers import Frequency


@dataclass(frozen=True, kw_only=True)
class CTRL(Checked):
    """Poisons the pre-training set with a frequency pattern on images of the target class (Li et al., ICCV 2023).

    ``rate``: the share of the whole set that is poisoned for each target, which replaces images of its class.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.1

    kind: ClassVar[Literal["poison"]] = "poison"
    of: ClassVar[Literal["pretraining", "task"]] = "pretraining"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Li et al., ICCV 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"rate": 0.01}}

    def __call__(self, samples: Samples, targets: tuple[Target, ...], run: Run) -> Poisoned:
        """The set with triggered images in the place of those that they were made from."""
        return stamp_class(samples, targets, self.rate, lambda target, _run: pattern(target), run, type(self).__name__)

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for another trigger than ``frequency``."""
        for plan in plans:
            pattern(plan)

    def check_samples(self, samples: Samples, classes: Sequence[str]) -> None:
        """Raises ``SapperError`` where a target's class has fewer images than the rate asks for, or none."""
        check_stamp_class(samples, classes, self.rate)


def pattern(target: Target | TargetPlan) -> Frequency:
    """The trigger of a target. Raises ``SapperError`` for another than ``frequency``."""
    if not isinstance(target.trigger, Frequency):
        what = f"target {target.name!r} has the trigger {target.trigger.kind!r}, and this attack adds frequencies"
        raise SapperError(what, where="trigger.kind", remedy="choose frequency")
    return target.trigger
