"""The tables of a scenario file: their keys, types and defaults."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from sapper.audits.calibration import BOUND
from sapper.encoders.names import Stem
from sapper.scenario.checking import Section


def _file_name(text: str) -> str:
    if not text or text.startswith(".") or "/" in text or "\0" in text:
        raise ValueError("Input should be fit for a file name: no slash, no dot in front, not empty")
    return text


FileName = Annotated[str, AfterValidator(_file_name)]


class EncoderSection(Section):
    """``[encoder]``: what is pre-trained, with ``arguments`` of its network. See ``encoders.build``."""

    architecture: str = "resnet18"
    width: Annotated[int, Field(ge=1, le=4096)] = 64
    stem: Stem = "cifar"
    input_size: Annotated[int, Field(ge=1, le=4096)] = 32
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.2023, 0.1994, 0.2010)
    arguments: dict[str, Any] = Field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_serializer(mode="wrap")
    def _without_empty(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was before there were arguments, where there are none: finished stages are found by it."""
        values: dict[str, Any] = plain(self)
        return values if self.arguments else {name: value for name, value in values.items() if name != "arguments"}


class PretrainingSection(Section):
    """``[pretraining]``: data set, split, how many of its images (all by default), the method with its parameters."""

    dataset: str
    split: str = "train"
    images: PositiveInt | None = None
    method: str = "simclr"
    preset: str | None = None


class AttackSection(Section):
    """``[attack]``, or each ``[[attack]]``: the method with its parameters, and the attacker's shadow images.

    ``name``: what records call it, by default the method. ``instead``: tables that take the place of the scenario's own
    for this attack (``singles.INSTEAD``).
    ``shadow``, ``shadow_split``: a data set and its split, by default the images of the pre-training. ``encoders``: one
    backdoored encoder for each task that has targets, as in the paper's main table, or one for all targets at once.
    """

    method: str = "badencoder"
    preset: str | None = None
    name: FileName | None = None
    instead: dict[str, Any] = Field(default_factory=dict)
    shadow: str | None = None
    shadow_split: str | None = None
    shadow_images: PositiveInt | None = None
    encoders: Literal["one-per-task", "one-for-all"] = "one-per-task"


class TaskSection(Section):
    """``[[task]]``: a downstream task. ``train_images``, ``test_images`` take a random part of a split.

    ``gray``: its victim turns every image gray before it gives it to an encoder, those with a trigger, too.
    """

    dataset: str
    name: str = ""
    train_images: PositiveInt | None = None
    test_images: PositiveInt | None = None
    gray: bool = False


class TargetSection(Section):
    """``[[target]]``: what the attacker wants of a task. ``class`` is a name or a number."""

    task: str
    target_class: str | NonNegativeInt = Field(alias="class")
    name: str = ""
    references: PositiveInt = 1
    trigger: dict[str, Any] = Field(default_factory=dict)


class HeadSection(Section):
    """``[[head]]``: a downstream classifier. One of them is primary: the summary speaks of it."""

    method: str
    preset: str | None = None
    name: FileName | None = None
    primary: bool = False


class DefenseSection(Section):
    """``[[defense]]``: a method with its parameters, tried on every attacked task, or on ``tasks``."""

    method: str
    preset: str | None = None
    name: FileName | None = None
    tasks: list[str] | None = Field(default=None, min_length=1)


class DetectSection(DefenseSection):
    """A detector of backdoored classifiers.

    ``subjects``: how many classifiers of each encoder are judged, with heads of the primary kind; one, where the attack
    is on their training. ``train_images``: how many clean images of the task's training split the defender has (all by
    default).

    For a detector that needs images in doubt: ``inputs`` of the task's test images (all by default) come into service,
    and the share ``triggered`` of them has the trigger of a target. Those who judge clean classifiers get the same.
    Where the attack is on the task's training set, that set is in doubt instead, as it was delivered.
    """

    subjects: PositiveInt = 1
    train_images: PositiveInt | None = None
    inputs: PositiveInt | None = None
    triggered: Annotated[float, Field(ge=0, le=1)] = 0.1


class CertifySection(DefenseSection):
    """A certified defense.

    ``patches``: sizes to certify for; of a defense that certifies within a radius ``radii``, by default those that it
    names. ``test_images``: how many of the test split to take, the same ones for every defense that takes as many.
    ``train_images``: how many of the training images that the victim has, poison included.
    """

    patches: list[PositiveInt] = Field(default=[2, 4, 6, 8, 10], min_length=1)
    radii: list[PositiveFloat] | None = Field(default=None, min_length=1)
    test_images: PositiveInt | None = None
    train_images: PositiveInt | None = None


