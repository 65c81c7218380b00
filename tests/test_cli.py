"""The program as its user meets it: what it prints, with which exit code it ends, and what it leaves behind."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapper import __version__, attacks, cli, datasets, defenses, pretraining
from sapper.attacks import adaptive
from sapper.cli import experiments
from sapper.cli.shared import say
from sapper.encoders import Encoder, Trained
from sapper.engine.store import Store
from sapper.errors import SapperError
from sapper.experiment.results import Picture, Record, Results, read_results, write_results
from sapper.methods import HEADS, TRIGGERS, imported
from sapper.pretraining.simclr import SimCLR
from sapper.report.means import LABELS, METRICS, estimate
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint
from tests.micro import numbers, squares, write_data, write_scenario
from tests.program import Ended, Install, Sapper, told

PROGRAM = [sys.executable, "-m", "sapper"]
QUICK = ("--device", "cpu", "--set", "pretraining.epochs=1", "--set", "attack.epochs=1")
ENDLESS = ("--device", "cpu", "--set", "attack.epochs=1000000")
TERMINAL_CODES = re.compile(r"[\x1b\r\b]")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The micro scenario with its data beside it."""
    return write_scenario(tmp_path / "micro.toml", write_data(tmp_path / "data"))


# A run


def test_a_run_prints_its_numbers_and_leaves_a_report(sapper: Sapper, file: Path, tmp_path: Path) -> None:
    end = sapper("run", file, "--out", tmp_path / "out", *QUICK)
    assert end.code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "report.html", "encoders", "store"}
    assert "balls → red" in end.out
    assert end.out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert "pre-training (seed 0)" in end.err


def test_the_command_in_the_results_repeats_the_run(sapper: Sapper, file: Path, tmp_path: Path) -> None:
    known = tmp_path / "root of data" / "svhn"
    known.parent.mkdir()
    (tmp_path / "data" / "balls").rename(known)
    (known / "classes.json").unlink()
    given = ("--set", "task.0.dataset=svhn", "--set", "task.0.name=balls", "--set", "target.0.class=0")
    store = ("--store", tmp_path / "elsewhere", "--download")
    sapper("run", file, "--out", tmp_path / "out", "--data-root", known.parent, *given, *store, *QUICK)
    first = read_results(tmp_path / "out")
    words = shlex.split(first.command)
    assert words[0] == "sapper"
    assert "--download" in words
    again = sapper(*words[1:])
    assert again.code == 0
    assert again.err.count("from the store") == 8
    second = read_results(tmp_path / "out")
    assert second.records == first.records
    for key in ("number format", "why this format"):
        assert second.environment[key] == first.environment[key] != ""


