"""ResNets in the names of the programs that train them: torchvision's, by number, CIFAR's, transformers', CLIP's."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from sapper.encoders.backbones import CIFAR_MEAN, CIFAR_STD, Pixels, own_pixels
from sapper.encoders.names import ARCHITECTURES, PREACT, Stem
from sapper.encoders.recognition.layouts import BY_CODE, Backbone, Layout, Weights, pixels_of, shape, shortened
from sapper.errors import SapperError

CLIP_RESNETS = {(3, 4, 6, 3): "RN50", (3, 4, 23, 3): "RN101"}


def resnet(found: Backbone) -> Layout:
    """torchvision's ResNets of any width; and timm's with squeeze-and-excitation."""
    weights, opening = found.weights, found.opening
    first = weights["conv1.weight"]
    depth = _depth(weights)
    kind = "Bottleneck" if "layer1.0.conv3.weight" in weights else "BasicBlock"
    known: dict[tuple[str, tuple[int, ...]], str] = {
        (block, layers): name for name, (block, layers) in ARCHITECTURES.items()
    }
    width, kernel = first.shape[0], first.shape[-1]
    plain = weights.get("layer1.0.conv2.weight", first).shape[:2] == (width, width)  # neither wide nor in groups
    if (kind, depth) not in known or kernel not in (3, 7) or not plain:
        what = f"it is a ResNet that is not known: blocks {depth}, {kind}, first convolution {shape(first)}"
        raise found.unknown(what)
    stem, assumed = _stem(found, kernel)
    pixels, normalization = pixels_of(found.program, own_pixels(known[kind, depth], stem), small=stem != "imagenet")
    architecture = known[kind, depth]
    arguments: dict[str, Any] = {}
    told: tuple[str, ...] = ()
    if any(re.match(r"layer\d\.\d+\.se\.", name) for name in weights):
        architecture, arguments, weights = _squeezing(found, architecture, width, stem)
        told = (f"a ResNet with squeeze-and-excitation, opened as {architecture}",)
    return Layout(
        architecture=architecture,
        arguments=arguments,
        width=width,
        stem=stem,
        pixels=pixels,
        normalization=normalization,
        weights=weights,
        names=found.names,
        prefix="",
        source=found.program.name,
        assumed=assumed if opening.stem is None else (),
        told=told,
    )


def _depth(weights: Weights) -> tuple[int, ...]:
    blocks = Counter(
        int(match[1]) for name in weights if (match := re.fullmatch(r"layer(\d)\.\d+\.conv1\.weight", name))
    )
    return tuple(blocks[layer] for layer in sorted(blocks))


def _stem(found: Backbone, kernel: int) -> tuple[Stem, tuple[str, ...]]:
    """What stands before the first layer. Of a 3×3 convolution nothing tells whether max-pooling follows."""
    said = found.opening.stem
    if said is not None and (said == "imagenet") != (kernel == 7):
        what = f"its first convolution is {kernel}×{kernel}, and --stem {said} has another"
        raise SapperError(what, where=found.where, remedy="leave --stem out, or say cifar or cifar-pool for 3×3")
    if kernel == 7:
        return "imagenet", ()
    certain = found.family == "shortcut"  # these programs have no pooling
    note = "stem: no max-pooling after the 3×3 convolution, as in SimCLR for CIFAR-10; the weights do not tell"
    return said or "cifar", () if certain else (f"{note} (use --stem cifar-pool if there is one)",)


def _squeezing(found: Backbone, architecture: str, width: int, stem: Stem) -> tuple[str, dict[str, Any], Weights]:
    """timm's ResNet with squeeze-and-excitation branches, whose linear layers are 1×1 convolutions there."""
    name, weights = f"timm:se{architecture}", dict(found.weights)
    keys = [key for key in weights if re.match(r"layer\d\.\d+\.se\.", key)]
    import timm

    if name.removeprefix("timm:") not in timm.list_models() or width != 64 or stem != "imagenet":
        what = (
            f"it has squeeze-and-excitation branches, and timm has no such {architecture} (width {width}, stem {stem})"
        )
        raise SapperError(f"{what}: {shortened(keys)}", where=found.where, remedy=BY_CODE)
    if all(re.search(r"\.se\.fc[12]\.(weight|bias)$", key) for key in keys):  # timm's own names
        return name, {}, weights
    ratios = set()
    for key in keys:
        match = re.fullmatch(r"(layer\d\.\d+\.se)\.fc\.([02])\.weight", key)
        if match is None or weights[key].ndim != 2:
            raise found.unknown(f"it has squeeze-and-excitation branches of another kind: {shortened(keys)}")
        moved = f"{match[1]}.fc{1 if match[2] == '0' else 2}.weight"
        weights[moved] = weights.pop(key)[:, :, None, None]
        found.names[moved] = found.names.pop(key)
        ratios.add(min(weights[moved].shape[:2]) / max(weights[moved].shape[:2]))
    if len(ratios) != 1:
        what = f"its squeeze-and-excitation branches are not of one ratio: {shortened(keys)}"
        raise SapperError(what, where=found.where, remedy=BY_CODE)
    return name, {"se_ratio": ratios.pop()}, weights


