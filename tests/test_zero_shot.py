"""The zero-shot head against its formula, what it refuses, and the one entry for all heads."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sapper.downstream import KNN, MLP, AnyHead, Classifier, Linear, ZeroShot, build, extract, predict
from sapper.downstream.zero_shot import PROMPTS
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.pretraining.clip import CLIP
from sapper.running import Run
from sapper.samples import PairSet
from tests.test_badencoder import images, tiny
from tests.test_clip import SMALL, colored, make

RUN = Run(seed=3)
TEMPLATES = ("a photo of a {} square", "the square is {}", "a {} square")


@pytest.fixture(scope="module")
def squares() -> PairSet:
    return colored(48)


@pytest.fixture(scope="module")
def encoder(squares: PairSet) -> Encoder:
    return CLIP(epochs=2, **SMALL)(make(), squares, RUN).encoder


@pytest.mark.parametrize("times", [1, 60], ids=["few prompts", "more than the tower takes at once"])
def test_logits_are_the_scaled_cosines_with_the_average_of_normalized_prompts(
    encoder: Encoder, squares: PairSet, times: int
) -> None:
    """One prompt after another, in plain loops; the average of templates that come ever again is the same."""
    templates = TEMPLATES * times
    assert (len(templates) * len(squares.classes) > PROMPTS) == (times > 1)
    features = extract(encoder, squares.images, RUN)
    head = ZeroShot(templates=templates).build(encoder, squares.classes, RUN)
    assert encoder.text is not None
    for column, name in enumerate(squares.classes):
        total = torch.zeros(encoder.feature_size)
        for template in templates:
            feature = encoder.text.encode([template.format(name)])[0]
            total += feature / feature.norm()
        mean = total / len(templates)
        row = mean / mean.norm()
        expected = encoder.text.scale.detach() * torch.stack([(feature * row).sum() for feature in features])
        assert torch.allclose(head(features)[:, column], expected, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(TEMPLATES), st.integers(1, 6))
def test_one_template_gives_what_several_equal_ones_do(template: str, count: int) -> None:
    pairs = colored(12)
    encoder = make()
    CLIP(**SMALL).give_text(encoder, pairs, RUN)
    one = ZeroShot(templates=(template,)).build(encoder, pairs.classes, RUN)
    many = ZeroShot(templates=(template,) * count).build(encoder, pairs.classes, RUN)
    features = F.normalize(torch.randn(30, encoder.feature_size, generator=torch.Generator().manual_seed(count)), dim=1)
    assert torch.allclose(one(features), many(features), atol=1e-4)
    assert torch.equal(predict(one, features), predict(many, features))


def test_many_images_at_once_are_as_one_at_a_time(encoder: Encoder, squares: PairSet) -> None:
    features = extract(encoder, squares.images, RUN)
    whole = ZeroShot(templates=TEMPLATES).build(encoder, squares.classes, RUN)
    alone = torch.cat([whole(feature[None]) for feature in features])
    assert torch.allclose(whole(features), alone, atol=1e-4)


def test_nothing_in_it_is_trained_and_no_class_is_seen(encoder: Encoder, squares: PairSet) -> None:
    before = torch.random.get_rng_state()
    head = ZeroShot(templates=TEMPLATES).build(encoder, ("blue", "red"), RUN)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not list(head.parameters())
    assert head(extract(encoder, squares.images, RUN)).shape == (48, 2)


def test_an_encoder_without_a_text_tower_is_told_so() -> None:
    with pytest.raises(SapperError, match="this one has none") as caught:
        ZeroShot().build(tiny(), ("red", "green"), RUN)
    assert "clip" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("red", "purple"), "does not know the class 'purple'"),
        (("red", "!"), "does not know the class '!'"),
        (("red square", "red", "Red."), "'red' and 'Red.' apart"),
        (("red 20", "red 30"), "'red 20' and 'red 30' apart"),
        (("red " * 9 + "square", "green"), "the text tower takes 9"),
    ],
)
def test_class_names_that_the_tower_cannot_read_are_refused(
    encoder: Encoder, classes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SapperError, match=said):
        ZeroShot(templates=("a {}",)).build(encoder, classes, RUN)


@pytest.mark.parametrize("templates", [(), ("a photo",), ("a {} and a {}",), ("a {name}",)])
def test_templates_say_once_where_the_class_goes(templates: tuple[str, ...]) -> None:
    with pytest.raises(SapperError, match=r"no template|say once where the class goes"):
        ZeroShot(templates=templates)


@pytest.mark.parametrize("head", [ZeroShot(templates=TEMPLATES), MLP(epochs=3), Linear(), KNN(neighbors=5)])
def test_one_entry_makes_a_classifier_of_every_head(head: AnyHead, encoder: Encoder, squares: PairSet) -> None:
    train = replace(squares.images, labels=squares.labels, classes=squares.classes)
    classifier = build(head, encoder, train, RUN)
    assert isinstance(classifier, Classifier)
    assert not classifier.training
    features = extract(encoder, train, RUN)
    given = build(head, encoder, train, RUN, features)
    with torch.no_grad():
        logits = classifier(train.batch())
        assert logits.shape == (48, 3)
        assert torch.allclose(logits, classifier.head(features), atol=1e-3)
        assert torch.allclose(logits, given(train.batch()), atol=1e-5)
    if isinstance(head, ZeroShot):
        expected: nn.Module = head.build(encoder, train.classes, RUN)
    else:
        expected = head.fit(features, train.targets(), 3, RUN)
    assert torch.equal(predict(expected, features), predict(given.head, features))


def test_a_zero_shot_classifier_needs_no_labels_but_names_and_a_fitted_one_needs_labels(encoder: Encoder) -> None:
    unlabeled = replace(images(6, 1), classes=("red", "green", "blue"))
    assert build(ZeroShot(), encoder, unlabeled, RUN)(unlabeled.batch()).shape == (6, 3)
    with pytest.raises(SapperError, match="labels"):
        build(Linear(), encoder, unlabeled, RUN)
