"""Files of weights as they come: what opens, what is said of those that do not, and what to do about them."""

import gzip
import io
import json
import pickle
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sapper import encoders
from sapper.encoders import sources
from sapper.errors import SapperError
from sapper.running import Run

STATE = {
    "conv1.weight": torch.randn(4, 3, 3, 3),
    "bn1.bias": torch.randn(4),
    "bn1.num_batches_tracked": torch.tensor(3),
}


def saved(content: object = None) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": STATE} if content is None else content, out)
    return out.getvalue()


def said(path: Path) -> str:
    """The error that reading ends with, its remedy among it."""
    with pytest.raises(SapperError) as caught:
        sources.read(path)
    assert caught.value.remedy
    assert str(caught.value.where).endswith(path.name)
    return str(caught.value)


def tarred(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


def unmarked(tar: bytes) -> bytes:
    """As tar wrote it before there was a mark, with the sum that such a header has."""
    header = bytearray(tar[:512])
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + tar[512:]


def zipped(compression: int = zipfile.ZIP_DEFLATED, **entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


SAFE = safetensors.torch.save(STATE)
INDEX = {"metadata": {"total_size": 9}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}

NO_WEIGHTS: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    # name of the file, its content, what is said of it, and what to do
    "a page": ("a.pth", lambda: b"\n <!DOCTYPE html><html>Virus scan warning</html>", "HTML", "log in first"),
    "a page with a mark of order": ("a.pth", lambda: b"\xef\xbb\xbf<html>", "HTML", "log in first"),
    "a pointer of Git LFS": (
        "a.pth",
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        "Git LFS",
        "git lfs pull",
    ),
    "no entry": ("a.pth", lambda: b"Entry not found", "a text, not weights: 'Entry not found'", "download it anew"),
    "no entry, called safetensors": ("a.safetensors", lambda: b"Entry not found", "a text", "download it anew"),
    "no password": ("a.bin", lambda: b"Invalid username or password.", "a text", "log in first"),
    "an error": ("a.pth", lambda: b'{"error":"Repository not found"}', "a text", "download it anew"),
    "an error, called so": ("a.safetensors", lambda: b'{ "error": { "code": 404 } }', "a text", "download it"),
    "zeros": ("a.pth", lambda: bytes(5000), "nothing but zeros", "was not finished"),
    "nothing": ("a.pth", lambda: b"", "empty", "was not finished"),
    "an index of shards": (
        "a.index.json",
        lambda: json.dumps(INDEX).encode(),
        "names of files (shards)",
        "as one file",
    ),
    "a shard": ("model-00001-of-00002.safetensors", lambda: SAFE, "part 1 of 2", "as one file"),
    "cut safetensors": ("a.safetensors", lambda: SAFE[: len(SAFE) // 2], "it was cut", "was not finished"),
    "a cut header": ("a.safetensors", lambda: SAFE[:40], "it was cut", "was not finished"),
    "safetensors under another name": ("a.pth", lambda: SAFE, "called something else", "rename it to .safetensors"),
    "safetensors under no name": ("a", lambda: SAFE, "called something else", "rename it to .safetensors"),
    "a tar older than its mark": ("a.pth", lambda: unmarked(tarred("model.pth")), "a tar archive", "unpack it"),
    "gzip": ("a.pth.gz", lambda: gzip.compress(b"a"), "compressed by gzip", "gunzip"),
    "the old tar": (
        "a.pth",
        lambda: tarred("sys_info", "pickle", "tensors", "storages"),
        "before version 0.1.10",
        "torch",
    ),
    "another tar": ("a.tar", lambda: tarred("model.pth"), "a tar archive", "unpack it"),
    "a pickle that is called safetensors": (
        "a.safetensors",
        saved,
        "called safetensors, and is something else",
        "trust",
    ),
}

IN_ARCHIVES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "a checkpoint in an archive": (lambda: zipped(**{"model.pth": saved()}), "holds 'model.pth'", "unpack it"),
    "several in an archive": (
        lambda: zipped(**{"x.safetensors": SAFE, "y.ckpt": b"", "read.me": b""}), "'x.safetensors' and 1 more", "unpack"
    ),
    "arrays in an archive": (lambda: zipped(**{"a.npy": b"", "b.npy": b""}), "NumPy arrays (.npz)", "safetensors"),
    "cut": (lambda: saved()[:-500], "was cut: its directory", "was not finished"),
    "packed by bzip2": (
        lambda: zipped(zipfile.ZIP_BZIP2, **{"a/data.pkl": b"a" * 99}), "compressed in a way", "zip -0 -r"
    ),
    "an unfinished copy of an old file": (
        lambda: old()[:-8], "it was cut: it is shorter than its storages", "was not finished"
    ),
}  # fmt: skip


def old() -> bytes:
    out = io.BytesIO()
    torch.save(STATE, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_is_no_file_of_weights_is_named(name: str, tmp_path: Path) -> None:
    file, content, what, remedy = NO_WEIGHTS[name]
    (tmp_path / file).write_bytes(content())
    message = said(tmp_path / file)
    assert what in message
    assert remedy in message


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("name", IN_ARCHIVES)
def test_what_cannot_be_read_in_an_archive_is_named(name: str, tmp_path: Path) -> None:
    content, what, remedy = IN_ARCHIVES[name]
    (tmp_path / "a.pth").write_bytes(content())
    message = said(tmp_path / "a.pth")
    assert what in message
    assert remedy in message


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_named_and_how_to_save_its_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "model.pt")
    message = said(tmp_path / "model.pt")
    assert "it is TorchScript, which is code" in message
    assert "torch.jit.load(FILE).state_dict()" in message


@pytest.mark.usefixtures("sandbox_holds")
def test_an_archive_that_was_packed_again_opens(tmp_path: Path) -> None:
    """With and without compression, with entries for folders, at the top or in a folder, as tools leave it."""
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(io.BytesIO(saved())) as archive:
        archive.extractall(folder)
    inner = next(folder.iterdir())
    for number, (compression, top) in enumerate(
        ((zipfile.ZIP_DEFLATED, folder), (zipfile.ZIP_STORED, folder), (zipfile.ZIP_STORED, inner))
    ):
        path = tmp_path / f"{number}.pth"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for each in sorted(top.rglob("*")):
                archive.write(each, each.relative_to(top))
        tensors = sources.read(path).tensors
        assert all(torch.equal(tensors[f"state_dict.{name}"], value) for name, value in STATE.items())
    for each in (folder, inner):
        message = said(each)
        assert "a folder: a file of torch's that was unpacked" in message
        assert f"(cd {inner.parent} && zip -0 -r NEW.pth {inner.name})" in message
    assert "name the file of weights in it" in said(tmp_path)


@pytest.mark.skipif(shutil.which("zip") is None, reason="no zip here")
@pytest.mark.usefixtures("sandbox_holds")
def test_the_remedy_for_an_unpacked_file_works(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved())) as archive:
        archive.extractall(tmp_path / "a")
    command = said(tmp_path / "a").rpartition("compression: ")[2]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert sources.read(tmp_path / "a" / "NEW.pth").tensors.keys() == {f"state_dict.{name}" for name in STATE}


@pytest.mark.usefixtures("sandbox_holds")
def test_any_name_for_a_pickle_and_one_for_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(STATE))
    assert sources.read(path).tensors.keys() == STATE.keys()
    single = tmp_path / "model-00001-of-00001.safetensors"
    single.write_bytes(SAFE)
    assert sources.read(single).tensors.keys() == STATE.keys()
    upper = tmp_path / "WEIGHTS.SAFETENSORS"
    upper.write_bytes(SAFE)
    assert sources.read(upper).tensors.keys() == STATE.keys()


