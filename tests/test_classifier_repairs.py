"""Repairs of classifiers: their parts against plain forms, that they take a planted backdoor out, and in scenarios."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapper.attacks.poison.badnets import BadNets
from sapper.defenses.channels import dormant_first, prune
from sapper.defenses.contracts import Owner
from sapper.defenses.repair.fine_pruning_classifier import FinePruningClassifier, check_cut, last_layers
from sapper.defenses.repair.nad import NAD, attention_loss
from sapper.defenses.repair.unlearning_classifier import UnlearningClassifier, stamp
from sapper.defenses.repairing_classifiers import accuracy, begin
from sapper.defenses.stages import stages, watched
from sapper.downstream import KNN, Classifier, Finetune, Linear, build
from sapper.downstream import files as classifiers
from sapper.encoders import build as build_encoder
from sapper.engine.store import Store
from sapper.errors import SapperError
from sapper.experiment.results import Results
from sapper.files import sha256
from sapper.report import markdown, render, repairs
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import Patch
from tests.implants import images
from tests.micro import PLAIN, experiment, numbers, perform, write_data
from tests.victims import PATCH, aim, balls, plain, rates, victim

RUN = Run(seed=3)
SHORT: dict[str, Any] = {"steps": 4, "batch": 8}
CASES: dict[str, Callable[[], Any]] = {
    "nad": lambda: NAD(**SHORT),
    "fine_pruning_classifier": lambda: FinePruningClassifier(**SHORT),
    "unlearning_classifier": lambda: UnlearningClassifier(**SHORT),
}


# Parts


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_the_attention_loss_is_the_papers(seed: int) -> None:
    """Σ_l β_l · mean over images and places of ( A(s) − A(t) )², A = Σ_c z_c² over its length; in plain loops."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, 4, 4), (2, 5, 2, 2), (2, 6, 2, 1)]
    ours, theirs = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))

    def attention(image: Tensor) -> list[float]:
        channels, height, width = image.shape
        sums = [sum(float(image[c, y, x]) ** 2 for c in range(channels)) for y in range(height) for x in range(width)]
        return [value / math.hypot(*sums) for value in sums]

    def apart(one: Tensor, other: Tensor) -> float:
        squares = [(a - b) ** 2 for image, like in zip(one, other) for a, b in zip(attention(image), attention(like))]
        return sum(squares) / len(squares)

    beta = (500.0, 1000.0)
    expected = 500 * apart(ours[1], theirs[1]) + 1000 * apart(ours[2], theirs[2])
    assert float(attention_loss(ours, theirs, beta)) == pytest.approx(expected, rel=1e-4), "β are of the last stages"
    assert float(attention_loss(ours, ours, (1.0, 2.0, 3.0))) == 0
    assert float(attention_loss(ours[2:], theirs[2:], beta)) == pytest.approx(
        1000 * apart(ours[2], theirs[2]), rel=1e-4
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_dormant_channels_go_first(channels: int, at_once: float, seed: int) -> None:
    means = torch.rand(channels, generator=torch.Generator().manual_seed(seed))
    order = sorted(range(channels), key=lambda channel: float(means[channel]))
    step, at = max(1, round(at_once * channels)), 0
    for gone in dormant_first({"it": means}, at_once):
        at = min(at + step, channels)
        assert sorted(order[:at]) == gone["it"].nonzero().flatten().tolist()
    assert at == channels


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.floats(0.05, 1.0), st.integers(1, 3))
def test_a_share_of_a_batch_is_stamped_and_triggers_take_turns(count: int, share: float, several: int) -> None:
    shown = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
    triggers = [Patch(size=size) for size in (3, 5, 7)[:several]]
    made, last = stamp(shown, triggers, share), max(1, round(share * count))
    for row in range(count):
        expected = triggers[row % several](shown[row : row + 1])[0] if row < last else shown[row]
        assert torch.equal(made[row], expected)


@pytest.mark.parametrize("architecture", ["resnet10", "resnet18", "resnet50", "preact_resnet18", "preact_resnet50"])
def test_a_channel_of_the_last_stage_is_cut_out_of_all_that_adds_to_it(architecture: str) -> None:
    encoder = build_encoder(RUN, architecture=architecture, width=4, input_size=16).eval()
    check_cut(encoder)
    layers = last_layers(encoder)
    with torch.no_grad():
        for layer in layers.values():
            if layer.bias is not None:
                layer.bias.fill_(0.5)
    channels = next(iter(layers.values())).weight.shape[0]
    gone = torch.zeros(channels, dtype=torch.bool)
    gone[::3] = True
    prune(layers, dict.fromkeys(layers, gone), bias=True)
    with torch.no_grad(), watched(stages(encoder)[-1:]) as seen:
        encoder(images(4, 1).batch())
    assert not bool(seen[0][:, gone].any())
    alive = seen[0][:, ~gone].flatten(2).any(2).any(0)
    assert float(alive.double().mean()) > 0.8, "a ReLU may sleep anyway"


