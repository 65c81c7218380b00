"""A pre-training that torchrun divides between two processes has the losses of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sapper.engine.stage import Stage
from sapper.running import Run
from sapper.training.shares import in_shares
from tests.test_executors import Say

SCENARIO = """
name = "divided"
seeds = [0]
precision = "float32"

[encoder]
architecture = "resnet10"
width = 4

[pretraining]
dataset = "objects"
images = 99
method = "{method}"
epochs = 2
batch = 33
{more}

[[task]]
dataset = "objects"
train_images = 60
test_images = 60

[[head]]
method = "linear"
primary = true
"""
ALONE = ("-m", "sapper")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sapper")


def curves(folder: Path) -> dict[str, list[float]]:
    series: dict[str, list[float]] = json.loads((folder / "results.json").read_text())["curves"][0]["series"]
    return series


@pytest.mark.slow
@pytest.mark.parametrize(("method", "more"), [("simclr", "view_size = 16"), ("byol", "view_size = 16")])
def test_two_processes_have_the_losses_of_one(tmp_path: Path, method: str, more: str) -> None:
    file = tmp_path / "divided.toml"
    file.write_text(SCENARIO.format(method=method, more=more))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, words in (("one", ALONE), ("two", TWO)):
        command = [sys.executable, *words, "run", str(file), "--out", str(tmp_path / name), "--device", "cpu"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, series in one.items():
        assert two[name] == pytest.approx(series, rel=2e-3), name
    places = [{path.name for path in (tmp_path / name / "store").iterdir()} for name in ("one", "two")]
    assert not any(name.startswith("pretraining") for name in places[0] & places[1]), "nearly the same is another place"


def test_alone_nothing_is_divided() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = torch.randn(5, 3, 8, 8)
    with in_shares(network, Run()):
        assert type(network[1]) is nn.BatchNorm2d
        assert network(images).shape == (5, 4, 6, 6)


def test_the_number_of_processes_is_in_the_place_of_what_they_divide() -> None:
    class Divided(Say):
        divisible = True

    for work, same in ((Say(word="a"), True), (Divided(word="a"), False)):
        one, two = (Stage(work, Run(processes=count), threads=1) for count in (1, 2))
        assert (one.place == two.place) is same
