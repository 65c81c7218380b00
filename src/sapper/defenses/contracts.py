"""What a defense is, by what it answers. Each says so itself (``kind``), and what it needs and is measured by.

``judge``    classifiers on one encoder: is this one backdoored?
``examine``  an encoder, by ordinary images: is it backdoored?
``learn``    the same, having learned from encoders that the defender trained (a fleet)
``certify``  predictions: which of them can no patch, or no change within a radius, change?
``screen``   inputs as they come: has this one a trigger?
``sift``     rows of a training set: is this one poison?
``repair``   an encoder: the same without its backdoor
``repair_classifier``  a classifier: the same

All are frozen dataclasses of their parameters. Equal seeds give equal results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from sapper.defenses.defender import Defender
from sapper.defenses.measures import OfAnswers, OfScores, OfVerdicts
from sapper.downstream import Classifier
from sapper.encoders import Encoder, Trained
from sapper.methods import Method
from sapper.running import Run
from sapper.samples import Change, ImageSet, Samples
from sapper.training import Checkpoint, Curves
from sapper.triggers import Patch, Trigger
from sapper.verdicts import Certified, Scores, Verdict

Kind = Literal["judge", "examine", "learn", "certify", "screen", "sift", "repair", "repair_classifier"]

Need = Literal["samples", "labels", "gradients", "fleet", "trigger", "inputs"]
"""What a defense cannot do without besides the model: ordinary clean samples; labels, theirs or of the rows that are
sifted; gradients through the model, not only its answers; models that the defender trains and attacks; a trigger that
a detector recovered; images in doubt (``Defender.stream``), of which some may have a trigger."""


class Defense(Method, Protocol):
    """What all kinds share."""

    kind: ClassVar[Kind]
    needs: ClassVar[frozenset[Need]]


class ClassifierJudge(Defense, Protocol):
    """Answers for classifiers on one encoder whether they hold a backdoor."""

    kind: ClassVar[Literal["judge"]]
    measures: ClassVar[tuple[OfVerdicts, ...]]

    def check(self, images: int, classes: int) -> None:
        """Raises ``SapperError`` when so many images of so many classes are too few for a defender to begin."""
        ...

    def judge(self, classifiers: Sequence[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        """A verdict for each; the defender's images are clean, and the attacker's trigger is unknown.

        Only a judge that needs ``inputs`` looks at ``defender.stream``, and nobody tells it what is in there.
        """
        ...


class Examiner(Protocol):
    """Whatever answers for a bare encoder, by ordinary images, whether it holds a backdoor."""

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """A verdict; ``images`` have the encoder's size, and no label of theirs is looked at."""
        ...


class EncoderExaminer(Defense, Examiner, Protocol):
    """An ``Examiner`` that needs nothing but the images."""

    kind: ClassVar[Literal["examine"]]
    measures: ClassVar[tuple[OfVerdicts, ...]]

    def parts(self) -> Sequence["EncoderExaminer"]:
        """Detectors that can be asked one by one in its place; itself where it is not several in one.

        All together say what that with the largest score says, nothing if one has none. Tables in their evidence, by
        name, are joined.
        """
        ...

    def passes(self, images: ImageSet) -> int:
        """About how many images it sends through the encoder with gradients, at most: the time left is told by that."""
        ...


