"""A scenario's audits: the same as of ``sapper audit``, a stage for each encoder, and what people read of them."""

import base64
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sapper import datasets, encoders
from sapper.audits import auditing
from sapper.audits.calibration import Bag, Key, read_bag, write_bag
from sapper.defenses.budgets import BUDGETS
from sapper.errors import SapperError
from sapper.experiment.data import load_data
from sapper.experiment.results import Audited, Results, read_results, write_results
from sapper.report import audited, markdown, render
from sapper.running import Run
from tests.micro import PLAIN, SIZE, experiment, numbers, perform, write_data, write_npz
from tests.program import Install

QUICK = BUDGETS["quick"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    write_npz(folder / "ordinary" / "test.npz", auditing.FEWEST, seed=3, labeled=False)
    write_npz(folder / "few" / "test.npz", auditing.FEWEST - 1, seed=3, labeled=False)
    return folder


def audit(data: Path, **more: Any) -> str:
    """The scenario's table. It names no split: the audit takes the only one, test."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"images": f"{data}/ordinary", **more}.items()]
    return "\n[audit]\n" + "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def bags(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A bag in which every encoder is suspicious, and one that fits nothing."""
    encoder = encoders.build(Run(), architecture="resnet10", width=4, input_size=SIZE)
    key = Key.of(encoder, datasets.load(f"{data}/ordinary", "test", size=SIZE), QUICK)
    scores: list[float | None] = [-50.0] * 19
    bag = Bag(name="low", key=key, pretraining="made up", images="ordinary", scores={QUICK.leading: scores})
    folder, paths = tmp_path_factory.mktemp("bags"), []
    for each in (bag, replace(bag, name="other", key=replace(key, width=5))):
        write_bag(each, folder / f"{each.name}.json")
        paths.append(str(folder / f"{each.name}.json"))
    return paths


@pytest.fixture(scope="session")
def finished(data: Path, bags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("finished")
    results = perform(experiment(data, extra=audit(data, bags=bags)), folder)
    write_results(results, folder)
    return results, folder


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_each_encoder_is_audited_as_the_command_audits_its_file(
    finished: tuple[Results, Path], data: Path, bags: list[str]
) -> None:
    results, folder = finished
    assert [(each.state, each.task) for each in results.audits] == [
        ("clean", None),
        ("attacked", "balls + boxes"),
    ]
    assert [each.sha256 for each in results.audits] == [artifact.sha256 for artifact in results.artifacts]
    file, told = folder / results.artifacts[1].path, results.audits[1].report
    images = datasets.load(f"{data}/ordinary", "test", size=SIZE)
    known = [read_bag(Path(path)) for path in bags]
    own = auditing.audit(encoders.open(str(file), Run()), images, QUICK, known, Run(seed=0))
    assert (told["verdict"], told["p_value"], told["reason"]) == (own.verdict, own.p_value, own.reason)
    assert told["detectors"][0]["score"] == own.leading.score
    assert told["detectors"][0]["collapse"] == asdict(own.leading.collapse)  # type: ignore[call-overload]
    assert told["p_value"] == 1 / 20
    assert results.audits[1].beside == {"low": [-50.0] * 19}


def test_the_recovered_trigger_is_shown_beside_the_true_ones(finished: tuple[Results, Path]) -> None:
    clean, backdoored = finished[0].audits
    assert [each.by for each in clean.stamped] == ["nothing", "audit"]
    assert [(each.by, each.target) for each in backdoored.stamped] == [
        ("nothing", None),
        ("audit", None),
        ("attacker", "balls/red"),
        ("attacker", "boxes/blue"),
    ]
    plain, recovered, first, _ = (pixels(each.images[0]) for each in backdoored.stamped)
    assert len({len(each.images) for each in backdoored.stamped}) == 1
    assert (recovered != plain).any()
    stamped = (first != plain).any(-1)
    assert stamped.sum() == 16
    assert not stamped[SIZE // 2 :].any()


@pytest.mark.slow
def test_a_trigger_that_an_attack_makes_is_the_true_one(data: Path, tmp_path: Path, install: Install) -> None:
    """The target has a small patch, the attack makes everything white."""
    install("audits", points={"sapper.attacks": {"blinding": "tests.test_kinds:Blinding"}})
    attack = '\n[attack]\nmethod = "blinding"\n\n[[target]]\ntask = "balls"\nclass = "red"\ntrigger = { size = 4 }\n'
    short = ("pretraining.epochs=1", "head.0.epochs=1")
    results = perform(experiment(data, *short, text=PLAIN, extra=attack + audit(data)), tmp_path)
    (shown,) = (each for each in results.audits[1].stamped if each.by == "attacker")
    assert all((pixels(image) == 255).all() for image in shown.images)


def test_audits_are_read_back_and_repeat_from_the_store(
    finished: tuple[Results, Path], data: Path, bags: list[str]
) -> None:
    results, folder = finished
    assert read_results(folder).to_json() == results.to_json()
    assert [t["stage"] for t in results.timings][-2:] == [
        "audit of the clean encoder",
        "audit of the backdoored encoder",
    ]
    again = perform(experiment(data, extra=audit(data, bags=bags)), folder)
    assert all(timing["cached"] for timing in again.timings)
    assert again.audits == results.audits
    without = perform(experiment(data), folder)
    assert without.audits == ()
    assert numbers(without) == numbers(results)


def test_results_from_before_there_were_audits_are_read(finished: tuple[Results, Path], tmp_path: Path) -> None:
    content = json.loads(finished[0].to_json())
    del content["audits"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_results(tmp_path).audits == ()


def test_variants_that_share_an_encoder_share_its_audit(
    finished: tuple[Results, Path], data: Path, bags: list[str]
) -> None:
    variants = "".join(f'\n[[variant]]\n"head.0.epochs" = {epochs}\n' for epochs in (10, 1))
    results = perform(experiment(data, extra=audit(data, bags=bags) + variants), finished[1])
    assert [each.state for each in results.audits] == ["clean", "attacked"]
    assert [bool(each.stamped) for each in results.audits] == [True, True]


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"images": "{data}/few"}, "audit.images", "31 images are too few"),
        ({"bags": ["absent.json"]}, "audit.bags", "no bag can be read"),
        ({"split": "valid"}, "audit.split", "split"),
    ],
)
def test_what_cannot_be_audited_is_told_before_any_training(
    data: Path, tmp_path: Path, change: dict[str, Any], place: str, words: str
) -> None:
    made = {key: value.format(data=data) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(SapperError, match=words) as error:
        perform(experiment(data, extra=audit(data, **made)), tmp_path / "out")
    assert place in str(error.value)
    assert not (tmp_path / "out" / "store").exists()


# What people read


def made_up(verdict: str, score: float, p: float | None, state: str, seed: int = 0, name: str = "bag") -> Audited:
    effect = {"gathered": 0.98, "images": 256}
    usual = {"median": 0.29, "largest": 0.7, "encoders": 30}
    finding = {"method": "multi_prior", "leads": True, "score": score, "threshold": 2.0, "collapse": effect}
    told = {
        "verdict": verdict,
        "reason": f"Said by {name}.",
        "p_value": p,
        "false_alarm_bound": 0.05,
        "budget": "quick",
        "images": {"name": name, "split": "test", "n": 2000},
        "detectors": [finding | {"in_clean": usual}],
        "bags": [{"name": name, "n": 30, "pretraining": name, "p_value": p}],
    }
    task = None if state == "clean" else "signs"
    return Audited(seed=seed, subject=state, state=state, sha256="", task=task, report=told, beside={name: [-0.5, 0.1]})


def of(*audits: Audited) -> Results:
    return Results(scenario={}, environment={}, command="", records=(), audits=audits)


PAIR = made_up("backdoor", 7.2, 1 / 31, "attacked"), made_up("no-evidence", -0.3, 0.52, "clean")


def test_one_pair_is_told_in_one_sentence_with_its_p_values() -> None:
    assert audited.headline(of(*PAIR)) == (
        "The audit, which sees an encoder’s weights and ordinary images alone, says: evidence of a backdoor in the "
        "backdoored encoder (p = 0.032), no evidence in the clean one (p = 0.52)."
    )
    assert audited.sentences(of(*PAIR)) == [
        "audit of the backdoored encoder: Evidence of a backdoor (p = 0.032). Said by bag.",
        "audit of the clean encoder: No evidence of a backdoor (p = 0.52). Said by bag.",
    ]


def test_an_audit_without_a_verdict_says_so() -> None:
    results = of(made_up("undecided", 5.1, None, "clean"))
    assert audited.headline(results).endswith("says: undecided about the clean encoder.")
    assert audited.sentences(results) == ["audit of the clean encoder: Undecided. Said by bag."]
    assert "Undecided" in render(results)


def test_several_seeds_are_counted_and_named() -> None:
    results = of(*PAIR, *(replace(each, seed=1) for each in PAIR))
    told = "evidence of a backdoor in 2 of 2 backdoored encoders, evidence of a backdoor in 0 of 2 clean ones."
    assert audited.headline(results).endswith(told)
    assert "audit of the clean encoder of seed 1" in audited.sentences(results)[3]


def test_repaired_clean_encoders_are_no_repaired_backdoored_ones() -> None:
    repaired = replace(PAIR[0], state="repaired", repair="anp", report=PAIR[1].report)
    control = replace(PAIR[0], state="repaired", repair="anp", task=None, sha256="of the control")
    results = of(*PAIR, repaired, control, replace(control, condition={"lambda1": 2.0}))
    assert audited.headline(results).endswith(
        "no evidence in the repaired encoder (p = 0.52), evidence of a backdoor in the backdoored one (p = 0.032), no "
        "evidence in the clean one (p = 0.52), evidence of a backdoor in the repaired clean one (p = 0.032)."
    )
    told = audited.sentences(results)
    assert len(told) == 4, "variants share a repaired clean encoder"
    assert told[2].startswith("audit of the repaired encoder (anp): No evidence")
    assert told[3].startswith("audit of the repaired clean encoder (anp): Evidence")
    page = render(results)
    assert "this run’s repaired clean encoder" in page
    assert "None" not in "".join(told)


def test_page_and_markdown_tell_verdict_score_and_what_was_compared() -> None:
    results = of(*PAIR)
    page, written = render(results), markdown.render(replace(results, scenario={"seeds": [0]}))
    for words in ("Evidence of a backdoor", "7.2", "−0.3", "0.032", "0.52", "98%", "29%, up to 70%"):
        assert words in page
        assert words in written
    assert "30 known-clean encoders of the bag bag" in page


def test_names_in_audits_are_escaped() -> None:
    name = "<script>alert(1)</script>"
    page = render(of(made_up("backdoor", 7.2, 1 / 31, "attacked", name=name)))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_labels_of_the_images_do_not_matter_unless_something_else_needs_them(data: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "odd" / "train.npz", auditing.FEWEST, seed=3)
    (tmp_path / "odd" / "classes.json").write_text("nonsense")
    scenario = experiment(data, text=PLAIN, extra=audit(data, images=f"{tmp_path}/odd"))
    loaded = load_data([scenario], Run(), data_root=None, download=False)
    assert scenario.audit is not None
    assert len(loaded.of_audit(scenario, scenario.audit)) == auditing.FEWEST
    changes = {"pretraining.dataset": f"{tmp_path}/odd"}
    with pytest.raises(SapperError, match=r"classes\.json"):
        load_data([scenario.with_variant(changes)], Run(), data_root=None, download=False)
