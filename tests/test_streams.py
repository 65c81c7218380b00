"""Images in doubt, and clean ones: what those who judge classifiers are given in a scenario."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sapper import datasets
from sapper.defenses.contracts import Need
from sapper.defenses.defender import Defender
from sapper.defenses.measures import OfVerdicts, detection
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.experiment.streams import Stream
from sapper.experiment.tasks import Part
from sapper.methods import Checked
from sapper.running import Run
from sapper.triggers import Patch
from sapper.verdicts import Verdict
from tests.micro import PLAIN, experiment, perform, write_data
from tests.program import Install
from tests.victims import balls

CORNER = Patch(size=4, position="top-left", margin=0)
TARGETS = """
[[target]]
task = "balls"
class = "red"
trigger = { size = 4, position = "top-left", margin = 0 }
"""


def white(images: Tensor) -> Tensor:
    """Which uint8 images have the trigger, bool (N,)."""
    return (images[:, :, :4, :4] == 255).flatten(1).all(1)


@dataclass(frozen=True, kw_only=True)
class Teller(Checked):
    """Says what it was given."""

    kind: ClassVar[str] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels", "inputs"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = detection("score")
    version: ClassVar[int] = 1
    source: ClassVar[str] = "tests"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, images: int, classes: int) -> None: ...

    def judge(self, classifiers: list[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        stream = defender.stream
        told: dict[str, Any] = {
            "own": [len(defender.train), int(white(defender.train.images).sum()), defender.train.name],
            "features": len(defender.features),
            "stream": None if stream is None else [len(stream), int(white(stream.images).sum())],
            "labels": None if stream is None or stream.labels is None else stream.labels.tolist(),
            "digest": None if stream is None else stream.digest,
        }
        return [Verdict(score=0.0, threshold=1.0, flagged=False, evidence=told) for _ in classifiers]


@dataclass(frozen=True, kw_only=True)
class Content(Teller):
    """The same, without need of images in doubt."""

    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tellers(install: Install) -> None:
    named = {"teller": f"{__name__}:Teller", "content": f"{__name__}:Content"}
    install("tellers", points={"sapper.defenses": named})


def evidence(data: Path, folder: Path, attack: str, defense: str) -> dict[tuple[str, str], dict[str, Any]]:
    """By the defense and the state of the encoder or classifier."""
    text = PLAIN.partition('[[head]]\nmethod = "linear"')[0].replace("primary = true", "primary = true\ndropout = 0.0")
    extra = f"\n[attack]\n{attack}\n{TARGETS}\n{defense}"
    short = ("pretraining.epochs=1", "head.0.epochs=1")
    results = perform(experiment(data, *short, extra=extra, text=text), folder)
    return {(verdict.defense, verdict.state): verdict.evidence for verdict in results.verdicts}


BOTH = """
[[defense]]
method = "teller"
{keys}
train_images = 30

[[defense]]
method = "content"
"""


@pytest.mark.usefixtures("tellers")
def test_a_defender_of_a_poisoned_task_has_clean_images_beside_what_was_delivered(data: Path, tmp_path: Path) -> None:
    """The judged classifiers are built on the poison; the images that are called clean have none."""
    told = evidence(data, tmp_path, 'method = "badnets"\nrate = 0.3', BOTH.format(keys=""))
    train = datasets.load(str(data / "balls"), "train", size=16)
    for state in ("clean", "attacked"):
        assert told["teller", state]["own"] == [30, 0, "balls"]
        assert told["teller", state]["features"] == 30
        count, found, _ = told["content", state]["own"]
        assert found == 0
        assert told["content", state]["features"] == count > 40
        assert told["content", state]["stream"] is None
    victims = told["content", "clean"]["own"][0]
    assert told["teller", "clean"]["stream"] == [victims, 0]
    assert told["teller", "attacked"]["stream"] == [victims, round(0.3 * victims)]
    labels = torch.tensor(told["teller", "attacked"]["labels"])
    assert int((labels == 0).sum()) > int((train.targets() == 0).sum())


@pytest.mark.usefixtures("tellers")
def test_others_get_images_as_they_come_the_same_for_both_sides(data: Path, tmp_path: Path) -> None:
    attack = 'method = "badencoder"\nepochs = 1\nbatch = 24\nreference_views = 2'
    told = evidence(data, tmp_path, attack, BOTH.format(keys="inputs = 20\ntriggered = 0.25"))
    for state in ("clean", "attacked"):
        assert told["teller", state]["stream"] == [20, 5]
        assert told["teller", state]["labels"] is None
        assert told["content", state]["stream"] is None
    assert told["teller", "clean"]["digest"] == told["teller", "attacked"]["digest"]


@pytest.mark.usefixtures("tellers")
@pytest.mark.parametrize(
    ("defense", "where"),
    [
        ('method = "content"\ntriggered = 0.5', "defense[0].triggered"),
        ('method = "content"\ninputs = 5', "defense[0].inputs"),
        ('method = "teller"\ntriggered = 1.5', "defense[0].triggered"),
        ('method = "teller"\ninputs = 1000', "defense[0].inputs"),
        ('method = "beatrix"\nper_class = 30', "defense[0].per_class"),
        ('method = "scan"\nper_class = 30', "defense[0].per_class"),
        ('method = "abs"\nimages = 60', "defense[0].images"),
    ],
)
def test_what_a_detector_cannot_have_is_told_before_anything_runs(
    data: Path, tmp_path: Path, defense: str, where: str
) -> None:
    attack = '\n[attack]\nmethod = "badencoder"\nepochs = 1\n'
    with pytest.raises(SapperError) as caught:
        perform(experiment(data, extra=f"{attack}{TARGETS}\n[[defense]]\n{defense}\n", text=PLAIN), tmp_path / "out")
    assert where in str(caught.value.where)
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 4), (1.0, 40)])
def test_a_stream_has_as_many_triggers_as_it_says_and_does_not_say_which(share: float, count: int) -> None:
    images = balls(40, 1)
    stream = Stream(images=Part.whole(images), triggered=share)({"aim": CORNER}, Run(seed=2))
    changed = (stream.images != images.images).flatten(1).any(1)
    assert torch.equal(changed, white(stream.images))
    assert int(changed.sum()) == count
    assert (stream.labels, stream.classes, stream.groups) == (None, (), None)


def test_several_targets_take_turns() -> None:
    images, other = balls(41, 1), Patch(size=3, position="bottom-right", margin=0, color="black")
    stream = Stream(images=Part.whole(images), triggered=0.5)({"one": CORNER, "two": other}, Run(seed=2))
    black = (stream.images[:, :, -3:, -3:] == 0).flatten(1).all(1)
    assert (int(white(stream.images).sum()), int(black.sum())) == (10, 10)
    assert not bool((white(stream.images) & black).any())
