"""Where the victim trains the encoder, too: its clean classifier does not depend on triggers, and is trained once."""

from pathlib import Path

import pytest

from sapper import datasets, encoders
from sapper.downstream import Finetune
from sapper.downstream import files as classifiers
from sapper.engine.executors import Tell
from sapper.engine.stage import Stage
from sapper.engine.store import Finished, Store
from sapper.experiment.results import Results
from sapper.running import Run
from tests.micro import PLAIN, experiment, perform, write_data
from tests.test_finetune import same

SECTIONS = """
[[attack]]
name = "patch"
method = "badnets"
rate = 0.2

[[attack]]
name = "noise"
method = "badnets"
rate = 0.2
instead.target = [{ task = "balls", class = "red", trigger = { kind = "blend", alpha = 0.5 } }]

[[target]]
task = "balls"
class = "red"
trigger = { size = 4 }
"""
HEAD = 'head=[{ method = "finetune", primary = true, epochs = 2, hidden = [6] }]'


def of(results: Results, metric: str) -> dict[str | None, float]:
    """By attack, on the attacked task."""
    return {r.attack: r.value for r in results.records if r.metric == metric and r.task == "balls"}


def test_a_clean_classifier_is_tuned_once_for_all_triggers(tmp_path: Path) -> None:
    data, lines = write_data(tmp_path / "data"), list[str]()
    scenario = experiment(data, "pretraining.epochs=1", HEAD, text=PLAIN, extra=SECTIONS)
    results = perform(scenario, tmp_path / "out", tell=lines.append)

    made = [
        line.partition(" (seed")[0] for line in lines if line.startswith("finetune") and "from the store" not in line
    ]
    clean = ["finetune on the clean encoder, balls", "finetune on the clean encoder, boxes"]
    poisoned = [
        f"finetune on the clean encoder with a poisoned training set ({name}), balls" for name in ("patch", "noise")
    ]
    assert sorted(made) == sorted(clean + poisoned)

    assert of(results, "CA")["patch"] == of(results, "CA")["noise"]
    assert of(results, "ASR_B")["patch"] != of(results, "ASR_B")["noise"]
    assert {shown.state for shown in results.maps} == {"clean"}  # nobody attacked the encoder
    assert {reference["attack"] for reference in results.references} == {"patch", "noise"}

    spent = {timing["stage"]: timing["seconds"] for timing in results.timings}
    on, poison = "on the clean encoder with a poisoned training set (patch), balls", "attack on balls (patch)"
    expected = spent[f"finetune {on}"] + spent[f"heads {on}"] + spent[poison]
    assert of(results, "attack_seconds")["patch"] == pytest.approx(expected, abs=0.02)

    kept = sorted(path.name for path in (tmp_path / "out" / "store").glob("tuning-*/*.safetensors"))
    assert kept == 2 * ["classifier-BACKDOORED.safetensors"] + 2 * ["classifier.safetensors"]
    for file in (tmp_path / "out" / "store").glob("tuning-*/*.safetensors"):
        classifier, about = classifiers.load(file, Run())
        assert classifier.encoder.card.backdoored == about.backdoored == ("BACKDOORED" in file.name)
        assert not about.backdoored or about.origin["poison"]["method"] == "badnets"


def test_it_is_the_classifier_that_its_head_makes(tmp_path: Path) -> None:
    data, run = write_data(tmp_path / "data"), Run(seed=3)
    perform(experiment(data, "pretraining.epochs=1", HEAD, "seeds=[3]", text=PLAIN), tmp_path / "out")
    (start,) = (tmp_path / "out" / "store").glob("pretraining-*/encoder.safetensors")
    train = datasets.load(f"{data}/balls", "train", size=16)
    direct = Finetune(epochs=2, hidden=(6,)).tune(encoders.load(start, run), train, run.child("head finetune"))
    kept = [classifiers.load(file, run)[0] for file in (tmp_path / "out" / "store").glob("tuning-*/*.safetensors")]
    assert [same(each, direct) for each in kept].count(True) == 1


DEFENSES = """
[[defense]]
method = "neural_cleanse"
steps = 2
minibatches = 1
subjects = 2
tasks = ["balls"]

[[defense]]
method = "scan"
per_class = 5
tasks = ["balls"]

[[defense]]
method = "strip"
overlays = 4
share = 0.7
test_images = 12
tasks = ["balls"]

[[defense]]
method = "patchguard_bn"
epochs = 1
patch = 3
patches = [3]
tasks = ["balls"]
"""


class Looking:
    """An executor that sees all stages and leaves them to the caller."""

    def __init__(self) -> None:
        self.seen: list[Stage] = []

    def takes(self, stage: Stage) -> bool:
        self.seen.append(stage)
        return False

    def make(self, missing: list[Stage], done: dict[Stage, Finished], store: Store, tell: Tell) -> None:
        raise AssertionError("it takes none")


def test_defenses_look_at_the_classifier_that_was_tuned(tmp_path: Path) -> None:
    data, looking = write_data(tmp_path / "data"), Looking()
    scenario = experiment(data, "pretraining.epochs=1", HEAD, text=PLAIN, extra=SECTIONS + DEFENSES)
    results = perform(scenario, tmp_path / "out", executor=looking, side_by_side=True)
    defended = [stage for stage in looking.seen if stage.work.name in ("detect", "screen", "certify")]
    assert {stage.work.name for stage in defended} == {"detect", "screen", "certify"}
    for stage in defended:
        assert [each.work.name for each in stage.inputs].count("tuning") == 1, stage.title
    judged = [each for each in results.verdicts if each.defense == "neural_cleanse" and each.attack == "patch"]
    assert [each.classifier for each in judged] == [0, 1, 0, 1]
