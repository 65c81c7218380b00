"""Replay: a recovered trigger stamped on other images, and beside it changes of the same size that mean nothing.

Evidence that anyone can check: what the trigger does on images that no detector has seen, to the encoder of the audit
or to another one. What its controls are a trigger says itself (``Trigger.controls``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from sapper.audits.auditing import check_images
from sapper.audits.calibration import InClean
from sapper.audits.recorded import DAMAGED, TRIGGERS, read_content, unreadable
from sapper.defenses.inversion import Collapse, collapse
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec
from sapper.triggers import Trigger, from_tensors


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An audit on disk: its plain content, each detector's trigger, and what is usual in known-clean ones."""

    content: dict[str, Any]
    triggers: dict[str, Trigger]
    in_clean: dict[str, InClean]

    @property
    def size(self) -> int:
        return int(self.content["encoder"]["input_size"])


def read_audit(path: Path) -> Recorded:
    """The audit in ``audit.json`` and its triggers beside it.

    Raises ``SapperError`` when one of them is missing, damaged, or of another audit.
    """
    content = read_content(path)
    try:
        tensors = safetensors.torch.load_file(path.parent / TRIGGERS)
        size = int(content["encoder"]["input_size"])
        found = read_triggers(content["detectors"], tensors)
        for detector, trigger in found.items():
            if not detector.isidentifier():
                raise ValueError(f"{detector!r} is no detector")
            trigger.check(PixelSpec(size=size))
        in_clean = TypeAdapter(dict[str, InClean]).validate_python(
            {each["method"]: each["in_clean"] for each in content["detectors"] if each.get("in_clean")}
        )
    except (*DAMAGED, SafetensorError, SapperError) as error:
        raise unreadable(error, path) from error
    return Recorded(content=content, triggers=found, in_clean=in_clean)


UNNAMED = {frozenset({"mask", "pattern"}): "mask", frozenset({"matrix"}): "colors"}
"""The kinds of triggers in audits that do not name them, by their tensors."""


def read_triggers(detectors: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Trigger]:
    """The triggers that detectors recovered, in their order, from an audit's plain data and its file of tensors.

    Raises ``ValueError`` or ``SapperError`` for what is none.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        detector, _, part = name.rpartition("/")
        parts.setdefault(detector, {})[part] = tensor
    found: dict[str, Trigger] = {}
    for each in detectors:
        detector = each["method"]
        own = parts.pop(detector, {})
        plain = each["trigger"] if "trigger" in each else _unnamed(detector, own)
        if plain is not None:
            found[detector] = from_tensors(plain, own, detector)
        elif own:
            raise ValueError(f"{', '.join(own)} of {detector} is no trigger")
    if parts:
        raise ValueError(f"triggers of {', '.join(parts)}, which did not look")
    return found


def _unnamed(detector: str, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    kind = UNNAMED.get(frozenset(tensors))
    if tensors and kind is None:
        raise ValueError(f"{', '.join(tensors)} of {detector} is no trigger")
    return {"kind": kind} if kind else None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a detector's trigger does on some images, and what its controls do."""

    detector: str
    trigger: Collapse
    controls: dict[str, Collapse]


def replay(recorded: Recorded, encoder: Encoder, images: ImageSet, run: Run) -> list[Replay]:
    """Measure every recovered trigger anew. Raises ``SapperError`` if there is none, or the sizes differ."""
    size = recorded.size
    check_images(encoder, images)
    if images.size != (size, size) or encoder.card.input_size != size:
        what = f"the triggers are of {size}×{size} pixels, the images of {images.size[0]}×{images.size[1]}"
        raise SapperError(what, where=images.name, remedy="replay them on the encoder's own size")
    if not recorded.triggers:
        raise SapperError("the audit recovered no trigger", where="audit.json", remedy="there is nothing to replay")
    return [
        Replay(
            detector=detector,
            trigger=_measure(encoder, trigger, images, run),
            controls={
                name: _measure(encoder, control, images, run)
                for name, control in trigger.controls(run.child(detector).generator()).items()
            },
        )
        for detector, trigger in recorded.triggers.items()
    ]


def as_json(replays: list[Replay]) -> list[dict[str, Any]]:
    """As plain data."""
    return [asdict(each) for each in replays]


def _measure(encoder: Encoder, trigger: Trigger, images: ImageSet, run: Run) -> Collapse:
    found = collapse(encoder, trigger, images, run)
    if found is None:
        what, remedy = "its features of these images cannot be measured", "such an encoder is of no use"
        raise SapperError(what, where=str(encoder.card.origin.get("opened", "the encoder")), remedy=remedy)
    return found
