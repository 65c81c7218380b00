"""Stages on a Ray cluster and stores in buckets: the same files as here, whoever is killed on the way."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sapper.cli import experiments
from sapper.engine import cluster
from sapper.engine.buckets import Bucket, store_at
from sapper.engine.cluster import Ray
from sapper.engine.executors import execute
from sapper.engine.stage import Stage
from sapper.engine.store import Store
from sapper.errors import SapperError
from sapper.files import sha256
from sapper.running import Run
from tests.micro import experiment, numbers, perform, write_data
from tests.program import Sapper
from tests.test_executors import Act, Say, chains, said, say


@dataclass(frozen=True, kw_only=True)
class Train:
    """A little training with a checkpoint after every step; killed at step ``dies``, once."""

    marks: Path
    dies: int | None = None
    steps: int = 8

    name: ClassVar[str] = "train"
    libraries: ClassVar[tuple[str, ...]] = ()

    def key(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def __call__(self, folder: Path, inputs: tuple[Path, ...], run: Run) -> None:
        state = folder / "weights"
        done, weights = torch.load(state) if state.exists() else (0, torch.ones(4))
        for step in range(done, self.steps):
            weights = weights + torch.randn(4, generator=run.child(f"{step}").generator())
            torch.save((step + 1, weights), state)
            with (self.marks / "steps").open("a") as file:
                file.write(f"{step}\n")
            mark = self.marks / "died"
            if step == self.dies and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bucket.at(f"file://{tmp_path / 'bucket'}")


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two machines with one core each, beside a head that does no work."""
    for name, value in cluster.SETTINGS.items():
        monkeypatch.setenv(name, value)
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    utils = pytest.importorskip("ray.cluster_utils")
    made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    workers = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    started = [
        each.process
        for node in (made.head_node, *workers)
        for several in node.all_processes.values()
        for each in several
    ]
    yield made, workers
    ray.shutdown()
    made.shutdown()
    for process in started:
        process.wait(30)


# Buckets


def test_an_address_is_a_bucket_and_a_path_is_a_folder(tmp_path: Path) -> None:
    assert isinstance(store_at("memory://here"), Bucket)
    assert store_at(tmp_path) == Store(tmp_path)
    assert store_at(str(tmp_path)) == Store(tmp_path)


def test_what_one_machine_made_another_finds_in_the_bucket(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = say("b", say("a"))
    execute([top], bucket)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    other = Bucket.at(bucket.url)
    assert other.root != bucket.root
    log = tmp_path / "log"
    done = execute([say("b", say("a", log=log), log=log)], other)
    assert said(done[top]) == "ab"
    assert not log.exists(), "nothing was made again"
    assert done[top].folder.is_relative_to(other.root)


def test_a_stage_without_its_last_file_is_not_in_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    stage = say("a")
    execute([stage], bucket)
    (tmp_path / "bucket" / stage.place / "stage.json").unlink()
    (bucket.root / stage.place / "stage.json").unlink()
    assert bucket.find(stage.place) is None


def test_a_damaged_copy_is_fetched_again(bucket: Bucket) -> None:
    stage = say("a")
    made = execute([stage], bucket)[stage]
    (made.folder / "said").write_text("something else")
    assert said(execute([stage], bucket)[stage]) == "a"


def test_stages_that_a_folder_keeps_are_inputs_of_those_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    root = say("a")
    elsewhere = execute([root], Store(tmp_path / "fleet"))
    top = say("b", root)
    assert said(execute([top], bucket, known=elsewhere)[top]) == "ab"


@pytest.mark.parametrize("url", ["nowhere://bucket", "file:///proc/none/here"])
def test_a_bucket_that_cannot_be_reached_is_one_clear_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SapperError, match="cannot be reached") as caught:
        execute([say("a")], Bucket.at(url))
    assert caught.value.where == url


# The cluster


@pytest.mark.slow
def test_a_cluster_makes_the_same_files_and_goes_on_when_a_process_is_killed(
    machines: tuple[Any, list[Any]], tmp_path: Path
) -> None:
    made, _ = machines
    dying = Stage(Train(marks=tmp_path, dies=4), Run(seed=3), threads=1)
    graph = [*chains(2, 3), dying]
    store, here = Store(tmp_path / "store"), Store(tmp_path / "here")
    done = execute(graph, store, executor=Ray(made.address))
    assert (tmp_path / "died").exists()
    assert (tmp_path / "steps").read_text().split() == [str(step) for step in range(8)], "it went on where it was"
    alone = execute([*chains(2, 3), Stage(Train(marks=tmp_path), Run(seed=3), threads=1)], here)
    for stage in graph:
        ours, theirs = (json.loads((each[stage].folder / "stage.json").read_text()) for each in (done, alone))
        for name in ("said", "weights"):
            assert ours["files"].get(name) == theirs["files"].get(name)
    assert not list(store.root.glob(".cluster-*"))