def test_networks_whose_channels_cannot_be_cut_are_refused() -> None:
    transformer = build_encoder(RUN, architecture="timm:vit_tiny_patch16_224", stem="imagenet", input_size=32)
    with pytest.raises(SapperError, match="cannot in timm:vit"):
        FinePruningClassifier().check(transformer, 100)
    NAD().check(transformer, 100)
    UnlearningClassifier().check(transformer, 100)


def classifier(head: Any = Linear(iterations=20)) -> Classifier:
    return build(head, victim(), balls(48, 1), RUN)


@pytest.mark.parametrize("drop", [0.01, 0.4])
def test_the_pruned_classifier_is_the_last_one_that_meets_the_limit(drop: float) -> None:
    """Against a plain loop; the input stays as it is."""
    held, some = build(Finetune(epochs=4, batch=16, learning_rate=0.01), victim(), balls(60, 1), RUN), balls(45, 2)
    before = copy.deepcopy(held.state_dict())
    lesson = begin(held, Owner(clean=some), RUN, "this")
    gone = FinePruningClassifier(drop=drop, at_once=0.05).choose(lesson, RUN)

    def right(model: Classifier) -> float:
        with torch.no_grad():
            return float((model(some.batch()).argmax(1) == some.targets()).double().mean())

    with torch.no_grad(), watched(stages(held.encoder)[-1:]) as seen:
        held(some.batch())
    means = seen[0].relu().mean((0, 2, 3))
    order, limit, cut = means.argsort(stable=True).tolist(), (1 - drop) * right(held), list[int]()
    for start in range(0, len(order), round(0.05 * len(order))):
        tried = copy.deepcopy(held)
        more = cut + order[start : start + round(0.05 * len(order))]
        for layer in last_layers(tried.encoder).values():
            with torch.no_grad():
                for channel in more:
                    layer.weight[channel] = 0
                    if layer.bias is not None:
                        layer.bias[channel] = 0
        if right(tried) < limit:
            break
        cut = more
    assert sorted(cut) == gone.nonzero().flatten().tolist()
    assert len(cut) < len(order)
    assert len(cut) > 0 or drop < 0.1
    assert accuracy(lesson.student, some, some.targets(), RUN) == right(lesson.student) >= limit
    assert all(torch.equal(value, before[name]) for name, value in held.state_dict().items())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("head", [Linear(iterations=20), KNN(neighbors=5)], ids=["linear", "knn"])
def test_the_copy_is_trained_though_the_head_was_fitted_to_a_frozen_encoder(name: str, head: Any) -> None:
    held = classifier(head).requires_grad_(False)
    before = copy.deepcopy(held.state_dict())
    made = CASES[name]()(held, Owner(clean=balls(24, 2), triggers=(PATCH,)), RUN).classifier
    assert all(torch.equal(value, before[key]) for key, value in held.state_dict().items())
    assert not any(weight.requires_grad for weight in held.parameters())
    assert not torch.equal(made.encoder.backbone.conv1.weight, held.encoder.backbone.conv1.weight)  # type: ignore[union-attr, arg-type]
    assert not any(module.training or module._forward_hooks for module in (*made.modules(), *held.modules()))


def test_a_classifier_that_always_says_the_same_keeps_a_channel() -> None:
    held = classifier()
    with torch.no_grad():
        for weight in held.head.parameters():
            weight.zero_()
    gone = FinePruningClassifier().choose(begin(held, Owner(clean=balls(24, 2)), RUN, "this"), RUN)
    assert int((~gone).sum()) > 0


def test_pruned_channels_stay_zero_while_the_rest_is_tuned() -> None:
    made = FinePruningClassifier(steps=6, batch=8)(classifier(), Owner(clean=balls(24, 2)), RUN)
    with torch.no_grad(), watched(stages(made.classifier.encoder)[-1:]) as seen:
        made.classifier(balls(9, 3).batch())
    silent = ~seen[0].flatten(2).any(2).any(0)
    assert int(silent.sum()) >= made.curves["pruned channels"][0] > 0


