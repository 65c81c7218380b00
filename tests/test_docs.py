"""What the pages show is what the committed JSON says, and their links lead somewhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from docs import brief_search, keep, keep_zoo, tables
from docs.__main__ import REPOSITORY, main, pages, written
from sapper.audits.families import Family, FamilyBag, write_families
from sapper.errors import SapperError
from sapper.experiment.results import read_results, write_results
from sapper.report import markdown
from tests.test_report import made_up

PAGES = pages()
DATA = sorted((REPOSITORY / "docs" / "results" / "data").glob("*.json"))


def table(folder: Path, records: list[dict[str, Any]], **spec: Any) -> list[list[str]]:
    """The cells of the table that is made of these records."""
    (folder / "records.json").write_text(json.dumps(records), encoding="utf-8")
    shown = tables.of_records(tables.RecordTable.model_validate({"from": "records.json"} | spec), folder)
    return [line.strip("| ").split(" | ") for line in shown.splitlines() if line.startswith("| ")]


def page(folder: Path, text: str) -> Path:
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "README.md").write_text("# Nothing to show\n", encoding="utf-8")
    path = folder / "docs" / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(REPOSITORY)) for path in PAGES])
def test_a_page_shows_what_the_json_says(path: Path) -> None:
    assert written(path) == path.read_text(encoding="utf-8"), "run make docs"


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(REPOSITORY)) for path in PAGES])
def test_a_page_is_read_in_two_screens(path: Path) -> None:
    """At most 100 lines besides comments and empty ones; the list of all methods may be as long as it is."""
    shown = re.sub("<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert path.name == "methods.md" or sum(bool(line.strip()) for line in shown.splitlines()) <= 100


def test_every_kept_file_is_shown_by_a_page() -> None:
    words = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert [path.name for path in DATA if f"data/{path.name}" not in words] == []


def test_seeds_become_a_mean_with_students_t(tmp_path: Path) -> None:
    records = [{"method": "moco", "seed": seed, "loss": loss} for seed, loss in enumerate((1.0, 2.0, 3.0))]
    # mean 2, deviation 1, t = 4.3027 for two degrees of freedom: 2 ± 4.3027 / √3
    assert table(tmp_path, records, rows=["method"], columns=["loss"])[1:] == [
        ["moco", "2<br><sub>−0.4841…4.484</sub>"]
    ]


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True))
def test_the_interval_over_seeds_is_scipys_cut_to_a_rate(values: list[float], tmp_path_factory: Any) -> None:
    records = [{"seed": seed, "metric": "CA", "value": value, "unit": "fraction"} for seed, value in enumerate(values)]
    mean, half = sum(values) / len(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    figure = table(tmp_path_factory.mktemp("t"), records, rows=["metric"], columns=["value"])[1][1]
    found = [float(number) / 100 for number in re.findall(r"[\d.]+(?=<|…)", figure)]
    assert found == pytest.approx([mean, max(0.0, mean - half), min(1.0, mean + half)], abs=0.00051)


def test_one_record_keeps_its_own_interval(tmp_path: Path) -> None:
    records = [
        {"row": 1, "CA": {"value": 0.586, "low": 0.577, "high": 0.594}},
        {"row": 2, "CA": {"found": 87, "of": 90, "low": 0.906, "high": 0.993}},
        {"row": 3, "CA": {"value": 0.49, "sd": 0.155}},
        {"row": 4, "CA": 0.5, "CA_low": 0.25, "CA_high": 0.75},
        {"row": 5, "other": "word"},
    ]
    shown = table(tmp_path, records, rows=["row"], columns=["CA", "other"], format="%")
    assert shown == [
        ["row", "CA", "other"],
        ["1", "58.6<br><sub>57.7…59.4</sub>", "–"],
        ["2", "87 of 90: 96.7<br><sub>90.6…99.3</sub>", "–"],
        ["3", "49.0 ± 15.5", "–"],
        ["4", "50.0<br><sub>25.0…75.0</sub>", "–"],
        ["5", "–", "word"],
    ]


def test_records_of_one_metric_each_become_columns(tmp_path: Path) -> None:
    records = [
        {"seed": 0, "patch": 1, "metric": metric, "value": value, "low": 0.1, "high": 0.9, "unit": unit}
        | {"condition": {"patch": 2}}
        for metric, value, unit in (("CA", 0.25, "fraction"), ("lift", -0.2, "fraction"), ("time", 90.0, "s"))
    ]
    columns = [
        {"where": {"metric": "CA"}, "name": "CA"},
        {"where": {"metric": "lift"}, "name": "lift", "format": "+%"},
        {"where": {"metric": ["time"]}, "name": "time", "format": "s"},
        {"where": {"metric": "time"}, "name": "rounded", "format": ",.0f"},
    ]
    shown = table(tmp_path, records, rows=["patch"], columns=columns)
    assert [cell.partition("<")[0] for cell in shown[1]] == ["2", "25.0", "−20.0", "1 min 30 s", "90"]


def test_records_that_nothing_tells_apart_are_not_averaged(tmp_path: Path) -> None:
    records = [{"method": "moco", "seed": 0, "CA": 0.1}, {"method": "byol", "seed": 0, "CA": 0.3}]
    with pytest.raises(SapperError, match="2 records with the same seed"):
        table(tmp_path, records, rows=["seed"], columns=["CA"])
    with pytest.raises(SapperError, match="no record"):
        table(tmp_path, records, rows=["method"], columns=["CA"], where={"method": "clip"})


def test_where_the_figures_come_from_stands_below(tmp_path: Path) -> None:
    records = [{"row": row, "CA": 0.5, "source": "measured once"} for row in (1, 2)]
    (tmp_path / "records.json").write_text(json.dumps(records), encoding="utf-8")
    spec = tables.RecordTable.model_validate({"from": "records.json", "rows": ["row"], "columns": ["CA"]})
    assert tables.of_records(spec, tmp_path).endswith("\n\nMeasured once.")


def test_bags_are_told_by_their_scores(tmp_path: Path) -> None:
    bag = {"name": "b", "scores": {"multi_prior": [0.5, -1.0, 2.0]}, "gathered": {"multi_prior": [0.1, 1.0, 0.3]}}
    (tmp_path / "b.json").write_text(json.dumps(bag), encoding="utf-8")
    assert tables.of_bags(tmp_path).splitlines()[-1] == "| b | 3 | 0.50 | 0.50 | 2.00 | 30% | 100% |"


def test_a_stale_page_fails_the_check_until_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'text = "{n} found."\nfigures.n = { from = "f.json", value = "n" }'
    path = page(tmp_path, f"Before.\n\n<!-- text\n{text}\n-->\n<!-- end -->\nAfter.\n")
    (tmp_path / "docs" / "f.json").write_text('[{"n": 3}]', encoding="utf-8")
    assert main(["--check"], tmp_path) == 1
    assert "docs/page.md: not what its data say" in capsys.readouterr().out
    assert "found" not in path.read_text(encoding="utf-8").replace(text, "")
    assert main([], tmp_path) == 0
    assert path.read_text(encoding="utf-8").endswith("-->\n\n3 found.\n\n<!-- end -->\nAfter.\n")
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "docs" / "f.json").write_text('[{"n": 4}]', encoding="utf-8")
    assert main(["--check"], tmp_path) == 1


def test_kept_results_are_shown_as_the_report_prints_them(tmp_path: Path) -> None:
    kept = REPOSITORY / "docs" / "results" / "data" / "ablation-references-small.json"
    path = page(tmp_path, f"<!-- results {kept} -->\n<!-- end -->\n")
    assert markdown.render(read_results(kept)).strip() in written(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bags b -->\n\nno end\n", "no <!-- end -->"),
        ("<!-- bags b -->\n<!-- bags b -->\n<!-- end -->\n", "no <!-- end -->"),
        ("<!-- matrix a.json rows -->\n<!-- end -->\n", "no part 'rows'"),
        ('<!-- table\nfrom = "a.json"\nrows = []\ncolumns = []\ncolour = 1\n-->\n<!-- end -->\n', "colour"),
        ("<!-- text\ntext = '{n}'\nfigures = {}\n-->\n<!-- end -->\n", "names the figure 'n'"),
        ("<!-- table\nfrom = \n-->\n<!-- end -->\n", "Invalid value"),
        ('<!-- table\nfrom = "a.json"\nrows = []\ncolumns = []\n-->\n<!-- end -->\n', "cannot be read"),
    ],
)
def test_a_block_that_cannot_be_made_says_where_it_is(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SapperError) as caught:
        written(page(tmp_path, f"# Page\n{text}"))
    assert message in str(caught.value)
    assert "page.md: line 2" in str(caught.value)


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    words = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", words, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", title).lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(REPOSITORY)) for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"https?:|mailto:", link):
            continue
        place, _, anchor = link.partition("#")
        goal = (path.parent / place).resolve() if place else path
        assert goal.exists(), link
        assert not anchor or anchor in headings(goal), link


def test_what_pages_show_is_kept_of_a_run(tmp_path: Path) -> None:
    run = write_results(made_up(), tmp_path / "run").parent
    assert keep.main([str(run), str(tmp_path / "all.json"), "sapper run micro"]) == 0
    whole, before = read_results(tmp_path / "all.json"), read_results(run)
    assert (whole.records, whole.command) == (before.records, "sapper run micro")
    assert before.curves
    assert (whole.curves, whole.pictures) == ((), ())
    assert len(whole.verdicts) == len(before.verdicts)
    keep.main([str(run), str(tmp_path / "some.json"), "sapper run micro", "--metrics", "BA"])
    assert {record.metric for record in read_results(tmp_path / "some.json").records} == {"BA"}
    with pytest.raises(SapperError, match="nothing is told of 'BB'"):
        keep.main([str(run), str(tmp_path / "none.json"), "sapper run micro", "--metrics", "BB"])
    assert not (tmp_path / "none.json").exists()


def zoo_member(
    name: str, family: str, score: float | None, powers: float, asr: float | None = None
) -> dict[str, object]:
    """As ``sapper zoo score`` writes it."""
    member = {"name": name, "family": family, "part": "judgement", "state": "clean" if asr is None else "attacked"}
    evidence = (
        {}
        if score is None
        else {
            "priors": {
                "patch": {"powers": powers, "beside": {"twin 0": 0.0}, "score": powers - 1, "spread": 0.1},
                "to a cluster": {"powers": 7.0, "beside": {"twin 0": 2.0}, "score": powers - 2, "share": 0.9},
            }
        }
    )
    return {
        "member": member | {"about": {"metrics": {"ASR_strict": asr}} if asr is not None else {}},
        "scores": {"twins": score},
        "flagged": {"twins": score is not None and score > 0.5},
        "evidence": {"twins": evidence},
    }


def zoo_scores(members: list[dict[str, object]], path: Path, budget: str = "quick") -> str:
    made = {"torch": "2", "device": "cpu", "number format": "float32", "cores": "2"}
    path.write_text(json.dumps({"members": members, "budget": budget, "environment": made}))
    return str(path)


def test_scores_of_a_zoo_are_kept_by_family_and_together(tmp_path: Path) -> None:
    """AUC, largest and median by hand; what does not work, and what has no score, does not count."""
    members = [
        *(zoo_member("a0", "a", 1.0, 5.0), zoo_member("a1", "a", 2.0, 1.0)),
        *(zoo_member("a2", "a", 3.0, 2.0, 0.9), zoo_member("a3", "a", 1.5, 9.0, 0.6)),
        *(zoo_member("b0", "b", 0.0, 0.0), zoo_member("b1", "b", None, 0.0), zoo_member("b2", "b", 9.0, 9.0, 0.1)),
    ]
    scores, file = zoo_scores(members, tmp_path / "scores.json"), tmp_path / "kept.json"
    assert keep_zoo.main([scores, str(file), "sapper zoo score"]) == 0
    rows = {(row["statistic"], row["family"]): row for row in json.loads(file.read_text())["records"]}
    assert len(rows) == 12
    own = rows["twins", "a"]
    assert (own["clean"], own["working"], own["clean_largest"], own["working_median"]) == (2, 2, 2.0, 2.25)
    assert own["AUC"]["value"] == 0.75
    assert own["beyond"] == {"found": 1, "of": 2}
    assert "found" not in own
    together = rows["twins", "all"]
    assert (together["clean"], together["working"], together["without a score"]) == (3, 2, 1)
    assert rows["the search of twins alone", "a"]["AUC"]["value"] == 0.75
    assert rows["the search of twins alone", "a"]["clean_largest"] == 5.0
    assert rows["twins by the spread", "a"]["clean_largest"] == 4.0
    assert rows["twins by clusters", "a"]["clean_largest"] == 3.0
    assert "AUC" not in rows["twins", "b"]


def test_a_bag_over_families_decides_and_portions_come_together(tmp_path: Path) -> None:
    """Of 19 families the largest is 2: beyond it p is 1/20, below it 19/20. What is not flagged is not found."""
    bag, file = tmp_path / "bag.json", tmp_path / "kept.json"
    known = [Family(name=f"f{number}", about="x", scores=[2.0 if number else 0.0]) for number in range(19)]
    write_families(FamilyBag(name="known", detector="twins", parameters={}, images=8, families=known), bag)
    weak = zoo_member("a2-b", "a", 4.0, 2.0, 0.6) | {"flagged": {"twins": False}}
    first = [zoo_member("a0", "a", 2.5, 2.5), zoo_member("a0-b", "a", 1.9, 2.0, 0.9)]
    second = [zoo_member("a1", "a", 0.1, 2.5), zoo_member("a1-b", "a", 3.0, 2.0, 0.6), weak, first[0]]

    def keep_of(members: list[dict[str, object]], **change: str) -> int:
        told = zoo_scores(members, tmp_path / "scores.json", **change)
        return keep_zoo.main([told, str(file), "sapper zoo score", "--among", str(bag)])

    for scores in (first, second):
        assert keep_of(scores) == 0
    kept = json.loads(file.read_text())
    assert {each["name"] for each in kept["members"]} == {"a0", "a0-b", "a1", "a1-b", "a2-b"}
    row = next(row for row in kept["records"] if (row["statistic"], row["family"]) == ("twins", "all"))
    assert row["false alarms"] == {"found": 1, "of": 2}
    assert row["found"] == {"found": 1, "of": 3}
    later = zoo_member("a9", "a", 0.0, 0.0)
    with pytest.raises(SapperError, match="differ in budget"):
        keep_of([later], budget="standard")
    with pytest.raises(SapperError, match="scored by different detectors"):
        keep_of([later | {"scores": {"decree": 0.0}}])
    with pytest.raises(SapperError, match="known has families that are judged: f3"):
        keep_of([zoo_member("a9", "f3", 0.0, 0.0)])
    assert json.loads(file.read_text()) == kept
    file.write_text("[]")
    with pytest.raises(SapperError, match="it has no members"):
        keep_of(first)


def test_two_searches_are_compared_by_the_larger_drop_of_each_encoder() -> None:
    """By hand: of two clean encoders one lies above the only backdoored one."""
    seen = [
        {"encoder": "a", "ASR_strict": None, "search": "brief", "powers": [0.1, 0.5], "seconds": 2.0},
        {"encoder": "b", "ASR_strict": None, "search": "brief", "powers": [1.5, 0.2], "seconds": 3.0},
        {"encoder": "c", "ASR_strict": 0.9, "search": "brief", "powers": [1.0, 0.9], "seconds": 4.0},
        {"encoder": "c", "ASR_strict": 0.9, "search": "whole", "powers": [9.0, 0.0], "seconds": 9.0},
    ]
    row = brief_search.row(seen, "brief")
    assert (row["clean_median"], row["working_median"], row["seconds"]) == (1.0, 1.0, 3.0)
    assert (row["clean"], row["working"], row["AUC"]["value"]) == (2, 1, 0.5)
    assert row["AUC"]["low"] < 0.5 < row["AUC"]["high"]
