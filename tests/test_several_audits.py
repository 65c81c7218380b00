"""Audits in people's hands: many files at once, a notebook, a model's card, and a workflow of GitHub's."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from sapper import api, encoders, formats, opening
from sapper.audits.found import AuditReport
from sapper.errors import SapperError
from sapper.report import model_card, several
from sapper.report.audit import WORDS
from sapper.report.notebook import ShownReport
from sapper.running import Run
from tests.micro import write_data
from tests.program import Sapper, told
from tests.test_audit_command import FILES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, two encoders, and a file that is none."""
    folder = tmp_path_factory.mktemp("several")
    write_data(folder)
    for name, seed in (("first", 1), ("second", 2)):
        encoder = encoders.build(Run(seed=seed), architecture="resnet10", width=4, input_size=16)
        encoders.save(encoder, folder / f"{name}.safetensors")
    torch.save({"weight": torch.ones(2)}, folder / "broken.pth")
    return folder


@pytest.fixture(scope="module")
def report(place: Path) -> AuditReport:
    return api.audit(place / "first.safetensors", opening.load_images(place / "photos", 16), budget="quick")


# many at once


def test_many_encoders_have_a_folder_each_and_one_table(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    names = [place / f"{name}.safetensors" for name in ("first", "second")]
    out = tmp_path / "out"
    how = ("--images", place / "photos", "--device", "cpu", "--out", out)
    end = sapper("audit", names[0], place / "broken.pth", names[1], *how)
    assert end.code == 2  # one could not be audited
    assert "no backbone that is known" in end.err
    assert {path.name for path in out.iterdir()} == {"first", "second", "audits.html", "audits.json"}
    table = json.loads((out / "audits.json").read_text())["audits"]
    assert [row["verdict"] for row in table] == ["undecided", "not-done", "undecided"]
    for row in (table[0], table[2]):
        assert {path.name for path in (out / row["folder"]).iterdir()} == FILES
        own = json.loads((out / row["folder"] / "audit.json").read_text())
        assert own["encoder"]["sha256"] == row["sha256"]
        assert own["detectors"][0]["score"] == row["score"]
    html = (out / "audits.html").read_text()
    assert "Remedy: " in table[1]["reason"]
    assert 'href="first/audit.html"' in html
    assert "no backbone that is known" in html
    assert end.out.splitlines()[-1] == f"all of them: {out / 'audits.html'}"


def test_an_audit_of_one_leaves_the_same_as_beside_others(
    sapper: Sapper, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "measurable", lambda _device: False)  # else a busy machine may choose another format
    how = ("--images", place / "photos", "--device", "cpu")
    both = [place / "first.safetensors", place / "second.safetensors"]
    assert sapper("audit", *both, *how, "--out", tmp_path / "both").code == 3
    assert sapper("audit", both[1], *how, "--out", tmp_path / "one").code == 3

    def found(folder: Path) -> Any:
        content = json.loads((folder / "audit.json").read_text())
        return [{key: each[key] for key in ("score", "evidence", "collapse")} for each in content["detectors"]]

    assert found(tmp_path / "both" / "second") == found(tmp_path / "one")


def test_mistakes_among_many_are_told_before_the_first_is_opened(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    how = ("--images", place / "photos", "--device", "cpu", "--out", tmp_path / "out")
    first = place / "first.safetensors"
    assert "no such file" in told(sapper("audit", first, place / "absent.pth", *how))
    assert "named twice" in told(sapper("audit", first, first, *how))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("verdicts", "fail_on", "code"),
    [
        (["no-evidence", "no-evidence"], "undecided", 0),
        (["no-evidence", "undecided"], "undecided", 3),
        (["no-evidence", "undecided"], "backdoor", 0),
        (["undecided", "backdoor"], "undecided", 1),
        (["backdoor", "not-done"], "undecided", 1),
        (["undecided", "not-done"], "undecided", 2),
    ],
)
def test_the_worst_tells_how_it_ends(
    sapper: Sapper,
    place: Path,
    tmp_path: Path,
    report: AuditReport,
    monkeypatch: pytest.MonkeyPatch,
    verdicts: list[str],
    fail_on: str,
    code: int,
) -> None:
    """With verdicts that are put into the place of those that audits would give."""
    left = iter(verdicts)

    def verdict(*_words: Any, **_more: Any) -> AuditReport:
        word = next(left)
        if word == "not-done":
            raise SapperError("it could not be done")
        return replace(report, verdict=word)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "audit", verdict)
    names = [place / f"{name}.safetensors" for name in ("first", "second")]
    end = sapper("audit", *names, "--images", place / "photos", "--fail-on", fail_on, "--out", tmp_path)
    assert end.code == code, end.err


def test_what_is_finished_is_in_the_table_whatever_stops_the_rest(
    sapper: Sapper, place: Path, tmp_path: Path, report: AuditReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def verdict(*_words: Any, **_more: Any) -> AuditReport:
        if done:
            raise RuntimeError("a fault")
        done.append(1)
        return report

    monkeypatch.setattr(api, "audit", verdict)
    names = [place / f"{name}.safetensors" for name in ("first", "second")]
    end = sapper("audit", *names, "--images", place / "photos", "--out", tmp_path)
    assert end.code == 2
    assert "this is a fault in sapper" in end.err
    table = json.loads((tmp_path / "audits.json").read_text())["audits"]
    assert [row["verdict"] for row in table] == [report.verdict]


def test_names_of_folders_do_not_collide(sapper: Sapper, place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "first.safetensors").write_bytes((place / "second.safetensors").read_bytes())
    both = (place / "first.safetensors", other / "first.safetensors")
    assert sapper("audit", *both, "--images", place / "photos", "--out", tmp_path / "out").code == 3
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"first", "first-2"}


