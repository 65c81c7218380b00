"""Backbones from torchvision and timm, with the stem that small images need."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.encoders.encoder import PROJECTION, Card, Encoder
from sapper.encoders.names import ARCHITECTURES, OWN, PREACT, SMALL, Stem, check_architecture
from sapper.encoders.preact import EXPANSION, PreActResNet
from sapper.encoders.small import small
from sapper.errors import SapperError, closest
from sapper.running import Run
from sapper.samples import PixelSpec

ARGUMENTS: dict[str, type | tuple[type, ...]] = {
    # of timm's vision transformers
    **dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads", "reg_tokens"), int),
    **dict.fromkeys(("class_token", "no_embed_class", "fc_norm", "pre_norm", "qk_norm", "qkv_bias"), bool),
    **dict.fromkeys(("init_values", "mlp_ratio", "norm_eps"), (int, float)),
    **dict.fromkeys(("global_pool", "act_layer"), str),
    "se_ratio": (int, float),  # of squeeze-and-excitation branches without bias in timm's ResNets
    "last_norm": bool,  # of pre-activation ResNets
    PROJECTION: int,  # of any network: a linear map behind it, into the space of a text tower
}
"""What ``build`` takes as ``arguments``, and of which type. A foreign file or configuration chooses no others."""

LARGEST = {"depth": 256, "patch_size": 512, "num_heads": 512, "reg_tokens": 1024}
"""Of arguments: beyond it is no network, but an attempt to keep the program busy."""

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pixels:
    """What images a model is made for: their ``size``, and ``mean`` and ``std`` per channel for images in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build(
    run: Run,
    *,
    architecture: str = "resnet18",
    width: int = 64,
    input_size: int = 32,
    stem: Stem = "cifar",
    mean: tuple[float, float, float] = CIFAR_MEAN,
    std: tuple[float, float, float] = CIFAR_STD,
    arguments: Mapping[str, Any] | None = None,
) -> Encoder:
    """An untrained encoder, initialized from the run's seed, on its device.

    The default is BadEncoder's (``models/simclr_model.py``): ResNet-18, a 3×3 first convolution with stride 1, no
    max-pooling, 512 features, CIFAR-10's normalization as the authors' code has it. ``architecture`` is one of
    ``names.OWN``, or ``timm:NAME``, ``torchvision:NAME`` or ``open_clip:NAME`` (its image tower). ``width`` is the
    number of channels after the stem (64 in the papers, less for CPUs; models by name have their own); the features are
    8 times as many, 32 times with bottleneck blocks. ``stem="imagenet"`` keeps the 7×7 convolution with stride 2 and
    the max-pooling, and any model's own stem. ``arguments``: see ``Card`` and ``ARGUMENTS``.

    Raises ``SapperError`` for an unknown architecture, one whose stem cannot be changed, or arguments that do not fit.
    """
    given = dict(arguments or {})
    with run.seeded():
        backbone, features = _network(architecture, width, stem, input_size, given)
        _replace_narrow_shortcuts(backbone)
        pixels = PixelSpec(size=input_size, mean=mean, std=std)
        card = Card(architecture=architecture, width=width, stem=stem, input=pixels, arguments=given)
        encoder = Encoder(backbone, card, features)
        if given.get(PROJECTION):
            encoder.project(given[PROJECTION])
    return encoder.to(run.device).to(memory_format=torch.channels_last)


def build_like(card: Card, run: Run) -> Encoder:
    """``build`` with what a card says of the image network; the text tower is the caller's."""
    return build(
        run,
        architecture=card.architecture,
        width=card.width,
        input_size=card.input_size,
        stem=card.stem,
        mean=card.mean,
        std=card.std,
        arguments=card.arguments,
    )