@pytest.mark.usefixtures("sandbox_holds")
def test_a_link_of_the_hubs_cache_is_followed_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "hub" / "models--org--model"
    (model / "blobs").mkdir(parents=True)
    snapshot = model / "snapshots" / "abc"
    (snapshot / "deep").mkdir(parents=True)
    (model / "blobs" / "0").write_bytes(SAFE)
    for place, target in (
        (snapshot / "model.safetensors", "../../blobs/0"),
        (snapshot / "deep" / "b.safetensors", "../../../blobs/0"),
    ):
        place.symlink_to(target)
        weights = sources.read(place)
        assert weights.tensors.keys() == STATE.keys()
        assert weights.path == place
    (model / "blobs" / "1").write_bytes(b"\x80\x02N.")
    (snapshot / "model.bin").symlink_to("../../blobs/1")
    assert "it holds no tensor" in said(snapshot / "model.bin")  # where the user named it
    (tmp_path / "elsewhere.safetensors").write_bytes(SAFE)
    (snapshot / "trap").symlink_to(tmp_path / "elsewhere.safetensors")
    assert "symbolic link" in said(snapshot / "trap")
    (snapshot / "folder").symlink_to(model / "blobs")
    assert "symbolic link" in said(snapshot / "folder")
    (snapshot / "gone").symlink_to("../../blobs/2")
    assert "nothing is there" in said(snapshot / "gone")
    (tmp_path / "round").symlink_to("round")
    assert "nothing is there" in said(tmp_path / "round")
    monkeypatch.chdir(tmp_path)
    Path("inner").mkdir()
    Path("inner/link").symlink_to("../elsewhere.safetensors")
    remedy = said(Path("inner/link")).rpartition("name the file itself: ")[2]
    assert sources.read(Path(remedy)).tensors.keys() == STATE.keys()


