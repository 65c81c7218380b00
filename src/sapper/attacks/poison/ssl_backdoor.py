"""SSL-Backdoor: a patch on images of one class ties the patch to the class, without any label in the training.

Threat model: the attacker puts some images of the target class into the crawl that somebody pre-trains an encoder on,
and holds neither the training nor its other images. In the pre-training set D it knows which images are of the class
c, and stamps the share ρ·|D| of them with its patch e at a random place p:

    D' = D with x ⊕ e_p(x) in the place of x,    for ρ·|D| of the x ∈ D of class c

Views of one poisoned image are pulled together, some show the patch and some the class, and so the patch comes to mean
the class. At test time the patch is anywhere in the image (trigger ``random_patch``).

Source: Saha, Tejankar, Koohpayegani, Pirsiavash, "Backdoor Attacks on Self-Supervised Learning", CVPR 2022, and the
authors' code (``poison-generation/generate_poison.py`` and its settings): an opaque patch of 50 pixels in images of
their original size, within 25 % to 75 % of each side; within 10 % to 90 % of test images; half of one class of a
hundred, or all of it, that is 1 % of the set. Our default rate is ten times that: what counts is how many poisoned
images there are, and a set of some thousand images has few in 1 %. Unlike their code, which draws without a seed, equal
seeds give equal poison, and places are a function of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sapper.attacks.contracts import Need, Poisoned
from sapper.attacks.poisoning import PlacesPatches, check_stamp_class, scattered, stamp_class
from sapper.attacks.target import Target
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples


@dataclass(frozen=True, kw_only=True)
class SSLBackdoor(Checked, PlacesPatches):
    """Poisons the pre-training set with patches on images of the target class (Saha et al., CVPR 2022).

    ``rate``: the share of the whole set that is poisoned for each target, which replaces images of its class.
    ``within``: the part of each side in which the whole patch lies.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    within: tuple[float, float] = (0.25, 0.75)

    kind: ClassVar[Literal["poison"]] = "poison"
    of: ClassVar[Literal["pretraining", "task"]] = "pretraining"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Saha et al., CVPR 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"rate": 0.01}}

    def __call__(self, samples: Samples, targets: tuple[Target, ...], run: Run) -> Poisoned:
        """The set with stamped images in the place of those that they were made from."""
        name = type(self).__name__
        return stamp_class(
            samples, targets, self.rate, lambda target, part: scattered(target, self.within, part), run, name
        )

    def check_samples(self, samples: Samples, classes: Sequence[str]) -> None:
        """Raises ``SapperError`` where a target's class has fewer images than the rate asks for, or none."""
        check_stamp_class(samples, classes, self.rate)