def _network(
    architecture: str, width: int, stem: Stem, size: int, arguments: Mapping[str, Any]
) -> tuple[nn.Module, int]:
    """The module, and how many features it gives."""
    for name, value in arguments.items():
        fine = name in ARGUMENTS and isinstance(value, ARGUMENTS[name])
        if not fine or (isinstance(value, int | float) and not 0 <= value <= LARGEST.get(name, 2**14)):
            what = f"{name} = {value!r} is no argument of a network"
            raise SapperError(what, where="encoder.arguments", remedy=f"known: {', '.join(ARGUMENTS)}")
    arguments = {name: value for name, value in arguments.items() if name != PROJECTION}  # behind the network
    scheme, _, name = architecture.partition(":")
    if scheme in BY_NAME:
        return BY_NAME[scheme](name, stem, size, arguments)
    check_architecture(architecture)
    if architecture not in ARCHITECTURES and stem != "cifar":
        remedy = f'say stem = "cifar", or choose one of {", ".join(ARCHITECTURES)}'
        raise SapperError(f"{architecture} has no ResNet stem to exchange", where="encoder.stem", remedy=remedy)
    if architecture in PREACT:
        kind, depth = PREACT[architecture]
        return PreActResNet(kind, depth, width, **arguments), 8 * width * EXPANSION[kind]
    if arguments:
        what = f"{architecture} takes no {', '.join(arguments)}"
        raise SapperError(what, where="encoder.arguments", remedy="leave them out, or choose another architecture")
    return small(architecture, width) if architecture in SMALL else _resnet(architecture, width, stem)


def _resnet(architecture: str, width: int, stem: Stem) -> tuple[nn.Module, int]:
    """torchvision's ResNet of any width, without its classifier."""
    from torchvision.models import resnet  # brings torch's compiler along, which takes seconds

    kind, layers = ARCHITECTURES[architecture]
    block = getattr(resnet, kind)
    net = resnet.ResNet(block, list(layers))
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for index, depth in enumerate(layers):
        stride = 1 if index == 0 else 2
        net.add_module(f"layer{index + 1}", net._make_layer(block, width * 2**index, depth, stride=stride))
    net.fc = nn.Identity()
    if stem != "imagenet":
        _use_small_stem(net, width, pool=stem == "cifar-pool")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net, 8 * width * block.expansion


def blueprint(
    architecture: str, width: int, stem: Stem, size: int, arguments: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """The state dict of a network without memory for it: what a foreign file asks for, before it is built.

    Raises ``SapperError`` for a network that there is not.
    """
    try:
        if width < 1:
            raise ValueError(width)
        with torch.device("meta"):
            return _network(architecture, width, stem, size, arguments or {})[0].state_dict()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError, IndexError) as error:
        what = f"there is no {architecture} of width {width}" if architecture in OWN else f"there is no {architecture}"
        more = f" with {', '.join(f'{name}={value}' for name, value in arguments.items())}" if arguments else ""
        raise SapperError(f"{what}{more}", remedy="get another copy") from error


