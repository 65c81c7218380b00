"""Neural Cleanse: the class that a small trigger reaches from everywhere is the attacker's.

Threat model: a classifier whose weights are at hand and which accepts clean images; the attacker's trigger is a small
patch that sends every image to one class. For each class t a mask m and a pattern Δ are optimized,

    minimize   mean_x CE( f((1 − m)·x + m·Δ), t ) + λ·‖m‖₁         m ∈ [0, 1]^{1×H×W},  Δ ∈ [0, 1]^{3×H×W}

with m and Δ as (tanh + 1)/2 of what is optimized. λ is 0 until a class succeeds, then grows with every run of good
steps and shrinks with every run of bad ones. The smallest mask that still succeeds is the class's trigger. The
attacker's class is an outlier below the others:

    anomaly index = (median − min_t ‖m_t‖₁) / (1.4826 · MAD)         flagged above 2

All classes are optimized at once. Their parameters are independent, and Adam works on each element by itself, so that
a batch of classes × images gives what a loop over the classes would (``tests/test_neural_cleanse.py``). Finished
classes leave it.

Source: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao, "Neural Cleanse", IEEE S&P 2019, and the authors'
``visualizer.py``, ``gtsrb_visualize_example.py`` and ``mad_outlier_detection.py``: Adam with rate 0.1 and β = (0.5,
0.9), at most 1,000 steps of 31 batches of 32 images, success 0.99, λ from 1e-3 on times 2 or divided by 2^1.5 after 5
steps, an end after 25 steps without a smaller mask. The median of an even number is the mean of the two in the
middle, as numpy's.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.defender import Defender, Logits
from sapper.defenses.inversion import Triggers, anomaly_index, groups, smallest_masks
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers.searching import stamp
from sapper.verdicts import Reached, Verdict


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Checked, ClassifierJudge):
    """Inverts the smallest trigger of every class and looks for an outlier (Wang et al., IEEE S&P 2019).

    ``steps`` at most for each class, of ``minibatches`` of ``batch`` images. ``success``: the share of a step's
    images that must reach the class. ``cost``: λ once it is raised, then changed by ``raise_by`` and ``lower_by``
    after ``patience`` good or bad steps in a row. ``early_stop``: steps without a smaller mask that end a class.
    ``restarts``: independent starts of each class, of which the smallest mask counts. ``threshold`` of the anomaly
    index.
    """

    steps: PositiveInt = 1000
    minibatches: PositiveInt = 31
    batch: PositiveInt = 32
    learning_rate: PositiveFloat = 0.1
    success: Annotated[float, Field(gt=0, le=1)] = 0.99
    cost: PositiveFloat = 1e-3
    raise_by: Annotated[float, Field(gt=1)] = 2.0
    lower_by: Annotated[float, Field(gt=1)] = 2**1.5
    patience: PositiveInt = 5
    early_stop: PositiveInt = 25
    restarts: PositiveInt = 1
    threshold: NonNegativeFloat = 2.0

    kind: ClassVar[Literal["judge"]] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("anomaly_index"), TARGET_NAMED)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Wang et al., IEEE S&P 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def check(self, images: int, classes: int) -> None:
        """Raises ``SapperError`` when there are too few classes for one to be an outlier."""
        if classes < 3:
            raise SapperError(f"an outlier among {classes} classes cannot be told", remedy="choose a task of 3 or more")

    def judge(self, classifiers: Sequence[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        """A verdict for each classifier; see ``examine``."""
        defender.check(classifiers, run)
        return [
            self.examine(classifier, defender.train, defender.classes, run.child(f"classifier {i}"))
            for i, classifier in enumerate(classifiers)
        ]

    def examine(self, logits: Logits, images: ImageSet, classes: int, run: Run) -> Verdict:
        """Whether the classifier ``logits`` of ``classes`` classes has a backdoor, by clean ``images``.

        Evidence: ``anomaly_index``, ``suspect`` (the class of the smallest mask), each class's ``norms`` and
        ``success``. The trigger is the suspect's; ``reached`` has those of all classes. A class that no trigger
        reached has norm none and is left out; where fewer than three are left there is no index, and the answer is
        undecided.
        """
        started = time.perf_counter()
        triggers = self.invert(logits, images, classes, run)
        norms = triggers.norms.tolist()
        index, suspect = anomaly_index(norms)
        evidence = {
            "anomaly_index": index,
            "suspect": suspect,
            "norms": [norm if math.isfinite(norm) else None for norm in norms],
            "success": triggers.success.tolist(),
        }
        return Verdict(
            score=index,
            threshold=self.threshold,
            flagged=None if index is None else index > self.threshold,
            trigger=None if suspect is None else triggers.mask(suspect),
            reached=tuple(
                Reached(label=label, trigger=triggers.mask(label), pixels=norm, success=float(triggers.success[label]))
                for label, norm in enumerate(norms)
                if math.isfinite(norm)
            ),
            evidence=evidence,
            seconds=time.perf_counter() - started,
        )

    def invert(self, logits: Logits, images: ImageSet, classes: int, run: Run) -> Triggers:
        """The smallest successful trigger of each class, of all its restarts."""
        aims = torch.arange(classes, device=run.device).repeat_interleave(self.restarts)

        def descend(
            optimizer: torch.optim.Optimizer, weights: list[Tensor], active: Tensor, cost: Tensor, pixels: Tensor
        ) -> Tensor:
            return self._descend(optimizer, weights, aims[active], cost, logits, pixels, run)

        best = smallest_masks(descend, len(aims), images.images, self, run, "Neural Cleanse")
        return best.smallest(classes, self.restarts)

    def _descend(
        self,
        optimizer: torch.optim.Optimizer,
        weights: list[Tensor],
        aims: Tensor,
        cost: Tensor,
        logits: Logits,
        pixels: Tensor,
        run: Run,
    ) -> Tensor:
        """One step of Adam for every aim on the same images; the share of them that reaches each, before it."""
        found = []
        optimizer.zero_grad(set_to_none=True)
        for some in groups(len(aims), pixels):
            masks, stamped = stamp([weight[some] for weight in weights], pixels)
            with run.autocast():
                answers = logits(stamped.flatten(0, 1))
            wanted = aims[some].repeat_interleave(len(pixels))
            losses = F.cross_entropy(answers.float(), wanted, reduction="none").view(len(masks), -1).mean(1)
            (losses + cost[some] * masks.flatten(1).sum(1)).sum().backward()
            found.append((answers.argmax(1) == wanted).view(len(masks), -1).float().mean(1))
        optimizer.step()
        return torch.cat(found)
