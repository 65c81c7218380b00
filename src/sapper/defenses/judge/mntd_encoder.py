"""MNTD on encoders: a meta-classifier that has seen many clean and many backdoored encoders judges another.

Threat model: the defender holds a little of the data that the encoder was pre-trained on (2 % of it), images of its own
downstream tasks, and may ask the encoder and send gradients through it; the attacker's trigger and target are unknown.
It pre-trains shadow encoders f₁ … f_S on its share, and gives each a backdoored twin f'ᵢ: an attack with a reference
image from the downstream tasks and a square trigger of random side, anywhere. Meta-classifiers (``meta``) learn queries
q and weights from the answers z, features of length 1 in place of logits:

    z = ( f(q₁)/‖f(q₁)‖, …, f(q_Q)/‖f(q_Q)‖ )      score = w · ReLU(W·z + b) + c

A verdict's score is the mean over the meta-classifiers, its threshold 0; all single scores are in the evidence.

Source: Jia, Liu, Gong, "BadEncoder", IEEE S&P 2022, who extend Xu et al., "Detecting AI Trojans Using Meta Neural
Analysis", IEEE S&P 2021: 200 pairs on 2 % of the images, sides from 2 to 10, 50 meta-classifiers with tuned queries,
and 6 encoders judged, here 3 of either kind. Ours are the scaling to length 1, because the scale of features differs
between trainings; the pairs set apart for choosing an epoch, in MNTD's proportion; and the trigger's color: the paper's
attacks are white, and the defender is given that.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses import meta
from sapper.defenses.contracts import EncoderLearner, Need
from sapper.defenses.measures import OfVerdicts, detection, scorers
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec
from sapper.triggers import Patch
from sapper.verdicts import Verdict

TENSORS = {"queries", "first", "bias", "second", "offset", "radius"}
"""Of ``meta.MetaClassifiers``."""

FEWEST = 16
"""Images below which pre-training has too few to tell apart."""


@dataclass(frozen=True, kw_only=True)
class MNTDEncoder(Checked, EncoderLearner):
    """Meta-classifiers trained on clean and backdoored shadow encoders (Jia, Liu, Gong, IEEE S&P 2022).

    ``shadows`` pairs for training and ``validation`` pairs for choosing the epoch, on the ``share`` of as many images
    as the encoders in doubt have seen. ``sides``: the smallest and largest trigger of a twin. ``meta_classifiers`` with
    ``queries`` each and ``hidden`` units, trained for ``epochs``; ``tune_queries`` off leaves the queries as they were
    drawn.
    """

    shadows: PositiveInt = 200
    validation: NonNegativeInt = 25
    share: Annotated[float, Field(gt=0, le=1)] = 0.02
    sides: tuple[PositiveInt, PositiveInt] = (2, 10)
    color: str | tuple[float, float, float] = "white"
    meta_classifiers: PositiveInt = 50
    queries: PositiveInt = 10
    hidden: PositiveInt = 20
    epochs: PositiveInt = 10
    learning_rate: PositiveFloat = 1e-3
    tune_queries: bool = True

    kind: ClassVar[Literal["learn"]] = "learn"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients", "fleet"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("score"), *scorers(learned_by_kind=False))
    state: ClassVar[str] = "meta-classifiers"
    version: ClassVar[int] = 2
    source: ClassVar[str] = "Jia, Liu, Gong, IEEE S&P 2022; Xu et al., IEEE S&P 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"badencoder": {}, "badencoder-6": {"subjects": 3}}

    @property
    def pairs(self) -> int:
        """How many pairs of a shadow encoder and its twin are needed."""
        return self.shadows + self.validation

    def with_pairs(self, count: int) -> "MNTDEncoder":
        """The same on ``count`` pairs; every fifth is set apart for validation."""
        apart = count // 5
        return replace(self, shadows=count - apart, validation=apart)

    def check(self, images: int, size: tuple[int, int]) -> None:
        """Raises ``SapperError`` when the share is too small to pre-train on, or a trigger does not fit ``size``."""
        smallest, largest = self.sides
        if not smallest <= largest < min(size):
            what, remedy = f"sides from {smallest} to {largest} do not fit", f"choose them in order, below {min(size)}"
            raise SapperError(what, where="sides", remedy=remedy)
        Patch(size=largest, color=self.color).check(PixelSpec(size=min(size)))
        if round(self.share * images) < FEWEST:
            what = f"{100 * self.share:g} % of {images} images are {round(self.share * images)}"
            remedy = f"take a larger share: at least {FEWEST} images are needed"
            raise SapperError(what, where="share", remedy=remedy)

    def draw(self, references: int, size: tuple[int, int], run: Run) -> tuple[int, Patch]:
        """The attack on a twin: which of so many reference images, and a trigger that fits ``size`` (height, width)."""
        dice = run.generator()

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=dice))

        smallest, largest = self.sides
        side = number(smallest, largest)
        position = number(0, size[0] - side), number(0, size[1] - side)
        return number(0, references - 1), Patch(size=side, position=position, color=self.color)

    def fit(self, fleet: Sequence[tuple[Encoder, Encoder]], images: ImageSet, run: Run) -> "Judge":
        """Meta-classifiers from pairs (clean, backdoored) trained on ``images``; the last pairs are set apart."""
        runs = [run.child(f"meta-classifier {i}") for i in range(self.meta_classifiers)]
        kinds = {
            False: [_answering(clean, run) for clean, _ in fleet],
            True: [_answering(twin, run) for _, twin in fleet],
        }
        shadows = meta.Fleet.of({kind: some[: self.shadows] for kind, some in kinds.items()})
        apart = meta.Fleet.of({kind: some[self.shadows :] for kind, some in kinds.items()}) if self.validation else None
        features, (mean, deviation) = fleet[0][0].feature_size, meta.look(images)
        metas = meta.MetaClassifiers.draw(runs, self.queries, mean, deviation, features, self.hidden)
        settings = meta.Training(
            epochs=self.epochs, learning_rate=self.learning_rate, tune_queries=self.tune_queries, one_class=False
        )
        learned = meta.train(metas, torch.nn.Identity(), shadows, apart, settings, runs)
        return Judge(metas, learned)

    def restore(self, state: Mapping[str, Tensor]) -> "Judge":
        """What ``fit`` learned, from the tensors of ``Judge.state_dict``."""
        learned = {name: value.tolist() for name, value in state.items() if name.startswith("AUC ")}
        return Judge(meta.MetaClassifiers(**{name: state[name] for name in state.keys() - learned.keys()}), learned)

    def check_state(self, state: Mapping[str, Tensor], features: int, size: int) -> None:
        """Raises ``ValueError`` unless shapes fit one another and the encoders, and all numbers are finite."""
        learned = {name for name in state if name.startswith("AUC ")}
        if state.keys() - learned != TENSORS:
            raise ValueError(f"other tensors than {', '.join(sorted(TENSORS))}")
        if any(value.dtype != torch.float32 for value in state.values()) or any(state[n].ndim != 1 for n in learned):
            raise ValueError("tensors of other kinds")
        count, queries = state["queries"].shape[:2]
        if count * queries == 0:
            raise ValueError("there are no queries")
        hidden = state["bias"].shape[-1]
        expected: dict[str, tuple[int, ...]] = {
            "queries": (count, queries, 3, size, size),
            "first": (count, queries * features, hidden),
            "bias": (count, hidden),
            "second": (count, hidden),
            "offset": (count,),
            "radius": (count,),
        }
        for name, shape in expected.items():
            if state[name].shape != shape:
                raise ValueError(f"{name} has the shape {tuple(state[name].shape)} instead of {shape}")
        if not all(value.isfinite().all() for value in state.values()):
            raise ValueError("numbers that are not finite")


@dataclass(frozen=True)
class Judge:
    """Trained meta-classifiers: queries and weights, and how well they tell shadows."""

    metas: meta.MetaClassifiers
    learned: meta.Learned

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, by name."""
        return self.metas.state_dict() | {name: torch.tensor(areas) for name, areas in self.learned.items()}

    def judge(self, encoders: Sequence[Encoder], run: Run) -> list[Verdict]:
        """A verdict for each encoder; evidence: ``scores``, one of each meta-classifier, and ``learned``."""
        started = time.perf_counter()
        metas = self.metas.to(run.device)
        models = [_answering(encoder, run) for encoder in encoders]
        scores = meta.ask(metas, torch.nn.Identity(), models, one_class=False).cpu()
        seconds = (time.perf_counter() - started) / len(encoders)
        return [
            Verdict(
                score=float(each.mean()),
                threshold=0.0,
                flagged=bool(each.mean() > 0),
                evidence={"scores": each.tolist(), "learned": self.learned},
                seconds=seconds,
            )
            for each in scores
        ]


def _answering(encoder: Encoder, run: Run) -> meta.Model:
    """The encoder as a meta-classifier asks it: frozen, without dropout, features of length 1."""
    encoder.to(run.device).eval().requires_grad_(False)

    def answer(images: Tensor) -> Tensor:
        with run.autocast():
            features = encoder(images)
        return F.normalize(features.float(), dim=1)

    return answer
