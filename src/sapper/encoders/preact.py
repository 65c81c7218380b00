"""Pre-activation ResNets for small images: normalization and ReLU come before each convolution.

Source: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016; in the form that kuangliu's
pytorch-cifar and BackdoorBench train, with a 3×3 first convolution, no normalization behind it, and none after the last
block. Some programs have one there (``last_norm``).
"""

import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = {"basic": 1, "bottleneck": 4}
"""How many times a block's output is as wide as its middle."""


class PreActResNet(nn.Module):
    """float (N, 3, H, W) → features (N, 8 · ``width`` · expansion), averaged over the last block's places.

    ``depth``: how many blocks each of the four layers has. Names of parameters are pytorch-cifar's.
    """

    def __init__(self, kind: str, depth: tuple[int, ...], width: int, *, last_norm: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        channels = width
        for index, blocks in enumerate(depth):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                layer.append(_Block(kind, channels, width * 2**index, stride))
                channels = width * 2**index * EXPANSION[kind]
            self.add_module(f"layer{index + 1}", layer)
        self.depth = len(depth)
        if last_norm:
            self.bn = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv1(images)
        for index in range(self.depth):
            features = self.get_submodule(f"layer{index + 1}")(features)
        if "bn" in self._modules:
            features = F.relu(self.bn(features))
        return features.mean((2, 3))


class _Block(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1. The shortcut takes what comes out of the first ReLU where it is a
    convolution, and the input itself where it is not."""

    def __init__(self, kind: str, channels: int, width: int, stride: int):
        super().__init__()
        out = width * EXPANSION[kind]
        self.bn1 = nn.BatchNorm2d(channels)
        if kind == "basic":
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        shortcut = self.shortcut(active) if "shortcut" in self._modules else features
        change = self.conv2(F.relu(self.bn2(self.conv1(active))))
        if "conv3" in self._modules:
            change = self.conv3(F.relu(self.bn3(change)))
        return change + shortcut
