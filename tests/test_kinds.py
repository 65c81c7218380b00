"""Attacks of every kind in a scenario: each finds its place in the pipeline, and is told where it has none."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import sapper
from sapper import encoders
from sapper.attacks.contracts import Attacked, Hits, Poisoned
from sapper.attacks.target import Target
from sapper.cli.experiments import print_results
from sapper.downstream import Classifier, Head
from sapper.downstream import files as classifiers
from sapper.encoders import Encoder, Trained
from sapper.errors import SapperError
from sapper.experiment.results import Record, Results, read_results, write_results
from sapper.methods import Checked
from sapper.report import markdown, means, render, targeted
from sapper.running import Run
from sapper.samples import ImageSet, read_samples, to_float
from sapper.scenario.reading import Scenario
from sapper.training import Checkpoint
from sapper.triggers import Patch, Trigger, read_triggers
from tests.micro import PLAIN, experiment, perform, rates, write_data
from tests.program import Install, Sapper, told

TARGETS = """
[[target]]
task = "balls"
class = "red"
trigger = { size = 4, position = "top-left" }

[[target]]
task = "boxes"
class = "blue"
trigger = { size = 4 }
"""
WHITE = Patch(size=16, margin=0)
METRICS = {"CA", "BA", "ASR", "ASR_strict", "ASR_B", "ASR_B_strict", "lift"}


@dataclass(frozen=True, kw_only=True)
class Tiny(Checked):
    """What all attacks here share."""

    kind: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    source: ClassVar[str] = "tests"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}


@dataclass(frozen=True, kw_only=True)
class StampHalf(Tiny):
    """Stamps every other image of the pre-training set with the first target's trigger."""

    every: int = 2

    kind: ClassVar[str] = "poison"
    of: ClassVar[str] = "pretraining"

    def __call__(self, samples: ImageSet, targets: tuple[Target, ...], run: Run) -> Poisoned:
        rows = torch.arange(0, len(samples), self.every)
        images = samples.images.clone()
        images[rows] = (targets[0].trigger(samples.batch(rows)) * 255).round().to(torch.uint8)
        return Poisoned(samples=replace(samples, images=images), rows=rows)


@dataclass(frozen=True, kw_only=True)
class Relabel(Tiny):
    """Gives every row of a task's training set the target's label."""

    kind: ClassVar[str] = "poison"
    of: ClassVar[str] = "task"

    def __call__(self, samples: ImageSet, targets: tuple[Target, ...], run: Run) -> Poisoned:
        labels = torch.full_like(samples.targets(), targets[0].label)
        labels[0] = (targets[0].label + 1) % len(samples.classes)  # a set of one class is no task
        return Poisoned(samples=replace(samples, labels=labels), rows=torch.arange(len(samples)))


@dataclass(frozen=True, kw_only=True)
class Blinding(Tiny):
    """An implant that leaves the encoder as it is, and makes a trigger of its own: all white."""

    kind: ClassVar[str] = "implant"
    makes_triggers: ClassVar[bool] = True

    def __call__(
        self,
        encoder: Encoder,
        shadow: ImageSet,
        targets: tuple[Target, ...],
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        return Trained(encoder.eval(), {"loss": [0.0]}, {target.name: WHITE for target in targets})


@dataclass(frozen=True, kw_only=True)
class Silent(Tiny):
    """The same without a word about its triggers."""

    kind: ClassVar[str] = "implant"
    __call__ = Blinding.__call__


def always(label: int, classes: int, features: int) -> nn.Linear:
    """A head that always answers the same."""
    head = nn.Linear(features, classes)
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.eye(classes)[label])
    return head


@dataclass(frozen=True, kw_only=True)
class Stubborn(Tiny):
    """A training whose classifier always answers the target's class."""

    kind: ClassVar[str] = "training"
    own: ClassVar[Trigger | None] = None

    def __call__(
        self,
        encoder: Encoder,
        train: ImageSet,
        targets: tuple[Target, ...],
        head: Head,
        run: Run,
        checkpoint: Checkpoint | None = None,
    ) -> Attacked:
        classifier = Classifier(encoder, always(targets[0].label, len(train.classes), encoder.feature_size)).eval()
        made = {target.name: self.own for target in targets if self.own}
        return Attacked(classifier=classifier, curves={"loss": [1.0, 0.5]}, triggers=made)