@pytest.mark.parametrize("name", CASES)
def test_what_it_cannot_work_with_is_told(name: str) -> None:
    method, held = CASES[name](), classifier()
    with pytest.raises(SapperError, match="needs labels"):
        method(held, Owner(clean=plain(balls(8, 1)), triggers=(PATCH,)), RUN)
    with pytest.raises(SapperError, match="at least 2 images"):
        method(held, Owner(clean=balls(1, 1), triggers=(PATCH,)), RUN)
    larger = ImageSet(
        images=torch.zeros(6, 3, 24, 24, dtype=torch.uint8),
        labels=torch.arange(6) % 3,
        classes=("a", "b", "c"),
        name="x",
    )
    two = replace(balls(8, 1), labels=torch.arange(8) % 2, classes=("a", "b"))
    with pytest.raises(SapperError, match="24×24"):
        method(held, Owner(clean=larger, triggers=(PATCH,)), RUN)
    with pytest.raises(SapperError, match="knows 3 classes, balls has 2"):
        method(held, Owner(clean=two, triggers=(PATCH,)), RUN)
    if name == "unlearning_classifier":
        with pytest.raises(SapperError, match="no trigger was recovered"):
            method(held, Owner(clean=balls(8, 1)), RUN)


# That they work


@pytest.fixture(scope="module")
def attacked() -> tuple[Classifier, ImageSet]:
    """A classifier of squares by color whose training set BadNets poisoned, and test images."""
    poisoned = BadNets(rate=0.1)(balls(120, 20), (aim(PATCH),), Run(seed=2)).samples
    return build(Finetune(epochs=12, batch=20, learning_rate=0.01), victim(2), poisoned, Run(seed=2)), balls(150, 21)


WORKING: dict[str, Any] = {
    "nad": NAD(batch=20, steps=120, learning_rate=0.05),  # 0.1 loses a class on some processors
    "fine_pruning_classifier": FinePruningClassifier(batch=20, steps=60),
    "unlearning_classifier": UnlearningClassifier(batch=20, steps=100),
}


@pytest.mark.parametrize("name", WORKING)
def test_a_backdoor_that_is_there_is_taken_out(attacked: tuple[Classifier, ImageSet], name: str) -> None:
    held, test = attacked
    accuracy_before, success = rates(held, test, PATCH)
    assert accuracy_before > 0.9
    assert success > 0.9
    owner = Owner(clean=balls(60, 22), triggers=(PATCH,) if name == "unlearning_classifier" else ())
    made = WORKING[name](held, owner, Run(seed=2))
    after, left = rates(made.classifier, test, PATCH)
    print(f"\n{name}: accuracy {accuracy_before:.3f} → {after:.3f}, strict ASR {success:.3f} → {left:.3f}")
    assert left <= 0.1
    assert after >= accuracy_before - 0.03
    if name == "nad":
        assert made.curves["attention"][-1] < 0.3 * made.curves["attention"][0], "it looks where its teacher does"


def test_it_is_the_trigger_that_unlearning_needs(attacked: tuple[Classifier, ImageSet]) -> None:
    """The same training with a trigger that is not the attacker's leaves the backdoor where it is."""
    held, test = attacked
    other = Owner(clean=balls(60, 22), triggers=(Patch(size=2, position="bottom-right", color="black"),))
    after, left = rates(WORKING["unlearning_classifier"](held, other, Run(seed=2)).classifier, test, PATCH)
    print(f"\nwith another trigger: accuracy {after:.3f}, strict ASR {left:.3f}")
    assert left > 0.5


def test_pruning_alone_leaves_the_backdoor_and_fine_tuning_alone_does_not(
    attacked: tuple[Classifier, ImageSet],
) -> None:
    """What the parts of the methods do by themselves, on squares."""
    held, test = attacked
    lesson, tuned = (begin(held, Owner(clean=balls(60, 22)), RUN, "this") for _ in range(2))
    gone = FinePruningClassifier().choose(lesson, RUN)
    NAD(batch=20, steps=60).learn(tuned, None, RUN, "fine-tuning")
    pruned, after = rates(lesson.student, test, PATCH)[1], rates(tuned.student.eval(), test, PATCH)[1]
    print(f"\n{int(gone.sum())} of {len(gone)} channels pruned: strict ASR {pruned:.3f}; fine-tuned: {after:.3f}")
    assert pruned > 0.9
    assert after < 0.1


# In a scenario

