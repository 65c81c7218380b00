"""What every method of every kind keeps to. A new method adds one row to ``ROWS``: parameters that take a moment."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sapper import attacks, defenses, pretraining, verdicts
from sapper.attacks import adaptive
from sapper.attacks.contracts import Attacked
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.target import Target
from sapper.defenses.contracts import Owner, RepairedClassifier, Smoother
from sapper.defenses.defender import Defender
from sapper.downstream import MLP, Finetune, build, files
from sapper.downstream.heads import TunedHead
from sapper.encoders import Encoder, Trained
from sapper.encoders import build as build_encoder
from sapper.methods import HEADS, find
from sapper.running import Run
from sapper.samples import ImageSet, PairSet, Samples
from sapper.training import Checkpoint
from sapper.triggers import Frequency, Patch
from sapper.verdicts import Certified, Scores, Verdict
from tests import micro

TABLES = {
    "pretraining": pretraining.METHODS,
    "attacks": attacks.METHODS,
    "defenses": defenses.METHODS,
    "heads": HEADS,
    "adaptive": adaptive.METHODS,
}
SHORT = {"epochs": 2, "batch": 16}
ROWS: dict[str, dict[str, Any]] = {
    # pre-trainings
    "simclr": SHORT,
    "moco": SHORT | {"queue": 32},
    "byol": SHORT,
    "simsiam": SHORT,
    "clip": SHORT | {"embedding": 8, "text_width": 8},
    "supervised": SHORT,
    # implants
    "badencoder": SHORT | {"reference_views": 2},
    "lba": SHORT | {"teacher_epochs": 2, "trigger_epochs": 2, "trigger_images": 16},
    "drupe": SHORT | {"reference_views": 2, "projections": 4},
    "inactive": SHORT | {"reference_views": 2},
    "transtroj": SHORT | {"trigger_epochs": 2},
    # poisons
    "badnets": {},
    "blend": {},
    "ssl_backdoor": {},
    "ctrl": {},
    "corruptencoder": {},
    "carlini_terzis": {"rate": 0.1},
    # attacks on the training of classifiers
    "blind": {"threshold": 10.0, "window": 1},
    "trojannn": {"epochs": 2, "batch": 8, "per_class": 2, "input_steps": 2, "trigger_steps": 2, "mixtures": 16},
    # single inputs
    "feature_collision": {"inputs": 2, "per_class": 5, "steps": 3},
    "model_reuse": {"inputs": 2, "neighbors": 2, "references": 8, "steps": 2},
    # defenses
    "abs": {"images": 6, "held_out": 12, "candidates": 3, "steps": 3},
    "beatrix": {"per_class": 5, "orders": (1, 2)},
    "scan": {"per_class": 5, "starts": 2},
    "decree": {"epochs": 2, "images": 32, "batch": 16},
    "multi_prior": {"restarts": 2, "rounds": ((0, 2, 2), (1, 4, 2)), "images": 16, "held_out": 16},
    "twins": {
        **{"twins": 1, "steps": 2, "restarts": 2, "rounds": ((0, 2, 2), (1, 4, 2))},
        **{"images": 16, "held_out": 16, "worst_fit": 2.0},
    },
    "ssl_cleanse": {"images": 32, "steps": 2, "minibatches": 1, "most_clusters": 4},
    "classwise": {"rounds": ((2, 2, 1), (1, 2, 1)), "images": 8, "held_out": 8},
    "neural_cleanse": {"steps": 2, "minibatches": 1},
    "mntd_classifier": {"shadows": 2, "validation": 0, "share": 0.5, "shadow_epochs": 2}
    | {"meta_classifiers": 2, "epochs": 2, "queries": 2},
    "mntd_encoder": {"shadows": 1, "validation": 1, "meta_classifiers": 2, "epochs": 2, "queries": 2},
    "derandomized_smoothing": {"patch": 2, "side": 2, "training": "head", "views": 1},
    "ibp": {"patch": 2, "width": 1, "places": 2, "epochs": 1, "batch": 16},
    "patchcleanser": {"patch": 3, "masks": 2, "training": "encoder", "views": 1, "epochs": 1},
    "patchguard_bn": {"patch": 2, "width": 4, "epochs": 1},
    "patchguard_ds": {"patch": 2, "band": 2},
    "rab": {"models": 8, "alpha": 0.3},
    "randomized_smoothing": {"draws": 5, "training": "head", "views": 1},
    "anp": {"steps": 6, "batch": 16},
    "bcu": {"steps": 6, "batch": 16},
    "distillation": {
        "steps": 6,
        "batch": 16,
        "attention": 1.0,
        "information": 1.0,
        "contrast": 0.1,
        "information_steps": 3,
    },
    "fine_pruning": {"steps": 6, "batch": 16},
    "fine_tuning": {"steps": 6, "batch": 16},
    "ibau": {"rounds": 2, "batch": 16},
    "unlearning": {"steps": 6, "batch": 16},
    "fine_pruning_classifier": {"steps": 6, "batch": 16},
    "nad": {"steps": 6, "batch": 16, "teacher_steps": 3},
    "unlearning_classifier": {"steps": 6, "batch": 16},
    "strip": {"overlays": 4},
    "strip_encoder": {"overlays": 4},
    "masking_test": {"places": 2},
    "dede": {"steps": 2, "batch": 16, "width": 32, "depth": 1},
    "activation_clustering": {"size": 0.5},
    "density_outliers": {"neighbors": 4},
    "patch_search": {"clusters": 3, "pasted": 4},
    "spectral_signatures": {},
    # heads
    "mlp": {"epochs": 2, "hidden": (8, 8)},
    "linear": {"iterations": 5},
    "knn": {"neighbors": 5},
    "zero_shot": {"templates": ("a {} square",)},
    "finetune": {"epochs": 2},
}
AGAINST: dict[str, dict[str, Any]] = {
    "decree": {"images": 4, "steps": 1},
    "mntd_encoder": {"queries": 2},
    "multi_prior": {"patches": ((0.4, 0.0, 0.3),), "restarts": 2, "images": 4, "starts": 1, "steps": 1},
    "patchcleanser": {"patch": 6, "masks": 2, "images": 4},
}
"""Terms against defenses, whose names they have."""

TRIGGERS = {"ctrl": Frequency(window=16, coefficients=((3, 3),))}
"""Of attacks that do not take a patch."""

METHODS = [(kind, name) for kind, table in TABLES.items() for name in table]
PAGES = Path(__file__).resolve().parents[1] / "docs"


def squares(count: int, seed: int) -> ImageSet:
    pixels, labels = micro.squares(count, seed)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images=images, name="squares", labels=torch.from_numpy(labels), classes=tuple(micro.COLORS))


TRAIN, TEST = squares(48, 1), squares(24, 2)
HEAD = MLP(epochs=2, hidden=(8, 8))


def captioned() -> PairSet:
    words = [f"a {TRAIN.classes[label]} square" for label in TRAIN.targets().tolist()]
    return PairSet.of(TRAIN, words)


def encoder(seed: int = 0) -> Encoder:
    return build_encoder(Run(seed=seed), architecture="resnet10", width=4, input_size=micro.SIZE)


def with_text() -> Encoder:
    method = find("pretraining", pretraining.METHODS, "clip", "here")(**ROWS["clip"])
    trained: Encoder = method(encoder(), captioned(), Run(seed=5)).encoder
    return trained


def target(attack: str) -> Target:
    red = (TRAIN.targets() == 0).nonzero().squeeze(1)[:3]
    return Target(
        name="red",
        task="squares",
        label=0,
        class_name="red",
        references=TRAIN.take(red),
        trigger=TRIGGERS.get(attack, Patch(size=4)),
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def plain(value: Any) -> Any:
    """What comes back, as tensors and plain data without the time that it took."""
    match value:
        case Trained():
            triggers = {name: plain(trigger) for name, trigger in value.triggers.items()}
            return {"weights": state(value.encoder), "curves": value.curves, "triggers": triggers}
        case nn.Module():
            return state(value)
        case Verdict():
            told, tensors = verdicts.to_tensors(value)
            return {**{name: each for name, each in told.items() if name != "seconds"}, "tensors": tensors}
        case Samples():
            return value.digest
        case list() | tuple():
            return [plain(each) for each in value]
        case dict():
            return {name: plain(each) for name, each in value.items()}
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other))
    return bool(one == other)


Call = Callable[[Run, Checkpoint | None], Any]


def case(kind: str, name: str, encoder: Callable[[], Encoder] = encoder, head: TunedHead | MLP = HEAD) -> Call:
    """A method's work on tiny data, yet to be done."""
    method = find(kind, TABLES[kind], name, "here")(**(AGAINST if kind == "adaptive" else ROWS)[name])
    if kind == "adaptive":
        kind, method = "attacks", BadEncoder(**ROWS["badencoder"], against=(method,))
    if kind == "pretraining":
        samples = captioned() if "captions" in method.needs else TRAIN
        return lambda run, checkpoint: method(encoder(), samples, run, checkpoint)
    if kind == "heads":
        if method.kind == "tuned":
            return lambda run, kept: method.tune(encoder(), TRAIN, run, kept)
        subject = with_text() if method.kind == "zero_shot" else encoder()
        return lambda run, _: build(method, subject, TRAIN, run).head
    if kind == "attacks":
        match method.kind:
            case "implant":
                return lambda run, kept: method(encoder(), TRAIN, (target(name),), run, kept)
            case "poison":
                samples = captioned() if "captions" in method.needs else TRAIN
                return lambda run, _: method(samples, (target(name),), run)
            case "training":
                return lambda run, kept: method(encoder(), TRAIN, (target(name),), head, run, kept)
            case "targeted":
                return lambda run, _: method(encoder(), TRAIN, TEST, head, run)
    defender = Defender.of(encoder(), HEAD, TRAIN, Run(seed=3), stream=TEST)
    match method.kind:
        case "judge":
            return lambda run, _: method.judge([defender.build(Run(seed=4))], defender, run)
        case "examine":
            return lambda run, _: [method.examine(encoder(), TRAIN, run)]
        case "learn":
            fleet = [(encoder(2 * i), encoder(2 * i + 1)) for i in range(method.pairs)]
            return lambda run, _: method.fit(fleet, TRAIN, run).judge([encoder(9)], run)
        case "certify":

            def certified(run: Run, _: Checkpoint | None) -> list[Certified]:
                guarded = method.prepare(defender.build(Run(seed=4)), defender, run)
                sizes = method.radii if isinstance(method, Smoother) else [method.patch]
                answers: list[Certified] = guarded.certify(TEST.images, TEST.targets(), sizes, run)
                return answers

            return certified
        case "screen":
            model = defender.build(Run(seed=4)) if method.looks_at == "classifier" else defender.encoder
            clean = replace(TRAIN, labels=None, classes=())

            def screened(run: Run, _: Checkpoint | None) -> list[Scores]:
                screener = method.prepare(model, clean, run)
                values = screener.scores(TEST.images)
                flagged = values > screener.threshold
                return [Scores(values=values, threshold=screener.threshold, flagged=flagged)]

            return screened
        case "repair":
            owner = Owner(clean=replace(TRAIN, labels=None, classes=()), triggers=(Patch(size=4),))
            return lambda run, kept: method(encoder(), owner, run, kept)
        case "repair_classifier":
            held, labeled = defender.build(Run(seed=4)), Owner(clean=TRAIN, triggers=(Patch(size=4),))
            return lambda run, kept: method(held, labeled, run, kept)
        case "sift":
            return lambda run, _: [method(TRAIN, encoder(), run)]
    raise AssertionError(f"this test does not know the kind {method.kind!r}")


