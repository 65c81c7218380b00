"""What triggers do to features and pixels: numbers against plain forms, records of every kind of attack, the table."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sapper import datasets, encoders, tensors
from sapper.augment import to_grayscale
from sapper.cli.experiments import print_results
from sapper.downstream import extract, mean_cosine
from sapper.errors import SapperError
from sapper.experiment.effects import cosine_rate, pixel_rates
from sapper.experiment.results import Record, Results, read_results, write_results
from sapper.metrics import jackknifed
from sapper.report import effects, markdown, render
from sapper.running import Run
from sapper.samples import PIXELS, ImageSet, to_float
from sapper.triggers import Noise, Patch, mean_change, ssim
from tests.micro import ATTACKED, PLAIN, experiment, perform, rates, write_data

SHORT = ("pretraining.epochs=1", "head.0.epochs=1", "head.1.iterations=2")
GRAY = """
[[task]]
dataset = "DATA/balls"
name = "gray balls"
gray = true

[[target]]
task = "gray balls"
class = "red"
trigger = { size = 4, position = "top-left" }
"""
SEVERAL = """
[[attack]]
method = "badencoder"
epochs = 1
batch = 24
reference_views = 2

[[attack]]
method = "inactive"
epochs = 1
batch = 24
reference_views = 2

[[attack]]
method = "badnets"
rate = 0.3

[[attack]]
method = "blind"
instead.head = [{ method = "mlp", epochs = 1, hidden = [8, 8] }]

