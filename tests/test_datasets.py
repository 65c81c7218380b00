"""Data sets by name and by path: what is read, what is said of it, and how bad files are refused."""

import ast
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sapper import datasets
from sapper.datasets.decoding import FORMATS, resize
from sapper.datasets.registry import DATASETS
from sapper.errors import SapperError
from sapper.samples import ImageSet

SIDE = 32


@pytest.fixture(autouse=True)
def _no_data_root_of_the_users(monkeypatch):
    monkeypatch.delenv("SAPPER_DATA", raising=False)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(picture: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind)
    return buffer.getvalue()


def write(file: Path, content: bytes | str | np.ndarray | Image.Image) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray | Image.Image):
        content = encode(content)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def write_parquet(file: Path, contents: list, labels: list | pa.Array | None, *, paths=None, names=None) -> Path:
    """A file as the `datasets` library writes it; ``names`` go into its metadata."""
    paths = paths or [None] * len(contents)
    structs = [{"bytes": content, "path": path} for content, path in zip(contents, paths)]
    columns = {"image": pa.array(structs, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels, pa.int64())
    table = pa.table(columns)
    if names is not None:
        features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def write_npz(file: Path, **content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **content)
    return file


def pixels(images: ImageSet) -> np.ndarray:
    """As (N, H, W, 3), the layout in which the tests make pictures."""
    return images.images.permute(0, 2, 3, 1).numpy()


# ------------------------------------------------------------------------------------------------------------ parquet


def test_parquet_folder_gives_pixels_labels_and_the_names_in_its_metadata(tmp_path):
    pictures = noise(5, SIDE, SIDE, 3)
    write_parquet(tmp_path / "train.parquet", [encode(p) for p in pictures], [0, 1, 2, 1, 0], names=["a", "b", "c"])
    images = datasets.load(tmp_path)
    assert np.array_equal(pixels(images), pictures)
    assert images.labels.tolist() == [0, 1, 2, 1, 0]
    assert images.classes == ("a", "b", "c")
    assert (images.name, images.split) == (tmp_path.name, "train")
    assert str(tmp_path / "train.parquet") in images.provenance


def test_classes_json_goes_before_metadata_and_numbers_come_last(tmp_path):
    file = write_parquet(tmp_path / "train.parquet", [encode(noise(4, 4, 3))] * 3, [0, 2, 1], names=["a", "b", "c"])
    write(tmp_path / "classes.json", '["x", "y", "z"]')
    assert datasets.load(tmp_path).classes == ("x", "y", "z")
    (tmp_path / "classes.json").unlink()
    write_parquet(file, [encode(noise(4, 4, 3))] * 3, [0, 2, 1])
    assert datasets.load(tmp_path).classes == ("0", "1", "2")


def test_parquet_with_plain_bytes_and_other_column_names(tmp_path):
    table = pa.table({"img": [encode(noise(SIDE, SIDE, 3))], "labels": pa.array([0], pa.uint8())})
    pq.write_table(table, tmp_path / "some.parquet")
    assert datasets.load(tmp_path / "some.parquet").labels.tolist() == [0]


def test_order_is_kept_over_row_groups_and_over_the_chunks_of_the_thread_pool(tmp_path):
    values = np.arange(600) % 256
    contents = [encode(np.full((2, 2, 3), value, np.uint8)) for value in values]
    file = write_parquet(tmp_path / "train.parquet", contents, [0] * 600)
    pq.write_table(pq.read_table(file), file, row_group_size=77)
    assert np.array_equal(pixels(datasets.load(file, size=1)).mean(axis=(1, 2, 3)), values)


@settings(max_examples=20, deadline=None)
@given(pictures=arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(SIDE), st.just(SIDE), st.just(3))))
def test_png_in_parquet_and_arrays_in_npz_come_back_exactly(pictures):
    with tempfile.TemporaryDirectory() as folder:
        labels = list(range(len(pictures)))
        parquet = write_parquet(Path(folder) / "a.parquet", [encode(p) for p in pictures], labels)
        npz = write_npz(Path(folder) / "a.npz", image=pictures, label=np.array(labels))
        for file in (parquet, npz):
            images = datasets.load(file)
            assert np.array_equal(pixels(images), pictures)
            assert images.labels.tolist() == labels


# ---------------------------------------------------------------------------------------------------------------- npz


