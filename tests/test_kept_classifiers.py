"""Classifiers in files, and those that an attack on a training made as subjects of defenses."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import sapper
from sapper import encoders
from sapper.defenses.defender import Defender
from sapper.defenses.judge.mntd_classifier import MNTDClassifier
from sapper.downstream import KNN, MLP, Classifier, Finetune, Linear, build
from sapper.downstream.files import About, load, save
from sapper.downstream.zero_shot import FromTexts
from sapper.encoders.files import CLASSIFIER
from sapper.errors import SapperError
from sapper.experiment.results import Results
from sapper.experiment.works import read_predictions
from sapper.files import sha256
from sapper.report import certified, defenses, render
from sapper.running import Run
from sapper.scenario.reading import Scenario
from tests.micro import PLAIN, experiment, perform, write_data
from tests.victims import RUN, balls, victim

HEADS: dict[str, Any] = {
    "mlp": MLP(epochs=1, hidden=(8, 6)),
    "standardized mlp": MLP(epochs=1, hidden=(8, 6), standardize=True),
    "linear": Linear(iterations=3),
    "knn": KNN(neighbors=5),
    "finetune": Finetune(epochs=1, batch=10, hidden=(6,)),
}
ABOUT = About(classes=("a", "b", "c"), origin={"method": "none"})


def made(head: str) -> Classifier:
    if head == "texts":
        encoder = victim().eval()
        return Classifier(encoder, FromTexts(torch.randn(3, encoder.feature_size), torch.tensor(20.0))).eval()
    return build(HEADS[head], victim(), balls(24, 1), RUN)


# Files


@pytest.mark.parametrize("head", [*HEADS, "texts"])
def test_a_classifier_answers_from_its_file_as_before(head: str, tmp_path: Path) -> None:
    classifier, images = made(head), balls(9, 2).batch()
    classifier.encoder.gray = head == "linear"
    save(classifier, ABOUT, tmp_path / "it.safetensors")
    again, about = load(tmp_path / "it.safetensors", RUN)
    assert about == ABOUT
    assert again.encoder.card == classifier.encoder.card
    assert not any(module.training for module in again.modules())
    with torch.no_grad():
        assert torch.equal(again(images), classifier(images))
    save(again, about, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "it.safetensors").read_bytes()


def test_a_backdoored_one_says_so_and_is_opened_with_leave_only(tmp_path: Path) -> None:
    about = About(classes=("a", "b", "c"), backdoored=True)
    with pytest.raises(SapperError, match="backdoored classifier must say so"):
        save(made("linear"), about, tmp_path / "it.safetensors")
    file = tmp_path / "it-BACKDOORED.safetensors"
    save(made("linear"), about, file)
    with pytest.raises(SapperError, match="backdoored on purpose"):
        sapper.load_classifier(file)
    assert isinstance(sapper.load_classifier(file, allow_backdoored=True), Classifier)
    save(made("linear"), ABOUT, tmp_path / "clean.safetensors")
    assert isinstance(sapper.load_classifier(str(tmp_path / "clean.safetensors")), Classifier)


def test_a_classifier_is_not_opened_as_an_encoder(tmp_path: Path) -> None:
    file = tmp_path / "it.safetensors"
    save(made("linear"), ABOUT, file)
    with pytest.raises(SapperError, match="no card of an encoder"):
        sapper.load(file)
    with pytest.raises(SapperError, match="a classifier that sapper saved") as caught:
        sapper.open(file)
    assert "load_classifier" in caught.value.remedy


def test_a_head_that_no_file_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="a part Softmax cannot be kept"):
        save(Classifier(victim(), nn.Softmax(1)), ABOUT, tmp_path / "it.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "head",
    [
        [["linear", [10**9, 10**9, 1]]],
        [["linear", [32, 4, 1]]],
        [["linear", [-1, 3, 1]]],
        [["convolution", [3]]],
        [["dropout", [7.0]], ["linear", [32, 3, 1]]],
        [["linear", ["x", 3, 1]]],
        [],
    ],
)
def test_what_does_not_fit_its_weights_is_refused(head: Any, tmp_path: Path) -> None:
    file = tmp_path / "it.safetensors"
    save(Classifier(victim(), nn.Linear(32, 3)), ABOUT, file)
    with safetensors.safe_open(file, "pt") as opened:
        content = json.loads(opened.metadata()[CLASSIFIER])
    assert content["head"] == [["linear", [32, 3, 1]]]
    values = safetensors.torch.load_file(file)
    safetensors.torch.save_file(values, file, {CLASSIFIER: json.dumps(content | {"head": head})})
    with pytest.raises(SapperError) as caught:
        load(file, RUN)
    assert "classifier that sapper saved" in caught.value.remedy


def test_an_encoder_is_no_classifier(tmp_path: Path) -> None:
    encoders.save(victim(), tmp_path / "encoder.safetensors")
    with pytest.raises(SapperError, match="does not say of what classifier"):
        load(tmp_path / "encoder.safetensors", RUN)


# In a scenario

ATTACK = """
[attack]
method = "{method}"
{parameters}

