"""Backbones from torchvision and timm, with the stem that small images need."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sapper.encoders.encoder import Card, Encoder, Stem
from sapper.errors import SapperError, closest
from sapper.run import Run

ARCHITECTURES: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def build(
    run: Run,
    *,
    architecture: str = "resnet18",
    width: int = 64,
    input_size: int = 32,
    stem: Stem = "cifar",
    mean: tuple[float, float, float] = CIFAR_MEAN,
    std: tuple[float, float, float] = CIFAR_STD,
) -> Encoder:
    """An untrained encoder, initialized from the run's seed, on its device.

    The default is BadEncoder's (``models/simclr_model.py``): ResNet-18, a 3×3 first convolution with stride 1, no
    max-pooling, 512 features, CIFAR-10's normalization as the authors' code has it. ``architecture`` is a key of
    ``ARCHITECTURES``, or ``timm:NAME``. ``width`` is the number of channels after the stem (64 in the papers, less
    for CPUs; timm's models have their own); the features are 8 times as many, 32 times with bottleneck blocks.
    ``stem="imagenet"`` keeps the 7×7 convolution with stride 2 and the max-pooling.

    Raises ``SapperError`` for an unknown architecture, or one whose stem cannot be changed.
    """
    with run.seeded():
        if architecture.startswith("timm:"):
            backbone, features = _timm(architecture.removeprefix("timm:"), stem)
        else:
            backbone, features = _resnet(architecture, width, stem)
        _replace_narrow_shortcuts(backbone)
    card = Card(architecture=architecture, width=width, stem=stem, input_size=input_size, mean=mean, std=std)
    return Encoder(backbone, card, features).to(run.device).to(memory_format=torch.channels_last)


def _resnet(architecture: str, width: int, stem: Stem) -> tuple[nn.Module, int]:
    """torchvision's ResNet of any width, without its classifier."""
    if architecture not in ARCHITECTURES:
        remedy = f"{closest(architecture, list(ARCHITECTURES))}, or timm:NAME"
        raise SapperError(f"unknown architecture {architecture!r}", where="encoder.architecture", remedy=remedy)
    block, layers = ARCHITECTURES[architecture]
    net = ResNet(block, list(layers))
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for index, depth in enumerate(layers):
        stride = 1 if index == 0 else 2
        net.add_module(f"layer{index + 1}", net._make_layer(block, width * 2**index, depth, stride=stride))
    net.fc = nn.Identity()
    if stem == "cifar":
        _use_cifar_stem(net, width)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net, 8 * width * block.expansion


def _timm(name: str, stem: Stem) -> tuple[nn.Module, int]:
    """A model of timm's by name, untrained and without its classifier."""
    import timm

    if name not in timm.list_models():
        where, remedy = "encoder.architecture", closest(name, timm.list_models())
        raise SapperError(f"timm has no model {name!r}", where=where, remedy=remedy)
    net: Any = timm.create_model(name, num_classes=0)
    if stem == "cifar":
        if not (isinstance(getattr(net, "conv1", None), nn.Conv2d) and hasattr(net, "maxpool")):
            remedy = 'say stem = "imagenet" and an input_size that the model is made for'
            raise SapperError(f"{name} has no ResNet stem to exchange", where="encoder.stem", remedy=remedy)
        _use_cifar_stem(net, net.conv1.out_channels)
    return net, net.head_hidden_size  # num_features is the width before a convolution that some models have last


class _NarrowShortcut(nn.Conv2d):
    """A 1×1 convolution of stride 2 as what it is: every second pixel, and a convolution without stride.

    oneDNN's own writes beyond its memory in the backward pass when there are fewer input channels than a block has,
    16 at most (github.com/uxlfoundation/oneDNN, issue 6035): training crashes, or goes on with wrong gradients.
    """

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images[:, :, ::2, ::2], self.weight, self.bias)


def _replace_narrow_shortcuts(net: nn.Module) -> None:
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, nn.Conv2d) or conv.in_channels >= 16:
                continue
            if (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (2, 2), (0, 0), 1):
                shortcut = _NarrowShortcut(conv.in_channels, conv.out_channels, 1, stride=2, bias=False)
                shortcut.weight, shortcut.bias = conv.weight, conv.bias
                setattr(parent, name, shortcut)


def _use_cifar_stem(net: nn.Module, width: int) -> None:
    """Keep the full resolution of 32×32 images: a 3×3 convolution with stride 1, no max-pooling."""
    net.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
    net.maxpool = nn.Identity()
