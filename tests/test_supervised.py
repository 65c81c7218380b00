"""Supervised pre-training: what it learns, and that it goes on exactly where it stopped."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sapper.augment import Augmentation
from sapper.encoders import build
from sapper.errors import SapperError
from sapper.pretraining.supervised import Supervised
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint, shuffled
from tests.test_badencoder import stop_after
from tests.test_simclr import tiny

RUN = Run(seed=5)


def colors(count: int = 96) -> ImageSet:
    """Noise, in which one channel is brighter: the class."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (count,), generator=generator)
    pixels = torch.randint(0, 160, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(count), labels] += 80
    return ImageSet(images=pixels, labels=labels, classes=("red", "green", "blue"), name="colors")


def test_features_come_to_tell_the_classes_apart() -> None:
    def apart(encoder: torch.nn.Module) -> float:
        data = colors()
        with torch.no_grad():
            units = F.normalize(encoder.eval()(data.images / 255), dim=1)
        same = data.targets().unsqueeze(0) == data.targets().unsqueeze(1)
        cosines = units @ units.T
        return float(cosines[same].mean() - cosines[~same].mean())

    subject = tiny()
    before = apart(subject)
    trained = Supervised(epochs=6, batch=24, learning_rate=0.01)(subject, colors(), RUN)
    assert trained.curves["cross-entropy"][-1] < trained.curves["cross-entropy"][0]
    assert trained.curves["accuracy"][-1] > 0.8
    assert apart(trained.encoder) > before + 0.1
    assert not trained.encoder.training


def test_an_interrupted_training_ends_the_same(tmp_path: Path) -> None:
    method = Supervised(epochs=3, batch=24, view_size=8)
    whole = method(tiny(), colors(), RUN)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 1, lambda: method(tiny(), colors(), RUN, checkpoint))
    resumed = method(tiny(), colors(), RUN, checkpoint)
    assert resumed.curves == whole.curves
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, resumed.encoder.state_dict()[name]), name


def test_one_step_is_that_of_the_textbook() -> None:
    """One batch of all images, uncropped: the loss of the first epoch is cross-entropy of W f(x) + b."""
    data, method = colors(8), Supervised(epochs=1, batch=8, crop_scale=1.0)
    curves = method(build(Run(seed=1), architecture="resnet10", width=4, input_size=16), data, RUN).curves
    subject = build(Run(seed=1), architecture="resnet10", width=4, input_size=16).train()
    with RUN.child("head").seeded():
        head = torch.nn.Linear(subject.feature_size, 3)
    generator = RUN.child("epoch 0").generator()
    (rows,) = shuffled(8, 8, generator)
    views = Augmentation(crop=(1.0, 1.0), jitter_p=0, grayscale=0)(data.images[rows] / 255, generator)
    with torch.no_grad():
        logits = head(subject(views)).double()
    picked = logits.log_softmax(1)[torch.arange(8), data.targets()[rows]]
    assert curves["cross-entropy"] == [pytest.approx(-float(picked.mean()), rel=1e-5)]


def test_what_cannot_be_learned_from_is_refused() -> None:
    one = ImageSet(images=colors(8).images, labels=torch.zeros(8, dtype=torch.int64), classes=("a",), name="one")
    with pytest.raises(SapperError, match="one class"):
        Supervised(epochs=1)(tiny(), one, RUN)
    with pytest.raises(SapperError, match="labels"):
        Supervised(epochs=1)(tiny(), ImageSet(images=colors(8).images, name="photos"), RUN)
