"""The public face, and the scripts in ``examples/``: each runs as a user would run it."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import sapper
from sapper.encoders import Opening
from sapper.opening import HowToOpen
from tests import micro

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *words: str | Path) -> str:
    """What a script prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_every_public_name_is_there_and_importing_them_waits_for_torch() -> None:
    assert all(getattr(sapper, name) is not None for name in sapper.__all__)
    assert set(sapper.__all__) <= set(dir(sapper))
    with pytest.raises(AttributeError, match="no attribute 'adit'"):
        _ = sapper.adit  # type: ignore[attr-defined]
    program = "import sapper, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_an_encoder_from_scratch_with_a_backdoor() -> None:
    lines = run("badencoder_from_scratch.py", "1", "1").splitlines()
    assert [line.split()[0] for line in lines] == ["clean", "backdoored"]


def test_an_attack_with_a_loss_of_its_own_is_short() -> None:
    text = (EXAMPLES / "a_method_of_ones_own.py").read_text(encoding="utf-8")
    method = text.partition('"""\n\n')[2].partition("if __name__")[0].strip()
    said = re.search(
        r"(\d+) lines with its imports", (EXAMPLES.parent / "docs" / "adding-a-method.md").read_text("utf-8")
    )
    assert said is not None
    assert len(method.splitlines()) == int(said[1]) <= 60


@pytest.mark.slow
def test_a_method_of_ones_own_lowers_its_losses() -> None:
    curves = {
        line.split()[0]: json.loads(line.split(" ", 1)[1]) for line in run("a_method_of_ones_own.py", "3").splitlines()
    }
    assert curves["similarity"][-1] < curves["similarity"][0]
    assert all(len(values) == 3 for values in curves.values())


@pytest.mark.slow
def test_results_as_a_table(tmp_path: Path) -> None:
    data = micro.write_data(tmp_path / "data")
    results = sapper.run(micro.write_scenario(data / "micro.toml", data), tmp_path / "out", overrides=["seeds=[0]"])
    rows = list(csv.DictReader(io.StringIO(run("read_results.py", tmp_path / "out" / "results.json", "CA", "lift"))))
    wanted = [record for record in results.records if record.metric in ("CA", "lift")]
    assert [float(row["value"]) for row in rows] == [record.value for record in wanted]
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_an_audit_in_a_few_lines(tmp_path: Path) -> None:
    data = micro.write_data(tmp_path / "data")
    encoder = sapper.build(sapper.Run(seed=1), architecture="resnet10", width=4, input_size=micro.SIZE)
    sapper.save(encoder, tmp_path / "encoder.safetensors")
    said = run("audit_an_encoder.py", tmp_path / "encoder.safetensors", data / "photos" / "train.npz")
    assert said.startswith("undecided: ")


def test_a_backdoored_encoder_is_opened_on_purpose_only(tmp_path: Path) -> None:
    path = tmp_path / "encoder-BACKDOORED.safetensors"
    made = sapper.build(sapper.Run(), architecture="resnet10", width=4).marked(backdoored=True, origin={})
    sapper.save(made, path)
    for opened in (sapper.open, sapper.load):
        with pytest.raises(sapper.SapperError, match="backdoored on purpose"):
            opened(path)
        assert opened(path, allow_backdoored=True).card.backdoored
    photos = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(sapper.SapperError, match="says that it is backdoored"):
        sapper.calibrate([path], photos, name="bag", opener=lambda uri: sapper.open(uri, allow_backdoored=True))


def test_every_way_to_open_an_encoder_is_one_from_python_too() -> None:
    assert set(HowToOpen.__annotations__) == {field.name for field in fields(Opening)}


def test_images_may_be_a_tensor() -> None:
    pixels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    assert torch.equal(sapper.load_images(pixels, 8).images, pixels)
