"""Several attacks in one scenario: each with tables of its own, all beside the same clean encoder."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sapper.cli.experiments import print_results
from sapper.errors import SapperError
from sapper.experiment.results import Results, read_results, write_results
from sapper.report import audited, markdown, render
from sapper.report.summaries import summary_sentences
from sapper.scenario.outline import outline, read_content
from sapper.scenario.reading import Scenario, read
from tests.micro import PLAIN, experiment, perform, write_data

ATTACKS = """
[[attack]]
method = "badencoder"
shadow_images = 48
epochs = 1
batch = 24
reference_views = 2

[[attack]]
method = "badencoder"
name = "strong"
shadow_images = 48
epochs = 2
batch = 24
reference_views = 2

[[attack]]
method = "badnets"
rate = 0.3
instead.head = [{ method = "knn", neighbors = 3 }]

[[target]]
task = "balls"
class = "red"
trigger = { size = 4 }
"""
OTHER_START = """
[[attack]]
name = "elsewhere"
method = "badencoder"
epochs = 1
batch = 24
reference_views = 2
instead.pretraining = { dataset = "DATA/balls", epochs = 1, batch = 30 }

[[attack]]
name = "elsewhere too"
method = "badnets"
rate = 0.2
instead.pretraining = { dataset = "DATA/balls", epochs = 1, batch = 30 }
instead.target = [{ task = "balls", class = "red", trigger = { kind = "filter" } }]
"""
ONE_TASK = PLAIN.replace('[[task]]\ndataset = "{data}/boxes"\n\n', "")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def scenario(data: Path, *overrides: str, more: str = "") -> Scenario:
    extra = ATTACKS + more.replace("DATA", data.as_posix())
    return experiment(data, "pretraining.epochs=1", *overrides, text=ONE_TASK, extra=extra)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("run")
    return perform(scenario(data, more=OTHER_START), folder), folder


# What is read


def test_each_attack_is_a_scenario_of_its_own(data: Path) -> None:
    read = scenario(data, more=OTHER_START)
    names = ["badencoder", "strong", "badnets", "elsewhere", "elsewhere too"]
    assert [single.attack_name for single in read.singles] == names
    assert [single.primary_head for single in read.singles] == ["mlp", "mlp", "knn", "mlp", "mlp"]
    assert [len(single.heads) for single in read.singles] == [2, 2, 1, 2, 2]
    assert [single.pretraining.dataset.rpartition("/")[2] for single in read.singles] == ["photos"] * 3 + ["balls"] * 2
    assert [single.targets[0].trigger.kind for single in read.singles] == ["patch"] * 4 + ["filter"]
    assert all("instead" not in single.content["attack"] for single in read.singles)
    assert read.content["attack"][2]["instead"]["head"][0]["neighbors"] == 3


def test_a_single_attack_may_have_a_name_and_tables_of_its_own(data: Path) -> None:
    extra = '[attack]\nmethod = "badnets"\nname = "mine"\ninstead.head = [{ method = "knn" }]\n'
    target = '[[target]]\ntask = "balls"\nclass = "red"\n'
    (single,) = experiment(data, text=ONE_TASK, extra=extra + target).singles
    assert (single.attack_name, single.primary_head) == ("mine", "knn")


def test_overrides_reach_all_attacks_or_the_one_of_a_number(data: Path) -> None:
    without_badnets = (
        ATTACKS.replace("{{", "{")
        .replace("}}", "}")
        .replace('method = "badnets"\nrate = 0.3', 'method = "badencoder"\nname = "third"')
    )

    def epochs(*overrides: str) -> list[int]:
        read = experiment(data, *overrides, text=ONE_TASK, extra=without_badnets)
        return [single.attack_method.parameters.epochs for single in read.singles if single.attack_method]

    assert epochs("attack.epochs=7") == [7, 7, 7]
    assert epochs("attack.1.epochs=7") == [1, 7, 200]
    read = scenario(data, "attack.2.instead.head.0.neighbors=9")
    assert read.singles[2].primary.parameters.neighbors == 9


def test_torch_is_not_needed_to_know_every_attacks_data_sets(data: Path) -> None:
    scenario(data, more=OTHER_START)
    file = data / "micro.toml"
    sets = outline(read_content(file), str(file)).sets
    assert sets["attack[3].instead.pretraining.dataset"].endswith("balls")
    assert sets["pretraining.dataset"].endswith("photos")
    only = outline(read_content(file, ("only=['elsewhere']",)), str(file)).sets
    assert {name.rpartition("/")[2] for name in only.values()} == {"balls"}


def test_some_of_the_attacks_can_be_chosen(data: Path) -> None:
    assert [each.attack_name for each in scenario(data).chosen] == ["badencoder", "strong", "badnets"]
    read = scenario(data, "only=['badnets', 'badencoder']")
    assert [each.attack_name for each in read.chosen] == ["badencoder", "badnets"]
    assert len(read.singles) == 3


def test_there_is_no_choice_of_one_attack(data: Path) -> None:
    with pytest.raises(SapperError, match="no choice of attacks"):
        experiment(data, "only=['badencoder']")


@pytest.mark.parametrize(
    ("override", "place", "says"),
    [
        ("attack.1.name=badencoder", "attack", "two of them are called 'badencoder'"),
        ("only=['badnet']", "only", "did you mean badnets"),
        ("only=['badnets', 'badnets']", "only", "stands there twice"),
        ("only=[]", "only", "at least 1 item"),
        ("attack.1.name=a/b", "attack[1].name", "fit for a file name"),
        ("attack.1.epochs=0", "attack[1].epochs", "0 does not fit"),
        ("attack.1.epoch=1", "attack[1].epoch", "unknown key"),
        ("attack.1.method=badencode", "attack[1].method", "unknown method"),
        ("attack.1.method=simclr", "attack[1].method", "put it into [pretraining]"),
        ("attack.2.instead.head.0.method=strip", "attack[2].instead.head[0].method", "put it into [[defense]]"),
        ("pretraining.method=badnets", "pretraining.method", "put it into [attack]"),
        ("attack.2.shadow_images=5", "attack[2].shadow_images", "no shadow images"),
        ("attack.1.instead=3", "attack[1].instead", "3 "),
        ("attack.1.instead.seeds=3", "attack[1].instead.seeds", "cannot have 'seeds' instead"),
        ("attack.1.instead.heads=3", "attack[1].instead.heads", "did you mean head"),
        ("attack.1.instead.head=3", "attack[1].instead.head", "3 does not fit"),
        ("attack.2.instead.head.0.neighbors=0", "attack[2].instead.head[0].neighbors", "0 does not fit"),
        ("attack.2.instead.head.0.neighbor=0", "attack[2].instead.head[0].neighbor", "unknown key"),
        ("attack.1.instead.encoder.width=0", "attack[1].instead.encoder.width", "0 does not fit"),
        ('attack.1.instead.head=[{ method = "zero_shot" }]', "attack[1].instead.head[0].method", "needs captions"),
        ("attack.1.instead.target=[]", "attack[1]", "[[target]] is missing"),
        ("task.0.dataset=none", "task[0].dataset", "no data set 'none'"),
        ("attack=[]", "attack", "[] does not fit"),
        ("attack=3", "attack", "3 does not fit"),
        ("attack=[3]", "attack", "does not fit"),
    ],
)
def test_a_mistake_is_told_with_the_key_in_the_file(data: Path, override: str, place: str, says: str) -> None:
    with pytest.raises(SapperError) as caught:
        scenario(data, override)
    assert caught.value.where == f"{data / 'micro.toml'}: {place}"
    assert says in f"{caught.value.what} {caught.value.remedy}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("instead", "table"),
    [
        ('target = [{ task = "balls", class = "blue", name = "balls/red" }]', "target"),
        ('task = [{ dataset = "DATA/boxes", name = "balls" }]', "task"),
    ],
)
def test_one_name_for_two_things_is_refused(data: Path, instead: str, table: str) -> None:
    more = f'[[attack]]\nname = "fourth"\nmethod = "badnets"\ninstead.{instead}\n'
    with pytest.raises(SapperError, match="another attack") as caught:
        scenario(data, more=more)
    assert caught.value.where == f"{data / 'micro.toml'}: attack[3].instead.{table}"


def test_what_does_not_fit_the_data_is_told_with_the_key_in_the_file(data: Path, tmp_path: Path) -> None:
    more = OTHER_START.replace("batch = 30", "batch = 30, images = 61")
    with pytest.raises(SapperError, match="61 images are wanted") as caught:
        perform(scenario(data, more=more), tmp_path)
    assert caught.value.where == f"{data / 'micro.toml'}: attack[3].instead.pretraining.images"


# What is run


def test_the_clean_encoder_and_its_heads_are_made_once(finished: tuple[Results, Path]) -> None:
    results, folder = finished
    works = Counter(path.name.partition("-")[0] for path in (folder / "store").iterdir() if path.is_dir())
    assert works["pretraining"] == 2, "that of photos for three attacks, that of balls for two"
    titles = Counter(item["stage"] for item in results.timings)
    assert titles["pre-training"] == 2
    assert titles["heads on the clean encoder, balls"] == 4, "two starts; knn for badnets; and a filter"
    assert titles["attack on balls (strong)"] == 1


def test_records_say_whose_they_are(finished: tuple[Results, Path]) -> None:
    results, _ = finished
    heads = {"badnets": ["knn"]}
    metrics = ["ASR", "ASR_B", "ASR_B_strict", "ASR_strict", "BA", "CA", "lift"]
    for name in ("badencoder", "strong", "badnets", "elsewhere", "elsewhere too"):
        ours = [record for record in results.records if record.attack == name]
        for head in heads.get(name, ["mlp", "linear"]):
            assert sorted(record.metric for record in ours if record.head == head) == metrics
    models = {model.id: model for model in results.subjects}
    assert len(models) == len(results.subjects) == 7
    assert {model.attack for model in results.subjects if model.state == "attacked"} == {
        *("badencoder", "strong", "badnets", "elsewhere", "elsewhere too")
    }
    assert models["attacked-balls-strong-seed0"].parent == "clean-seed0"
    assert models["attacked-balls-elsewhere too-seed0"].parent == "clean-elsewhere-seed0"
    clean = {(r.attack, r.subject): r.value for r in results.records if (r.metric, r.head) == ("CA", "mlp")}
    assert clean["badencoder", "clean-seed0"] == clean["strong", "clean-seed0"]
    paths = [artifact.path for artifact in results.artifacts]
    assert len(set(paths)) == len(paths) == 5, "two clean encoders, three backdoored ones"


def test_the_accuracy_on_a_task_that_nobody_attacks_says_whose_heads_and_whose_start_it_has(
    data: Path, tmp_path: Path
) -> None:
    extra = _some("strong", "badnets") + OTHER_START.replace("DATA", data.as_posix())
    two = experiment(data, "pretraining.epochs=1", text=PLAIN, extra=extra)
    records = [record for record in perform(two, tmp_path).records if record.task == "boxes"]
    assert {record.metric for record in records} == {"CA"}
    keys = Counter((record.attack, record.head) for record in records)
    assert set(keys.values()) == {1}
    own = {"badnets": ["knn"], "elsewhere": ["linear", "mlp"], "elsewhere too": ["linear", "mlp"]}
    assert sorted(keys, key=str) == sorted(
        [(None, head) for head in ("linear", "mlp")] + [(name, head) for name in own for head in own[name]], key=str
    )


def test_each_attack_gives_what_it_gives_alone(finished: tuple[Results, Path], data: Path, tmp_path: Path) -> None:
    alone = experiment(
        data, "pretraining.epochs=1", text=ONE_TASK, extra=_some("strong").replace("[[attack]]", "[attack]")
    )
    expected = {(r.head, r.metric): r.value for r in perform(alone, tmp_path).records if r.metric != "attack_seconds"}
    ours = [r for r in finished[0].records if r.attack == "strong" and r.metric != "attack_seconds"]
    assert {(r.head, r.metric): r.value for r in ours} == expected


def _some(*words: str) -> str:
    """The attacks whose tables have one of these words, and the target."""
    tables = re.split(r"^(?=\[\[)", ATTACKS, flags=re.MULTILINE)
    return "".join(each for each in tables if each.startswith("[[target") or any(word in each for word in words))


@pytest.mark.slow
def test_attacks_go_with_variants_and_defenses(data: Path, tmp_path: Path) -> None:
    more = """
