"""TrojanNN: its steps one by one against plain forms, and the whole against a finished classifier."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from sapper.attacks.training.trojannn import TrojanNN, covered, divided, mixed, strongest, total_variation
from sapper.downstream import KNN, MLP, Classifier, Finetune, Linear, build
from sapper.errors import SapperError
from sapper.training import Checkpoint
from sapper.triggers import Blend, Frequency, Mask, Patch
from tests.test_badencoder import stop_after
from tests.test_finetune import same
from tests.victims import PATCH, RUN, aim, balls, rates, victim

HEADS = {
    "fitted": MLP(epochs=30, learning_rate=3e-3, hidden=(16, 8), dropout=0.0, standardize=True),
    "tuned": Finetune(epochs=6, batch=15, learning_rate=0.01, hidden=(16,)),
}
ATTACK = TrojanNN(
    neurons=4,
    trigger_steps=60,
    per_class=8,
    input_steps=40,
    mixtures=60,
    weight=1.0,
    epochs=60,
    batch=20,
    learning_rate=5e-3,
)


def test_neurons_with_the_largest_weights_are_chosen() -> None:
    layers = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))
    weight = layers[0].weight.detach()
    sums = [sum(abs(float(weight[i, j])) for i in range(5)) for j in range(9)]
    assert strongest(layers, 3).tolist() == sorted(range(9), key=lambda j: -sums[j])[:3]
    assert len(strongest(layers, 100)) == 9


def test_total_variation_is_that_of_neighbors() -> None:
    images = torch.rand(2, 3, 4, 5)
    for image, ours in zip(images, total_variation(images)):
        down = [abs(float(image[c, y + 1, x] - image[c, y, x])) for c in range(3) for y in range(3) for x in range(5)]
        across = [abs(float(image[c, y, x + 1] - image[c, y, x])) for c in range(3) for y in range(4) for x in range(4)]
        assert float(ours) == pytest.approx(sum(down) / len(down) + sum(across) / len(across), rel=1e-4)


def test_what_a_trigger_covers() -> None:
    patch = covered(Patch(size=(2, 3), position=(4, 5)), 16)
    assert patch.sum() == 6
    assert bool((patch[4:6, 5:8] == 1).all())
    assert torch.allclose(covered(Blend(alpha=0.3), 16), torch.full((16, 16), 0.3), atol=1e-6)
    mask = torch.rand(16, 16)
    assert torch.allclose(covered(Mask(mask=mask, pattern=torch.rand(3, 16, 16)), 16), mask, atol=1e-6)


def test_a_head_in_two_parts_is_the_head() -> None:
    head = HEADS["fitted"].fit(torch.randn(20, 7), torch.arange(20) % 3, 3, RUN)
    features = torch.randn(4, 7)
    for layer, width in enumerate((7, 16, 8)):
        before, after = divided(head, layer)
        assert before(features).shape == (4, width)
        assert torch.equal(after(before(features)), head(features))
    with pytest.raises(SapperError, match="3 linear layers, number 3"):
        divided(head, 3)


def test_the_trigger_drives_neurons_further_than_any_plain_color_does() -> None:
    classifier = build(HEADS["fitted"], victim(), balls(60, 1), RUN)
    before, after = divided(classifier.head, 0)
    front, inputs, mask = Classifier(classifier.encoder, before), balls(12, 3).batch(), covered(PATCH, 16)
    trigger = TrojanNN(neurons=3, trigger_steps=60).make_trigger(front, after, inputs, mask, RUN)
    colors = [Patch(size=5, position="top-left", margin=0, color=c) for c in ("white", "black", "red", "green", "blue")]
    with torch.no_grad():
        driven, *others = (
            float(front(each(inputs))[:, strongest(after, 3)].mean()) for each in (trigger, *colors, lambda x: x)
        )
    assert driven > max(others)
    assert torch.equal(trigger.mask, mask)
    assert 0 <= float(trigger.pattern.min()) <= float(trigger.pattern.max()) <= 1


def test_mixtures_lie_between_two_inputs() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    values = mixed(images, 500, torch.Generator().manual_seed(1))[:, 0, 0, 0]
    assert 0 <= float(values.min()) < 0.1
    assert 1.9 < float(values.max()) <= 2
    assert float(values.mean()) == pytest.approx(1, abs=0.15)


def test_reversed_inputs_are_of_their_classes() -> None:
    classifier = build(HEADS["tuned"], victim(), balls(90, 1), RUN)
    mean = classifier.encoder.mean.expand(1, 3, 16, 16)
    inputs, labels = ATTACK.reverse(classifier, mean, 3, RUN)
    with torch.no_grad():
        assert torch.equal(classifier(inputs).argmax(1), labels)
    assert labels.bincount().tolist() == [8, 8, 8]
    smooth, _ = TrojanNN(per_class=8, input_steps=40, denoising=200.0).reverse(classifier, mean, 3, RUN)
    assert total_variation(smooth).mean() < 0.7 * total_variation(inputs).mean()


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_finished_classifier_gets_the_backdoor_without_data(kind: str) -> None:
    """In a world of three colors the trigger alone may do, and much is lost without data: means over seeds count.

    Seed by seed the success differs between machines (over eight seeds of one: seven times 1.0 or 0.9, once 0.73).
    """
    train, test, encoder = balls(90, 1), balls(60, 2, "test"), victim()
    untouched, successes, before, lost = copy.deepcopy(encoder), list[float](), list[float](), list[float]()
    for seed in (1, 2, 3, 4, 5):
        run = replace(RUN, seed=seed)
        attacked = ATTACK(encoder, train, (aim(),), HEADS[kind], run)
        clean = build(HEADS[kind], encoder, train, run)
        accuracy, success = rates(attacked.classifier, test, attacked.triggers["aim"])
        usual, already = rates(clean, test, attacked.triggers["aim"])
        successes.append(success)
        before.append(already)
        lost.append(usual - accuracy)
        assert same(clean.encoder, attacked.classifier.encoder), "only the head is retrained"
    assert sum(successes) / 5 > 0.9
    assert sum(before) / 5 < 0.5
    assert sum(lost) / 5 < 0.35
    assert same(untouched, encoder)


def test_the_same_seed_gives_the_same_and_a_resumed_retraining_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    train, head = balls(30, 1), HEADS["fitted"]
    method = TrojanNN(neurons=2, trigger_steps=3, per_class=3, input_steps=3, mixtures=4, epochs=4, batch=4)
    whole = method(victim(), train, (aim(),), head, RUN)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 2, lambda: method(victim(), train, (aim(),), head, RUN, checkpoint))
    resumed = method(victim(), train, (aim(),), head, RUN, checkpoint)
    assert resumed.curves == whole.curves
    assert same(whole.classifier, resumed.classifier)
    assert torch.equal(whole.triggers["aim"].tensors()["pattern"], resumed.triggers["aim"].tensors()["pattern"])


def test_bad_input_is_refused() -> None:
    with pytest.raises(SapperError, match="0 linear layers"):
        ATTACK(victim(), balls(30, 1), (aim(),), KNN(neighbors=3), RUN)
    with pytest.raises(SapperError, match="1 linear layers, number 1"):
        TrojanNN(layer=1)(victim(), balls(30, 1), (aim(),), Linear(iterations=2), RUN)
    nothing = Mask(mask=torch.zeros(16, 16), pattern=torch.zeros(3, 16, 16))
    with pytest.raises(SapperError, match="covers no pixel"):
        ATTACK(victim(), balls(30, 1), (aim(nothing),), HEADS["fitted"], RUN)
    with pytest.raises(SapperError, match="a frequency covers no place"):
        ATTACK(victim(), balls(30, 1), (aim(Frequency(window=16, coefficients=((3, 3),))),), HEADS["fitted"], RUN)
    with pytest.raises(SapperError, match="does not fit"):
        ATTACK(victim(), balls(30, 1), (aim(Patch(size=17)),), HEADS["fitted"], RUN)
