"""Bags of public models: the lists that come with sapper, what cannot be had, and calls that go on where they were."""

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from sapper import encoders, formats, opening
from sapper.audits import calibrating
from sapper.audits.calibration import Bag, Key, read_bag, write_bag
from sapper.cli.opening import Said, said_in
from sapper.defenses.budgets import BUDGETS
from sapper.encoders import Opening, sources
from sapper.encoders.names import check_architecture, kind_of
from sapper.errors import SapperError
from sapper.running import Run
from tests.micro import write_data
from tests.program import Sapper, told
from tests.test_opening import hub, put_into_hub

__all__ = ["hub"]  # a fixture

RUN = Run()
LISTS = Path(__file__).parent.parent / "zoos" / "public"
FEWEST = {"resnet50": 25, "vit_b_16": 20, "clip_vit_b_16": 10, "clip_vit_b_32": 10}


def entries(path: Path) -> list[tuple[str, list[str], str]]:
    """Name, options and source of each line."""
    found = []
    for line in path.read_text().splitlines():
        name, _, source = line.partition("#")
        if name.strip():
            words = shlex.split(name)
            found.append((words[0], words[1:], source.strip()))
    return found


@pytest.mark.parametrize("name", FEWEST)
def test_a_list_names_models_that_there_are_each_with_its_source(name: str) -> None:
    import open_clip
    import timm

    listed = entries(LISTS / f"{name}.txt")
    assert len(listed) >= FEWEST[name]
    assert len({uri for uri, _, _ in listed}) == len(listed)
    published = set(timm.list_pretrained())
    for uri, words, source in listed:
        assert source, uri
        said = said_in(words, Said(), uri)
        if said.arch is not None:
            check_architecture(said.arch)
        scheme, _, rest = uri.partition(":")
        assert kind_of(uri) in ("name", "address")
        if scheme == "timm":
            assert rest in published
        elif uri.startswith("hf-hub:timm/"):
            assert rest.removeprefix("timm/") in published
        elif scheme == "open_clip":
            model, _, tag = rest.partition("/")
            assert tag in open_clip.list_pretrained_tags_by_model(model)


def test_every_list_is_checked_and_counted_on_its_page() -> None:
    assert {path.stem for path in LISTS.glob("*.txt")} == set(FEWEST)
    counts = {name: len(entries(LISTS / f"{name}.txt")) for name in FEWEST}
    clip = counts["clip_vit_b_16"] + counts["clip_vit_b_32"]
    told = f"{counts['resnet50']} ResNet-50, {counts['vit_b_16']} ViT-B/16 and {clip} CLIP towers"
    assert told in (LISTS.parent.parent / "docs" / "audit.md").read_text()


def test_libraries_resnets_are_the_same_networks_as_ours() -> None:
    """Else encoders of one bag would not be of one kind."""
    ours = encoders.build(Run(seed=3), architecture="resnet18", stem="imagenet", input_size=64).eval()
    images = torch.rand(2, 3, 64, 64)
    for library in ("timm", "torchvision"):
        theirs = encoders.build(Run(seed=4), architecture=f"{library}:resnet18", stem="imagenet", input_size=64).eval()
        assert theirs.card.kind == ours.card.kind == "resnet18"
        theirs.backbone.load_state_dict(ours.backbone.state_dict())
        assert torch.allclose(theirs(images), ours(images), atol=1e-5)
    other = encoders.build(Run(seed=4), architecture="timm:resnet10t", stem="imagenet", input_size=64)
    assert other.card.kind == "timm:resnet10t"


# a list of small nets in a local copy of the hub's cache


def small(seed: int, width: int = 4) -> bytes:
    """The weights of a small ResNet."""
    encoder = encoders.build(Run(seed=seed), architecture="resnet10", width=width, input_size=32)
    return safetensors.torch.save({name: value.contiguous() for name, value in encoder.backbone.state_dict().items()})