@pytest.mark.parametrize(
    "shape", [(4, 28, 28), (4, 28, 28, 1), (4, 1, 28, 28), (4, 28, 28, 3), (4, 3, 28, 28)], ids=lambda shape: f"{shape}"
)
def test_npz_of_each_layout_becomes_rgb_of_the_size_asked(tmp_path, shape):
    file = write_npz(tmp_path / "train.npz", image=noise(*shape), label=np.arange(4, dtype=np.uint8))
    images = datasets.load(file, size=SIDE)
    assert images.images.shape == (4, 3, SIDE, SIDE)
    assert "Resized from 28x28 to 32x32" in images.provenance
    if 3 not in shape:
        assert torch.equal(images.images[:, 0], images.images[:, 2])


def test_npz_with_the_keys_of_badencoder(tmp_path):
    file = write_npz(tmp_path / "train.npz", x=noise(2, SIDE, SIDE, 3), y=np.array([[1], [0]]))
    assert datasets.load(file).labels.tolist() == [1, 0]


@pytest.mark.parametrize(("side", "size", "apart"), [(28, 32, 0), (96, 32, 0), (64, 32, 0), (28, 45, 1), (33, 8, 1)])
def test_whole_set_resize_makes_the_pixels_of_pillow(side, size, apart):
    pictures = noise(6, side, side, 3)
    ours = resize(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), size).permute(0, 2, 3, 1).numpy()
    theirs = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in pictures]
    assert np.abs(ours.astype(int) - np.stack(theirs)).max() <= apart


# ------------------------------------------------------------------------------------------------------------ folders


def test_class_folders_are_labels_in_sorted_order_and_other_files_are_passed_over(tmp_path):
    write(tmp_path / "b" / "2.png", noise(SIDE, SIDE, 3, seed=1))
    write(tmp_path / "a" / "deeper" / "1.PNG", noise(SIDE, SIDE, 3, seed=2))
    write(tmp_path / "a" / "notes.txt", "not an image")
    write(tmp_path / "a" / ".hidden.png", "not an image")
    write(tmp_path / ".cache" / "x.png", "not an image")
    images = datasets.load(tmp_path)
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 1]
    assert np.array_equal(pixels(images)[1], noise(SIDE, SIDE, 3, seed=1))


def test_flat_folder_is_unlabeled(tmp_path):
    for name in ("b.png", "a.png"):
        write(tmp_path / name, np.full((SIDE, SIDE, 3), ord(name[0]), np.uint8))
    images = datasets.load(tmp_path)
    assert (images.labels, images.classes) == (None, ())
    assert pixels(images)[:, 0, 0, 0].tolist() == [ord("a"), ord("b")]


def test_splits_share_their_classes_even_where_one_lacks_a_class(tmp_path):
    for path in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png", "test/a/1.png"):
        write(tmp_path / path, noise(4, 4, 3))
    train, test = datasets.load(tmp_path, "train"), datasets.load(tmp_path, "test")
    assert train.classes == test.classes == ("a", "b", "c")
    assert test.labels.tolist() == [0, 2]
    datasets.check_task(train, test)


def test_an_unlabeled_split_may_lie_beside_a_labeled_one(tmp_path):
    for path in ("train/a/1.png", "train/b/1.png", "unlabeled/1.png"):
        write(tmp_path / path, noise(4, 4, 3))
    assert datasets.load(tmp_path, "train").classes == ("a", "b")
    assert datasets.load(tmp_path, "unlabeled").labels is None


def test_val_stands_in_for_test_and_says_so(tmp_path):
    for path in ("train/a/1.png", "val/a/1.png"):
        write(tmp_path / path, noise(4, 4, 3))
    images = datasets.load(tmp_path, "test")
    assert images.split == "val"
    assert "Its val split stands in for test" in images.provenance


def test_a_class_may_be_called_train(tmp_path):
    for path in ("bus/1.png", "train/1.png"):
        write(tmp_path / path, noise(4, 4, 3))
    assert datasets.load(tmp_path).classes == ("bus", "train")


def test_classes_json_orders_the_class_folders(tmp_path):
    for path in ("cat/1.png", "dog/1.png"):
        write(tmp_path / path, noise(4, 4, 3))
    write(tmp_path / "classes.json", '["dog", "cat", "bird"]')
    images = datasets.load(tmp_path)
    assert images.classes == ("dog", "cat", "bird")
    assert images.labels.tolist() == [0, 1]


def _palette_with_transparency() -> Image.Image:
    picture = Image.fromarray(noise(8, 8, 3)).convert("P")
    picture.info["transparency"] = bytes(range(256))
    return picture


