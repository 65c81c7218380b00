"""Replay: a recovered trigger stamped on other images, and beside it changes of the same size that mean nothing.

Evidence that anyone can check: what the trigger does on images that no detector has seen, to the encoder of the audit
or to another one. As controls the same mask is filled with noise, with gray, and with the trigger's own pixels in a
random order; a filter's coefficients are shuffled.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from sapper.audit.auditing import check_images
from sapper.audit.calibration import InClean
from sapper.audit.recorded import DAMAGED, TRIGGERS, read_content, unreadable
from sapper.defenses.inversion import Collapse, collapse, recovered
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.run import Run
from sapper.samples import ImageSet


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An audit on disk: its plain content, each detector's trigger, and what is usual in known-clean ones."""

    content: dict[str, Any]
    triggers: dict[str, dict[str, Tensor]]
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
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            detector, _, part = name.rpartition("/")
            found.setdefault(detector, {})[part] = tensor
        for detector, parts in found.items():
            _check_trigger(detector, parts, size)
        order = [each["method"] for each in content["detectors"]]
        found = {name: found[name] for name in sorted(found, key=order.index)}
        in_clean = TypeAdapter(dict[str, InClean]).validate_python(
            {each["method"]: each["in_clean"] for each in content["detectors"] if each.get("in_clean")}
        )
    except (*DAMAGED, SafetensorError) as error:
        raise unreadable(error, path) from error
    return Recorded(content=content, triggers=found, in_clean=in_clean)


def _check_trigger(detector: str, parts: dict[str, Tensor], size: int) -> None:
    """Raises ``ValueError`` for what no detector recovers: beyond the range of pixels anything swamps any encoder."""
    if not detector.isidentifier() or parts.keys() not in ({"mask", "pattern"}, {"matrix"}):
        raise ValueError(f"{', '.join(parts)} of {detector} is no trigger")
    for part, tensor in parts.items():
        if tensor.shape != {"mask": (size, size), "pattern": (3, size, size), "matrix": (3, 4)}[part]:
            raise ValueError(f"{part} has the shape {tuple(tensor.shape)}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"{part} is of {str(tensor.dtype).removeprefix('torch.')} instead of float32")
        inside = (tensor - torch.eye(3, 4)).abs() <= 1 if part == "matrix" else (tensor >= 0) & (tensor <= 1)
        if not inside.all():
            raise ValueError(f"{part} has values that no trigger has")


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
            trigger=_measure(encoder, tensors, images, run),
            controls={
                name: _measure(encoder, control, images, run)
                for name, control in _controls(tensors, run.child(detector)).items()
            },
        )
        for detector, tensors in recorded.triggers.items()
    ]


def as_json(replays: list[Replay]) -> list[dict[str, Any]]:
    """As plain data."""
    return [asdict(each) for each in replays]


def _measure(encoder: Encoder, tensors: dict[str, Tensor], images: ImageSet, run: Run) -> Collapse:
    change = recovered(tensors)
    assert change is not None  # read_audit lets nothing else in
    found = collapse(encoder, change, images, run)
    if found is None:
        what, remedy = "its features of these images cannot be measured", "such an encoder is of no use"
        raise SapperError(what, where=str(encoder.card.origin.get("opened", "the encoder")), remedy=remedy)
    return found


def _controls(tensors: dict[str, Tensor], run: Run) -> dict[str, dict[str, Tensor]]:
    generator = run.generator()
    if "matrix" in tensors:
        change = tensors["matrix"] - torch.eye(3, 4)
        order = torch.randperm(change.numel(), generator=generator)
        return {"shuffled coefficients": {"matrix": torch.eye(3, 4) + change.flatten()[order].view(3, 4)}}
    mask, pattern = tensors["mask"], tensors["pattern"]
    covered = (mask > 0).flatten().nonzero().squeeze(1)
    shuffled = pattern.flatten(1).clone()
    shuffled[:, covered] = shuffled[:, covered[torch.randperm(len(covered), generator=generator)]]
    return {
        "noise": {"mask": mask, "pattern": torch.rand(pattern.shape, generator=generator)},
        "gray": {"mask": mask, "pattern": torch.full_like(pattern, 0.5)},
        "shuffled pixels": {"mask": mask, "pattern": shuffled.view_as(pattern)},
    }
