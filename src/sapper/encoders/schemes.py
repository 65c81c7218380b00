"""Encoders that libraries and hubs know by name, and backbones recognized among tensors.

What a foreign repository says of its model is checked, and only what is listed here reaches a library: a foreign file
chooses neither what is fetched nor what is run.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sapper.encoders import sources
from sapper.encoders.backbones import ARGUMENTS, check_known, import_open_clip, own_pixels
from sapper.encoders.options import RGB, Opening
from sapper.encoders.recognition.layouts import Configured
from sapper.encoders.recognition.recognizing import ASSUMED, Found, about, recognized
from sapper.errors import SapperError, closest
from sapper.files import read_text
from sapper.running import Run

__all__ = ["ASSUMED", "SCHEMES", "Found", "Opening", "about", "recognized"]

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", *HUB_WEIGHTS)


def _open_timm(name: str, run: Run, opening: Opening) -> Found:
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
    return _published(f"timm:{name}", weights, run, opening, "timm's configuration", revision)


def _published(
    architecture: str,
    weights: sources.Weights,
    run: Run,
    opening: Opening,
    source: str,
    revision: str | None = None,
    configured: Configured = Configured(),
) -> Found:
    """A library's model with the weights that were published for it."""
    pixels = own_pixels(architecture)
    configured = replace(
        configured,
        mean=configured.mean or pixels.mean,
        std=configured.std or pixels.std,
        size=configured.size or pixels.size,
        source=source,
    )
    said = replace(opening, architecture=architecture.partition(".")[0])
    found = recognized(weights, run, said, weights.path.name, configured)
    origin = found.about | about(weights, f"{architecture.partition(':')[0]}'s", revision)
    return Found(found.encoder, found.normalization, origin)


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
    configured = Configured(mean=tuple(seen.mean), std=tuple(seen.std), size=seen.crop_size[0])
    return _published(f"torchvision:{name}", weights, run, opening, f"torchvision's {chosen}", configured=configured)


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
    configured = Configured(mean=_colors(config.get("mean")), std=_colors(config.get("std")))
    source = "open_clip's configuration"
    return _published(f"open_clip:{name}", weights, run, opening, source, revision, configured)


def _colors(values: Any) -> RGB | None:
    return tuple(values) if values else None


class HubPixels(BaseModel):
    mean: RGB | None = None
    std: RGB | None = None
    input_size: tuple[int, int, int] | None = None


class HubConfig(BaseModel):
    """``config.json`` as timm writes it. What it may set is listed here: a foreign file does not choose what is run."""

    architecture: str | None = None
    label_names: Any = None

    @property
    def classes(self) -> tuple[str, ...]:
        """What its classifier's outputs are called; none where that is said in another form."""
        names = self.label_names
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()

    model_args: dict[str, Any] = {}
    pretrained_cfg: HubPixels = HubPixels()


class Transformers(BaseModel):
    """``config.json`` as Hugging Face transformers writes it: what of a vision transformer its weights do not tell."""

    model_type: str
    num_attention_heads: int | None = None
    hidden_act: str | None = None
    downsample_in_bottleneck: bool = False
    id2label: Any = None

    @property
    def classes(self) -> tuple[str, ...]:
        """What its classifier's outputs are called; none where numbers are missing, or in another form."""
        said = self.id2label if isinstance(self.id2label, dict) else {}
        names = [said.get(str(number)) for number in range(len(said))]
        return tuple(str(name) for name in names) if all(isinstance(name, str) for name in names) else ()


class Processor(BaseModel):
    """``preprocessor_config.json``: how transformers prepares images."""

    image_mean: RGB | None = None
    image_std: RGB | None = None
    do_normalize: bool = True


def _open_hub(name: str, run: Run, opening: Opening) -> Found:
    """A repository of the Hugging Face hub, as timm lays them out, or with a file of weights to recognize."""
    repository, _, revision = name.partition("@")
    weights_path, commit = sources.from_hub(repository, CLIP_WEIGHTS, revision or None)
    weights = sources.read(weights_path, allow_weak_sandbox=opening.allow_weak_sandbox)
    config = _from_hub(repository, commit, "config.json", HubConfig) or HubConfig()
    seen = config.pretrained_cfg
    size = seen.input_size[-1] if seen.input_size else None
    configured = Configured(mean=seen.mean, std=seen.std, size=size, source="the repository's config.json")
    if config.architecture is None or opening.architecture is not None:
        if config.architecture is None:
            configured = _of_transformers(repository, commit)
        found = recognized(weights, run, opening, weights.path.name, configured)
        return Found(found.encoder, found.normalization, found.about | {"revision": commit})
    import timm

    if config.architecture not in timm.list_models():
        raise SapperError(f"timm has no model {config.architecture!r}", where="config.json: architecture")
    arguments = {name: value for name, value in config.model_args.items() if name not in NO_MATTER}
    if odd := arguments.keys() - ARGUMENTS.keys() - {"img_size"}:
        what = f"arguments that are not passed on: {', '.join(sorted(odd))}"
        raise SapperError(what, where="config.json: model_args", remedy="say --arch and the file of weights")
    side = arguments.pop("img_size", None)
    configured = replace(
        configured, size=side if isinstance(side, int) else size, arguments=arguments, classes=config.classes
    )
    return _published(f"timm:{config.architecture}", weights, run, opening, configured.source, commit, configured)


NO_MATTER = ("num_classes", "dynamic_img_size", "dynamic_img_pad", "drop_rate", "drop_path_rate", "in_chans")
"""Of a foreign ``model_args`` what changes nothing for RGB images of the model's own size, without its classifier."""


def _of_transformers(repository: str, commit: str) -> Configured:
    """What Hugging Face transformers' files beside the weights say."""
    config = _from_hub(repository, commit, "config.json", Transformers)
    if config is None:
        return Configured()
    processor = _from_hub(repository, commit, "preprocessor_config.json", Processor) or Processor()
    odd = config.hidden_act if config.hidden_act not in (None, "gelu", "relu") else None
    if odd or config.downsample_in_bottleneck:
        what = f"its activation is {odd}" if odd else "its bottlenecks have their stride in the first convolution"
        remedy = "give the network as a function of your own: package.module:function --trust-code"
        raise SapperError(f"{what}, which is not built here", where="config.json", remedy=remedy)
    heads = {"num_heads": config.num_attention_heads} if config.num_attention_heads else {}
    mean, std = processor.image_mean, processor.image_std
    if not processor.do_normalize:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    source = "the repository's preprocessor_config.json"
    return Configured(mean=mean, std=std, source=source, arguments=heads, classes=config.classes)


Config = TypeVar("Config", bound=BaseModel)


def _from_hub(repository: str, commit: str, name: str, model: type[Config]) -> Config | None:
    """A configuration of a repository; none where it has no such file, or one of another kind."""
    try:
        path, _ = sources.from_hub(repository, (name,), commit)
    except SapperError:
        return None
    try:
        return model.model_validate_json(read_text(path, "give the file of weights, with --arch"))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            return None
        where = f"{name}: {'.'.join(str(part) for part in first['loc'])}"
        raise SapperError(first["msg"], where=where, remedy="give the file of weights, with --arch") from error


SCHEMES: dict[str, Callable[[str, Run, Opening], Found]] = {
    "timm": _open_timm,
    "torchvision": _open_torchvision,
    "open_clip": _open_clip,
    "hf-hub": _open_hub,
}
