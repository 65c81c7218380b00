"""ABS against loops over neurons and candidates; and that it works."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.defenses.defender import Defender
from sapper.defenses.inversion import Triggers
from sapper.defenses.judge.abs import ABS, COVERED, Search, drive, succeeded
from sapper.defenses.stimulation import Candidates, candidates, channels_first, leads, places
from sapper.downstream import MLP, Classifier
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import to_float
from tests.planted import gratings, trained
from tests.victims import balls, victim

RUN = Run(seed=5)


def small() -> Classifier:
    """An encoder of four channels, and a head with two hidden layers."""
    return Defender.of(victim(), MLP(epochs=1, hidden=(6, 5)), balls(60, 1), RUN).build(RUN)


def test_places_are_the_stages_and_the_heads_units() -> None:
    found = places(small(), balls(1, 2).batch())
    assert [place.name for place in found] == ["stage 1", "stage 2", "stage 3", "stage 4", "head 1", "head 2"]
    assert {place.channels for place in found} == {1}


@pytest.mark.parametrize("number", range(6))
def test_leads_are_those_of_one_neuron_value_and_image_at_a_time(number: int) -> None:
    classifier, images = small(), balls(4, 2).batch()
    place = places(classifier, images[:1])[number]
    ours = leads(classifier, place, images, RUN, levels=3, reach=4.0)
    before: list[Tensor] = []
    hook = place.module.register_forward_hook(lambda _m, _i, output: before.append(output.detach()))
    classifier(images)
    hook.remove()
    values = [i * 4.0 * float(before[0].max()) / 3 for i in (1, 2)]
    for neuron in (0, 2, len(ours) - 1):
        for row in range(len(images)):
            logits = []
            for value in values:

                def set_to(_m: nn.Module, _i: object, output: Tensor, value: float = value, at: int = neuron) -> Tensor:
                    changed = output.clone()
                    changed[:, at] = value
                    return changed

                hook = place.module.register_forward_hook(set_to)
                with torch.no_grad():
                    logits.append(classifier(images[row : row + 1])[0])
                hook.remove()
            for label in range(3):
                others = [[float(each[k]) for k in range(3) if k != label] for each in logits]
                expected = max(float(each[label]) - max(other) for each, other in zip(logits, others))
                assert float(ours[neuron, row, label]) == pytest.approx(expected, abs=1e-4)


def test_candidates_are_those_of_a_loop_over_neurons() -> None:
    generator = torch.Generator().manual_seed(1)
    led = [torch.randn(30, 8, 4, generator=generator) for _ in range(2)]
    for layer in led:
        layer[::3, :, 1] += 4  # many neurons put class 1 in front
        layer[1::5, :7, 2] += 6
    labels = torch.arange(8) % 4
    found = candidates(led, labels, 9, odd=2)
    known = {}
    for layer, lead in enumerate(led):
        for neuron in range(30):
            margins = []
            for label in range(4):
                others = sorted(float(lead[neuron, row, label]) for row in range(8) if int(labels[row]) != label)
                margins.append(others[2])
            if max(margins) > 0:
                known[layer, neuron] = (max(margins), margins.index(max(margins)))
    ours = list(zip(found.layers.tolist(), found.neurons.tolist()))
    assert len(ours) == len(set(ours)) == min(9, len(known))
    for place, margin, label in zip(ours, found.margins.tolist(), found.labels.tolist()):
        assert known[place] == (pytest.approx(margin), label)
    in_turn = []
    for turn in range(5):
        some = [
            sorted((place for place in known if place[0] == layer), key=lambda at: -known[at][0]) for layer in (0, 1)
        ]
        in_turn += sorted((each[turn] for each in some if turn < len(each)), key=lambda at: -known[at][0])
    assert ours == in_turn[:9]


def test_what_is_minimized_is_a_loop_over_candidates() -> None:
    output = torch.randn(3 * 4, 5, 6, generator=torch.Generator().manual_seed(2))
    rows, neurons = torch.tensor([0, 2]), torch.tensor([1, 4])
    total = 0.0
    for row, neuron in zip(rows.tolist(), neurons.tolist()):
        own = output[4 * row : 4 * row + 4]
        one = own[:, neuron].sum(1).mean()
        others = sum(own[:, other].sum(1).mean() for other in range(5) if other != neuron)
        total += float(1e-4 * others - one)
    assert float(drive(output, 3, rows, neurons)) == pytest.approx(total, rel=1e-4)


def test_candidates_in_one_batch_go_the_way_that_each_goes_alone() -> None:
    classifier, seeds, method = small(), balls(6, 2), ABS(images=6, size=0.2)
    layers = places(classifier, seeds.batch(slice(0, 1)))
    found = Candidates(
        layers=torch.tensor([3, 5, 1]),
        neurons=torch.tensor([2, 1, 3]),
        labels=torch.tensor([0, 1, 2]),
        margins=torch.ones(3),
    )
    rows = torch.arange(3)
    together = Search(method, classifier, layers, found, rows, seeds, RUN)
    starts = [weight.detach().clone() for weight in together.weights]
    alone = [Search(method, classifier, layers, found, rows[i : i + 1], seeds, RUN) for i in range(3)]
    for i, search in enumerate(alone):
        for weight, first in zip(search.weights, starts):
            weight.data.copy_(first[i : i + 1])
    for _ in range(4):
        together.step()
        for search in alone:
            search.step()
    for i, search in enumerate(alone):
        for ours, theirs in zip(together.weights, search.weights):
            assert torch.allclose(ours[i], theirs[0], atol=1e-3)
        assert float(together.kept.success[i]) == pytest.approx(float(search.kept.success[0]))


@pytest.mark.parametrize("steps", [1, 60])
def test_a_mask_keeps_to_the_size_however_few_the_steps(steps: int) -> None:
    classifier, seeds = small(), balls(6, 2)
    method = ABS(images=6, size=0.1, steps=steps, learning_rate=0.3)
    layers = places(classifier, seeds.batch(slice(0, 1)))
    found = Candidates(
        layers=torch.tensor([3]), neurons=torch.tensor([2]), labels=torch.tensor([0]), margins=torch.ones(1)
    )
    triggers = method.invert(classifier, layers, found, seeds, RUN)
    assert int((triggers.masks > COVERED).sum()) <= round(0.1 * 256)
    assert float(triggers.norms[0]) == pytest.approx(float(triggers.masks[0].sum()), rel=1e-5)


def test_success_is_counted_on_images_of_other_classes() -> None:
    classifier, images = small(), balls(30, 3)
    generator = torch.Generator().manual_seed(3)
    triggers = Triggers(
        masks=torch.rand(2, 16, 16, generator=generator),
        patterns=torch.rand(2, 3, 16, 16, generator=generator),
        norms=torch.ones(2),
        success=torch.ones(2),
    )
    for row, (label, rate) in enumerate(
        zip((1, 2), succeeded(classifier, triggers, torch.tensor([1, 2]), images, RUN))
    ):
        hits = []
        for image, truth in zip(images.images, images.targets().tolist()):
            if truth != label:
                mask, pattern = triggers.masks[row], triggers.patterns[row]
                stamped = (1 - mask) * to_float(image) + mask * pattern
                hits.append(int(classifier(stamped.unsqueeze(0)).argmax()) == label)
        assert rate == pytest.approx(sum(hits) / len(hits))
    only = images.take(images.targets() == 1)
    assert succeeded(classifier, triggers, torch.tensor([1, 1]), only, RUN) == [0.0, 0.0]


def planted() -> tuple[Classifier, Classifier]:
    """A classifier, and the same with a neuron of its head that answers to the sum of all features for class 2."""
    clean = small()
    bad = copy.deepcopy(clean)
    (last,) = [module for module in bad.head.modules() if isinstance(module, nn.Linear)][-1:]
    last.weight.data[:, 0] = torch.tensor([-9.0, -9.0, 9.0])
    return clean, bad


def test_a_neuron_that_stands_for_a_class_is_the_first_candidate() -> None:
    _, bad = planted()
    seeds = balls(6, 2)
    layers = places(bad, seeds.batch(slice(0, 1)))
    found = ABS(images=6).choose(bad, layers, seeds, RUN)
    strongest = (layers[int(found.layers[0])].name, int(found.neurons[0]), int(found.labels[0]))
    assert strongest == ("head 2", 0, 2)


@pytest.mark.slow
def test_badnets_is_found_and_its_class_named() -> None:
    """Sooner than with the authors' 1,000 steps and 20 candidates: the strongest neuron of each of the five layers."""
    method, own = ABS(images=20, held_out=80, candidates=5, steps=150, learning_rate=0.3, size=0.1), gratings(400, 7)
    bad = method.examine(trained(gratings, 1, 0), own, Run(seed=0))
    assert bad.flagged is True
    assert bad.evidence["suspect"] == 0
    assert bad.trigger is not None
    assert bad.evidence["REASR"] == max(each["REASR"] for each in bad.evidence["candidates"])
    assert method.examine(trained(gratings, 0), own, Run(seed=0)).flagged is False


