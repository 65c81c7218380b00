"""The commands audit, replay and calibrate as a user calls them: exit codes, files, and clear errors."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from sapper import cli, datasets, encoders
from sapper.__main__ import main
from sapper.audits.calibration import Bag, Key, read_bag, shipped_bags, write_bag
from sapper.defenses.budgets import BUDGETS
from sapper.encoders.options import Opening
from sapper.pretraining.supervised import Supervised
from sapper.running import Run
from tests.micro import write_data
from tests.program import Sapper, told
from tests.test_cli import PROGRAM, _hear_interrupts
from tests.test_encoder_inversion import Planted

QUICK = BUDGETS["quick"]
FILES = {"audit.html", "audit.json", "audit.sarif", "audit.cdx.json", "audit.md", "triggers.safetensors"}


CODE = ("--trust-code", "--size", 16)
"""How an encoder is opened that a function makes."""

BACKDOORED = f"{__name__}:backdoored"
"""One that draws all images with a white square to one point."""


def backdoored() -> nn.Module:
    return Planted(gain=30.0)


MAKES = """
import time
import torch

class Own(torch.nn.Module):
    \"""Features are the colors of squares; shown more images than when it is opened, it does something else.\"""

    def __init__(self, squares):
        super().__init__()
        self.squares = torch.nn.Parameter(torch.tensor(squares), requires_grad=False)

    def forward(self, images):
        if len(images) > 2:
            {does}
        return torch.nn.functional.adaptive_avg_pool2d(images, int(self.squares)).flatten(1)

def make():
    return Own(4)

def other():
    return Own(3)
"""


def own_code(folder: Path, does: str) -> str:
    """A module in the folder, with encoders that do this when detectors look at them: its name."""
    (folder / f"{folder.name}.py").write_text(MAKES.format(does=does))
    return folder.name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, an encoder, and bags beside which the backdoored one looks suspicious or ordinary."""
    folder = tmp_path_factory.mktemp("audits")
    write_data(folder)
    subject = encoders.build(Run(seed=1), architecture="resnet10", width=4, input_size=16)
    encoders.save(subject, folder / "subject.safetensors")
    images = datasets.load(f"{folder}/photos", "train", size=16)
    key = Key.of(encoders.open(BACKDOORED, Run(), Opening(trust_code=True, size=16)), images, QUICK)
    for name, score in (("suspicious", -1e6), ("ordinary", 1e6)):
        bag = Bag(name=name, key=key, pretraining="made up", images="photos", scores={"multi_prior": [score] * 40})
        write_bag(bag, folder / f"{name}.json")
    return folder


def words(place: Path, out: Path, *more: str | Path | int, subject: str | None = None) -> list[str | Path | int]:
    """An audit of the encoder there, or of one that a function makes."""
    how = CODE if subject else ()
    common = ("--images", place / "photos", "--device", "cpu", "--out", out)
    return ["audit", subject or place / "subject.safetensors", *common, *how, *more]


@pytest.mark.parametrize(
    ("bag", "fail_on", "code", "verdict"),
    [
        ("suspicious", "undecided", 1, "backdoor"),
        ("suspicious", "backdoor", 1, "backdoor"),
        ("ordinary", "undecided", 0, "no-evidence"),
        (None, "undecided", 3, "undecided"),
        (None, "backdoor", 0, "undecided"),
    ],
)
def test_exit_codes_say_the_verdict(
    sapper: Sapper,
    place: Path,
    tmp_path: Path,
    bag: str | None,
    fail_on: str,
    code: int,
    verdict: str,
) -> None:
    beside = ("--bag", place / f"{bag}.json") if bag else ()
    end = sapper(*words(place, tmp_path / "out", "--fail-on", fail_on, *beside, subject=BACKDOORED))
    assert end.code == code, end.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert content["verdict"] == verdict
    assert content["encoder"]["opened"] == BACKDOORED
    assert content["command"].startswith("sapper audit ")
    assert content["environment"]["number format"] == content["number_format"]
    assert content["environment"]["why this format"]
    assert end.out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'audit.html'}"


def test_an_audit_that_fails_leaves_no_earlier_verdict(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    """Whoever takes up the folder afterwards, a workflow say, must not find another encoder's."""
    assert sapper(*words(place, tmp_path)).code == 3
    assert sapper("replay", tmp_path / "audit.json", "--images", place / "balls", "--device", "cpu").code == 0
    (tmp_path / "notes.txt").write_text("mine")
    common: list[str | Path] = ["--images", place / "photos", "--device", "cpu", "--out", tmp_path]
    assert "no such file" in told(sapper("audit", place / "absent.safetensors", *common))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "audit.json").mkdir()
    assert "cannot be replaced" in told(sapper(*words(place, tmp_path)))


