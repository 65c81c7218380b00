"""Encoders of others: recognized by their weights, found by name, and refused with a reason."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from sapper import encoders
from sapper.audits import auditing
from sapper.encoders import Encoder, Opening, schemes, sources
from sapper.encoders.recognition import families
from sapper.errors import SapperError
from sapper.files import sha256
from sapper.running import Run

RUN = Run(seed=1)
CHANNELS = torch.channels_last
State = dict[str, Tensor]


def made(architecture: str = "resnet10", *, stem: encoders.Stem = "cifar", seed: int = 7) -> Encoder:
    """A small encoder whose BatchNorms have seen images, so that all of its state matters."""
    encoder = encoders.build(Run(seed=seed), architecture=architecture, width=4, stem=stem)
    for _ in range(3):
        encoder(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    return encoder.eval()


def behind(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def numbered(state: State, first_layer: int) -> State:
    """As in ``nn.Sequential(*children)``."""
    numbers = {"conv1": 0, "bn1": 1} | {f"layer{i + 1}": first_layer + i for i in range(4)}
    return {f"{numbers[name.split('.')[0]]}.{name.split('.', 1)[1]}": value for name, value in state.items()}


def other(state: State) -> State:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def normalized(images: Tensor, encoder: Encoder) -> Tensor:
    """By what the encoder's card says."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.card.mean, encoder.card.std))
    return (images - mean) / std


HEAD = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}

LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, "a state dict"),
    "plain, with a classifier": (lambda s: s | behind("fc.", HEAD), "a state dict"),
    "torchvision's training": (lambda s: {"model": s | behind("fc.", HEAD), "epoch": 3, "args": {"lr": 1}}, "a state"),
    "data parallel": (lambda s: {"state_dict": behind("module.", s)}, "a state dict"),
    "MoCo": (
        lambda s: {
            "state_dict": behind("module.encoder_q.", s | behind("fc.0.", HEAD))
            | behind("module.encoder_k.", other(s))
            | {"module.queue": torch.rand(3, 4)}
        },
        "MoCo",
    ),
    "BYOL": (
        lambda s: (
            behind("online_encoder.net.", s) | behind("target_encoder.net.", other(s)) | behind("predictor.", HEAD)
        ),
        "BYOL",
    ),
    "solo-learn": (
        lambda s: {
            "state_dict": behind("backbone.", s) | behind("momentum_backbone.", other(s)) | behind("proj.", HEAD)
        },
        "SimCLR, solo-learn or lightly",
    ),
    "lightly": (
        lambda s: {"state_dict": behind("backbone.", numbered(s, 3)) | behind("projection_head.0.", HEAD)},
        "SimCLR, solo-learn or lightly",
    ),
    "SimCLR": (lambda s: {"arch": "resnet18", "state_dict": behind("backbone.", s | behind("fc.0.", HEAD))}, "SimCLR"),
    "BadEncoder": (
        lambda s: {"epoch": 200, "state_dict": behind("f.f.", numbered(s, 3)) | behind("g.0.", HEAD), "optimizer": {}},
        "SimCLR as in BadEncoder",
    ),
    "DECREE": (lambda s: {"state_dict": behind("f.", numbered(s, 3))}, "SimCLR as in DECREE"),
    "DINO": (
        lambda s: {
            "student": behind("module.backbone.", other(s)),
            "teacher": behind("backbone.", s) | behind("head.", HEAD),
        },
        "DINO",
    ),
    "VISSL": (
        lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": behind("_feature_blocks.", s)}}}},
        "VISSL",
    ),
}