PICTURES = {
    "gray": Image.fromarray(noise(9, 7)),
    "gray and alpha": Image.fromarray(noise(9, 7)).convert("LA"),
    "RGBA": Image.fromarray(noise(9, 7, 4)),
    "palette": Image.fromarray(noise(9, 7, 3)).convert("P"),
    "palette with transparency": _palette_with_transparency(),
    "black and white": Image.fromarray(noise(9, 7)).convert("1"),
    "one pixel": Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)),
    "tall": Image.fromarray(noise(300, 2, 3)),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES.keys())
def test_pictures_of_every_mode_and_size_become_rgb(tmp_path, picture):
    write(tmp_path / "1.png", picture)
    expected = picture.convert("RGBA").convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels(datasets.load(tmp_path))[0], np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PPM", "GIF", "WEBP", "TIFF"])
def test_other_file_formats_are_read(tmp_path, kind):
    write(tmp_path / f"1.{kind.lower()}", encode(np.full((SIDE, SIDE, 3), 200, np.uint8), kind))
    assert np.abs(pixels(datasets.load(tmp_path)).astype(int) - 200).max() <= 2


# ------------------------------------------------------------------------------------------------- known and embedded


def known_parquet(root: Path, folder: str, contents: list[bytes], **rest) -> None:
    write_parquet(root / folder / "train.parquet", contents, list(range(len(contents))), **rest)


def test_known_set_is_found_below_the_data_root_and_by_environment_variable(tmp_path, monkeypatch):
    known_parquet(tmp_path, "cifar10_lossless", [encode(noise(SIDE, SIDE, 3))] * 2)
    by_argument = datasets.load("cifar10-lossless", data_root=tmp_path)
    monkeypatch.setenv("SAPPER_DATA", str(tmp_path))
    assert datasets.load("cifar10-lossless").digest == by_argument.digest
    assert by_argument.classes[:2] == ("airplane", "automobile")


def test_provenance_of_a_copy_tells_in_what_it_differs_from_the_original(tmp_path):
    known_parquet(tmp_path, "stl10", [encode(noise(40, 40, 3), "JPEG")] * 2)
    write(tmp_path / "stl10" / "README.md", "# STL-10, re-encoded by hand\nmore\n")
    text = datasets.load("stl10", data_root=tmp_path).provenance
    assert "Coates" in text
    assert 'stl10/train.parquet below the data root, "STL-10, re-encoded by hand"' in text
    assert "holds 2 images where the official train split has 5,000: do not quote" in text
    assert "JPEG copies (lossy)" in text
    assert "stores images at 40x40; the originals are 96x96" in text
    assert "Resized from 40x40 to 32x32" in text


def test_gtsrb_tracks_become_groups_unique_over_classes(tmp_path):
    paths = ["train/00000/00000_00000.png", "train/00000/00000_00007.png", "train/00001/00000_00000.png"]
    contents = [encode(noise(4, 4, 3))] * 3
    write_parquet(tmp_path / "gtsrb" / "train.parquet", contents, [0, 0, 1], paths=paths)
    groups = datasets.load("gtsrb", data_root=tmp_path).groups
    assert groups.dtype == torch.int64
    assert groups[0] == groups[1] != groups[2]

    write_parquet(tmp_path / "gtsrb" / "train.parquet", contents, [0, 0, 1])
    images = datasets.load("gtsrb", data_root=tmp_path)
    assert images.groups is None
    assert "do not tell tracks" in images.provenance


@pytest.mark.parametrize("name", [info.name for info in datasets.describe() if info.kind == "embedded"])
def test_embedded_worlds_are_what_the_registry_says(name):
    world = datasets.load(name, "test")
    info = DATASETS[name]
    assert (len(world.classes), world.size) == (info.classes, (info.size, info.size))
    small = datasets.load(name, "test", size=16)
    assert small.size == (16, 16)
    assert "Resized from 32x32 to 16x16" in small.provenance


def test_listing_needs_no_torch():
    code = "import sys, sapper.datasets as d; assert d.describe() and d.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registry_is_consistent():
    for info in datasets.describe():
        assert info.name in datasets.names()
        assert len(info.class_names) in (0, info.classes)
        assert len(info.counts) in (0, len(info.splits))
        assert (info.kind == "known") == bool(info.folder)


# -------------------------------------------------------------------------------------------------------- torchvision