@dataclass(frozen=True, kw_only=True)
class Retrained(Stubborn):
    """The same with triggers of its own: all white."""

    makes_triggers: ClassVar[bool] = True
    own: ClassVar[Trigger | None] = WHITE


@dataclass(frozen=True, kw_only=True)
class Single(Tiny):
    """A targeted attack with results made up."""

    kind: ClassVar[str] = "targeted"

    def __call__(self, encoder: Encoder, train: ImageSet, test: ImageSet, head: Head, run: Run) -> Hits:
        hit, before = torch.tensor([True, True, True, False]), torch.tensor([True, False, False, False])
        return Hits(hit=hit, before=before, accuracy=torch.full((4,), 0.5), accuracy_before=torch.full((4,), 0.75))


NAMES = ("StampHalf", "Relabel", "Blinding", "Silent", "Stubborn", "Retrained", "Single")


@pytest.fixture(autouse=True)
def _plugged_in(install: Install) -> None:
    install("kinds", points={"sapper.attacks": {name.lower(): f"tests.test_kinds:{name}" for name in NAMES}})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str | None, str | None], float]:
    """CA of each task and head, which no attack on the same targets changes."""
    short = ("pretraining.epochs=1", "attack.epochs=1")
    results = perform(experiment(data, *short), tmp_path_factory.mktemp("plain"))
    return {(r.task, r.head): r.value for r in results.records if r.metric == "CA"}


def scenario(data: Path, method: str, more: str = "", targets: str = TARGETS) -> Scenario:
    text = f'\n[attack]\nmethod = "{method}"\n{more}\n{targets}'
    return experiment(data, "pretraining.epochs=1", text=PLAIN, extra=text)


def of(results: Results, metric: str, **where: Any) -> list[float]:
    return [
        r.value for r in results.records if r.metric == metric and all(getattr(r, k) == v for k, v in where.items())
    ]


def check_pair(results: Results, plain: dict[Any, float]) -> None:
    """Every metric once for each task and head, each beside the same clean subject, whose accuracy is the usual one."""
    ids = {model.id: model for model in results.subjects}
    (clean,) = [model.id for model in results.subjects if model.state == "clean"]
    assert {(r.task, r.head, r.metric) for r in rates(results)} == {
        (task, head, metric) for task in ("balls", "boxes") for head in ("mlp", "linear") for metric in METRICS
    }
    for record in rates(results):
        on_clean = record.metric in ("CA", "ASR_B", "ASR_B_strict")
        assert record.subject is not None
        assert ids[record.subject].state == ("clean" if on_clean else "attacked")
        assert record.baseline == (None if on_clean else clean)
        if record.metric == "CA":
            assert record.value == plain[record.task, record.head]
    assert {model.parent for model in results.subjects if model.state == "attacked"} == {clean}


def test_a_pre_training_set_is_poisoned_and_both_encoders_are_measured(
    data: Path, plain: dict[Any, float], tmp_path: Path
) -> None:
    results = perform(scenario(data, "stamphalf", 'encoders = "one-for-all"'), tmp_path)
    check_pair(results, plain)
    clean, attacked = (encoders.load(tmp_path / each.path, Run()).card for each in results.artifacts)
    assert (clean.backdoored, attacked.backdoored) == (False, True)
    assert clean.origin["images"]["sha256"] != attacked.origin["images"]["sha256"]
    assert "poison" not in clean.origin
    said = attacked.origin["poison"]
    assert (said["method"], said["parameters"]) == ("stamphalf", {"every": 2})
    assert {each["name"]: each["trigger"]["position"] for each in said["targets"]} == {
        "balls/red": "top-left",
        "boxes/blue": "bottom-right",
    }
    (poison,) = (tmp_path / "store").glob("poison-*")
    samples, more = read_samples(poison / "data-POISONED.safetensors")
    with pytest.raises(SapperError, match="this data set was backdoored on purpose"):
        sapper.load_poisoned(poison / "data-POISONED.safetensors")
    opened = sapper.load_poisoned(poison / "data-POISONED.safetensors", allow_backdoored=True)
    assert opened.samples.digest == samples.digest
    assert torch.equal(opened.rows, more["rows"])
    with pytest.raises(SapperError, match="no poisoned data set can be read"):
        sapper.load_poisoned(poison / "poison.json")
    assert samples.digest == attacked.origin["images"]["sha256"]
    assert more["rows"].tolist() == list(range(0, 64, 2))
    assert set(read_triggers(poison / "triggers.safetensors")) == {"balls/red", "boxes/blue"}