ONE_TASK = PLAIN.replace('[[task]]\ndataset = "{data}/boxes"\n\n', "")
TUNED = ONE_TASK.replace(
    'method = "linear"\niterations = 20', 'method = "finetune"\nname = "tuned"\nepochs = 2\nlearning_rate = 0.01'
)
TARGET = '\n[[target]]\ntask = "balls"\nclass = "red"\ntrigger = {{ size = 4 }}\n'
ATTACKS = {
    "badnets": '[attack]\nmethod = "badnets"\nrate = 0.2\n',
    "blind": '[attack]\nmethod = "blind"\nthreshold = 10.0\nwindow = 1\n',
    "badencoder": '[attack]\nmethod = "badencoder"\nepochs = 1\nbatch = 24\n',
    "trojannn": '[attack]\nmethod = "trojannn"\nepochs = 2\nbatch = 8\nper_class = 2\ninput_steps = 2\n'
    "trigger_steps = 2\nmixtures = 16\n",
}
NAD_SECTION = '\n[[defense]]\nmethod = "nad"\nimages = 20\nsteps = 4\nbatch = 8\n'
FORGET = '\n[[defense]]\nmethod = "unlearning_classifier"\nname = "forget"\nshare = 0.5\nsteps = 4\nbatch = 8\n'
FINDS = FORGET + 'detector = {{ method = "neural_cleanse", steps = 40, minibatches = 2, success = 0.05 }}\n'
FINDS_NOTHING = FORGET + 'detector = {{ method = "neural_cleanse", steps = 1, minibatches = 1, success = 1.0 }}\n'
FIRST, UNLEARNING = 'method = "nad"', 'method = "unlearning_classifier"'
SHORTER = ("pretraining.epochs=1", "head.0.epochs=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


SECOND = ("head.0.primary=false", "head.1.primary=true")


def parts(results: Results, name: str) -> tuple[Any, Any, list[Any]]:
    """The repaired subject, that which it was made from, and its records."""
    models = {model.id: model for model in results.subjects}
    (model,) = [each for each in models.values() if each.repair == name]
    return model, models[str(model.parent)], [record for record in results.records if record.defense == name]


@pytest.fixture(scope="module")
def poisoned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("run")
    extra = ATTACKS["badnets"] + TARGET + NAD_SECTION + FINDS
    return perform(experiment(data, *SHORTER, *SECOND, text=ONE_TASK + extra), folder), folder


def test_a_repaired_classifier_is_a_subject_that_is_measured_again(poisoned: tuple[Results, Path], data: Path) -> None:
    results, folder = poisoned
    text, store = ONE_TASK + ATTACKS["badnets"] + TARGET, Store(folder / "store")
    unrepaired = perform(experiment(data, *SHORTER, *SECOND, text=text), folder / "plain", store=store)
    for name, count in (("nad", 20), ("forget", 30)):
        model, parent, ours = parts(results, name)
        assert (model.state, model.of, model.id) == ("repaired", "classifier", f"repaired-balls-{name}-seed0")
        assert (parent.state, parent.of) == ("attacked", "task")
        assert {(record.subject, record.task) for record in ours} == {(model.id, "balls")}
        assert {r.metric for r in ours if r.head == "linear"} == {"BA", "ASR", "ASR_strict", "lift"}
        recovered = {"trigger_recovered"} if name == "forget" else set()
        assert {r.metric for r in ours if r.head is None} == {"cosine_kept", "repair_seconds"} | recovered
        assert {r.baseline for r in ours if r.metric == "lift"} == {"clean-seed0"}
        (artifact,) = [each for each in results.artifacts if each.subject == model.id]
        assert artifact.path == f"classifiers/balls-{name}-seed0-BACKDOORED.safetensors"
        _, about = classifiers.load(folder / artifact.path, RUN)
        assert about.backdoored, "what came of an attack stays marked"
        assert about.origin["images"]["n"] == count
        assert about.origin["images"]["name"] == "balls", "clean ones, not the poisoned set"
        assert len(about.origin["triggers"]) == (name == "forget")
        assert any(curve.stage == f"repair by {name}, balls" for curve in results.curves)
    assert not [flag for flag in results.flags if "no trigger" in flag]
    assert [record for record in numbers(results) if record.defense is None] == numbers(unrepaired)
    assert results.pictures == unrepaired.pictures, "a trigger is shown once, however many subjects obey it"


def test_the_report_has_it_beside_the_attack(poisoned: tuple[Results, Path]) -> None:
    results, _ = poisoned
    table = repairs.table(results)
    assert table is not None
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[:2] for row in rows] == [["balls → red", repair] for repair in ("–", "nad", "forget")]
    found = {(r.defense, r.metric): r.value for r in results.records if r.head == "linear"}
    for row, repair in zip(rows, (None, "nad", "forget")):
        assert row[2:5] == [f"{100 * found[repair, metric]:.1f}" for metric in ("BA", "ASR", "ASR_strict")]
    assert 'id="repairs"' in render(results)
    assert "| balls → red | nad |" in markdown.render(results)