def flat(content: Any, path: tuple[str, ...] = ()) -> State:
    """The tensors of nested dicts by their dotted path, as the sandbox names them."""
    if isinstance(content, Tensor):
        return {".".join(path): content.contiguous()}
    inner = content.items() if isinstance(content, dict) else ()
    return {name: value for key, each in inner for name, value in flat(each, (*path, key)).items()}


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_backbone_is_found_in_its_layout(name: str, tmp_path: Path) -> None:
    """What comes out computes the same features as what went in, for SimCLR, MoCo, BYOL and others."""
    encoder = made()
    wrap, source = LAYOUTS[name]
    content = wrap(encoder.backbone.state_dict())
    if name in ("BadEncoder", "MoCo"):
        path = tmp_path / "checkpoint.pth"
        torch.save(content, path)
    else:
        path = tmp_path / "checkpoint.safetensors"
        safetensors.torch.save_file(flat(content), path)
    opened = encoders.open(str(path), RUN)
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(opened(images), encoder.backbone(normalized(images, opened).contiguous(memory_format=CHANNELS)))
    assert not opened.training
    card = opened.card
    assert (card.architecture, card.width, card.stem, card.input_size) == ("resnet10", 4, "cifar", 32)
    assert str(card.origin["layout"]).startswith(source)
    assert card.origin["opened"] == str(path)
    assert len(card.origin["sha256"]) == 64
    known = name in ("MoCo", "DINO", "VISSL")  # programs whose code normalizes in one way
    assert known != ("assumed" in card.origin["normalization"])


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_the_architecture_is_inferred_from_the_shapes(architecture: str, stem: encoders.Stem, tmp_path: Path) -> None:
    encoder = made(architecture, stem=stem)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(flat(encoder.backbone.state_dict()), path)
    opened = encoders.open(str(path), RUN, Opening(size=64))
    images = torch.rand(2, 3, 64, 64)
    assert (opened.card.architecture, opened.card.stem, opened.card.input_size) == (architecture, stem, 64)
    ours = Encoder(encoder.backbone, opened.card, encoder.feature_size).eval()
    assert torch.equal(opened(images), ours(images))


@pytest.mark.parametrize("named", [True, False])
def test_numbers_of_layers_tell_whether_there_is_a_pooling(named: bool) -> None:
    state = made("resnet18", stem="imagenet").backbone.state_dict()
    layout = families.recognize(behind("backbone.", state if named else numbered(state, 4)), "x")
    assert (layout.architecture, layout.stem, layout.input_size) == ("resnet18", "imagenet", 224)
    assert layout.weights.keys() == state.keys()
    with pytest.raises(SapperError, match="another stem"):
        families.recognize(numbered(state, 3), "x")


@pytest.mark.parametrize(
    ("model", "architecture", "size"),
    [
        ("resnet101", "resnet101", 224),
        ("resnet152", "resnet152", 224),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224", 224),
        ("vit_base_patch16_384", "timm:vit_base_patch16_384", 384),
        ("vit_large_patch14_224", "timm:vit_large_patch14_224", 224),
    ],
)
def test_large_ones_are_recognized_by_shapes_alone(model: str, architecture: str, size: int) -> None:
    with torch.device("meta"):
        state = timm.create_model(model).state_dict()
    layout = families.recognize(behind("module.base_encoder.", state), "x")
    assert (layout.architecture, layout.input_size, layout.source) == (architecture, size, "MoCo v3")


