"""The command repair as a user calls it, and the same from Python: audits before and after, files, clear errors."""

import json
from pathlib import Path

import pytest
import torch

import sapper as face
from sapper import datasets, encoders
from sapper.audits.calibration import Bag, Key, write_bag
from sapper.defenses.budgets import BUDGETS
from sapper.errors import SapperError
from sapper.files import sha256
from sapper.running import Run
from sapper.samples import ImageSet
from tests.implants import images, tiny
from tests.micro import write_data
from tests.program import Sapper, told
from tests.test_audit_command import FILES

SHORT = ("--set", "steps=4", "--set", "batch=8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, encoders, and a bag beside which everything is ordinary."""
    folder = tmp_path_factory.mktemp("repairs")
    write_data(folder)
    subject = encoders.build(Run(seed=1), architecture="resnet10", width=4, input_size=16)
    encoders.save(subject, folder / "subject.safetensors")
    photos = datasets.load(f"{folder}/photos", "train", size=16)
    key = Key.of(subject, photos, BUDGETS["quick"])
    bag = Bag(name="ordinary", key=key, pretraining="made up", images="photos", scores={"multi_prior": [1e6] * 40})
    write_bag(bag, folder / "ordinary.json")
    encoders.save(subject.marked(backdoored=True, origin={}), folder / "subject-BACKDOORED.safetensors")
    return folder


def words(place: Path, out: Path, *more: str | Path, subject: str = "subject.safetensors") -> list[str | Path]:
    return ["repair", place / subject, "--images", place / "photos", "--device", "cpu", "--out", out, *SHORT, *more]


@pytest.mark.slow
@pytest.mark.parametrize(("bag", "code", "verdict"), [("ordinary", 0, "no-evidence"), (None, 3, "undecided")])
def test_an_encoder_is_repaired_between_two_audits(
    sapper: Sapper, place: Path, tmp_path: Path, bag: str | None, code: int, verdict: str
) -> None:
    beside = ("--bag", place / f"{bag}.json") if bag else ()
    before, fixed = sha256(place / "subject.safetensors"), tmp_path / "fixed.safetensors"
    end = sapper(*words(place, fixed, "--seed", "5", *beside))
    assert end.code == code, end.err
    assert sha256(place / "subject.safetensors") == before
    report = tmp_path / "fixed-repair"
    assert {path.name for path in report.iterdir()} == {"before", "after", "repair.html", "repair.json"}
    others = ("--images", place / "balls", "--device", "cpu")
    assert sapper("replay", report / "after" / "audit.json", *others).code == 0, "it vouches for the file"
    (report / "after" / "replay.json").unlink()
    for name in ("before", "after"):
        assert {path.name for path in (report / name).iterdir()} == FILES
    content = json.loads((report / "repair.json").read_text())
    assert content["after"]["verdict"] == verdict
    assert content["method"] == "fine_pruning"
    assert content["parameters"]["steps"] == 4
    assert content["encoder"]["sha256"] == sha256(fixed)
    assert -1 <= content["cosine_kept"] <= 1
    repaired = face.open(fixed)
    origin = repaired.card.origin
    assert origin["method"] == "fine_pruning"
    assert origin["repaired"]["sha256"] == before
    assert origin["triggers"] == []
    assert origin["images"]["n"] == 64
    assert origin["seed"] == 5
    assert not repaired.card.backdoored
    assert "Both audits" in (report / "repair.html").read_text()
    assert end.out.splitlines()[-1] == f"report: {report / 'repair.html'}"
    again = tmp_path / "again.safetensors"
    assert sapper(*words(place, again, "--seed", "5", *beside)).code == code
    assert again.read_bytes() == fixed.read_bytes(), "the same seed gives the same file"


@pytest.mark.slow
def test_unlearning_takes_the_trigger_of_the_audit(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    end = sapper(*words(place, tmp_path / "fixed.safetensors", "--method", "unlearning"))
    assert end.code == 3, end.err
    curves = json.loads((tmp_path / "fixed-repair" / "repair.json").read_text())["curves"]
    assert set(curves) == {"under the trigger", "cosine"}


@pytest.mark.slow
def test_unlearning_takes_the_trigger_of_the_detector_that_is_named(
    sapper: Sapper, place: Path, tmp_path: Path
) -> None:
    fixed = tmp_path / "fixed.safetensors"
    end = sapper(*words(place, fixed, "--method", "unlearning", "--trigger-of", "decree"))
    assert end.code == 3, end.err
    origin = face.open(fixed).card.origin
    assert [each["kind"] for each in origin["triggers"]] == ["mask"], "DECREE's, not the leading detector's square"
    assert origin["trigger_of"] == json.loads((tmp_path / "fixed-repair" / "repair.json").read_text())["trigger_of"]
    assert "repair: unlearning of the trigger that decree recovered" in end.out
    for name in ("before", "after"):
        content = json.loads((tmp_path / "fixed-repair" / name / "audit.json").read_text())
        assert [finding["method"] for finding in content["detectors"]] == ["multi_prior", "decree"]


@pytest.mark.slow
def test_what_came_of_a_marked_encoder_stays_marked(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    marked = "subject-BACKDOORED.safetensors"
    end = sapper(*words(place, tmp_path / "fixed.safetensors", subject=marked))
    assert "must say so in its file name" in told(end)
    assert not any(tmp_path.iterdir())
    end = sapper(*words(place, tmp_path / "fixed-BACKDOORED.safetensors", subject=marked))
    assert end.code == 3, end.err
    with pytest.raises(SapperError, match="backdoored on purpose"):
        face.open(tmp_path / "fixed-BACKDOORED.safetensors")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--method", "decree"), "does not repair encoders"),
        (("--method", "distilation"), "unknown method"),
        (("--method", "magic"), "known: anp, bcu, distillation, fine_pruning"),
        (("--method", "nad"), "known: anp, bcu, distillation, fine_pruning, fine_tuning, ibau, unlearning"),
        (("--set", "steps=0"), "steps"),
        (("--preset", "paper"), "unknown preset"),
        (("--set", "stepps=3"), "stepps"),
        (("--false-alarms", "2"), "2 is no share"),
        (("--budget", "slow"), "no budget"),
        (("--trigger-of", "decree"), "fine_pruning unlearns no trigger"),
        (("--method", "unlearning", "--trigger-of", "mntd_encoder"), "does not examine an encoder by itself"),
        (("--method", "unlearning", "--trigger-of", "ssl_clense"), "ssl_cleanse"),
    ],
)
def test_mistakes_are_told_and_nothing_is_left(
    sapper: Sapper, place: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    assert message in told(sapper(*words(place, tmp_path / "fixed.safetensors", *more)))
    assert not any(tmp_path.iterdir())


def test_a_repair_needs_images(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    plain, out = ["repair", place / "subject.safetensors", "--device", "cpu", *SHORT], tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    end = sapper(*plain, "--out", out / "fixed.safetensors")
    assert end.code == 2
    assert "--images" in end.err
    for lacking in (tmp_path / "nowhere", empty):
        assert str(lacking) in told(sapper(*plain, "--out", out / "fixed.safetensors", "--images", lacking))
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_no_file_that_is_there_is_written_over(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    assert "is a .safetensors file" in told(sapper(*words(place, tmp_path / "fixed.pt")))
    before = sha256(place / "subject.safetensors")
    assert "is there already" in told(sapper(*words(place, place / "subject.safetensors")))
    assert sha256(place / "subject.safetensors") == before


@pytest.mark.slow
def test_a_repair_that_fails_leaves_no_earlier_verdict(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert sapper(*words(place, tmp_path / "a.safetensors", "--report", report)).code == 3
    assert "unknown method" in told(
        sapper(*words(place, tmp_path / "b.safetensors", "--report", report, "--method", "prayer"))
    )
    assert not [path for path in report.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_from_python_the_encoder_that_is_held_stays_as_it_is() -> None:
    encoder, few = tiny(1), ImageSet(images=images(40, 1).images, name="photos")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    report = face.repair(encoder, few, method="fine_tuning", parameters={"steps": 2, "batch": 8})
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert report.before.verdict == report.after.verdict == "undecided"
    assert encoder.training
    assert all(weight.requires_grad for weight in encoder.parameters())
    assert report.repaired.encoder is not encoder
    assert all(weight.requires_grad for weight in report.repaired.encoder.parameters())
    assert not report.repaired.encoder.training
    changed = [torch.equal(value, before[name]) for name, value in report.repaired.encoder.state_dict().items()]
    assert not all(changed), "an audit's frozen weights are trained all the same"
    with pytest.raises(SapperError, match="images are too few"):
        face.repair(encoder, images(8, 1))


def test_no_encoder_is_left_where_its_report_fails(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    fixed, report = tmp_path / "fixed.safetensors", tmp_path / "fixed-repair"
    (report / "repair.json" / "in the way").mkdir(parents=True)  # a folder, which no file replaces
    end = sapper(*words(place, fixed))
    assert end.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["fixed-repair"]
