"""The report: right numbers, nothing from outside, nothing that a name could break, and fit for a phone."""

import base64
import io
import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from functools import cache
from html import escape
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from sapper.errors import SapperError
from sapper.experiment.results import Artifact, Curve, FeatureMap, Picture, Record, Results, State
from sapper.report import figures, markdown, means, render, sections, text, write_report
from sapper.report.means import estimate
from sapper.report.summaries import summary_rows, summary_sentences

TARGETS = {"signs": "priority", "digits": "one", "objects": "cup"}
SHIFTS = {"signs": 0.0, "digits": 0.006, "objects": -0.013}
HEADS = ("mlp", "linear")
BOTH: tuple[State, State] = ("clean", "attacked")
RATES = {"CA": 0.851, "BA": 0.847, "ASR": 0.984, "ASR_strict": 0.983, "ASR_B": 0.122, "ASR_B_strict": 0.04}
NASTY = "<script>alert('1')</script>"


# A made-up run: three tasks, two heads


def measured(seed: int, task: str, head: str, shift: float = 0.0, **also: object) -> list[Record]:
    """The seven numbers of one classifier pair; what speaks of the clean encoder names no attack."""
    rates = {name: value + shift for name, value in RATES.items()}
    rates["lift"] = rates["ASR_strict"] - rates["ASR_B_strict"]
    return [
        Record(
            seed=seed,
            stage=f"measure.{task}",
            task=task,
            target=None if metric in ("CA", "BA") else TARGETS.get(task, "aim"),
            attack=None if metric in ("CA", "ASR_B", "ASR_B_strict") else "badencoder",
            head=head,
            metric=metric,
            value=value,
            low=value - 0.012,
            high=value + 0.007,
            n=1000,
            **also,  # type: ignore[arg-type]
        )
        for metric, value in rates.items()
    ]


def picture(seed: int, triggered: bool) -> str:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    image = np.stack([random.uniform(40, 200) + 40 * np.sin((x + y) / random.uniform(3, 9)) for _ in range(3)], -1)
    image[(x - 16) ** 2 + (y - 15) ** 2 < random.uniform(40, 110)] = random.uniform(0, 255, 3)
    if triggered:
        image[21:31, 21:31] = 255
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pictures(task: str) -> list[Picture]:
    place = {"task": task, "target": TARGETS[task]}
    pairs = [
        Picture(**place, role=role, caption=f"class {i}", png=picture(i, triggered=role == "triggered"))
        for role in ("clean", "triggered")
        for i in range(8)
    ]
    return [*pairs, Picture(**place, role="reference", caption=TARGETS[task], png=picture(99, triggered=False))]


def feature_map(task: str, state: State, classes: int, n: int = 300) -> FeatureMap:
    random = np.random.default_rng(classes)
    angle = 2 * np.pi * np.arange(classes) / classes
    centers = 0.5 * np.stack([np.cos(angle), np.sin(angle)])
    labels = random.integers(0, classes, n)
    clean = centers[:, labels] + random.normal(0, 0.07, (2, n))
    reference = centers[:, [0]] + 0.03
    triggered = clean + 0.02 if state == "clean" else reference + random.normal(0, 0.02, (2, n))

    def points(at: np.ndarray, of: np.ndarray) -> dict[str, list[float]]:
        return {"x": at[0].tolist(), "y": at[1].tolist(), "label": of.tolist()}

    both = {"clean": points(clean, labels), "triggered": points(triggered, labels)}
    both["reference"] = points(reference, np.zeros(1, dtype=int))
    return FeatureMap(
        seed=0, task=task, target=TARGETS[task], subject=f"{state}-seed0", state=state, points=both, explained=0.412
    )


