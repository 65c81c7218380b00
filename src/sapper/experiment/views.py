"""What classifiers answer, and which features an encoder gives, for test images as they are and with each trigger."""

import torch
from torch import Tensor

from sapper.attacks.target import Target
from sapper.downstream import Classifier, extract
from sapper.encoders import Encoder
from sapper.experiment.tasks import TaskData
from sapper.running import Run
from sapper.samples import Change, ImageSet
from sapper.triggers import Trigger

MAP_IMAGES = 500
"""How many test images the feature maps show."""


def all_answers(classifier: Classifier, test: ImageSet, triggers: dict[str, Trigger], run: Run) -> dict[str, Tensor]:
    """What a classifier says of the test images as they are, and with each trigger, int64 (N,) each on the CPU."""
    changes: dict[str, Change | None] = {"clean": None} | {f"triggered/{name}": each for name, each in triggers.items()}
    size = min(500, test.at_once(run.device))
    answers = {}
    with torch.no_grad():
        for view, change in changes.items():
            parts = []
            for batch in test.batches(size):
                inputs = batch.to(run.device)
                inputs = inputs if change is None else change(inputs)  # outside of autocast, which would round pixels
                with run.autocast():
                    parts.append(classifier(inputs).argmax(1).cpu())
            answers[view] = torch.cat(parts)
    return answers


def all_features(encoder: Encoder, test: ImageSet, triggers: dict[str, Trigger], run: Run) -> dict[str, Tensor]:
    """Features of the test images as they are, and with each trigger."""
    changes: dict[str, Change | None] = {"clean": None} | {f"triggered/{name}": each for name, each in triggers.items()}
    return {view: extract(encoder, test, run, change) for view, change in changes.items()}


def map_rows(test: ImageSet, run: Run) -> Tensor:
    """Which test images the maps show, int64 (M,): the same ones for every encoder of a seed."""
    return torch.randperm(len(test), generator=run.child("map").generator())[:MAP_IMAGES]


def map_features(
    encoder: Encoder, data: TaskData, targets: tuple[Target, ...], views: dict[str, Tensor], run: Run
) -> dict[str, Tensor]:
    """Features for the maps; the same test images for every encoder of a seed."""
    rows = map_rows(data.test, run)
    features = {view: values[rows.to(values.device)] for view, values in views.items()}
    features |= {f"references/{target.name}": extract(encoder, target.references, run) for target in targets}
    return features | {"rows": rows}
