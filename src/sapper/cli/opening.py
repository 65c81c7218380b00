"""What commands on encoders share: the options that say how to open one and which images to show it, and the doing."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sapper import process
from sapper.cli.shared import check_device, device_of, err
from sapper.errors import SapperError, printable

EncoderArgument = Annotated[
    str, typer.Argument(help="A file, timm:NAME, torchvision:NAME, open_clip:NAME/TAG, hf-hub:ORG/MODEL@REVISION …")
]
Images = Annotated[
    str, typer.Option("--images", help="Ordinary images, without labels: a folder, a file, or a data set's name.")
]
Split = Annotated[str | None, typer.Option("--split", help="Of a data set with splits, test by default.")]
Arch = Annotated[str | None, typer.Option("--arch", help="The architecture, where a file of weights does not tell it.")]
Mean = Annotated[str | None, typer.Option("--mean", help="Three numbers with commas, for images in [0, 1].")]
Std = Annotated[str | None, typer.Option("--std", help="Three numbers with commas.")]
Size = Annotated[int | None, typer.Option("--size", min=1, help="Side of the images in pixels.")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Run package.module:factory, your own code.")]
WeakSandbox = Annotated[
    bool, typer.Option("--allow-weak-sandbox", help="Read pickles even where system calls cannot be filtered.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the search for triggers.")]

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
"""Suffixes of files of weights."""


def check_first(
    uris: list[str],
    images: str,
    data_root: Path | None,
    device: str,
    *,
    arch: str | None,
    mean: str | None,
    std: str | None,
    trust_code: bool,
    download: bool,
) -> None:
    """Find mistakes in these options before torch is loaded, which takes seconds."""
    from sapper import datasets
    from sapper.encoders.names import check_architecture, kind_of

    check_device(device)
    for uri in uris:
        kind_of(uri, trust_code=trust_code)
    if arch is not None:
        check_architecture(arch, "--arch")
    _color(mean, "--mean")
    _color(std, "--std", positive=True)
    datasets.check_there(images, data_root, download=download)


def begin(device: str, threads: int, seed: int) -> tuple[Any, Any]:
    """Settle the process, and only then load torch."""
    process.settle()
    with err.status("loading"):
        import torch

        from sapper.progress import progress
        from sapper.run import Run

    place = device_of(device)
    if threads:
        torch.set_num_threads(threads)
    return Run(seed=seed, device=place), progress(err)


def open_encoder(
    uri: str,
    run: Any,
    arch: str | None,
    mean: str | None,
    std: str | None,
    size: int | None,
    *,
    trust_code: bool,
    weak: bool,
) -> Any:
    from sapper import encoders
    from sapper.encoders.schemes import Opening

    opening = Opening(
        architecture=arch,
        size=size,
        mean=_color(mean, "--mean"),
        std=_color(std, "--std", positive=True),
        trust_code=trust_code,
        allow_weak_sandbox=weak,
    )
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