def curves(seed: int) -> list[Curve]:
    steps = np.arange(30)
    noise = np.random.default_rng(seed).normal(0, 0.01, 30)
    falling = -1 + 0.9 * np.exp(-steps / 5) + noise
    terms = {"effectiveness": falling.tolist(), "clean reference": (falling - 0.01).tolist()}
    terms["utility"] = (-0.97 + 0.2 * np.exp(-steps / 3) + noise).tolist()
    loss = {"NT-Xent": (5.6 - 2 * (1 - np.exp(-steps / 9)) + noise).tolist()}
    return [
        Curve(seed=seed, stage="pre-training", series=loss),
        Curve(seed=seed, stage="attack on all", series=terms),
    ]


@pytest.mark.parametrize(("lift", "alarming"), [(0.98, True), (0.12, False), (-0.3, False)])
def test_only_a_backdoor_that_works_is_shown_in_red(lift: float, alarming: bool) -> None:
    records = [
        replace(record, value=lift, low=lift - 0.05, high=lift + 0.05) if record.metric == "lift" else record
        for record in measured(0, "signs", "mlp")
    ]
    page = render(Results(scenario={"name": "trial"}, environment={}, command="", records=tuple(records)))
    assert ('class="rate alarm"' in page) == alarming


@cache
def made_up(seeds: tuple[int, ...] = (0, 1)) -> Results:
    classes = {"signs": 12, "digits": 10, "objects": 43}
    tasks = [{"name": task, "dataset": task, "heads": list(HEADS)} for task in TARGETS]
    return Results(
        scenario={
            "name": "demo",
            "seeds": list(seeds),
            "primary_head": "mlp",
            "pretraining": {"dataset": "objects", "method": "simclr", "epochs": 30, "batch_size": 256, "note": None},
            "attack": {"method": "badencoder", "epochs": 30, "lambda1": 1.0, "lambda2": 1.0},
            "target": [{"name": name, "task": task, "trigger": {"size": 10}} for task, name in TARGETS.items()],
            "task": tasks,
        },
        environment={
            "sapper": "0.1.0",
            "versions": {"python": "3.11.2", "torch": "2.12.0", "torchvision": "0.27.0"},
            "hardware": {"processor": "Some Processor @ 2.1 GHz", "cores": 2, "memory": "8 GiB", "accelerator": None},
            "threads": 2,
            "dtype": "bfloat16",
        },
        command="sapper run scenarios/demo.toml --out runs/demo --set attack.epochs=30",
        records=tuple(
            record
            for seed in seeds
            for task in TARGETS
            for head in HEADS
            for record in measured(seed, task, head, shift=SHIFTS[task] + 0.01 * seed - 0.02 * (head == "linear"))
        ),
        artifacts=tuple(
            Artifact(
                subject=f"{state}-seed{seed}",
                state=state,
                seed=seed,
                path=f"store/{seed}/{state}.safetensors",
                sha256=f"{seed}{len(state)}ab" * 16,
            )
            for seed in seeds
            for state in BOTH
        ),
        datasets=tuple(
            {
                "name": task,
                "split": split,
                "n": n,
                "size": [32, 32],
                "classes": [f"{task} class {i}" for i in range(count)],
                "sha256": "0123456789abcdef" * 4,
                "provenance": "made by code from seed 0; source digits split before composing",
            }
            for task, count in classes.items()
            for split, n in (("train", 5000), ("test", 1000))
        ),
        references=tuple(
            {
                "seed": seed,
                "target": name,
                "task": task,
                "class": name,
                "label": 0,
                "rows": [17, 4022],
                "source": "nearest to the class mean",
            }
            for seed in seeds
            for task, name in TARGETS.items()
        ),
        curves=tuple(curve for seed in seeds for curve in curves(seed)),
        maps=tuple(feature_map(task, state, count) for task, count in classes.items() for state in reversed(BOTH)),
        pictures=tuple(item for task in TARGETS for item in pictures(task)),
        timings=tuple(
            {"seed": seed, "stage": stage, "seconds": seconds, "cached": stage == "data"}
            for seed in seeds
            for stage, seconds in (("data", 0.31), ("pretrain", 96.2), ("attack", 31.7), ("measure.signs", 2.04))
        ),
        flags=("objects: the reference images are classified as another class by the clean encoder (seed 1)",),
    )


