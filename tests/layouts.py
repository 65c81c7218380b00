"""Checkpoints as people save them, small: each in its program's own names, with the network that was saved.

``python -m tests.layouts`` writes the table of them into docs/state-dicts.md.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import SEModule
from torch import Tensor, nn

from sapper import encoders
from sapper.encoders import Opening
from sapper.running import Run

State = dict[str, Tensor]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "state-dicts.md"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HALF = ((0.5,) * 3, (0.5,) * 3)
NONE = ((0.0,) * 3, (1.0,) * 3)
HEAD = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program's checkpoint. ``names``: how the backbone's names begin in it; ``opened``: what it is opened as.

    ``make``: the content, and the network whose features must come out. ``pixels``: how its images are normalized.
    ``told``: for each list of what an audit tells, a pattern that must be in it. ``pickled``: saved by ``torch.save``.
    """

    program: str
    names: str
    opened: str
    make: Callable[[], tuple[Any, nn.Module]]
    pixels: tuple[Any, Any] = IMAGENET
    options: Opening = field(default_factory=Opening)
    told: dict[str, str] = field(default_factory=dict)
    pickled: bool = False
    size: int = 32


def resnet(
    *, stem: encoders.Stem = "cifar", seed: int = 7, architecture: str = "resnet10", width: int = 4
) -> nn.Module:
    """A small ResNet whose normalizations have seen images."""
    return _seen(encoders.build(Run(seed=seed), architecture=architecture, width=width, stem=stem).backbone)


def transformer(seed: int = 5, **arguments: Any) -> nn.Module:
    """A small vision transformer: 32 pixels in patches of 8, 128 channels in 2 heads, 2 blocks."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes | arguments)
        for name, value in net.named_parameters():
            if "gamma" in name:
                nn.init.normal_(value, 1.0, 0.3)
            elif value.ndim == 1 or "token" in name:
                nn.init.normal_(value, 0.5, 0.3)
            elif "qkv" in name:  # trained attention is sharp; drawn at random it is nearly the same everywhere
                nn.init.normal_(value, 0.0, 0.3)
    return net.eval()


def _seen(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net.train()
    for _ in range(3):
        net(torch.rand(8, 3, 32, 32, generator=generator))
    return net.eval()


def normalized(images: Tensor, encoder: encoders.Encoder) -> Tensor:
    """By what the encoder's card says."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.card.mean, encoder.card.std))
    return (images - mean) / std


def behind(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    out = {}
    for name, value in state.items():
        for ours, theirs in pairs:
            name = re.sub(ours, theirs, name)
        out[name] = value
    return out


def other(state: State) -> State:
    """Another network of the same names: what follows, or is followed."""
    return {name: value * 0.5 if value.is_floating_point() else value for name, value in state.items()}


def plain(net: nn.Module) -> State:
    return dict(net.state_dict())


SHORTCUT = (r"\.downsample\.", ".shortcut.")

TO_HF_RESNET = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"encoder.stages.<\1.layers.\2.shortcut.convolution."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"encoder.stages.<\1.layers.\2.shortcut.normalization."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", r"encoder.stages.<\1.layers.\2.layer.<\3.convolution."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", r"encoder.stages.<\1.layers.\2.layer.<\3.normalization."),
)