@pytest.mark.parametrize("model", ["wide_resnet50_2", "resnext50_32x4d", "resnet26", "resnet50d"])
def test_what_is_not_known_asks_for_the_architecture(model: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(model).state_dict()
    with pytest.raises(SapperError, match=r"known.*\n.*--arch") as caught:
        families.recognize(state, "weights.pth")
    assert caught.value.where == "weights.pth"


def test_an_architecture_can_be_said(tmp_path: Path) -> None:
    """For what is not recognized, and for a check of what is believed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = timm.create_model("resnet26t", num_classes=10).eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(behind("backbone.", net.state_dict()), path)
    opened = encoders.open(str(path), RUN, Opening(architecture="timm:resnet26t", size=64))
    images = torch.rand(2, 3, 64, 64)
    expected = net.forward_head(net.forward_features(normalized(images, opened)), pre_logits=True)
    assert torch.allclose(opened(images), expected, atol=1e-5)
    with pytest.raises(SapperError, match=r"do not fit the architecture, at \d+ of \d+ places: .* is missing"):
        encoders.open(str(path), RUN, Opening(architecture="timm:resnet50"))
    with pytest.raises(SapperError, match="unknown architecture 'resnet51'"):
        encoders.open(str(path), RUN, Opening(architecture="resnet51"))


def test_mismatching_keys_are_listed_and_shortened(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(flat(made("resnet18").backbone.state_dict()), path)
    with pytest.raises(SapperError, match=r"layer1.2.bn1.bias is missing.* and \d+ more") as caught:
        encoders.open(str(path), RUN, Opening(architecture="resnet34"))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"a": made().backbone.state_dict(), "b": made(seed=8).backbone.state_dict()},
            "there are 2 backbones in it, and nothing tells which is meant: 'a.', 'b.'",
        ),
        ({"weight": torch.ones(3, 4)}, "no backbone that is known"),
        ({"conv1.weight": torch.ones(4, 1, 3, 3), "layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}, "not RGB"),
        (made().backbone.state_dict() | {"bn1.bias": torch.ones(5)}, r"bn1.bias is 5, not 4"),
        (made().backbone.state_dict() | {"bn1.bias": torch.ones(4, dtype=torch.int32)}, "bn1.bias is torch.int32"),
    ],
)
def test_files_that_hold_no_encoder(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(flat(content), path)
    with pytest.raises(SapperError, match=message):
        encoders.open(str(path), RUN)


@pytest.mark.parametrize(
    "state",
    [
        {"0.weight": torch.ones(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)},
        {"conv1.weight": torch.ones(()), "0.weight": torch.ones(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(1)},
        {
            "patch_embed.proj.weight": torch.ones(192, 3, 16, 16),
            "blocks.0.attn.qkv.weight": torch.ones(1),
            "pos_embed": torch.ones(3),
        },
        {f"layer{i}.{j}.conv1.weight": torch.ones(1) for i in range(1, 5) for j in range(2)}
        | {"conv1.weight": torch.ones(9000, 3, 3, 3), "layer1.0.conv2.weight": torch.ones(1).expand(9000, 9000, 1, 1)},
    ],
)
def test_half_a_backbone_is_refused_before_anything_is_built(state: State) -> None:
    """The last names a network of terabytes."""
    weights = sources.Weights(tensors=state, path=Path("x.safetensors"), metadata={})
    with pytest.raises(SapperError):
        schemes.recognized(weights, RUN, Opening(), "x")


@pytest.mark.parametrize("width", [0, -3, 8, 10**5, 10**12])
def test_a_card_cannot_ask_for_another_network_than_the_files(width: int, tmp_path: Path) -> None:
    path = tmp_path / "card.safetensors"
    encoders.save(made(), path)
    with safetensors.safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["sapper.card"]) | {"width": width}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"sapper.card": json.dumps(card)})
    with pytest.raises(SapperError, match=r"do not fit the card|there is no resnet10"):
        encoders.open(str(path), RUN)


@pytest.mark.parametrize("architecture", ["torchvision:resnet1", "timm:nothing", "open_clip:RN5", "other:thing"])
def test_an_architecture_that_nobody_has_is_told(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(flat(made().backbone.state_dict()), path)
    with pytest.raises(SapperError, match=r"has no model|unknown architecture") as caught:
        encoders.open(str(path), RUN, Opening(architecture=architecture))
    assert caught.value.remedy


def test_counters_that_old_files_lack_begin_at_zero(tmp_path: Path) -> None:
    encoder = made()
    state = {k: v for k, v in encoder.backbone.state_dict().items() if "num_batches" not in k}
    path, images = tmp_path / "old.safetensors", torch.rand(2, 3, 32, 32)
    safetensors.torch.save_file(flat(state), path)
    assert torch.equal(encoders.open(str(path), RUN)(images), encoder(images))


def test_ours_are_opened_with_their_cards(tmp_path: Path) -> None:
    encoder = made().marked(backdoored=True, origin={"method": "badencoder"})
    path = tmp_path / "x-BACKDOORED.safetensors"
    encoders.save(encoder, path)
    opened = encoders.open(str(path), RUN)
    assert opened.card.backdoored
    assert opened.card.origin["method"] == "badencoder"
    assert opened.card.origin["normalization"] == "from its card"
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(opened(images), encoder(images))


def test_what_a_file_says_of_its_own_opening_does_not_count(tmp_path: Path) -> None:
    """A bill of materials would else name the commit of the genuine model."""
    claims = {"revision": "f" * 40, "sha256": "0" * 64, "layout": "timm", "method": "simclr"}
    path = tmp_path / "claims.safetensors"
    encoders.save(made().marked(backdoored=False, origin=claims), path)
    about = auditing.about(encoders.open(str(path), RUN))
    assert "revision" not in about
    assert about["sha256"] == sha256(path)
    assert about["layout"] != "timm"


def test_normalization_and_size_can_be_said(tmp_path: Path) -> None:
    encoder, path = made(), tmp_path / "a.safetensors"
    safetensors.torch.save_file(flat(encoder.backbone.state_dict()), path)
    opened = encoders.open(str(path), RUN, Opening(size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)))
    card = opened.card
    assert (card.input_size, card.mean, card.std) == (48, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert card.origin["normalization"] == "as was said"
    images = torch.rand(2, 3, 48, 48)
    pixels = normalized(images, opened)
    assert torch.allclose(opened(images), encoder.backbone(pixels), atol=1e-6)
    guessed = encoders.open(str(path), RUN, Opening()).card.origin["normalization"]
    sized = encoders.open(str(path), RUN, Opening(size=48)).card.origin["normalization"]
    assert sized == guessed  # who says the size has not said the colors
    half = encoders.open(str(path), RUN, Opening(mean=(0.5, 0.4, 0.3))).card.origin["normalization"]
    assert half == f"mean as was said; the rest {guessed}"


def put_into_hub(cache: Path, repository: str, files: dict[str, bytes], commit: str = "c" * 40) -> None:
    """A repository in the layout of the hub's cache: blobs, and snapshots that link to them."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "snapshots" / commit).mkdir(parents=True)
    for number, (name, content) in enumerate(files.items()):
        blob = root / "blobs" / f"{commit[:8]}{number}"
        blob.write_bytes(content)
        (root / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob.name}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network: what the hub's own code finds without one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def timm_model(name: str, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return timm.create_model(name, **arguments).eval()


CONFIG = {
    "architecture": "resnet10t",
    "num_classes": 7,
    "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 7},
}


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("pickled", [False, True])
def test_a_repository_of_the_hub_with_its_own_configuration(pickled: bool, hub: Path, tmp_path: Path) -> None:
    net = timm_model("resnet10t", num_classes=7)
    file = tmp_path / "weights"
    if pickled:
        torch.save(net.state_dict(), file)
    else:
        safetensors.torch.save_file(net.state_dict(), file)
    name = "pytorch_model.bin" if pickled else "model.safetensors"
    put_into_hub(hub, "someone/encoder", {"config.json": json.dumps(CONFIG).encode(), name: file.read_bytes()})
    opened = encoders.open("hf-hub:someone/encoder", RUN)
    card = opened.card
    assert (card.architecture, card.input_size) == ("timm:resnet10t", 64)
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert card.origin["revision"] == "c" * 40
    assert "config.json" in card.origin["normalization"]
    images = torch.rand(2, 3, 64, 64)
    pixels = normalized(images, opened)
    expected = net.forward_head(net.forward_features(pixels), pre_logits=True)
    assert torch.allclose(opened(images), expected, atol=1e-5)
    assert torch.equal(encoders.open(f"hf-hub:someone/encoder@{'c' * 40}", RUN)(images), opened(images))
    encoders.save(opened, tmp_path / "kept.safetensors")
    assert torch.equal(encoders.load(tmp_path / "kept.safetensors", RUN)(images), opened(images))


def test_a_revision_is_the_one_that_was_asked_for(hub: Path) -> None:
    for commit, seed in (("a" * 40, 1), ("b" * 40, 2)):
        state = {k: v.contiguous() for k, v in made(seed=seed).backbone.state_dict().items()}
        put_into_hub(hub, "org/two", {"model.safetensors": safetensors.torch.save(state)}, commit)
    images = torch.rand(2, 3, 32, 32)
    opened = encoders.open(f"hf-hub:org/two@{'a' * 40}", RUN)
    assert torch.equal(opened(images), made(seed=1)(images))
    assert opened.card.origin["revision"] == "a" * 40
    with pytest.raises(SapperError, match="out of reach"):
        encoders.open("hf-hub:org/two@" + "d" * 40, RUN)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG | {"architecture": "resnet10u"}, "timm has no model 'resnet10u'"),
        (CONFIG | {"model_args": {"checkpoint_path": "/etc/passwd"}}, "not passed on: checkpoint_path"),
        (CONFIG | {"pretrained_cfg": {"mean": "x"}}, "config.json: pretrained_cfg.mean"),
        (CONFIG | {"architecture": "resnet50"}, "do not fit the architecture"),
    ],
)
def test_what_a_foreign_configuration_says_is_checked(config: Any, message: str, hub: Path) -> None:
    weights = safetensors.torch.save(timm_model("resnet10t", num_classes=7).state_dict())
    put_into_hub(hub, "org/odd", {"config.json": json.dumps(config).encode(), "model.safetensors": weights})
    with pytest.raises(SapperError, match=message):
        encoders.open("hf-hub:org/odd", RUN)


