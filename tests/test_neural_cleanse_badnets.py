"""Neural Cleanse catches what it was made for: BadNets classifiers on embedded data, beside clean ones."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper import datasets
from sapper.defenses.judge.neural_cleanse import NeuralCleanse
from sapper.metrics import auc
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from sapper.training import shuffled
from sapper.triggers import Patch

pytestmark = pytest.mark.slow

SIDE, CLASSES = 16, 10
TRIGGER = Patch(size=3, margin=0, color="yellow")
METHOD = NeuralCleanse(steps=300, minibatches=2, batch=32)  # chosen on classifiers of other seeds


def halved(images: ImageSet) -> ImageSet:
    """At 16×16 pixels, for speed."""
    small = F.avg_pool2d(to_float(images.images), 2)
    return ImageSet(
        images=(255 * small).round().to(torch.uint8), labels=images.labels, classes=images.classes, name=images.name
    )


@pytest.fixture(scope="module")
def data() -> tuple[ImageSet, ImageSet]:
    train = datasets.load("objects", "train").sample(3000, torch.Generator().manual_seed(0))
    return halved(train), halved(datasets.load("objects", "test"))


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(24, 48, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )


def classifier(train: ImageSet, seed: int, target: int | None) -> nn.Module:
    """Trained on clean images, or with a fifth of them stamped and relabeled (BadNets)."""
    run = Run(seed=seed)
    images, labels = to_float(train.images), train.targets().clone()
    if target is not None:
        rows = torch.randperm(len(images), generator=run.child("poison").generator())[: len(images) // 5]
        images[rows], labels[rows] = TRIGGER(images[rows]), target
    with run.seeded():
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(14):
            for rows in shuffled(len(images), 64, run.child("order").generator()):
                loss = F.cross_entropy(net(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return net.eval().requires_grad_(False)


def accuracy(net: nn.Module, images: Tensor, labels: Tensor | int) -> float:
    return float((net(images).argmax(1) == labels).double().mean())


def at_threshold(scores: dict[bool, list[float]], threshold: Callable[[int], float]) -> dict[bool, int]:
    """How many are flagged of either kind; ``threshold`` is asked for those of even seeds (0) and of odd ones (1)."""
    return {
        kind: sum(score > threshold(half) for half in (0, 1) for score in some[half::2])
        for kind, some in scores.items()
    }


def test_badnets_are_told_from_clean_classifiers(data: tuple[ImageSet, ImageSet]) -> None:
    train, test = data
    pixels = to_float(test.images)
    scores: dict[bool, list[float]] = {True: [], False: []}
    named = 0
    for backdoored in (True, False):
        for i in range(CLASSES):
            net = classifier(train, seed=200 + 100 * backdoored + i, target=i if backdoored else None)
            assert accuracy(net, pixels, test.targets()) > 0.6
            if backdoored:
                assert accuracy(net, TRIGGER(pixels), i) > 0.95
            verdict = METHOD.examine(net, train, CLASSES, Run(seed=i))
            scores[backdoored].append(verdict.score)
            named += backdoored and verdict.evidence["suspect"] == i
    print(f"\nindices: backdoored {sorted(scores[True])}, clean {sorted(scores[False])}; right class named: {named}")
    for backdoored, flagged in at_threshold(scores, lambda _half: 2.0).items():
        print(f"above 2: {flagged} of {CLASSES} {'backdoored' if backdoored else 'clean'}")
    for backdoored, flagged in at_threshold(scores, lambda half: max(scores[False][1 - half :: 2])).items():
        print(f"above the clean ones of other seeds: {flagged} of {CLASSES} {'backdoored' if backdoored else 'clean'}")
    assert auc(torch.tensor(scores[True]), torch.tensor(scores[False])) >= 0.9
    assert named >= 9