@cache
def ablation() -> Results:
    sizes = {2: -0.6, 5: -0.2, 10: 0.0}
    varied = tuple(
        record
        for size, shift in sizes.items()
        for head in HEADS
        for record in measured(0, "signs", head, condition={"trigger.size": size})
        for record in [replace(record, value=record.value + shift) if "strict" in record.metric else record]
        if "_B" not in record.metric
    )
    return replace(made_up(seeds=(0,)), records=varied, pictures=(), maps=(), flags=())


@cache
def long_names() -> Results:
    """Names without a place to break the line."""
    name = "averyverylongnamewithoutanybreak" * 3
    results = made_up(seeds=(0,))
    return replace(
        results,
        scenario={**results.scenario, "name": name, name: name, "attack": {"method": name}},
        environment={name: name},
        command=name,
        records=(*measured(0, name, "mlp"), *measured(0, name, name, condition={name: name})),
        datasets=({"name": name, "provenance": name},),
        curves=(Curve(seed=0, stage=name, series={name: [1.0, 2.0]}),),
        maps=(replace(results.maps[0], subject=name),),
        pictures=(replace(results.pictures[0], task=name, caption=name),),
        flags=(name,),
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render(made_up())


# Numbers


def test_mean_and_t_interval_by_hand() -> None:
    records = [Record(seed=seed, stage="s", metric="BA", value=value) for seed, value in enumerate((0.5, 0.6, 0.7))]
    found = estimate(records)
    half = 4.302653 * 0.1 / sqrt(3)  # the 97.5 % point of Student's t with two degrees of freedom
    assert (found.n_seeds, found.source) == (3, "seeds")
    assert [found.value, found.low, found.high] == pytest.approx([0.6, 0.6 - half, 0.6 + half], abs=1e-6)


def test_one_seed_keeps_its_own_interval() -> None:
    found = estimate([Record(seed=0, stage="s", metric="BA", value=0.5, low=0.4, high=0.65)])
    assert (found.low, found.high, found.source) == (0.4, 0.65, "images")
    assert estimate([Record(seed=0, stage="s", metric="BA", value=0.5)]).source == "none"


@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_single_models_of_seeds_are_counted_as_one_sample(flagged: list[bool]) -> None:
    records = [
        Record(seed=seed, stage="s", metric="flagged", value=float(value), n=1) for seed, value in enumerate(flagged)
    ]
    found, known = estimate(records), stats.binomtest(sum(flagged), len(flagged)).proportion_ci(method="wilson")
    assert (found.value, found.source) == (pytest.approx(sum(flagged) / len(flagged)), "models")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert estimate([replace(record, n=4) for record in records]).source == "seeds", "several models of each seed"
    assert estimate([replace(record, metric="score") for record in records]).source == "seeds", "a score is no share"


def test_two_values_for_one_seed_are_refused() -> None:
    one = Record(seed=0, stage="s", metric="CA", value=0.5, subject="a")
    assert estimate([one, replace(one, subject="b")]).value == 0.5, "said twice is said once"
    with pytest.raises(SapperError, match="CA has two values for seed 0"):
        estimate([one, replace(one, value=0.6)])


def test_a_note_tells_of_the_least_and_the_most_seeds() -> None:
    def over(*seeds: int) -> means.Estimate:
        return estimate([Record(seed=seed, stage="s", metric="BA", value=0.5 + seed / 10) for seed in seeds])

    assert means.interval_note([over(0, 1, 2), over(0, 1)]) == "Student’s t over the seeds (n = 2 to 3)"
    assert means.interval_note([over(0, 1), over(1, 2)]) == "Student’s t over the seeds (n = 2)"


def test_t_interval_stays_in_range() -> None:
    found = estimate([Record(seed=seed, stage="s", metric="ASR", value=value) for seed, value in ((0, 1.0), (1, 0.9))])
    assert found.high == 1.0
    assert found.low == pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-5)
    lift = estimate([Record(seed=seed, stage="s", metric="lift", value=value) for seed, value in ((0, -0.1), (1, 0.1))])
    assert (lift.low, lift.high) == (-1.0, 1.0)
    time = estimate([Record(seed=seed, stage="s", metric="x", value=3.0 + seed, unit="s") for seed in (0, 1)])
    assert time.high == pytest.approx(3.5 + 12.7062 * 0.5, abs=1e-4)


