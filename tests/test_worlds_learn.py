"""Pre-training on the embedded objects pays on every embedded task: 10 points of accuracy or more."""

import pytest
import torch

from sapper import datasets
from sapper.downstream import Linear, extract, predict
from sapper.encoders import Encoder, build
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run, native_dtype
from sapper.samples import ImageSet

RUN = Run(seed=0, dtype=native_dtype(torch.device("cpu")))


@pytest.fixture(scope="module")
def pretrained() -> Encoder:
    objects = datasets.load("objects", "train")
    return SimCLR(epochs=8, temperature=0.2, crop_scale=0.2)(untrained(), objects, RUN).encoder


def untrained() -> Encoder:
    return build(RUN, architecture="resnet10", width=16)


def accuracy(encoder: Encoder, train: ImageSet, test: ImageSet) -> float:
    head = Linear().fit(extract(encoder, train, RUN), train.targets(), len(train.classes), RUN)
    return float((predict(head, extract(encoder, test, RUN)) == test.targets()).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("world", ["objects", "signs", "digits"])
def test_a_pretrained_encoder_is_ten_points_above_an_untrained_one(pretrained: Encoder, world: str) -> None:
    train, test = datasets.load(world, "train"), datasets.load(world, "test")
    assert accuracy(pretrained, train, test) >= accuracy(untrained(), train, test) + 0.10