class EncoderJudge(Protocol):
    """What has learned to tell backdoored encoders from clean ones.

    ``learned``: how well it tells those that it learned from, by name ("AUC …") a value for each of its scorers.
    """

    @property
    def learned(self) -> Mapping[str, list[float]]: ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, by name."""
        ...

    def judge(self, encoders: Sequence[Encoder], run: Run) -> list[Verdict]:
        """A verdict for each."""
        ...


class EncoderLearner(Defense, Protocol):
    """Answers for bare encoders whether they hold a backdoor, having learned from a fleet of the defender's own.

    The fleet has ``pairs`` pairs of a clean encoder and its backdoored twin, trained on the share ``share`` of as many
    images as the encoders in doubt have seen. How they are trained is not the detector's business. ``state``: what it
    has learned is called, in words for people.
    """

    kind: ClassVar[Literal["learn"]]
    measures: ClassVar[tuple[OfVerdicts, ...]]
    state: ClassVar[str]

    @property
    def share(self) -> float: ...

    @property
    def pairs(self) -> int: ...

    def with_pairs(self, count: int) -> Self:
        """The same, to learn from ``count`` ≥ 1 pairs, of which it may set some apart."""
        ...

    def check(self, images: int, size: tuple[int, int]) -> None:
        """Raises ``SapperError`` when so many images, of that height and width, are too few for a fleet."""
        ...

    def draw(self, references: int, size: tuple[int, int], run: Run) -> tuple[int, Patch]:
        """The attack on a twin: which of so many reference images, and the trigger for images of that size."""
        ...

    def fit(self, fleet: Sequence[tuple[Encoder, Encoder]], images: ImageSet, run: Run) -> EncoderJudge:
        """Learn from pairs (clean, backdoored); ``images`` are those that they were trained on."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> EncoderJudge:
        """What ``fit`` learned, from the tensors of its ``state_dict``."""
        ...

    def check_state(self, state: Mapping[str, Tensor], features: int, size: int) -> None:
        """Raises ``ValueError`` for tensors of a foreign file that ``restore`` cannot take.

        They must fit one another, and encoders of so many features that take images of so many pixels.
        """
        ...


class Guarded(Protocol):
    """A classifier under a certified defense: no patch can easily change its answer, and it says where none can."""

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given."""
        ...

    def certify(self, images: Tensor, labels: Tensor, patches: Sequence[int], run: Run) -> list[Certified]:
        """For each size of ``patches`` what the defense for that size certifies; ``labels`` int64 (N,)."""
        ...


class Certifier(Defense, Protocol):
    """Guards classifiers against one patch of ``patch`` × ``patch`` pixels.

    ``uses_encoder``: whether what it makes depends on the encoder, or replaces it.
    """

    kind: ClassVar[Literal["certify"]]
    measures: ClassVar[tuple[OfAnswers, ...]]
    uses_encoder: ClassVar[bool]

    @property
    def patch(self) -> int: ...

    def check(self, size: int) -> None:
        """Raises ``SapperError`` when it does not work on images of so many pixels a side."""
        ...

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> Guarded:
        """The classifier under the defense, as it is or trained for it."""
        ...


class GuardedWithin(Protocol):
    """A classifier under a certified defense against changes up to a radius, instead of patches."""

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given."""
        ...

    def certify(self, images: Tensor, labels: Tensor, radii: Sequence[float], run: Run) -> list[Certified]:
        """For each radius, above 0, what is certified; ``labels`` int64 (N,)."""
        ...


@runtime_checkable
class Smoother(Defense, Protocol):
    """Guards classifiers against changes up to a radius: of the image, or of the task's training set.

    ``threat``: which changes, in words; what a radius counts is part of it. ``covers_not``: what its guarantee does not
    cover, in words that end a sentence. ``radii``: those that are usual. ``uses_encoder`` as of a ``Certifier``.
    """

    kind: ClassVar[Literal["certify"]]
    measures: ClassVar[tuple[OfAnswers, ...]]
    uses_encoder: ClassVar[bool]
    covers_not: ClassVar[str]

    @property
    def threat(self) -> str: ...

    @property
    def radii(self) -> tuple[float, ...]: ...

    def check(self, size: int) -> None:
        """Raises ``SapperError`` when it does not work on images of so many pixels a side."""
        ...

    def check_radii(self, radii: Sequence[float]) -> None:
        """Raises ``SapperError`` for a radius that there is not."""
        ...

    def check_classes(self, classes: int) -> None:
        """Raises ``SapperError`` where it can certify nothing about so many classes."""
        ...

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> GuardedWithin:
        """The classifier under the defense, as it is or trained for it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What a certified defense guarantees against, and what its guarantee does not cover, both in words."""

    threat: str
    covers_not: str


