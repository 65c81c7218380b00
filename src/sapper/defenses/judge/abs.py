"""ABS: a neuron that raises one class's answer whatever the image shows, and a small patch that drives this neuron.

Threat model: a classifier whose weights are at hand and some clean labeled images; the attacker's trigger is a small
patch that sends every image to one class, and a neuron or a few stand for it.

*Stimulation.* In each layer (the stages of the encoder, the activations of the head) one neuron at a time is set, at
all its places, to i·``reach``·max/5, i = 1 … 4, where max is the layer's largest value on ordinary images. A neuron
that by itself makes the classifier answer one class, for all ``images`` of others but two, is a candidate; its margin
is by how much, in logits. The strongest of each layer are tried in turn.

*Inversion.* For each candidate, of layer l with the activations h, a mask m and a pattern Δ are optimized,

    minimize   mean_x [ − Σ h_neuron(x') + 10⁻⁴ · Σ h_other(x') ]  +  λ · ‖m‖₁        x' = (1 − m)·x + m·Δ

with m and Δ in [0, 1] as (tanh + 1)/2 of what is optimized. The mask is limited to the share ``size`` of the image,
counted in pixels above 0.01: λ grows by a few per cent at every step at which it covers more, and falls at every other
one. It begins as the mean pull of the first term on a pixel, so that it fits any network's activations. The score is
the REASR, the attack success rate of the reverse engineered trigger: the share of clean images of other classes, which
the inversion has not seen, that it sends to the candidate's class; the largest of all candidates counts. Flagged above
0.8. All candidates, of all layers, are one batch.

Source: Liu, Lee, Tao, Ma, Aafer, Zhang, "ABS: Scanning Neural Networks for Back-doors by Artificial Brain
Stimulation", CCS 2019, and the authors' ``abs.py``: five values up to 8 times the largest, masks of 64 of 1,024 pixels,
Adam with rate 0.1, 1,000 steps, 20 candidates, REASR 0.8. What differs:

* The authors compare by how much logits rise. Our classifiers take features of length 1, where one large neuron makes
  all others small: logits far below 0 rise then, whatever the neuron stands for.
* They take the largest margins of all, in the first half three of each layer at most; here layers take turns.
* They count a layer before and behind its ReLU, here it is behind; they sum over images where we take the mean.
* Their mask begins as a square in the upper left corner, with a penalty 500 wherever it is too large, under which all
  pixels fall alike. It does not get to a trigger in another corner. Ours begins everywhere, as Neural Cleanse's.
* They take the last step's trigger, and count all images on which it was made. We take the step within the size that
  sends most of them to the class, and count others, without those that are of the class anyway.
* Filters, which they try besides, are not here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.defender import Defender
from sapper.defenses.inversion import Triggers
from sapper.defenses.labeled import check_classes
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.defenses.stages import watched
from sapper.defenses.stimulation import Candidates, Place, candidates, channels_first, leads, places
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, in_memory
from sapper.triggers.searching import stamp, start, unit
from sapper.verdicts import Reached, Verdict

COVERED = 0.01
"""A pixel with a larger mask is covered."""

TINY = 1e-12
"""A smaller cost of a mask is none."""

OTHERS = 1e-4
"""What the other neurons of the layer weigh against one."""


@dataclass(frozen=True, kw_only=True)
class ABS(Checked, ClassifierJudge):
    """Stimulates single neurons and inverts triggers for those that raise one class (Liu et al., CCS 2019).

    ``images``: clean ones by which neurons are chosen and triggers made, and as many ``held_out`` as count at the end.
    ``levels`` and ``reach`` of the stimulation. ``odd``: for how many images a candidate may do without its class.
    ``candidates``: how many are tried. ``size``: the share of an image that a mask may cover.
    ``change`` of λ at each step. ``starts``: independent ones of each candidate, in one batch. ``threshold`` of the
    REASR.
    """

    images: Annotated[int, Field(ge=3)] = 20
    held_out: PositiveInt = 200
    levels: Annotated[int, Field(ge=2)] = 5
    reach: PositiveFloat = 8.0
    odd: NonNegativeInt = 2
    candidates: PositiveInt = 20
    steps: PositiveInt = 1000
    learning_rate: PositiveFloat = 0.1
    size: Annotated[float, Field(gt=0, lt=1)] = 1 / 16
    change: Annotated[float, Field(gt=1)] = 1.05
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
        """The neurons that put one class in front for nearly all images."""
        images = seeds.batch().to(run.device)
        led = []
        with run.progress.bar("stimulation (ABS)", len(layers)) as bar:
            for place in layers:
                led.append(leads(classifier, place, images, run, levels=self.levels, reach=self.reach))
                bar.advance()
        return candidates(led, seeds.targets(), self.candidates, odd=self.odd)

    def invert(
        self, classifier: Classifier, layers: list[Place], found: Candidates, seeds: ImageSet, run: Run
    ) -> Triggers:
        """The trigger of each candidate that sends most of the images to its class, of all its starts.

        ``success``: which share. Candidates that memory has no room for at once are inverted one part after another.
        """
        most = max(1, in_memory(seeds.images.to(run.device)) // (len(seeds) * self.starts))
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
        self.weights = start(len(rows), seeds.size, run)
        self.cost = torch.zeros(len(rows), device=run.device)
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
        loss = masks.new_zeros(())
        for number, (place, output) in enumerate(zip(self.layers, outputs)):
            rows = (self.of_layer == number).nonzero().squeeze(1)
            if len(rows):
                loss = loss + drive(channels_first(output, place), len(masks), rows, self.neurons[rows])
        sizes = masks.flatten(1).sum(1)
        if not bool(self.cost.any()):
            (pull,) = torch.autograd.grad(loss, masks, retain_graph=True)
            self.cost = pull.abs().flatten(1).mean(1).clamp_min(TINY)
        else:
            self.cost = torch.where(covered > self.most, self.cost * method.change, self.cost / method.change)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + (self.cost * sizes).sum()).backward()
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
        for batch in some.batches(min(500, images.at_once(run.device))):
            with run.autocast():
                hits += int((classifier(trigger(batch.to(run.device))).argmax(1) == label).sum())
        rates.append(hits / len(some))
    return rates