@pytest.mark.slow
def test_a_machine_that_is_lost_in_the_middle_loses_nothing(machines: tuple[Any, list[Any]], tmp_path: Path) -> None:
    made, workers = machines
    stages = [Stage(Train(marks=tmp_path, steps=steps), Run(seed=steps), threads=1) for steps in range(1, 7)]
    lost: list[int] = []

    def lose(_stage: Stage, _finished: Any) -> None:
        if not lost:
            lost.append(1)
            made.remove_node(workers[0], allow_graceful=False)

    done = execute(stages, Store(tmp_path / "store"), executor=Ray(made.address), tell=lose)
    alone = execute(stages, Store(tmp_path / "here"))
    assert lost
    for stage in stages:
        assert sha256(done[stage].folder / "weights") == sha256(alone[stage].folder / "weights")


@pytest.mark.slow
def test_a_scenario_on_a_cluster_has_the_same_numbers(machines: tuple[Any, list[Any]], tmp_path: Path) -> None:
    made, _ = machines
    quick = ("pretraining.epochs=1", "attack.epochs=1", "head.0.epochs=2", "seeds=[0]")
    scenario = experiment(write_data(tmp_path / "data"), *quick)
    there = perform(scenario, tmp_path / "there", executor=Ray(made.address))
    assert numbers(there) == numbers(perform(scenario, tmp_path / "here"))


@pytest.mark.slow
def test_what_goes_wrong_on_a_cluster_is_one_clear_error(machines: tuple[Any, list[Any]], tmp_path: Path) -> None:
    made, _ = machines
    ours = Ray(made.address)
    with pytest.raises(SapperError, match="here: no"):
        execute([Stage(Act(act="fail", marks=tmp_path), Run(), threads=1)], Store(tmp_path / "store"), executor=ours)
    with pytest.raises(SapperError, match="needs 3 CPUs") as caught:
        execute([Stage(Say(word="a"), Run(), threads=3)], Store(tmp_path / "store"), executor=ours)
    assert "--threads" in str(caught.value.remedy)


def test_machines_that_see_another_store_or_have_other_versions_are_named() -> None:
    whole = cluster.versions() | {"machine": "other", "the store": "word", "Python": cluster.platform.python_version()}
    cluster._compare(whole, "word", "word", "/store")
    for seen, answer in ((None, None), ("another", "another"), ("word", None)):
        with pytest.raises(SapperError, match="machine other sees another store") as caught:
            cluster._compare(whole | {"the store": seen}, "word", answer, "/store")
        assert caught.value.where == "/store"
    with pytest.raises(SapperError, match=r"it has torch 1\.0, this one has 2"):
        cluster._compare(whole | {"torch": "1.0"}, "word", "word", "/store")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    started = time.monotonic()
    with pytest.raises(SapperError, match="no Ray cluster answers") as caught:
        execute([say("a")], Store(tmp_path), executor=Ray("127.0.0.1:1"))
    assert caught.value.where == "127.0.0.1:1"
    assert "ray start" in str(caught.value.remedy)
    assert time.monotonic() - started < 300


@pytest.mark.slow
def test_the_command_says_when_no_cluster_answers(sapper: Sapper, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    end = sapper("run", "demo", "--executor", "ray", "--ray-address", "127.0.0.1:1", "--out", tmp_path / "out")
    assert end.code == 2
    assert "no Ray cluster answers" in " ".join(end.err.split())
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (("--ray-address", "10.0.0.1:6379"), "--ray-address"),
        (("--executor", "ray", "--jobs", "2"), "--jobs"),
    ],
)
def test_options_of_a_cluster_that_do_not_go_together(
    sapper: Sapper, tmp_path: Path, options: tuple[str, ...], where: str
) -> None:
    end = sapper("run", "demo", "--out", tmp_path / "out", *options)
    assert end.code == 2
    assert where in end.err
    assert not (tmp_path / "out").exists()


def test_without_ray_the_command_says_what_to_install(
    sapper: Sapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "find_spec", lambda _name: None)
    end = sapper("run", "demo", "--executor", "ray", "--out", tmp_path / "out")
    assert end.code == 2
    assert "sapper[ray]" in end.err