def test_a_tasks_training_set_is_poisoned_and_the_encoder_stays(
    data: Path, plain: dict[Any, float], tmp_path: Path
) -> None:
    results = perform(scenario(data, "relabel"), tmp_path)
    check_pair(results, plain)
    assert of(results, "BA", head="linear") == pytest.approx([1 / 3, 1 / 3])
    assert of(results, "ASR", head="linear") == [1, 1]
    assert [artifact.state for artifact in results.artifacts] == ["clean"]
    assert {model.of for model in results.subjects if model.state == "attacked"} == {"task"}


def test_triggers_that_an_attack_makes_are_shown_to_the_baseline_too(
    data: Path, plain: dict[Any, float], tmp_path: Path
) -> None:
    results = perform(scenario(data, "blinding"), tmp_path)
    check_pair(results, plain)
    assert {*of(results, "ASR_B")} <= {0, 1}, "all images are white"
    assert of(results, "ASR_B") == of(results, "ASR"), "the encoder is the same"
    assert of(results, "CA") == of(results, "BA")
    attacked = [tmp_path / each.path for each in results.artifacts if each.state == "attacked"]
    assert len(attacked) == 2
    for file in attacked:
        assert planted(encoders.load(file, Run()).card.origin) == [WHITE.describe()]


def planted(origin: dict[str, Any]) -> list[dict[str, Any]]:
    """The triggers of the targets that a card names."""
    return [target["trigger"] for target in origin["targets"]]


def test_a_classifiers_card_names_the_trigger_that_the_attack_made(data: Path, tmp_path: Path) -> None:
    perform(scenario(data, "retrained"), tmp_path)
    kept = list((tmp_path / "store").glob("*/classifier-*.safetensors"))
    assert len(kept) == 4
    for file in kept:
        assert planted(classifiers.load(file, Run())[1].origin) == [WHITE.describe()]


def test_an_attack_that_says_nothing_of_its_triggers_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="made triggers without saying so"):
        perform(scenario(data, "silent"), tmp_path)


def test_the_training_of_classifiers_is_attacked_head_by_head(
    data: Path, plain: dict[Any, float], tmp_path: Path
) -> None:
    results = perform(scenario(data, "stubborn"), tmp_path)
    check_pair(results, plain)
    assert {*of(results, "ASR")} == {1}
    assert of(results, "BA") == pytest.approx([1 / 3] * 4)
    attacked = [model for model in results.subjects if model.state == "attacked"]
    assert [(model.of, model.tasks) for model in attacked] == [
        *([("classifier", ("balls",))] * 2),
        *([("classifier", ("boxes",))] * 2),
    ]
    assert len({model.id for model in results.subjects}) == 5


