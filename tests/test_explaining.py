"""``sapper audit --explain``: the command that it offers changes an undecided verdict, tried by typing it."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sapper import datasets, encoders, formats
from sapper.audits.calibration import Bag, Key, write_bag
from sapper.cli.explaining import Asked
from sapper.cli.opening import Said
from sapper.defenses.budgets import BUDGETS
from sapper.running import Run
from tests.micro import write_data
from tests.program import Ended, Sapper


@pytest.fixture
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
    again = sapper("audit", *offered(end), "--device", "cpu")
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
    assert sapper("calibrate", *made, "--device", "cpu").code == 0
    again = sapper("audit", *offered(end), "--device", "cpu", "--false-alarms", "0.4")
    assert again.code in (0, 1), again.err + again.out


def test_a_verdict_is_explained_too(sapper: Sapper, place: Path) -> None:
    bag(place / "mine.json")
    end = explained(sapper, "--bag", "mine.json")
    assert end.code in (0, 1)
    assert "why: the p-value is " in end.out
    assert offered(end)[-4:] == ["--budget", "standard", "--bag", "mine.json"]


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
    assert "--bag" not in asked.calibrate(["--models", "m"], "m.json")
