"""Networks of a user's own making: functions that return them, files of their weights, and names that differ."""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapper import encoders, opening
from sapper.audits.calibration import Key
from sapper.defenses.budgets import BUDGETS
from sapper.encoders import Opening
from sapper.encoders.keys import new_names, read_keys
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from tests.program import Sapper

RUN = Run()

NETS = """
import torch

class Small(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, width, 3)
        self.norm = torch.nn.BatchNorm2d(width)
        self.fc = torch.nn.Linear(width, 5)

    def forward(self, images):
        return self.fc(self.norm(self.stem(images)).mean((2, 3)))

def small(width=6):
    torch.manual_seed(3)
    net = Small(width)
    net.fc = torch.nn.Identity()
    return net

def wide():
    return small(8)

def named():
    net = small()
    net.architecture = "smallnet"
    return net
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with ``own_nets.py`` and the state dict of one of its classifiers, other weights than it draws."""
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_nets", None)


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Those of a classifier of ``Small(6)``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"stem.weight": (6, 3, 3, 3), "stem.bias": (6,), "fc.weight": (5, 6), "fc.bias": (5,)}
    shapes |= dict.fromkeys(("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"), (6,))
    drawn = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return drawn | {"norm.num_batches_tracked": torch.tensor(7)}


def features(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What ``Small`` computes, written out."""
    maps = torch.nn.functional.conv2d(images, tensors["stem.weight"], tensors["stem.bias"])
    shape = (1, -1, 1, 1)
    scale = tensors["norm.weight"] / (tensors["norm.running_var"] + 1e-5).sqrt()
    maps = (maps - tensors["norm.running_mean"].view(shape)) * scale.view(shape) + tensors["norm.bias"].view(shape)
    return maps.mean((2, 3))


OWN = Opening(architecture="own_nets:small", trust_code=True, size=12)


@pytest.mark.parametrize("deep", [False, True])
def test_a_files_weights_fill_the_network_that_a_function_returns(place: Path, deep: bool) -> None:
    state = weights()
    torch.save({"model": state, "epoch": 3} if deep else state, place / "w.pth")
    opened = encoders.open("w.pth", RUN, OWN)
    images = torch.rand(4, 3, 12, 12)
    assert torch.allclose(opened(images), features(state, images), atol=1e-6)
    assert opened.card.network.startswith("code:Small, structure=")
    assert "own_nets:small" in opened.card.origin["recognized"][-1]
    assert opened.card.origin["left_out"][0].startswith("2 tensors: a classifier or head")
    assert opened.card.origin["normalization"] == "none: images in [0, 1]"


def test_what_the_network_lacks_or_the_file_lacks_refuses_it() -> None:
    torch.save(weights() | {"stem.extra": torch.ones(2)}, "more.pth")
    with pytest.raises(SapperError, match=r"would be left out: stem.extra"):
        encoders.open("more.pth", RUN, OWN)
    less = weights()
    del less["stem.bias"]
    torch.save(less, "less.pth")
    with pytest.raises(SapperError, match=r"stem.bias is missing"):
        encoders.open("less.pth", RUN, OWN)


def test_code_behind_arch_runs_only_when_that_is_said() -> None:
    torch.save(weights(), "w.pth")
    with pytest.raises(SapperError, match="--trust-code"):
        encoders.open("w.pth", RUN, Opening(architecture="own_nets:small", size=12))
    assert "own_nets" not in sys.modules


def test_a_network_of_ones_own_takes_no_options_of_known_ones() -> None:
    torch.save(weights(), "w.pth")
    with pytest.raises(SapperError, match="--heads says nothing about a network of your own"):
        encoders.open("w.pth", RUN, Opening(architecture="own_nets:small", trust_code=True, size=12, heads=3))
    with pytest.raises(SapperError, match="say it with --size"):
        encoders.open("w.pth", RUN, Opening(architecture="own_nets:small", trust_code=True))


def test_encoders_of_one_kind_share_a_key_wherever_their_weights_are_from() -> None:
    torch.save(weights(), "w.pth")
    images = ImageSet(images=torch.zeros(4, 3, 12, 12, dtype=torch.uint8), name="none")

    def key(uri: str, opening: Opening) -> Key:
        return Key.of(encoders.open(uri, RUN, opening), images, BUDGETS["quick"])

    of_code = Opening(trust_code=True, size=12)
    assert key("w.pth", OWN) == key("own_nets:small", of_code)
    assert key("own_nets:wide", of_code).differs(key("own_nets:small", of_code)) == ["architecture", "feature size"]
    assert key("own_nets:named", of_code).architecture.startswith("code:smallnet, structure=")


def test_a_saved_one_opens_again_with_its_function_and_keeps_its_card() -> None:
    torch.save(weights(), "w.pth")
    encoder = encoders.open("w.pth", RUN, Opening(**vars(OWN) | {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}))
    encoder.marked(backdoored=True, origin={"made": "by a test"})
    encoders.save(encoder, "own-BACKDOORED.safetensors")
    with pytest.raises(SapperError, match=r"somebody's own making, Small\n.*--arch package.module:function"):
        encoders.open("own-BACKDOORED.safetensors", RUN)
    again = encoders.open("own-BACKDOORED.safetensors", RUN, Opening(architecture="own_nets:small", trust_code=True))
    images = torch.rand(3, 3, 12, 12)
    assert torch.equal(again(images), encoder(images))
    assert again.card.backdoored
    assert again.card.pixels == encoder.card.pixels
    assert again.card.origin["made"] == "by a test"


def test_a_bag_of_networks_of_ones_own(sapper: Sapper) -> None:
    for seed in range(3):
        torch.save(weights(seed), f"w{seed}.pth")
    how = ("--arch", "own_nets:small", "--trust-code", "--size", 12, "--images", "objects", "--device", "cpu")
    made = sapper("calibrate", "--encoders", "w0.pth", "--encoders", "w1.pth", *how, "--out", "own.json")
    assert made.code == 0, made.err
    audited = sapper("audit", "w2.pth", *how, "--bag", "own.json")
    assert audited.code == 3
    assert "'own' has 2 of the 19 encoders" in " ".join(audited.out.split())


def test_an_unknown_file_is_told_how_a_function_is_written() -> None:
    torch.save(weights(), "w.pth")
    with pytest.raises(SapperError) as caught:
        encoders.open("w.pth", RUN)
    text = str(caught.value)
    for each in ("def net():", "--arch nets:net --trust-code", "--keys"):
        assert each in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_numbers_of_another_kind_are_one_clear_error() -> None:
    torch.save(weights() | {"stem.bias": torch.arange(6)}, "w.pth")
    with pytest.raises(SapperError, match=r"stem.bias is torch.int64, not torch.float32"):
        encoders.open("w.pth", RUN, OWN)


def test_options_without_effect_are_refused() -> None:
    encoder = encoders.build(Run(seed=1), architecture="resnet10", width=4)
    encoders.save(encoder, "ours.safetensors")
    for uri, how in (
        ("ours.safetensors", Opening(keys=(("a", "b"),))),
        ("own_nets:small", Opening(trust_code=True, size=12, keys=(("a", "b"),))),
        ("own_nets:small", Opening(trust_code=True, size=12, leave_out=("fc",))),
    ):
        with pytest.raises(SapperError, match=r"--(keys|leave-out) "):
            encoders.open(uri, RUN, how)


def test_a_card_says_what_its_architecture_leaves_open() -> None:
    """Heads of a vision transformer are in no shape: with others it would be another network."""
    arguments = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 6}
    name = "timm:vit_tiny_patch16_224"
    encoder = encoders.build(RUN, architecture=name, stem="imagenet", input_size=16, arguments=arguments).eval()
    encoders.save(encoder, "vit.safetensors")
    opened = encoders.open("vit.safetensors", RUN, Opening(architecture=name))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(opened(images), encoder(images))


def test_a_network_that_fails_without_a_word_is_one_clear_error() -> None:
    Path("own_silent.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        assert x.shape[-1] == 64\n"
    )
    with pytest.raises(SapperError, match=r"does not take images of 12×12 pixels: AssertionError"):
        encoders.open("own_silent:Net", RUN, Opening(trust_code=True, size=12))


# names that differ


def test_names_change_as_is_said_and_the_network_is_the_same() -> None:
    state = weights()
    torch.save({f"net.{name.replace('stem', 'first')}": value for name, value in state.items()}, "renamed.pth")
    with pytest.raises(SapperError) as caught:
        encoders.open("renamed.pth", RUN, OWN)
    assert "stem.weight 6×3×3×3   net.first.weight" in str(caught.value)
    assert "--keys OLD=NEW" in (caught.value.remedy or "")
    opened = encoders.open("renamed.pth", RUN, Opening(**vars(OWN) | {"keys": (("net.first", "net.stem"),)}))
    images = torch.rand(2, 3, 12, 12)
    assert torch.allclose(opened(images), features(state, images), atol=1e-6)
    assert opened.card.origin["recognized"][0] == "names of 2 tensors changed as was said (--keys)"


def test_a_table_pairs_names_of_equal_shapes_by_their_last_words() -> None:
    other = {name.replace("stem", "first").replace("norm", "bn"): value for name, value in weights().items()}
    torch.save({f"x.{name}": value for name, value in other.items() if name != "bn.running_var"}, "part.pth")
    with pytest.raises(SapperError) as caught:
        encoders.open("part.pth", RUN, OWN)
    rows = [line.split() for line in caught.value.lines]
    assert ["stem.weight", "6×3×3×3", "x.first.weight"] in rows
    assert ["norm.running_mean", "6", "x.bn.running_mean"] in rows
    assert ["norm.running_var", "6", "–"] in rows


def test_a_bad_table_of_names_is_one_clear_error() -> None:
    torch.save(weights(), "w.pth")
    for keys, message in (
        ((("steem", "stem"),), r"begins with 'steem'\n.*did you mean stem"),
        ((("stem.weight", "stem.bias"),), r"stem.* and stem.* would both be called stem.bias"),
        ((("stem.weight", ""),), "stem.weight would have no name"),
        ((("stem", "a"), ("stem.weight", "b")), "are changed by a pair before it"),
    ):
        with pytest.raises(SapperError, match=message):
            encoders.open("w.pth", RUN, Opening(**vars(OWN) | {"keys": keys}))


def test_keys_are_read_from_words_and_files(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"a.b": "c", "d": ""}))
    assert read_keys(["x=y", str(file)]) == (("x", "y"), ("a.b", "c"), ("d", ""))
    for said, message in (
        ("x", "says no new name"),
        ("=y", "nothing to change"),
        ("a=b.*", "more \\* than"),
        (str(tmp_path / "none.json"), "none.json"),
    ):
        with pytest.raises(SapperError, match=message):
            read_keys([said])
    for content in ("[1]", "{", '{"a": 1}', '{"a": "b", "a": "c"}', '{"a=b": "c"}'):
        file.write_text(content)
        with pytest.raises(SapperError, match=r"names\.json"):
            read_keys([str(file)])


def test_names_by_hand() -> None:
    names = ["module.layer1.0.conv_a.weight", "module.layer1.1.conv_a.weight", "module.head.bias", "modular.x"]
    keys = (("module.*.*.conv_a", "*.*.conv1"), ("module", ""))
    assert list(new_names(names, keys, "file").values()) == [
        "layer1.0.conv1.weight",
        "layer1.1.conv1.weight",
        "head.bias",
        "modular.x",
    ]


WORD = st.sampled_from(["a", "b", "c", "0", "1"])
NAMES = st.lists(st.lists(WORD, min_size=1, max_size=4).map(".".join), min_size=1, max_size=8, unique=True)


@given(NAMES, st.data())
def test_a_renaming_and_its_way_back_leave_all_names(names: list[str], data: st.DataObject) -> None:
    old = data.draw(st.sampled_from(names)).split(".")[0]
    there = new_names(names, ((old, "fresh.place"),), "file")
    back = new_names(list(there.values()), (("fresh.place", old),), "file")
    assert [back[new] for new in there.values()] == names
    assert all(new.startswith("fresh.place") == (name.split(".")[0] == old) for name, new in there.items())


def test_the_command_takes_keys_and_a_replay_needs_no_file_of_them(sapper: Sapper) -> None:
    torch.save({name.replace("stem", "first"): value for name, value in weights().items()}, "renamed.pth")
    Path("names.json").write_text('{"first": "stem"}')
    how = ("--images", "objects", "--device", "cpu")
    own = ("--arch", "own_nets:small", "--trust-code", "--size", 12, "--keys", "names.json")
    assert sapper("audit", "renamed.pth", *own, *how).code == 3
    Path("names.json").unlink()
    assert json.loads(Path("runs/audit/audit.json").read_text())["opening"]["keys"] == ["first=stem"]
    again = sapper("replay", "runs/audit/audit.json", "--trust-code", *how)
    assert again.code == 0, again.err
    content = json.loads(Path("runs/audit/audit.json").read_text())
    content["opening"]["keys"] = [1]
    Path("runs/audit/audit.json").write_text(json.dumps(content))
    assert "no audit can be read" in sapper("replay", "runs/audit/audit.json", "--trust-code", *how).err


def test_python_has_the_same() -> None:
    torch.save({f"a.{name}": value for name, value in weights().items()}, "w.pth")
    opened = opening.open("w.pth", architecture="own_nets:small", trust_code=True, size=12, keys=(("a", ""),))
    assert opened.feature_size == 6