def write_idx(file: Path, values: np.ndarray) -> None:
    """The format of the MNIST files: a magic number with type (8: uint8) and dimensions, the shape, the values."""
    write(file, struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_layout_of_mnist(tmp_path, name, folder):
    for prefix, count in (("train", 4), ("t10k", 3)):
        write_idx(tmp_path / folder / "raw" / f"{prefix}-images-idx3-ubyte", noise(count, 28, 28))
        write_idx(tmp_path / folder / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    images = datasets.load(name, "test", data_root=tmp_path)
    assert images.labels.tolist() == [0, 1, 2]
    assert images.classes == DATASETS[name].class_names
    assert f"torchvision's {folder}" in images.provenance
    gray = torch.from_numpy(noise(3, 28, 28))[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(images.images, resize(gray, SIDE))


def test_torchvision_layout_of_gtsrb_in_the_folder_of_our_own_layout(tmp_path):
    for label in range(43):
        for frame in (0, 1):
            folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{label:05d}"
            write(folder / f"00003_0000{frame}.ppm", encode(noise(20 + label, 25, 3), "PPM"))
    test = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    write(test / "00000.ppm", encode(noise(30, 30, 3), "PPM"))
    write(tmp_path / "gtsrb" / "GT-final_test.csv", "Filename;Width;ClassId\n00000.ppm;30;16\n")
    images = datasets.load("gtsrb", data_root=tmp_path)
    assert images.labels.tolist() == [label for label in range(43) for _ in (0, 1)]
    assert images.groups.unique().numel() == 43
    assert "Resized from various sizes" in images.provenance
    assert datasets.load("gtsrb", "test", data_root=tmp_path).labels.tolist() == [16]

    for file in (tmp_path / "gtsrb" / "GTSRB" / "Training" / "00007").iterdir():
        file.unlink()
    (tmp_path / "gtsrb" / "GTSRB" / "Training" / "00007").rmdir()
    with pytest.raises(SapperError, match="42 of 43 class folders"):
        datasets.load("gtsrb", data_root=tmp_path)


def test_torchvision_layout_of_food101(tmp_path):
    food = tmp_path / "food-101"
    write(food / "images" / "apple_pie" / "1.jpg", encode(noise(30, 50, 3), "JPEG"))
    write(food / "images" / "waffles" / "2.jpg", encode(noise(50, 30, 3), "JPEG"))
    write(food / "meta" / "train.json", json.dumps({"waffles": ["waffles/2"], "apple_pie": ["apple_pie/1"]}))
    images = datasets.load("food101", data_root=tmp_path)
    assert images.classes == ("apple_pie", "waffles")
    assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "marker"),
    [("cifar10", "cifar-10-batches-py/x"), ("stl10", "stl10_binary/x"), ("svhn", "train_32x32.mat")],
)
def test_torchvision_files_with_another_checksum_are_refused(tmp_path, name, marker):
    write(tmp_path / marker, "something else")
    with pytest.raises(SapperError, match="not found or corrupted") as caught:
        datasets.load(name, data_root=tmp_path)
    assert caught.value.remedy


# --------------------------------------------------------------------------------------------------------- bad inputs
# Each writes something bad below the folder and returns what to load; beside it, words of the message.


def unknown_suffix(folder: Path) -> Path:
    return write(folder / "a.tar", "x")


def not_parquet(folder: Path) -> Path:
    return write(folder / "a.parquet", "PAR1 this is not parquet PAR1")


def truncated_parquet(folder: Path) -> Path:
    file = write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3))] * 2, [0, 1])
    return write(file, file.read_bytes()[:-100])


def parquet_without_images(folder: Path) -> Path:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_of_numbers(folder: Path) -> Path:
    pq.write_table(pa.table({"image": [1, 2], "label": [0, 1]}), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_of_texts(folder: Path) -> Path:
    """A text must never be taken for a path to open."""
    pq.write_table(pa.table({"image": [{"bytes": "/etc/hostname"}], "label": [0]}), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_with_an_undecodable_row(folder: Path) -> Path:
    contents = [encode(noise(8, 8, 3)), b"not an image"]
    return write_parquet(folder / "a.parquet", contents, [0, 1], paths=["x.png", "y.png"])


def parquet_with_an_empty_row(folder: Path) -> Path:
    return write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3)), None], [0, 1])


