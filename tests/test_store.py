"""The Store and its files: made once, whole or absent, and nobody else's while a run holds it."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from sapper.engine.stage import place_of
from sapper.engine.store import Finished, Store
from sapper.errors import SapperError
from sapper.files import LEFTOVERS, link_atomically, sha256, write_atomically
from sapper.training import Checkpoint

KEY = {"epochs": 3, "images": "abc"}


class Maker:
    """Makes a stage of one file, and counts how often."""

    def __init__(self, content: str = "made"):
        self.content, self.times = content, 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        write_atomically(folder / "result.txt", self.content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(store: Store, name: str, key: dict[str, object], make: Callable[[Path], None]) -> Finished:
    """The stage of that name and key, made if it is not there."""
    place = place_of(name, key)
    return store.find(place) or store.make(place, key, make)


def result(stage: Finished) -> str:
    return (stage.folder / "result.txt").read_text()


def stages(store: Store) -> list[str]:
    """The finished stages on disk."""
    return sorted(path.name for path in store.root.iterdir() if not path.name.startswith("."))


# Stages


def test_a_stage_is_made_once(store: Store) -> None:
    make = Maker()
    first, second = made(store, "heads", KEY, make), made(store, "heads", dict(reversed(KEY.items())), make)
    assert make.times == 1
    assert (first.cached, second.cached) == (False, True)
    assert (first.folder, first.seconds) == (second.folder, second.seconds)
    assert result(second) == "made"


def test_another_key_or_name_is_another_stage(store: Store) -> None:
    make = Maker()
    for name, key in (("heads", KEY), ("heads", KEY | {"epochs": 4}), ("attack", KEY)):
        assert not made(store, name, key, make).cached
    assert len(stages(store)) == make.times == 3


def test_a_stage_says_what_made_it(store: Store) -> None:
    stage = made(store, "heads", KEY, Maker())
    content = json.loads((stage.folder / "stage.json").read_text())
    assert content["stage"] == "heads"
    assert content["key"] == KEY
    assert content["files"] == {"result.txt": sha256(stage.folder / "result.txt")}


def flip_a_byte(folder: Path) -> None:
    (folder / "result.txt").write_text("mode")


def cut_off(folder: Path) -> None:
    (folder / "result.txt").write_text("ma")


def lose_a_file(folder: Path) -> None:
    (folder / "result.txt").unlink()


def lose_the_description(folder: Path) -> None:
    (folder / "stage.json").unlink()


def halve_the_description(folder: Path) -> None:
    text = (folder / "stage.json").read_text()
    (folder / "stage.json").write_text(text[: len(text) // 2])


def describe_nonsense(folder: Path) -> None:
    (folder / "stage.json").write_text("[1, 2]")


def describe_without_files(folder: Path) -> None:
    (folder / "stage.json").write_text('{"files": [], "seconds": 1}')


def put_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "result.txt").unlink()
    (folder / "result.txt").mkdir()


DAMAGES = [
    *(flip_a_byte, cut_off, lose_a_file, lose_the_description, halve_the_description, describe_nonsense),
    *(describe_without_files, put_a_folder_in_place_of_a_file),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stage_is_made_anew(store: Store, damage: Callable[[Path], None]) -> None:
    make = Maker()
    damage(made(store, "heads", KEY, make).folder)
    again = made(store, "heads", KEY, make)
    assert not again.cached
    assert result(again) == "made"
    assert made(store, "heads", KEY, make).cached
    assert make.times == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SapperError("bad"), ZeroDivisionError])
def test_an_interrupted_stage_is_not_there_and_goes_on_from_its_work(store: Store, failure: BaseException) -> None:
    def fail_halfway(folder: Path) -> None:
        write_atomically(folder / "checkpoint", "halfway")
        raise failure

    def go_on(folder: Path) -> None:
        write_atomically(folder / "result.txt", f"made from {(folder / 'checkpoint').read_text()}")
        (folder / "checkpoint").unlink()

    with pytest.raises(failure if isinstance(failure, type) else type(failure)):
        made(store, "heads", KEY, fail_halfway)
    assert stages(store) == []
    finished = made(store, "heads", KEY, go_on)
    assert result(finished) == "made from halfway"
    assert sorted(path.name for path in finished.folder.iterdir()) == ["result.txt", "stage.json"]


def test_seconds_count_what_interrupted_processes_worked(store: Store) -> None:
    def work_and_die(folder: Path) -> None:
        result = folder / "checkpoint"
        result.write_text("half")
        hour_later = result.stat().st_mtime + 3600
        os.utime(result, (hour_later, hour_later))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made(store, "heads", KEY, work_and_die)
    stage = made(store, "heads", KEY, lambda folder: (folder / "checkpoint").unlink())
    assert 7190 < stage.seconds < 7260
    assert sorted(path.name for path in stage.folder.iterdir()) == ["stage.json"]


def test_what_a_killed_process_half_wrote_does_not_get_into_a_stage(store: Store) -> None:
    def die_while_writing(folder: Path) -> None:
        (folder / ".result.txt.4711.part").write_text("ma")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(store, "heads", KEY, die_while_writing)
    assert sorted(path.name for path in made(store, "heads", KEY, Maker()).folder.iterdir()) == [
        "result.txt",
        "stage.json",
    ]


# The lock

HOLD = """
import sys, time
from pathlib import Path
from sapper.engine.store import Store
with Store(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another_process(store: Store) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_store_in_use_is_refused_and_free_again_when_its_holder_is_killed(store: Store) -> None:
    with held_by_another_process(store) as holder:
        with pytest.raises(SapperError, match="another run is using this store") as caught, store.locked():
            pass
        assert str(store.root) in str(caught.value)
        assert "--store" in str(caught.value.remedy)
        holder.kill()
        holder.wait()
        with store.locked():
            pass


def test_the_lock_is_free_again_after_an_error(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.locked():
        raise ZeroDivisionError
    with store.locked():
        pass


def test_another_store_is_not_locked(store: Store, tmp_path: Path) -> None:
    with store.locked(), Store(tmp_path / "other").locked():
        pass


# Disks that refuse


@pytest.fixture
def below_a_file(tmp_path: Path) -> Path:
    """A folder that cannot be made, whoever asks: its parent is a file."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "folder"


@contextmanager
def full_disk() -> Iterator[None]:
    """Every write fails as on a full disk, after half of the content."""

    def write_half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        yield


def test_a_store_that_cannot_be_made_is_refused(below_a_file: Path) -> None:
    with pytest.raises(SapperError, match="Not a directory") as caught, Store(below_a_file).locked():
        pass
    assert str(below_a_file) in str(caught.value)
    with pytest.raises(SapperError, match="--store"):
        made(Store(below_a_file), "heads", KEY, Maker())


def test_a_full_disk_is_told_and_leaves_earlier_stages_alone(store: Store) -> None:
    earlier = made(store, "heads", KEY, Maker())
    with full_disk(), pytest.raises(SapperError, match="No space left") as caught:
        made(store, "heads", KEY | {"epochs": 4}, Maker())
    assert "free some space" in str(caught.value.remedy)
    assert stages(store) == [earlier.folder.name]
    assert made(store, "heads", KEY, Maker()).cached
    assert not list(store.root.rglob(LEFTOVERS))
    assert result(made(store, "heads", KEY | {"epochs": 4}, Maker("after all"))) == "after all"


def test_an_error_of_the_disk_inside_a_stage_is_told(store: Store) -> None:
    def fail(_folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(SapperError, match="Input/output error"):
        made(store, "heads", KEY, fail)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    write_atomically(path, "old")
    with full_disk(), pytest.raises(SapperError, match="No space left") as caught:
        write_atomically(path, "new and longer")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_a_file_that_cannot_be_written_is_told(below_a_file: Path) -> None:
    with pytest.raises(SapperError, match="cannot write: Not a directory") as caught:
        write_atomically(below_a_file / "result.json", "text")
    assert "another folder" in str(caught.value.remedy)


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: Path, _target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "result.json", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_another_encoding_does_not_keep_a_text_from_being_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "report.html", "caf\udce9 é")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "caf? é"


def test_a_file_gets_a_second_name_however_often(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "names" / "second"
    for content in ("one", "one", "two"):
        write_atomically(source, content)
        for _ in range(2):
            link_atomically(source, path)
        assert path.read_text() == content
        assert list(path.parent.iterdir()) == [path]


def test_without_hard_links_a_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_names: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "source", "content")
    link_atomically(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "content"


def test_a_second_name_that_cannot_be_made_is_told(tmp_path: Path, below_a_file: Path) -> None:
    write_atomically(tmp_path / "source", "content")
    with pytest.raises(SapperError, match="Not a directory"):
        link_atomically(tmp_path / "source", below_a_file / "second")


# Checkpoints


def training() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    return model, torch.optim.Adam(model.parameters())


@pytest.mark.parametrize("content", [b"", b"junk", None], ids=["empty", "junk", "cut off"])
def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path: Path, content: bytes | None) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    model, optimizer = training()
    checkpoint.save(model, optimizer, 3, {"loss": [1.0, 0.5, 0.25]})
    assert checkpoint.restore(*training()) == (3, {"loss": [1.0, 0.5, 0.25]})

    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    model, optimizer = training()
    assert checkpoint.restore(model, optimizer) == (0, {})
    assert bool((model.weight == 1).all())
