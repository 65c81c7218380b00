"""MNTD's shadow classifiers, heads on a frozen ResNet-18 of width 16: features once for all against in every epoch.

One clean and one backdoored shadow on 240 images for 10 epochs. The textbook trains one model at a time on images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.textbook import head, noise
from benchmarks.timing import Row, paired
from sapper.defenses.defender import Defender
from sapper.defenses.judge.mntd_classifier import MNTDClassifier
from sapper.downstream import MLP
from sapper.encoders import build
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from sapper.triggers import jumbo

IMAGES, EPOCHS, BATCH, CLASSES = 240, 10, 100, 10


def run(dtype: torch.dtype) -> Row:
    """Both in ``dtype``."""
    surroundings = Run(seed=0, dtype=dtype)
    encoder = build(surroundings, width=16).eval()
    labels = torch.arange(IMAGES) % CLASSES
    train = ImageSet(images=noise(IMAGES), labels=labels, classes=tuple(map(str, range(CLASSES))), name="noise")
    owner = Defender.of(encoder, MLP(), train, surroundings)
    method = MNTDClassifier(shadows=1, validation=0, share=1.0, shadow_epochs=EPOCHS, shadow_batch=BATCH)

    def textbook() -> None:
        for kind in (False, True):
            attack = jumbo.draw(train.size, CLASSES, surroundings.generator()) if kind else None
            images, wanted = to_float(train.images), labels
            if attack is not None:
                count = round(attack.rate * IMAGES)
                images = torch.cat((images, attack(images[:count])))
                wanted = torch.cat((wanted, torch.full((count,), attack.target)))
            _train(images, wanted)

    def _train(images: Tensor, wanted: Tensor) -> None:
        classifier = head(encoder.feature_size, CLASSES)
        optimizer = torch.optim.Adam(classifier.parameters())
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(images)).split(BATCH):
                with torch.no_grad(), surroundings.autocast():
                    features = encoder(images[rows])
                loss = F.cross_entropy(classifier(F.normalize(features.float(), dim=1)), wanted[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return paired(lambda: method.fleets(owner, train, surroundings), textbook, images=2, rounds=5, unit="shadows/s")
