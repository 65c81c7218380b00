"""Encoders that libraries and hubs know by name, and backbones recognized among tensors.

What a foreign repository says of its model is checked, and only what is listed here reaches a library: a foreign file
chooses neither what is fetched nor what is run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import Tensor

from sapper.encoders import layouts, sources
from sapper.encoders.backbones import blueprint, build, check_known, import_open_clip, own_pixels
from sapper.encoders.encoder import Card, Encoder
from sapper.encoders.names import ARCHITECTURES
from sapper.errors import SapperError, closest
from sapper.files import sha256
from sapper.run import Run

RGB = tuple[float, float, float]

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", *HUB_WEIGHTS)


ASSUMED = "assumed from the architecture; say --mean, --std and --size if it was trained otherwise"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open an encoder; what is none is read from the model's own configuration, or inferred from its weights.

    ``architecture``: a key of ``ARCHITECTURES``, ``timm:NAME``, ``torchvision:NAME`` or ``open_clip:NAME``, for files
    of weights. ``size`` of images in pixels; ``mean``, ``std`` per channel, for images in [0, 1]. ``trust_code``: run
    ``package.module:factory``. ``allow_weak_sandbox``: read pickles where no filter of system calls can be had.
    """

    architecture: str | None = None
    size: int | None = None
    mean: RGB | None = None
    std: RGB | None = None
    trust_code: bool = False
    allow_weak_sandbox: bool = False


@dataclass(frozen=True)
class Found:
    """An encoder with its own normalization, where that is from, and what is known of its file."""

    encoder: Encoder
    normalization: str
    about: dict[str, Any]


def _open_timm(name: str, _run: Run, opening: Opening) -> Found:
    """A model of timm's with published weights, from the hub or from where timm keeps them."""
    import timm

    known = timm.list_models(pretrained=True)
    if name not in known and name not in {each.partition(".")[0] for each in known}:
        raise SapperError(f"timm has no weights of a model {name!r}", remedy=closest(name, known))
    config: Any = timm.get_pretrained_cfg(name)
    revision = None
    if config.hf_hub_id:
        wanted = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_WEIGHTS
        path, revision = sources.from_hub(config.hf_hub_id, wanted, None)
    else:
        path = sources.from_address(config.url)
    weights = sources.read(path, allow_weak_sandbox=opening.allow_weak_sandbox)
    encoder = _timm_encoder(name, weights, {}, {}, opening)
    return Found(encoder, "from timm's configuration", about(weights, "timm's", revision))


def _open_torchvision(name: str, run: Run, opening: Opening) -> Found:
    """A model of torchvision's with one of the sets of weights that torchvision publishes."""
    from torchvision import models

    name, _, tag = name.partition("/")
    known = models.list_models(module=models)
    check_known("torchvision", name, known)
    choices = models.get_model_weights(name)
    if tag and tag not in choices.__members__:
        raise SapperError(f"{name} has no weights {tag!r}", remedy=closest(tag, list(choices.__members__)))
    chosen = choices[tag] if tag else choices.DEFAULT
    weights = sources.read(sources.from_address(chosen.url), allow_weak_sandbox=opening.allow_weak_sandbox)
    seen = chosen.transforms()
    encoder = build(
        run,
        architecture=f"torchvision:{name}",
        stem="imagenet",
        input_size=opening.size or seen.crop_size[0],
        mean=tuple(seen.mean),
        std=tuple(seen.std),
    )
    _fill(encoder, weights.tensors, weights.path.name)
    return Found(encoder, f"from torchvision's {chosen}", about(weights, "torchvision's"))


