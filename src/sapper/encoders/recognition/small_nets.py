"""VGG, wide ResNets and MobileNetV2 for small images, in the names of the programs that ``small.py`` follows."""

import re

from sapper.encoders.backbones import CIFAR_MEAN, CIFAR_STD, Pixels, blueprint
from sapper.encoders.recognition.layouts import Backbone, Layout, Weights, pixels_of, shape
from sapper.encoders.small import BLOCKS, STAGES, WIDENING, WRN_STEM


def vgg(found: Backbone) -> Layout:
    """pytorch-cifar's VGG, whose classifier is one layer behind the last pooling."""
    weights = found.weights
    if any(re.match(r"classifier\.\d", name) for name in weights):
        raise found.unknown("it is a VGG with several layers behind the convolutions, as torchvision's")
    width = weights["features.0.weight"].shape[0]
    channels = [weights[name].shape[0] for name in weights if _is_convolution(name, weights)]
    known = {name: sorted(_channels(stages, width)) for name, stages in STAGES.items()}
    architecture = next((name for name, wanted in known.items() if wanted == sorted(channels)), None)
    if architecture is None:
        raise found.unknown(f"it is a VGG that is not known: convolutions of {sorted(channels)} channels")
    return _layout(found, architecture, width)


def _channels(stages: tuple[int, ...], width: int) -> list[int]:
    return [widths * width for count, widths in zip(stages, WIDENING) for _ in range(count)]


def _is_convolution(name: str, weights: Weights) -> bool:
    return re.fullmatch(r"features\.\d+\.weight", name) is not None and weights[name].ndim == 4


def wide(found: Backbone) -> Layout:
    """WideResNet-pytorch's."""
    weights = found.weights
    blocks = sum(re.fullmatch(r"block1\.layer\.\d+\.conv1\.weight", name) is not None for name in weights)
    first = weights["conv1.weight"]
    architecture = next((name for name, count in BLOCKS.items() if count == blocks), None)
    if architecture is None or first.shape[0] != WRN_STEM:
        raise found.unknown(f"it is a wide ResNet that is not known: {blocks} blocks a group, {shape(first)}")
    return _layout(found, architecture, weights["block1.layer.0.conv1.weight"].shape[0])


def mobile(found: Backbone) -> Layout:
    """pytorch-cifar's MobileNetV2; nothing tells strides, so that its shapes must be all as there."""
    width = found.weights["conv1.weight"].shape[0]
    plan = blueprint("mobilenetv2", width, "cifar", 32)
    theirs = {name: found.weights[name].shape for name in plan if name in found.weights}
    wanted = {name: value.shape for name, value in plan.items() if not name.endswith("num_batches_tracked")}
    if any(theirs.get(name) != size for name, size in wanted.items()):
        raise found.unknown("it is a MobileNet that is not known")
    return _layout(found, "mobilenetv2", width)


def _layout(found: Backbone, architecture: str, width: int) -> Layout:
    pixels, normalization = pixels_of(found.program, Pixels(32, CIFAR_MEAN, CIFAR_STD), small=True)
    return Layout(
        architecture=architecture,
        width=width,
        stem="cifar",
        pixels=pixels,
        normalization=normalization,
        weights=found.weights,
        names=found.names,
        prefix="",
        source=found.program.name,
    )