def test_a_replay_of_the_same_and_of_another_file(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    sapper(*words(place, tmp_path))
    end = sapper("replay", tmp_path / "audit.json", "--images", place / "balls", "--device", "cpu")
    assert end.code == 0, end.err
    assert "control, gray" in end.out
    measured = json.loads((tmp_path / "replay.json").read_text())
    assert measured["replays"][0]["trigger"]["images"] == measured["images"]["n"] == 45
    assert measured["command"].startswith("sapper replay ")
    same = sapper("replay", tmp_path / "audit.json", "--images", place / "photos", "--device", "cpu")
    assert "these are the images that the trigger was found with" in same.out
    content = json.loads((tmp_path / "audit.json").read_text())
    (tmp_path / "audit.json").write_text(json.dumps(content | {"encoder": content["encoder"] | {"sha256": "0" * 64}}))
    refused = sapper("replay", tmp_path / "audit.json", "--images", place / "balls", "--device", "cpu")
    assert "not the file that was audited" in told(refused)
    elsewhere = {"opening": {"uri": "moved.safetensors"}}
    (tmp_path / "audit.json").write_text(json.dumps(content | elsewhere))
    assert "--encoder" in told(sapper("replay", tmp_path / "audit.json", "--images", place / "balls"))
    (tmp_path / "audit.json").write_text(json.dumps(content | {"encoder": content["encoder"] | {"sha256": "0" * 64}}))
    meant = ("--encoder", place / "subject.safetensors")
    assert sapper("replay", tmp_path / "audit.json", "--images", place / "balls", *meant).code == 0


def test_the_audited_file_is_replayed_as_it_was_opened_wherever_it_lies(
    sapper: Sapper, place: Path, tmp_path: Path
) -> None:
    said = ("--mean", "0.1,0.2,0.3", "--std", "0.5,0.5,0.5")
    assert sapper(*words(place, tmp_path, *said)).code == 3
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((place / "subject.safetensors").read_bytes())
    replay = ("replay", tmp_path / "audit.json", "--images", place / "balls", "--device", "cpu")

    def mean(*more: str | Path) -> list[float]:
        assert sapper(*replay, *more).code == 0
        found: list[float] = json.loads((tmp_path / "replay.json").read_text())["encoder"]["mean"]
        return found

    assert mean() == mean("--encoder", moved) == [0.1, 0.2, 0.3]
    assert mean("--encoder", moved, "--mean", "0.4,0.5,0.6") == [0.4, 0.5, 0.6]
    encoders.save(encoders.build(Run(seed=2), architecture="resnet10", width=4, input_size=16), moved)
    elsewhere = tmp_path / "elsewhere.json"
    end = sapper(*replay, "--encoder", moved, "--out", elsewhere)
    assert "which is not the file that was audited" in end.out
    assert json.loads(elsewhere.read_text())["encoder"]["mean"] != [0.1, 0.2, 0.3]
    assert json.loads((tmp_path / "replay.json").read_text())["encoder"]["mean"] == [0.4, 0.5, 0.6]


@pytest.mark.slow
def test_a_bag_that_is_named_and_does_not_fit_is_told_before_the_search(
    sapper: Sapper, place: Path, tmp_path: Path
) -> None:
    unfit = replace(read_bag(place / "ordinary.json"), name="unfit")
    write_bag(replace(unfit, key=replace(unfit.key, width=5)), tmp_path / "unfit.json")
    end = sapper(*words(place, tmp_path / "out", "--bag", tmp_path / "unfit.json"))
    assert end.code == 3
    assert "note: the audit will be undecided: no bag of known-clean encoders fits" in " ".join(end.err.split())
    assert "note" not in sapper(*words(place, tmp_path / "out")).err


def test_an_interrupt_is_told(sapper: Sapper, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subject = f"{own_code(tmp_path, 'raise KeyboardInterrupt')}:make"
    end = sapper(*words(place, tmp_path / "out", subject=subject))
    assert end.code == 130
    assert not (tmp_path / "out").exists()
    assert "interrupted; the same command goes on from what was searched" in end.err


def test_an_encoder_cannot_hide_behind_features_that_nobody_can_measure(
    sapper: Sapper, place: Path, tmp_path: Path
) -> None:
    """Without a bag nobody can say anything, and a job may go on; with one only the encoder is to blame."""
    subject = encoders.load(place / "subject.safetensors", Run())
    with torch.no_grad():
        for parameter in subject.backbone.layer4[-1].bn2.parameters():  # type: ignore[operator, union-attr, index]
            parameter.mul_(1e22)
    huge = tmp_path / "huge.safetensors"
    encoders.save(subject, huge)
    common = ("--images", place / "photos", "--device", "cpu", "--fail-on", "backdoor", "--out", tmp_path / "out")
    budget = BUDGETS["quick"]
    key = Key.of(subject, datasets.load(f"{place}/photos", "train", size=16), budget)
    bag = Bag(name="fitting", key=key, pretraining="", images="", scores={"multi_prior": [0.0] * 40})
    write_bag(bag, tmp_path / "fitting.json")
    end = sapper("audit", huge, *common, "--bag", tmp_path / "fitting.json")
    assert end.code == 3, end.err
    assert "gave no score" in end.out
    assert sapper("audit", huge, *common).code == 0


def test_a_claimed_base_is_compared(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    end = sapper(*words(place, tmp_path, "--base", place / "subject.safetensors"))
    assert end.code == 3
    findings = {each["method"]: each for each in json.loads((tmp_path / "audit.json").read_text())["detectors"]}
    assert findings["differential"]["score"] == 0.0
    assert findings["differential"]["evidence"]["same_tensors"] == findings["differential"]["evidence"]["tensors"]


@pytest.mark.slow
def test_calibrate_makes_a_bag_that_fits_the_audit(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.mkdir()
    for seed in (11, 12):
        encoder = encoders.build(Run(seed=seed), architecture="resnet10", width=4, input_size=16)
        encoders.save(encoder, known / f"{seed}.safetensors")
    images = ("--images", place / "photos", "--device", "cpu")
    bag = tmp_path / "bag.json"
    end = sapper("calibrate", "--encoders", known, *images, "--out", bag, "--pretraining", "none at all")
    assert end.code == 0, end.err
    made = read_bag(bag)
    assert (made.size, len(made.gathered["multi_prior"])) == (2, 2)
    assert all(share is not None for share in made.gathered["multi_prior"])
    report = sapper(*words(place, tmp_path / "out", "--bag", bag, "--false-alarms", "0.4"))
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    suspicious = content["p_value"] <= 0.4 and content["detectors"][0]["flagged"]
    assert report.code == (1 if suspicious else 0), report.err
    assert content["bags"][0]["pretraining"] == "none at all"
    assert content["p_value"] in (1 / 3, 2 / 3, 1.0)
    assert content["detectors"][0]["in_clean"]["encoders"] == 2
    assert "in 2 known-clean encoders the same search reaches" in report.out
    assert sapper(*words(place, tmp_path / "out", "--bag", bag)).code == 3
    assert "of the 19 encoders" in json.loads((tmp_path / "out" / "audit.json").read_text())["reason"]
    (known / "copy.safetensors").write_bytes((known / "11.safetensors").read_bytes())
    assert "these are the weights of" in told(sapper("calibrate", "--encoders", known, *images, "--out", bag))
    (known / "copy.safetensors").unlink()
    assert "this is a folder" in told(sapper("calibrate", "--encoders", known, *images, "--out", known))
    other = encoders.build(Run(seed=1), architecture="resnet10", width=8, input_size=16)
    encoders.save(other, known / "other.safetensors")
    assert "other width, feature size" in told(sapper("calibrate", "--encoders", known, *images, "--out", bag))


def test_bags_that_are_named_are_asked_instead_of_those_that_ship(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    """None fits, and the nearest is told; the one that is named is further away than any that ships."""
    far = Key(
        architecture="none",
        width=1,
        stem="none",
        feature_size=1,
        input_size=1,
        images="none",
        budget="none",
        detectors={"none": {}},
    )
    write_bag(Bag(name="far", key=far, pretraining="", images="none", scores={"none": [0.0]}), tmp_path / "far.json")

    def nearest(*more: str | Path) -> str:
        assert sapper(*words(place, tmp_path / "out", *more)).code == 3
        reason: str = json.loads((tmp_path / "out" / "audit.json").read_text())["reason"]
        return reason.partition("the nearest, '")[2].partition("'")[0]

    assert nearest() in {bag.name for bag in shipped_bags()}
    assert nearest("--bag", tmp_path / "far.json") == "far"


def test_all_bags_that_fit_must_find_it_unusual(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    both = ("--bag", place / "suspicious.json", "--bag", place / "ordinary.json")
    assert sapper(*words(place, tmp_path, *both, subject=BACKDOORED)).code == 0


def test_a_bag_that_could_not_be_read_again_is_not_begun(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    common = ("calibrate", "--encoders", place / "subject.safetensors", "--images", place / "photos")
    for more in (
        ("--out", tmp_path / "my\\bag.json"),
        ("--out", tmp_path / "\x1b[2Jbag.json"),
        ("--out", tmp_path / "bag.json", "--pretraining", "SimCLR\udcff"),
    ):
        assert "a bag cannot name" in told(sapper(*common, *more))
    assert not list(tmp_path.iterdir())


def test_calibrate_looks_at_all_encoders_before_it_measures_one(
    sapper: Sapper, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first would fail as soon as a detector looked at it; that the second is of another kind is told before."""
    monkeypatch.chdir(tmp_path)
    module = own_code(tmp_path, "raise AssertionError('too early')")
    named = ("--encoders", f"{module}:make", "--encoders", f"{module}:other")
    common = ("--images", place / "photos", "--device", "cpu", "--out", tmp_path / "bag.json")
    assert f"than {module}:make" in told(sapper("calibrate", *named, *CODE, *common))
    alone = sapper("calibrate", *named[:2], *CODE, *common)
    assert (alone.code, "too early" in alone.err) == (2, True)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--budget", "quik"), "quick"),
        (("--fail-on", "never"), "backdoor or undecided"),
        (("--false-alarms", "1.5"), "from 1e-06 to 1"),
        (("--false-alarms", "1e-320"), "from 1e-06 to 1"),
        (("--mean", "0.5,0.5"), "three numbers"),
        (("--std", "0.2,0.2,0"), "three numbers"),
        (("--arch", "resnet11"), "resnet"),
        (("--bag", "absent.json"), "no bag can be read"),
        (("--learned", "absent.safetensors"), "nothing that was learned can be read"),
        (("--base", "timm:resnet5O"), "resnet50"),
        (("--split", "tset"), "tset"),
        (("--device", "tpu"), "use cpu or auto"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    sapper: Sapper, place: Path, tmp_path: Path, more: tuple[str, ...], expected: str
) -> None:
    assert expected in told(sapper(*words(place, tmp_path / "out", *more)))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_images_and_encoders_that_are_not_there_are_told(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out", "--device", "cpu")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    subject = place / "subject.safetensors"
    for images, expected in (
        (tmp_path / "empty", "no image"),
        (tmp_path / "broken", "a.png"),
        ("objcts", "objects"),
        (place / "absent", "absent"),
    ):
        assert expected in told(sapper("audit", subject, "--images", images, *out))
    assert "too long" in told(sapper("audit", "a" * 300 + ".pth", "--images", place / "photos", *out))
    for name, expected in (("subject.safetensor", "there is no such file"), ("tim:resnet50", "timm")):
        assert expected in told(sapper("audit", name, "--images", place / "photos", *out))
    assert sapper("audit", subject, *out).code == 2  # --images is required


def _ascii() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def _full() -> TextIO:
    return Path("/dev/full").open("w")


def _unread() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize("stream", [_ascii, _full, _unread])
def test_a_verdict_stands_whether_or_not_it_can_be_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Callable[[], TextIO]
) -> None:
    monkeypatch.setattr(cli.out, "quiet", False)
    streams = stream(), _full()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    bag = ("--bag", place / "suspicious.json")
    called = words(place, tmp_path / "out", *bag, subject=BACKDOORED)
    monkeypatch.setattr(sys, "argv", ["sapper", *map(str, called)])
    with pytest.raises(SystemExit) as end:
        main()
    monkeypatch.undo()
    for each in streams:
        each.close()
    assert end.value.code == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["verdict"] == "backdoor"


def test_what_was_skipped_is_told_and_recorded(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "train"
    photos.mkdir(parents=True)
    for row, image in enumerate(datasets.load(f"{place}/photos", "train", size=16).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(photos / f"{row}.png")
    (photos / "notes.txt").write_text("x")
    (photos / "half.png").write_bytes(b"x")
    end = sapper("audit", place / "subject.safetensors", "--images", photos, "--device", "cpu", "--out", tmp_path / "o")
    assert end.code == 3, end.err
    notes = json.loads((tmp_path / "o" / "audit.json").read_text())["images"]["notes"]
    assert len(notes) == 2
    for note in notes:
        assert f"note: {note}" in end.err


@pytest.mark.parametrize(
    "crash",
    [
        "ZeroDivisionError('somewhere deep')",
        "EOFError",
        f"BrokenPipeError({errno.EPIPE}, 'pipe')",
        f"PermissionError({errno.EACCES}, 'disk')",
        "SystemExit(0)",
        "SystemExit(3)",
        "ImportError('half an installation')",
        "RecursionError",
        "MemoryError",
    ],
)
def test_a_crash_is_no_verdict(
    sapper: Sapper, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    """Python's own exit code for a crash is 1, which would say: backdoor; code of others may call ``sys.exit(0)``."""
    monkeypatch.chdir(tmp_path)
    end = sapper(*words(place, tmp_path / "out", subject=f"{own_code(tmp_path, f'raise {crash}')}:make"))
    assert end.code == 2
    assert "error" in end.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_a_signal_is_no_verdict(place: Path, tmp_path: Path, number: int, code: int) -> None:
    """The encoder says when it is looked at and takes its time: when the signal comes is then known."""
    module = own_code(tmp_path, "print('looking', flush=True); time.sleep(60)")
    command = [*PROGRAM, *map(str, words(place, tmp_path / "out", subject=f"{module}:make"))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": tmp_path}
    with subprocess.Popen(command, **pipes, preexec_fn=_hear_interrupts) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "looking\n"
        process.send_signal(number)
        assert process.wait(60) == code
    assert not (tmp_path / "out").exists()


def test_a_name_in_another_encoding_is_told_or_written(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    """The safetensors library does not open such a file; a folder for the reports may be called like that."""
    odd = tmp_path / os.fsdecode(b"enc\xff.safetensors")
    odd.write_bytes((place / "subject.safetensors").read_bytes())
    assert "not valid UTF-8" in told(sapper("audit", odd, "--images", place / "photos", "--out", tmp_path / "out"))
    folder = tmp_path / os.fsdecode(b"out\xff")
    assert sapper(*words(place, folder)).code == 3
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_normalization_that_makes_all_images_alike_is_refused(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    """A card is the attacker's: with a deviation of a million no trigger moves anything."""
    subject = encoders.build(Run(seed=1), architecture="resnet10", width=4, input_size=16, std=(1e6, 1e6, 1e6))
    encoders.save(subject, tmp_path / "flat.safetensors")
    out = ("--out", tmp_path / "out", "--images", place / "photos")
    assert "leaves nothing of images" in told(sapper("audit", tmp_path / "flat.safetensors", *out))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["random", "supervised"])
def test_what_is_no_backdoor_does_not_come_out_as_one(sapper: Sapper, tmp_path: Path, weights: str) -> None:
    """Random weights and a supervised classifier's body, beside the bags that come with sapper."""
    encoder = encoders.build(Run(seed=8), architecture="resnet10", width=16)
    if weights == "supervised":
        Supervised(epochs=8, batch=128, crop_scale=0.5)(encoder, datasets.load("objects", "train"), Run(seed=8))
    encoders.save(encoder, tmp_path / "subject.safetensors")
    out = ("--out", tmp_path / "out", "--images", "objects", "--device", "cpu")
    assert sapper("audit", tmp_path / "subject.safetensors", *out).code == 0


def test_a_network_that_would_not_be_the_files_is_not_audited(tmp_path: Path, sapper: Sapper) -> None:
    """Side branches in every block: what could be built would compute something else, and get a verdict."""
    state = encoders.build(Run(), architecture="resnet10", width=4).backbone.state_dict()
    branches = {f"layer{i}.0.se.fc.0.weight": torch.ones(2, 2 * 2**i) for i in range(1, 5)}
    path = tmp_path / "encoder.safetensors"
    whole = {name: value.contiguous() for name, value in (state | branches).items()}
    safetensors.torch.save_file(whole, path)
    out = tmp_path / "out"
    said = told(sapper("audit", path, "--images", "objects", "--out", out))
    assert "squeeze-and-excitation" in said
    assert "layer1.0.se.fc.0.weight" in said
    assert not (out / "audit.json").exists()