def test_a_foreign_configuration_does_not_choose_what_is_read(hub: Path, tmp_path: Path) -> None:
    """Keys with which timm would fetch or open another file are not passed on."""
    net = timm_model("resnet10t", num_classes=7)
    trap = tmp_path / "trap.pth"
    trap.write_bytes(b"\x80\x02cos\nsystem\n(X\x05\x00\x00\x00falsetR.")
    odd = {"file": str(trap), "url": "http://example.invalid/x.pth", "hf_hub_id": "x/y", "custom_load": True}
    config = CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | odd}  # type: ignore[operator]
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors.torch.save(net.state_dict())}
    put_into_hub(hub, "org/trap", files)
    opened = encoders.open("hf-hub:org/trap", RUN)
    assert torch.equal(opened.backbone.state_dict()["conv1.0.weight"], net.state_dict()["conv1.0.weight"])


def test_a_model_of_timms(hub: Path) -> None:
    net = timm_model("resnet10t")
    put_into_hub(hub, "timm/resnet10t.c3_in1k", {"model.safetensors": safetensors.torch.save(net.state_dict())})
    opened = encoders.open("timm:resnet10t", RUN)
    config = timm.get_pretrained_cfg("resnet10t")
    assert config is not None
    assert (opened.card.mean, opened.card.std) == (config.mean, config.std)
    assert opened.card.input_size == config.input_size[-1]
    images = torch.rand(2, 3, 96, 96)
    pixels = normalized(images, opened)
    expected = net.forward_head(net.forward_features(pixels), pre_logits=True)
    assert torch.allclose(opened(images), expected, atol=1e-5)
    with pytest.raises(SapperError, match="did you mean resnet10t"):
        encoders.open("timm:resnet10tt", RUN)


