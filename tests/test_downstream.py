"""Features and heads against plain forms of scikit-learn and numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor, nn

from sapper.downstream import KNN, MLP, Classifier, Linear, Standardize, extract, mean_cosine, predict
from sapper.encoders import build
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Blend, Filter, Patch, Trigger
from tests.test_badencoder import images

RUN = Run(seed=2)


def clouds(count: int, classes: int, dimension: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized Gaussian clouds around fixed centers, and their labels."""
    centers = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return F.normalize(centers[labels] + torch.randn(count, dimension, generator=generator), dim=1), labels


@settings(deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_the_mean_cosine_is_that_of_all_pairs(count: int, seed: int) -> None:
    features = torch.randn(2, count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for each, ours in zip(features, mean_cosine(F.normalize(features, dim=-1))):
        pairs = [F.cosine_similarity(each[i], each[j], dim=0) for i in range(count) for j in range(count) if i != j]
        assert float(ours) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-9)


def test_the_mean_cosine_leaves_out_the_diagonal_and_needs_no_square_matrix() -> None:
    assert float(mean_cosine(F.normalize(torch.ones(5, 8), dim=1))) == pytest.approx(1)
    assert float(mean_cosine(torch.eye(8))) == pytest.approx(0, abs=1e-7)
    many = F.normalize(torch.randn(100_000, 4), dim=1)  # 40 GB, if every pair were kept
    assert abs(float(mean_cosine(many))) < 0.01


def test_features_are_normalized_and_the_trigger_is_stamped_first() -> None:
    encoder, data = build(RUN, architecture="resnet10", width=4, input_size=16), images(10, 1)
    pixels, patch = data.images.float() / 255, Patch(size=5)
    with torch.no_grad():
        encoder.eval()
        plain, stamped = F.normalize(encoder(pixels), dim=1), F.normalize(encoder(patch(pixels)), dim=1)
    assert torch.allclose(extract(encoder, data, RUN, batch=3), plain, atol=1e-6)
    assert torch.allclose(extract(encoder, data, RUN, patch, batch=4), stamped, atol=1e-6)
    assert not torch.allclose(plain, stamped, atol=1e-3)


class Recorder(nn.Module):
    """In the place of an encoder: keeps what it is shown."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.flatten(1)


@pytest.mark.parametrize("trigger", [Patch(size=4), Filter(), Blend(alpha=0.2)])
def test_a_number_format_rounds_no_pixels_of_what_a_trigger_makes(trigger: Trigger) -> None:
    images = ImageSet(images=torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), name="noise")
    recorder = Recorder()
    extract(recorder, images, Run(dtype=torch.bfloat16), trigger)  # type: ignore[arg-type]
    assert torch.equal(recorder.seen, trigger(images.batch()))


def test_a_linear_probe_is_logistic_regression() -> None:
    features, labels = clouds(300, 4, 6, seed=1)
    head = Linear(penalty=1e-3, iterations=500).fit(features, labels, 4, RUN)
    scale = float(features.var(0, correction=0).mean().sqrt())
    theirs = make_pipeline(
        StandardScaler(with_std=False),
        FunctionTransformer(lambda x: x / scale),
        LogisticRegression(C=1 / (1e-3 * len(features)), tol=1e-8, max_iter=2000),
    )
    theirs.fit(features.numpy(), labels.numpy())
    with torch.no_grad():
        ours = head(features).softmax(1).numpy()
    assert np.abs(ours - theirs.predict_proba(features.numpy())).max() < 0.01


def test_knn_votes_as_the_formula_says() -> None:
    bank, labels = clouds(40, 3, 5, seed=1)
    queries, _ = clouds(12, 3, 5, seed=2)
    head = KNN(neighbors=7, temperature=0.5).fit(bank, labels, 3, RUN)
    for query, votes in zip(queries, head(queries)):
        similarity = bank @ query
        expected = torch.zeros(3)
        for row in similarity.argsort(descending=True)[:7]:
            expected[labels[row]] += torch.exp(similarity[row] / 0.5)
        shares = (expected / expected.sum()).clamp_min(1e-6)
        assert torch.allclose(votes, shares.log(), atol=1e-4)


@pytest.mark.parametrize(
    "head",
    [
        MLP(epochs=30, learning_rate=1e-3),
        MLP(epochs=5, learning_rate=1e-3, standardize=True),
        MLP(epochs=5, learning_rate=2e-3, standardize=True, schedule="cosine"),
        Linear(),
        KNN(neighbors=10),
    ],
)
def test_heads_learn_separable_classes(head: MLP | Linear | KNN) -> None:
    features, labels = clouds(400, 4, 20, seed=1)
    unseen, truth = clouds(200, 4, 20, seed=2)
    fitted = head.fit(features, labels, 4, RUN)
    assert (predict(fitted, unseen) == truth).float().mean() > 0.9


def test_the_order_of_rows_does_not_matter_to_the_mlp() -> None:
    """Class-sorted rows, which an unshuffled loader feeds one class at a time, give the same accuracy."""
    features, labels = clouds(400, 4, 20, seed=1)
    unseen, truth = clouds(400, 4, 20, seed=2)
    order = labels.argsort()
    head = MLP(epochs=20, learning_rate=1e-3)
    mixed, ordered = (
        (predict(head.fit(x, y, 4, RUN), unseen) == truth).float().mean()
        for x, y in ((features, labels), (features[order], labels[order]))
    )
    assert abs(float(mixed - ordered)) < 0.05


def test_the_mlp_is_the_papers_and_the_same_seed_gives_the_same() -> None:
    features, labels = clouds(60, 3, 20, seed=1)
    first, second = (MLP(epochs=2).fit(features, labels, 3, RUN) for _ in range(2))
    assert [tuple(p.shape) for p in first.parameters()] == [(512, 20), (512,), (256, 512), (256,), (3, 256), (3,)]
    for ours, theirs in zip(first.parameters(), second.parameters()):
        assert torch.equal(ours, theirs)
    assert not first.training


def test_a_classifier_goes_from_images_to_logits() -> None:
    encoder, data = build(RUN, architecture="resnet10", width=4, input_size=16).eval(), images(12, 1)
    features = extract(encoder, data, RUN)
    head = Linear(iterations=5).fit(features, torch.arange(12) % 3, 3, RUN)
    logits = Classifier(encoder, head)(data.images.float() / 255)
    assert torch.allclose(logits, head(features), atol=1e-5)


def test_a_feature_that_hardly_changes_is_not_blown_up() -> None:
    """A small change of it, as a trigger may make, stays small."""
    features, _ = clouds(200, 4, 6, seed=1)
    features[:, 0] *= 1e-4
    standardize = Standardize(features)
    changed = features.clone()
    changed[:, 0] += 0.01
    assert (standardize(changed) - standardize(features)).abs().max() < 0.1
    assert standardize(features).mean(0).abs().max() < 1e-4
    assert standardize(features).var(0, correction=0).mean().item() == pytest.approx(1, rel=1e-3)
