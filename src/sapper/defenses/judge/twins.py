"""Twins: does a change collapse or move the features of an encoder, and not those of its students?

Threat model: an encoder f whose weights are at hand, and unlabeled ordinary images in which no trigger occurs. How far
a small change can draw features together differs between architectures, pre-trainings and data, so that a score means
nothing by itself (``multi_prior``), and for most encoders nobody has clean ones of the same kind to compare with. But
everybody can make some: a twin h is a network of the same architecture that begins with weights between fresh ones, w,
and those of f, w_f, and learns f's features of ordinary images and of views of them,

    h₀ = (1 − k)·w + k·w_f                                                                                      ``keep``
    h = argmin  1 − mean s( h(v), f(v) )                                                                    s the cosine

as in distillation. What f does with a trigger is nowhere in these images. What a part of its weights still know of it,
the training does not keep up; whereas what is natural to the architecture, the data and the representation is there
from the start, or learned. The same search, from the same starts, looks for the change of each prior
(``defenses/collapsing.py``) that gathers features most, in f and in its twins. Backdoors like BadNets' move all
features the same way, and need not bring them together; so where ``towards`` names squares for that, a second search
looks for the square that sends most images to one cluster of f's features (``defenses/reaching.py``), which each
network has its own centers of. All networks are shown the same squares; each goes on with its own best ones, and its
own best cluster counts. With P_s the powers of ten that a prior s reaches, of the spread or of the odds to be sent, the
score is

    score = max_s ( P_s(f) − N_s − μ_s ) / σ_s                                               flagged above ``threshold``
    N_s = b − clip( (1 − β)·b, ±γ )          where b = mean_t P_s(h_t)                 β ``slope``, γ ``most``

where by default μ = 0, and σ = 1 for the spread, so that the score is in powers of ten, too. A twin tells what is
natural with some error: how far a search gets differs from twin to twin by some tenths, and a twin may keep a part of
a backdoor. So less than all of it is taken for natural, as in any regression on what is measured with errors, though
never less by more than γ, which is below the threshold. Odds are drawn to even ones by that. And up to ``twins`` of
them are made, one after the other, until the encoder goes no further than they do, by ``enough`` deviations on average
over the priors of either search: what is nothing beside one twin need not be looked at again.

A twin that is fitted badly may collapse by itself, and hide what f does: ``fit`` in the evidence is its distance to f
on images that it was not trained on, and where that is above ``worst_fit`` there is no score. How far a clean encoder
of another kind can go is measured on many of them (``audits/families.py``). An attacker who knows this can train the
trigger into what ordinary images show, or a backdoor that a part of the weights keeps.

Source: Sapper. Defaults are from the development part of the zoo ``families`` (``docs/results/strangers.md``); those of
blends and filters were not calibrated.
"""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.beside import Found, beyond
from sapper.defenses.collapsing import CollapseSearch, Gathered, Search, Usual, measurable
from sapper.defenses.contracts import EncoderExaminer, Need
from sapper.defenses.measures import OfVerdicts, detection
from sapper.defenses.reaching import Centers, ReachSearch, Sent, clusters_of
from sapper.defenses.repairing import Distilling, apart, fresh
from sapper.encoders import Encoder
from sapper.encoders.freezing import trained
from sapper.encoders.redrawing import drawn_to, settled
from sapper.errors import SapperError
from sapper.running import KeptFor, Run, shares
from sapper.samples import ImageSet, to_float
from sapper.triggers.priors import side_of
from sapper.verdicts import Verdict, unscored

FEWEST = 32
"""Images below which no twin learns anything; others are held out."""

BATCH_PIXELS, SMALLEST_BATCH = 64 * 96 * 96, 8
"""Of large images a batch has fewer: what it takes in memory grows with its pixels."""