def randomness() -> tuple[bytes, Any, Any]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_method_repeats_itself_and_leaves_global_randomness_alone(kind: str, name: str) -> None:
    call = case(kind, name)
    before = randomness()
    one = plain(call(Run(seed=7), None))
    assert randomness() == before
    assert equal(one, plain(case(kind, name)(Run(seed=7), None)))


def on_encoders() -> Iterator[tuple[str, TunedHead | MLP]]:
    """The attacks that are given a finished encoder, those on the training of classifiers with heads of either kind."""
    for name in attacks.METHODS:
        kind = find("attacks", attacks.METHODS, name, "here").kind
        if kind != "poison":
            yield name, HEAD
        if kind == "training":
            yield name, Finetune(epochs=1)


@pytest.mark.parametrize(("name", "head"), list(on_encoders()))
def test_an_attack_works_beside_a_text_tower_and_leaves_it_alone(name: str, head: TunedHead | MLP) -> None:
    before = with_text()
    made = case("attacks", name, with_text, head)(Run(seed=7), None)
    if isinstance(made, Trained | Attacked):
        after = made.encoder if isinstance(made, Trained) else made.classifier.encoder
        assert before.text is not None
        assert after.text is not None
        assert equal(state(before.text), state(after.text))


def interrupting(save: Callable[..., None]) -> Callable[..., None]:
    """``Checkpoint.save`` that is the last thing to happen."""

    def call(*values: Any) -> None:
        save(*values)
        raise KeyboardInterrupt

    return call