def shortcut(found: Backbone) -> Layout:
    """pytorch-cifar's, SupContrast's, lightly's: torchvision's names, but for ``shortcut``."""
    return resnet(found.renamed(lambda name: re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", name)))


def preact(found: Backbone) -> Layout:
    """Pre-activation ResNets: each block's first normalization takes what comes into it."""
    weights = found.weights
    first, depth = weights["conv1.weight"], _depth(weights)
    kind = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    known: dict[tuple[str, tuple[int, ...]], str] = {(block, layers): name for name, (block, layers) in PREACT.items()}
    if (kind, depth) not in known or first.shape[-1] != 3:
        what = f"it is a ResNet without a first normalization that is not known: blocks {depth}, {kind}, {shape(first)}"
        raise found.unknown(what)
    pixels, normalization = pixels_of(found.program, Pixels(32, CIFAR_MEAN, CIFAR_STD), small=True)
    return Layout(
        architecture=known[kind, depth],
        arguments={"last_norm": True} if "bn.weight" in weights else {},
        width=first.shape[0],
        stem="cifar",
        pixels=pixels,
        normalization=normalization,
        weights=weights,
        names=found.names,
        prefix="",
        source=found.program.name,
    )


def numbered(found: Backbone) -> Layout:
    """A ResNet's children by number, as in ``nn.Sequential(*children)``, under torchvision's names again.

    The children are convolution, normalization, perhaps ReLU and max-pooling (or nothing in its place), and four
    layers: the number of the first layer tells which.
    """
    weights = found.weights
    layers = sorted({int(name.split(".")[0]) for name in weights if re.fullmatch(r"\d+\.0\.conv1\.weight", name)})
    kernel = weights["0.weight"].shape[-1]
    if layers[0] not in (2, 3, 4) or (kernel == 7 and layers[0] != 4):
        what = "it is a ResNet by numbers, with another stem than 3×3 and 7×7 with max-pooling"
        raise SapperError(what, where=found.where, remedy="save its state dict by names")
    if layers[0] < 4 and found.opening.stem == "cifar-pool":
        what = "its layers are numbered without a max-pooling between them"
        raise SapperError(what, where=found.where, remedy="leave --stem out")
    names = {"0": "conv1", "1": "bn1"} | {str(number): f"layer{i + 1}" for i, number in enumerate(layers)}

    def rename(name: str) -> str:
        number, _, rest = name.partition(".")
        return f"{names[number]}.{rest}" if number in names else name

    layout = shortcut(found.renamed(rename))
    return layout if layers[0] == 4 else replace(layout, assumed=())


def hf_resnet(found: Backbone) -> Layout:
    """Hugging Face transformers' ResNet."""

    def rename(name: str) -> str:
        name = re.sub(r"^embedder\.embedder\.convolution\.", "conv1.", name)
        name = re.sub(r"^embedder\.embedder\.normalization\.", "bn1.", name)
        stage = re.match(r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)$", name)
        if stage is None:
            return name
        rest = stage[3].replace("shortcut.convolution.", "downsample.0.")
        rest = rest.replace("shortcut.normalization.", "downsample.1.")
        inner = re.match(r"^layer\.(\d+)\.(convolution|normalization)\.(.*)$", rest)
        if inner:
            rest = f"{'conv' if inner[2] == 'convolution' else 'bn'}{int(inner[1]) + 1}.{inner[3]}"
        return f"layer{int(stage[1]) + 1}.{stage[2]}.{rest}"

    return resnet(found.renamed(rename))


def clip_resnet(found: Backbone) -> Layout:
    """CLIP's ResNets, which open_clip builds."""
    depth = _depth(found.weights)
    if depth not in CLIP_RESNETS:
        raise found.unknown(f"it is a ResNet of CLIP's that is not known: blocks {depth}")
    architecture = f"open_clip:{CLIP_RESNETS[depth]}"
    return Layout(
        architecture=architecture,
        pixels=own_pixels(architecture),
        normalization="CLIP's",
        weights=found.weights,
        names=found.names,
        prefix="",
        source="CLIP's ResNet",
    )
