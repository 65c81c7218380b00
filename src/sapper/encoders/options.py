"""What a user can say of an encoder that is to be opened."""

from dataclasses import dataclass

from sapper.encoders.names import Stem

RGB = tuple[float, float, float]

ACTIVATIONS = {"gelu": "gelu", "quickgelu": "quick_gelu"}
"""Of vision transformers: our word, and timm's."""

POOLS = ("token", "avg")
"""What a vision transformer's features are: the class token's, or the mean of the patches'."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open an encoder; what is none is read from the model's own configuration, or inferred from its weights.

    ``architecture``: a name of ours, ``timm:NAME``, ``torchvision:NAME`` or ``open_clip:NAME``, for files of weights;
    or ``package.module:factory``, a function of your own that returns the network, with ``trust_code``.
    ``size`` of images in pixels; ``mean``, ``std`` per channel, for images in [0, 1]. ``prefix``: which of several
    networks in a file is meant, by what stands before its names.

    What shapes do not tell: ``stem`` of a ResNet with a 3×3 first convolution; of a vision transformer ``heads``, how
    many each attention has, ``patch``, the side of a patch in pixels, ``activation`` (``ACTIVATIONS``) and ``pool``
    (``POOLS``). ``leave_out``: beginnings of names of tensors that the network does not use. ``keys``: pairs of old
    and new names, or beginnings of names, for files whose names alone differ (``encoders/keys.py``).

    ``trust_code``: run ``package.module:factory``. ``allow_weak_sandbox``: read pickles where no filter of system calls
    can be had.
    """

    architecture: str | None = None
    size: int | None = None
    mean: RGB | None = None
    std: RGB | None = None
    prefix: str | None = None
    stem: Stem | None = None
    heads: int | None = None
    patch: int | None = None
    activation: str | None = None
    pool: str | None = None
    leave_out: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()
    trust_code: bool = False
    allow_weak_sandbox: bool = False
