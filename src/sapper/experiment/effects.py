"""What a trigger does, beside the success of an attack: to the features of test images, and to their pixels.

The images are those of the feature maps.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sapper import tensors
from sapper.downstream import mean_cosine
from sapper.engine.store import Finished
from sapper.experiment.results import Record
from sapper.experiment.subjects import Subject
from sapper.experiment.tasks import Task
from sapper.experiment.works import MAP
from sapper.metrics import Rate, jackknifed
from sapper.samples import ImageSet
from sapper.triggers import Trigger, mean_change, ssim

Measure = Callable[[Tensor, Tensor], Tensor]

OF_PIXELS: dict[str, tuple[Measure, str, float, float]] = {
    "trigger_change": (mean_change, "levels", 0.0, 255.0),
    "trigger_ssim": (ssim, "SSIM", -1.0, 1.0),
}
"""Metrics of triggered images beside plain ones: the function, its unit, and from where to where it goes."""


def feature_records(
    place: dict[str, Any], task: Task, clean: tuple[Subject, Finished], attacked: tuple[Subject, Finished]
) -> Iterator[Record]:
    """How alike the features of different test images are, plain and with each trigger, for both encoders.

    ``clean``, ``attacked``: the subjects, and what left the features of their encoders.
    """
    for subject, finished in (clean, attacked):
        features = tensors.load(finished.folder / MAP)
        there = place | {"condition": place["condition"] | {"state": subject.state}, "subject": subject.id}
        if subject is not clean[0]:
            there["baseline"] = clean[0].id
        for aim in task.aims:
            for metric, view in (("cosine_triggered", f"triggered/{aim.name}"), ("cosine_clean", "clean")):
                rate = cosine_rate(features[view])
                if rate is not None:
                    about: dict[str, Any] = {"stage": "features", "unit": "cosine", "seconds": finished.seconds}
                    yield Record(**there, **about, target=aim.name, metric=metric, **asdict(rate))


def cosine_rate(features: Tensor) -> Rate | None:
    """The mean cosine of two different rows of ``features``, (N, D) of length 1; none of fewer than three, or of NaN.

    N counts images, not pairs, and so does the interval: pairs that share an image are not independent.
    """
    unit, n = F.normalize(features.double(), dim=1), len(features)
    if n < 3 or not bool(unit.isfinite().all()):
        return None
    value = mean_cosine(unit)
    others = value * n * (n - 1) - 2 * (unit @ unit.sum(0) - 1)
    return jackknifed(float(value), others / ((n - 1) * (n - 2)), -1.0, 1.0)


def trigger_records(
    place: dict[str, Any], task: Task, attacked: tuple[Subject, Finished], triggers: Mapping[str, Trigger]
) -> Iterator[Record]:
    """How much each trigger changes of an image, and how alike the image still looks."""
    subject, finished = attacked
    images = task.test().take(tensors.load(finished.folder / MAP)["rows"])
    for aim in task.aims:
        for metric, rate in pixel_rates(images, triggers[aim.name]).items():
            about: dict[str, Any] = {"stage": "trigger", "unit": OF_PIXELS[metric][1], "subject": subject.id}
            yield Record(**place, **about, target=aim.name, metric=metric, **asdict(rate))


@torch.no_grad()
def pixel_rates(images: ImageSet, trigger: Trigger) -> dict[str, Rate]:
    """The means of ``OF_PIXELS`` over images, none of a single one."""
    n, found = len(images), dict[str, list[Tensor]]()
    for plain in images.batches(images.at_once()):
        stamped = trigger(plain)
        for metric, (measure, *_) in OF_PIXELS.items():
            found.setdefault(metric, []).append(measure(stamped, plain).double())
    rates = {}
    for metric, (_, _, least, most) in OF_PIXELS.items() if n > 1 else ():
        values = torch.cat(found[metric])
        rates[metric] = jackknifed(float(values.mean()), (values.sum() - values) / (n - 1), least, most)
    return {metric: rate for metric, rate in rates.items() if math.isfinite(rate.value)}
