"""Fine-Pruning of a classifier, as published: dormant channels are cut out, then labels mend what that cost.

Threat model: the owner holds a suspect classifier f and clean labeled images D. A backdoor likes to sit in channels
that clean images leave dormant. With a_c = the mean over D and places of what channel c of the last convolution gives
after the ReLU,

    prune      the channels with the smallest a_c, as many as leave   acc_D(f_pruned) ≥ (1 − ``drop``) · acc_D(f)
    fine-tune  minimize   mean CE( f'(x), y )        over f', from f_pruned on; pruned channels stay zero

The pruned network is the last one that meets the limit, not the first one that breaks it.

Source: Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID
2018: the last convolution. In a residual network a channel is what the blocks of the last stage add up under its
number, so it is cut out of all of them and of their shortcuts: it then gives zero, as in the networks of the paper.
The form of the limit, relative to the accuracy before, is that of BackdoorBench (``defense/fp.py``); its size, the
share that is pruned between two looks, and the fine-tuning's steps and optimizer are ours.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.defenses.channels import SHORTCUTS, Layer, activations, dormant_first, prune, put_back, weights_of
from sapper.defenses.contracts import Need, Owner, RepairedClassifier
from sapper.defenses.repairing import PRUNED
from sapper.defenses.repairing_classifiers import LABELS, Lesson, Relearning, accuracy, begin, miss
from sapper.defenses.stages import parts, stages, watched
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.training import Checkpoint, Step, Terms

LAST = "last stage"


@dataclass(frozen=True, kw_only=True)
class FinePruningClassifier(Relearning):
    """Prunes dormant channels of the last convolution, then fine-tunes (Liu, Dolan-Gavitt, Garg, RAID 2018).

    ``drop``: which share of the accuracy on the owner's images the pruning may cost. ``at_once``: the share of channels
    that is pruned between two looks.
    """

    steps: PositiveInt = 400
    learning_rate: PositiveFloat = 1e-2
    drop: Annotated[float, Field(gt=0, lt=1)] = 0.1
    at_once: Annotated[float, Field(gt=0, le=1)] = 0.02

    kind: ClassVar[Literal["repair_classifier"]] = "repair_classifier"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Liu, Dolan-Gavitt, Garg, RAID 2018"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network whose last channels cannot be cut out, and for too few images."""
        super().check(encoder, images)
        check_cut(encoder)

    def __call__(
        self, classifier: Classifier, owner: Owner, run: Run, checkpoint: Checkpoint | None = None
    ) -> RepairedClassifier:
        """A repaired copy. Curves also tell how many channels were ``PRUNED``."""
        self.check(classifier.encoder, len(owner.clean))
        lesson = begin(classifier, owner, run, "Fine-Pruning")
        layers, gone = last_layers(lesson.student.encoder), self.choose(lesson, run)

        def terms(step: Step) -> Terms:
            wanted = lesson.labels[step.rows.to(run.device)]
            return {LABELS: miss(lesson.student, lesson.images.batch(step.rows), wanted, run)}

        def stay_pruned(_step: Step) -> None:
            prune(layers, dict.fromkeys(layers, gone), bias=True)

        curves = self.teach(lesson, terms, run, "Fine-Pruning", checkpoint, stay_pruned)
        return RepairedClassifier(classifier=lesson.student.eval(), curves=curves | {PRUNED: [float(gone.sum())]})

    def choose(self, lesson: Lesson, run: Run) -> Tensor:
        """Prune the student as far as ``drop`` allows, never all; which channels of the last stage went, bool (C,)."""
        student, encoder = lesson.student, lesson.student.encoder
        layers, means = last_layers(encoder), activations(encoder, {LAST: stages(encoder)[-1]}, lesson.images, run)
        least = (1 - self.drop) * accuracy(student, lesson.images, lesson.labels, run)
        kept, gone = weights_of(layers), torch.zeros(len(means[LAST]), dtype=torch.bool)
        for more in dormant_first(means, self.at_once):
            prune(layers, dict.fromkeys(layers, more[LAST]), bias=True)
            spent = bool(more[LAST].all())  # a classifier that always says the same has nothing to lose
            if spent or accuracy(student, lesson.images, lesson.labels, run) < least:
                break
            gone = more[LAST]
        put_back(layers, kept)
        prune(layers, dict.fromkeys(layers, gone), bias=True)
        return gone


def last_layers(encoder: Encoder) -> dict[str, Layer]:
    """What the channels of the last stage's output come from, by name: where each of its blocks ends, and each shortcut
    in it that has a convolution."""
    names = {module: name for name, module in encoder.named_modules()}
    blocks = [block for part in parts(encoder)[-1] for block in part.children()]
    return {names[layer]: layer for block in blocks for layer in _ends(block)}


def _ends(block: nn.Module) -> Iterator[Layer]:
    """The last convolution of a block, or the BatchNorm behind it; and the same of its shortcut."""
    layers = [(name, each) for name, each in block.named_modules() if isinstance(each, nn.BatchNorm2d | nn.Conv2d)]
    for beside in (False, True):
        ours = [layer for name, layer in layers if any(word in name for word in SHORTCUTS) is beside]
        places = [place for place, layer in enumerate(ours) if isinstance(layer, nn.Conv2d)]
        if places:
            yield ours[-1] if isinstance(ours[-1], nn.BatchNorm2d) else ours[places[-1]]


@torch.no_grad()
def check_cut(encoder: Encoder) -> None:
    """Raises ``SapperError`` unless the last stage of the network gives nothing where all its channels are cut out."""
    probe, size = copy.deepcopy(encoder).cpu().eval(), encoder.card.input_size
    layers = last_layers(probe)
    for layer in layers.values():
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    with watched(stages(probe)[-1:]) as seen:
        probe(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    if not layers or seen[0].ndim != 4 or float(seen[0].relu().max()) > 0:
        what = f"Fine-Pruning cuts out channels of the last convolution, and cannot in {encoder.card.architecture}"
        raise SapperError(what, where="repair", remedy="take another repair, such as nad")