@dataclass(frozen=True, kw_only=True)
class Twins(CollapseSearch, EncoderExaminer):
    """Compares a search for triggers in an encoder with the same in students of it (Sapper's own).

    ``towards``: sizes of squares that are to send images to one of ``clusters`` clusters, with their μ and σ; none by
    default, since it was not calibrated. ``nearest``: how many clusters are looked at, those that a start comes
    nearest to; two in large images. ``twins``: how many at most. ``keep``: the share of the encoder's weights that each
    begins with. ``enough``: how far beyond its twins an encoder may go, on average over the priors of either search,
    without a further twin. ``slope``: β, the share of what its twins reach that is taken for natural; ``most``: γ, how
    much less that may be. ``steps``, ``batch``,
    ``student_rate``: of the distillation, at least so many steps of Adam with a falling rate; ``augmented``: the share
    of each batch that is augmented, with crops of ``crop_scale`` of the image's area or more. ``worst_fit``:
    1 − the mean cosine of a twin and the encoder above which nothing is said.
    Priors, starts and rounds are those of the search for what gathers features. ``threshold`` of the score.
    """

    patches: tuple[Usual, ...] = ((0.25, 0.0, 1.0), (0.375, 0.0, 1.0))
    blends: tuple[Usual, ...] = ((0.2, 0.0, 1.0),)
    filters: tuple[Usual, ...] = ((0.2, 0.0, 1.0),)
    towards: tuple[Usual, ...] = ()
    clusters: Annotated[int, Field(ge=2)] = 10
    nearest: Annotated[int, Field(ge=2)] = 4
    twins: PositiveInt = 3
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.5
    enough: float = 0.2
    slope: Annotated[float, Field(gt=0, le=1)] = 0.75
    most: NonNegativeFloat = 0.5
    steps: PositiveInt = 250
    batch: Annotated[int, Field(ge=2)] = 64
    student_rate: PositiveFloat = 2e-3
    augmented: Annotated[float, Field(ge=0, le=1)] = 0.5
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    worst_fit: Annotated[float, Field(gt=0, le=2)] = 0.5
    threshold: float = 0.6

    kind: ClassVar[Literal["examine"]] = "examine"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = detection("score")
    version: ClassVar[int] = 5
    libraries: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    source: ClassVar[str] = "Sapper"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """Whether ``encoder`` has a backdoor, by unlabeled ordinary ``images`` of its size.

        Evidence: ``priors``, for each its numbers as of ``multi_prior``, or the ``share`` of images that it sends to a
        cluster and its ``powers``; ``beside``, the powers of ten that each twin reaches, the ``excess`` over their
        mean, what is ``natural``, and the ``score``; ``prior``, whose score is the
        largest, and whose change is the trigger; ``fit`` of each twin, and whether no further one was needed,
        ``stopped``. No score where features cannot be measured, in the encoder or in a twin, where a twin is unlike it,
        and where there are too few images for one; how its features were gathered is told then, too.
        """
        encoder.to(run.device).eval().requires_grad_(False)
        with shares(run.progress, "twins", self._shares(images)) as parts:
            return self._examine(encoder, images, run, lambda run: replace(run, progress=next(parts)))

    def _examine(self, encoder: Encoder, images: ImageSet, run: Run, part: Callable[[Run], Run]) -> Verdict:
        """``part``: the run with the progress of what comes next."""
        started = time.perf_counter()
        seen, unseen = self.split(images, run, "twins")
        shown = self._learned_from(_without(images, unseen), run)
        looked = self.search(encoder, seen, unseen, part(run))
        if looked.why is not None:
            return unscored(looked.why, self.threshold, time.perf_counter() - started)
        if len(shown) < FEWEST:
            why = f"{len(images)} images are too few for twins: {len(shown)} are left to learn from"
            return self._alone(looked, f"{why}; give {2 * FEWEST} or more, some thousand are better", started, "images")
        features, labels = self._shown(encoder, shown, run), None
        if not measurable(features):
            return self._alone(looked, "features of some images cannot be measured", started, "encoder")
        if self.towards:
            labels = clusters_of(features, min(self.clusters, len(shown)), run)
        sends = partial(self._sends, labels=labels, seen=seen, unseen=unseen, part=part)
        found: dict[str, Found] = {**looked.found, **sends(encoder, features, run)}
        beside, fits, priors = dict[str, Mapping[str, Found]](), dict[str, float](), dict[str, dict[str, Any]]()
        for name in (f"twin {number}" for number in range(self.twins)):
            own = replace(run, kept=KeptFor(run.kept, self._key(name, shown, run)))
            try:
                twin = self.twin(encoder, shown, part(replace(own, seed=run.child(name).seed)))
            except SapperError as error:
                return self._alone(looked, f"{name} cannot be made: {error.what}", started)
            fits[name] = float(apart(*(self._features(each, None, unseen, run) for each in (twin, encoder))))
            if fits[name] > self.worst_fit:
                unlike = f"it differs from the encoder by {fits[name]:.2f}, and {self.worst_fit:g} is allowed at most"
                return self._alone(looked, f"{name} says nothing: {unlike}", started)
            search = self.search(twin, seen, unseen, part(own))  # from the same starts
            if search.why is not None:
                return self._alone(looked, f"{name} says nothing: {search.why}", started)
            features = self._shown(twin, shown, run)
            if not measurable(features):
                return self._alone(looked, f"{name} says nothing: its features cannot be measured", started)
            beside[name] = {**search.found, **sends(twin, features, own)}
            priors = beyond(found, beside, self._natural)
            if all(mean <= self.enough for mean in _means(found, priors)):
                break
        winner = max(priors, key=lambda name: priors[name]["score"])
        score = priors[winner]["score"]
        return Verdict(
            score=score,
            threshold=self.threshold,
            flagged=score > self.threshold,
            trigger=found[winner].change.trigger(),
            evidence={
                "prior": winner,
                "spread": looked.spread,
                "fit": fits,
                "stopped": len(fits) < self.twins,
                "priors": priors,
            },
            seconds=time.perf_counter() - started,
        )

    def _sends(
        self,
        network: Encoder,
        features: Tensor,
        run: Run,
        *,
        labels: Tensor | None,
        seen: Tensor,
        unseen: Tensor,
        part: Callable[[Run], Run],
    ) -> dict[str, Sent]:
        """For each size the square that sends most images to a cluster; none where there is only one.

        ``features`` of the images that twins learn from, and ``labels``: the cluster of each, which the network has its
        own center of.
        """
        if labels is None:
            return {}
        sends, count = dict[str, Sent](), int(labels.max()) + 1
        size, centers = (seen.shape[2], seen.shape[3]), Centers.of(features, labels)
        own = KeptFor(run.kept, f"clusters-{hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()[:16]}")
        for share, usual, deviation in self.towards:
            side, parted = side_of(share, size), part(replace(run, kept=own))
            if count < 2:
                continue
            name = f"square {side}×{side}, to a cluster"
            found = self._reaching(share, large=self._large(size)).reach(
                centers.behind(network),
                seen,
                unseen,
                count,
                parted.child(name),
                usual=usual,
                deviation=deviation,
            )
            sends[name] = max(found.values(), key=lambda each: each.powers)
        return sends

    def _shown(self, network: Encoder, shown: ImageSet, run: Run) -> Tensor:
        """Features of the images that twins learn from, float (N, D); of one where no cluster is looked for."""
        images = shown.images if self.towards else shown.images[:1]
        return self._features(network, None, images.to(run.device), run)

    def _reaching(self, share: float, *, large: bool) -> ReachSearch:
        """The search with squares of that share of the side. At least one of two clusters has enough other images."""
        most = 2 if large else self.nearest
        return ReachSearch(side=share, most=most, images=self.images, held_out=self.held_out, large=self.large)

    def _natural(self, powers: float) -> float:
        """What is taken for natural where twins reach so many powers of ten on average."""
        return powers - max(-self.most, min(self.most, (1 - self.slope) * powers))

    def _alone(self, looked: Search, why: str, started: float, of: str = "twin") -> Verdict:
        """What was found in the encoder, where no twin can tell what it is worth. ``of``: what ``why`` is about."""
        winner = max(looked.found, key=lambda name: looked.found[name].powers)
        priors = {name: gathered.told() for name, gathered in looked.found.items()}
        found = {"of": of, "prior": winner, "spread": looked.spread, "priors": priors}
        none = unscored(why, self.threshold, time.perf_counter() - started)
        return replace(none, trigger=looked.found[winner].change.trigger(), evidence=none.evidence | found)

    def parts(self) -> list["Twins"]:
        """Itself: all priors are tried on the same twins."""
        return [self]

    def passes(self, images: ImageSet) -> int:
        """The searches in the encoder; and for each twin its training and the same searches."""
        return sum(self._shares(images))

    def _shares(self, images: ImageSet) -> list[int]:
        """What each of these takes."""
        large = self._large(images.size)
        seen = min(self.images, len(images))
        looks = [self._reaching(share, large=large) for share, _, _ in self.towards]
        towards = [look.work(seen, self.clusters, large=large) for look in looks]
        searches, training = [super().passes(images), *towards], self.steps * self._batch(images)
        return [*searches, *(training, *searches) * self.twins]

    def twin(self, encoder: Encoder, images: ImageSet, run: Run) -> Encoder:
        """A student that begins with a part of the encoder's weights and learns its features of images; frozen."""
        student, shown = fresh(encoder, run.child("weights")).to(run.device), images.to(run.device)
        drawn_to(student, encoder, self.keep).train()
        if (kept := run.kept.get("twin")) is not None:
            student.load_state_dict(kept)
            return student.eval().requires_grad_(False)
        learning = Distilling(
            steps=self.steps,
            batch=self._batch(shown),
            learning_rate=self.student_rate,
            augmented=self.augmented,
            crop_scale=self.crop_scale,
        )
        with run.child("dropout").seeded():
            check_trainable(student, shown)
            learning.retrain(
                student,
                learning.answers_of(encoder, student, shown, run),
                trained(student),
                count=len(shown),
                run=run,
                label="twin",
                checkpoint=None,
            )
        rows = torch.randperm(len(shown), generator=run.child("statistics").generator())[: self.images]
        settled(student, to_float(shown.images[rows.to(run.device)]))
        run.kept.put("twin", student.state_dict())
        return student.requires_grad_(False)

    def _learned_from(self, images: ImageSet, run: Run) -> ImageSet:
        """The images that a twin learns from: no more than it sees."""
        return images.sample(min(len(images), self.steps * self._batch(images)), run.child("learned from").generator())

    def _batch(self, images: ImageSet) -> int:
        """How many images a twin learns from at once."""
        return min(self.batch, len(images), max(SMALLEST_BATCH, BATCH_PIXELS // math.prod(images.size)))

    def _key(self, name: str, images: ImageSet, run: Run) -> str:
        """What a twin and a search in it depend on, besides the encoder and the seed."""
        told = json.dumps([self.version, asdict(self), name, images.digest, run.number_format], sort_keys=True)
        return f"twin-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _means(found: Mapping[str, Found], priors: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """How far an encoder goes beyond its twins, in deviations, on average over the priors of each search."""
    means = []
    for kind in (Gathered, Sent):
        beyond = [priors[name]["excess"] / each.deviation for name, each in found.items() if isinstance(each, kind)]
        means += [statistics.fmean(beyond)] if beyond else []
    return means


def check_trainable(student: Encoder, images: ImageSet) -> None:
    """Raises ``SapperError`` for a network that nothing can be trained of, or that trains with more than features."""
    if not trained(student):
        raise SapperError("the network has no weights", where="encoder", remedy="nothing can be learned by it")
    with torch.no_grad():
        output = student(to_float(images.images[:2]))
    if not isinstance(output, Tensor):
        what = f"in training it gives out a {type(output).__name__} instead of features"
        raise SapperError(what, where="encoder", remedy="build it without auxiliary outputs")


def _without(images: ImageSet, held: Tensor) -> ImageSet:
    """The images without those that are held out, uint8 (N, 3, H, W), and their copies."""
    known = {row.tobytes() for row in held.cpu().numpy()}
    rows = [row for row, each in enumerate(images.images.numpy()) if each.tobytes() not in known]
    return images.take(torch.tensor(rows, dtype=torch.int64))
