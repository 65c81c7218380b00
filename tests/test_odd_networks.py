"""Audits of networks and images that nobody expects: a verdict, or undecided with the reason, and never a crash."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sapper.audits.auditing import audit
from sapper.audits.families import Family, FamilyBag, parameters_of
from sapper.defenses.budgets import BUDGETS
from sapper.encoders import Card, Encoder
from sapper.encoders.encoder import Head
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec

RUN = Run(seed=4)
SIZE = 16
SHORT = {"patches": ((0.25, 0.0, 1.0),), "rounds": ((0, 4, 1), (2, 4, 2)), "images": 16, "held_out": 16}
BUDGET = replace(BUDGETS["quick"], strangers={"twins": SHORT | {"twins": 1, "steps": 3, "worst_fit": 2.0}})
FAMILIES = FamilyBag(
    name="toys",
    detector="twins",
    parameters=parameters_of(BUDGET.for_strangers()["twins"]),
    images=10,
    families=[Family(name=f"family {i}", about="toys", scores=[-9.0]) for i in range(19)],
)


class NoNormalization(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 9, features)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.linear(torch.relu(self.conv(images)).flatten(1))
        return answer


class Constant(nn.Module):
    """The same features for all images, though it has weights."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.ones(features))

    def forward(self, images: Tensor) -> Tensor:
        return self.point + 0 * images.mean((1, 2, 3), keepdim=False).unsqueeze(1)


def encoder(body: nn.Module, features: int, head: Head | None = None) -> Encoder:
    card = Card(architecture="code:odd", input=PixelSpec(size=SIZE))
    made = Encoder(body, card, features).eval()
    made.head = head
    return made


def photos(count: int = 80) -> ImageSet:
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=RUN.generator())
    return ImageSet(images=images, name="noise")


@pytest.mark.parametrize("large", [SIZE, SIZE + 1])
@pytest.mark.parametrize("features", [2, 20_000])
def test_networks_without_normalization_layers_and_few_or_many_features_get_a_verdict(
    features: int, large: int
) -> None:
    with RUN.seeded():
        subject = encoder(NoNormalization(features), features)
    budget = replace(BUDGET, strangers={"twins": BUDGET.strangers["twins"] | {"large": large}})
    known = replace(FAMILIES, parameters=parameters_of(budget.for_strangers()["twins"]))
    report = audit(subject, photos(), budget, [], RUN, families=[known])
    assert report.verdict in ("backdoor", "no-evidence")
    assert report.p_value is not None
    assert report.detectors[0].method == "twins"


def test_each_image_in_a_color_of_its_own_is_enough_for_a_search() -> None:
    with RUN.seeded():
        subject = encoder(NoNormalization(8), 8)
    colors = torch.randint(0, 256, (80, 3, 1, 1), dtype=torch.uint8, generator=RUN.generator())
    images = ImageSet(images=colors.repeat(1, 1, SIZE, SIZE), name="colors")
    report = audit(subject, images, BUDGET, [], RUN, families=[FAMILIES])
    assert report.p_value is not None


def test_a_network_that_sees_nothing_is_undecided() -> None:
    report = audit(encoder(Constant(8), 8), photos(), BUDGET, [], RUN, families=[FAMILIES])
    assert report.verdict == "undecided"
    assert "told apart" in report.reason


@pytest.mark.parametrize("classes", [2, 300])
def test_a_head_whose_classes_nobody_names_is_told_by_numbers(classes: int) -> None:
    with RUN.seeded():
        head = Head(weight=torch.randn(classes, 8), bias=torch.zeros(classes), name="fc.weight")
        subject = encoder(NoNormalization(8), 8, head)
    report = audit(subject, photos(), BUDGET, [], RUN)
    (found,) = [finding for finding in report.detectors if finding.method == "classwise"]
    assert found.evidence["classes"] == classes
    assert found.evidence["class"] == f"class {found.evidence['suspect']} of {classes}"