[[variant]]
"target.trigger.size" = 3
[[variant]]
"target.trigger.size" = 5
[[defense]]
method = "neural_cleanse"
steps = 2
"""
    short = ("pretraining.epochs=1", "head.0.epochs=1", "head.1.iterations=2")
    both = _some("strong", "badnets")
    results = perform(experiment(data, *short, text=ONE_TASK, extra=both + more), tmp_path)
    pairs = {(name, size) for name in ("strong", "badnets") for size in (3, 5)}
    assert {(r.attack, r.condition["target.trigger.size"]) for r in results.records if r.metric == "ASR"} == pairs
    judged = {(v.attack, v.condition["target.trigger.size"], v.state) for v in results.verdicts}
    assert judged == {(*pair, state) for pair in pairs for state in ("clean", "attacked")}
    flagged = {(r.attack, r.condition["target.trigger.size"]) for r in results.records if r.defense == "neural_cleanse"}
    assert flagged == pairs
    page = render(results)
    for name, size in pairs:
        assert f"{name}: neural_cleanse on balls, target.trigger.size = {size}" in page
    shown = Counter((m.attack, m.state) for m in results.maps)
    assert set(shown.values()) == {1}, "maps of the first variant only"


@pytest.mark.slow
def test_every_encoder_is_audited_once_and_attacks_on_tasks_make_none(data: Path, tmp_path: Path) -> None:
    short = ("pretraining.epochs=1", "head.0.epochs=1", "head.1.iterations=2")
    table = f'\n[audit]\nimages = "{data.as_posix()}/balls"\n'
    results = perform(experiment(data, *short, text=ONE_TASK, extra=ATTACKS + table), tmp_path)
    ids = ["clean-seed0", "attacked-balls-badencoder-seed0", "attacked-balls-strong-seed0"]
    assert [(each.subject, each.attack) for each in results.audits] == list(zip(ids, (None, "badencoder", "strong")))
    files = {artifact.subject: artifact.sha256 for artifact in results.artifacts}
    assert {each.subject: each.sha256 for each in results.audits} == files
    assert len({each.sha256 for each in results.audits}) == 3
    titles = Counter(item["stage"] for item in results.timings if item["stage"].startswith("audit"))
    whose = ("clean encoder", "backdoored encoder (badencoder)", "backdoored encoder (strong)")
    assert titles == {f"audit of the {each}": 1 for each in whose}
    planted = {each.attack: [some.target for some in each.stamped if some.by == "attacker"] for each in results.audits}
    assert planted == {None: [], "badencoder": ["balls/red"], "strong": ["balls/red"]}
    told = audited.sentences(results)
    assert len(told) == len(set(told)) == 3
    assert render(results).count("audit of the") >= 3


# What is told


def test_the_report_groups_rows_maps_and_pictures_by_attack(finished: tuple[Results, Path]) -> None:
    results, _ = finished
    page = render(results)
    assert "attacks badencoder, strong, badnets, elsewhere, elsewhere too" in page
    for name, head in (("badencoder", "mlp"), ("strong", "mlp"), ("badnets", "knn")):
        assert page.count(f">{name}. Primary head: {head}<") == 1
        assert f"<h2>{name}: balls → red</h2>" in page
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert "badencoder, strong, badnets: balls → red" in titles, "the same pictures are shown once"
    assert [title for title in titles if title.startswith("strong:")] == ["strong: balls → red"]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "strong: balls → red" in markdown.render(results)
    sentences = {words.partition(":")[0]: words for words in summary_sentences(results)}
    assert "built on the backdoored encoder; with the clean encoder" in sentences["strong"]
    assert "trained on poisoned images; without the attack" in sentences["badnets"]


def test_the_terminal_has_a_table_for_each_attack(
    finished: tuple[Results, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    print_results(finished[0])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("balls → red")] == [
        f"{name}: balls → red" for name in ("badencoder", "strong", "badnets", "elsewhere", "elsewhere too")
    ]


def test_results_are_read_back(finished: tuple[Results, Path], tmp_path: Path) -> None:
    results = replace(finished[0], curves=())
    write_results(results, tmp_path)
    assert read_results(tmp_path).subjects == results.subjects


def test_the_shipped_matrix_has_every_attack_and_three_clean_encoders() -> None:
    from sapper.attacks import METHODS
    from tests.conftest import REPOSITORY

    matrix = read(REPOSITORY / "scenarios" / "matrix-attacks.toml")
    assert {single.attack_method.name for single in matrix.singles if single.attack_method} == set(METHODS)
    starts = {(single.pretraining.dataset, single.pretraining_method.name) for single in matrix.singles}
    assert starts == {("objects", "simclr"), ("signs", "simclr"), ("objects", "clip")}
    tables = {str([single.content.get(table) for table in ("encoder", "pretraining")]) for single in matrix.singles}
    assert len(tables) == 3
