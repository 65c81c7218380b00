"""What commands on encoders share: the options that say how to open one and which images to show it, and the doing."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.markup import escape

from sapper import process
from sapper.cli.shared import check_device, device_of, err
from sapper.encoders.keys import read_keys
from sapper.encoders.names import Stem, check_architecture, kind_of
from sapper.encoders.options import ACTIVATIONS, POOLS, Opening
from sapper.errors import SapperError, closest, printable

EncoderArgument = Annotated[
    str, typer.Argument(help="A file, timm:NAME, torchvision:NAME, open_clip:NAME/TAG, hf-hub:ORG/MODEL@REVISION …")
]
EncodersArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="ENCODER...", help="Files, timm:NAME, torchvision:NAME, open_clip:NAME/TAG, hf-hub:ORG/MODEL@REVISION …"
    ),
]
Images = Annotated[
    str, typer.Option("--images", help="Ordinary images, without labels: a folder, a file, or a data set's name.")
]
Split = Annotated[str | None, typer.Option("--split", help="Which split of the images to use; test by default.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the search.")]

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
"""Suffixes of files of weights."""


def _option(name: str, help_text: str, **limits: Any) -> Any:
    return typer.Option(name, help=help_text, rich_help_panel="How to open the encoder", **limits)


@dataclass(frozen=True, kw_only=True)
class Said:
    """The options that say how an encoder is to be opened, in the words of the command line."""

    arch: Annotated[
        str | None,
        _option("--arch", "The architecture, where a file of weights does not tell it; or package.module:function."),
    ] = None
    prefix: Annotated[
        str | None, _option("--prefix", "Which of several networks in a file: how the names of its tensors begin.")
    ] = None
    size: Annotated[int | None, _option("--size", "Side of the images in pixels.", min=1)] = None
    mean: Annotated[
        str | None, _option("--mean", "Mean per channel, e.g. 0.485,0.456,0.406, for images in [0, 1].")
    ] = None
    std: Annotated[
        str | None, _option("--std", "Standard deviation per channel, e.g. 0.229,0.224,0.225, for images in [0, 1].")
    ] = None
    heads: Annotated[int | None, _option("--heads", "Attention heads per block of a vision transformer.", min=1)] = None
    patch: Annotated[int | None, _option("--patch", "Side of a vision transformer's patches in pixels.", min=1)] = None
    pool: Annotated[
        str | None,
        _option("--pool", "Features of a vision transformer: token, or avg (the mean of the patches)."),
    ] = None
    activation: Annotated[
        str | None, _option("--activation", "Activation of a vision transformer: gelu or quickgelu.")
    ] = None
    stem: Annotated[
        str | None, _option("--stem", "Stem of a ResNet: cifar (3×3), or cifar-pool (3×3 and max-pooling).")
    ] = None
    leave_out: Annotated[
        list[str] | None,
        _option("--leave-out", "Name of a tensor that the network does not use. Repeatable."),
    ] = None
    keys: Annotated[
        list[str] | None,
        _option("--keys", "OLD=NEW renames tensors whose names are or begin so; or a JSON file of names. Repeatable."),
    ] = None
    trust_code: Annotated[bool, _option("--trust-code", "Run package.module:factory, your own code.")] = False
    allow_weak_sandbox: Annotated[
        bool, _option("--allow-weak-sandbox", "Read pickles even where system calls cannot be filtered.")
    ] = False

    def __post_init__(self) -> None:
        """Files of names are read here, once: later they may be others. Raises ``SapperError`` for one that is none."""
        if self.keys:
            object.__setattr__(self, "keys", [f"{old}={new}" for old, new in read_keys(self.keys)])

    def opening(self) -> Opening:
        """The same for ``encoders.open``. Raises ``SapperError`` for a value that cannot be."""
        if self.arch is not None:
            check_architecture(self.arch, "--arch", trust_code=self.trust_code)
        for option, value, known in (
            ("--pool", self.pool, POOLS),
            ("--activation", self.activation, tuple(ACTIVATIONS)),
            ("--stem", self.stem, get_args(Stem)),
        ):
            if value is not None and value not in known:
                raise SapperError(f"{value!r} is none", where=option, remedy=closest(value, known))
        return Opening(
            architecture=self.arch,
            prefix=self.prefix,
            size=self.size,
            mean=_color(self.mean, "--mean"),
            std=_color(self.std, "--std", positive=True),
            heads=self.heads,
            patch=self.patch,
            pool=self.pool,
            activation=self.activation,
            stem=self.stem,  # type: ignore[arg-type]
            leave_out=tuple(self.leave_out or ()),
            keys=read_keys(self.keys or ()),
            trust_code=self.trust_code,
            allow_weak_sandbox=self.allow_weak_sandbox,
        )

    def recorded(self) -> dict[str, Any]:
        """What was said, as plain data; permissions are given anew each time."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in said.items() if value and name not in PERMISSIONS}


