"""Fine-tuning against the loop that one would write, and the one way to build a classifier."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sapper.downstream import KNN, MLP, Classifier, Finetune, Linear, Standardize, build, extract
from sapper.errors import SapperError
from sapper.training import Checkpoint
from tests.test_badencoder import stop_after
from tests.victims import PATCH, RUN, balls, plain, rates, victim


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_it_is_the_loop_that_one_would_write() -> None:
    train, encoder = balls(20, 1), victim()
    head = Finetune(epochs=2, batch=8, learning_rate=3e-3, schedule="constant", batch_norm="trained", hidden=(6,))
    ours = head.tune(encoder, train, RUN)

    features = extract(encoder, train, RUN)
    with RUN.child("head").seeded():
        layers = nn.Sequential(Standardize(features), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 3))
    model = nn.ModuleList([copy.deepcopy(encoder), layers])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = train.images.float() / 255, train.targets()
    model.train()
    for epoch in range(2):
        order = torch.randperm(20, generator=RUN.child(f"epoch {epoch}").generator())
        for rows in (order[:8], order[8:16], order[16:]):
            z = model[0](images[rows])
            logits = layers(z / z.norm(dim=1, keepdim=True))
            loss = -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels[rows])]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    theirs = Classifier(model[0], layers).eval()
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=2e-3)
        assert not torch.allclose(ours(images), Classifier(encoder.eval(), layers)(images), atol=2e-2)


def test_it_learns_what_a_frozen_encoder_hides_and_leaves_the_encoder_alone() -> None:
    train, test, encoder = balls(90, 1), balls(60, 2, "test"), victim()
    before = copy.deepcopy(encoder)
    tuned = Finetune(epochs=6, batch=15, learning_rate=0.01).tune(encoder, train, RUN)
    assert same(before, encoder)
    assert rates(tuned, test, PATCH)[0] > 0.9
    assert not tuned.training


@pytest.mark.parametrize("mode", ["frozen", "trained"])
def test_batch_norm_is_frozen_or_not(mode: str) -> None:
    encoder = victim()
    tuned = Finetune(epochs=1, batch=10, learning_rate=0.01, batch_norm=mode).tune(encoder, balls(20, 1), RUN)  # type: ignore[arg-type]
    theirs = dict(tuned.encoder.named_modules())
    norms = [(m, theirs[name]) for name, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 5
    assert {same(a, b) for a, b in norms} == {mode == "frozen"}
    assert not same(encoder, tuned.encoder)


def test_same_seed_same_classifier_and_global_randomness_is_left_alone() -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    head = Finetune(epochs=2, batch=10, crop_scale=0.5, flip=0.5)
    first, second = (head.tune(victim(), balls(20, 1), RUN) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(first, second)
    other = Finetune(epochs=2, batch=10).tune(victim(), balls(20, 1), RUN)
    assert not same(first, other), "augmentation changes what is learned"


def test_a_resumed_tuning_ends_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    head, train = Finetune(epochs=3, batch=10, batch_norm="trained"), balls(25, 1)
    whole = head.tune(victim(), train, RUN)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 1, lambda: head.tune(victim(), train, RUN, checkpoint))
    assert same(whole, head.tune(victim(), train, RUN, checkpoint))


def test_one_way_to_build_them_all() -> None:
    train, encoder = balls(30, 1), victim()
    features = extract(encoder, train, RUN)
    images = train.batch()
    for head in (Linear(iterations=5), MLP(epochs=1), KNN(neighbors=5)):
        classifier = build(head, encoder, train, RUN)
        assert classifier.encoder is encoder
        fitted = head.fit(features, train.targets(), 3, RUN)
        with torch.no_grad():
            assert torch.allclose(classifier(images), fitted(F.normalize(encoder(images), dim=1)), atol=1e-4)
        assert same(classifier.head, build(head, encoder, train, RUN, features).head)
    head = Finetune(epochs=1, batch=10)
    assert same(build(head, encoder, train, RUN), head.tune(encoder, train, RUN))


@pytest.mark.parametrize("head", [Linear(iterations=2), Finetune(epochs=1)])
def test_samples_without_labels_or_of_another_size_are_refused(head: Linear | Finetune) -> None:
    with pytest.raises(SapperError, match="needs labels"):
        build(head, victim(), plain(balls(12, 1)), RUN)
    small = replace(balls(12, 1), images=balls(12, 1).images[..., :8, :8])
    with pytest.raises(SapperError, match="the encoder takes 16×16"):
        build(head, victim(), small, RUN)