[[target]]
task = "balls"
class = "red"
trigger = { size = 4 }
"""
ONE_TASK = PLAIN.replace('[[task]]\ndataset = "{data}/boxes"\n\n', "")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("run")
    return perform(experiment(data, *SHORT, text=ONE_TASK, extra=SEVERAL), folder), folder


def of(results: Results, metric: str, **where: str | None) -> list[Record]:
    return [
        r for r in results.records if r.metric == metric and all(getattr(r, key) == each for key, each in where.items())
    ]


# Numbers


@settings(deadline=None)
@given(count=st.integers(3, 9), seed=st.integers(0, 10**6))
def test_the_interval_of_a_mean_cosine_is_the_jackknifes(count: int, seed: int) -> None:
    unit = F.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)
    without = torch.stack([mean_cosine(torch.cat((unit[:i], unit[i + 1 :]))) for i in range(count)])
    deviation = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    rate = cosine_rate(unit)
    assert rate is not None
    assert (rate.value, rate.n) == (pytest.approx(float(mean_cosine(unit))), count)
    assert rate.low == pytest.approx(max(-1.0, float(mean_cosine(unit) - 1.959964 * deviation)), abs=1e-6)
    assert rate.high == pytest.approx(min(1.0, float(mean_cosine(unit) + 1.959964 * deviation)), abs=1e-6)


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    """Pairs are not independent: were they taken for that, it would be several times too narrow."""
    generator, center, hits = torch.Generator().manual_seed(1), torch.tensor([2.0, 0, 0, 0]), 0
    many = F.normalize(center + torch.randn(200_000, 4, generator=generator), dim=1)
    truth = float(mean_cosine(many.double()))
    for _ in range(300):
        rate = cosine_rate(F.normalize(center + torch.randn(60, 4, generator=generator), dim=1))
        assert rate is not None
        hits += rate.low <= truth <= rate.high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_jackknife_of_a_mean_is_the_usual_interval() -> None:
    values = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rate = jackknifed(float(values.mean()), (values.sum() - values) / 39, 0, 1)
    half = 1.959964 * float(values.std()) / 40**0.5
    assert (rate.low, rate.high) == (pytest.approx(rate.value - half), pytest.approx(rate.value + half))
    assert jackknifed(0.5, torch.tensor([0.0, 1.0]), 0, 1) == replace(rate, value=0.5, low=0, high=1, n=2)


def test_features_that_cannot_be_compared_give_no_number() -> None:
    assert cosine_rate(torch.eye(2)) is None
    assert cosine_rate(torch.full((5, 3), torch.nan)) is None
    alike = cosine_rate(torch.ones(5, 4) / 2)
    assert alike is not None
    assert (alike.low, alike.value, alike.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("most", [1, 3, 100])
def test_pixels_are_measured_in_whatever_batches_they_come(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    pixels = torch.randint(60, 190, (7, 3, 12, 12), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    images, patch = ImageSet(images=pixels, name="noise"), Patch(size=6, color="black", position="top-left", margin=0)
    plain = to_float(pixels)
    monkeypatch.setitem(PIXELS, "cpu", most * 12 * 12)
    found = pixel_rates(images, patch)
    assert found["trigger_change"].value == pytest.approx(float(pixels[..., :6, :6].double().mean()) / 4)
    assert found["trigger_ssim"].value == pytest.approx(float(ssim(patch(plain), plain).mean()))
    assert found["trigger_change"].n == 7
    assert pixel_rates(images.take(torch.tensor([0])), patch) == {}


def test_a_faint_trigger_is_told_from_a_patch() -> None:
    pixels = torch.randint(60, 190, (7, 3, 12, 12), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    images = ImageSet(images=pixels, name="noise")
    sign = torch.where(torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(3)) < 0.5, -1, 1)
    faint, loud = pixel_rates(images, Noise(delta=2 / 255 * sign)), pixel_rates(images, Patch(size=6))
    assert faint["trigger_change"].value == pytest.approx(2, abs=1e-4)
    assert faint["trigger_change"].low == pytest.approx(2, abs=1e-4), "the same in every image"
    assert faint["trigger_ssim"].value > 0.98 > 0.9 > loud["trigger_ssim"].value


# Records


def test_every_attack_has_records_of_features_and_pixels(finished: tuple[Results, Path]) -> None:
    results, _ = finished
    models = {model.id: model for model in results.subjects}
    for attack, head in (("badencoder", None), ("inactive", None), ("badnets", None), ("blind", "mlp")):
        for metric in ("cosine_triggered", "cosine_clean"):
            before, after = of(results, metric, attack=attack)
            assert (before.condition, after.condition) == ({"state": "clean"}, {"state": "attacked"})
            assert (before.subject, before.baseline, after.baseline) == ("clean-seed0", None, "clean-seed0")
            assert models[after.subject or ""].attack == attack
        for metric, unit in (("trigger_change", "levels"), ("trigger_ssim", "SSIM")):
            (record,) = of(results, metric, attack=attack)
            assert (record.stage, record.unit, record.condition) == ("trigger", unit, {})
            assert models[record.subject or ""].state == "attacked"
        (took,) = of(results, "attack_seconds", attack=attack)
        assert (took.stage, took.unit, took.head, took.target) == ("attack", "s", head, "balls/red")
        assert 0 < took.value < sum(timing["seconds"] for timing in results.timings)
        shown = set(effects.METRICS) - {"attack_seconds"}
        ours = [record for record in results.records if record.metric in shown and record.attack == attack]
        assert {(r.task, r.target, r.head, r.n) for r in ours} == {("balls", "balls/red", head, 45)}
        assert all(r.low is not None and r.high is not None and r.low <= r.value <= r.high for r in ours)
    assert len(of(results, "cosine_clean")) == 8


def test_cosines_are_those_of_the_encoders_files(finished: tuple[Results, Path], data: Path) -> None:
    results, folder = finished
    test, trigger = datasets.load(str(data / "balls"), "test", size=16), Patch(size=4)
    paths = {artifact.subject: folder / artifact.path for artifact in results.artifacts}
    for metric, change in (("cosine_triggered", trigger), ("cosine_clean", None)):
        for record in of(results, metric, attack="badencoder"):
            features = extract(encoders.load(paths[record.subject or ""], Run()), test, Run(), change)
            assert record.value == pytest.approx(float(mean_cosine(features)), abs=1e-5)
    plain = to_float(test.images)
    (change_record,) = of(results, "trigger_change", attack="badencoder")
    assert change_record.value == pytest.approx(float(mean_change(trigger(plain), plain).mean()), rel=1e-5)


def test_learned_triggers_are_measured_as_they_were_learned(finished: tuple[Results, Path]) -> None:
    results, _ = finished
    change = {r.attack: r.value for r in of(results, "trigger_change")}
    likeness = {r.attack: r.value for r in of(results, "trigger_ssim")}
    assert change["badencoder"] == change["badnets"] != change["inactive"] != change["blind"]
    assert likeness["inactive"] > likeness["badencoder"]


def test_where_the_encoder_stays_its_features_do(finished: tuple[Results, Path]) -> None:
    before, after = of(finished[0], "cosine_triggered", attack="badnets")
    assert before.value == after.value
    before, after = of(finished[0], "cosine_triggered", attack="badencoder")
    assert before.value != after.value


# Gray tasks


@pytest.fixture(scope="module")
def grayed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("gray")
    extra = GRAY.replace("DATA", data.as_posix())
    return perform(experiment(data, *SHORT, "attack.epochs=1", extra=extra), folder), folder


def test_a_gray_task_stands_beside_the_same_data_in_colors(grayed: tuple[Results, Path]) -> None:
    results, _ = grayed
    own = {(r.task, r.target) for r in rates(results)}
    assert own == {("balls", "balls/red"), ("boxes", "boxes/blue"), ("gray balls", "gray balls/red")}
    assert len([artifact for artifact in results.artifacts if artifact.state == "attacked"]) == 1
    assert [m.tasks for m in results.subjects if m.state == "attacked"] == [("balls", "boxes", "gray balls")]
    cosines = {r.task: r.value for r in of(results, "cosine_clean") if r.condition["state"] == "clean"}
    assert cosines["balls"] != cosines["gray balls"]
    changes = {r.task: r.value for r in of(results, "trigger_change")}
    assert changes["balls"] == changes["gray balls"], "a trigger is measured before images are turned gray"


def test_features_of_a_gray_task_are_those_of_gray_images_with_their_trigger(
    grayed: tuple[Results, Path], data: Path
) -> None:
    results, folder = grayed
    test, trigger = datasets.load(str(data / "balls"), "test", size=16), Patch(size=4, position="top-left")
    stamped = trigger(to_float(test.images))
    path = next(folder / artifact.path for artifact in results.artifacts if artifact.state == "clean")
    encoder = encoders.load(path, Run())
    assert not encoder.gray
    with torch.no_grad():
        expected = F.normalize(encoder(to_grayscale(stamped).expand(-1, 3, -1, -1)), dim=1)
    record = next(r for r in of(results, "cosine_triggered", task="gray balls") if r.condition["state"] == "clean")
    assert record.value == pytest.approx(float(mean_cosine(expected)), abs=1e-5)
    maps = [tensors.load(file) for file in (folder / "store").glob("downstream-*/map.safetensors")]
    rows = [
        each["triggered/gray balls/red"][each["rows"].argsort()] for each in maps if "triggered/gray balls/red" in each
    ]
    assert any(torch.allclose(each, expected, atol=1e-5) for each in rows)


def test_gray_is_in_the_key_of_what_the_victim_does_and_of_nothing_else(
    grayed: tuple[Results, Path], data: Path
) -> None:
    extra = GRAY.replace("DATA", data.as_posix()).replace("gray = true", "gray = false")
    again = perform(experiment(data, *SHORT, "attack.epochs=1", extra=extra), grayed[1])
    assert [item["stage"] for item in again.timings if not item["cached"]] == [
        "heads on the clean encoder, gray balls",
        "heads on the backdoored encoder, gray balls",
    ]


def test_training_is_attacked_through_a_gray_victim(data: Path, tmp_path: Path) -> None:
    text = ONE_TASK.replace('dataset = "{data}/balls"', 'dataset = "{data}/balls"\ngray = true')
    extra = """
