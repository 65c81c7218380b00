"""Data sets with captions: embedded worlds, and parquet with a column of texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sapper import datasets
from sapper.errors import SapperError
from tests.micro import _png, squares

SIZE = 16


def write(file: Path, texts: list[Any], *, column: str = "caption", **more: list[Any]) -> Path:
    """As many squares as texts, in the Hugging Face layout, with the texts beside them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures, labels = squares(len(texts), seed=1)
    rows = [{"bytes": _png(picture), "path": f"{i}.png"} for i, picture in enumerate(pictures)]
    pq.write_table(pa.table({"image": rows, "label": labels, column: texts} | more), file)
    return file


def test_a_table_of_images_and_texts_is_read_row_by_row(tmp_path: Path) -> None:
    texts = ["A red square.", "a green one", "something blue", "A red square."]
    file = write(tmp_path / "pairs.parquet", texts)
    pairs = datasets.load_pairs(file, size=SIZE)
    assert pairs.texts.strings() == ["a red square", "a green one", "something blue", "a red square"]
    assert torch.equal(pairs.images.images, torch.from_numpy(squares(4, seed=1)[0]).permute(0, 3, 1, 2))
    assert pairs.targets().tolist() == [0, 1, 2, 0]
    assert pairs.caption_ids[0] == pairs.caption_ids[3]
    assert (pairs.name, pairs.split) == ("pairs", "train")
    assert str(file) in pairs.provenance
    assert pairs.images.digest == datasets.load(file, size=SIZE).digest


@pytest.mark.parametrize("column", ["caption", "TEXT", "txt", "sentences", "alt_text", "prompt"])
def test_the_column_of_texts_goes_by_several_names(tmp_path: Path, column: str) -> None:
    pairs = datasets.load_pairs(write(tmp_path / "a.parquet", ["one", "two"], column=column), size=SIZE)
    assert pairs.texts.strings() == ["one", "two"]


def test_of_several_captions_the_first_is_taken(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [["first of one", "second"], ["first of two"]], column="captions")
    assert datasets.load_pairs(file, size=SIZE).texts.strings() == ["first of one", "first of two"]


def test_a_column_that_holds_texts_wins_over_one_that_is_only_called_so(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", ["real", "texts"], column="description", caption=[1, 2])
    assert datasets.load_pairs(file, size=SIZE).texts.strings() == ["real", "texts"]


def test_splits_and_parts_are_found_as_those_of_images_are(tmp_path: Path) -> None:
    for part in range(2):
        write(tmp_path / "data" / f"train-0000{part}-of-00002.parquet", [f"part {part}", "more"])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", ["tested"])
    assert datasets.load_pairs(tmp_path, size=SIZE).texts.strings() == ["part 0", "more", "part 1", "more"]
    assert datasets.load_pairs(tmp_path, "test", size=SIZE).texts.strings() == ["tested"]


def test_rows_without_a_caption_or_a_picture_are_left_out_and_told_of(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", ["red", None, "!?", "blue", "", "green"])
    table = pq.read_table(file)
    rows = table["image"].to_pylist()
    rows[3]["bytes"] = b"no picture"
    pq.write_table(table.set_column(0, "image", pa.array(rows)), file)
    pairs = datasets.load_pairs(file, size=SIZE)
    assert pairs.texts.strings() == ["red", "green"]
    kept = torch.from_numpy(squares(6, seed=1)[0]).permute(0, 3, 1, 2)[[0, 5]]
    assert torch.equal(pairs.images.images, kept)
    assert any("3 images without a caption" in note for note in pairs.notes)
    assert any("row 3" in note for note in pairs.notes)


@pytest.mark.parametrize(
    ("texts", "column", "said"),
    [
        (["a", "b"], "legend", "there are no captions in it; its columns: image, label, legend"),
        ([1, 2], "caption", "captions of type int64"),
        ([None, " "], "caption", "all captions are empty"),
    ],
)
def test_missing_captions_are_told(tmp_path: Path, texts: list[Any], column: str, said: str) -> None:
    file = write(tmp_path / "a.parquet", texts, column=column)
    with pytest.raises(SapperError, match=said) as caught:
        datasets.load_pairs(file, size=SIZE)
    assert caught.value.where == str(file)


def test_other_files_and_sets_have_no_captions(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=squares(4, seed=1)[0])
    with pytest.raises(SapperError, match="captions are read from parquet"):
        datasets.load_pairs(tmp_path / "a.npz")
    with pytest.raises(SapperError, match="there are no captions in it"):
        datasets.load_pairs("cifar10")
    with pytest.raises(SapperError, match="no data set"):
        datasets.load_pairs("objets")
    with pytest.raises(SapperError, match="no such file"):
        datasets.load_pairs(tmp_path / "none.parquet")
    with pytest.raises(SapperError, match="at least 1 pixel"):
        datasets.load_pairs("objects", size=0)


def test_an_embedded_world_comes_in_any_size() -> None:
    pairs = datasets.load_pairs("digits", "test", size=24)
    assert pairs.size == (24, 24)
    assert pairs.images.digest == datasets.load("digits", "test", size=24).digest
    assert "24x24" in pairs.provenance