PERMISSIONS = ("trust_code", "allow_weak_sandbox")


def said_in(words: list[str], base: Said, where: str) -> Said:
    """``base`` with the options that stand in a line of a file, as ``--size 224``; permissions are given elsewhere.

    Raises ``SapperError`` for what is no option, or has no value that it takes.
    """
    known = {f"--{each.name.replace('_', '-')}": each.name for each in fields(Said) if each.name not in PERMISSIONS}
    changed: dict[str, Any] = {}
    for option, value in zip_longest(words[::2], words[1::2]):
        if option not in known or value is None:
            what = f"{option} has no value" if option in known else f"{option} is no option of how to open an encoder"
            raise SapperError(what, where=where, remedy=closest(option, list(known)))
        name = known[option]
        if name in ("size", "heads", "patch"):
            if not value.isdecimal() or int(value) < 1:
                raise SapperError(f"{value!r} is no number of pixels or heads", where=where, remedy=f"write {option} N")
            changed[name] = int(value)
        elif name in ("keys", "leave_out"):
            changed[name] = [*changed.get(name, getattr(base, name) or []), value]
        else:
            changed[name] = value
    return replace(base, **changed)


def with_opening(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a parameter ``said: Said`` as one that has an option for each of its fields."""
    own = inspect.signature(command)
    hints = get_type_hints(Said, include_extras=True)
    options = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(Said)
    ]

    @wraps(command)
    def call(**words: Any) -> None:
        said = Said(**{each.name: words.pop(each.name) for each in fields(Said) if each.name in words})
        command(said=said, **words)

    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.parameters.items()
        if name != "said"
    ]
    call.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in (*kept, *options)} | {"return": None}
    return call


def check_first(
    uris: list[str], images: str, data_root: Path | None, device: str, said: Said, *, download: bool
) -> Opening:
    """Find mistakes in these options before torch is loaded, which takes seconds; how to open the encoders."""
    from sapper import datasets

    check_device(device)
    for uri in uris:
        kind_of(uri, trust_code=said.trust_code)
    opening = said.opening()
    datasets.check_there(images, data_root, download=download)
    return opening


def begin(device: str, threads: int, seed: int) -> tuple[Any, Any]:
    """Settle the process, and only then load torch."""
    process.settle()
    with err.status("loading"):
        import torch

        from sapper.progress import progress
        from sapper.running import Run

    place = device_of(device)
    if threads:
        torch.set_num_threads(threads)
    return Run(seed=seed, device=place), progress(err)


def open_encoder(uri: str, run: Any, opening: Opening) -> Any:
    from sapper import encoders

    with err.status(f"opening {escape(printable(uri))}"):
        return encoders.open(uri, run, opening)


def _color(text: str | None, option: str, *, positive: bool = False) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = float("nan")
    if not all(-10 <= value <= 10 and (value > 0 or not positive) for value in (red, green, blue)):
        remedy = f"write three numbers with commas, as {option} 0.485,0.456,0.406"
        raise SapperError(f"{text!r} is not three numbers that images can have", where=option, remedy=remedy)
    return red, green, blue


def load_images(name: str, split: str | None, size: int, data_root: Path | None, *, download: bool) -> Any:
    """Ordinary images of the encoder's size: the split that was named, else test, else what there is."""
    from sapper import datasets

    split = split or datasets.usual_split(name)
    images = datasets.load(name, split, data_root=data_root, size=size, download=download, labels=False)
    for note in images.notes:
        err.print(f"note: {printable(note)}", markup=False, soft_wrap=True)
    return images
