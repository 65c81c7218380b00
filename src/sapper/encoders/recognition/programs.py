"""Which program trained this? Prefixes, names and notes in a checkpoint tell, and with the program come its own values.

A program's normalization and its number of attention heads are not in the weights. They are read off its published
code; ``why`` says where.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sapper.encoders.backbones import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from sapper.encoders.options import RGB

Notes = Mapping[str, str | int | float | bool]
"""What a checkpoint says of itself, by dotted path: ``{"args.arch": "vit_small"}``."""

HALF: RGB = (0.5, 0.5, 0.5)
NONE: tuple[RGB, RGB] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET: tuple[RGB, RGB] = (IMAGENET_MEAN, IMAGENET_STD)
CIFAR: tuple[RGB, RGB] = (CIFAR_MEAN, CIFAR_STD)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program, or a family of them that save in the same way.

    ``pixels``: mean and deviation of its images, none where it has several or leaves it to the user; ``small``: the
    same with a 3×3 stem, where it differs. ``why``: where that is from. ``certain``: whether the names tell it from all
    others. ``heads``: of a vision transformer of a width, where they are not the usual ones.
    """

    name: str
    pixels: tuple[RGB, RGB] | None = None
    small: tuple[RGB, RGB] | None = None
    why: str = ""
    certain: bool = True
    heads: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a checkpoint of ``program`` shows: what its prefix ends with, the family of its backbone, a name beside."""

    program: Program
    prefix: str = ""
    families: Collection[str] = ()
    name: str | None = None


RESNETS = ("resnet", "numbered")
TRANSFORMERS = ("transformer",)

RULES = (
    Rule(
        program=Program(name="MAE", pixels=IMAGENET, why="its code normalizes by ImageNet's mean and deviation"),
        families=TRANSFORMERS,
        name=r"decoder_pos_embed",
    ),
    Rule(
        program=Program(
            name="DINOv2", pixels=IMAGENET, why="its code normalizes by ImageNet's mean and deviation", certain=False
        ),
        families=TRANSFORMERS,
        name=r"mask_token",
        prefix=r"(^|teacher\.(module\.)?backbone\.)",
    ),
    Rule(
        program=Program(name="MoCo", pixels=IMAGENET, small=CIFAR, why="as its code normalizes"),
        prefix=r"encoder_q\.",
    ),
    Rule(
        program=Program(
            name="MoCo v3",
            pixels=IMAGENET,
            why="its code normalizes by ImageNet's mean and deviation",
            heads={384: 12},
        ),
        prefix=r"base_encoder\.",
    ),
    Rule(program=Program(name="BYOL"), prefix=r"(online_encoder\.net|online_network\.encoder|online_network)\."),
    Rule(program=Program(name="SSL-Backdoor's BYOL"), prefix=r"model\.module\.", name=r"model_t\.module\."),
    Rule(
        program=Program(name="DINO", pixels=IMAGENET, why="its code normalizes by ImageNet's mean and deviation"),
        prefix=r"(teacher|student)\.(module\.)?backbone\.",
    ),
    Rule(
        program=Program(name="VISSL", pixels=IMAGENET, why="its configurations normalize by ImageNet's values"),
        prefix=r"_feature_blocks\.",
    ),
    Rule(program=Program(name="SimCLR as in BadEncoder"), prefix=r"f\.f\.", families=RESNETS),
    Rule(program=Program(name="SimCLR as in DECREE"), prefix=r"(^|\.)f\.", families=RESNETS),
    Rule(
        program=Program(
            name="BadEncoder's ImageNet encoder",
            pixels=NONE,
            why="its evaluation takes images in [0, 1] as they are",
            certain=False,
        ),
        prefix=r"visual\.",
        families=RESNETS,
    ),
    Rule(program=Program(name="CLIP"), families=("clip", "clip-resnet")),
    Rule(
        program=Program(
            name="Hugging Face transformers' DINOv2", pixels=IMAGENET, why="its image processor's ImageNet values"
        ),
        families=("hf-transformer",),
        name=r"layer_scale1\.lambda1",
    ),
    Rule(
        program=Program(
            name="Hugging Face transformers' ViT-MAE", pixels=IMAGENET, why="its image processor's ImageNet values"
        ),
        families=("hf-transformer",),
        name=r"decoder\.decoder_pos_embed",
    ),
    Rule(
        program=Program(
            name="Hugging Face transformers' ViT",
            pixels=(HALF, HALF),
            why="its image processor's default, 0.5",
            certain=False,
        ),
        families=("hf-transformer",),
    ),
    Rule(
        program=Program(
            name="Hugging Face transformers' ResNet", pixels=IMAGENET, why="its image processor's ImageNet values"
        ),
        families=("hf-resnet",),
    ),
    Rule(program=Program(name="SupContrast"), prefix=r"encoder\.", families=("shortcut",)),
    Rule(program=Program(name="pytorch-cifar or lightly"), families=("shortcut",)),
    Rule(program=Program(name="pytorch-cifar or BackdoorBench"), families=("preact",)),
    Rule(program=Program(name="SimCLR, solo-learn or lightly"), prefix=r"backbone\."),
)
"""The first that fits counts. Sources: the repositories' own training and evaluation code."""

BACKDOORBENCH: dict[str, tuple[RGB, RGB]] = {
    "cifar10": (CIFAR_MEAN, (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": NONE,
    "celeba": NONE,
    "imagenet": IMAGENET,
}
"""Mean and deviation by data set, in BackdoorBench's ``get_dataset_normalization``."""

UNKNOWN = Program(name="a state dict")


def program_of(prefix: str, family: str, names: Collection[str], notes: Notes) -> Program:
    """The program that saved a backbone of a ``family`` behind ``prefix`` in a file with ``names``."""
    data = str(notes.get("clean_data", ""))
    if family in ("preact", "shortcut", "resnet") and data in BACKDOORBENCH and "model_name" in notes:
        why = f"as its code normalizes {data}, which the file names"
        return Program(name="BackdoorBench", pixels=BACKDOORBENCH[data], why=why)
    for rule in RULES:
        if rule.families and family not in rule.families:
            continue
        if not re.search(f"{rule.prefix}$", prefix):
            continue
        if rule.name is not None and not any(re.search(rf"(^|\.){rule.name}", name) for name in names):
            continue
        return rule.program
    return UNKNOWN
