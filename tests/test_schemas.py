"""Results of schema 1 are read as they are meant today."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sapper.errors import SapperError
from sapper.experiment.results import (
    SCHEMA,
    Artifact,
    Audited,
    FeatureMap,
    Judged,
    Model,
    Record,
    Results,
    read_results,
)
from sapper.report import markdown, render

OLD = {"clean": "clean", "attacked": "backdoored"}

POINTS = {role: {"x": [0.0], "y": [1.0], "label": [0.0]} for role in ("clean", "triggered", "reference")}


def results() -> Results:
    """A clean and an attacked encoder for the task "signs", with one of everything that names them."""
    ids = {"clean": "clean-seed0", "attacked": "signs-seed0"}
    common: dict[str, Any] = {"seed": 0, "stage": "s", "value": 0.5, "n": 4, "task": "signs", "attack": "badencoder"}
    flagged = [Record(**common, metric="flagged", defense="d", condition={"state": state}) for state in ids]
    place: dict[str, Any] = {"seed": 0, "task": "signs", "target": "t"}
    judged: dict[str, Any] = {"seed": 0, "defense": "d", "score": 1.0, "threshold": 2.0, "flagged": False}
    return Results(
        scenario={"name": "old", "seeds": [0]},
        environment={},
        command="sapper run old",
        records=(Record(**common, metric="ASR_strict", head="mlp", target="t"), *flagged),
        artifacts=tuple(
            Artifact(subject=name, state=state, seed=0, path=f"encoders/{state}", sha256="")
            for state, name in ids.items()
        ),
        maps=tuple(
            FeatureMap(**place, subject=name, state=state, points=POINTS, explained=0.5) for state, name in ids.items()
        ),
        verdicts=tuple(
            Judged(**judged, subject=name, state=state, seconds=1.0, task="signs", classifier=0)
            for state, name in ids.items()
        ),
        audits=(Audited(seed=0, subject="clean-seed0", state="clean", sha256="", report={"verdict": "undecided"}),),
    )


def of_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """The content as schema 1 has it: kinds of encoders instead of subjects."""
    content = json.loads(json.dumps(content)) | {"schema": 1}
    del content["subjects"]
    for record in content["records"]:
        del record["subject"], record["baseline"]
        if "state" in record["condition"]:
            record["condition"]["encoder"] = OLD[record["condition"].pop("state")]
    for key, name, end in (
        *(("artifacts", "role", "-encoder"), ("maps", "encoder", "-encoder")),
        *(("verdicts", "encoder", ""), ("audits", "encoder", "")),
    ):
        for item in content[key]:
            del item["subject"]
            item[name] = OLD[item.pop("state")] + end
    return content


def test_schema_1_is_read_as_what_it_means(tmp_path: Path) -> None:
    new = results()
    old = of_schema_1(json.loads(new.to_json()))
    (tmp_path / "results.json").write_text(json.dumps(old))
    read = read_results(tmp_path)
    assert read.schema == SCHEMA
    assert read.records == new.records
    assert read.verdicts == new.verdicts
    assert read.maps == new.maps
    assert read.audits == new.audits
    assert [artifact.state for artifact in read.artifacts] == ["clean", "attacked"]


def test_kept_results_of_schema_1_tell_both_encoders_apart() -> None:
    kept = Path(__file__).with_name("results_of_schema_1.json")  # the demo's, as they were written once
    assert json.loads(kept.read_text())["schema"] == 1
    read = read_results(kept)
    assert {audit.state for audit in read.audits} == {"clean", "attacked"}
    assert {artifact.state for artifact in read.artifacts} == {"clean", "attacked"}
    assert "evidence of a backdoor in 3 of 3 backdoored encoders" in render(read)
    assert "| backdoored encoder of seed 0 |" in markdown.render(read)


@pytest.mark.parametrize(
    "change",
    [
        {"verdicts": [{"encoder": "haunted", "seed": 0}]},
        {"verdicts": [{}]},
        {"maps": 3},
        {"records": [{"condition": {"encoder": "haunted"}}]},
        {"records": None},
    ],
)
def test_what_is_no_results_file_of_schema_1_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    old = of_schema_1(json.loads(results().to_json()))
    (tmp_path / "results.json").write_text(json.dumps(old | change))
    with pytest.raises(SapperError, match="not a results file") as caught:
        read_results(tmp_path)
    assert caught.value.remedy


def test_another_schema_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(replace(results(), schema=3).to_json())
    with pytest.raises(SapperError, match="its schema is 3 instead of 2") as caught:
        read_results(tmp_path)
    assert "run the scenario again" in str(caught.value.remedy)


def test_subjects_are_written_with_their_parents() -> None:
    clean = Model(id="clean-seed0", state="clean", seed=0)
    attacked = Model(id="a", state="attacked", seed=0, parent=clean.id, tasks=("signs",), targets=("t",))
    content = json.loads(replace(results(), subjects=(clean, attacked)).to_json())
    assert content["subjects"][1]["parent"] == content["subjects"][0]["id"]