def parquet_with_texts_that_classes_json_lacks(folder: Path) -> Path:
    write(folder / "classes.json", '["dog"]')
    return write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3))], pa.array(["cat"]))


def parquet_with_half_labels(folder: Path) -> Path:
    return write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3))] * 2, pa.array([1.0, 0.5]))


def parquet_with_a_file_that_is_not_beside_it(folder: Path) -> Path:
    return write_parquet(folder / "a.parquet", [None], [0], paths=["x.png"])


def parquet_with_a_file_of_somebody_else(folder: Path) -> Path:
    """A table from elsewhere must not choose which files of this machine are opened."""
    write(folder / "x.png", noise(8, 8, 3))
    (folder / "in").mkdir()
    return write_parquet(folder / "in" / "a.parquet", [None], [0], paths=["../x.png"])


def parts_of_which_one_is_missing(folder: Path) -> Path:
    write_parquet(folder / "train-00000-of-00002-abc.parquet", [encode(noise(8, 8, 3))], [0])
    return folder


def parts_of_two_versions(folder: Path) -> Path:
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        write_parquet(folder / f"{name}.parquet", [encode(noise(8, 8, 3))], [0])
    return folder


def several_configurations(folder: Path) -> Path:
    for name in ("plain_text", "other"):
        write_parquet(folder / name / "train-00000-of-00001.parquet", [encode(noise(8, 8, 3))], [0])
    return folder


def an_archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("0.png", encode(noise(8, 8, 3)))
    return folder / "photos.zip"


def a_single_picture(folder: Path) -> Path:
    return write(folder / "single.png", noise(8, 8, 3))


def a_list_of_files(folder: Path) -> Path:
    return write(folder / "list.txt", "0.png\n")


def folder_with_a_heic_picture(folder: Path) -> Path:
    write(folder / "IMG_1.HEIC", HEIC)
    write(folder / "1.png", noise(8, 8, 3))
    return folder


def folder_with_a_heic_picture_called_jpg(folder: Path) -> Path:
    write(folder / "IMG_1.jpg", HEIC)
    return folder


HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


def parquet_with_a_missing_label(folder: Path) -> Path:
    return write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3))] * 2, [0, None])


def parquet_with_labels_beyond_the_classes(folder: Path) -> Path:
    write(folder / "classes.json", '["a", "b"]')
    return write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3))] * 2, [0, 2])


def parquet_with_negative_labels(folder: Path) -> Path:
    return write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3))] * 2, [0, -1])


def empty_parquet(folder: Path) -> Path:
    return write_parquet(folder / "a.parquet", [], [])


def bad_classes_json(folder: Path) -> Path:
    write(folder / "classes.json", '{"a": 0}')
    return write_parquet(folder / "a.parquet", [encode(noise(8, 8, 3))], [0])


def npz_that_is_no_zip(folder: Path) -> Path:
    return write(folder / "a.npz", "no zip")


def truncated_npz(folder: Path) -> Path:
    file = write_npz(folder / "a.npz", image=noise(8, 8, 8, 3), label=np.arange(8))
    content = file.read_bytes()
    return write(file, content[:200] + b"\0" * 200 + content[400:])


def npz_with_pickled_objects(folder: Path) -> Path:
    return write_npz(folder / "a.npz", image=np.array([{"run": "me"}], dtype=object), label=np.zeros(1, int))