def test_without_out_a_run_goes_below_runs(sapper: Sapper, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("SAPPER_STORE", "elsewhere")
    assert sapper("run", file.name, *QUICK).code == 0
    assert {path.name for path in Path("runs/micro").iterdir()} == {"results.json", "report.html", "encoders"}
    assert list(Path("elsewhere").glob("pretraining-*"))


SMALLER = (
    *("pretraining.dataset=data/photos", "pretraining.images=48", "pretraining.view_size=16"),
    *("encoder.architecture=resnet10", "encoder.width=4", "encoder.input_size=16", "head.0.epochs=1"),
    *('task=[{ dataset = "data/balls" }]', 'target=[{ task = "balls", class = "red", trigger = { size = 4 } }]'),
)


def test_a_shipped_scenario_goes_by_its_name_even_beside_a_folder_of_that_name(
    sapper: Sapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name in ("badencoder-cifar10-small", "demo"):
        Path(name).mkdir()
    words = ["run", "badencoder-cifar10-small", *(each for change in SMALLER for each in ("--set", change)), *QUICK[2:]]
    end = sapper(*words, "--device", "cpu", "--out", "there")
    assert end.code == 0, end.err
    assert read_results(Path("there")).command == shlex.join(["sapper", *words, "--device", "cpu", "--out", "there"])
    for command in (("run", "demo"), ("demo",)):
        assert "scenarios/demo.toml: attack.epoch" in told(sapper(*command, "--set", "attack.epoch=3"))


@pytest.mark.slow
def test_away_from_a_terminal_it_is_quiet_and_report_prints_the_same(
    sapper: Sapper, file: Path, tmp_path: Path
) -> None:
    command = [*PROGRAM, "run", str(file), "--out", str(tmp_path / "out"), *QUICK]
    end = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not TERMINAL_CODES.search(end.stdout + end.stderr)
    assert len(end.stderr.splitlines()) == 8
    assert sapper("report", tmp_path / "out") == Ended(0, end.stdout, "")


# What cannot be done


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "in-the-way").write_text("")
    return tmp_path / "in-the-way" / "folder"


def corrupt_parquet(file: Path) -> None:
    parquet = file.parent / "data" / "boxes" / "train.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-100])


def one_class(file: Path) -> None:
    images, labels = squares(12, seed=0)
    np.savez(file.parent / "data" / "balls" / "train.npz", image=images, label=np.zeros_like(labels))


def empty_file(file: Path) -> None:
    file.write_text("")


def nothing(file: Path) -> None:
    """The file as it is."""


REFUSED: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    # what is wrong: (what is done to the files, options, what the message says)
    "an empty scenario": (empty_file, (), "is missing"),
    "a corrupt parquet file": (corrupt_parquet, (), "boxes/train.parquet"),
    "data of one class": (one_class, (), "only one class"),
    "no data root": (nothing, ("--set", "pretraining.dataset=cifar10"), "set --data-root or SAPPER_DATA"),
    "a data root that is not there": (nothing, ("--set", "pretraining.dataset=svhn", "--data-root", "/none"), "/none"),
    "an unknown data set": (nothing, ("--set", "pretraining.dataset=cifar"), "did you mean cifar10"),
    "an unknown key": (nothing, ("--set", "attack.epoch=3"), "did you mean epochs"),
    "an unknown device": (nothing, ("--device", "abacus"), "'abacus'"),
    "a device without computation": (nothing, ("--device", "meta"), "'meta'"),
    "a device that is not there": (nothing, ("--device", "cuda:99"), "'cuda:99'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_told_and_earlier_results_stay(
    sapper: Sapper, file: Path, tmp_path: Path, case: str
) -> None:
    prepare, options, says = REFUSED[case]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("earlier")
    prepare(file)
    assert says in told(sapper("run", file, "--out", tmp_path / "out", *options))
    assert (tmp_path / "out" / "results.json").read_text() == "earlier"
    left = {path.name for path in (tmp_path / "out").rglob("*") if not path.match("store/number-format-*.json")}
    assert left <= {"results.json", "store"}


def test_an_unknown_scenario_is_told_with_the_closest(sapper: Sapper, tmp_path: Path) -> None:
    assert "did you mean demo" in told(sapper("run", "dmeo"))
    assert "there is no such file" in told(sapper("run", tmp_path / "nothing.toml"))
    assert f"{tmp_path}" in told(sapper("run", tmp_path))


def test_an_out_folder_that_cannot_be_written_is_told_before_the_work(
    sapper: Sapper, file: Path, tmp_path: Path
) -> None:
    end = sapper("run", file, "--out", below_a_file(tmp_path), *QUICK)
    assert "--out" in told(end)
    assert "pre-training" not in end.err


def test_a_store_that_cannot_be_written_is_told_before_the_work(sapper: Sapper, file: Path, tmp_path: Path) -> None:
    end = sapper("run", file, "--out", tmp_path / "out", "--store", below_a_file(tmp_path), *QUICK)
    assert "--store" in told(end)
    assert "pre-training" not in end.err


def test_a_store_in_use_is_told(sapper: Sapper, file: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "out" / "store").locked():
        assert "another run is using this store" in told(sapper("run", file, "--out", tmp_path / "out", *QUICK))


@dataclass(frozen=True, kw_only=True)
class Hungry(SimCLR):
    """A pre-training that takes more memory than there is."""

    of: str

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        if self.of == "python":
            bytearray(2**62)
        if self.of == "cpu":
            torch.empty(2**60)
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("of", ["python", "cpu", "cuda"])
def test_too_little_memory_is_told(sapper: Sapper, file: Path, tmp_path: Path, install: Install, of: str) -> None:
    install("hungry", points={"sapper.pretraining": {"hungry": f"{__name__}:Hungry"}})
    hungry = ("--set", "pretraining.method=hungry", "--set", f"pretraining.of={of}")
    end = sapper("run", file, "--out", tmp_path / "out", *QUICK, *hungry)
    assert end.code == 2
    assert "smaller batch" in end.err
    assert "Traceback" not in end.err


def test_debug_shows_the_traceback_wherever_it_stands(sapper: Sapper) -> None:
    for words in (("--debug", "run", "dmeo"), ("run", "dmeo", "--debug")):
        end = sapper(*words)
        assert end.code == 2
        assert "Traceback" in end.err
        assert "did you mean demo" in end.err.splitlines()[-1]


@pytest.mark.parametrize("words", [("run",), ("run", "demo", "--nonsense"), ("nonsense",), ("demo", "--threads", "-1")])
def test_wrong_usage_ends_with_2(sapper: Sapper, words: tuple[str, ...]) -> None:
    end = sapper(*words)
    assert end.code == 2
    assert "Traceback" not in end.err


# Interrupts


def _hear_interrupts() -> None:
    """In the child: a job in a shell's background ignores interrupts, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_in_the_middle_of_a_training_ends_with_130(file: Path, tmp_path: Path) -> None:
    command = [*PROGRAM, "run", str(file), "--out", str(tmp_path / "out"), *ENDLESS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts) as process:
        while process.poll() is None and not list(tmp_path.glob("out/store/.work/attack-*/checkpoint.safetensors")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        *stages, last = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130
    assert last == "interrupted; the same command goes on from here"
    assert len(stages) == 5
    assert list((tmp_path / "out" / "store").glob("pretraining-*"))
    assert not (tmp_path / "out" / "results.json").exists()


MISUSED = [("audit", "--nope"), ("audit", "x", "--images", "y", "--fail-on", "never"), ("nonsense",)]


@pytest.mark.parametrize("misused", MISUSED)
def test_what_cannot_even_be_told_ends_with_2(misused: tuple[str, ...]) -> None:
    """Python's own code for that is 1, which in an audit is evidence of a backdoor."""
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([*PROGRAM, *misused], stderr=full, check=False).returncode == 2
    reading, writing = os.pipe()
    os.close(reading)
    end = subprocess.run([*PROGRAM, *misused], stderr=writing, check=False)
    os.close(writing)
    assert end.returncode in (2, 141)


@pytest.mark.parametrize("missing", ["rich", "typer", "sapper.errors"])
def test_half_an_installation_ends_with_2(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from sapper.__main__ import main; main()"
    end = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=False)
    assert (end.returncode, end.stdout) == (2, "")
    assert missing in end.stderr


@given(what=st.text(), where=st.text(), remedy=st.text())
def test_no_message_moves_the_cursor_or_forges_a_line(what: str, where: str, remedy: str) -> None:
    """Names in hostile files come in messages about them."""
    lines = str(SapperError(what, where=where or "x", remedy=remedy or "y")).split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_output_does_not_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say("bag \x1b[2J\u202e\nNo evidence of a backdoor.\udcff")
    assert capsys.readouterr().out == "bag ?[2J? No evidence of a backdoor.?\n"


def test_a_full_disk_behind_the_output_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        end = subprocess.run([*PROGRAM, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert end.returncode == 2
    assert "standard output: the output cannot be written" in end.stderr
    assert "Traceback" not in end.stderr


def test_a_closed_pipe_ends_with_141() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    end = subprocess.run([*PROGRAM, "--version"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (end.returncode, end.stderr) == (141, b"")


@pytest.mark.slow
def test_at_a_terminal_a_long_stage_shows_a_bar_with_the_time_left(file: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*PROGRAM, "run", str(file), "--out", str(tmp_path / "out"), *ENDLESS]
    seen = ""
    surroundings = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stderr=theirs, env=surroundings, preexec_fn=_hear_interrupts) as process:
        os.close(theirs)
        while not re.search(r"injection \(BadEncoder\).*/2000000.*\d:\d\d", seen):
            seen += os.read(ours, 1000).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while chunk := read_from_terminal(ours):
            seen += chunk
    os.close(ours)
    assert process.returncode == 130
    assert "interrupted; the same command goes on from here" in seen
    assert "pre-training (SimCLR)" not in seen  # too short for a bar


def read_from_terminal(descriptor: int) -> str:
    """What comes next; nothing when the program at the other end is gone."""
    try:
        return os.read(descriptor, 1000).decode(errors="replace")
    except OSError:
        return ""


# Help


TELL_MODULES = """
import atexit, sys
from sapper.__main__ import main
atexit.register(lambda: print(sorted(sys.modules)))
main()
"""


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("run", "--help"), ("report", "--help"), ()])
def test_help_and_version_do_not_wait_for_torch(words: tuple[str, ...]) -> None:
    end = subprocess.run([sys.executable, "-c", TELL_MODULES, *words], capture_output=True, text=True, check=False)
    assert end.returncode == (0 if words else 2), end.stderr
    modules = end.stdout.splitlines()[-1]
    assert "'sapper.cli'" in modules
    for slow in ("torch", "numpy", "scipy", "pyarrow", "timm", "matplotlib", "jinja2"):
        assert f"'{slow}'" not in modules
    if words == ("--version",):
        assert end.stdout.splitlines()[0] == __version__


@pytest.mark.parametrize("words", [("run",), ("audit",), ("replay",), ("zoo", "build"), ("zoo", "score")])
def test_help_says_defaults_that_are_not_values(sapper: Sapper, words: tuple[str, ...]) -> None:
    """In brackets they would be taken for markup, and vanish."""
    assert "by default" in " ".join(sapper(*words, "--help").out.replace("│", " ").split())


# Methods


def test_methods_lists_everything_with_parameters_and_sources(sapper: Sapper) -> None:
    end = sapper("methods")
    assert end.code == 0
    text = " ".join(end.out.split())
    tables = (pretraining.METHODS, attacks.METHODS, adaptive.METHODS, HEADS, defenses.METHODS, TRIGGERS)
    for name, method in [(name, imported(place)) for table in tables for name, place in table.items()]:
        assert re.search(rf"^{name}\b", end.out, flags=re.MULTILINE)
        for parameter in fields(method):
            assert f"{parameter.name} = " in text
        assert getattr(method, "source", "") in text
    for info in datasets.describe():
        assert re.search(rf"^{info.name}\b", end.out, flags=re.MULTILINE)
        assert info.source in text
    assert max(map(len, end.out.splitlines())) <= 80


def test_methods_shows_one_with_its_description(sapper: Sapper) -> None:
    end = sapper("methods", "badencoder")
    assert end.out.startswith("badencoder")
    assert "lambda1 = 1.0" in end.out
    assert "reference_views" in end.out
    assert "Threat model: the attacker fine-tunes a clean encoder" in " ".join(end.out.split())
    assert 'preset = "paper"' in end.out
    assert "simclr" not in end.out


def test_methods_shows_an_attack_and_a_trigger_of_the_same_name(sapper: Sapper) -> None:
    end = sapper("methods", "blend")
    assert re.findall(r"^blend +(\w+)", end.out, flags=re.MULTILINE) == ["attacks", "triggers"]
    assert "kind: poison of the task set, needs: " in end.out


def test_methods_tells_needs_and_shared_parameters_of_a_pretraining(sapper: Sapper) -> None:
    assert "needs: captions" in sapper("methods", "clip").out
    assert "``view_size``" in sapper("methods", "simclr").out


def test_an_unknown_method_is_told_with_the_closest(sapper: Sapper) -> None:
    words = told(sapper("methods", "badencodr"))
    assert "did you mean badencoder" in words
    assert "sapper methods lists all" in " ".join(words.split())


# The table


def made_up(heads: tuple[str, ...], conditions: tuple[dict[str, Any], ...] = ({},), seeds: int = 1) -> Results:
    """Results with the widest numbers there are: rates of 100 % and lifts of −100 points."""
    records = [
        Record(
            seed=seed,
            stage="downstream",
            task="signs",
            target="signs/priority road [A1]",
            attack="badencoder",
            head=head,
            metric=metric,
            condition=condition,
            value=-1.0 if metric == "lift" else 1.0 - seed / 10,
            low=-1.0 if metric == "lift" else 0.1,
            high=-0.886 if metric == "lift" else 1.0,
            n=1000,
        )
        for seed in range(seeds)
        for condition in conditions
        for head in heads
        for metric in METRICS
    ]
    scenario = {"name": "made [up]", "primary_head": heads[-1]}
    flags = ("a note about [/nothing] in particular",)
    return Results(scenario=scenario, environment={}, command="", records=tuple(records), flags=flags)


def printed(results: Results, width: int, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.out, "_width", width)
        experiments.print_results(results)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", [36, 80, 200])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_table_shows_every_number_whole_at_any_width(
    width: int, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    results = made_up(("linear", "knn", "a head of long name", "mlp"), seeds=seeds)
    lines = printed(results, width, capsys).splitlines()
    for metric in METRICS:
        shown = estimate([record for record in results.records if (record.metric, record.head) == (metric, "mlp")])
        rows = [line for line in lines if re.match(rf"{LABELS.get(metric, metric)}\s\s", line)]
        cells = [cell for row in rows for cell in re.findall(r"(\S+)\s+(\S*…\S*)", row)]
        assert cells == [(shown.number, shown.span)] * 4


def test_the_primary_head_comes_first_and_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(made_up(("linear", "knn", "mlp")), 80, capsys)
    assert re.search(r"^ +mlp \* +linear +knn *$", text, flags=re.MULTILINE)
    assert "* marks the primary head" in " ".join(text.split())


def test_variants_are_columns_that_say_what_they_changed(capsys: pytest.CaptureFixture[str]) -> None:
    conditions = ({"attack.lambda1": 0}, {"attack.lambda1": 0.25}, {"attack.very_long_name_of_a_key": "wide"})
    text = printed(made_up(("mlp",), conditions), 80, capsys)
    for words in ("attack.lambda1 = 0 ", "attack.lambda1 =", "0.25", "= wide"):
        assert words in text


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(made_up(("m[l]p",)), 80, capsys)
    for words in ("signs → priority road [A1]", "m[l]p *", "a note about [/nothing] in particular", "made [up]"):
        assert words in text


# Reports of earlier runs


DAMAGED: dict[str, Callable[[str], str]] = {
    "empty": lambda _text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "not JSON": lambda _text: "junk",
    "a list": lambda _text: "[]",
    "of another schema": lambda text: text.replace('"schema": 2', '"schema": 99'),
    "without records": lambda text: text.replace('"records"', '"recods"'),
    "with text for a value": lambda text: re.sub(r'"value": [-\d.]+', '"value": "high"', text),
    "with a list for an artifact": lambda text: re.sub(r'"artifacts": \[', '"artifacts": [[],', text),
    "deeper than any stack": lambda _text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_results_that_cannot_be_read_are_told_and_the_report_stays(sapper: Sapper, tmp_path: Path, damage: str) -> None:
    path = write_results(replace(made_up(("mlp",))), tmp_path)
    path.write_text(DAMAGED[damage](path.read_text()).replace('"artifacts": [[],]', '"artifacts": [[]]'))
    (tmp_path / "report.html").write_text("earlier")
    assert str(path) in told(sapper("report", tmp_path))
    assert (tmp_path / "report.html").read_text() == "earlier"


def test_a_folder_without_results_is_told(sapper: Sapper, tmp_path: Path) -> None:
    assert "results.json" in told(sapper("report", tmp_path))
    assert "--out" in told(sapper("report", tmp_path / "nothing"))


def test_a_report_is_made_from_the_results_alone(sapper: Sapper, tmp_path: Path) -> None:
    write_results(made_up(("mlp",)), tmp_path / "moved")
    end = sapper("report", tmp_path / "moved" / "results.json")
    assert end.code == 0
    assert (tmp_path / "moved" / "report.html").is_file()
    assert numbers(read_results(tmp_path / "moved")) == numbers(made_up(("mlp",)))


@pytest.mark.slow
def test_runs_with_other_seeds_are_put_together(sapper: Sapper, file: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        sapper("run", file, "--out", tmp_path / f"run{seed}", *QUICK, "--set", f"seeds=[{seed}]")
    end = sapper("merge", tmp_path / "run0", tmp_path / "run1", "--out", tmp_path / "both")
    assert end.code == 0, end.err
    assert {record.seed for record in read_results(tmp_path / "both").records} == {0, 1}
    assert (tmp_path / "both" / "report.html").is_file()
    again = sapper("merge", tmp_path / "run0", tmp_path / "both", "--out", tmp_path / "all")
    assert f"{tmp_path / 'both'}: seed 0 is in {tmp_path / 'run0'}, too" in told(again)
    assert not (tmp_path / "all").exists()


def test_what_cannot_be_put_together_is_told(sapper: Sapper, tmp_path: Path) -> None:
    one = write_results(replace(made_up(("mlp",)), scenario={}), tmp_path / "one").parent
    two = write_results(made_up(("mlp",)), tmp_path / "two").parent
    assert "--out" in sapper("merge", one, two).err
    assert "one run" in told(sapper("merge", two, "--out", tmp_path / "new"))
    unlike = told(sapper("merge", one, two, "--out", tmp_path / "new"))
    assert f"{one}: the seeds of its scenario are None, and not a list of numbers" in unlike
    assert "three: cannot be read" in told(sapper("merge", two, tmp_path / "three", "--out", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_results_without_pictures_give_the_same_table(sapper: Sapper, tmp_path: Path) -> None:
    picture = Picture(task="signs", target="t", role="clean", caption="", png="")
    results = replace(made_up(("mlp",)), scenario={"seeds": [0]}, pictures=(picture,))
    write_results(results, tmp_path / "run")
    kept = tmp_path / "kept" / "trial.json"
    assert sapper("report", tmp_path / "run", "--numbers", kept).code == 0
    assert read_results(kept) == replace(results, maps=(), pictures=())
    end = sapper("report", kept, "--markdown")
    assert "| signs → priority road [A1] |" in end.out
    assert end == sapper("report", tmp_path / "run", "--markdown")
    assert not list(tmp_path.rglob("report.html"))