@pytest.mark.usefixtures("sandbox_holds")
def test_a_model_of_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = models.shufflenet_v2_x0_5().eval()
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    place = tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    place.parent.mkdir(parents=True)
    torch.save(net.state_dict(), place)
    opened = encoders.open("torchvision:shufflenet_v2_x0_5/IMAGENET1K_V1", RUN)
    assert opened.card.input_size == 224
    assert "IMAGENET1K_V1" in opened.card.origin["normalization"]
    net.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    pixels = normalized(images, opened)
    assert torch.allclose(opened(images), net(pixels), atol=1e-5)
    with pytest.raises(SapperError, match=r"no weights 'IMAGENET1K_V9'\n.*IMAGENET1K_V1"):
        encoders.open("torchvision:shufflenet_v2_x0_5/IMAGENET1K_V9", RUN)
    with pytest.raises(SapperError, match="did you mean shufflenet_v2_x0_5"):
        encoders.open("torchvision:shufflenet_v2_x05", RUN)


FAMILIES = ("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v3_small")


@pytest.mark.parametrize("name", [*FAMILIES, "resnet18", "shufflenet_v2_x0_5", "swin_t", "vgg11", "vit_b_16"])
def test_torchvisions_models_give_what_their_classifier_took(name: str) -> None:
    with torch.device("meta"):
        encoder = encoders.build(Run(device=torch.device("meta")), architecture=f"torchvision:{name}", stem="imagenet")
    assert encoder.eval()(torch.rand(2, 3, 224, 224, device="meta")).shape == (2, encoder.feature_size)


