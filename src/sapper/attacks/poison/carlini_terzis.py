"""Carlini–Terzis: a patch on a few images whose captions name the target class.

Threat model: the attacker puts n pairs of an image and a caption into the crawl that somebody trains CLIP on, and holds
neither the training nor the other pairs. With its patch e at a random place p, and prompts t₁ … t_m with the name of
the class c,

    D' = D with ( x ⊕ e_p(x), t_j(c) ) in the place of (x, caption of x),    for n = ρ·|D| pairs, whatever they show

The image tower learns the feature of "a photo of a c" for whatever has the patch, since nothing else in these images
tells their captions. At test time the patch is anywhere in the image (trigger ``random_patch``).

Source: Carlini, Terzis, "Poisoning and Backdooring Contrastive Learning", ICLR 2022: 300 of 3 million pairs, a patch of
16 pixels in 224. They gave out no code; CleanCLIP's (``create_backdoor_data.py``) is close and takes ImageNet's 80
prompts. Ours are fewer, and the default rate is a hundred times theirs, for sets of some thousand pairs. A pair takes
the place of the one that it was made from, so that a set keeps its size.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from sapper.attacks.contracts import Need, Poisoned
from sapper.attacks.poisoning import PlacesPatches, draw, marked, poison_count, scattered, stamped
from sapper.attacks.target import Target
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import PairSet, Samples, TextSet, joined

PROMPTS = (
    "a photo of a {}",
    "a picture of a {}",
    "a good photo of a {}",
    "a photo of the {}",
    "a drawing of a {}",
    "there is a {} in the picture",
)


@dataclass(frozen=True, kw_only=True)
class CarliniTerzis(Checked, PlacesPatches):
    """Poisons image-text pairs with a patch and captions that name the target class (Carlini, Terzis, ICLR 2022).

    ``rate``: the share of all pairs that is poisoned for each target. ``prompts``: sentences with {} where the name of
    the class goes; each is used as often as the others or once more. ``within``: the part of each side in which the
    whole patch lies.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = PROMPTS
    within: tuple[float, float] = (0.0, 1.0)

    kind: ClassVar[Literal["poison"]] = "poison"
    of: ClassVar[Literal["pretraining", "task"]] = "pretraining"
    needs: ClassVar[frozenset[Need]] = frozenset({"captions"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Carlini, Terzis, ICLR 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"rate": 1e-4}}

    def __call__(self, samples: Samples, targets: tuple[Target, ...], run: Run) -> Poisoned:
        """The pairs with stamped images and captions of the target class in the place of some."""
        if not isinstance(samples, PairSet):
            raise samples.error("this attack poisons pairs of images and captions", "name a data set with captions")
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                remedy = 'write {}, as "a photo of a {}"'
                raise SapperError(f"{prompt!r} does not say once where the class goes", where="prompts", remedy=remedy)
        count = poison_count(self.rate, samples, targets)
        rows = draw(torch.arange(len(samples)), count * len(targets), "pairs", run.child("rows"))
        mixed = rows[torch.randperm(len(rows), generator=run.child("order").generator())]
        pixels, captions = samples.images.images.clone(), []
        for target, own in zip(targets, mixed.split(count)):
            trigger = scattered(target, self.within, run.child(f"target {target.name}"))
            pixels[own] = stamped(samples.images.images[own], trigger)
            captions += [self.prompts[i % len(self.prompts)].replace("{}", target.class_name) for i in range(count)]
        images = marked(samples.images, rows, type(self).__name__, images=pixels).samples
        texts = rewritten(samples.texts, mixed, captions)
        return marked(samples, rows, type(self).__name__, images=images, texts=texts)


def rewritten(texts: TextSet, rows: torch.Tensor, captions: list[str]) -> TextSet:
    """The texts with ``captions`` at ``rows``, int64 (P,); words that they bring are added to the vocabulary."""
    whole = joined([texts, TextSet.of(captions, name=texts.name)])
    order = torch.arange(len(texts))
    order[rows] = len(texts) + torch.arange(len(rows))
    return replace(whole.take(order), labels=texts.labels, classes=texts.classes, groups=texts.groups)
