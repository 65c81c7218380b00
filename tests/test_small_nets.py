"""VGG, wide ResNets and MobileNetV2 against other forms of the same: torchvision's, and ones written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import models

from sapper import encoders
from sapper.encoders.names import SMALL
from sapper.encoders.small import small
from sapper.errors import SapperError
from sapper.running import Run

State = dict[str, Tensor]


def drawn(architecture: str, width: int, seed: int = 0) -> torch.nn.Module:
    """The network with all of its parameters and statistics drawn, so that none is at its start."""
    generator = torch.Generator().manual_seed(seed)
    net = small(architecture, width)[0].eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise + 0.5 if "running_var" in name else (noise - 0.4) * 0.6)
    return net


def norm(x: Tensor, state: State, name: str) -> Tensor:
    given = [state[f"{name}.{each}"] for each in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *given)


def wide(x: Tensor, state: State, blocks: int) -> Tensor:
    """Zagoruyko and Komodakis' network, block after block."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for block in range(blocks):
            at = f"block{group}.layer.{block}"
            stride = 2 if group > 1 and block == 0 else 1
            active = F.relu(norm(x, state, f"{at}.bn1"))
            short = x
            if f"{at}.convShortcut.weight" in state:
                short = F.conv2d(active, state[f"{at}.convShortcut.weight"], stride=stride)
            y = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, state, f"{at}.bn2")), state[f"{at}.conv2.weight"], padding=1)
            x = y + short
    return F.adaptive_avg_pool2d(F.relu(norm(x, state, "bn1")), 1).flatten(1)


def mobile(x: Tensor, state: State) -> Tensor:
    """MobileNetV2 for small images: strides of 2 before the third, fourth and sixth group of blocks."""
    strides = [1] * 17
    for first in (3, 6, 13):
        strides[first] = 2
    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1"))
    for block, stride in enumerate(strides):
        at = f"layers.{block}"
        y = F.relu(norm(F.conv2d(x, state[f"{at}.conv1.weight"]), state, f"{at}.bn1"))
        depth = state[f"{at}.conv2.weight"]
        y = F.relu(norm(F.conv2d(y, depth, stride=stride, padding=1, groups=len(depth)), state, f"{at}.bn2"))
        y = norm(F.conv2d(y, state[f"{at}.conv3.weight"]), state, f"{at}.bn3")
        if stride == 1:
            other = f"{at}.shortcut.0.weight" in state
            y = y + (norm(F.conv2d(x, state[f"{at}.shortcut.0.weight"]), state, f"{at}.shortcut.1") if other else x)
        x = y
    x = F.relu(norm(F.conv2d(x, state["conv2.weight"]), state, "bn2"))
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_vgg_is_torchvisions_before_its_classifier(name: str) -> None:
    ours = drawn(name, 64).eval()
    theirs = getattr(models, f"{name}_bn")(weights=None).eval()
    theirs.features.load_state_dict({key.removeprefix("features."): value for key, value in ours.state_dict().items()})
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs.features(images).flatten(1), rtol=1e-3)


@pytest.mark.parametrize(("name", "blocks"), [("wrn16", 2), ("wrn28", 4)])
def test_wide_resnets_are_as_written_out(name: str, blocks: int) -> None:
    net, images = drawn(name, 8), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(images), wide(images, net.state_dict(), blocks), rtol=1e-4, atol=1e-4)


def test_mobilenets_are_as_written_out() -> None:
    net, images = drawn("mobilenetv2", 8), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(images), mobile(images, net.state_dict()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [28, 32, 50])
def test_all_take_images_of_these_sizes_and_learn(name: str, size: int) -> None:
    encoder = encoders.build(Run(seed=1), architecture=name, width=4, input_size=size)
    features = encoder(torch.rand(4, 3, size, size))
    assert features.shape == (4, encoder.feature_size)
    features.square().mean().backward()
    assert all(each.grad is not None for each in encoder.parameters())


def test_they_have_no_stem_to_exchange() -> None:
    with pytest.raises(SapperError, match="vgg11 has no ResNet stem"):
        encoders.build(Run(), architecture="vgg11", stem="imagenet")


def test_files_of_like_networks_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Their features would not be those of the network that is opened."""
    path = tmp_path / "vgg.pth"
    torch.save(models.vgg11_bn(weights=None, num_classes=5).state_dict(), path)
    with pytest.raises(SapperError, match="several layers behind the convolutions"):
        encoders.open(str(path), Run())
    state = small("mobilenetv2", 8)[0].state_dict()
    torch.save(state | {"layers.3.conv2.weight": torch.rand(1, 1, 5, 5)}, path)
    with pytest.raises(SapperError, match="MobileNet that is not known"):
        encoders.open(str(path), Run())