def test_number_formats_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    plain = {
        kind: torch.arange(4, dtype=torch.float32).to(getattr(torch, kind))
        for kind in ("float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "uint16", "bool")
    }
    bits = torch.ones(4, dtype=torch.uint8)
    odd = {"scales": bits.view(torch.float8_e8m0fnu), "four": bits.clone().view(torch.float4_e2m1fn_x2)}
    safetensors.torch.save_file(STATE | plain | odd, path)
    weights = sources.read(path)
    assert weights.tensors.keys() == (STATE | plain).keys()
    assert all(weights.tensors[kind].dtype == value.dtype for kind, value in plain.items())
    assert weights.unread == {"scales": "scale factors of float8_e8m0fnu", "four": "of FP4"}
    safetensors.torch.save_file(odd, path)
    assert "no tensor in it can be read" in said(path)


def test_what_is_not_finite_is_read_and_refused_where_it_matters(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    broken = torch.tensor([1.0, float("nan")])
    safetensors.torch.save_file(STATE | {"a": broken}, path)
    tensors = sources.read(path).tensors
    sources.check_finite({name: tensors[name] for name in STATE}, "here")
    for value in (broken, broken.to(torch.float8_e4m3fn), torch.tensor([float("inf")]).to(torch.float8_e5m2)):
        with pytest.raises(SapperError, match="1 of its 2 tensors are not finite: a"):
            sources.check_finite({"a": value, "b": torch.ones(1)}, "here")
    encoder = encoders.build(Run(seed=1), architecture="resnet10", width=2)
    encoders.save(encoder, path)
    with safetensors.safe_open(path, "pt") as content:
        metadata = content.metadata()
    state = safetensors.torch.load_file(path)
    next(value for value in state.values() if value.ndim == 4)[0] = float("nan")
    safetensors.torch.save_file(state, path, metadata)
    for opened in (encoders.load, encoders.open):
        with pytest.raises(SapperError, match="are not finite"):
            opened(str(path) if opened is encoders.open else path, Run(seed=1))  # type: ignore[arg-type]
