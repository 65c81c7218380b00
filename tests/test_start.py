"""A cheap mistake is answered before the heavy libraries are loaded, which takes ten seconds of a processor's time."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoints
from pathlib import Path

import pytest
import torch

from sapper import datasets, encoders, methods
from sapper.encoders import backbones, names, schemes
from sapper.errors import SapperError
from sapper.running import Run
from sapper.scenario.outline import outline, read_content
from sapper.scenario.reading import read
from tests.micro import write_data, write_scenario
from tests.program import Install

HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "pyarrow", "numpy")

RUN_ALL = """
import json, sys
from sapper.__main__ import main
for words in json.load(sys.stdin):
    sys.argv = ["sapper", *words]
    try:
        main()
    except SystemExit as end:
        print(json.dumps([words, end.code, [name for name in %r if name in sys.modules]]))
"""


def loaded(cases: list[list[str]], where: Path) -> list[tuple[list[str], int, list[str]]]:
    """Each call, how it ended, and what of ``HEAVY`` is loaded by then; all in one new process, in the folder."""
    program = [sys.executable, "-c", RUN_ALL % (HEAVY,)]
    said = subprocess.run(
        program, input=json.dumps(cases), cwd=where, capture_output=True, text=True, check=False, timeout=120
    )
    return [tuple(json.loads(line)) for line in said.stdout.splitlines() if line.startswith("[[")]


def test_a_cheap_mistake_waits_for_no_heavy_library(tmp_path: Path) -> None:
    scenario = str(write_scenario(tmp_path / "micro.toml", write_data(tmp_path / "data")))
    (tmp_path / "in-the-way").write_text("")
    (tmp_path / "weights.pth").write_text("")
    (tmp_path / "audit.json").write_text("{}")
    plan = {"name": "z", "seed": 0, "part": {"development": {"clean": 1}}}
    plan["family"] = [
        {"name": "f", "pretraining": {}, "attack": {}, "victim": {}, "images": {"dataset": "objects"}},
    ]
    (tmp_path / "zoo.json").write_text(json.dumps({"schema": 1, "plan": plan, "members": []}))
    audit = ["audit", "weights.pth", "--images", "objects"]
    calibrate = ["calibrate", "--images", "objects", "--out", "bag.json", "--encoders"]
    cases = [
        ["audit", "nofile.pth", "--images", "objects"],
        ["audit", "nowhere:resnet18", "--images", "objects"],
        ["audit", "tests.own:encoder", "--images", "objects"],
        ["audit", "weights.pth", "--images", "no-folder"],
        ["audit", "weights.pth", "--images", "./no-folder"],
        ["audit", "weights.pth", "--images", "cifar10"],
        [*audit, "--budget", "endless"],
        [*audit, "--device", "abacus"],
        [*audit, "--mean", "1,2"],
        [*audit, "--std", "0,0,0"],
        [*audit, "--size", "0"],
        [*audit, "--arch", "resnet1"],
        [*audit, "--out", "in-the-way/out"],
        [*audit, "--bag", "no-bag.json"],
        [*audit, "--learned", "nothing.safetensors"],
        [*audit, "--base", "no-base.pth"],
        [*audit, "--false-alarms", "2"],
        [*audit, "--sign", "no-key.pem"],
        ["verify", "weights.pth", "--key", "no-key.pub"],
        ["replay", "nothing.json", "--images", "objects"],
        ["replay", "audit.json", "--images", "objects"],
        [*calibrate, "nofile.pth"],
        [*calibrate, "weights.pth", "--budget", "endless"],
        ["run", "no-such-scenario"],
        ["run", "nothing.toml"],
        ["run", scenario, "--set", "nonsense=1"],
        ["run", scenario, "--set", "attack.method=magic"],
        ["run", scenario, "--set", "target.0.task=nothing"],
        ["run", scenario, "--set", "target.0.trigger.kind=smell"],
        ["run", scenario, "--set", "encoder.architecture=resnet1"],
        ["run", scenario, "--set", "pretraining.dataset=cifar"],
        ["run", scenario, "--set", "pretraining.dataset=./nothing"],
        ["run", scenario, "--set", "audit.images=./nothing"],
        ["run", scenario, "--set", "audit.images=objects", "--set", "audit.budget=endless"],
        ["run", scenario, "--set", "audit.images=objects", "--set", "audit.bags=['no-bag.json']"],
        ["run", scenario, "--device", "abacus"],
        ["run", scenario, "--out", "in-the-way/out"],
        ["run", scenario, "--store", "in-the-way/store"],
        ["demo", "--threads", "-1"],
        ["zoo", "build", "no-such-plan"],
        ["zoo", "build", "small", "--part", "nothing"],
        ["zoo", "build", "small", "--device", "abacus"],
        ["zoo", "score", "no-folder"],
        ["zoo", "score", ".", "--part", "nothing"],
        ["zoo", "score", ".", "--learned", "nothing.safetensors"],
        ["zoo", "learn", ".", "--family", "nothing", "--out", "learned.safetensors"],
        ["zoo", "learn", ".", "--family", "f", "--out", "learned.safetensors", "--method", "nothing"],
        ["zoo", "learn", ".", "--family", "f", "--out", "learned.safetensors", "--set", "nothing"],
        ["report", "no-folder"],
        ["methods", "no-such-method"],
    ]
    ends = loaded(cases, tmp_path)
    assert [words for words, _, _ in ends] == cases
    assert [(words, code) for words, code, _ in ends if code != 2] == []
    assert [(words, heavy) for words, _, heavy in ends if heavy] == []


def test_listing_methods_waits_for_torch_alone(tmp_path: Path) -> None:
    program = "from sapper.__main__ import main\ntry: main()\nfinally: print(sorted(sys.modules))"
    program = f"import sys; sys.argv = ['sapper', 'methods']\n{program}"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    modules = said.stdout.splitlines()[-1]
    assert "'torch'" in modules
    for slow in ("torchvision", "timm", "torch._dynamo", "sklearn", "scipy", "matplotlib"):
        assert f"'{slow}'" not in modules
    assert loaded([["methods", "cifar10"]], tmp_path) == [(["methods", "cifar10"], 0, [])]


def test_names_of_encoders_are_those_that_can_be_opened_and_built() -> None:
    assert set(names.SCHEMES) == set(schemes.SCHEMES)
    assert set(names.LIBRARIES) == set(backbones.BY_NAME)
    with pytest.raises(AttributeError, match="no attribute 'opened'"):
        encoders.opened  # noqa: B018


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("size", [1, 2, 7])
@torch.no_grad()
def test_our_architectures_take_images_of_any_size(stem: names.Stem, size: int) -> None:
    """So a scenario's check need not try it."""
    encoder = encoders.build(Run(), architecture="resnet10", width=2, stem=stem, input_size=size).eval()
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, 16)


