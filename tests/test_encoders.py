"""Encoders and their files."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from sapper import encoders
from sapper.errors import SapperError
from sapper.running import Run
from tests.test_badencoder import tiny

RUN = Run(seed=1)


def test_the_default_is_the_papers_resnet18() -> None:
    encoder = encoders.build(RUN)
    assert encoder.feature_size == 512
    assert sum(p.numel() for p in encoder.parameters()) == 11_168_832
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize(
    ("architecture", "width", "features"), [("resnet10", 8, 64), ("resnet18", 16, 128), ("resnet50", 8, 256)]
)
def test_widths(architecture: str, width: int, features: int) -> None:
    encoder = encoders.build(RUN, architecture=architecture, width=width)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, features) == (2, encoder.feature_size)


def test_a_timm_backbone_with_a_small_stem() -> None:
    encoder = encoders.build(RUN, architecture="timm:resnet18")
    assert encoder.backbone.conv1.kernel_size == (3, 3)
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, 512)
    with pytest.raises(SapperError, match="no ResNet stem"):
        encoders.build(RUN, architecture="timm:vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t"])
def test_a_timm_encoder_knows_how_many_features_it_gives(name: str) -> None:
    encoder = encoders.build(RUN, architecture=f"timm:{name}", stem="imagenet", input_size=64).eval()
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, encoder.feature_size)


def test_normalization_is_inside() -> None:
    encoder = tiny()
    images = torch.rand(4, 3, 16, 16)
    mean, std = torch.tensor(encoder.card.mean).view(3, 1, 1), torch.tensor(encoder.card.std).view(3, 1, 1)
    assert torch.allclose(encoder(images), encoder.backbone((images - mean) / std), atol=1e-5)


def test_seeds_make_encoders() -> None:
    one, same, other = (encoders.build(Run(seed=s), architecture="resnet10", width=4) for s in (1, 1, 2))
    assert torch.equal(one.backbone.conv1.weight, same.backbone.conv1.weight)
    assert not torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)


def test_narrow_encoders_do_without_the_strided_convolutions_that_onednn_breaks_on() -> None:
    """Equal to the plain ones, in the forward pass and in the gradient."""
    encoder = encoders.build(RUN, architecture="resnet10", width=8, input_size=16)
    strided = {name: m for name, m in encoder.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)}
    assert [type(m) is nn.Conv2d for m in strided.values()] == [False, True, True]
    shortcut = next(iter(strided.values()))
    images = torch.rand(3, 8, 5, 6, dtype=torch.float64)
    weight = shortcut.double().weight
    expected = F.conv2d(images, weight, stride=2)
    assert torch.equal(shortcut(images), expected)
    (ours,) = torch.autograd.grad(shortcut(images).square().sum(), weight)
    (theirs,) = torch.autograd.grad(expected.square().sum(), weight)
    assert torch.allclose(ours, theirs)


def test_a_file_brings_back_weights_and_card(tmp_path: Path) -> None:
    encoder = tiny().marked(backdoored=False, origin={"method": "simclr", "seed": 3})
    encoders.save(encoder, tmp_path / "clean.safetensors")
    back = encoders.load(tmp_path / "clean.safetensors", RUN)
    images = torch.rand(3, 3, 16, 16)
    assert back.card == encoder.card
    assert torch.equal(back(images), encoder(images))


def test_a_backdoored_encoder_says_so(tmp_path: Path) -> None:
    encoder = tiny().marked(backdoored=True, origin={})
    with pytest.raises(SapperError, match="must say so"):
        encoders.save(encoder, tmp_path / "nice.safetensors")
    path = tmp_path / "nice-BACKDOORED.safetensors"
    encoders.save(encoder, path)
    assert encoders.load(path, RUN).card.backdoored
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["sapper.card"])["backdoored"] is True


Tensors, Metadata = dict[str, torch.Tensor], dict[str, str]


def _saved(folder: Path) -> tuple[Path, Tensors, Metadata]:
    path = folder / "encoder.safetensors"
    encoders.save(tiny(), path)
    with safetensors.safe_open(path, "pt") as file:
        return path, safetensors.torch.load_file(path), file.metadata()


def _truncate(path: Path, _tensors: Tensors, _metadata: Metadata) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _nothing(path: Path, _tensors: Tensors, _metadata: Metadata) -> None:
    path.unlink()


def _no_card(path: Path, tensors: Tensors, _metadata: Metadata) -> None:
    safetensors.torch.save_file(tensors, path)


def _wrong_card(path: Path, tensors: Tensors, metadata: Metadata) -> None:
    card = json.loads(metadata["sapper.card"]) | {"width": "wide"}
    safetensors.torch.save_file(tensors, path, {"sapper.card": json.dumps(card)})


def _other_width(path: Path, tensors: Tensors, metadata: Metadata) -> None:
    card = json.loads(metadata["sapper.card"]) | {"width": 8}
    safetensors.torch.save_file(tensors, path, {"sapper.card": json.dumps(card)})


def _nan(path: Path, tensors: Tensors, metadata: Metadata) -> None:
    tensors["backbone.conv1.weight"][0] = float("nan")
    safetensors.torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize("damage", [_truncate, _nothing, _no_card, _wrong_card, _other_width, _nan])
def test_damaged_files_are_refused(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, tensors, metadata = _saved(tmp_path)
    damage(path, tensors, metadata)
    with pytest.raises(SapperError) as caught:
        encoders.load(path, RUN)
    assert "encoder.safetensors" in str(caught.value)
