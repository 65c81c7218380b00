"""What is opened from Python: encoders, classifiers, poisoned data sets and images, by name, path or address.

Nothing that says that an attack of ours made it is handed out, unless it is asked for as such.
"""

from pathlib import Path
from typing import TypedDict, Unpack

from safetensors import SafetensorError
from torch import Tensor

from sapper import datasets, encoders
from sapper.attacks.contracts import Poisoned
from sapper.downstream import Classifier
from sapper.downstream import files as classifiers
from sapper.encoders import Encoder
from sapper.encoders.names import Stem
from sapper.encoders.options import Opening
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, read_samples


class HowToOpen(TypedDict, total=False):
    """How an encoder is to be opened, where its file does not tell; see ``encoders.options.Opening``."""

    architecture: str | None
    size: int | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    prefix: str | None
    stem: Stem | None
    heads: int | None
    patch: int | None
    activation: str | None
    pool: str | None
    leave_out: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    trust_code: bool
    allow_weak_sandbox: bool


load_data = datasets.load


def open(
    name: str | Path, *, allow_backdoored: bool = False, surroundings: Run | None = None, **how: Unpack[HowToOpen]
) -> Encoder:
    """The encoder of that name: a file, ``timm:NAME``, ``torchvision:NAME``, ``hf-hub:ORG/MODEL@REVISION`` ….

    A file's pickle is read in a locked process and never here. The encoder takes float images (N, 3, H, W) in [0, 1]
    and gives features (N, D); it is in ``eval`` mode. Raises ``SapperError`` for what cannot be opened as a whole, and
    for an encoder that says that an attack of ours made it, unless ``allow_backdoored``.
    """
    encoder = encoders.open(str(name), surroundings or Run(), Opening(**how))
    _admit("encoder", str(name), allowed=allow_backdoored or not encoder.card.backdoored)
    return encoder


def load(path: str | Path, *, allow_backdoored: bool = False, surroundings: Run | None = None) -> Encoder:
    """The encoder that ``save`` wrote. Raises ``SapperError`` for a backdoored one, unless ``allow_backdoored``."""
    encoder = encoders.load(Path(path), surroundings or Run())
    _admit("encoder", str(path), allowed=allow_backdoored or not encoder.card.backdoored)
    return encoder


def load_classifier(path: str | Path, *, allow_backdoored: bool = False, surroundings: Run | None = None) -> Classifier:
    """The classifier that a scenario kept. Raises ``SapperError`` for a backdoored one, unless ``allow_backdoored``."""
    classifier, about = classifiers.load(Path(path), surroundings or Run())
    _admit("classifier", str(path), allowed=allow_backdoored or not about.backdoored)
    return classifier


def load_poisoned(path: str | Path, *, allow_backdoored: bool = False) -> Poisoned:
    """A data set that an attack poisoned, with its poisoned rows; it lies in the Store of a scenario.

    Raises ``SapperError`` for one, unless ``allow_backdoored``, and for any other file.
    """
    try:
        samples, more = read_samples(Path(path))
        rows = more["rows"]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        remedy = "name a data-POISONED.safetensors of a scenario's Store"
        raise SapperError(f"no poisoned data set can be read: {error}", where=str(path), remedy=remedy) from error
    _admit("data set", str(path), allowed=allow_backdoored)
    return Poisoned(samples=samples, rows=rows)


def _admit(what: str, where: str, *, allowed: bool) -> None:
    if not allowed:
        said, remedy = f"this {what} was backdoored on purpose", "say allow_backdoored=True if you mean to use it"
        raise SapperError(said, where=where, remedy=remedy)


def load_images(
    name: str | Path | Tensor | ImageSet,
    size: int,
    *,
    split: str | None = None,
    data_root: Path | None = None,
    download: bool = False,
) -> ImageSet:
    """Ordinary images of ``size`` pixels: a folder, a file, a data set's name, or uint8 (N, 3, size, size) in 0…255.

    ``split``: test by default, if there is one. Labels are not read.
    """
    if isinstance(name, ImageSet):
        return name
    if isinstance(name, Tensor):
        return ImageSet(images=name, name="images")
    text = str(name)
    chosen = split or datasets.usual_split(text)
    return datasets.load(text, chosen, data_root=data_root, size=size, download=download, labels=False)
