"""Screens in a scenario: on which images and models, what they leave, what the report shows, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sapper
from sapper import tensors
from sapper.cli.experiments import print_results
from sapper.errors import SapperError
from sapper.experiment.results import Record, Results, read_results, write_results
from sapper.experiment.screening import judged_and_clean
from sapper.experiment.tasks import Part
from sapper.metrics import auc
from sapper.report import markdown, render, screens
from sapper.running import Run
from sapper.scenario.reading import Scenario
from sapper.scenario.sections import ScreenSection
from tests.micro import ATTACKED, PLAIN, experiment, numbers, perform, write_data
from tests.victims import balls, plain, victim

SCREENS = """
[[defense]]
method = "strip"
overlays = 4
false_rejections = 0.2

[[defense]]
method = "strip_encoder"
name = "features"
overlays = 4
false_rejections = 0.2
share = 0.4
test_images = 20
tasks = ["balls"]
"""
SHORT = ("pretraining.epochs=1", "attack.epochs=1", "head.0.epochs=3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def scenario(data: Path, *overrides: str) -> Scenario:
    return experiment(data, *SHORT, *overrides, extra=SCREENS)


@pytest.fixture(scope="module")
def screened(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("screened")
    return perform(scenario(data), folder), folder


def found(results: Results, metric: str, **where: Any) -> list[Record]:
    return [
        record
        for record in results.records
        if record.metric == metric
        and record.stage == "screen"
        and all(getattr(record, key) == value for key, value in where.items())
    ]


def test_every_model_is_screened_with_and_without_each_targets_trigger(screened: tuple[Results, Path]) -> None:
    results, folder = screened
    left = [tensors.load(file) for file in sorted((folder / "store").glob("screen-*/scores.safetensors"))]
    assert len(left) == 2 * 2 + 2
    for defense, task, target, head in (
        ("strip", "balls", "balls/red", "mlp"),
        ("strip", "boxes", "boxes/blue", "mlp"),
        ("features", "balls", "balls/red", None),
    ):
        for state in ("clean", "attacked"):
            place = {"defense": defense, "task": task, "head": head, "condition": {"state": state}}
            (area,) = found(results, "AUC", target=target, **place)
            (rejected,) = found(results, "rejected", target=target, **place)
            (false,) = found(results, "false_rejections", target=None, **place)
            (curve,) = (r for r in results.rocs if (r.defense, r.task, r.state) == (defense, task, state))
            assert curve.at == (false.value, rejected.value)
            assert (curve.points[0], curve.points[-1]) == ((0.0, 0.0), (1.0, 1.0))
            assert {area.subject, rejected.subject, false.subject} == {curve.subject}
            assert area.n == rejected.n + false.n == 2 * false.n  # type: ignore[operator]
            assert false.n == 20 if defense == "features" else 15 < false.n < 30  # type: ignore[operator]
            values = [auc(each[f"triggered/{target}"], each["plain"]) for each in left if f"triggered/{target}" in each]
            assert area.value in values
            assert area.low is not None


def test_what_is_judged_is_not_what_the_defender_holds() -> None:
    test, section = Part.whole(balls(60, 1, "test")), ScreenSection(method="strip", share=0.25, test_images=30)
    judged, clean = judged_and_clean(test, section, "balls", Run(seed=1))
    seen = {image.numpy().tobytes() for image in judged().images}
    held = {image.numpy().tobytes() for image in clean().images}
    assert (len(seen), len(held)) == (30, 15)
    assert not seen & held
    again, _ = judged_and_clean(test, section, "balls", Run(seed=1))
    assert again().digest == judged().digest


def test_a_second_run_takes_everything_from_the_store(screened: tuple[Results, Path], data: Path) -> None:
    first, folder = screened
    again = perform(scenario(data), folder)
    assert numbers(again) == numbers(first)
    assert again.rocs == first.rocs
    assert all(item["cached"] for item in again.timings)
    changed = perform(scenario(data, "defense.1.overlays=3"), folder)
    assert [item["stage"] for item in changed.timings if not item["cached"]] == [
        f"features on the {encoder} encoder, balls" for encoder in ("clean", "backdoored")
    ]


def test_the_report_shows_the_table_and_the_curves(
    screened: tuple[Results, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, _ = screened
    write_results(results, tmp_path)
    assert read_results(tmp_path).to_json() == results.to_json()
    page = render(results)
    assert page.count("Screens of inputs</h2>") == 1
    assert 'id="other"' not in page, "all of it has a section of its own"
    assert page.count("ROC curves, ") == 3
    table = screens.table(results)
    assert table is not None
    assert [[cell.text for cell in row][:2] for row in table.rows] == [
        [title, state]
        for title in ("strip on balls", "features on balls", "strip on boxes")
        for state in ("clean", "backdoored")
    ]
    (rejected,) = found(results, "rejected", defense="features", condition={"state": "attacked"})
    row = next(row for row in table.rows if (row[0].text, row[1].text) == ("features on balls", "backdoored"))
    assert row[4].text.startswith(f"{100 * rejected.value:.1f}  (")
    assert "| features on balls | backdoored |" in markdown.render(results)
    print_results(results)
    told = " ".join(capsys.readouterr().out.split())
    assert f"backdoored: rejects {100 * rejected.value:.1f} % of triggered images" in told
    later = replace(results, rocs=results.rocs + tuple(replace(each, seed=1) for each in results.rocs))
    (once, *_), (twice, *_) = (screens.section(each).groups for each in (results, later))  # type: ignore[union-attr]
    assert twice.drawing.count("<path") > once.drawing.count("<path"), "each seed has its line"
    assert twice.keys == once.keys, "of one color"
    nothing = replace(results, rocs=())
    assert screens.section(nothing) is None
    assert screens.sentences(nothing) == []


def test_two_targets_of_a_task_have_a_row_each(data: Path, tmp_path: Path) -> None:
    more = '[[target]]\ntask = "balls"\nclass = "green"\ntrigger = { size = 4, position = "center" }\n'
    one = SCREENS[: SCREENS.index('[[defense]]\nmethod = "strip_encoder"')]
    extra = more + one.replace("overlays = 4", 'overlays = 4\ntasks = ["balls"]')
    results = perform(experiment(data, *SHORT, extra=extra, text=ATTACKED), tmp_path)
    for state in ("clean", "attacked"):
        assert len(found(results, "AUC", condition={"state": state})) == 2
        assert len(found(results, "false_rejections", condition={"state": state})) == 1
    table = screens.table(results)
    assert table is not None
    assert len(table.rows) == 4
    assert all(row[3].text != "–" for row in table.rows)
    assert "dotted" in {key.mark for group in screens.section(results).groups for key in group.keys}  # type: ignore[union-attr]


ATTACKS = {
    "badnets": "rate = 0.2",
    "blind": "threshold = 10.0\nwindow = 1",
}


@pytest.mark.parametrize("method", ATTACKS)
def test_classifiers_of_poisoned_data_and_attacked_trainings_are_screened(
    data: Path, tmp_path: Path, method: str
) -> None:
    target = '[[target]]\ntask = "balls"\nclass = "red"\ntrigger = { size = 4 }\n'
    text = PLAIN.partition('[[head]]\nmethod = "linear"')[0]  # Blind poisons no loss of it
    one, other = SCREENS.split("\n\n")
    attack = f'\n[attack]\nmethod = "{method}"\n{ATTACKS[method]}\n{target}'
    results = perform(experiment(data, *SHORT[::2], extra=attack + one, text=text), tmp_path)
    of = {model.id: model.of for model in results.subjects}
    for state, kind in (("clean", "encoder"), ("attacked", {"badnets": "task", "blind": "classifier"}[method])):
        (area,) = found(results, "AUC", condition={"state": state})
        assert of[str(area.subject)] == kind
    with pytest.raises(SapperError, match="no encoder is attacked") as caught:
        experiment(data, *SHORT[::2], extra=attack + "\n" + other, text=text)
    assert str(caught.value.where).endswith("defense[0].method")


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        ("defense.0.false_rejections=0.0", "defense[0].false_rejections", "does not fit"),
        ("defense.0.false_rejections=1", "defense[0].false_rejections", "does not fit"),
        ("defense.0.share=1.0", "defense[0].share", "does not fit"),
        ("defense.0.train_images=5", "defense[0].train_images", "unknown key"),
        ("defense.0.false_rejections=0.02", "defense[0]: images", "are too few: it learns from 4, and 49 others"),
        (
            "defense.0.held_out=3",
            "defense[0]: held_out",
            "3 images that choose the threshold cannot promise a rate of 20 %",
        ),
        ("defense.1.test_images=40", "defense[1].test_images", "40 images are wanted"),
    ],
)
def test_mistakes_are_told_before_any_training(data: Path, tmp_path: Path, change: str, where: str, says: str) -> None:
    with pytest.raises(SapperError) as caught:
        perform(scenario(data, change), tmp_path / "out")
    assert says in caught.value.what
    assert where in str(caught.value.where)
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_screen_from_python(tmp_path: Path) -> None:
    encoder, clean, test = victim(), plain(balls(60, 1)), balls(10, 2)
    sapper.save(encoder, tmp_path / "encoder.safetensors")
    settings: dict[str, Any] = {"method": "strip_encoder", "parameters": {"overlays": 4}, "surroundings": Run(seed=1)}
    ours = sapper.screen(encoder, clean, **settings)
    again = sapper.screen(tmp_path / "encoder.safetensors", clean.images, **settings)
    assert ours.threshold == pytest.approx(again.threshold, abs=1e-5)
    assert torch.allclose(ours.scores(test.images), again.scores(test.images), atol=1e-5)
    for wrong, message in (
        ({"method": "decree"}, "does not screen inputs"),
        ({"preset": "papr"}, "unknown preset"),
        ({"parameters": {"false_rejections": 1.0}}, "does not fit"),
        ({"parameters": {"rate": 0.1}}, "unknown key"),
        ({"method": "strip", "parameters": {}}, "this screen looks at a classifier's answers"),
    ):
        with pytest.raises(SapperError, match=message):
            sapper.screen(encoder, clean, **settings | wrong)
    with pytest.raises(SapperError, match="there is nothing in it"):
        sapper.screen(encoder, clean.images[:0], **settings)