def trainings() -> Iterator[tuple[str, str]]:
    """The methods that can go on from a checkpoint."""
    for kind, name in METHODS:
        method = find(kind, TABLES[kind], name, "here")
        repeats = ("implant", "training", "tuned", "repair", "repair_classifier")
        if kind in ("pretraining", "adaptive") or method.kind in repeats:
            yield kind, name


@pytest.mark.parametrize(("kind", "name"), list(trainings()))
def test_an_interrupted_training_ends_as_a_whole_one(kind: str, name: str, tmp_path: Path) -> None:
    """Interrupted after every epoch of every one of its parts, each time going on from there."""
    whole, interrupts = plain(case(kind, name)(Run(seed=7), None)), 0
    checkpoint, made = Checkpoint(tmp_path / "checkpoint.safetensors"), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupting(Checkpoint.save))
        while made is None:
            try:
                made = case(kind, name)(Run(seed=7), checkpoint)
            except KeyboardInterrupt:
                interrupts += 1
                assert any(tmp_path.iterdir())
                assert interrupts <= 20, "it begins again and again"
    assert interrupts >= 2
    assert equal(whole, plain(made))


@pytest.mark.parametrize(("kind", "name"), [each for each in METHODS if each[0] == "defenses"])
def test_a_verdict_survives_json_and_tensors(kind: str, name: str) -> None:
    answers = case(kind, name)(Run(seed=7), None)
    for answer in [] if isinstance(answers, Trained | RepairedClassifier) else answers:
        if isinstance(answer, Verdict):
            told, tensors = verdicts.to_tensors(answer)
            again = verdicts.from_tensors(json.loads(json.dumps(told, allow_nan=False)), tensors, "here")
            assert equal(plain(answer), plain(again))
        elif isinstance(answer, Scores):
            assert answer.values.dtype == torch.float32
            assert answer.values.shape == answer.flagged.shape
            assert len(answer.values) in (len(TRAIN), len(TEST))
            assert bool(answer.values.isfinite().all())
        else:
            assert isinstance(answer, Certified)
            assert not bool(answer.certified[answer.labels != TEST.targets()].any())


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_method_is_in_the_docs_with_its_source(kind: str, name: str) -> None:
    method = find(kind, TABLES[kind], name, "here")
    rows = [line for line in (PAGES / "methods.md").read_text(encoding="utf-8").splitlines() if f"| `{name}` |" in line]
    assert any(method.source in row for row in rows)


def test_there_is_a_row_for_every_method_and_no_other() -> None:
    assert set(ROWS) == {name for kind, name in METHODS if kind != "adaptive"}
    assert set(AGAINST) == set(adaptive.METHODS)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_built_into_a_classifier_that_a_file_holds(name: str, tmp_path: Path) -> None:
    method = find("heads", HEADS, name, "here")(**ROWS[name])
    subject = with_text() if method.kind == "zero_shot" else encoder()
    before = state(subject)
    classifier = build(method, subject, TRAIN, Run(seed=7))
    assert equal(before, state(subject))
    assert not any(module.training for module in classifier.modules())
    files.save(classifier, files.About(classes=TRAIN.classes), tmp_path / "it.safetensors")
    again, _ = files.load(tmp_path / "it.safetensors", Run())
    with torch.no_grad():
        logits = classifier(TEST.batch())
        assert torch.equal(again(TEST.batch()), logits)
    assert logits.shape == (len(TEST), len(TRAIN.classes))
    assert bool(logits.isfinite().all())
    assert len(logits.unique(dim=0)) > 1