@pytest.fixture
def place(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos and a list: three nets of one kind, a copy, one of another kind, and some that fail."""
    monkeypatch.setattr(formats, "measurable", lambda _device: False)
    write_data(tmp_path)
    for name, content in (
        ("one", small(1)),
        ("two", small(2)),
        ("three", small(3)),
        ("copy", small(2)),
        ("wide", small(4, width=8)),
        ("broken", b"no weights"),
    ):
        put_into_hub(hub, f"org/{name}", {"model.safetensors": content})
    lines = ["# small nets", "", "hf-hub:org/one   # a source", "hf-hub:org/missing", "hf-hub:org/wide --size 16"]
    lines += ["timm:resnet50.a1_in1", "hf-hub:org/two", "nonsense:x", "hf-hub:org/copy", "hf-hub:org/broken"]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "hf-hub:org/three"]))
    return tmp_path


def calibrated(sapper: Sapper, place: Path, name: str = "bag", *more: str) -> Any:
    how = ("--images", place / "photos", "--device", "cpu", "--size", 16, "--out", place / f"{name}.json")
    return sapper("calibrate", "--models", place / "list.txt", *how, *more)


def test_a_model_is_named_once_and_a_hash_in_a_name_is_no_comment(sapper: Sapper, place: Path) -> None:
    (place / "list.txt").write_text("hf-hub:org/one --size 16\nhf-hub:org/one\n")
    assert "line 2: hf-hub:org/one is there twice" in " ".join(told(calibrated(sapper, place)).split())
    (place / "list.txt").write_text("https://example.invalid/a#b.pth --sizes 3\n")
    assert "--sizes is no option" in told(calibrated(sapper, place))
    how = ("--images", place / "photos", "--out", place / "bag.json", "--encoders", "hf-hub:org/one")
    assert "named twice" in told(sapper("calibrate", *how, "--encoders", "hf-hub:org/one"))


def test_an_interrupted_call_with_another_normalization_looks_anew(
    sapper: Sapper, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    own = calibrating._look

    def look(uri: str, *more: Any) -> Any:
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(uri)
        return own(uri, *more)

    monkeypatch.setattr(calibrating, "_look", look)
    (place / "list.txt").write_text("hf-hub:org/one\nhf-hub:org/two\nhf-hub:org/three\n")
    assert calibrated(sapper, place).code == 130
    looked.clear()
    monkeypatch.setattr(calibrating, "_look", lambda uri, *more: looked.append(uri) or own(uri, *more))
    assert calibrated(sapper, place, "bag", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5").code == 0
    assert looked == ["hf-hub:org/one", "hf-hub:org/two", "hf-hub:org/three"]


def test_a_bag_of_before_still_fits(place: Path) -> None:
    encoder = encoders.build(RUN, architecture="timm:resnet18", stem="imagenet", input_size=16)
    images = opening.load_images(place / "photos", 16)
    key = Key.of(encoder, images, BUDGETS["quick"])
    search = {name: value for name, value in key.detectors["multi_prior"].items() if name != "large"}
    old = replace(key, architecture="timm:resnet18", detectors={"multi_prior": search})
    write_bag(Bag(name="b", key=old, pretraining="", images="", scores={"multi_prior": [0.0]}), place / "b.json")
    assert read_bag(place / "b.json").key == key
    large = replace(old, input_size=224)  # in these the search has changed
    write_bag(Bag(name="b", key=large, pretraining="", images="", scores={"multi_prior": [0.0]}), place / "large.json")
    assert read_bag(place / "large.json").key != replace(key, input_size=224)


def test_what_cannot_be_had_is_told_and_the_rest_makes_the_bag(sapper: Sapper, place: Path) -> None:
    end = calibrated(sapper, place)
    assert end.code == 0, end.err
    bag = read_bag(place / "bag.json")
    assert bag.made["encoders"] == "hf-hub:org/one; hf-hub:org/two; hf-hub:org/three"
    assert bag.size == 3
    said = " ".join(end.err.split())
    for name, why in (
        ("hf-hub:org/missing", "out of reach"),
        ("timm:resnet50.a1_in1", "did you mean resnet50.a1_in1k"),
        ("nonsense:x", "there is no scheme"),
        ("hf-hub:org/copy", "these are the weights of hf-hub:org/two"),
        ("hf-hub:org/broken", ""),
        ("hf-hub:org/wide", "of another kind: width, feature size"),
    ):
        assert f"left out: {name}: " in said
        assert why in said
        assert name in bag.made["left out"]
    audited = sapper(
        *("audit", "hf-hub:org/one", "--images", place / "photos", "--device", "cpu", "--size", 16),
        *("--bag", place / "bag.json", "--false-alarms", 0.3, "--out", place / "out"),
    )
    assert audited.code in (0, 1), audited.err  # the bag fits: there is a verdict


def test_an_interrupted_call_goes_on_and_ends_the_same(
    sapper: Sapper, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    own = calibrating._look

    def look(uri: str, *more: Any) -> Any:
        if len(looked) == 2 and "stop" in flags:
            raise KeyboardInterrupt
        looked.append(uri)
        return own(uri, *more)

    flags = {"stop"}
    monkeypatch.setattr(calibrating, "_look", look)
    interrupted = calibrated(sapper, place)
    assert interrupted.code == 130
    assert "goes on from here" in interrupted.err
    assert not (place / "bag.json").exists()
    flags.clear()
    assert calibrated(sapper, place).code == 0
    assert looked == ["hf-hub:org/one", "hf-hub:org/two", "hf-hub:org/three"]
    assert not (place / "bag.json.part").exists()
    assert calibrated(sapper, place, "whole").code == 0
    bag, whole = read_bag(place / "bag.json"), read_bag(place / "whole.json")
    assert (bag.scores, bag.gathered, bag.key) == (whole.scores, whole.gathered, whole.key)


def test_what_was_kept_of_another_call_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    about = {"key": {"a": 1}, "seed": 0}
    looked = {"digest": {"scores": {"m": 1.0}, "gathered": {"m": None}}}
    path.write_text(json.dumps(about | {"number_format": "float32", "looked": looked}))
    assert calibrating._read(path, about)[1] == "float32"
    assert calibrating._read(path, about | {"seed": 1}) == ({}, None)
    for content in ("", "[]", "{}", json.dumps(about | {"number_format": "odd", "looked": looked})):
        path.write_text(content)
        assert calibrating._read(path, about) == ({}, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hf-hub:org/one --trust-code yes", "--trust-code is no option"),
        ("hf-hub:org/one --sizes 3", "did you mean --size"),
        ("hf-hub:org/one --size", "--size has no value"),
        ("hf-hub:org/one --size big", "no number of pixels"),
        ('hf-hub:org/one --prefix "a', "No closing quotation"),
        ("# nothing", "there is no model in it"),
        ("hf-hub:org/one --pool odd", "'odd' is none"),
        ("os:abort", "a list of models names code"),
        ("hf-hub:org/one --arch os:abort", "a list of models names code"),
    ],
)
def test_a_line_that_is_none_is_told_with_its_number(
    sapper: Sapper, place: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    (place / "list.txt").write_text(f"\n{line}\n")
    monkeypatch.setattr(os, "abort", lambda: pytest.fail("it ran"))
    said = " ".join(told(calibrated(sapper, place, "bag", "--trust-code")).split())
    assert message in said
    assert "list.txt" in said
    assert message == "there is no model in it" or "line 2" in said


def test_a_list_of_which_nothing_can_be_had_is_an_error(sapper: Sapper, place: Path) -> None:
    (place / "list.txt").write_text("hf-hub:org/missing\nhf-hub:org/none\n")
    assert "none of 2 encoders can be opened" in " ".join(told(calibrated(sapper, place)).split())
    (place / "list.txt").unlink()
    assert "there is no such file" in told(calibrated(sapper, place))
    how = ("--images", place / "photos", "--out", place / "bag.json")
    assert "did you mean resnet50" in told(sapper("calibrate", "--models", "resnet5", *how))
    assert "--models" in told(sapper("calibrate", *how))


# files by their address


def test_a_files_address_is_opened_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fetched: list[str] = []

    def fetch(address: str, path: str, *_more: Any, **_options: Any) -> None:
        fetched.append(address)
        Path(path).write_bytes(small(1))

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    first, second = "https://example.invalid/a/net.safetensors?x=1", "https://example.invalid/b/net.safetensors"
    opened = opening.open(first)
    assert opened.card.origin["opened"] == first
    assert opened.card.origin["file"].endswith("-net.safetensors")
    assert sources.from_web(first)[0] != sources.from_web(second)[0]  # of one name, and yet two files
    assert fetched == [first, second]
    again = opening.open(first)
    assert "from torch's cache" in again.card.origin["recognized"][-1]
    assert fetched == [first, second]
    with pytest.raises(SapperError, match="no scheme 'http'"):
        encoders.open("http://example.invalid/net.pth", Run(), Opening())


def test_an_address_out_of_reach_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*_words: Any, **_options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        SapperError, match=r"example.invalid.*cannot fetch the weights: no network\n.*put the file there"
    ):
        encoders.open("https://example.invalid/net.pth", Run(), Opening())
