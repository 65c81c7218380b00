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
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from sapper.triggers import Trigger
from sapper.verdicts import Verdict

EXAMPLES = 6
"""How many test images show what a trigger looks like."""


def trigger_pictures(task: Task, attack: str | None, targets: Iterable[Target], run: Run) -> list[Picture]:
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
                Picture(task=task.name, target=target.name, role=role, caption=caption, png=png(image), attack=attack)
                for image, caption in zip(images, captions)
            ]
    return pictures


def recovered_triggers(verdict: Verdict, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each class's recovered trigger on gray, the smallest first; else the one that there is, of no class.

    Those that show on samples only are left out.
    """
    each = [(reached.pixels, classes[reached.label], reached.success, reached.trigger) for reached in verdict.reached]
    found: list[tuple[float | None, str | None, float | None, Trigger]] = [*sorted(each, key=lambda one: one[0])]
    if not found and verdict.trigger is not None:
        found = [(verdict.trigger.pixels(), None, None, verdict.trigger)]
    return [
        {"class": name, "norm": pixels, "success": success, "png": png((picture * 255).round().to(torch.uint8))}
        for pixels, name, success, trigger in found
        if (picture := trigger.picture()) is not None
    ]


def png(image: Tensor) -> str:
    """A uint8 image (3, H, W) as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def feature_maps(
    seed: int, attack: str | None, task: Task, choices: Choices, subject: Subject, features: dict[str, Tensor]
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
                attack=attack,
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
