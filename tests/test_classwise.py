"""The class-by-class look: a planted square in a classifier, and classifiers that stand behind encoders in files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sapper import encoders
from sapper.audits.auditing import audit, by_class, classes_for
from sapper.defenses.budgets import BUDGETS
from sapper.defenses.judge.classwise import ClassWise
from sapper.defenses.reaching import towards
from sapper.encoders.encoder import Head
from sapper.encoders.recognition.heads import CLASSIFIER, head_of
from sapper.encoders.schemes import HubConfig, Transformers
from sapper.report import audit as page
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from tests.test_neural_cleanse import CLASSES, IMAGES, TARGET, classifier

RUN = Run(seed=3)
LOOK = ClassWise(side=0.25)  # squares of 2×2, as what is planted


@pytest.mark.parametrize("large", [9, 8])
def test_a_planted_square_is_found_and_its_class_named(large: int) -> None:
    network = classifier(backdoored=True)
    verdict = replace(LOOK, large=large).examine(network, IMAGES, CLASSES, RUN)
    assert verdict.flagged
    assert verdict.evidence["suspect"] == TARGET
    assert verdict.trigger is not None
    assert verdict.trigger.mask[:2, :2].sum() == verdict.trigger.mask.sum() == 4  # type: ignore[attr-defined]
    assert {each.label for each in verdict.reached} == set(range(CLASSES))
    others = to_float(IMAGES.images)[network(to_float(IMAGES.images)).argmax(1) != TARGET]
    sent = float((network(verdict.trigger(others)).argmax(1) == TARGET).float().mean())
    assert sent == pytest.approx(verdict.evidence["share"], abs=0.06)  # its share is of a part of them


def test_large_images_go_through_the_classifier_less_often() -> None:
    network, counts = classifier(backdoored=True), list[int]()
    for large in (9, 8):
        counts.append(0)

        def counting(images: Tensor) -> Tensor:
            counts[-1] += len(images)
            return network(images)

        replace(LOOK, large=large).examine(counting, IMAGES, CLASSES, RUN)
    assert counts[1] < 0.7 * counts[0]


@pytest.mark.parametrize(("size", "classes"), [(64, 48), (65, 4), (111, 4), (112, 2), (224, 2)])
def test_the_larger_images_are_the_fewer_classes_are_looked_at(size: int, classes: int) -> None:
    assert classes_for(size) == classes


def test_a_clean_classifier_is_not_flagged() -> None:
    verdict = LOOK.examine(classifier(backdoored=False), IMAGES, CLASSES, RUN)
    assert verdict.score is not None
    assert verdict.score < 0.5
    assert not verdict.flagged


def test_of_many_classes_those_are_looked_at_that_a_start_raises_most() -> None:
    """The planted class is among two of six."""
    verdict = ClassWise(side=0.25, most=2).examine(classifier(backdoored=True), IMAGES, CLASSES, RUN)
    assert len(verdict.evidence["looked"]) == 2
    assert verdict.evidence["suspect"] == TARGET


def test_the_loss_is_the_mean_cross_entropy_of_each_change() -> None:
    network, changed = classifier(backdoored=True), torch.rand(3, 5, 3, 8, 8)
    losses = towards(network, 2, RUN)(changed[0], changed)
    for loss, images in zip(losses, changed):
        expected = -sum(float(network(image[None]).softmax(1)[0, 2].log()) for image in images) / 5
        assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [2, 5])
def test_few_images_are_enough_for_an_answer(count: int) -> None:
    verdict = LOOK.examine(classifier(backdoored=True), IMAGES.take(torch.arange(count)), CLASSES, RUN)
    assert verdict.score is not None


def test_where_all_images_are_of_the_only_class_there_is_nothing_to_send() -> None:
    def one(images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1) + 0 * images.mean()

    verdict = LOOK.examine(one, IMAGES, 1, RUN)
    assert verdict.score is None
    assert "one class" in verdict.evidence["why"]


def test_a_class_that_nearly_all_images_have_is_not_judged_by_the_rest() -> None:
    """One image that a square moves must not stand for all."""

    def nearly(images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3)) > 0.93
        return torch.stack((~bright, bright), 1).float() * 9 + 0 * images.mean()

    pixels = torch.full((40, 3, 8, 8), 60, dtype=torch.uint8) + torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1)
    pixels[:2] = 250
    looked = LOOK.examine(nearly, ImageSet(images=pixels, name="plain"), 2, RUN).evidence["looked"]
    assert set(looked) == {"1"}


def test_logits_that_are_not_finite_give_no_score() -> None:
    verdict = LOOK.examine(lambda images: images.mean((2, 3)) / 0, IMAGES, 3, RUN)
    assert verdict.score is None


# Classifiers behind encoders


def left(**tensors: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    return tensors, dict.fromkeys(tensors, CLASSIFIER)


@pytest.mark.parametrize("bias", [True, False])
def test_a_last_linear_layer_is_the_classifier(bias: bool) -> None:
    layer = torch.nn.Linear(6, 4, bias=bias)
    tensors, why = left(**{f"fc.{name}": value.detach() for name, value in layer.state_dict().items()})
    head = head_of(tensors, why, 6, ("a", "b", "c", "d"))
    assert head is not None
    features = torch.randn(5, 6)
    assert torch.allclose(head(features), layer(features), atol=1e-6)
    assert (head.called(2), head.name) == ("c", "fc.weight")
    unnamed = head_of(tensors, why, 6, ("a", "b"))
    assert unnamed is not None
    assert unnamed.called(2) == "class 2 of 4"


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc.weight": torch.zeros(4, 7)},
        {"fc.0.weight": torch.zeros(6, 6), "fc.2.weight": torch.zeros(4, 6)},
        {"head.weight": torch.zeros(4, 6), "head_dist.weight": torch.zeros(4, 6)},
        {"fc.weight": torch.zeros(1, 6)},
        {"fc.weight": torch.zeros(4, 6), "fc.scale": torch.zeros(3)},
        {"fc.weight": torch.full((4, 6), torch.nan)},
        {},
    ],
    ids=["another size", "two layers", "two heads", "one class", "something else", "not finite", "nothing"],
)
def test_what_is_not_a_linear_layer_alone_is_no_classifier(tensors: dict[str, Tensor]) -> None:
    assert head_of(*left(**tensors), 6, ()) is None


def test_beside_what_a_pretraining_leaves_a_linear_layer_has_no_classes() -> None:
    tensors, why = left(**{"fc.weight": torch.zeros(128, 6)})
    assert (
        head_of(tensors | {"queue": torch.zeros(6, 9)}, why | {"queue": "a queue of earlier features"}, 6, ()) is None
    )


@pytest.mark.parametrize(
    ("said", "classes"),
    [
        ({"0": "cat", "1": "dog"}, ("cat", "dog")),
        ({"0": "cat", "2": "dog"}, ()),
        ({"0": 0, "1": 1}, ()),
        (None, ()),
        (["cat"], ()),
    ],
)
def test_names_of_classes_in_odd_forms_refuse_no_encoder(said: object, classes: tuple[str, ...]) -> None:
    config = Transformers.model_validate({"model_type": "vit", "id2label": said})
    assert config.classes == classes
    timms = HubConfig.model_validate({"architecture": "resnet18", "label_names": said})
    assert timms.classes == (("cat",) if said == ["cat"] else ())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, encoders.Encoder, torch.nn.Linear]:
    """A whole classifier as a state dict, and its parts."""
    body = encoders.build(RUN, architecture="resnet10", width=8).eval()
    torch.manual_seed(1)
    layer = torch.nn.Linear(body.feature_size, 7)
    tensors = body.backbone.state_dict() | {f"fc.{name}": value for name, value in layer.state_dict().items()}
    path = tmp_path_factory.mktemp("files") / "classifier.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path, body, layer


def test_the_classifier_in_a_file_is_kept_and_is_no_part_of_the_encoder(
    files: tuple[Path, encoders.Encoder, torch.nn.Linear],
) -> None:
    path, body, layer = files
    encoder = encoders.open(str(path), RUN)
    assert encoder.head is not None
    assert encoder.card.origin["head"] == ["7 classes, fc.weight"]
    normal = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        ours = encoder.head(encoder(normal * encoder.std + encoder.mean))
        assert torch.allclose(ours, layer(body(normal * body.std + body.mean)), atol=1e-4)
    assert not any("head" in name for name in encoder.state_dict())


def test_an_audit_looks_class_by_class_and_decides_as_without(
    files: tuple[Path, encoders.Encoder, torch.nn.Linear],
) -> None:
    encoder = encoders.open(str(files[0]), RUN)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    images, race = (
        ImageSet(images=pixels, name="noise"),
        {"rounds": ((0, 2, 1), (2, 4, 2)), "blends": (), "filters": ()},
    )
    budget = replace(BUDGETS["quick"], detectors={"multi_prior": race})
    report = audit(encoder, images, budget, [], RUN)
    found = {finding.method: finding for finding in report.detectors}
    assert found["classwise"].evidence["classes"] == 7
    assert not found["classwise"].leads
    assert any("of the 7 classes" in line for line in report.coverage.tried)
    assert any(" of 7 (" in line for line in page.lines(report))
    assert "classwise" in page.render(report, {}, "sapper audit")
    encoder.head = None
    without = audit(encoder, images, budget, [], RUN)
    assert [finding.method for finding in without.detectors] == ["multi_prior"]
    assert (without.verdict, without.leading.score) == (report.verdict, report.leading.score)


def test_a_planted_class_is_called_by_its_name() -> None:
    """The planted classifier as an encoder of its logits, with a head that passes them on."""
    network = classifier(backdoored=True)

    class Net(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return network(images)

    card = encoders.Card(architecture="toy", input=encoders.build(RUN, width=4).card.input)
    encoder = encoders.Encoder(Net(), card, CLASSES)
    encoder.mean, encoder.std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    head = Head(torch.eye(CLASSES), torch.zeros(CLASSES), "fc.weight", tuple("uvwxyz"))
    verdict = by_class(encoder, head, IMAGES, RUN)
    assert verdict.evidence["class"] == "uvwxyz"[verdict.evidence["suspect"]]