@pytest.mark.parametrize(
    ("attack", "head"),
    [
        ("badnets", "mlp"), ("badnets", "tuned"), ("blind", "mlp"), ("blind", "tuned"),
        ("badencoder", "mlp"), ("badencoder", "tuned"), ("trojannn", "mlp"),
    ],
)  # fmt: skip
def test_what_is_repaired_is_the_classifier_that_was_measured(
    data: Path, tmp_path: Path, attack: str, head: str
) -> None:
    """Without a trigger it stays as it is, so it answers as the attacked one did; and that is told."""
    text = (TUNED if head == "tuned" or attack != "trojannn" else ONE_TASK) + ATTACKS[attack]
    text += TARGET + FINDS_NOTHING
    primary = SECOND if head == "tuned" else ()
    results = perform(experiment(data, *SHORTER, *primary, text=text), tmp_path)
    model, parent, ours = parts(results, "forget")
    for metric in ("BA", "ASR", "ASR_strict", "lift"):
        (after,) = [r for r in ours if r.metric == metric]
        (before,) = [
            r for r in results.records if (r.subject, r.metric, r.head, r.defense) == (parent.id, metric, head, None)
        ]
        assert (after.value, after.head) == (before.value, head)
    assert next(r.value for r in ours if r.metric == "cosine_kept") == pytest.approx(1, abs=1e-6)
    assert [flag for flag in results.flags if "balls (seed 0): no trigger was recovered, so forget changed" in flag]
    (artifact,) = [each for each in results.artifacts if each.subject == model.id]
    assert sha256(tmp_path / artifact.path) == artifact.sha256
    _, about = classifiers.load(tmp_path / artifact.path, RUN)
    assert about.origin["repaired"] == "not at all: neural_cleanse recovered no trigger"


@pytest.mark.parametrize(
    ("more", "message", "where"),
    [
        (f'{FIRST}\ndetector = "neural_cleanse"', "needs no trigger", "defense[0].detector"),
        (f'{UNLEARNING}\ndetector = "decree"', "does not judge classifiers", "defense[0].detector"),
        (f'{UNLEARNING}\ndetector = {{{{ method = "neural_cleanse", stepps = 3 }}}}', "stepps", "defense[0].detector"),
        (f'{UNLEARNING}\ndetector = {{{{ steps = 3 }}}}', "'method' is missing", "defense[0].detector"),
        ('method = "nad"\nshare = 0.0', "greater than 0", "defense[0].share"),
        ('method = "nad"\nshare = 0.5\nimages = 9', "share and images both say how many", "defense[0].share"),
        ('method = "nad"\ntasks = ["cups"]', "no task with a target", "defense[0].tasks"),
    ],
)  # fmt: skip
def test_a_repair_that_cannot_be_is_told_when_the_scenario_is_read(
    data: Path, more: str, message: str, where: str
) -> None:
    text = ONE_TASK + ATTACKS["badnets"] + TARGET + f"\n[[defense]]\n{more}\n"
    with pytest.raises(SapperError, match=message) as caught:
        experiment(data, text=text)
    assert where in str(caught.value.where)


@pytest.mark.parametrize(
    ("more", "message", "where"),
    [
        ('method = "nad"\nimages = 61', "61 images are wanted", "defense[0].images"),
        ('method = "nad"\nshare = 0.01', "at least 2 images", "defense[0].images"),
    ],
)
def test_what_a_repair_cannot_work_with_is_told_before_the_training(
    data: Path, tmp_path: Path, more: str, message: str, where: str
) -> None:
    told: list[str] = []
    text = ONE_TASK + ATTACKS["badnets"] + TARGET + f"\n[[defense]]\n{more}\n"
    with pytest.raises(SapperError, match=message) as caught:
        perform(experiment(data, text=text), tmp_path, tell=told.append)
    assert where in str(caught.value.where)
    assert told == []


def test_single_inputs_leave_no_classifier_to_repair(data: Path) -> None:
    text = ONE_TASK + '[attack]\nmethod = "feature_collision"\n' + NAD_SECTION
    with pytest.raises(SapperError, match="no classifier is kept"):
        experiment(data, text=text)