[attack]
method = "blind"
[[target]]
task = "balls"
class = "red"
trigger = { size = 4 }
"""
    heads = (
        'head=[{ method = "mlp", primary = true, epochs = 1, hidden = [8, 8] }, { method = "finetune", epochs = 1 }]',
    )
    results = perform(experiment(data, "pretraining.epochs=1", *heads, text=text, extra=extra), tmp_path)
    assert {r.head for r in of(results, "cosine_triggered")} == {"mlp", "finetune"}
    colors = perform(
        experiment(data, "pretraining.epochs=1", *heads, "task.0.gray=false", text=text, extra=extra), tmp_path
    )
    assert [r.value for r in of(results, "cosine_clean")] != [r.value for r in of(colors, "cosine_clean")]


def test_a_defense_with_a_network_of_its_own_is_refused_on_a_gray_task(data: Path) -> None:
    extra = GRAY.replace("DATA", data.as_posix()) + '\n[[defense]]\nmethod = "patchguard_bn"\npatches = [2]\n'
    with pytest.raises(SapperError, match="would see the colors of the gray task 'gray balls'") as caught:
        experiment(data, extra=extra)
    assert caught.value.where == f"{data / 'micro.toml'}: defense[0].tasks"
    allowed = experiment(data, "defense.0.tasks=['balls']", extra=extra)
    assert allowed.defenses[0].on("balls")
    experiment(data, extra=extra.replace("patchguard_bn", "patchcleanser"))


def test_one_task_is_not_gray_for_one_attack_and_in_colors_for_another(data: Path) -> None:
    instead = f'instead.task = [{{ dataset = "{data.as_posix()}/balls", gray = true }}]'
    text = SEVERAL.replace("rate = 0.3", f"rate = 0.3\n{instead}")
    with pytest.raises(SapperError, match="gray' here") as caught:
        experiment(data, text=ONE_TASK, extra=text)
    assert caught.value.where == f"{data / 'micro.toml'}: attack[2].instead.task"


# The table


def test_the_table_tells_both_encoders_and_the_trigger(
    finished: tuple[Results, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results, _ = finished
    table = effects.table(results)
    assert table is not None
    assert table.columns == (
        *("attack", "head", "task → target", "cosine, with trigger", "cosine, without", "change", "SSIM", "time"),
    )
    assert [row[0].text for row in table.rows] == ["badencoder", "inactive", "badnets", "blind"]
    before, after = of(results, "cosine_triggered", attack="badencoder")
    cell = table.rows[0][3]
    assert cell.text == f"{before.value:.3f} → {after.value:.3f}".replace("-", "−")
    assert f"({before.low:.3f}…{before.high:.3f})".replace("-", "−") in cell.title
    assert all(row[-1].text.endswith(" s") and row[-1].text != "0.00 s" for row in table.rows)
    assert table.rows[0][5].text == f"{of(results, 'trigger_change', attack='badencoder')[0].value:.3f}"
    page = render(results)
    assert page.count("<h2>What the trigger does</h2>") == 1
    assert cell.text in page
    assert "cosine_triggered" not in re.sub("<[^>]*>", "", page), "no other section shows them again"
    assert f"| badencoder | – | balls → red | {cell.text} |" in markdown.render(results)
    print_results(results)
    shown = capsys.readouterr().out
    assert "What the trigger does" in shown
    assert cell.text.partition(" ")[0] in shown


@pytest.mark.slow
def test_a_single_attack_with_variants_and_seeds(data: Path, tmp_path: Path) -> None:
    extra = '[[variant]]\n"target.trigger.size" = 3\n[[variant]]\n"target.trigger.size" = 6\n'
    text = ATTACKED.replace("task]]\ndataset = ", "task]]\ntest_images = 20\ndataset = ")
    results = perform(experiment(data, *SHORT, "attack.epochs=1", "seeds=[0, 1]", text=text, extra=extra), tmp_path)
    table = effects.table(results)
    assert table is not None
    assert table.columns[:2] == ("task → target", "target.trigger.size")
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        (f"{task} → {name}", size) for size in ("3", "6") for task, name in (("balls", "red"), ("boxes", "blue"))
    ]
    small, large = (float(row[4].text) for row in table.rows[::2])
    assert small < large
    assert "Student’s t over the seeds (n = 2)" in table.rows[0][2].title


def test_results_from_before_there_were_such_records_are_shown_without_the_table(
    finished: tuple[Results, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = replace(finished[0], records=tuple(rates(finished[0])))
    write_results(results, tmp_path)
    old = read_results(tmp_path)
    assert effects.table(old) is None
    assert "What the trigger does" not in render(old) + markdown.render(old)
    print_results(old)
    assert "What the trigger does" not in capsys.readouterr().out