def npz_with_a_member_that_is_no_array(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("image", "plain text")
    return folder / "a.npz"


def npz_without_images(folder: Path) -> Path:
    return write_npz(folder / "a.npz", pictures=noise(2, 8, 8))


def npz_of_floats(folder: Path) -> Path:
    return write_npz(folder / "a.npz", image=np.zeros((2, 8, 8)), label=np.arange(2))


def npz_of_vectors(folder: Path) -> Path:
    return write_npz(folder / "a.npz", image=noise(2, 64), label=np.arange(2))


def npz_of_nothing(folder: Path) -> Path:
    return write_npz(folder / "a.npz", image=noise(0, 8, 8), label=np.arange(0))


def npz_with_too_few_labels(folder: Path) -> Path:
    return write_npz(folder / "a.npz", image=noise(2, 8, 8), label=np.arange(1))


def npz_with_float_labels(folder: Path) -> Path:
    return write_npz(folder / "a.npz", image=noise(2, 8, 8), label=np.array([0.0, 0.5]))


def npz_with_several_classes_an_image(folder: Path) -> Path:
    return write_npz(folder / "a.npz", image=noise(2, 8, 8), label=np.array([[1, 1], [0, 1]]))


def empty_folder(folder: Path) -> Path:
    return folder


def folder_without_images(folder: Path) -> Path:
    write(folder / "a" / "notes.txt", "x")
    return folder


def folder_with_a_truncated_image(folder: Path) -> Path:
    write(folder / "a" / "ok.jpg", encode(noise(64, 64, 3), "JPEG"))
    write(folder / "b" / "half.jpg", encode(noise(64, 64, 3), "JPEG")[:900])
    return folder


def folder_with_an_image_that_is_none(folder: Path) -> Path:
    write(folder / "fake.png", "x")
    return folder


def folder_with_postscript(folder: Path) -> Path:
    """Pillow would start Ghostscript on it, whatever the suffix says."""
    write(folder / "fake.png", encode(noise(8, 8, 3), "EPS"))
    return folder


def folder_with_12_bit_image(folder: Path) -> Path:
    write(folder / "deep.png", noise(8, 8).astype(np.uint16) * 16)
    return folder


def folder_with_a_float_image(folder: Path) -> Path:
    write(folder / "float.tif", encode(Image.fromarray(noise(8, 8).astype(np.float32) / 255), "TIFF"))
    return folder


def folder_with_a_huge_image(folder: Path) -> Path:
    """A header that promises 100,000 x 100,000 pixels."""
    content = bytearray(encode(noise(8, 8, 3), "BMP"))
    content[18:26] = struct.pack("<ii", 100_000, 100_000)
    write(folder / "bomb.bmp", bytes(content))
    return folder


def folder_with_a_rather_huge_image(folder: Path) -> Path:
    """10,000 x 10,000: of this Pillow would only warn."""
    content = bytearray(encode(noise(8, 8, 3), "BMP"))
    content[18:26] = struct.pack("<ii", 10_000, 10_000)
    write(folder / "bomb.bmp", bytes(content))
    return folder


def folder_with_a_stray_image(folder: Path) -> Path:
    write(folder / "a" / "1.png", noise(8, 8, 3))
    write(folder / "stray.png", noise(8, 8, 3))
    return folder


def folder_with_an_unlisted_class(folder: Path) -> Path:
    write(folder / "a" / "1.png", noise(8, 8, 3))
    write(folder / "classes.json", '["b"]')
    return folder


def folder_with_other_splits(folder: Path) -> Path:
    write(folder / "test" / "a" / "1.png", noise(8, 8, 3))
    return folder


BAD_PATHS = {
    unknown_suffix: ["a.tar", "this kind of file is not read", ".parquet"],
    not_parquet: ["a.parquet", "not a readable parquet file"],
    truncated_parquet: ["a.parquet", "not a readable parquet file"],
    parquet_without_images: ["a.parquet", "no column 'image'", "text, label"],
    parquet_of_numbers: ["a.parquet, column 'image'", "int64", "struct{bytes, path}"],
    parquet_of_texts: ["a.parquet, column 'image'", "string", "struct{bytes, path}"],
    parquet_with_an_undecodable_row: ["a.parquet, column 'image', row 1 (y.png)", "not an image"],
    parquet_with_an_empty_row: ["a.parquet, column 'image', row 1", "no image bytes"],
    parquet_with_texts_that_classes_json_lacks: ["a.parquet, column 'label'", "'cat' in row 0", "classes.json"],
    parquet_with_half_labels: ["a.parquet, column 'label'", "0.5 in row 1"],
    parquet_with_a_file_that_is_not_beside_it: ["row 0 (x.png)", "not beside the table"],
    parquet_with_a_file_of_somebody_else: ["row 0 (../x.png)", "not beside the table"],
    parts_of_which_one_is_missing: ["1 of its 2 parts are missing: train-00001-of-00002-abc.parquet"],
    parts_of_two_versions: ["parts of two versions of train"],
    several_configurations: ["several configurations", "other, plain_text", "give the path of one"],
    an_archive: ["photos.zip", "an archive", "unpack it"],
    a_single_picture: ["single.png", "a single picture", "give the folder"],
    a_list_of_files: ["list.txt", "this kind of file is not read"],
    folder_with_a_heic_picture: ["IMG_1.HEIC", "pillow-heif"],
    folder_with_a_heic_picture_called_jpg: ["IMG_1.jpg", "HEIC", "pillow-heif"],
    parquet_with_a_missing_label: ["a.parquet, column 'label'", "1 rows have no label"],
    parquet_with_labels_beyond_the_classes: ["a.parquet", "labels run from 0 to 2", "2 classes"],
    parquet_with_negative_labels: ["a.parquet", "labels run from -1 to 0"],
    empty_parquet: ["a.parquet", "there is no image in it"],
    bad_classes_json: ["classes.json", "not a list of class names"],
    npz_that_is_no_zip: ["a.npz", "not an npz file"],
    truncated_npz: ["a.npz", "not a readable npz file"],
    npz_with_pickled_objects: ["a.npz", "not a readable npz file", "no Python objects"],
    npz_with_a_member_that_is_no_array: ["a.npz, array 'image'", "|S10"],
    npz_without_images: ["a.npz", "no array 'image'", "pictures"],
    npz_of_floats: ["a.npz, array 'image'", "float64", "uint8"],
    npz_of_vectors: ["a.npz, array 'image'", "(2, 64)"],
    npz_of_nothing: ["a.npz, array 'image'", "holds no image"],
    npz_with_too_few_labels: ["a.npz, array 'label'", "(1,) for 2 images"],
    npz_with_float_labels: ["a.npz, array 'label'", "0.5 in row 1"],
    npz_with_several_classes_an_image: ["a.npz, array 'label'", "(2, 2) for 2 images"],
    empty_folder: ["there is no image in it", ".png"],
    folder_without_images: ["there is no image in it"],
    folder_with_a_truncated_image: ["b/half.jpg", "cannot be decoded", "truncated"],
    folder_with_an_image_that_is_none: ["fake.png", "not an image"],
    folder_with_postscript: ["fake.png", "not an image"],
    folder_with_12_bit_image: ["deep.png", "16 bits but end at"],
    folder_with_a_float_image: ["float.tif", "no whole numbers of 8 or 16 bits"],
    folder_with_a_huge_image: ["bomb.bmp", "too large"],
    folder_with_a_rather_huge_image: ["bomb.bmp", "too large"],
    folder_with_a_stray_image: ["stray.png", "beside class folders"],
    folder_with_an_unlisted_class: ["classes.json", "'a' is not listed"],
    folder_with_other_splits: ["no split 'train'", "use a split that is there: test"],
}


if "HEIF" in FORMATS:  # the plugin is installed, and says of these what it says
    del BAD_PATHS[folder_with_a_heic_picture], BAD_PATHS[folder_with_a_heic_picture_called_jpg]


@pytest.mark.parametrize(("make", "words"), BAD_PATHS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_bad_files_give_one_error_with_place_and_remedy(tmp_path, make, words):
    with pytest.raises(SapperError) as caught:
        datasets.load(make(tmp_path))
    for word in words:
        assert word in str(caught.value)
    assert str(tmp_path) in caught.value.where
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("cifar", "train", ["no data set 'cifar'", "cifar10"]),
        ("CIFAR10", "train", ["no data set 'CIFAR10'", "did you mean cifar10"]),
        ("", "train", ["no data set ''"]),
        ("no/such/folder", "train", ["no/such/folder", "no such file or folder"]),
        ("x" * 5000 + "/y", "train", ["File name too long"]),
        ("objects", "val", ["no split 'val'"]),
        ("cifar10", "val", ["no split 'val'", "train, test"]),
        ("cifar10", "train", ["no data root is set", "--data-root or SAPPER_DATA"]),
    ],
)
def test_bad_names_and_splits(name, split, words):
    with pytest.raises(SapperError) as caught:
        datasets.load(name, split)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.remedy