[[target]]
task = "balls"
class = "red"
trigger = {{ size = 4 }}
"""
PARAMETERS = {
    "blind": "threshold = 10.0\nwindow = 1",
    "trojannn": "epochs = 2\nbatch = 8\nper_class = 2\ninput_steps = 2\ntrigger_steps = 2\nmixtures = 16",
}
DEFENSES = """
[[defense]]
method = "neural_cleanse"
steps = 2
minibatches = 1

[[defense]]
method = "mntd_classifier"
shadows = 2
validation = 0
share = 0.5
shadow_epochs = 2
meta_classifiers = 2
epochs = 1

[[defense]]
method = "patchcleanser"
patch = 3
masks = 2
patches = [2]

[[defense]]
method = "patchguard_bn"
patch = 2
width = 4
epochs = 1
patches = [2]
"""
EPOCHS = {"finetune": "epochs = 2", "linear": "iterations = 3"}
ONE_TASK = PLAIN.replace('[[task]]\ndataset = "{data}/boxes"\n\n', "").replace(
    'method = "linear"\niterations = 20', 'name = "other"\nmethod = "HEAD"\n{epochs}'
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def scenario(data: Path, method: str, *overrides: str, more: str = DEFENSES, head: str = "finetune") -> Scenario:
    extra = ATTACK.format(method=method, parameters=PARAMETERS[method]) + more
    short = ("pretraining.epochs=1", "head.0.epochs=3")
    return experiment(
        data, *short, *overrides, text=ONE_TASK.replace("HEAD", head).replace("{epochs}", EPOCHS[head]), extra=extra
    )


@pytest.fixture(scope="module", params=["mlp", "other"])
def blinded(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Blind on two heads, of which either is the primary one."""
    folder = tmp_path_factory.mktemp("blinded")
    primary = [] if request.param == "mlp" else ["head.0.primary=false", "head.1.primary=true"]
    return perform(scenario(data, "blind", *primary), folder), folder, request.param


def test_judges_answer_for_the_clean_and_the_attacked_classifier(blinded: tuple[Results, Path, str]) -> None:
    results, _, head = blinded
    ids = [("clean", "clean-seed0"), ("attacked", f"attacked-balls-{head}-seed0")]
    for defense in ("neural_cleanse", "mntd_classifier"):
        ours = [verdict for verdict in results.verdicts if verdict.defense == defense]
        assert [(each.state, each.subject) for each in ours] == ids
        assert [(each.task, each.classifier, each.attack) for each in ours] == [("balls", 0, "blind")] * 2
        (record,) = [r for r in results.records if (r.defense, r.metric) == (defense, "detection_accuracy")]
        assert (record.head, record.subject, record.baseline) == (head, ids[1][1], ids[0][1])
    norms = [verdict.evidence["norms"] for verdict in results.verdicts if verdict.defense == "neural_cleanse"]
    scores = [verdict.score for verdict in results.verdicts if verdict.defense == "mntd_classifier"]
    assert scores[0] != scores[1]
    assert len(norms[0]) == len(norms[1]) == 3


