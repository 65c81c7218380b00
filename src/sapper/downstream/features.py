"""Features once: what an encoder says of a whole set of samples, normalized to length 1.

As in BadEncoder's ``evaluation/nn_classifier.py``, heads are trained and asked on L2-normalized features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.encoders import Encoder
from sapper.running import Run
from sapper.samples import Change, Samples


@torch.no_grad()
def extract(encoder: Encoder, samples: Samples, run: Run, change: Change | None = None, batch: int = 500) -> Tensor:
    """L2-normalized features, float32 (N, D) on the run's device.

    With ``change``, of what it makes of the samples (a trigger stamps them). At most ``batch`` of them are in the
    encoder at once, fewer on a CPU and of large ones. The encoder is used in ``eval`` mode and left in it.
    """
    encoder.eval()
    features = []
    size = min(batch, samples.at_once(run.device))
    with run.progress.bar("features", len(samples)) as bar:
        for start in range(0, len(samples), size):
            inputs = samples.batch(slice(start, start + size)).to(run.device)
            inputs = inputs if change is None else change(inputs)  # outside of autocast, which would round pixels
            with run.autocast():
                output = encoder(inputs)
            features.append(F.normalize(output.float(), dim=1))
            bar.advance(len(output))
    return torch.cat(features)


def mean_cosine(unit: Tensor) -> Tensor:
    """The mean cosine of two different rows of ``unit`` (…, N, D), each of length 1: (‖Σu‖² − N) / (N² − N).

    1 where all point one way; float (…), with gradients.
    """
    n = unit.shape[-2]
    return (unit.sum(-2).square().sum(-1) - n) / (n * (n - 1))


@torch.no_grad()
def predict(head: nn.Module, features: Tensor, batch: int = 4096) -> Tensor:
    """The predicted classes, int64 (N,) on the CPU."""
    return torch.cat([head(chunk).argmax(1).cpu() for chunk in features.split(batch)])