def test_size_must_be_positive():
    with pytest.raises(SapperError, match="at least 1 pixel"):
        datasets.load("digits", size=0)


def test_data_root_that_is_not_there(tmp_path):
    with pytest.raises(SapperError, match="there is no data root") as caught:
        datasets.load("svhn", data_root=tmp_path / "nowhere")
    assert "SAPPER_DATA" in caught.value.remedy


def test_missing_known_set_names_every_place_searched(tmp_path):
    with pytest.raises(SapperError) as caught:
        datasets.load("svhn", "test", data_root=tmp_path)
    for word in (f"test.parquet, test.npz or test/ in {tmp_path / 'svhn'}", "torchvision's SVHN", "--download"):
        assert word in str(caught.value)


def test_known_set_without_labels_is_refused(tmp_path):
    write_npz(tmp_path / "mnist" / "train.npz", image=noise(2, 28, 28))
    with pytest.raises(SapperError, match="mnist has labels, and none are there"):
        datasets.load("mnist", data_root=tmp_path)


@pytest.mark.parametrize("kind", ["file", "flat folder"])
def test_a_source_without_splits_has_only_train(tmp_path, kind):
    write(tmp_path / "1.png", noise(8, 8, 3))
    path = tmp_path if kind == "flat folder" else write_npz(tmp_path / "x" / "a.npz", image=noise(2, 8, 8))
    assert datasets.load(path).split == "train"
    with pytest.raises(SapperError, match="no split 'test'") as caught:
        datasets.load(path, "test")
    assert "train" in caught.value.remedy