TO_HF_VIT = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^norm\.", "layernorm."),
    (r"\.attn\.qkv\.", ".attention.attention.qkv."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"^blocks\.", "encoder.layer."),
)
ONLY_VIT = (
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
ONLY_DINOV2 = ((r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),)


def hf_resnet(state: State) -> State:
    """Hugging Face transformers counts stages and layers from 0."""
    named = renamed(state, *TO_HF_RESNET)
    return {re.sub(r"<(\d)", lambda m: str(int(m[1]) - 1), name): value for name, value in named.items()}


def hf_vit(state: State, *more: tuple[str, str]) -> State:
    """Hugging Face transformers keeps query, key and value apart."""
    out = {}
    for name, value in renamed(state, *TO_HF_VIT, *more).items():
        if ".qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                out[name.replace("qkv", part)] = piece.clone()
        else:
            out[name] = value
    return out


def moco_v3() -> tuple[Any, nn.Module]:
    net = transformer(embed_dim=384, depth=1, num_heads=12)
    state = behind("module.base_encoder.", plain(net) | behind("head.0.", HEAD))
    return {"arch": "vit_small", "state_dict": state | behind("module.momentum_encoder.", other(plain(net)))}, net


def dino() -> tuple[Any, nn.Module]:
    net = transformer()
    return {
        "student": behind("module.backbone.", other(plain(net))) | behind("module.head.mlp.0.", HEAD),
        "teacher": behind("backbone.", plain(net)) | behind("head.mlp.0.", HEAD),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }, net


def dinov2(*, registers: bool) -> tuple[Any, nn.Module]:
    if not registers:
        net = transformer(init_values=1e-5)
        return plain(net) | {"mask_token": torch.zeros(1, 128)}, net
    net = transformer(init_values=1e-5, reg_tokens=4, no_embed_class=True)
    state = plain(net)
    first = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - first
    state["register_tokens"] = state.pop("reg_token")
    return state | {"mask_token": torch.zeros(1, 128)}, net


def dinov2_in_training() -> tuple[Any, nn.Module]:
    net = transformer(init_values=1e-5, depth=4)
    chunked = renamed(plain(net), (r"^blocks\.([01])\.", r"blocks.0.\1."), (r"^blocks\.([23])\.", r"blocks.1.\1."))
    return {"teacher": behind("backbone.", chunked) | behind("dino_head.mlp.0.", HEAD)}, net


def mae(*, tuned: bool) -> tuple[Any, nn.Module]:
    if tuned:
        net = transformer(global_pool="avg", fc_norm=True)
        return {"model": plain(net) | behind("head.", HEAD), "epoch": 99}, net
    net = transformer()
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    block = {name.removeprefix("blocks.0."): value for name, value in plain(net).items() if "blocks.0." in name}
    return {"model": plain(net) | decoder | behind("decoder_blocks.0.", block)}, net


def squeezing() -> tuple[Any, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = timm.create_model(
            "seresnet18",
            num_classes=0,
            block_args={"attn_layer": partial(SEModule, rd_ratio=1 / 16, rd_divisor=1, bias=False)},
        )
    state = renamed(plain(_seen(net)), (r"\.se\.fc1\.", ".se.fc.0."), (r"\.se\.fc2\.", ".se.fc.2."))
    return {name: value[:, :, 0, 0] if ".se." in name else value for name, value in state.items()}, net


def preact(*, noted: bool) -> tuple[Any, nn.Module]:
    net = resnet(architecture="preact_resnet18")
    state = plain(net) | behind("linear.", HEAD)
    if not noted:
        return state, net
    return {"model_name": "preactresnet18", "clean_data": "cifar10", "model": state, "bd_train": {"rows": [1, 2]}}, net


def numbered(state: State, first_layer: int) -> State:
    """As in ``nn.Sequential(*children)``."""
    numbers = {"conv1": 0, "bn1": 1} | {f"layer{i + 1}": first_layer + i for i in range(4)}
    return {f"{numbers[name.split('.')[0]]}.{name.split('.', 1)[1]}": value for name, value in state.items()}


def pruned() -> tuple[Any, nn.Module]:
    net = resnet()
    state = plain(net)
    weight = state.pop("layer2.0.conv1.weight")
    mask = (torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    with torch.no_grad():
        net.get_submodule("layer2.0.conv1").weight.mul_(mask)
    return state | {"layer2.0.conv1.weight_orig": weight.clone() + (1 - mask), "layer2.0.conv1.weight_mask": mask}, net


def convnext() -> tuple[Any, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = timm.create_model("test_convnext", num_classes=10)
        for name, value in net.named_parameters():
            if "gamma" in name:
                nn.init.normal_(value, 1.0, 0.3)
    state = renamed(
        plain(net),
        (r"^stem\.(\d)", r"downsample_layers.0.\1"),
        (r"^stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2"),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"stages.\1.\2"),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.norm", "norm"),
        (r"head\.fc", "head"),
    )
    state = {name: value.flatten(1) if "pwconv" in name and value.ndim == 4 else value for name, value in state.items()}
    net.reset_classifier(0)
    return {"model": state}, net.eval()


def with_heads(make: Callable[[], nn.Module], wrap: Callable[[State], Any]) -> Callable[[], tuple[Any, nn.Module]]:
    def both() -> tuple[Any, nn.Module]:
        net = make()
        return wrap(plain(net)), net

    return both


def timm_training() -> tuple[Any, nn.Module]:
    """timm's train.py; timm itself loads the averaged weights."""
    net = resnet(stem="imagenet", architecture="resnet18")
    state = plain(net) | behind("fc.", HEAD)
    content = {"epoch": 9, "arch": "resnet18", "args": argparse.Namespace(model="resnet18"), "metric": 71.2}
    return content | {"state_dict": other(state), "state_dict_ema": state}, net


COPY = {"recognized": "several networks", "left_out": "a copy that follows"}
HEADED = {"left_out": "head"}
POOLED = {"assumed": "stem: no max-pooling .*--stem cifar-pool"}
HEADS = {"assumed": r"heads: 2, 64 channels each.*--heads"}

CASES: tuple[Case, ...] = (
    Case(
        program="a state dict of torchvision's ResNets",
        names="`conv1`, `layer1` …",
        opened="resnet10",
        make=with_heads(lambda: resnet(stem="imagenet"), lambda s: {"model": s | behind("fc.", HEAD)}),
        told=HEADED,
        options=Opening(size=32),
    ),
    Case(
        program="MoCo",
        names="`module.encoder_q.`",
        opened="resnet10",
        make=with_heads(
            resnet,
            lambda s: {
                "state_dict": behind("module.encoder_q.", s | behind("fc.0.", HEAD))
                | behind("module.encoder_k.", other(s))
                | {"module.queue": torch.rand(3, 4)}
            },
        ),
        pixels=CIFAR,
        told=COPY | POOLED,
    ),
    Case(program="MoCo v3", names="`module.base_encoder.`", opened="num_heads=12", make=moco_v3, told=COPY),
    Case(
        program="DINO, iBOT",
        names="`teacher.backbone.`",
        opened="embed_dim=128",
        make=dino,
        told=COPY | {"left_out": "student"},
    ),
    Case(
        program="DINOv2",
        names="`patch_embed`, `blocks`, `mask_token`",
        opened="init_values",
        make=lambda: dinov2(registers=False),
        told={"left_out": "mask token"},
    ),
    Case(
        program="DINOv2 with registers",
        names="the same, `register_tokens`",
        opened="reg_tokens=4",
        make=lambda: dinov2(registers=True),
        told={"recognized": "register"},
    ),
    Case(
        program="DINOv2 in training",
        names="`teacher.backbone.blocks.CHUNK.N.`",
        opened="depth=4",
        make=dinov2_in_training,
        told={"left_out": "head|teacher"},
    ),
    Case(
        program="MAE, pre-trained",
        names="`model.`, `decoder_…` beside",
        opened="embed_dim=128",
        make=lambda: mae(tuned=False),
        told={"left_out": "decoder", "assumed": "class token"},
    ),
    Case(
        program="MAE, BEiT-like, fine-tuned",
        names="`fc_norm` in place of `norm`",
        opened="global_pool=avg",
        make=lambda: mae(tuned=True),
        pixels=HALF,
        told=HEADED | HEADS,
    ),
    Case(
        program="a vision transformer of timm's",
        names="`patch_embed`, `blocks` …, of any size and patch",
        opened="patch_size=8",
        make=with_heads(transformer, lambda s: {"state_dict": behind("backbone.", s)}),
        pixels=HALF,
        told=HEADS,
    ),
    Case(
        program="the same with LayerScale (UNI)",
        names="`ls1.gamma`",
        opened="init_values",
        make=with_heads(lambda: transformer(init_values=0.1), lambda s: s),
        pixels=HALF,
        told=HEADS,
    ),
    Case(
        program="Hugging Face transformers' ViT",
        names="`vit.embeddings`, `vit.encoder.layer.`",
        opened="norm_eps=1e-12",
        make=with_heads(
            lambda: transformer(), lambda s: behind("vit.", hf_vit(s, *ONLY_VIT)) | behind("classifier.", HEAD)
        ),
        pixels=HALF,
        told=HEADED,
    ),
    Case(
        program="Hugging Face transformers' DINOv2",
        names="`embeddings`, `encoder.layer.`, `layer_scale1`",
        opened="init_values",
        make=with_heads(
            lambda: transformer(init_values=0.1),
            lambda s: hf_vit(s | {"mask_token": torch.zeros(1, 128)}, *ONLY_DINOV2),
        ),
        told={"left_out": "mask token"},
    ),
    Case(
        program="Hugging Face transformers' ResNet",
        names="`resnet.embedder`, `resnet.encoder.stages.`",
        opened="resnet18",
        make=with_heads(
            lambda: resnet(stem="imagenet", architecture="resnet18"), lambda s: behind("resnet.", hf_resnet(s))
        ),
        options=Opening(size=32),
    ),
    Case(
        program="BYOL",
        names="`online_encoder.net.`",
        opened="resnet10",
        make=with_heads(
            resnet,
            lambda s: (
                behind("online_encoder.net.", s) | behind("target_encoder.net.", other(s)) | behind("predictor.", HEAD)
            ),
        ),
        pixels=CIFAR,
        told=COPY,
    ),
    Case(
        program="SSL-Backdoor's BYOL",
        names="`model.module.`, `model_t.module.` beside",
        opened="resnet10",
        make=with_heads(
            lambda: resnet(stem="imagenet"),
            lambda s: (
                behind("model.module.", s)
                | behind("model_t.module.", other(s))
                | behind("head.0.", HEAD)
                | behind("head_t.0.", HEAD)
                | behind("pred.0.", HEAD)
            ),
        ),
        told=COPY,
        options=Opening(size=32),
    ),
    Case(
        program="SimSiam (PatrickHua)",
        names="`backbone.` and `encoder.0.`, one network under two names",
        opened="resnet10",
        make=with_heads(
            resnet,
            lambda s: {"state_dict": behind("backbone.", s) | behind("encoder.0.", s) | behind("projector.0.", HEAD)},
        ),
        pixels=CIFAR,
        told={"recognized": "the same network also stands behind", "left_out": "the same network again"},
    ),
    Case(
        program="solo-learn",
        names="`backbone.`, `momentum_backbone.` beside",
        opened="resnet10",
        make=with_heads(
            resnet, lambda s: {"state_dict": behind("backbone.", s) | behind("momentum_backbone.", other(s))}
        ),
        pixels=CIFAR,
        told=COPY,
    ),
    Case(
        program="lightly, Lightning",
        names="`backbone.0.`, layers by number; `callbacks` beside",
        opened="resnet10",
        make=with_heads(
            resnet,
            lambda s: {
                "state_dict": behind("backbone.", numbered(s, 3)) | behind("projection_head.0.", HEAD),
                "callbacks": {"ModelCheckpoint": {"kth_value": torch.tensor(torch.inf)}},
            },
        ),
        pixels=CIFAR,
        told=HEADED,
    ),
    Case(
        program="SimCLR as in BadEncoder",
        names="`f.f.`, layers by number",
        opened="resnet10",
        make=with_heads(resnet, lambda s: {"state_dict": behind("f.f.", numbered(s, 3)) | behind("g.0.", HEAD)}),
        pixels=CIFAR,
        told=HEADED,
        pickled=True,
    ),
    Case(
        program="BadEncoder's ImageNet encoder",
        names="`visual.`, torchvision's ResNet",
        opened="resnet10",
        make=with_heads(lambda: resnet(stem="imagenet"), lambda s: {"state_dict": behind("visual.", s)}),
        pixels=NONE,
        options=Opening(size=32),
    ),
    Case(
        program="SimCLR as in DECREE",
        names="`f.`, layers by number",
        opened="resnet10",
        make=with_heads(resnet, lambda s: {"state_dict": behind("f.", numbered(s, 3))}),
        pixels=CIFAR,
    ),
    Case(
        program="VISSL",
        names="`_feature_blocks.`",
        opened="resnet10",
        make=with_heads(
            lambda: resnet(stem="imagenet"),
            lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": behind("_feature_blocks.", s)}}}},
        ),
        options=Opening(size=32),
    ),
    Case(
        program="pytorch-cifar, lightly's ResNet",
        names="`shortcut` in place of `downsample`",
        opened="resnet10",
        make=with_heads(
            resnet, lambda s: {"net": behind("module.", renamed(s, SHORTCUT) | behind("linear.", HEAD)), "acc": 95.4}
        ),
        pixels=CIFAR,
        told=HEADED,
    ),
    Case(
        program="SupContrast",
        names="`encoder.`, `shortcut`",
        opened="resnet10",
        make=with_heads(
            resnet, lambda s: {"model": behind("encoder.", renamed(s, SHORTCUT)) | behind("head.0.", HEAD)}
        ),
        pixels=CIFAR,
        told=HEADED,
    ),
    Case(
        program="pre-activation ResNets of pytorch-cifar",
        names="no `bn1` behind the first convolution",
        opened="preact_resnet18",
        make=lambda: preact(noted=False),
        pixels=CIFAR,
        told=HEADED,
    ),
    Case(
        program="VGG of pytorch-cifar",
        names="`features.0` …, one layer `classifier.` behind them",
        opened="vgg11",
        make=with_heads(lambda: resnet(architecture="vgg11"), lambda s: {"net": s | behind("classifier.", HEAD)}),
        pixels=CIFAR,
        told=HEADED,
    ),
    Case(
        program="MobileNetV2 of pytorch-cifar",
        names="`layers.0.conv1` …, `linear.`",
        opened="mobilenetv2",
        make=with_heads(lambda: resnet(architecture="mobilenetv2"), lambda s: s | behind("linear.", HEAD)),
        pixels=CIFAR,
        told=HEADED,
    ),
    Case(
        program="WideResNet-pytorch",
        names="`block1.layer.0.conv1` …, `convShortcut`",
        opened="wrn16",
        make=with_heads(lambda: resnet(architecture="wrn16"), lambda s: {"state_dict": behind("module.", s)}),
        pixels=CIFAR,
    ),
    Case(
        program="BackdoorBench",
        names="`model.`, with the name of the data",
        opened="preact_resnet18",
        make=lambda: preact(noted=True),
        pixels=(CIFAR[0], (0.247, 0.243, 0.261)),
        told=HEADED,
        pickled=True,
    ),
    Case(
        program="a 3×3 stem with max-pooling",
        names="`encoder.`, said by `--stem cifar-pool`",
        opened="resnet10",
        make=with_heads(lambda: resnet(stem="cifar-pool"), lambda s: {"state_dict": behind("encoder.", s)}),
        pixels=CIFAR,
        options=Opening(stem="cifar-pool"),
    ),
    Case(
        program="squeeze-and-excitation (senet.pytorch)",
        names="`layer1.0.se.fc.0`",
        opened="timm:seresnet18, se_ratio=0.0625",
        make=squeezing,
        told={"recognized": "squeeze-and-excitation"},
        options=Opening(size=32),
    ),
    Case(
        program="timm's training",
        names="`state_dict_ema.` beside `state_dict.`",
        opened="resnet18",
        make=timm_training,
        told={"recognized": "as timm loads", "left_out": "another network"},
        options=Opening(size=32),
        pickled=True,
    ),
    Case(
        program="a distillation's student (CompRess, SEED)",
        names="`student.`, another network behind `teacher.`",
        opened="resnet10",
        make=with_heads(
            resnet,
            lambda s: {
                "model": behind("module.student.", s)
                | behind("module.teacher.", plain(resnet(architecture="resnet18")))
            },
        ),
        pixels=CIFAR,
        told={"recognized": "student of a distillation", "left_out": "another network"},
    ),
    Case(
        program="torch.compile, FSDP",
        names="`_orig_mod.`, `_fsdp_wrapped_module.` in between",
        opened="resnet10",
        make=with_heads(
            resnet, lambda s: {"model": behind("_orig_mod.module.", renamed(s, (r"^layer1\.", "layer1._orig_mod.")))}
        ),
        pixels=CIFAR,
    ),
    Case(
        program="torch.nn.utils.prune",
        names="`weight_orig` and `weight_mask`",
        opened="resnet10",
        make=pruned,
        pixels=CIFAR,
    ),
    Case(
        program="ConvNeXt's own names, and others that timm's filters know",
        names="`downsample_layers`, said by `--arch timm:…`",
        opened="timm:test_convnext",
        make=convnext,
        pixels=HALF,
        options=Opening(architecture="timm:test_convnext", size=64),
        told=HEADED,
        size=64,
    ),
)


def table() -> str:
    """The layouts as Markdown."""
    rows = "\n".join(f"| {case.program} | {case.names} |" for case in CASES)
    return f"| program | how its names begin |\n|---|---|\n{rows}\n"


BEGIN, END = "<!-- layouts: python -m tests.layouts -->\n", "<!-- end of layouts -->\n"


def page() -> str:
    """docs/state-dicts.md with the table as it is now."""
    text = PAGE.read_text(encoding="utf-8")
    return text[: text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