def guarantee(method: Certifier | Smoother) -> Guarantee:
    """The guarantee of a certified defense, for people."""
    if isinstance(method, Smoother):
        return Guarantee(threat=method.threat, covers_not=method.covers_not)
    whose = "the answers are those of a function, with a backdoor or without, and that is certified, not its honesty"
    if not method.uses_encoder:
        whose = "the encoder is not used, and nothing is said of it"
    return Guarantee(
        threat="one square patch of that side in each image, anywhere, whatever it shows",
        covers_not=f"several patches or larger ones, and triggers all over the image, such as a blend; {whose}",
    )


Model = Callable[[Tensor], Tensor]
"""A classifier or a bare encoder: float images (N, 3, H, W) in [0, 1] to logits (N, K), or to features (N, D)."""

Looks = Literal["classifier", "encoder"]
"""What a screen looks at: a classifier's answers, or the features of a bare encoder."""


class Screener(Protocol):
    """A screen that knows its model, for inputs as they come."""

    @property
    def threshold(self) -> float: ...

    def scores(self, images: Tensor) -> Tensor:
        """Float (N,) on the CPU of uint8 images (N, 3, H, W), each scored as if it came alone.

        The higher, the more suspicious; what is above the threshold is rejected.
        """
        ...


class Screen(Defense, Protocol):
    """Tells inputs with a trigger from ordinary ones while a model is in use.

    At most the share ``false_rejections`` of clean inputs, in (0, 1), may be rejected.
    """

    kind: ClassVar[Literal["screen"]]
    measures: ClassVar[tuple[OfScores, ...]]
    looks_at: ClassVar[Looks]

    @property
    def false_rejections(self) -> float: ...

    def check(self, images: int) -> None:
        """Raises ``SapperError`` when so many clean images are too few to begin, or for the promised share."""
        ...

    def prepare(self, model: Model, clean: ImageSet, run: Run) -> Screener:
        """Get to know the model by the defender's clean images, whose labels are not looked at.

        The threshold is chosen on some from which nothing was learned. The model must not have been trained on any.
        """
        ...


class Sift(Defense, Protocol):
    """Tells poison from clean rows in a training set that somebody else gathered."""

    kind: ClassVar[Literal["sift"]]
    measures: ClassVar[tuple[OfScores, ...]]

    def check(self, rows: int, classes: int) -> None:
        """Raises ``SapperError`` for so few rows, and where it needs labels and there are none: then ``classes`` is 0.

        Asked before anything runs.
        """
        ...

    def __call__(self, samples: Samples, model: Encoder | Classifier, run: Run) -> Scores:
        """One score for each row of ``samples``, by what ``model`` says of them, which was trained on these very rows.

        An encoder was pre-trained on them; of a classifier, the head was trained on them, or the head and the encoder.
        A model that has not seen the rows has not learned what is wrong with them. ``samples`` lie on the CPU.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who repairs a model that somebody else made: ``clean`` samples, in which no trigger occurs.

    For an encoder they need no labels, for a classifier they have those of its classes. ``triggers``: what a detector
    recovered from the model, for repairs that need it.
    """

    clean: Samples
    triggers: tuple[Trigger, ...] = ()


class Repair(Defense, Protocol):
    """Takes a backdoor out of an encoder. What it gives back is measured as every encoder is, so it has no measures."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    kind: ClassVar[Literal["repair"]]

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network that it cannot work on, and for too few images; before anything runs."""
        ...

    def __call__(self, encoder: Encoder, owner: Owner, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """The repaired encoder, in ``eval`` mode: ``encoder`` itself, changed in place, or a new one of its kind."""
        ...


@dataclass(frozen=True, kw_only=True)
class RepairedClassifier:
    """The classifier that a repair gives back, in ``eval`` mode, and its losses per epoch."""

    classifier: Classifier
    curves: Curves


class ClassifierRepair(Defense, Protocol):
    """Takes a backdoor out of a classifier, of its encoder and its head. It has no measures, as ``Repair`` has none."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    kind: ClassVar[Literal["repair_classifier"]]

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` where it cannot work on classifiers that stand on such an encoder, or with so few
        images; before anything runs."""
        ...

    def __call__(
        self, classifier: Classifier, owner: Owner, run: Run, checkpoint: Checkpoint | None = None
    ) -> RepairedClassifier:
        """A repaired copy; ``classifier`` stays as it is. The copy's encoder is trained, too, whatever the head."""
        ...