def test_a_refusal_names_its_key_and_not_the_encoder_again() -> None:
    for where, reason in (
        ("x.pth", "what. Remedy: do."),
        ("x.pth: --keys", "--keys: what. Remedy: do."),
        ("y", "y: what. Remedy: do."),
        (None, "what. Remedy: do."),
    ):
        error = SapperError("what", where=where, remedy="do")
        assert several.Row.refused("x.pth", error).reason == reason


def test_names_are_only_text_on_the_page() -> None:
    row = several.Row(encoder="<script>x</script>.pth", verdict="not-done", reason="<b>no</b>")
    html = several.render([row], {}, "sapper audit")
    assert "<script>" not in html
    assert "<b>no" not in html


# a notebook


def test_a_notebook_shows_the_report(report: AuditReport) -> None:
    assert isinstance(report, ShownReport)
    html = report._repr_html_()
    assert WORDS[report.verdict] in html
    assert html.count("data:image/png;base64,") == 2 * len(report.shown)
    assert "<script" not in html
    assert "<style" not in html
    assert str(report).splitlines()[0] == f"{WORDS[report.verdict]}. {report.reason}"


def test_names_of_tensors_do_not_reach_the_terminal_as_they_are(report: AuditReport) -> None:
    odd = ShownReport.of(replace(report, encoder={**report.encoder, "left_out": ["\x1b[2Jx\nNo evidence"]}))
    assert "\x1b" not in str(odd)
    assert not any(line.startswith("No evidence") for line in str(odd).splitlines()[1:])


def test_a_notebook_gets_text_from_outside_as_text(report: AuditReport) -> None:
    named = ShownReport.of(replace(report, encoder={**report.encoder, "opened": "<img src=x onerror=alert(1)>"}))
    assert "<img src=x" not in named._repr_html_()


# a model's card


def test_the_card_is_in_the_hubs_form(report: AuditReport, tmp_path: Path) -> None:
    """Read by the Hub's own library, as what it would show."""
    path = tmp_path / "README.md"
    path.write_text(model_card.render(replace(report, p_value=0.25), "sapper audit x.pth"))
    card = ModelCard.load(path)
    name, results = model_index_to_eval_results(yaml.safe_load(path.read_text().split("---\n")[1])["model-index"])
    assert card.data.eval_results is not None
    assert name == report.encoder["opened"]
    by_type = {each.metric_type: each for each in results if isinstance(each, EvalResult)}
    assert by_type["verdict"].metric_value == report.verdict
    assert by_type["p_value"].metric_value == 0.25
    assert by_type["score"].metric_value == report.leading.score
    assert by_type["score"].dataset_revision == report.images["sha256"]
    assert f"**{WORDS[report.verdict]}.**" in card.text


@pytest.mark.parametrize("name", ['a"b: c\n- d', "---", "# x", "{a: *b}", "\u2028x"])
def test_no_name_breaks_out_of_the_card(report: AuditReport, name: str) -> None:
    odd = replace(report, encoder={**report.encoder, "opened": name, "file": f"[{name}](x)|<b>"})
    text = model_card.render(odd, f"sapper audit {name}")
    metadata = yaml.safe_load(io.StringIO(text.split("\n---\n")[0].removeprefix("---\n")))
    assert metadata["model-index"][0]["name"] == name
    assert set(metadata) == {"model-index"}
    assert "\\[" in text
    assert "<b>" not in text.replace("\\<b", "")


# a workflow


def action() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return content


def test_the_action_uses_all_of_its_inputs_and_runs_none_of_them() -> None:
    content = action()
    text = json.dumps(content["runs"])
    for name in content["inputs"]:
        assert f"inputs.{name}" in text, name
    for step in content["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an input would be text of a script"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="bash is needed")
def test_the_action_audits(place: Path, tmp_path: Path) -> None:
    """Its own script, with the variables that GitHub would set."""
    step = next(each for each in action()["runs"]["steps"] if each.get("id") == "audit")
    words = {
        "encoder": f"{place / 'first.safetensors'}\n  {place / 'second.safetensors'}\n",
        "images": str(place / "photos"),
        "fail-on": "backdoor",
        "options": "--device=cpu\n--threads=1\n",
        "out": str(tmp_path / "out"),
    }
    values = {name: str(each.get("default", "")) for name, each in action()["inputs"].items()} | words
    given = {}
    for variable, expression in step["env"].items():
        given[variable] = values[expression.removeprefix("${{ inputs.").removesuffix(" }}")]
    output, summary = tmp_path / "output", tmp_path / "summary"
    surroundings = {
        **os.environ,
        **given,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    bash = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
    ended = subprocess.run(bash, env=surroundings, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert output.read_text() == "code=0\n"
    assert summary.read_text().count("## Backdoor audit") == 2
    assert "model-index" not in summary.read_text()
    odd = surroundings | {"FAIL_ON": "undecided", "ENCODERS": "--help"}
    failing = subprocess.run(bash, env=odd, capture_output=True, text=True)
    assert failing.returncode == 2
    assert "no such file" in failing.stderr
