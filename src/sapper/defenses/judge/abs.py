"""ABS: a neuron that raises one class's answer whatever the image shows, and a small patch that drives this neuron.

Threat model: a classifier whose weights are at hand and some clean labeled images; the attacker's trigger is a small
patch that sends every image to one class, and a neuron or a few stand for it.

*Stimulation.* In each layer (the stages of the encoder, the activations of the head) one neuron at a time is set, at
all its places, to i·``reach``·max/5, i = 0 … 4, where max is the layer's largest value on ordinary images. A neuron
that raises one logit above all others for all ``images`` but two is a candidate; the ``candidates`` with the largest
margin are tried.

*Inversion.* For each candidate, of layer l with the activations h, a mask m and a pattern Δ are optimized,

    minimize   mean_x [ − Σ h_neuron(x') + 10⁻⁴ · Σ h_other(x') ]  +  w · ‖m‖₁        x' = (1 − m)·x + m·Δ

with m and Δ in [0, 1] as (tanh + 1)/2 of what is optimized. w is 0 as long as the mask covers no more than ``size`` of
the image, counted in pixels above 0.01; it is ``weight`` where it covers more, and twice that where the square would be
two pixels wider. The score is the REASR, the attack success rate of the reverse engineered trigger: the share of clean
images of other classes, which the inversion has not seen, that it sends to the candidate's class, and the largest of
all candidates counts. Flagged above 0.8.

All candidates, of all layers, are one batch.

Source: Liu, Lee, Tao, Ma, Aafer, Zhang, "ABS: Scanning Neural Networks for Back-doors by Artificial Brain
Stimulation", CCS 2019, and the authors' ``abs.py``: five values up to 8 times the largest, masks of 64 of 1,024 pixels,
Adam with rate 0.1, 1,000 steps, 20 candidates, of which the first ten have three of each layer at most, REASR 0.8. What
differs: the authors count a layer before and behind its ReLU, here it is behind; they sum over images where we take the
mean; their mask begins in the upper left corner, ours in a square at a random place, ``starts`` times; they take the
last step's trigger and count all images on which it was made, we take the step that sends most of these to the class
within the size and count others, without those that are of the class anyway. Filters, which they try besides, are not
here.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.defender import Defender
from sapper.defenses.inversion import Triggers, stamp, start, unit
from sapper.defenses.labeled import check_classes
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.defenses.stages import watched
from sapper.defenses.stimulation import Candidates, Place, candidates, channels_first, lifts, places
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, at_once
from sapper.verdicts import Reached, Verdict

COVERED = 0.01
"""A pixel with a larger mask is covered."""

OTHERS = 1e-4
"""What the other neurons of the layer weigh against one."""


@dataclass(frozen=True, kw_only=True)
class ABS(Checked, ClassifierJudge):
    """Stimulates single neurons and inverts triggers for those that raise one class (Liu et al., CCS 2019).

    ``images``: clean ones by which neurons are chosen and triggers made, and as many ``held_out`` as count at the end.
    ``levels`` and ``reach`` of the stimulation. ``odd``: for how many images a candidate may raise another class.
    ``candidates``, ``of_a_layer``: how many are tried. ``size``: the share of an image that a mask may cover.
    ``weight`` of the mask's penalty. ``starts``: independent ones of each candidate, in one batch. ``threshold`` of the
    REASR.
    """

    images: Annotated[int, Field(ge=3)] = 20
    held_out: PositiveInt = 200
    levels: Annotated[int, Field(ge=2)] = 5
    reach: PositiveFloat = 8.0
    odd: NonNegativeInt = 2
    candidates: PositiveInt = 20
    of_a_layer: PositiveInt = 3
    steps: PositiveInt = 1000
    learning_rate: PositiveFloat = 0.1
    size: Annotated[float, Field(gt=0, lt=1)] = 1 / 16
    weight: NonNegativeFloat = 25.0
    starts: PositiveInt = 1
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.8

    kind: ClassVar[Literal["judge"]] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("score"), TARGET_NAMED)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Liu et al., CCS 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def check(self, images: int, classes: int) -> None:
        """Raises ``SapperError`` for fewer than 3 classes, or where no image is left to be held out."""
        check_classes(classes)
        if images <= self.images:
            what = f"{self.images} clean images make the triggers, and of {images} none is left to judge by"
            raise SapperError(what, where="images", remedy="give the defender more images, or lower it")

    def judge(self, classifiers: Sequence[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        """A verdict for each classifier; see ``examine``."""
        self.check(len(defender.train), defender.classes)
        defender.check(classifiers, run)
        return [
            self.examine(classifier, defender.train, run.child(f"classifier {i}"))
            for i, classifier in enumerate(classifiers)
        ]

    def examine(self, classifier: Classifier, clean: ImageSet, run: Run) -> Verdict:
        """Whether a classifier has a backdoor, by ``clean`` labeled images.

        Evidence: ``REASR``, ``suspect`` (the class of the best trigger), and the ``candidates``, each with its layer,
        neuron, class, margin, REASR and how many pixels its mask has. The trigger is the best one; ``reached`` has the
        best of each class. Without any candidate the score is 0.
        """
        started = time.perf_counter()
        classifier.to(run.device).eval().requires_grad_(False)
        some = clean.sample(self.images + self.held_out, run.child("images").generator())
        seeds, others = (
            some.take(torch.arange(len(some))[part]) for part in (slice(self.images), slice(self.images, None))
        )
        layers = places(classifier, seeds.batch(slice(0, 1)).to(run.device))
        found = self.choose(classifier, layers, seeds, run)
        triggers = self.invert(classifier, layers, found, seeds, run) if len(found) else None
        reasr = succeeded(classifier, triggers, found.labels, others, run) if triggers is not None else []
        told = [
            {"layer": layers[layer].name, "neuron": neuron, "class": label, "margin": margin}
            for layer, neuron, label, margin in zip(
                *(each.tolist() for each in (found.layers, found.neurons, found.labels, found.margins))
            )
        ]
        norms = [] if triggers is None else triggers.norms.tolist()
        for each, rate, norm in zip(told, reasr, norms):
            each |= {"REASR": rate, "pixels": norm}
        best = max(range(len(reasr)), key=reasr.__getitem__) if reasr else None
        score = 0.0 if best is None else reasr[best]
        ranked = sorted(range(len(reasr)), key=reasr.__getitem__)
        of_class = {told[i]["class"]: i for i in ranked}
        return Verdict(
            score=score,
            threshold=self.threshold,
            flagged=score > self.threshold,
            trigger=None if triggers is None or best is None else triggers.mask(best),
            reached=()
            if triggers is None
            else tuple(
                Reached(label=label, trigger=triggers.mask(i), pixels=norms[i], success=reasr[i])
                for label, i in sorted(of_class.items())
            ),
            evidence={
                "REASR": score,
                "suspect": None if best is None else told[best]["class"],
                "candidates": told,
            },
            seconds=time.perf_counter() - started,
        )

    def choose(self, classifier: Classifier, layers: list[Place], seeds: ImageSet, run: Run) -> Candidates:
        """The neurons that raise one logit of nearly all images."""
        images = seeds.batch().to(run.device)
        lifted = []
        with run.progress.bar("stimulation (ABS)", len(layers)) as bar:
            for place in layers:
                lifted.append(lifts(classifier, place, images, run, levels=self.levels, reach=self.reach))
                bar.advance()
        odd, of_a_layer = self.odd, self.of_a_layer
        return candidates(lifted, seeds.targets(), self.candidates, odd=odd, of_a_layer=of_a_layer)

    def invert(
        self, classifier: Classifier, layers: list[Place], found: Candidates, seeds: ImageSet, run: Run
    ) -> Triggers:
        """The trigger of each candidate that sends most of the images to its class, of all its starts.

        ``success``: which share. Candidates that memory has no room for at once are inverted one part after another.
        """
        most = max(1, at_once(seeds.images.to(run.device), gradients=True) // (len(seeds) * self.starts))
        parts = list(torch.arange(len(found)).split(most))
        made = []
        with run.progress.bar("trigger inversion (ABS)", len(parts) * self.steps) as bar:
            for number, part in enumerate(parts):
                rows = part.repeat_interleave(self.starts)
                search = Search(self, classifier, layers, found, rows, seeds, run.child(f"part {number}"))
                for _ in range(self.steps):
                    search.step()
                    bar.advance()
                made.append(search.best(len(part), self.starts))
        return Triggers(*(torch.cat(each) for each in zip(*((m.masks, m.patterns, m.norms, m.success) for m in made))))


class Search:
    """The inversion of several candidates' triggers, whose number in ``found`` is in ``rows``; one batch."""

    def __init__(
        self,
        method: ABS,
        classifier: Classifier,
        layers: list[Place],
        found: Candidates,
        rows: Tensor,
        seeds: ImageSet,
        run: Run,
    ):
        self.method, self.classifier, self.layers, self.run = method, classifier, layers, run
        self.of_layer, self.neurons, self.labels = (
            each[rows].to(run.device) for each in (found.layers, found.neurons, found.labels)
        )
        self.pixels, self.truth = seeds.images.to(run.device), seeds.targets().to(run.device)
        self.most = max(1, round(method.size * seeds.size[0] * seeds.size[1]))
        self.weights = begin(len(rows), seeds.size, self.most, run)
        self.optimizer = torch.optim.Adam(self.weights, lr=method.learning_rate)
        self.kept = Triggers.none(len(rows), seeds.size, run.device)
        self.kept.success.fill_(-1.0)

    def step(self) -> None:
        """One of Adam, and a look whether what was there before it is the best so far."""
        method = self.method
        masks, stamped = stamp(self.weights, self.pixels)
        with watched([place.module for place in self.layers]) as outputs, self.run.autocast():
            answers = self.classifier(stamped.flatten(0, 1))
        hits = answers.argmax(1).view(len(masks), -1) == self.labels.unsqueeze(1)
        others = self.truth.unsqueeze(0) != self.labels.unsqueeze(1)
        covered = (masks > COVERED).flatten(1).sum(1)
        self._keep(masks, (hits & others).sum(1) / others.sum(1).clamp_min(1), covered)
        wider = (math.sqrt(self.most) + 2) ** 2
        weight = method.weight * ((covered > self.most).float() + (covered > wider).float())
        loss = (weight * masks.flatten(1).sum(1)).sum()
        for number, (place, output) in enumerate(zip(self.layers, outputs)):
            rows = (self.of_layer == number).nonzero().squeeze(1)
            if len(rows):
                loss = loss + drive(channels_first(output, place), len(masks), rows, self.neurons[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def _keep(self, masks: Tensor, success: Tensor, covered: Tensor) -> None:
        better = (covered <= self.most) & (success >= self.kept.success)
        own = masks.detach().flatten(0, 2)[better]
        self.kept.masks[better], self.kept.patterns[better] = own, unit(self.weights[1].detach())[better]
        self.kept.norms[better], self.kept.success[better] = own.flatten(1).sum(1), success[better]

    def best(self, count: int, starts: int) -> Triggers:
        """Of each candidate the start with the largest success. Where no step kept to the size, the largest pixels."""
        none = self.kept.success < 0
        if bool(none.any()):
            masks = unit(self.weights[0].detach())[none].squeeze(1)
            least = masks.flatten(1).topk(self.most).values[:, -1:].unsqueeze(2)
            self.kept.masks[none] = masks.where(masks >= least, 0)
            self.kept.patterns[none] = unit(self.weights[1].detach())[none]
            self.kept.norms[none], self.kept.success[none] = self.kept.masks[none].flatten(1).sum(1), 0.0
        rows = self.kept.success.view(count, starts).argmax(1)
        rows = rows + torch.arange(count, device=rows.device) * starts
        return Triggers(
            *(each[rows] for each in (self.kept.masks, self.kept.patterns, self.kept.norms, self.kept.success))
        )


def begin(count: int, size: tuple[int, int], most: int, run: Run) -> list[Tensor]:
    """Masks and patterns before tanh: nearly 1 in a square of ``most`` pixels at a random place, nearly 0 elsewhere."""
    _, patterns = start(count, size, run.child("patterns"))
    side = max(1, math.isqrt(most))
    generator = run.child("squares").generator()
    tops, lefts = (torch.randint(max(1, length - side + 1), (count,), generator=generator) for length in size)
    down, right = (torch.arange(length) for length in size)
    rows = (down >= tops.unsqueeze(1)) & (down < tops.unsqueeze(1) + side)
    columns = (right >= lefts.unsqueeze(1)) & (right < lefts.unsqueeze(1) + side)
    inside = rows.unsqueeze(2) & columns.unsqueeze(1)
    masks = torch.where(inside, 2.0, -2.0).unsqueeze(1).to(run.device)
    return [masks.requires_grad_(), patterns]


def drive(output: Tensor, count: int, rows: Tensor, neurons: Tensor) -> Tensor:
    """What is minimized, of the candidates ``rows`` of ``count``, summed: others little, the neuron much; a scalar.

    ``output`` float (count · N, C, places): what their layer says of N images with each trigger. Sums over places,
    means over images.
    """
    sums = output.view(count, -1, *output.shape[1:])[rows].sum(3).mean(1)
    one = sums.gather(1, neurons.unsqueeze(1)).squeeze(1)
    return (OTHERS * (sums.sum(1) - one) - one).sum()


@torch.no_grad()
def succeeded(classifier: Classifier, triggers: Triggers, labels: Tensor, images: ImageSet, run: Run) -> list[float]:
    """Of each trigger the share of images of other classes than its own that it sends there; 0 without such images."""
    truth, rates = images.targets(), list[float]()
    for row, label in enumerate(labels.tolist()):
        others, trigger, hits = truth != label, triggers.mask(row), 0
        if not bool(others.any()):
            rates.append(0.0)
            continue
        some = images.take(others)
        for batch in some.batches(min(500, images.at_once(gradients=False))):
            with run.autocast():
                hits += int((classifier(trigger(batch.to(run.device))).argmax(1) == label).sum())
        rates.append(hits / len(some))
    return rates