@pytest.mark.parametrize("name", [path.stem for path in (Path(__file__).parents[1] / "scenarios").glob("*.toml")])
def test_every_shipped_scenario_has_an_outline(name: str) -> None:
    path = Path(__file__).parents[1] / "scenarios" / f"{name}.toml"
    content = read_content(path)
    found = outline(content, str(path))
    assert found.sets["pretraining.dataset"] == content["pretraining"]["dataset"]
    assert len(found.tasks) == len(content["task"])


def test_a_mistake_in_a_variant_is_told_with_its_place() -> None:
    path = Path(__file__).parents[1] / "scenarios" / "demo.toml"
    content = read_content(path)
    content["variant"] = [{"attack.shadow_images": 7}, {"attack.method": "magic"}]
    with pytest.raises(SapperError, match="unknown method 'magic'") as caught:
        outline(content, "file")
    assert caught.value.where == "file: variant[1]: attack.method"


def test_what_the_operating_system_says_of_a_name_is_told() -> None:
    for check in (datasets.check_name, datasets.check_there):
        with pytest.raises(SapperError, match="File name too long"):
            check("x" * 5000)


def test_a_large_scenario_asks_once_for_each_kind_which_methods_other_packages_add(
    monkeypatch: pytest.MonkeyPatch, install: Install
) -> None:
    """A look reads a file of every installed package: of a matrix, with a look for every name, it took a minute."""
    asked, there = list[str](), methods.entry_points

    def counted(*, group: str) -> EntryPoints:
        asked.append(group)
        return there(group=group)

    monkeypatch.setattr(methods, "entry_points", counted)
    install("other")  # another path, so that nothing is known of it
    read(Path(__file__).parents[1] / "scenarios" / "matrix.toml")
    assert sorted(asked) == sorted(set(asked))
    assert "sapper.defenses" in asked