def test_single_inputs_are_attacked_without_targets(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = perform(scenario(data, "single", targets=""), tmp_path)
    assert len(of(results, "CA")) == 4
    assert of(results, "hits") == [0.75] * 4
    assert of(results, "hits_before") == [0.25] * 4
    assert of(results, "accuracy_change") == [-0.25] * 4
    write_results(results, tmp_path)
    assert read_results(str(tmp_path)).to_json() == results.to_json()
    page = render(results)
    assert page.count("Chosen test images</h2>") == 1
    assert "Other measurements" not in page
    assert page.count("of the chosen test images are taken for") == 4
    table = targeted.table(results)
    assert table is not None
    assert table.columns[-3:] == ("hits, %", "without the attack, %", "change of accuracy, points")
    cells = [[cell.text for cell in row] for row in table.rows]
    assert [row[:3] for row in cells] == [["single", t, h] for t in ("balls", "boxes") for h in ("mlp", "linear")]
    assert {tuple(row[3:]) for row in cells} == {("75.0  (30.1…95.4)", "25.0  (4.6…69.9)", "−25.0")}
    assert "| single | balls | mlp | 75.0  (30.1…95.4) |" in markdown.render(results)
    print_results(results)
    told_lines = " ".join(capsys.readouterr().out.split())
    assert "single on balls, mlp head: 75.0 % (30.1…95.4) of the chosen test images are taken for" in told_lines
    assert "25.0 % without the attack. Accuracy changes by −25.0 points." in told_lines


def test_a_change_of_accuracy_may_be_a_loss_over_all_seeds() -> None:
    """Its interval over seeds is one of a difference, not cut at nothing."""
    common = {"stage": "targeted", "task": "balls", "attack": "single", "head": "mlp"}
    change = [
        Record(seed=seed, metric="accuracy_change", value=value, **common)  # type: ignore[arg-type]
        for seed, value in enumerate((-0.02, -0.04))
    ]
    found = means.estimate(change)
    assert found.value == pytest.approx(-0.03)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.number == "−3.0"


def test_without_targeted_attacks_there_is_no_such_section(data: Path, tmp_path: Path) -> None:
    results = perform(experiment(data, "head.0.epochs=1", text=PLAIN), tmp_path)
    assert targeted.table(results) is None
    assert targeted.sentences(results) == []
    assert "Chosen test images" not in render(results)


UNFIT = {
    "shadow images of no implant": ("stubborn", "shadow_images = 9", TARGETS, "", "attack.shadow_images"),
    "encoders of no attack on encoders": ("relabel", 'encoders = "one-for-all"', TARGETS, "", "attack.encoders"),
    "targets of a targeted attack": ("single", "", TARGETS, "", "attack.method"),
    "no targets": ("stubborn", "", "", "", "[[target]] is missing"),
    "encoders judged that nobody attacked": ("relabel", "", TARGETS, "decree", "defense[0].method"),
    "classifiers that are not kept": ("single", "", "", "neural_cleanse", "defense[0].method"),
    "a fleet of no encoders": ("relabel", "", TARGETS, "mntd_encoder", "defense[0].method"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_a_kind_does_not_go_with_is_told(data: Path, tmp_path: Path, sapper: Sapper, case: str) -> None:
    method, more, targets, defense, says = UNFIT[case]
    file = tmp_path / "unfit.toml"
    table = f'[[defense]]\nmethod = "{defense}"\n' if defense else ""
    attack = f'\n[attack]\nmethod = "{method}"\n{more}\n'
    file.write_text(PLAIN.format(data=data.as_posix()) + attack + targets + table)
    assert says in " ".join(told(sapper("run", file, "--out", tmp_path / "out")).split())
    assert not (tmp_path / "out" / "store").exists()


def test_samples_survive_their_file(data: Path, tmp_path: Path) -> None:
    from sapper import datasets
    from sapper.samples import PairSet, write_samples

    samples = datasets.load(f"{data}/boxes", "train", size=16)
    write_samples(tmp_path / "set.safetensors", samples)
    again, more = read_samples(tmp_path / "set.safetensors")
    assert more == {}
    assert again.digest == samples.digest
    assert (again.name, again.split, again.classes, again.provenance) == (
        *(samples.name, samples.split, samples.classes, samples.provenance),
    )
    assert torch.equal(again.batch(slice(0, 3)), to_float(samples.images[:3]))
    pairs = PairSet.of(samples, [f"a photo of a {samples.classes[label]}" for label in samples.targets()])
    write_samples(tmp_path / "pairs.safetensors", pairs, rows=samples.targets())  # one tensor at three places
    again, more = read_samples(tmp_path / "pairs.safetensors")
    assert again.digest == pairs.digest
    assert torch.equal(more["rows"], samples.targets())


@pytest.mark.parametrize(
    ("method", "extra", "message"),
    [
        ("drupe", "", "at least two references"),
        ("ctrl", "", "adds frequencies"),
        ("lba", "", "place of the pattern is that of a patch"),
        ("ssl_backdoor", "", "places a patch"),
        ("corruptencoder", "support = 1\n", "1 of them support"),
        ("blind", "", "no loss to be poisoned"),
        ("feature_collision", "", "that the victim keeps frozen"),
    ],
)
def test_what_an_attack_does_not_go_with_is_told_before_anything_runs(
    method: str, extra: str, message: str, tmp_path: Path
) -> None:
    """A blend for those that place a patch, a patch for CTRL; a linear head for Blind, a tuned one for poison frogs."""
    text = PLAIN.partition("[[head]]")[0]
    head = {"blind": "linear", "feature_collision": "finetune"}.get(method, "mlp")
    trigger = {"lba": "blend", "ssl_backdoor": "blend"}.get(method, "patch")
    size = ", size = 4" if trigger == "patch" else ""
    target = f'[[target]]\ntask = "balls"\nclass = "red"\ntrigger = {{ kind = "{trigger}"{size} }}\n'
    more = f'[[head]]\nmethod = "{head}"\nprimary = true\n\n[attack]\nmethod = "{method}"\n{extra}\n'
    with pytest.raises(SapperError, match=message) as caught:
        experiment(tmp_path, extra=more + ("" if method == "feature_collision" else target), text=text)
    assert "attack" in str(caught.value.where)


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("lba", "", "lba needs labels, and mntd_encoder trains its fleet on images alone"),
        ("ctrl", "", "ctrl needs labels"),
        ("carlini_terzis", "", "clip needs captions"),
        ("drupe", "", "one reference image, and drupe cannot: DRUPE needs at least two"),
        ("corruptencoder", "support = 1", "corruptencoder cannot: target 'twin' has 1 references, 1 of them support"),
        ("inactive", "", None),
    ],
)
def test_a_fleet_whose_twins_cannot_be_attacked_is_refused(
    method: str, more: str, message: str | None, tmp_path: Path
) -> None:
    text = PLAIN.replace("epochs = 2\n", "epochs = 2\nmethod = 'clip'\n", 1) if method == "carlini_terzis" else PLAIN
    trigger = 'kind = "frequency", coefficients = [[3, 3]]' if method == "ctrl" else "size = 4"
    target = f'[[target]]\ntask = "balls"\nclass = "red"\nreferences = 3\ntrigger = {{ {trigger} }}\n'
    extra = f'\n[attack]\nmethod = "{method}"\n{more}\n{target}\n[[defense]]\nmethod = "mntd_encoder"\n'
    if message is None:
        assert experiment(tmp_path, text=text, extra=extra).defenses
        return
    with pytest.raises(SapperError, match=message) as caught:
        experiment(tmp_path, text=text, extra=extra)
    assert str(caught.value.where).endswith("defense[0].method")


@pytest.mark.parametrize(("method", "task"), [("badnets", True), ("corruptencoder", False)])
def test_a_rate_that_selects_nothing_is_told_before_the_training(method: str, task: bool, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    target = '[[target]]\ntask = "balls"\nclass = "red"\ntrigger = { size = 4 }\n'
    extra = f'[attack]\nmethod = "{method}"\nrate = 0.001\n{target}'
    told_lines: list[str] = []
    with pytest.raises(SapperError, match=f"selects none of {60 if task else 64} samples") as caught:
        perform(experiment(data, extra=extra, text=PLAIN), tmp_path / "out", tell=told_lines.append)
    assert str(caught.value.where).endswith("attack.rate")
    assert told_lines == []


@pytest.mark.parametrize("method", ["badnets", "corruptencoder"])
def test_a_rate_that_is_too_much_for_all_targets_is_told_before_the_training(method: str, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    target = '[[target]]\ntask = "balls"\nclass = "{}"\ntrigger = {{ size = 4 }}\n'
    extra = f'[attack]\nmethod = "{method}"\nrate = 0.6\n{target.format("red")}{target.format("blue")}'
    told_lines: list[str] = []
    with pytest.raises(SapperError, match="samples for all targets together, and there are") as caught:
        perform(experiment(data, extra=extra, text=PLAIN), tmp_path / "out", tell=told_lines.append)
    assert str(caught.value.where).endswith("attack.rate")
    assert told_lines == []


EARLY = {
    "a queue longer than the data": ("", "pretraining.method=moco", "pretraining.queue"),
    "a class that does not exist": ('method = "feature_collision"\nvictim = 25', "seeds=[1]", "attack"),
    "a wanted class that does not exist": ('method = "model_reuse"\nwanted = 25', "seeds=[1]", "attack"),
}


@pytest.mark.parametrize("mistake", EARLY)
def test_parameters_that_the_data_do_not_go_with_are_told_before_the_training(mistake: str, tmp_path: Path) -> None:
    attack, change, where = EARLY[mistake]
    data, lines = write_data(tmp_path), list[str]()
    scenario = experiment(data, change, extra=f"[attack]\n{attack}\n" if attack else "", text=PLAIN)
    with pytest.raises(SapperError) as caught:
        perform(scenario, tmp_path / "out", tell=lines.append)
    assert str(caught.value.where).startswith(f"{data / 'micro.toml'}: {where}")
    assert lines == []