def _open_clip(name: str, run: Run, opening: Opening) -> Found:
    """The image tower of a model of open_clip's."""
    name, _, tag = name.partition("/")
    open_clip = import_open_clip()
    check_known("open_clip", name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise SapperError(f"{name} has no weights {tag!r}", remedy=f"write open_clip:{name}/TAG; {closest(tag, tags)}")
    config = open_clip.get_pretrained_cfg(name, tag)
    revision = None
    if config.get("hf_hub"):
        repository, _, file = config["hf_hub"].rstrip("/").rpartition("/")
        whole = "/" not in repository
        repository = config["hf_hub"].rstrip("/") if whole else repository
        path, revision = sources.from_hub(repository, CLIP_WEIGHTS if whole else (file,), None)
    else:
        path = sources.from_address(config["url"])
    if config.get("quick_gelu") and f"{name}-quickgelu" in open_clip.list_models():
        name = f"{name}-quickgelu"
    weights = sources.read(path, allow_weak_sandbox=opening.allow_weak_sandbox)
    pixels = own_pixels(f"open_clip:{name}")
    encoder = build(
        run,
        architecture=f"open_clip:{name}",
        stem="imagenet",
        input_size=pixels.size,
        mean=tuple(config.get("mean") or pixels.mean),
        std=tuple(config.get("std") or pixels.std),
    )
    _fill(encoder, weights.tensors, weights.path.name)
    return Found(encoder, "from open_clip's configuration", about(weights, "open_clip's", revision))


class HubPixels(BaseModel):
    mean: RGB | None = None
    std: RGB | None = None
    input_size: tuple[int, int, int] | None = None
    num_classes: int | None = None
    first_conv: str | None = None
    classifier: str | None = None


class HubConfig(BaseModel):
    """``config.json`` as timm writes it. What it may set is listed here: a foreign file does not choose what is run."""

    architecture: str | None = None
    model_args: dict[str, Any] = {}
    pretrained_cfg: HubPixels = HubPixels()


MODEL_ARGUMENTS = {"img_size", "global_pool", "patch_size", "embed_dim", "depth", "num_heads", "reg_tokens"}
"""Of a foreign ``model_args`` what may reach timm."""


def _open_hub(name: str, run: Run, opening: Opening) -> Found:
    """A repository of the Hugging Face hub, as timm lays them out, or with a file of weights to recognize."""
    repository, _, revision = name.partition("@")
    weights_path, commit = sources.from_hub(repository, CLIP_WEIGHTS, revision or None)
    weights = sources.read(weights_path, allow_weak_sandbox=opening.allow_weak_sandbox)
    config = _hub_config(repository, commit)
    if config.architecture is None or opening.architecture is not None:
        found = recognized(weights, run, opening, weights.path.name)
        return Found(found.encoder, found.normalization, found.about | {"revision": commit})
    import timm

    if config.architecture not in timm.list_models():
        raise SapperError(f"timm has no model {config.architecture!r}", where="config.json: architecture")
    if odd := config.model_args.keys() - MODEL_ARGUMENTS:
        what = f"arguments that are not passed on: {', '.join(sorted(odd))}"
        raise SapperError(what, where="config.json: model_args", remedy="say --arch and the file of weights")
    overlay = config.pretrained_cfg.model_dump(exclude_none=True)
    encoder = _timm_encoder(config.architecture, weights, overlay, config.model_args, opening)
    return Found(encoder, "from the repository's config.json", about(weights, "timm's", commit))


def _hub_config(repository: str, commit: str) -> HubConfig:
    """What the repository says of its model; nothing where it says nothing."""
    try:
        path, _ = sources.from_hub(repository, ("config.json",), commit)
    except SapperError:
        return HubConfig()
    try:
        return HubConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = f"config.json: {'.'.join(str(part) for part in first['loc'])}"
        raise SapperError(first["msg"], where=where, remedy="give the file of weights, with --arch") from error


def _timm_encoder(
    name: str, weights: sources.Weights, overlay: dict[str, Any], arguments: dict[str, Any], opening: Opening
) -> Encoder:
    """timm's model with the tensors in it: timm renames what its older files call otherwise."""
    import timm

    safe = {"source": "", "url": "", "hf_hub_id": None, "custom_load": False, "state_dict": dict(weights.tensors)}
    config: Any = timm.get_pretrained_cfg(name)
    if opening.size is not None and config.fixed_input_size:
        arguments = arguments | {"img_size": opening.size}
    try:
        net: Any = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay | safe, **arguments
        )
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"the weights do not fit {name}: {str(error)[:300]}"
        raise SapperError(what, where=weights.path.name, remedy="say the architecture with --arch") from error
    seen = net.pretrained_cfg
    card = Card(
        architecture=f"timm:{name.partition('.')[0]}",
        stem="imagenet",
        input_size=seen["input_size"][-1],
        mean=tuple(seen["mean"]),
        std=tuple(seen["std"]),
    )
    return Encoder(net, card, net.head_hidden_size)


SCHEMES: dict[str, Callable[[str, Run, Opening], Found]] = {
    "timm": _open_timm,
    "torchvision": _open_torchvision,
    "open_clip": _open_clip,
    "hf-hub": _open_hub,
}


def recognized(weights: sources.Weights, run: Run, opening: Opening, where: str) -> Found:
    """A backbone among tensors, recognized by names and shapes, or of the architecture that was said."""
    said = opening.architecture
    if said is not None and said not in ARCHITECTURES:
        pixels = own_pixels(said)
        size = opening.size or pixels.size
        encoder = build(run, architecture=said, stem="imagenet", input_size=size, mean=pixels.mean, std=pixels.std)
        _fill(encoder, weights.tensors, where)
        return Found(encoder, ASSUMED, about(weights, f"as {said}"))
    layout = layouts.recognize(weights.tensors, where)
    pixels = own_pixels(layout.architecture, layout.stem)
    if layout.architecture in ARCHITECTURES:  # shapes first: a small file may name a network that fills the memory
        layouts.fitting(layout.weights, blueprint(said or layout.architecture, layout.width, layout.stem), where)
    encoder = build(
        run,
        architecture=said or layout.architecture,
        width=layout.width,
        stem=layout.stem,
        input_size=layout.input_size,
        mean=pixels.mean,
        std=pixels.std,
    )
    _fill(encoder, layout.weights, where)
    return Found(encoder, ASSUMED, about(weights, layout.source))


def _fill(encoder: Encoder, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put the weights in; their names may stand behind a prefix."""
    state = encoder.backbone.state_dict()
    encoder.backbone.load_state_dict(layouts.fitting(dict(tensors), state, where))


def about(weights: sources.Weights, layout: str, revision: str | None = None) -> dict[str, Any]:
    known: dict[str, Any] = {"file": weights.path.name, "sha256": sha256(weights.path), "layout": layout}
    return known | ({"revision": revision} if revision else {})