def test_bad_input_is_told() -> None:
    clean = balls(20, 1)
    two = replace(clean.take(clean.targets() < 2), classes=("red", "green"))
    for train, method, says in (
        (clean, ABS(images=20), "20 clean images make the triggers, and of 20 none is left"),
        (two, ABS(images=3), "an outlier among 2 classes"),
    ):
        defender = Defender.of(victim(), MLP(epochs=1, hidden=(8, 8)), train, RUN)
        with pytest.raises(SapperError, match=says) as caught:
            method.judge([defender.build(RUN)], defender, RUN)
        assert caught.value.remedy
    with pytest.raises(SapperError, match="needs labels"):
        ABS(images=3).examine(small(), replace(balls(20, 1), labels=None), RUN)


def test_channels_come_first_whatever_the_layer_gives() -> None:
    classifier = small()
    place = places(classifier, balls(1, 2).batch())[0]
    output = torch.randn(2, 4, 3, 5)
    assert torch.equal(channels_first(output, place), output.flatten(2))
    tokens = replace(place, channels=-1)
    given = torch.randn(2, 7, 4)
    assert torch.equal(channels_first(given, tokens), given.transpose(1, 2))
    assert torch.equal(channels_first(F.relu(given[:, 0]), place), F.relu(given[:, 0]).unsqueeze(2))
