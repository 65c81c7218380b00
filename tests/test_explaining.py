"""``sapper audit --explain``: the command that it offers changes an undecided verdict, tried by typing it."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sapper import datasets, encoders, formats
from sapper.audits.calibration import Bag, Key, write_bag
from sapper.cli.explaining import Asked, _measuring
from sapper.cli.opening import Said
from sapper.defenses.budgets import BUDGETS
from sapper.running import Run
from tests.micro import write_data, write_npz
from tests.program import Ended, Sapper


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, in which the test stands, with photos and an encoder of them."""
    monkeypatch.setattr(formats, "measurable", lambda _device: False)
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    encoders.save(encoders.build(Run(seed=1), architecture="resnet10", width=4, input_size=16), "x.safetensors")
    return tmp_path


def bag(path: Path, budget: str = "quick", photos: str = "photos", size: int = 40) -> None:
    """A made-up one for encoders like the one there."""
    encoder, images = encoders.load(Path("x.safetensors"), Run()), datasets.load(photos, "train", size=16)
    key = Key.of(encoder, images, BUDGETS[budget])
    scores = {name: [0.0] * size for name in key.detectors}
    write_bag(Bag(name=path.stem, key=key, pretraining="", images=f"{photos} train", scores=scores), path)


def explained(sapper: Sapper, *more: str | Path) -> Ended:
    how = ("--images", "photos", "--device", "cpu", "--explain")
    return sapper("audit", "x.safetensors", *how, *more)


def offered(end: Ended) -> list[str]:
    """The last command that it offers."""
    text = " ".join(end.out.split())
    return shlex.split(text.rpartition("sapper audit ")[2].partition(" report: ")[0])


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ({"size": 5}, ()),  # too small for the bound: another bound
        ({"photos": "balls"}, ()),  # of other images
        ({"budget": "standard"}, ()),  # of another budget
    ],
)
def test_what_is_offered_decides(sapper: Sapper, place: Path, made: dict[str, object], asked: tuple[str, ...]) -> None:
    bag(place / "mine.json", **made)  # type: ignore[arg-type]
    end = explained(sapper, "--bag", "mine.json", *asked)
    assert end.code == 3, end.err
    assert "why: " in end.out
    again = sapper("audit", *offered(end))
    assert again.code in (0, 1), again.err + again.out


def test_a_kind_that_nobody_measured_is_told_how_to_measure(sapper: Sapper, place: Path) -> None:
    end = explained(sapper)
    text = " ".join(end.out.split())
    assert "put 19 or more encoders that you know to be clean into FOLDER" in text
    made = shlex.split(text.rpartition("sapper calibrate ")[2].partition(" then: ")[0])
    folder = place / "FOLDER"
    folder.mkdir()
    for seed in (5, 6):
        encoder = encoders.build(Run(seed=seed), architecture="resnet10", width=4, input_size=16)
        encoders.save(encoder, folder / f"{seed}.safetensors")
    assert sapper("calibrate", *made).code == 0
    again = sapper("audit", *offered(end), "--false-alarms", "0.4")
    assert again.code in (0, 1), again.err + again.out


def test_a_verdict_is_explained_too(sapper: Sapper, place: Path) -> None:
    bag(place / "mine.json")
    end = explained(sapper, "--bag", "mine.json")
    assert end.code in (0, 1)
    assert "why: the p-value is " in end.out


@pytest.mark.parametrize(
    ("images", "why", "do"),
    [
        (40, "images are too few for twins", "give some thousand of the images that it was trained on"),
        (50, "made with 50 images of each encoder's kind or more, and here are 40", "with 50 images or more"),
    ],
)
def test_too_few_images_are_explained(sapper: Sapper, place: Path, images: int, why: str, do: str) -> None:
    """For the twins of an encoder, or for the bag over families that they are compared with."""
    from sapper.audits.families import Family, FamilyBag, parameters_of, write_families

    parameters = parameters_of(BUDGETS["quick"].for_strangers()["twins"])
    known = [Family(name=f"family {number}", about="", scores=[0.0]) for number in range(20)]
    file = place / "x.json"
    write_families(FamilyBag(name="x", detector="twins", parameters=parameters, images=images, families=known), file)
    write_npz(place / "few" / "train.npz", 40, seed=1, labeled=False)
    how = ("--images", "few", "--device", "cpu", "--explain", "--families", "x.json", "--fail-on", "backdoor")
    end = sapper("audit", "x.safetensors", *how)
    assert end.code == 0, end.err + end.out
    text = " ".join(end.out.split())
    assert why in text
    assert do in text


def test_public_models_are_offered_where_there_is_a_list_of_them() -> None:
    from sapper.cli.explaining import PUBLIC

    lists = {path.stem for path in (Path(__file__).parent.parent / "zoos" / "public").glob("*.txt")}
    assert set(PUBLIC.values()) == lists


def test_commands_ask_as_was_asked() -> None:
    said = replace(Said(), arch="nets:net", size=32, keys=["a=b", "c="], trust_code=True)
    asked = Asked(uri="a b.pth", images="p", budget="quick", said=said, more={"bag": ["x", "y"], "split": "train"})
    words = shlex.split(asked.audit(budget="standard"))
    assert words == [
        *("sapper", "audit", "a b.pth", "--images", "p", "--budget", "standard", "--bag", "x", "--bag", "y"),
        *("--split", "train", "--arch", "nets:net", "--size", "32", "--keys", "a=b", "--keys", "c=", "--trust-code"),
    ]
    made = shlex.split(asked.calibrate(["--models", "m"], "m.json"))
    assert made[2:] == ["--models", "m", "--images", "p", "--budget", "quick", "--split", "train", "--out", "m.json"]
    own = shlex.split(asked.calibrate(["--encoders", "f"], "o.json", as_opened=True))
    assert own[-3:] == ["--trust-code", "--out", "o.json"]


def test_a_list_is_offered_for_its_own_kind_alone() -> None:
    """A ResNet-50 for small images is another kind, whatever it is called."""
    images = datasets.load("photos", "train", size=16)
    asked = Asked(uri="x.pth", images="photos", budget="quick", said=Said())
    key = Key.of(encoders.load(Path("x.safetensors"), Run()), images, BUDGETS["quick"])
    small = replace(key, architecture="resnet50", stem="cifar")
    large = replace(small, stem="imagenet", input_size=224)
    assert "--encoders" in _measuring(small, 19, asked)[0]
    assert "--models resnet50" in _measuring(large, 19, asked)[0]


def test_the_smallest_bag_says_which_bound_is_kept(sapper: Sapper, place: Path) -> None:
    for name, size in (("many", 40), ("few", 5)):
        bag(place / f"{name}.json", size=size)
    end = explained(sapper, "--bag", "many.json", "--bag", "few.json")
    assert "the bag few has 5" in " ".join(end.out.split())
    again = sapper("audit", *offered(end))
    assert again.code in (0, 1), again.err + again.out


def test_other_bounds_are_asked_again(sapper: Sapper) -> None:
    end = explained(sapper, "--false-alarms", "0.01")
    assert "put 99 or more encoders" in " ".join(end.out.split())
    assert offered(end)[offered(end).index("--false-alarms") :][:2] == ["--false-alarms", "0.01"]