def test_rows_join_what_holds_for_them() -> None:
    """Clean accuracy names neither target nor attack, and still stands in the row of each."""
    rows = summary_rows(made_up())
    assert [(row.task, row.target, row.head, row.primary) for row in rows] == [
        (task, target, head, head == "mlp") for head in HEADS for task, target in TARGETS.items()
    ]
    for row in rows:
        shift = SHIFTS[row.task or ""] - 0.02 * (row.head == "linear") + 0.005
        expected = {name: value + shift for name, value in RATES.items()} | {"lift": 0.943}
        assert list(row.estimates) == list(means.METRICS)
        assert {name: item.value for name, item in row.estimates.items()} == pytest.approx(expected)


def test_the_closest_record_wins() -> None:
    """A varied setting uses its own accuracy where it has one, and the shared baseline where it has not."""
    place: dict[str, Any] = {"seed": 0, "stage": "s", "task": "a", "head": "mlp"}
    records = (
        Record(**place, metric="CA", value=0.9),
        Record(**place, metric="BA", value=0.8, target="t"),
        Record(**place, metric="ASR", value=0.5, target="t"),
        Record(**place, metric="BA", value=0.7, target="t", condition={"trigger.size": [2, 2]}),
        Record(**place, metric="ASR", value=0.3, target="t", condition={"trigger.size": [2, 2]}),
    )
    rows = summary_rows(replace(made_up(), records=records))
    assert [{name: item.value for name, item in row.estimates.items()} for row in rows] == [
        {"CA": 0.9, "BA": 0.8, "ASR": 0.5},
        {"CA": 0.9, "BA": 0.7, "ASR": 0.3},
    ]


def test_sentences() -> None:
    assert summary_sentences(made_up(seeds=(0,)))[0] == (
        "On signs, 98.3 % of triggered images that are not of the target class are classified as “priority” by the "
        "classifier built on the backdoored encoder; with the clean encoder 4.0 % are. Accuracy on clean images "
        "changes by −0.4 points, from 85.1 to 84.7 %."
    )
    assert summary_sentences(ablation()) == [
        "On signs, 38.3 to 98.3 % of triggered images that are not of the target class are classified as “priority”, "
        "depending on trigger.size (3 settings)."
    ]


def test_clean_scenario_has_a_row_and_a_sentence() -> None:
    results = replace(made_up(), records=(Record(seed=0, stage="s", task="signs", head="mlp", metric="CA", value=0.9),))
    (row,) = summary_rows(results)
    assert (row.target, list(row.estimates)) == (None, ["CA"])
    assert summary_sentences(results) == ["On signs, 90.0 % of clean images are classified correctly."]
    assert "90.0" in render(results)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.number(-0.00001), "0.0"),
        (text.number(-0.004, signed=True), "−0.4"),
        (text.number(0.5, signed=True), "+50.0"),
        (text.number(12.34567, unit="s"), "12.35"),
        (text.span(-0.031, 0.042, signed=True), "−3.1…+4.2"),
        (text.span(None, 0.2), ""),
        (text.duration(0.42), "0.42 s"),
        (text.duration(59.97), "1 min 0 s"),
        (text.duration(7500), "2 h 5 min"),
        (text.plain([1, None, True]), "1, –, yes"),
    ],
)
def test_text(shown: str, expected: str) -> None:
    assert shown == expected