def sketch(architecture: str, stem: Stem, size: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A library's network without memory for its weights; open_clip's have it, whose sizes are the library's own."""
    if architecture.startswith("open_clip:"):
        return _network(architecture, 64, stem, size, arguments)[0]
    blueprint(architecture, 64, stem, size, arguments)
    with torch.device("meta"):
        return _network(architecture, 64, stem, size, arguments)[0]


def _timm(name: str, stem: Stem, size: int, arguments: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """A model of timm's by name, untrained and without its classifier."""
    import timm

    check_known("timm", name, timm.list_models())
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size  # transformers, whose positions are as many as patches
    given = ({"img_size": size} if fixed else {}) | _for_timm(arguments)
    try:
        net: Any = timm.create_model(name, num_classes=0, **given)
    except (TypeError, AssertionError, AttributeError, KeyError, ValueError) as error:
        told = ", ".join(f"{key} = {value}" for key, value in given.items())
        what, remedy = f"timm's {name} cannot be made with {told}: {error}", "leave out the options that say so"
        raise SapperError(what, where="encoder.architecture", remedy=remedy) from error
    _exchange_stem(net, name, stem)
    return net, net.head_hidden_size  # num_features is the width before a convolution that some models have last


def _for_timm(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as timm's models take them."""
    from timm.layers.norm import LayerNorm
    from timm.layers.squeeze_excite import SEModule

    given = dict(arguments)
    if (ratio := given.pop("se_ratio", None)) is not None:
        branch = partial(SEModule, rd_ratio=ratio, rd_divisor=1, bias=False)
        given["block_args"] = {"attn_layer": branch}
    if (eps := given.pop("norm_eps", None)) is not None:
        given["norm_layer"] = partial(LayerNorm, eps=eps)
    return given


def _torchvision(name: str, stem: Stem, _size: int, arguments: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """A model of torchvision's by name, untrained: what its last linear layer takes are the features."""
    from torchvision import models

    check_known("torchvision", name, models.list_models(module=models))
    _take_none(name, arguments)
    slow = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # not to be warned of it
    net: Any = models.get_model(name, **slow)
    place, last = _last_linear(net, name)
    parent, _, child = place.rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())
    _exchange_stem(net, name, stem)
    return net, last.in_features


def _last_linear(net: nn.Module, name: str) -> tuple[str, nn.Linear]:
    """The layer that makes classes of features, and its name."""
    layers = [(place, layer) for place, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not layers or layers[-1][1].out_features != 1000:
        remedy = f"take timm:{name}"
        raise SapperError(f"{name} does not end in a linear layer", where="encoder.architecture", remedy=remedy)
    return layers[-1]


def last_linear(name: str) -> str:
    """What torchvision's model of that name calls its last layer."""
    from torchvision import models

    with torch.device("meta"):
        return _last_linear(models.get_model(name), name)[0]


def _open_clip(name: str, stem: Stem, _size: int, arguments: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The image tower of a model of open_clip's by name, untrained."""
    open_clip = import_open_clip()
    check_known("open_clip", name, open_clip.list_models())
    _take_none(name, arguments)
    if stem != "imagenet":
        remedy = 'say stem = "imagenet" and an input_size that the model is made for'
        raise SapperError(f"{name} has no ResNet stem to exchange", where="encoder.stem", remedy=remedy)
    with _quiet():  # it would tell that no weights were loaded: they come from the file
        tower = open_clip.create_model(name, load_weights=False).visual
    return tower, open_clip.get_model_config(name)["embed_dim"]


def _take_none(name: str, arguments: Mapping[str, Any]) -> None:
    if arguments:
        what = f"{name} takes no {', '.join(arguments)}"
        raise SapperError(what, where="encoder.arguments", remedy=f"leave them out, or take timm:{name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks of the root logger, to which open_clip writes."""

    def none(_record: logging.LogRecord) -> bool:
        return False

    root = logging.getLogger()
    root.addFilter(none)
    try:
        yield
    finally:
        root.removeFilter(none)


BY_NAME: dict[str, Callable[[str, Stem, int, Mapping[str, Any]], tuple[nn.Module, int]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
}
"""Libraries of models: ``timm:NAME`` and so on."""


def check_known(library: str, name: str, models: list[str]) -> None:
    """Raises ``SapperError`` with the closest names when a library has no model of that name."""
    if name not in models:
        what, remedy = f"{library} has no model {name!r}", closest(name, models)
        raise SapperError(what, where="encoder.architecture", remedy=remedy)


def import_open_clip() -> Any:
    """The library open_clip. Raises ``SapperError`` when it is not installed."""
    try:
        import open_clip
    except ImportError as error:
        remedy = "install it: pip install 'sapper[clip]'"
        raise SapperError("open_clip is not installed", where="open_clip:", remedy=remedy) from error
    return open_clip


def own_pixels(architecture: str, stem: Stem = "imagenet") -> Pixels:
    """The images that a model by name is made for, by its library's configuration; ResNets of ours by their stem."""
    scheme, _, name = architecture.partition(":")
    if scheme == "timm":
        import timm

        check_known("timm", name, timm.list_models())
        config: Any = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        return Pixels(config.input_size[-1], tuple(config.mean), tuple(config.std))
    if scheme == "torchvision":
        from torchvision import models

        check_known("torchvision", name, models.list_models(module=models))
        seen = models.get_model_weights(name).DEFAULT.transforms()
        return Pixels(seen.crop_size[0], tuple(seen.mean), tuple(seen.std))
    if scheme == "open_clip":
        open_clip = import_open_clip()
        check_known("open_clip", name, open_clip.list_models())
        size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
        return Pixels(size, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    if stem != "imagenet" or architecture not in ARCHITECTURES:
        return Pixels(32, CIFAR_MEAN, CIFAR_STD)
    return Pixels(224, IMAGENET_MEAN, IMAGENET_STD)


def _exchange_stem(net: Any, name: str, stem: Stem) -> None:
    if stem != "imagenet":
        if not (isinstance(getattr(net, "conv1", None), nn.Conv2d) and hasattr(net, "maxpool")):
            remedy = 'say stem = "imagenet" and an input_size that the model is made for'
            raise SapperError(f"{name} has no ResNet stem to exchange", where="encoder.stem", remedy=remedy)
        _use_small_stem(net, net.conv1.out_channels, pool=stem == "cifar-pool")


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


def _use_small_stem(net: nn.Module, width: int, *, pool: bool) -> None:
    """Keep the full resolution of 32×32 images: a 3×3 convolution with stride 1, and by default no max-pooling."""
    net.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
    if not pool:
        net.maxpool = nn.Identity()
