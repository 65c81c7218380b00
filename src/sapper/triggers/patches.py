"""Several patches at once, which no single mask covers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sapper.errors import SapperError
from sapper.samples import InputSpec
from sapper.triggers.base import Trigger
from sapper.triggers.images import Corner, Patch


@dataclass(frozen=True, kw_only=True)
class Patches(Trigger):
    """The same patch at several places, by default two of half a patch's pixels at opposite corners.

    The default has 98 pixels, about as many as a patch of 10×10. A certificate against one patch says nothing of these.
    ``size``, ``margin`` and ``color`` as a patch has them. ``positions``: corners, or (row, column), two or more.
    """

    kind: ClassVar[str] = "patches"
    source: ClassVar[str] = "ours; the patch: Gu et al. 2017"

    size: int | tuple[int, int] = 7
    positions: tuple[Corner | tuple[int, int], ...] = ("top-left", "bottom-right")
    margin: int = 1
    color: str | tuple[float, float, float] = "white"

    def each(self) -> list[Patch]:
        """The patches one by one."""
        return [
            Patch(size=self.size, position=position, margin=self.margin, color=self.color)
            for position in self.positions
        ]

    def check(self, spec: InputSpec) -> None:
        """Raises ``SapperError`` when there are fewer than two, one does not fit, or the color is unknown."""
        if len(self.positions) < 2:
            what, remedy = "several patches need several positions", "name two or more, or use a patch"
            raise SapperError(what, where="trigger.positions", remedy=remedy)
        for patch in self.each():
            patch.check(spec)

    def __call__(self, images: Tensor) -> Tensor:
        for patch in self.each():
            images = patch(images)
        return images
