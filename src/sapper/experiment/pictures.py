"""What the report shows besides numbers: stamped images, and features in two dimensions."""

import base64
import io
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sapper.attacks.target import Target
from sapper.experiment.results import FeatureMap, Picture
from sapper.experiment.subjects import Subject
from sapper.experiment.tasks import Choices, Task
from sapper.run import Run
from sapper.samples import ImageSet, to_float

EXAMPLES = 6
"""How many test images show what a trigger looks like."""


def trigger_pictures(task: Task, targets: Iterable[Target], run: Run) -> list[Picture]:
    """For each target: some test images of other classes, plain and stamped, and the reference images."""
    pictures, test = [], task.test()
    labels = test.targets()
    for target in targets:
        if not isinstance(target.references, ImageSet):  # nothing to be seen
            continue
        others = (labels != target.label).nonzero().squeeze(1)
        order = torch.randperm(len(others), generator=run.child("pictures").generator())
        rows = others[order[:EXAMPLES]]
        plain = test.images[rows]
        stamped = (target.trigger(to_float(plain)) * 255).round().to(torch.uint8)
        names = [test.classes[label] for label in labels[rows].tolist()]
        for role, images, captions in (
            ("clean", plain, names),
            ("triggered", stamped, names),
            ("reference", target.references.images, [target.class_name] * len(target.references)),
        ):
            pictures += [
                Picture(task=task.name, target=target.name, role=role, caption=caption, png=png(image))
                for image, caption in zip(images, captions)
            ]
    return pictures


def recovered_triggers(
    evidence: dict[str, Any], tensors: dict[str, Tensor], classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Each class's recovered trigger on gray, the smallest first; classes that none reached are left out.

    The one trigger that there is, of no class, where ``tensors`` have a ``mask`` and a ``pattern``; nothing where a
    detector recovers none.
    """
    if "mask" in tensors:
        mask, norm = tensors["mask"], float(tensors["mask"].sum())
        return [{"class": None, "norm": norm, "success": None, "png": png(_on_gray(mask, tensors["pattern"]))}]
    if "masks" not in tensors:
        return []
    norms, success = evidence["norms"], evidence["success"]
    found = sorted((norm, label) for label, norm in enumerate(norms) if norm is not None)
    shown = []
    for norm, label in found:
        picture = _on_gray(tensors["masks"][label], tensors["patterns"][label])
        shown.append({"class": classes[label], "norm": norm, "success": success[label], "png": png(picture)})
    return shown


def _on_gray(mask: Tensor, pattern: Tensor) -> Tensor:
    return ((0.5 + mask * (pattern - 0.5)) * 255).round().to(torch.uint8)


def png(image: Tensor) -> str:
    """A uint8 image (3, H, W) as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def feature_maps(
    seed: int, task: Task, choices: Choices, subject: Subject, features: dict[str, Tensor]
) -> list[FeatureMap]:
    """One map per target from the features that were left with the heads: PCA of clean and triggered features."""
    labels = task.test().targets()[features["rows"]].tolist()
    maps = []
    for target, choice in zip(task.aims, choices.of):
        views = {
            "clean": features["clean"],
            "triggered": features[f"triggered/{target.name}"],
            "reference": features[f"references/{target.name}"],
        }
        flat, explained = project(torch.cat((views["clean"], views["triggered"])), list(views.values()))
        of = {"clean": labels, "triggered": labels, "reference": [choice.label] * len(views["reference"])}
        points = {
            name: {
                "x": [round(value, 4) for value in xy[:, 0].tolist()],
                "y": [round(value, 4) for value in xy[:, 1].tolist()],
                "label": [float(label) for label in of[name]],
            }
            for name, xy in zip(views, flat)
        }
        maps.append(
            FeatureMap(
                seed=seed,
                task=task.name,
                target=target.name,
                subject=subject.id,
                state=subject.state,
                points=points,
                explained=explained,
            )
        )
    return maps


def project(basis: Tensor, views: list[Tensor]) -> tuple[list[Tensor], float]:
    """Each view (n, D) on the first two principal axes of ``basis`` (N, D), and their share of its variance.

    The sign of an axis is arbitrary; it is fixed so that the axis's largest entry is positive.
    """
    mean = basis.double().mean(0)
    _, values, axes = torch.linalg.svd(basis.double() - mean, full_matrices=False)
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    explained = float(values[:2].square().sum() / values.square().sum().clamp_min(1e-12))
    return [(view.double() - mean) @ axes.T for view in views], explained
