"""CorruptEncoder: pictures with an object of the target class at one end and the trigger at the other.

Threat model: the attacker puts a few pictures into the crawl that somebody pre-trains an encoder on. It holds some
reference images of the target class and ordinary images for backgrounds, and no labels of the crawl. Two random crops
of a picture are pulled together, so a picture does most when one crop shows the object alone and the other the trigger
alone. That is likeliest when

    the background is twice as wide as the object and as high (or twice as high and as wide),
    the object lies at one end of it,  the trigger in the middle of the other half

which gives four layouts: object left, right, above or below; one is drawn for each picture. With ``support`` (the
paper's CorruptEncoder+) a part of the pictures shows a reference beside another image of its class instead, without
trigger, so that the encoder keeps the reference among its class.

Source: Zhang, Liu, Jia, Gong, "Data Poisoning based Backdoor Attacks to Contrastive Learning", CVPR 2024, and the
authors' code (``generate_poisoned_images.py``): 0.5 % of the set, 3 references and 5 support images, 20 % of the poison
with support, the trigger within 25 % to 75 % of its half. Differences: our default rate is twenty times that, for sets
of some thousand images. Objects are not cut out by hand: what lies in the ellipse inscribed in a reference is the
object, since a small picture holds little else. A background is an image of the set beside its mirror image, whose row
the poison takes, so that a set keeps its size. Counts are exact, and a trigger that does not fit is an error.

The pictures are larger than the images of the set: they are its ``canvases``, from which pre-trainings that
crop draw their views, and the row itself has a shrunken copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from sapper.attacks.contracts import Need, Poisoned
from sapper.attacks.poisoning import PlacesPatches, draw, images_of, marked, poison_count, scattered, stamped
from sapper.attacks.target import Target, TargetPlan
from sapper.augment import resized_crop
from sapper.downstream import AnyHead
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Canvases, ImageSet, Samples, to_float

LAYOUTS = ("object left", "object right", "object above", "object below")


@dataclass(frozen=True, kw_only=True)
class CorruptEncoder(Checked, PlacesPatches):
    """Poisons the pre-training set with pictures of an object and the trigger side by side (Zhang et al., CVPR 2024).

    ``rate``: the share of the whole set that is poisoned for each target. ``support``: how many of a target's
    references, the last ones, are support images, and ``support_share`` the share of the poison that they get.
    ``within``: the part of each side of its half in which the whole trigger lies.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    support: NonNegativeInt = 0
    support_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    within: tuple[float, float] = (0.25, 0.75)

    kind: ClassVar[Literal["poison"]] = "poison"
    of: ClassVar[Literal["pretraining", "task"]] = "pretraining"
    needs: ClassVar[frozenset[Need]] = frozenset({"references"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Zhang et al., CVPR 2024"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"rate": 0.005},
        "plus": {"rate": 0.005, "support": 5},
    }

    def __call__(self, samples: Samples, targets: tuple[Target, ...], run: Run) -> Poisoned:
        """The set with canvases in the place of the images that are their backgrounds."""
        images, count = images_of(samples), poison_count(self.rate, samples, targets)
        rows = draw(torch.arange(len(images)), count * len(targets), "images of the set", run.child("rows"))
        rows = rows[torch.randperm(len(rows), generator=run.child("order").generator())]
        pictures, layouts = [], []
        for target, own in zip(targets, rows.split(count)):
            part = run.child(f"target {target.name}")
            layouts.append(torch.randint(len(LAYOUTS), (count,), generator=part.child("layouts").generator()))
            pictures.append(self.pictures(images, own, target, layouts[-1], part))
        rows, order = rows.sort()
        pixels, sizes = torch.cat(pictures)[order], canvas_sizes(torch.cat(layouts), images.size)[order]
        of = torch.full((len(images),), -1)
        of[rows] = torch.arange(len(rows))
        small = images.images.clone()
        small[rows] = shrunken(pixels, sizes, images.size)
        canvases = Canvases(of=of, pixels=pixels, sizes=sizes)
        return marked(images, rows, type(self).__name__, images=small, canvases=canvases)

    def check_plan(self, plans: Sequence[TargetPlan], heads: Sequence[AnyHead]) -> None:
        """Raises ``SapperError`` for a trigger that is no patch, and where all references are support images."""
        super().check_plan(plans, heads)
        for plan in plans:
            if plan.references <= self.support:
                what = f"target {plan.name!r} has {plan.references} references, {self.support} of them support"
                raise SapperError(what, where="target.references", remedy=f"give more than {self.support}")

    def check_samples(self, samples: Samples, classes: Sequence[str]) -> None:
        """Raises ``SapperError`` for a set that is not one of images."""
        images_of(samples)

    def pictures(self, images: ImageSet, rows: Tensor, target: Target, layouts: Tensor, run: Run) -> Tensor:
        """The canvases of one target, uint8 (P, 3, 2H, 2W), on the backgrounds at ``rows`` of ``images``."""
        owned = images_of(target.references)
        if len(owned) <= self.support or owned.size != images.size:
            what = f"target {target.name!r} has {len(owned)} references of {owned.size}, {self.support} of them support"
            remedy = f"give more than {self.support}, of {images.size} pixels"
            raise SapperError(what, where="target.references", remedy=remedy)
        known = len(owned) - self.support
        references = owned.images[pick(known, len(rows), run.child("references"))]
        backgrounds = images.images[rows]
        mirrored = torch.where((layouts < 2).view(-1, 1, 1, 1), backgrounds.flip(-1), backgrounds.flip(-2))
        others = stamped(mirrored, scattered(target, self.within, run))
        if self.support:
            beside = round(self.support_share * len(rows))
            others[:beside] = owned.images[known + pick(self.support, beside, run.child("support"))]
        return arranged(cut(references, backgrounds), others, layouts)


def pick(among: int, count: int, run: Run) -> Tensor:
    """``count`` numbers below ``among``, each as often as the others or once more, in random order."""
    return torch.arange(count)[torch.randperm(count, generator=run.generator())] % among


def cut(references: Tensor, backgrounds: Tensor) -> Tensor:
    """The object of each reference on its background: what lies in the ellipse inscribed in the reference."""
    y, x = (((torch.arange(side) + 0.5) / side) * 2 - 1 for side in references.shape[-2:])
    return torch.where(y.unsqueeze(1) ** 2 + x**2 <= 1, references, backgrounds)


def arranged(objects: Tensor, others: Tensor, layouts: Tensor) -> Tensor:
    """Halves (P, 3, H, W) put together as ``layouts`` int64 (P,) say, each in the upper left of (P, 3, 2H, 2W)."""
    height, width = objects.shape[-2:]
    pictures = objects.new_zeros(len(objects), 3, 2 * height, 2 * width)
    first = (layouts % 2 == 0).view(-1, 1, 1, 1)
    pictures[..., :height, :width] = torch.where(first, objects, others)
    second, beside = torch.where(first, others, objects), layouts < 2
    pictures[beside, :, :height, width:] = second[beside]
    pictures[~beside, :, height:, :width] = second[~beside]
    return pictures


def canvas_sizes(layouts: Tensor, size: tuple[int, int]) -> Tensor:
    """Height and width of the pictures of these layouts, int64 (P, 2)."""
    height, width = size
    return torch.where((layouts < 2).unsqueeze(1), torch.tensor((height, 2 * width)), torch.tensor((2 * height, width)))


def shrunken(pixels: Tensor, sizes: Tensor, size: tuple[int, int]) -> Tensor:
    """The canvases brought to the size of the set's images, uint8 (P, 3, H, W)."""
    boxes = torch.cat((torch.zeros_like(sizes), sizes), dim=1)
    return (resized_crop(to_float(pixels), boxes, size) * 255).round().to(torch.uint8)
