"""Triggers of images: functions on images in [0, 1] that leave shape and range alone."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sapper.errors import SapperError
from sapper.samples import InputSpec, PixelSpec
from sapper.triggers.base import Trigger

Corner = Literal["bottom-right", "bottom-left", "top-right", "top-left", "center"]

COLORS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "magenta": (1.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Patch(Trigger):
    """A patch of one color that replaces the pixels below it: ``x ⊕ e = (1 − m)·x + m·color``.

    The default is BadEncoder's trigger file ``trigger_pt_white_21_10_ap_replace``: a white 10×10 square with a
    margin of one pixel to the bottom-right corner (rows and columns 21…30 of 32).

    ``size`` side in pixels, or (height, width). ``position`` a corner, or (row, column) of the patch's upper left
    pixel. ``margin`` pixels between patch and edge where ``position`` names a corner. ``color`` a name of
    ``COLORS`` or (red, green, blue) in [0, 1].
    """

    kind: ClassVar[str] = "patch"
    source: ClassVar[str] = "Gu et al. 2017; Jia, Liu, Gong, IEEE S&P 2022"

    size: int | tuple[int, int] = 10
    position: Corner | tuple[int, int] = "bottom-right"
    margin: int = 1
    color: str | tuple[float, float, float] = "white"

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Rows [top, bottom) and columns [left, right) below the patch. Raises ``SapperError`` if it sticks out."""
        tall, wide = (self.size, self.size) if isinstance(self.size, int) else self.size
        if isinstance(self.position, str):
            middle = self.position == "center"
            top = (height - tall) // 2 if middle else self.margin
            left = (width - wide) // 2 if middle else self.margin
            if self.position.startswith("bottom"):
                top = height - tall - self.margin
            if self.position.endswith("right"):
                left = width - wide - self.margin
        else:
            top, left = self.position
        if tall < 1 or wide < 1:
            what = f"a {tall}×{wide} patch has no pixels"
            raise SapperError(what, where="trigger.size", remedy="choose a size of at least 1")
        if top < 0 or left < 0 or top + tall > height or left + wide > width:
            raise SapperError(
                f"a {tall}×{wide} patch at row {top}, column {left} does not fit into {height}×{width} images",
                where="trigger.size",
                remedy="choose a smaller size or another position",
            )
        return top, top + tall, left, left + wide

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` when the patch does not fit or its color is unknown."""
        size = side(spec)
        self.box(size, size)
        self.rgb()

    def rgb(self) -> tuple[float, float, float]:
        """The color, each channel in [0, 1]. Raises ``SapperError`` for an unknown name or a value outside."""
        if isinstance(self.color, str):
            if self.color not in COLORS:
                remedy = f"use one of {', '.join(COLORS)} or [red, green, blue] in 0…1"
                raise SapperError(f"unknown color {self.color!r}", where="trigger.color", remedy=remedy)
            return COLORS[self.color]
        if not all(0 <= channel <= 1 for channel in self.color):
            what, remedy = f"color {self.color} is outside 0…1", "use [red, green, blue] in 0…1"
            raise SapperError(what, where="trigger.color", remedy=remedy)
        return self.color

    def __call__(self, images: Tensor) -> Tensor:
        top, bottom, left, right = self.box(*images.shape[-2:])
        stamped = images.clone()
        stamped[..., top:bottom, left:right] = images.new_tensor(self.rgb()).view(3, 1, 1)
        return stamped


@dataclass(frozen=True, kw_only=True)
class Blend(Trigger):
    """A key image mixed into the whole picture: ``x ⊕ e = (1 − α)·x + α·k`` (Chen et al. 2017).

    ``pattern``: the key is uniform ``noise`` drawn from ``key_seed``, Chen's "random pattern", or a drawn ``cat``,
    which stands for the cartoon of the paper and is always the same. ``alpha`` in (0, 1], 0.2 in BackdoorBench's
    configuration ``attack/blended``.
    """

    kind: ClassVar[str] = "blend"
    source: ClassVar[str] = "Chen et al. 2017"

    alpha: float = 0.2
    key_seed: int = 0
    pattern: Literal["noise", "cat"] = "noise"

    def key(self, height: int, width: int) -> Tensor:
        """The key image, float (3, H, W) in [0, 1]."""
        if self.pattern == "cat":
            return cat(height, width)
        return torch.rand(3, height, width, generator=torch.Generator().manual_seed(self.key_seed))

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` when ``alpha`` is outside (0, 1], or there is no such picture."""
        side(spec)
        if self.pattern not in ("noise", "cat"):
            what, remedy = f"there is no key {self.pattern!r}", "use noise or cat"
            raise SapperError(what, where="trigger.pattern", remedy=remedy)
        if not 0 < self.alpha <= 1:
            remedy = "choose it above 0 and at most 1"
            raise SapperError(f"alpha {self.alpha} is outside (0, 1]", where="trigger.alpha", remedy=remedy)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.lerp(images, self.key(*images.shape[-2:]).to(images), self.alpha)


@dataclass(frozen=True, kw_only=True)
class Filter(Trigger):
    """A color filter: ``x ⊕ e = clip((I + A)·x + b)`` for the color x of each pixel, the same for all.

    A and b are drawn from ``key_seed``, uniformly within ``strength``, in (0, 1]. Filters that are learned, or that
    change from pixel to pixel, are stronger; this is the simplest of the kind.
    """

    kind: ClassVar[str] = "filter"
    source: ClassVar[str] = "the simplest of its kind; ours"

    strength: float = 0.2
    key_seed: int = 0

    def matrix(self) -> Tensor:
        """(I + A, b), float (3, 4)."""
        draws = torch.rand(3, 4, generator=torch.Generator().manual_seed(self.key_seed))
        return torch.eye(3, 4) + self.strength * (2 * draws - 1)

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` when ``strength`` is outside (0, 1]."""
        side(spec)
        if not 0 < self.strength <= 1:
            what, remedy = f"strength {self.strength} is outside (0, 1]", "choose it above 0 and at most 1"
            raise SapperError(what, where="trigger.strength", remedy=remedy)

    def __call__(self, images: Tensor) -> Tensor:
        return filtered(images, self.matrix().to(images).unsqueeze(0))[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask(Trigger):
    """A pattern under a mask of any shape: ``x ⊕ e = (1 − m)·x + m·Δ``. What inversions recover.

    ``mask`` float (H, W) and ``pattern`` float (3, H, W), both in [0, 1].
    """

    kind: ClassVar[str] = "mask"
    source: ClassVar[str] = "Wang et al., IEEE S&P 2019"

    mask: Tensor
    pattern: Tensor

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` for another size than the images', or values outside [0, 1].

        Beyond the range of pixels anything swamps any encoder.
        """
        size = side(spec)
        for name, each, shape in (("mask", self.mask, (size, size)), ("pattern", self.pattern, (3, size, size))):
            _check_floats(name, each, shape)
            if not bool(((each >= 0) & (each <= 1)).all()):
                what, remedy = f"{name} has values that no trigger has", "give values in [0, 1]"
                raise SapperError(what, where=f"trigger.{name}", remedy=remedy)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.lerp(images, self.pattern.to(images), self.mask.to(images))

    def pixels(self) -> float:
        """‖m‖₁."""
        return float(self.mask.sum())

    def picture(self) -> Tensor:
        """0.5 + m·(Δ − 0.5)."""
        return 0.5 + self.mask * (self.pattern - 0.5)

    def controls(self, generator: torch.Generator) -> dict[str, Trigger]:
        """The same mask filled with noise, with gray, and with the pattern's own pixels in a random order."""
        covered = (self.mask > 0).flatten().nonzero().squeeze(1)
        shuffled = self.pattern.flatten(1).clone()
        shuffled[:, covered] = shuffled[:, covered[torch.randperm(len(covered), generator=generator)]]
        return {
            "noise": replace(self, pattern=torch.rand(self.pattern.shape, generator=generator)),
            "gray": replace(self, pattern=torch.full_like(self.pattern, 0.5)),
            "shuffled pixels": replace(self, pattern=shuffled.view_as(self.pattern)),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Colors(Trigger):
    """One linear change of all colors: ``x ⊕ e = clip(M·(x, 1))``, ``matrix`` float (3, 4). What inversions recover."""

    kind: ClassVar[str] = "colors"
    source: ClassVar[str] = "color filters; ours"

    matrix: Tensor

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` for another shape, or a coefficient changed by more than 1."""
        side(spec)
        _check_floats("matrix", self.matrix, (3, 4))
        if not bool(((self.matrix - torch.eye(3, 4)).abs() <= 1).all()):
            what, remedy = "matrix has values that no trigger has", "change each coefficient by 1 at most"
            raise SapperError(what, where="trigger.matrix", remedy=remedy)

    def __call__(self, images: Tensor) -> Tensor:
        return filtered(images, self.matrix.to(images).unsqueeze(0))[0]

    def controls(self, generator: torch.Generator) -> dict[str, Trigger]:
        """The same coefficients in a random order."""
        change = self.matrix - torch.eye(3, 4)
        order = torch.randperm(change.numel(), generator=generator)
        return {"shuffled coefficients": Colors(matrix=torch.eye(3, 4) + change.flatten()[order].view(3, 4))}


def _check_floats(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        what, remedy = f"{name} has the shape {tuple(values.shape)}", f"give one of the shape {shape}"
        raise SapperError(what, where=f"trigger.{name}", remedy=remedy)
    if values.dtype != torch.float32:
        what = f"{name} is of {str(values.dtype).removeprefix('torch.')} instead of float32"
        raise SapperError(what, where=f"trigger.{name}", remedy="give float32")


def side(spec: InputSpec) -> int:
    """The size of the images that an encoder takes. Raises ``SapperError`` for an encoder of something else."""
    if not isinstance(spec, PixelSpec):
        what, remedy = "this trigger changes images, the encoder takes something else", "choose a trigger of its kind"
        raise SapperError(what, where="trigger", remedy=remedy)
    return spec.size


def filtered(images: Tensor, matrices: Tensor) -> Tensor:
    """clip(M·(x, 1)) of each pixel's color: (P, N, 3, H, W), of images (N, 3, H, W) in [0, 1] and M (P, 3, 4)."""
    mixed = torch.einsum("pcd,ndhw->pnchw", matrices[:, :, :3], images)
    return (mixed + matrices[:, None, :, 3, None, None]).clamp(0, 1)


def cat(height: int, width: int) -> Tensor:
    """A cat's face with a red bow on yellow ground, float (3, H, W) in [0, 1]: the same in every size."""
    y = ((torch.arange(height) + 0.5) / height * 2 - 1).view(-1, 1)
    x = ((torch.arange(width) + 0.5) / width * 2 - 1).view(1, -1)

    def disc(across: float, down: float, wide: float, tall: float) -> Tensor:
        return ((x.abs() - across) / wide).square() + ((y - down) / tall).square() < 1

    ears = ((x.abs() - 0.55).abs() < 0.25) & (y > -0.85) & (y < -0.2)
    face = disc(0, 0.15, 0.85, 0.65)
    whiskers = ((y - 0.3).abs() % 0.2 < 0.06) & ((y - 0.3).abs() < 0.25) & (x.abs() > 0.5) & (x.abs() < 0.95)
    bow = ((x + 0.5).abs() < 0.35) & ((y + 0.55).abs() < 0.1 + 0.5 * (x + 0.5).abs())
    picture = torch.tensor(COLORS["yellow"]).view(3, 1, 1).repeat(1, height, width)
    for where, color in (
        (ears | face, "white"),
        (disc(0.35, 0.05, 0.1, 0.15) | whiskers, "black"),
        (disc(0, 0.3, 0.12, 0.08), "magenta"),
        (bow, "red"),
    ):
        picture = torch.where(where, torch.tensor(COLORS[color]).view(3, 1, 1), picture)
    return picture