def test_the_classifier_that_was_measured_is_the_one_that_is_kept(
    blinded: tuple[Results, Path, str], data: Path
) -> None:
    results, folder, _ = blinded
    kept = {each.path: each for each in results.artifacts if each.path.startswith("classifiers/")}
    names = {"mlp": False, "other": True}
    assert list(kept) == [f"classifiers/balls-{name}-seed0-BACKDOORED.safetensors" for name in names]
    images = sapper.load_data(f"{data}/balls", "test", size=16).batch()
    stages = {sha256(each): each.parent for each in folder.glob("store/attacked-training-*/classifier-*.safetensors")}
    for (path, artifact), (name, tuned) in zip(kept.items(), names.items()):
        classifier, about = load(folder / path, Run())
        assert (about.backdoored, about.classes, artifact.state) == (True, ("red", "green", "blue"), "attacked")
        assert (about.origin["method"], about.origin["head"]["name"]) == ("blind", name)
        assert classifier.encoder.card.backdoored is tuned
        with torch.no_grad():
            answers = classifier(images).argmax(1)
        assert torch.equal(answers, read_predictions(stages[artifact.sha256])[f"{name}/clean"])


def test_certified_defenses_look_at_it_unless_they_replace_it(blinded: tuple[Results, Path, str]) -> None:
    results, folder, head = blinded

    def answers(defense: str) -> list[list[float]]:
        ours = [record for record in results.records if record.defense == defense]
        states = ("clean", "attacked")
        return [[r.value for r in ours if r.condition["state"] == state] for state in states]

    plain, attacked = answers("patchguard_bn")
    assert plain == attacked, "a network of its own takes the place of either"
    assert len(answers("patchcleanser")[1]) == len(plain)
    works = [json.loads(file.read_text())["key"]["work"] for file in folder.glob("store/certify-*/stage.json")]
    clean = True if head == "other" else None  # which is tuned, and kept, too
    assert [work["victim"].get("kept") for work in works if work["name"] == "patchguard_bn"] == [clean]
    assert {work["victim"].get("kept") for work in works if work["name"] == "patchcleanser"} == {clean, True}


def test_reports_do_not_speak_of_a_backdoored_encoder(blinded: tuple[Results, Path, str]) -> None:
    results, _, _ = blinded
    page, told = render(results), " ".join(defenses.sentences(results) + certified.sentences(results))
    assert "0 of 1 classifiers whose training was attacked" in told or "1 of 1 classifiers whose training" in told
    assert "patchcleanser on balls, backdoored classifier: accuracy" in told
    assert "backdoored encoder" not in told
    assert "classifiers whose training was attacked" in page
    assert "classifiers on the backdoored encoder" not in page


@pytest.mark.slow
def test_a_trigger_that_the_attack_made_is_what_certified_defenses_are_shown(data: Path, tmp_path: Path) -> None:
    results = perform(scenario(data, "trojannn", head="linear"), tmp_path)
    assert {verdict.state for verdict in results.verdicts} == {"clean", "attacked"}
    rates = [r for r in results.records if (r.defense, r.metric) == ("patchcleanser", "defended_ASR")]
    assert [r.condition["state"] for r in rates] == ["clean", "attacked"]


def test_several_classifiers_of_one_training_are_refused(data: Path) -> None:
    with pytest.raises(SapperError, match="one classifier with each seed") as caught:
        scenario(data, "blind", "defense.0.subjects=2")
    assert str(caught.value.where).endswith("defense[0].subjects")


def test_a_meta_classifier_asks_a_classifier_on_the_encoder_that_it_stands_on() -> None:
    owner = Defender.of(victim(), HEADS["linear"], balls(24, 1), RUN)
    frozen = owner.build(RUN)
    tuned = HEADS["finetune"].tune(victim(), balls(24, 1), RUN)
    copied = Classifier(copy.deepcopy(frozen.encoder), frozen.head)
    method = MNTDClassifier(share=0.5, shadows=2, validation=0, shadow_epochs=2, meta_classifiers=2, epochs=1)
    verdicts = method.judge([frozen, copied, tuned, Classifier(owner.encoder, tuned.head)], owner, RUN)
    scores = [verdict.score for verdict in verdicts]
    assert scores[0] == scores[1]
    assert scores[2] != scores[3]
