"""Why an audit ended as it did, and the one command that would change an undecided one: ``sapper audit --explain``."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from sapper.audits.calibration import Bag, Key, Match
from sapper.audits.families import AmongFamilies
from sapper.cli.opening import PERMISSIONS, Said
from sapper.conformal import fewest

PUBLIC = {
    "resnet50": "resnet50",
    "timm:vit_base_patch16_224": "vit_b_16",
    "open_clip:ViT-B-16": "clip_vit_b_16",
    "open_clip:ViT-B-32": "clip_vit_b_32",
}
"""Kinds of networks for which a list of public models comes with sapper, and its name."""

PUBLIC_SIZE, PUBLIC_STEM = 224, "imagenet"
"""The images and the stem of the networks in these lists."""

CLEAN = "FOLDER"
"""Where the user's own known-clean encoders are, in a command."""


def explain(
    report: Any, key: Key, match: Match, others: AmongFamilies, known: Sequence[Bag], asked: "Asked"
) -> list[str]:
    """Lines that say why, and what to do.

    ``report`` is the ``AuditReport``, ``known`` the bags that there were, ``others`` what fits over families.
    """
    if report.verdict != "undecided":
        return [
            f"why: the p-value is {report.p_value:.3g}, and {report.false_alarm_bound:g} or less is unusual; the score "
            f"is {report.leading.score:.3g}, and must exceed {report.leading.threshold:g}"
        ]
    if match.bags or report.hidden:
        return [
            f"why: {report.reason} No bag changes that, since there is no score to compare.",
            "get the encoder from another source, or say with --mean and --std what it was trained with",
        ]
    if report.families is not None:
        return [
            f"why: {report.reason} Another bag over families does not change that.",
            "give some thousand of the images that it was trained on, or make a bag of its kind: sapper calibrate",
        ]
    if others.images is not None and not match.too_small:
        return [
            f"why: no bag of its kind is known, and {others.reason}",
            f"with {others.images} images or more, such as it was trained on, the same command can give a verdict",
        ]
    if match.too_small:
        return _too_small(report.false_alarm_bound, min((bag for bag in known if bag.key == key), key=_size), asked)
    why = (
        "why: what this score is worth can only be told beside known-clean encoders of the same kind: "
        f"{key.architecture}, width {key.width}, {key.feature_size} features, {key.input_size} pixels, the same "
        f"images and the budget {key.budget}; there is no such bag"
    )
    near = next((bag for bag in known if _asks_otherwise(key, bag)), None)
    return [why, *(_as_measured(near, asked) if near else _measuring(key, fewest(report.false_alarm_bound), asked))]


def _size(bag: Bag) -> int:
    return bag.size


def _too_small(bound: float, bag: Bag, asked: "Asked") -> list[str]:
    """Another bound, which the smallest bag that fits allows."""
    allowed = ceil(10_000 / (bag.size + 1)) / 10_000
    return [
        f"why: a bound of {bound:g} on false alarms needs {fewest(bound)} known-clean encoders, and the bag {bag.name} "
        f"has {bag.size}",
        f"a verdict with the bound that these allow: {asked.audit(**{'false-alarms': f'{allowed:g}'})}",
    ]


def _asks_otherwise(key: Key, bag: Bag) -> bool:
    """Whether encoders of this kind were measured, with other images or another budget."""
    differing = set(key.differs(bag.key))
    return bool(differing & {"images", "budget"}) and differing <= {"images", "budget", "detectors"}


def _as_measured(near: Bag, asked: "Asked") -> list[str]:
    """The images and the budget of the bag that there is."""
    name, _, split = near.images.rpartition(" ")
    changed = {"images": name, "split": split, "budget": near.key.budget}
    return [
        f"encoders of this kind were measured with {near.images} and the budget {near.key.budget}, in the bag "
        f"{near.name}; with those: {asked.audit(**changed)}",
    ]


def _measuring(key: Key, needed: int, asked: "Asked") -> list[str]:
    """A bag of public models where a list of them comes with sapper, else of the user's own encoders."""
    public = PUBLIC.get(key.architecture)
    if public and (key.input_size, key.stem) == (PUBLIC_SIZE, PUBLIC_STEM):
        file = f"{public}.json"
        made = asked.calibrate(["--models", public], file)
        do = f"public models of this kind, which are taken for clean, are fetched and measured by: {made}"
    else:
        file = "known-clean.json"
        made = asked.calibrate(["--encoders", CLEAN], file, as_opened=True)
        do = f"put {needed} or more encoders that you know to be clean into {CLEAN}, and measure them: {made}"
    return [do, f"then: {asked.audit(bag=file)}"]


OF_BAGS = ("split", "data-root", "seed", "device")
"""Options of an audit that a bag for it must be made with, too."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked, for commands that ask again: encoder, images, budget, how to open it, and ``more`` options."""

    uri: str
    images: str
    budget: str
    said: Said
    more: Mapping[str, str | list[str]] = field(default_factory=dict)

    def audit(self, **changed: str) -> str:
        """The same audit with other options."""
        options = {"images": self.images, "budget": self.budget} | dict(self.more) | changed
        return shlex.join(["sapper", "audit", self.uri, *_words(options), *self._opening()])

    def calibrate(self, source: list[str], out: str, *, as_opened: bool = False) -> str:
        """A bag for it; ``as_opened``: of encoders that are opened as this one was. A list says that itself."""
        options: dict[str, str | list[str]] = {"images": self.images, "budget": self.budget}
        options |= {name: value for name, value in self.more.items() if name in OF_BAGS}
        opening = self._opening() if as_opened else []
        return shlex.join(["sapper", "calibrate", *source, *_words(options), *opening, "--out", out])

    def _opening(self) -> list[str]:
        given = [name for name in PERMISSIONS if getattr(self.said, name)]
        return _words(self.said.recorded()) + [f"--{name.replace('_', '-')}" for name in given]


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line; a list is one option for each of its values."""
    found = []
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            found += [f"--{name.replace('_', '-')}", str(each)]
    return found
