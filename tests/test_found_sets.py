"""Data sets as people leave them: odd pictures, folders of operating systems and tools, tables of other programs."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sapper import datasets
from sapper.cli.opening import load_images
from sapper.datasets.decoding import FORMATS
from sapper.errors import SapperError
from sapper.samples import ImageSet
from tests.test_datasets import HEIC, encode, noise, pixels, write, write_npz

SIDE = 16


def pictures(folder: Path, count: int = 2) -> Path:
    for at in range(count):
        write(folder / f"{at}.png", noise(SIDE, SIDE, 3, seed=at))
    return folder


def load(path: Path, split: str = "train", *, labels: bool = True) -> ImageSet:
    return datasets.load(path, split, size=SIDE, labels=labels)


def unlabeled(path: Path) -> ImageSet:
    """As an audit loads ordinary images."""
    images: ImageSet = load_images(str(path), None, SIDE, None, download=False)
    return images


# Pictures. Each is compared with what it shows: a ramp from dark to bright, from left to right.

RAMP = np.repeat(np.linspace(0, 250, SIDE).astype(np.uint8)[None, :], SIDE, axis=0)
RGB = Image.fromarray(RAMP).convert("RGB")


def saved(kind: str, picture: Image.Image = RGB, **options: Any) -> Callable[[Path], None]:
    return lambda path: picture.save(path, kind, **options)


def png_of_16_bits(path: Path) -> None:
    """RGB with 16 bits per channel, which Pillow reads but does not write."""
    rows = np.repeat((RAMP[..., None].astype(int) * 256).astype(">u2"), 3, axis=2)
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png)


def png_with_a_large_text(path: Path) -> None:
    notes = PngInfo()
    notes.add_text("x", "a" * 2_000_000, zip=True)
    RGB.save(path, "PNG", pnginfo=notes)


def without_its_last_bytes(path: Path) -> None:
    path.write_bytes(encode(RGB, "JPEG")[:-2])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to the right to see it upright
    RGB.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif, quality=95)


DEEP = Image.fromarray(RAMP.astype(np.uint16) * 256)
GOOD: dict[str, Callable[[Path], None]] = {
    "a.jfif": saved("JPEG"),
    "a.avif": saved("AVIF"),
    "a.jp2": saved("JPEG2000"),
    "a.tga": saved("TGA"),
    "A.JPEG": saved("JPEG"),
    "ILSVRC2012_val_00000001": saved("JPEG"),
    "photo.of.me": saved("PNG"),
    "png_called.jpg": saved("PNG"),
    "cmyk.jpg": saved("JPEG", RGB.convert("CMYK")),
    "two.gif": saved("GIF", save_all=True, append_images=[RGB.rotate(90)]),
    "two.webp": saved("WEBP", save_all=True, append_images=[RGB.rotate(90)]),
    "two.mpo": saved("MPO", save_all=True, append_images=[RGB]),
    "gray16.png": saved("PNG", DEEP),
    "gray16.tif": saved("TIFF", DEEP),
    "lab.tif": saved("TIFF", RGB.convert("LAB")),
    "rgb16.png": png_of_16_bits,
    "text.png": png_with_a_large_text,
    "profile.png": saved("PNG", icc_profile=b"\0" * 3_000_000),
    "no_end.jpg": without_its_last_bytes,
    "turned.jpg": turned,
    "smörgås 图 \u202e.png": saved("PNG"),
    os.fsdecode(b"caf\xe9.png"): saved("PNG"),
}


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_whatever_opens_is_a_picture_and_shows_what_it_shows(tmp_path: Path, name: str) -> None:
    GOOD[name](tmp_path / name)
    images = load(tmp_path)
    assert images.notes == ()
    assert np.abs(pixels(images)[0].astype(int) - RAMP[..., None]).max() <= 16
    assert unlabeled(tmp_path).digest == images.digest


BAD: dict[str, tuple[bytes, str]] = {
    "zero.png": (b"", "not an image"),
    "cut.jpg": (encode(noise(64, 64, 3), "JPEG")[:-100], "truncated"),
    "page.jpg": (b"<html>404</html>", "not an image"),
    "float.tif": (encode(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"), "no whole numbers"),
    "panorama.png": (encode(Image.new("1", (12_000, 9_000)), "PNG"), "too large"),
    "script.jpg": (encode(RGB, "EPS"), "not an image"),
    "IMG_1.HEIC": (HEIC, "HEIC"),
    "IMG_1.jpg": (HEIC, "HEIC"),
    os.fsdecode(b"caf\xe9.png"): (b"x", "not an image"),
}


if "HEIF" in FORMATS:  # the plugin is installed, and says of these what it says
    BAD = {name: bad for name, bad in BAD.items() if bad[0] != HEIC}


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_broken_picture_is_an_error_where_it_would_be_trained_on_and_told_elsewhere(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, why = BAD[name]
    write(pictures(tmp_path) / name, content)
    with pytest.raises(SapperError, match=why) as caught:
        load(tmp_path)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.remedy
    images = unlabeled(tmp_path)
    assert len(images) == 2
    (told,) = images.notes
    assert told.startswith("Skipped 1")
    assert name in told
    assert why in told
    assert told in images.provenance
    assert "note: Skipped 1" in capsys.readouterr().err


def test_where_no_picture_is_left_the_first_error_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.png", "x")
    with pytest.raises(SapperError, match="not an image"):
        unlabeled(tmp_path)


def encode_with_restarts() -> bytes:
    """A JPEG with a mark after each row of blocks: it can be cut between two of them."""
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(buffer, "JPEG", restart_marker_rows=1)
    return buffer.getvalue()


def test_a_jpeg_that_lacks_pixels_is_not_filled_up(tmp_path: Path) -> None:
    """However little is missing: Pillow would paint the rest gray if the end were put there."""
    content = encode(noise(64, 64, 3), "JPEG")
    marked = encode_with_restarts()
    cut = [content[:-missing] for missing in (3, 10, 100, 1000)]
    for half in (*cut, marked[: marked.index(b"\xff\xd1")]):
        write(tmp_path / "a.jpg", half)
        with pytest.raises(SapperError, match="truncated"):
            load(tmp_path)


def test_heic_opens_with_its_plugin(tmp_path: Path) -> None:
    plugin = pytest.importorskip("pillow_heif")
    plugin.from_pillow(RGB.resize((64, 64))).save(tmp_path / "a.heic")
    assert np.abs(pixels(load(tmp_path))[0].astype(int) - RAMP[..., None]).max() <= 16


# Folders


def macos(folder: Path) -> None:
    write(pictures(folder) / "__MACOSX" / "._0.png", "x")
    write(folder / ".DS_Store", "x")
    write(folder / "._0.png", "x")


def macos_classes(folder: Path) -> None:
    pictures(folder / "cats")
    pictures(folder / "dogs")
    write(folder / "__MACOSX" / "cats" / "._0.png", "x")


def windows(folder: Path) -> None:
    write(pictures(folder) / "Thumbs.db", "x")
    write(folder / "desktop.ini", "x")


def synology(folder: Path) -> None:
    write(pictures(folder) / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg", encode(RGB, "JPEG"))


def jupyter(folder: Path) -> None:
    pictures(pictures(folder) / ".ipynb_checkpoints")


def papers(folder: Path) -> None:
    write(pictures(folder) / "README.md", "BM is how bitmaps begin")
    write(folder / "LICENSE", "P5 is how gray maps begin")


def beside(folder: Path) -> None:
    pictures(pictures(folder) / "more", 3)


def yolo(folder: Path) -> None:
    pictures(folder / "images" / "train", 3)
    pictures(folder / "images" / "val")
    write(folder / "labels" / "train" / "0.txt", "0 .5 .5 .1 .1")


def roboflow(folder: Path) -> None:
    pictures(folder / "train" / "cats", 3)
    pictures(folder / "valid" / "cats")


def roboflow_yolo(folder: Path) -> None:
    for split in ("train", "valid"):
        pictures(folder / split / "images")
        write(folder / split / "labels" / "0.txt", "0 .5 .5 .1 .1")


def extra(folder: Path) -> None:
    pictures(folder / "train" / "cats", 3)
    pictures(folder / "val" / "cats")
    write(folder / "annotations" / "a.json", "{}")


def one_split_and_extra(folder: Path) -> None:
    pictures(folder / "train" / "cats")
    write(folder / "annotations" / "a.json", "{}")


def pictures_beside_splits(folder: Path) -> None:
    extra(pictures(folder, 1))
    pictures(folder / "raw")


def only_train(folder: Path) -> None:
    pictures(folder / "train")


def upper_case(folder: Path) -> None:
    pictures(folder / "Train" / "a", 3)
    pictures(folder / "Test" / "a")


def empty_class(folder: Path) -> None:
    pictures(folder / "a")
    (folder / "b").mkdir()


def many_classes(folder: Path) -> None:
    pictures(folder / "c7")
    for at in range(1000):
        (folder / f"c{at}").mkdir(exist_ok=True)


def folder_called_png(folder: Path) -> None:
    (pictures(folder / "a") / "x.png").mkdir()


def loop(folder: Path) -> None:
    (pictures(folder / "a") / "loop").symlink_to("..")
    (folder / "self").symlink_to("self")


def link_to_a_folder(folder: Path) -> None:
    pictures(folder.parent / "elsewhere", 3)
    (pictures(folder / "a") / "part").symlink_to(folder.parent / "elsewhere")
    (folder / "a" / "again").symlink_to(folder.parent / "elsewhere")


def link_to_a_class(folder: Path) -> None:
    folder.mkdir()
    (folder / "a").symlink_to(pictures(folder.parent / "elsewhere"))


def links_to_files(folder: Path) -> None:
    folder.mkdir()
    for at, file in enumerate(sorted(pictures(folder.parent / "blobs").iterdir())):
        (folder / f"{at}").symlink_to(file)


def dangling(folder: Path) -> None:
    (pictures(folder) / "gone.png").symlink_to("/nowhere/gone.png")


def pipe(folder: Path) -> None:
    os.mkfifo(pictures(folder) / "pipe.png")
    (folder / "link.png").symlink_to("pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # names of sockets are short
        server.bind("socket.png")
        os.chdir(here)


class Expected:
    """What comes out: how many images, the classes, words of the notes; and the same where no labels are needed."""

    def __init__(self, count: int, classes: str, *notes: str, audited: int | None = None, split: str = "train"):
        self.count, self.classes, self.notes = count, tuple(classes), notes
        self.audited, self.split = count if audited is None else audited, split


FOLDERS: dict[Callable[[Path], None], Expected] = {
    macos: Expected(2, "", "3 hidden or system entries: .DS_Store, ._0.png, __MACOSX"),
    macos_classes: Expected(4, "cd", "1 hidden or system entry: __MACOSX"),
    windows: Expected(2, "", "2 hidden or system entries: Thumbs.db, desktop.ini"),
    synology: Expected(2, "", "1 hidden or system entry: @eaDir"),
    jupyter: Expected(2, "", "1 hidden or system entry: .ipynb_checkpoints"),
    papers: Expected(2, "", "2 files that are no pictures: LICENSE, README.md"),
    yolo: Expected(3, "", audited=2, split="val"),
    roboflow: Expected(3, "c", audited=2, split="val"),
    roboflow_yolo: Expected(2, "", "1 file that is no picture: labels/0.txt", split="val"),
    extra: Expected(3, "c", audited=2, split="val"),
    pictures_beside_splits: Expected(
        3, "c", "2 entries with pictures beside the splits: raw, 0.png", audited=2, split="val"
    ),
    one_split_and_extra: Expected(2, "c"),
    only_train: Expected(2, ""),
    upper_case: Expected(3, "a", audited=2, split="test"),
    empty_class: Expected(2, "ab", "1 class folder without pictures: b"),
    many_classes: Expected(2, "c" * 1000, "999 class folders without pictures: c0, c1, c10, …"),
    folder_called_png: Expected(2, "a"),
    loop: Expected(2, "a", "1 link that leads nowhere: self", "1 link to what is read anyway: a/loop"),
    link_to_a_folder: Expected(5, "a", "1 link to what is read anyway: a/part"),
    link_to_a_class: Expected(2, "a"),
    links_to_files: Expected(2, ""),
    dangling: Expected(2, "", "1 link that leads nowhere: gone.png"),
    pipe: Expected(2, "", "4 entries that are no regular files: link.png, pipe.png, socket.png, …"),
}


@pytest.mark.parametrize(("make", "expected"), FOLDERS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_folders_are_read_as_people_leave_them(
    tmp_path: Path, make: Callable[[Path], None], expected: Expected
) -> None:
    make(tmp_path / "set")
    images = load(tmp_path / "set")
    assert len(images) == expected.count
    assert tuple(name[0] for name in images.classes) == expected.classes
    assert images.notes == tuple(f"Skipped {note}." for note in expected.notes)
    audited = unlabeled(tmp_path / "set")
    assert (len(audited), audited.split) == (expected.audited, expected.split)


def test_pictures_beside_folders_matter_only_where_labels_do(tmp_path: Path) -> None:
    beside(tmp_path)
    images = unlabeled(tmp_path)
    assert (len(images), images.labels) == (5, None)
    with pytest.raises(SapperError, match="beside class folders"):
        load(tmp_path)


def test_what_was_skipped_is_told_where_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "cls").symlink_to("/nowhere/at/all")
    with pytest.raises(SapperError, match=r"no image in it\. Skipped 1 link that leads nowhere: cls"):
        unlabeled(tmp_path)


@pytest.mark.parametrize("asked", ["val", "valid", "validation"])
def test_a_split_is_found_by_each_of_its_names(tmp_path: Path, asked: str) -> None:
    roboflow(tmp_path)
    images = load(tmp_path, asked)
    assert (len(images), images.split) == (2, "val")
    assert "stands in" not in images.provenance


def test_an_audit_takes_the_test_split_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "mine" / "train")
    pictures(tmp_path / "mine" / "test", 3)
    images: ImageSet = load_images("~/mine", None, SIDE, None, download=False)
    assert (len(images), images.split) == (3, "test")


def test_classes_json_may_be_bad_where_no_labels_are_needed(tmp_path: Path) -> None:
    macos_classes(tmp_path)
    write(tmp_path / "classes.json", "nonsense")
    assert len(unlabeled(tmp_path)) == 4


# Tables

N = 4
CONTENTS = [encode(noise(SIDE, SIDE, 3, seed=at)) for at in range(N)]
STRUCTS = [{"bytes": content, "path": f"{at}.png"} for at, content in enumerate(CONTENTS)]
LARGE = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])


def table(file: Path, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


IMAGE_COLUMNS: dict[str, dict[str, Any]] = {
    "upper case": {"Image": STRUCTS},
    "webdataset": {"jpg": STRUCTS, "json": ["{}"] * N, "__key__": ["a"] * N},
    "pixel_values": {"pixel_values": CONTENTS},
    "another name": {"scan": STRUCTS},
    "lists of one": {"images": pa.array([[each] for each in STRUCTS])},
    "text beside bytes": {"image": ["http://x/0.png"] * N, "jpg": STRUCTS},
    "large": {"image": pa.array(STRUCTS, LARGE)},
    "dictionary": {"image": pa.array(CONTENTS, pa.binary()).dictionary_encode()},
    "view": {"image": pa.array(CONTENTS, pa.binary_view())},
}


@pytest.mark.parametrize("columns", IMAGE_COLUMNS.values(), ids=IMAGE_COLUMNS.keys())
def test_images_are_found_in_the_columns_of_other_programs(tmp_path: Path, columns: dict[str, Any]) -> None:
    images = load(table(tmp_path / "a.parquet", **columns))
    assert np.array_equal(pixels(images), np.stack([noise(SIDE, SIDE, 3, seed=at) for at in range(N)]))


def test_rows_may_name_files_beside_the_table(tmp_path: Path) -> None:
    pictures(tmp_path / "images", N)
    rows = [{"bytes": None, "path": f"images/{at}.png"} for at in range(N)]
    file = table(
        tmp_path / "a.parquet", image=pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    )
    assert len(load(file)) == N


def test_a_row_without_an_image_is_named_and_takes_its_label_along(tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", image=[*STRUCTS[:1], None, *STRUCTS[2:]], label=[0, 1, 2, 3])
    with pytest.raises(SapperError, match="no image bytes") as caught:
        load(file)
    assert "row 1" in str(caught.value)
    images = unlabeled(file)
    assert images.targets().tolist() == [0, 2, 3]
    assert "Skipped 1 row" in images.notes[0]


def test_a_row_with_several_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="4 images in one row"):
        load(table(tmp_path / "a.parquet", image=pa.array([STRUCTS])))


LABELS: dict[str, tuple[Any, list[int] | None, tuple[str, ...]]] = {
    "texts": (["b", "a", "b", "c"], [1, 0, 1, 2], ("a", "b", "c")),
    "dictionary": (pa.array(["b", "a", "b", "c"]).dictionary_encode(), [1, 0, 1, 2], ("a", "b", "c")),
    "text views": (pa.array(["b", "a", "b", "c"], pa.string_view()), [1, 0, 1, 2], ("a", "b", "c")),
    "booleans": ([True, False, True, False], [1, 0, 1, 0], ("0", "1")),
    "floats": ([1.0, 0.0, 2.0, 0.0], [1, 0, 2, 0], ("0", "1", "2")),
    "unsigned": (pa.array([1, 0, 2, 0], pa.uint64()), [1, 0, 2, 0], ("0", "1", "2")),
    "all -1": ([-1] * N, None, ()),
    "all null": (pa.nulls(N), None, ()),
    "all NaN": ([float("nan")] * N, None, ()),
}


@pytest.mark.parametrize(("column", "labels", "classes"), LABELS.values(), ids=LABELS.keys())
def test_labels_of_other_programs(
    tmp_path: Path, column: Any, labels: list[int] | None, classes: tuple[str, ...]
) -> None:
    images = load(table(tmp_path / "a.parquet", image=STRUCTS, label=column))
    assert images.classes == classes
    assert (None if images.labels is None else images.labels.tolist()) == labels
    if labels is None:
        with pytest.raises(SapperError, match=r"no labels \(.*null or -1"):
            datasets.check_task(images, images)


NO_LABELS: dict[str, tuple[Any, str]] = {
    "lists": (pa.array([[0, 1]] * N), "labels are list<"),
    "structs": (pa.array([{"x": 1}] * N), "labels are struct<"),
    "dates": (pa.array([0] * N, pa.date32()), "labels are date32"),
    "halves": ([0.5] * N, "no whole numbers"),
    "infinite": ([float("inf")] * N, "no whole numbers"),
    "some null": (pa.array([0, None] * 2), "2 rows have no label"),
    "some -1": ([0, -1, 1, -1], "2 rows have no label: labels run from -1 to 1"),
    "negative": ([0, -7, 1, 1], "labels run from -7 to 1"),
    "huge": (pa.array([10**12] * N), "300,000 classes"),
    "beyond int64": (pa.array([2**64 - 1] * N, pa.uint64()), "300,000 classes"),
}


@pytest.mark.parametrize(("column", "why"), NO_LABELS.values(), ids=NO_LABELS.keys())
def test_what_is_no_label_matters_only_where_labels_do(tmp_path: Path, column: Any, why: str) -> None:
    file = table(tmp_path / "a.parquet", image=STRUCTS, label=column)
    images = unlabeled(file)
    assert (len(images), images.labels, images.notes) == (N, None, ())
    with pytest.raises(SapperError, match=why) as caught:
        load(file)
    assert "column 'label'" in str(caught.value.where)
    assert caught.value.remedy


def test_labels_beyond_the_named_classes_matter_only_where_labels_do(tmp_path: Path) -> None:
    write(tmp_path / "classes.json", '["a", "b"]')
    file = table(tmp_path / "a.parquet", image=STRUCTS, label=[0, 1, 2, 0])
    assert unlabeled(file).labels is None
    with pytest.raises(SapperError, match="2 classes"):
        load(file)


def test_texts_are_labeled_in_the_order_of_classes_json(tmp_path: Path) -> None:
    write(tmp_path / "classes.json", b"\xef\xbb\xbf" + b'["b", "a"]')
    images = load(table(tmp_path / "train.parquet", image=STRUCTS, label=["a", "b", "b", "a"]).parent)
    assert (images.targets().tolist(), images.classes) == ([1, 0, 0, 1], ("b", "a"))


@pytest.mark.parametrize("place", [".", "data", "plain_text"])
@pytest.mark.parametrize("more", ["", "-a1b2"])
def test_parts_of_the_hub_are_found_and_read_in_order(tmp_path: Path, place: str, more: str) -> None:
    for at in (1, 0):
        name = f"train-0000{at}-of-00002{more}.parquet"
        table(tmp_path / place / name, img=STRUCTS[2 * at : 2 * at + 2], label=["b", "a"] if at else ["c", "c"])
    table(tmp_path / place / f"test-00000-of-00001{more}.parquet", img=STRUCTS[:1], label=["a"])
    write(tmp_path / "README.md", "x")
    images = load(tmp_path)
    assert np.array_equal(pixels(images), np.stack([noise(SIDE, SIDE, 3, seed=at) for at in range(N)]))
    assert (images.targets().tolist(), images.classes) == ([2, 2, 1, 0], ("a", "b", "c"))
    assert len(unlabeled(tmp_path)) == 1


def test_one_part_is_enough_for_an_audit_and_what_is_missing_is_told(tmp_path: Path) -> None:
    file = table(tmp_path / "train-00001-of-00003.parquet", image=STRUCTS, label=[0] * N)
    images = unlabeled(tmp_path)
    assert len(images) == N
    assert images.notes[0].startswith("Skipped 2 parts of the set that are not there: train-00000-of-00003.parquet")
    assert len(load(file)) == N


@pytest.mark.parametrize("folder", [".", "train"])
def test_tables_of_other_names_in_a_folder_are_one_split(tmp_path: Path, folder: str) -> None:
    for at in range(2):
        table(tmp_path / folder / f"000{at}.parquet", image=STRUCTS[2 * at : 2 * at + 2])
    assert len(load(tmp_path)) == N


def test_a_table_beside_pictures_is_no_table_of_pictures(tmp_path: Path) -> None:
    table(pictures(tmp_path) / "metadata.parquet", file_name=["0.png", "1.png"])
    assert len(load(tmp_path)) == 2


# Arrays


def test_one_hot_labels_in_npz(tmp_path: Path) -> None:
    images = load(write_npz(tmp_path / "a.npz", x=noise(3, 8, 8, 3), y=np.eye(10)[[2, 0, 1]]))
    assert (images.targets().tolist(), len(images.classes)) == ([2, 0, 1], 10)


@pytest.mark.parametrize("keys", ["{}_images {}_labels", "x_{} y_{}"])
def test_an_npz_file_may_hold_its_splits(tmp_path: Path, keys: str) -> None:
    arrays = {}
    for split, count in (("train", 3), ("test", 2)):
        image_key, label_key = keys.format(split, split).split()
        arrays |= {image_key: noise(count, 8, 8, 3), label_key: np.arange(count)[:, None]}
    file = write_npz(tmp_path / "a.npz", **arrays)
    assert load(file).targets().tolist() == [0, 1, 2]
    assert unlabeled(file).targets().tolist() == [0, 1]


def test_texts_and_odd_arrays_as_labels_in_npz(tmp_path: Path) -> None:
    images = load(write_npz(tmp_path / "a.npz", image=noise(2, 8, 8), label=np.array(["b", "a"])))
    assert (images.targets().tolist(), images.classes) == ([1, 0], ("a", "b"))
    for odd in (np.zeros((2, 3, 4)), np.array([{}, {}], dtype=object), np.zeros(5)):
        file = write_npz(tmp_path / "a.npz", image=noise(2, 8, 8), label=odd)
        assert unlabeled(file).labels is None
        with pytest.raises(SapperError, match=r"a\.npz"):
            load(file)


def test_npy_is_a_set_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(3, SIDE, SIDE, 3))
    assert torch.equal(load(tmp_path / "a.npy").images, torch.from_numpy(noise(3, SIDE, SIDE, 3)).permute(0, 3, 1, 2))
    for content in (b"x", np.zeros(3), np.array([{}])):
        if isinstance(content, bytes):
            write(tmp_path / "a.npy", content)
        else:
            np.save(tmp_path / "a.npy", content)
        with pytest.raises(SapperError, match=r"a\.npy"):
            load(tmp_path / "a.npy")
