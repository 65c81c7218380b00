"""Networks for small images that torchvision and timm do not have: VGG, wide ResNets, and MobileNetV2 of any width.

They keep the full resolution in their first convolutions, where libraries' models reduce images of 32 pixels to a
point. Names of parameters are those of the programs that most files of such networks are from, so that these open:
kuangliu's pytorch-cifar for VGG and MobileNetV2, xternalz' WideResNet-pytorch for wide ResNets. Behind each is the
average over places instead of these programs' pooling of a fixed size, which is the same for 32 pixels.

Sources: Simonyan, Zisserman, "Very Deep Convolutional Networks", ICLR 2015, with batch normalization; Zagoruyko,
Komodakis, "Wide Residual Networks", BMVC 2016; Sandler et al., "MobileNetV2", CVPR 2018.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sapper.encoders.names import SMALL

STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""How many convolutions of a VGG come before each max-pooling."""

WIDENING = (1, 2, 4, 8, 8)
"""Channels of a VGG's stages, in widths."""

BLOCKS = {"wrn16": 2, "wrn28": 4, "wrn40": 6}
"""How many blocks each group of a wide ResNet has."""

WRN_STEM = 16

INVERTED = (
    # of MobileNetV2: expansion, channels at width 32, blocks, stride of the first one
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)

LAST = 1280


def small(architecture: str, width: int) -> tuple[nn.Module, int]:
    """The network of that name (``names.SMALL``), float (N, 3, H, W) → (N, D), and D.

    ``width``: channels of the first convolution of VGG (64 in the paper, D = 8 · width) and MobileNetV2 (32, D = 1280);
    of the first group of a wide ResNet (16 times the paper's k, D = 4 · width).
    """
    if architecture in STAGES:
        return VGG(STAGES[architecture], width), WIDENING[-1] * width
    if architecture in BLOCKS:
        return WideResNet(BLOCKS[architecture], width), 4 * width
    assert architecture == "mobilenetv2", SMALL
    return MobileNetV2(width), _scaled(LAST, width)


class VGG(nn.Module):
    """Convolutions of 3×3 with normalization and ReLU, and max-pooling behind each of the ``stages``."""

    def __init__(self, stages: tuple[int, ...], width: int):
        super().__init__()
        self.features, channels = nn.Sequential(), 3
        for convolutions, widths in zip(stages, WIDENING):
            for _ in range(convolutions):
                self.features.append(nn.Conv2d(channels, widths * width, 3, padding=1))
                self.features.append(nn.BatchNorm2d(widths * width))
                self.features.append(nn.ReLU())
                channels = widths * width
            self.features.append(_Pool())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return features.mean((2, 3))


class _Pool(nn.Module):
    """Max-pooling of 2×2; a single pixel, to which small images come before the last one, stays."""

    def forward(self, features: Tensor) -> Tensor:
        return F.max_pool2d(features, 2) if min(features.shape[2:]) > 1 else features


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks, and normalization and ReLU behind the last."""

    def __init__(self, blocks: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WRN_STEM, 3, padding=1, bias=False)
        channels = WRN_STEM
        for group in range(3):
            layer = nn.Sequential()
            for block in range(blocks):
                layer.append(_Wide(channels, width * 2**group, 2 if group > 0 and block == 0 else 1))
                channels = width * 2**group
            self.add_module(f"block{group + 1}", nn.ModuleDict({"layer": layer}))
        self.bn1 = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv1(images)
        for group in (1, 2, 3):
            features = self.get_submodule(f"block{group}.layer")(features)
        return F.relu(self.bn1(features)).mean((2, 3))


class _Wide(nn.Module):
    """Two convolutions of 3×3. Where channels change, the shortcut is a convolution of what the first ReLU gives."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        if channels != width:
            self.convShortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        shortcut = self.convShortcut(active) if "convShortcut" in self._modules else features
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class MobileNetV2(nn.Module):
    """Inverted residual blocks, and a convolution of 1×1 behind the last."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layers, channels = nn.Sequential(), width
        for expansion, wanted, blocks, stride in INVERTED:
            out = _scaled(wanted, width)
            for block in range(blocks):
                self.layers.append(_Inverted(channels, out, expansion, stride if block == 0 else 1))
                channels = out
        self.conv2 = nn.Conv2d(channels, _scaled(LAST, width), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_scaled(LAST, width))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(F.relu(self.bn1(self.conv1(images))))
        return F.relu(self.bn2(self.conv2(features))).mean((2, 3))


class _Inverted(nn.Module):
    """1×1 to more channels, 3×3 for each channel by itself, 1×1 back; a shortcut where the resolution stays."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int):
        super().__init__()
        middle = expansion * channels
        self.conv1, self.bn1 = nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, out, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut, self.stride = nn.Sequential(), stride
        if stride == 1 and channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, features: Tensor) -> Tensor:
        changed = F.relu(self.bn1(self.conv1(features)))
        changed = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(changed)))))
        return changed + self.shortcut(features) if self.stride == 1 else changed


def _scaled(channels: int, width: int) -> int:
    """Channels of MobileNetV2 at a width; 32 is the paper's."""
    return max(1, channels * width // 32)