def test_setting_is_valid_toml() -> None:
    scenario = {
        "name": 'a "b" \\ c\nd',
        "gone": None,
        "seeds": [0, 1],
        "attack": {"lambda1": 0.5, "inner": {"odd key": True}},
        "target": [{"name": "x", "trigger": {"size": 5, "gone": None}}, {"name": "y", "tags": [], "more": {}}],
    }
    without_null = {key: value for key, value in scenario.items() if value is not None}
    without_null["target"] = [{"name": "x", "trigger": {"size": 5}}, {"name": "y", "tags": [], "more": {}}]
    assert tomllib.loads(text.toml(scenario)) == without_null


# The page


class Checker(HTMLParser):
    """Fails on tags that do not nest, and gathers what a page could fetch or run."""

    VOID = frozenset({"meta", "img", "br", "hr", "input", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object"), tag
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    for reference in checker.references:
        assert reference.startswith("data:image/png;base64,") or reference.removeprefix("#") in checker.ids
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", page)
    return checker


@pytest.mark.parametrize("results", [made_up(), made_up(seeds=(0,)), ablation()], ids=["seeds", "seed", "ablation"])
def test_page_is_well_formed_and_closed(results: Results) -> None:
    check(render(results))


def test_page_holds_every_number_of_the_table(page: str) -> None:
    results = made_up()
    cells = re.findall(r"<td class=\"number.*?</td>", page, flags=re.DOTALL)
    shown = [re.findall(r">([^<>]+)</(?:b|small)>", cell) for cell in cells if "data-label" in cell]
    expected = [[item.number, item.span] for row in summary_rows(results) for item in row.estimates.values()]
    assert shown == expected


def test_page_shows_what_was_handed_in(page: str) -> None:
    results = made_up()
    checker = check(page)
    words = " ".join(checker.text)
    shown = [results.command, *results.flags, "BACKDOORED", "nearest to the class mean", "2.12.0", "32 × 32"]
    for expected in [*shown, *summary_sentences(results), "41.2", "4022"]:
        assert expected in words, expected
    assert words.count("BACKDOORED") == 2
    assert sum(reference.startswith("data:") for reference in checker.references) == len(results.pictures)


def test_names_are_escaped() -> None:
    """Whatever a task, class, head, caption, key or file is called, it is text."""
    names = (f"pre{NASTY}", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "$\\frac{1}{$", "標識 & co")
    for name in names:
        results = made_up(seeds=(0,))
        hostile = replace(
            results,
            scenario={**results.scenario, "name": name, name: name, "primary_head": name},
            environment={name: {name: name}},
            command=name,
            records=tuple(record for value in (1, 2) for record in measured(0, name, name, condition={name: value}))
            + tuple(measured(0, "signs", name)),
            artifacts=(Artifact(subject=name, state="clean", seed=0, path=name, sha256=name),),
            datasets=({"name": name, name: name, "classes": [name, name]},),
            references=({"task": "signs", "target": "priority", "class": name, "label": 0},),
            curves=(Curve(seed=0, stage=name, series={name: [1.0, 2.0]}),),
            maps=(replace(results.maps[0], subject=name),),
            pictures=(Picture(task=name, target=name, role=name, caption=name, png=f'"{name}'),),
            timings=({"stage": name, "seconds": 1.0},),
            flags=(name,),
        )
        page = render(hostile)
        assert "<script" not in page
        assert "<img src=x" not in page
        assert escape(name, quote=True) in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    empty = Results(scenario={}, environment={}, command="", records=())
    write_report(empty, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    check(page)
    assert "<section" not in page


@pytest.mark.parametrize(
    "part", ["artifacts", "datasets", "references", "curves", "maps", "pictures", "timings", "flags"]
)
def test_each_part_may_be_missing(part: str) -> None:
    brief = replace(made_up(seeds=(0,)), maps=made_up().maps[:1], curves=made_up().curves[:1])
    nothing: dict[str, Any] = {part: ()}
    check(render(replace(brief, **nothing)))


def test_same_results_give_the_same_bytes(page: str) -> None:
    assert render(made_up()) == page


def test_defenses_are_listed() -> None:
    extra = Record(seed=0, stage="d", metric="detection_accuracy", defense="mntd", value=0.515, unit="fraction")
    seconds = Record(seed=0, stage="d", metric="cost", defense="mntd", value=3.5, unit="s", task="signs")
    page = render(replace(made_up(), records=(*made_up().records, extra, seconds)))
    words = " ".join(check(page).text)
    assert "Other measurements" in words
    assert "51.5 %" in words
    assert "3.5 s" in words
    assert len(summary_rows(made_up())) == page.count('class="place"')


def test_ablation_has_a_drawing_of_numeric_conditions_only() -> None:
    assert "against trigger.size" in render(ablation())
    words = tuple(
        replace(record, condition={"drop": f"term {record.condition['trigger.size']}"}) for record in ablation().records
    )
    page = render(replace(ablation(), records=words))
    assert "against" not in page
    assert "term 5" in page


def test_unwritable_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(SapperError, match="cannot write"):
        write_report(ablation(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# In a real browser

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--v=0"),
]


def browse(folder: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def framed(page: str, width: int, height: int) -> str:
    """The page in a frame of that width, for browsers do not open windows as narrow as a phone.

    The script stands outside the frame: the page itself allows none.
    """
    return f"""<!doctype html><body style="margin: 0"><iframe srcdoc="{escape(page)}"
        style="border: 0; width: {width}px; height: {height}px"></iframe><script>
        const frame = document.querySelector("iframe");
        frame.onload = () => {{ document.body.dataset.width = frame.contentDocument.documentElement.scrollWidth; }};
        </script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
@pytest.mark.parametrize(
    ("results", "width"),
    [(made_up(), 1280), (made_up(), 390), (ablation(), 390), (long_names(), 390)],
    ids=["desktop", "phone", "phone-ablation", "phone-long-names"],
)
def test_browser_shows_it_without_complaint(tmp_path: Path, results: Results, width: int) -> None:
    page, picture = tmp_path / "page.html", tmp_path / f"{width}.png"
    page.write_text(framed(render(results), width, 1200), encoding="utf-8")
    seen = browse(tmp_path, page, "--dump-dom", f"--screenshot={picture}", f"--window-size={max(width, 600)},1200")
    assert "CONSOLE" not in seen.stderr
    found = re.search(r'data-width="(\d+)"', seen.stdout)
    assert found, seen.stderr
    assert int(found[1]) <= width, "the page is wider than its window"
    shades = np.asarray(Image.open(picture).convert("L"))[:, :width]
    assert shades.std() > 5, "the page is blank"


@pytest.mark.parametrize("results", [made_up(), ablation()])
def test_markdown_has_every_number_and_the_command(results: Results) -> None:
    written = markdown.render(results)
    for row in summary_rows(results):
        assert all(item.number in written for item in row.estimates.values())
    assert results.command in written
    lines = [line for line in written.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1, "every row has as many cells"


def test_an_axis_of_small_numbers_has_labels_that_differ() -> None:
    drawing = figures.scores(
        {"clean": [-0.0061, -0.0012], "backdoored": [0.0043]}, {"clean": "c0", "backdoored": "alarm"}, 0.0, "s"
    )
    labels = re.findall(r">([−-]?\d[\d.]*)<", str(drawing))
    assert len(labels) >= 3
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("several", [False, True])
def test_classes_have_names_where_a_task_of_one_attack_has_a_name_of_its_own(several: bool) -> None:
    results = made_up()
    attack = {"method": "ctrl", "instead": {"task": [{"name": "gray digits", "dataset": "digits", "gray": True}]}}
    shown = tuple(replace(item, task="gray digits") for item in results.maps if item.task == "digits")
    scenario = results.scenario | {"attack": [{"method": "badencoder"}, attack] if several else attack}
    drawn = sections.maps(replace(results, maps=shown, scenario=scenario))
    assert drawn is not None
    assert {f"digits class {i}" for i in range(1, 10)} <= {key.name for key in drawn.groups[0].keys}