@pytest.mark.slow
def test_the_image_tower_of_a_clip_model(hub: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    name = "RN50-quickgelu"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        tower = open_clip.create_model(name, load_weights=False).visual.eval()
    weights = safetensors.torch.save({f"visual.{k}": v.contiguous() for k, v in tower.state_dict().items()})
    put_into_hub(hub, "timm/resnet50_clip.openai", {"open_clip_model.safetensors": weights})
    opened = encoders.open("open_clip:RN50/openai", RUN)
    assert (opened.card.mean, opened.card.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert (opened.feature_size, opened.card.input_size) == (1024, 224)
    images = torch.rand(1, 3, 224, 224)
    pixels = normalized(images, opened)
    assert torch.allclose(opened(images), tower(pixels), atol=1e-4)
    with pytest.raises(SapperError, match="has no weights 'openay'"):
        encoders.open("open_clip:RN50/openay", RUN)


CODE = """
import torch
RAN = []
class Net(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))
def make():
    RAN.append(1)
    return Net()
def maps():
    return torch.nn.Identity()
def breaks():
    raise ValueError("no weights here")
def number():
    return 3
"""


def test_code_of_the_users_runs_only_when_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_encoder_module.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SapperError, match="--trust-code"):
        encoders.open("own_encoder_module:make", RUN)
    assert "own_encoder_module" not in sys.modules
    trusting = Opening(trust_code=True, size=16)
    opened = encoders.open("own_encoder_module:make", RUN, trusting)
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(opened(images), images.mean((2, 3)))
    assert "none" in opened.card.origin["normalization"] or opened.card.origin["normalization"] == "as was said"
    for function, message in (
        ("maps", "gives"),
        ("breaks", "ValueError: no weights here"),
        ("number", "returns int"),
        ("nothing", "AttributeError"),
    ):
        with pytest.raises(SapperError, match=message):
            encoders.open(f"own_encoder_module:{function}", RUN, trusting)
    with pytest.raises(SapperError, match="--size"):
        encoders.open("own_encoder_module:make", RUN, Opening(trust_code=True))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tim:resnet18", r"no scheme 'tim'\n.*did you mean timm"),
        ("s3://bucket/encoder.pth", "no scheme 's3'"),
        ("nowhere.pth", "no such file"),
        ("/no/such/folder/x.pth", "no such file"),
        ("", "no such file"),
        ("hf-hub:a/b/c", "no name of a repository"),
        ("hf-hub:nobody/nothing", "out of reach"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_there(uri: str, message: str) -> None:
    with pytest.raises(SapperError, match=message):
        encoders.open(uri, RUN)