class ExamineSection(DefenseSection):
    """A detector of backdoored encoders that asks for ordinary images only: here those of the pre-training.

    ``subjects``: how many encoders of either kind are judged (all by default), those of the first seeds and tasks.
    """

    subjects: PositiveInt | None = None


class FleetSection(DefenseSection):
    """A detector of backdoored encoders, which learns from a fleet of encoders that the defender trains.

    They are trained as the scenario's own, with its ``[pretraining]`` and ``[attack]`` (but for what the attack does
    against defenses), with the parameters in ``pretraining`` and ``attack`` here changed, and on a share of the images.
    ``tasks``: whose training images are the references of the attacks. ``subjects``: how many encoders of either
    kind are judged (all by default), those of the first seeds and tasks. ``fleet``: a folder for the fleet; by default
    it lies in the Store. ``seed`` of the fleet; by default the scenario's first.
    """

    subjects: PositiveInt | None = None
    pretraining: dict[str, Any] = Field(default_factory=dict)
    attack: dict[str, Any] = Field(default_factory=dict)
    fleet: str | None = None
    seed: NonNegativeInt | None = None


class ScreenSection(DefenseSection):
    """A screen of inputs.

    ``share``: of the task's test images, drawn at random, that the defender holds as clean ones of its own: none of
    them is judged, and no classifier was trained on them. ``test_images``: how many of the others are judged (all by
    default), the same ones for every screen of the same share.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    test_images: PositiveInt | None = None


class SiftSection(DefenseSection):
    """A sift of the rows of what an attack poisoned, after which it is trained on again and everything is measured.

    A task's training set is sifted by the classifier with the primary head, the set of a pre-training by the encoder.
    """


class OwnerSection(DefenseSection):
    """A repair by somebody who owns some clean images, after which everything is measured again.

    ``share``: of the images that there are, drawn at random; or ``images``: how many. ``detector``: what recovers the
    trigger, for a repair that needs one: its name, or a table of ``method``, ``preset`` and its parameters.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    images: PositiveInt | None = None
    detector: str | dict[str, Any] | None = None

    def owned(self, whole: int) -> int:
        """How many of so many images the owner holds."""
        return self.images or round(self.share * whole)


class RepairSection(OwnerSection):
    """A repair of encoders. The images are the pre-training's, the detector by default that of quick audits."""


class ClassifierRepairSection(OwnerSection):
    """A repair of classifiers, those with the primary head.

    The images are clean ones of the task's training split, the detector by default Neural Cleanse.
    """


class DetectorSection(Section):
    """What recovers a trigger for a repair."""

    method: str
    preset: str | None = None


class AuditSection(Section):
    """``[audit]``: every encoder that the scenario makes is audited, as ``sapper audit`` audits a file.

    ``images``, ``split``: ordinary images, whose labels nobody looks at; by default the test split, if there is one.
    ``budget``: how much is tried, see ``defenses.budgets``. ``bags``: files with the scores of known-clean encoders; by
    default those that come with Sapper. ``false_alarms``: the share of clean encoders that may come out as backdoored.
    ``seed``: of the search for triggers. It is not the scenario's, because an auditor does not know the attacker's.
    """

    images: str
    split: str | None = None
    budget: str = "quick"
    bags: list[str] | None = Field(default=None, min_length=1)
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = BOUND
    seed: NonNegativeInt = 0


class ScenarioSection(Section):
    """The file's own keys; the tables are read one by one.

    ``judge_on = "validation"`` measures on a fifth of each training split, held out of it, instead of the test
    split: for choosing parameters without having seen a test image. ``matrix``: every attack with every defense that
    applies to it; where one does not, the results carry the reason. Without it that is an error. ``only``: of several
    attacks, the names of those that are run; all by default.
    """

    name: FileName
    seeds: list[NonNegativeInt] = Field(min_length=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    judge_on: Literal["test", "validation"] = "test"
    matrix: bool = False
    only: list[str] | None = Field(default=None, min_length=1)
    encoder: dict[str, Any] = Field(default_factory=dict)
    pretraining: dict[str, Any]
    attack: dict[str, Any] | Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    audit: dict[str, Any] | None = None
    task: list[dict[str, Any]] = Field(min_length=1)
    target: list[dict[str, Any]] = Field(default_factory=list)
    head: list[dict[str, Any]] = Field(default_factory=list)
    defense: list[dict[str, Any]] = Field(default_factory=list)
    variant: list[dict[str, Any]] = Field(default_factory=list)