# --------------------------------------------------------------------------------------------------------- check_task


def task(labels: list[int] | None, classes: tuple[str, ...] = ("a", "b"), size: int = 4) -> ImageSet:
    images = torch.zeros(4, 3, size, size, dtype=torch.uint8)
    return ImageSet(images=images, name="t", labels=None if labels is None else torch.tensor(labels), classes=classes)


GOOD = task([0, 1, 0, 1])


def test_a_good_task_passes():
    datasets.check_task(GOOD, GOOD)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (task(None), GOOD, "no labels"),
        (GOOD, task(None), "no labels"),
        (task([1, 1, 1, 1]), GOOD, "only one class occurs in it: 'b'"),
        (GOOD, task([0, 0, 0, 0]), "only one class occurs in it: 'a'"),
        (GOOD, task([0, 1, 2, 0], ("a", "b", "c")), "classes differ: 2 and 3"),
        (GOOD, task([0, 1, 0, 1], ("b", "a")), "'a' in one is 'b' in the other"),
        (GOOD, task([0, 1, 0, 1], size=8), "differ in size"),
    ],
)
def test_what_is_no_task_is_refused(train, test, words):
    with pytest.raises(SapperError, match=re.escape(words)) as caught:
        datasets.check_task(train, test)
    assert caught.value.remedy


# ---------------------------------------------------------------------------------------------------------- real data


def promised_histogram(folder: Path, file: str) -> list[int]:
    """Images per class of ``file`` as the README beside it states them; skips where there is none."""
    readme = folder / "README.md"
    stated = readme.is_file() and re.search(
        rf"`{re.escape(file)}`.*per class[^\[]*(\[[\d, ]+\])", readme.read_text(encoding="utf-8")
    )
    if not stated or not (folder / file).is_file():
        pytest.skip(f"no {file} with a README that states its images per class in {folder}")
    return ast.literal_eval(stated[1])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        pytest.param("cifar10", "parquet", marks=pytest.mark.slow),
        pytest.param("cifar10-lossless", "parquet", marks=pytest.mark.slow),
        pytest.param("stl10", "parquet", marks=pytest.mark.slow),
        pytest.param("gtsrb", "parquet", marks=pytest.mark.slow),
        ("svhn", "parquet"),
        ("mnist", "npz"),
        ("fashion-mnist", "npz"),
    ],
)
def test_real_copies_hold_what_their_readme_promises(data_root, name, split, suffix):
    promised = promised_histogram(data_root / DATASETS[name].folder, f"{split}.{suffix}")
    images = datasets.load(name, split, data_root=data_root)
    assert torch.bincount(images.labels, minlength=len(images.classes)).tolist() == promised
    assert images.size == (SIDE, SIDE)
    assert images.classes == DATASETS[name].class_names
    official = DATASETS[name].count(split)
    assert (len(images) == official) == ("do not quote" not in images.provenance)


def test_tracks_of_the_real_gtsrb_hold_one_class_each(data_root):
    promised_histogram(data_root / "gtsrb", "train.parquet")
    images = datasets.load("gtsrb", data_root=data_root)
    assert images.groups is not None
    pairs = torch.stack([images.groups, images.labels]).unique(dim=1)
    assert pairs.shape[1] == images.groups.unique().numel()
    assert torch.bincount(images.groups.unique(return_inverse=True)[1]).max() <= 30


@pytest.mark.slow
def test_real_tiny_imagenet_evaluates_on_val(data_root):
    if not (data_root / "tiny_imagenet_32" / "val.parquet").is_file():
        pytest.skip("no tiny_imagenet_32")
    images = datasets.load("tiny-imagenet", "test", data_root=data_root)
    assert (images.split, len(images), len(images.classes)) == ("val", 10_000, 200)
    assert "Its val split stands in for test" in images.provenance
