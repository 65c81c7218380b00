"""Foreign checkpoints: what is harmless comes through whole, and what is not is refused and does nothing."""

import argparse
import collections
import datetime
import io
import json
import pathlib
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import tempfile
import types
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sapper import sandbox
from sapper.encoders import sources
from sapper.errors import SapperError
from sapper.sandbox import contents, formats, lockdown, pickles
from sapper.sandbox.values import RefusedError
from tests import hostile

ZIPPED = ("STACK_GLOBAL", "INST", "BUILD", "getattr", "reduce, protocol 2")


def convert(path: Path) -> tuple[sandbox.Converted, dict[str, Tensor]]:
    """What the sandbox says of a file, and the tensors that it wrote."""
    with sandbox.scratch() as to:
        said = sandbox.convert(path, to)
        to.seek(0)
        return said, safetensors.torch.load(to.read())


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == value.dtype and torch.equal(ours[name], value.detach()) for name, value in theirs.items()
    )


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_come_through_bit_by_bit(tmp_path: Path, zipped: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(6, 5, generator=generator)
    tensors = {
        "single": torch.randn(3, 4, generator=generator),
        "half": torch.randn(7, generator=generator).half(),
        "brain": torch.randn(2, 2, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "turned": table.T,
        "part": table[2:4],
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
    }
    notes = {"arch": "resnet18", "epoch": 3, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": tensors, "optimizer": {"a": 1}} | notes, path, _use_new_zipfile_serialization=zipped)
    converted, back = convert(path)
    assert same(back, {f"state_dict.{name}": value for name, value in tensors.items()})
    assert converted.notes == {"arch": "resnet18", "epoch": 3, "best": 0.5, "args.lr": 0.1}
    assert converted.left_out == {"optimizer": "an optimizer's state"}


def test_the_reader_agrees_with_torchs_on_every_kind_and_view(tmp_path: Path) -> None:
    """Kinds that torch writes by other ways among them: uint16 and its like, and float8."""
    base = torch.arange(24, dtype=torch.float32)
    floats = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    kinds = (*floats, "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
    tensors = {kind: base.to(getattr(torch, kind)) for kind in kinds}
    tensors |= {
        "turned": base.view(4, 6).T,
        "every third": base[1::3],
        "spread": base[:3].expand(2, 3),
        "a window": base.as_strided((3, 2), (5, 2), 4),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(3.5),
        "long": base.view(2, 3, 4).permute(2, 0, 1),
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(tensors, path)
    assert same(convert(path)[1], torch.load(path, weights_only=True))
    with path.open("wb") as file:
        pickle.dump(tensors, file)
    assert same(convert(path)[1], tensors)


STATE = {"conv1.weight": torch.randn(4, 3, 3, 3), "bn1.num_batches_tracked": torch.tensor(3)}

BESIDE: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    # what lies beside the weights, the notes that come of it, and what is left out
    "a number of NumPy's": (np.float32(1.5), {"x": 1.5}, {}),
    "a truth of NumPy's": (np.bool_(True), {"x": True}, {}),
    "small numbers of NumPy's": ({"a": np.int16(3), "b": np.float16(3)}, {"x.a": 3, "x.b": 3.0}, {}),
    "a path": (argparse.Namespace(lr=0.1, out=pathlib.Path("/a/b")), {"x.lr": 0.1, "x.out": "/a/b"}, {}),
    "a default dict": (collections.defaultdict(list, loss=[1.0], a=2), {"x.a": 2}, {"x.loss": "a list of 1"}),
    "a set": ({1, 2}, {}, {"x": "a list of 2"}),
    "a frozen set": (frozenset((1, 2)), {}, {"x": "a list of 2"}),
    "a counter": (collections.Counter("aab"), {"x.a": 2, "x.b": 1}, {}),
    "a deque": (collections.deque([1.0], maxlen=5), {}, {"x": "a list of 1"}),
    "a date": (datetime.datetime(2024, 1, 1), {}, {"x": "a date or a time"}),
    "a device": (torch.device("cuda:0"), {}, {"x": "a device"}),
    "a number format": (torch.float16, {}, {"x": "a number format"}),
    "a size": (torch.Size([1, 2]), {}, {"x": "a list of 2"}),
    "a state of Python's random numbers": (random.getstate(), {}, {"x": "a state of random numbers"}),
    "a state of NumPy's random numbers": (np.random.get_state(), {}, {"x": "a state of random numbers"}),
    "a generator of NumPy's": (np.random.default_rng(0), {}, {"x": "a state of random numbers"}),
    "a complex number": (1 + 2j, {}, {"x": "a complex number"}),
    "bytes": (b"x", {}, {"x": "bytes"}),
    "a slice": (slice(1, 2), {}, {"x": "a range"}),
    "a range": (range(3), {}, {"x": "a range"}),
    "nothing": (None, {}, {}),
    "a long text": ("a" * 1000, {}, {"x": "a long text"}),
    "texts of NumPy's": (np.array(["a"]), {}, {"x": "a NumPy array of something else than numbers"}),
    "an exception": (ValueError("a"), {}, {"x": "an object of builtins.ValueError"}),
}


@pytest.fixture(scope="module")
def beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[sandbox.Converted, dict[str, Tensor]]]:
    """All of ``BESIDE`` in one checkpoint each, under NumPy 2's names and NumPy 1's."""
    request.getfixturevalue("sandbox_holds")
    found = {}
    path = tmp_path_factory.mktemp("beside") / "checkpoint.pth"
    for name, (value, *_) in BESIDE.items():
        torch.save({"state_dict": STATE, "x": value}, path, _use_new_zipfile_serialization="NumPy" not in name)
        if "NumPy" in name:
            path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
        found[name] = convert(path)
    return found


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_does_not_refuse_them(name: str, beside: dict[str, Any]) -> None:
    """Under the names of NumPy 1 where there are such; the other tests have those of NumPy 2."""
    _, notes, left_out = BESIDE[name]
    said, tensors = beside[name]
    assert same(tensors, {f"state_dict.{name}": value for name, value in STATE.items()})
    assert said == sandbox.Converted(notes=notes, left_out=left_out)


@pytest.mark.usefixtures("sandbox_holds")
def test_lightnings_checkpoint_with_infinity_in_a_callback(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 0,
        "state_dict": STATE,
        "callbacks": {"ModelCheckpoint": {"kth_value": torch.tensor(torch.inf), "best_model_path": "/x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict()],
        "loops": {"fit_loop": {}},
    }
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    weights = sources.read(path)
    assert torch.isinf(weights.tensors["callbacks.ModelCheckpoint.kth_value"])
    assert weights.notes == {"epoch": 0, "callbacks.ModelCheckpoint.best_model_path": "/x"}
    assert weights.optimizer == ((2, 2), (2,))
    assert weights.left_out == {
        "optimizer_states": "an optimizer's state",
        "lr_schedulers": "a learning-rate scheduler",
        "loops": "a trainer's loops",
    }


@pytest.mark.usefixtures("sandbox_holds")
def test_the_optimizer_tells_the_shapes_of_what_was_trained(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5))
    optimizer = torch.optim.AdamW(net.parameters())
    net[1](torch.ones(4)).sum().backward()  # the first has no gradient, and no buffers
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": net.state_dict(), "training": {"optim": optimizer.state_dict()}}, path)
    said, tensors = convert(path)
    assert said.optimizer == ((), (), (5, 4), (5,))
    assert said.left_out == {"training.optim": "an optimizer's state"}
    assert len(tensors) == 4


def foreign(monkeypatch: pytest.MonkeyPatch, module: str, name: str, base: type = object) -> Any:
    """A class that is not known to the reader, nor to be found where it reads."""
    made = type(name, (base,), {"__module__": module})
    for end in range(len(module.split("."))):
        part = ".".join(module.split(".")[: end + 1])
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


@pytest.mark.usefixtures("sandbox_holds")
def test_objects_of_foreign_classes_are_named_and_their_plain_values_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = foreign(monkeypatch, "omegaconf.dictconfig", "DictConfig")()
    node = foreign(monkeypatch, "omegaconf.nodes", "AnyNode")()
    node.__dict__ |= {"_val": "resnet50", "_parent": config}
    config.__dict__ |= {"_content": {"backbone": node}, "_parent": None, "_metadata": object()}
    arguments = foreign(monkeypatch, "somebody.training", "Arguments")()
    arguments.__dict__ |= {"lr": 0.5, "_hidden": 1, "other": arguments}
    settings = foreign(monkeypatch, "somebody.training", "Settings", dict)(width=4)
    sharded = foreign(monkeypatch, "somebody.training", "Sharded")()
    sharded.__dict__ |= {"local": torch.ones(3)}
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {"model": STATE | {"fc": sharded}, "hyper_parameters": config, "args": arguments, "settings": settings}, path
    )
    said, tensors = convert(path)
    assert len(tensors) == len(STATE)
    assert said.notes == {"hyper_parameters.backbone": "resnet50", "args.lr": 0.5, "settings.width": 4}
    assert said.left_out == {"args": "an object of somebody.training.Arguments"}
    assert said.unread == {"model.fc": "tensors in an object of somebody.training.Sharded"}


@pytest.mark.usefixtures("sandbox_holds")
def test_what_is_left_out_is_counted_where_it_is_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": STATE, "lists": {str(number): [] for number in range(100)}}, path)
    said, _ = convert(path)
    assert len(said.left_out) == 41
    assert said.left_out["…"] == "60 more"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))])
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_gives_its_state(zipped: bool, tmp_path: Path) -> None:
    net, path = Net(), tmp_path / "model.pth"
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    assert same(convert(path)[1], net.state_dict())
    torch.save({"ema": net}, path, _use_new_zipfile_serialization=zipped)
    assert same(convert(path)[1], {f"ema.{name}": value for name, value in net.state_dict().items()})


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_of_tensors_or_arrays(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "one": np.array(1, dtype=np.int64),
        "truths": np.array([True, False]),
    }
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol))
    said, tensors = convert(path)
    expected = {name: torch.from_numpy(value.astype(value.dtype.newbyteorder("="))) for name, value in arrays.items()}
    assert same(tensors, {f"model.{name}": value for name, value in expected.items()})
    assert said.notes == {"__author__": "somebody"}
    path.write_bytes(pickle.dumps(STATE, protocol))
    assert same(convert(path)[1], STATE)


@pytest.mark.usefixtures("sandbox_holds")
def test_tensors_that_cannot_be_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "empty": torch.ones(3, device="meta"),
        "scales": torch.ones(4, dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "four": torch.ones(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "negated": torch.ones(2, dtype=torch.complex64).conj().imag,
    }
    torch.save(STATE | odd, path)
    said, tensors = convert(path)
    assert same(tensors, STATE)
    assert said.unread == {
        "sparse": "a sparse tensor",
        "complex": "of complex numbers",
        "empty": "a tensor without data",
        "scales": "scale factors of float8_e8m0fnu",
        "four": "of FP4 (float4_e2m1fn_x2)",
        "negated": "a tensor that is to be negated or conjugated",
    }
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for entry in old.infolist():
            content = b"big" if entry.filename.endswith("byteorder") else old.read(entry)
            if "/data/" in entry.filename:
                content = np.frombuffer(content, "<i8" if len(content) == 8 else "<i4").byteswap().tobytes()
            new.writestr(entry.filename, content)
    assert same(convert(tmp_path / "big.pth")[1], STATE)


def test_the_payloads_are_alive(tmp_path: Path) -> None:
    """Opened as the field opens checkpoints, each of them runs something: else that it does not here shows nothing."""
    hostile.write_canary_module(tmp_path, tmp_path / "canary")
    doors = {name: door.steps + b"." for name, door in hostile.DOORS.items() if door.alive}
    payloads = {name: make(f"touch {tmp_path}/canary") for name, make in hostile.PICKLES.items()}
    for number, content in enumerate((*payloads.values(), *doors.values())):
        (tmp_path / f"{number}.pkl").write_bytes(content)
    program = """
import pickle, sys
from pathlib import Path
import torch.serialization
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
for path in folder.glob("*.pkl"):
    with path.open("rb") as file:
        for start in (b"", b"", b"\\x80\\x02", b"\\x80\\x04"):  # a second pickle in it; names of Python 2, dotted ones
            sys.modules.pop("sapper_canary", None)
            try:
                pickle.loads(start + path.read_bytes()) if start else pickle.load(file)
            except Exception:
                pass
    if (folder / "canary").exists():
        (folder / "canary").rename(path.with_suffix(".ran"))
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    names = (*payloads, *doors)
    assert [name for number, name in enumerate(names) if not (tmp_path / f"{number}.ran").exists()] == []


def attempt(path: Path) -> str:
    """What opening says: its error, or that there was none."""
    try:
        sources.read(path)
    except SapperError as error:
        return str(error) if error.where and error.remedy else f"no place or no remedy: {error}"
    return "opened"


def attempt_all(names: Sequence[str], folder: Path) -> dict[str, str]:
    """The files of these names, opened two at a time; what each said. Whatever they are, they run nothing."""
    paths: dict[str, Path] = {}
    canary = folder / "canary"
    hostile.write_canary_module(folder, canary)
    for number, name in enumerate(names):
        place = folder / str(number)
        place.mkdir()
        paths[name] = place / ("model.safetensors" if "safetensors" in name else "model.pth")
        program = hostile.PICKLES.get(name.removesuffix(", zipped"))
        if name in hostile.DOORS:
            hostile.write_door(hostile.DOORS[name], paths[name])
        elif program is None:
            hostile.FILES[name](paths[name], f"touch {canary}")
        else:
            hostile.write_pickle(program(f"touch {canary}"), paths[name], zipped=name.endswith(", zipped"))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.syspath_prepend(str(folder))  # handed over to the sandbox, which so could import the canary
        said = dict(zip(paths, pool.map(attempt, paths.values())))
    assert not canary.exists()
    return said


def test_programs_at_random_end_in_a_refusal_or_in_sound_safetensors() -> None:
    """The reader by itself, on doors that are changed here and there: nothing else than a refusal may come of it."""
    random_ = random.Random(3)
    opcodes = [ord(code) for code in pickletools.code2op]
    start = b"\x80\x04}" + hostile.text("w") + hostile.view() + b"q\x05s" + hostile.text("x")
    doors = [door.steps for name, door in hostile.DOORS.items() if len(door.steps) < 2000 and "without end" not in name]
    read = 0
    for _ in range(2000):
        steps, other = bytearray(random_.choice(doors)), random_.choice(doors)
        for _ in range(random_.randint(1, 3)):
            at, part = random_.randrange(len(steps)), random_.randrange(len(other))
            changed = bytes([random_.choice(opcodes)]), other[part : part + random_.randint(1, 30)], b""
            steps[at : at + random_.randint(0, 2)] = random_.choice(changed)
            steps = steps or bytearray(b"N")
        try:
            storages = formats.Stream()
            storages.kept["0"] = memoryview(bytes(8))
            content = pickles.read(io.BytesIO(start + steps + b"s."), storages.persistent, lambda _: None)
            found = contents.sort(content)
            written = b"".join(contents.write(found.tensors, 10**6))
        except RefusedError:
            continue
        assert dict(safetensors.deserialize(written)).keys() == found.tensors.keys()
        json.dumps((found.notes, found.left_out, found.unread, found.optimizer)).encode()
        read += 1
    assert read > 100


def opened_here(content: bytes) -> tuple[dict[str, Tensor], contents.Contents]:
    """What our reader makes of a file, in this process."""
    file = io.BytesIO(content)
    formats.look(file, len(content))
    found = contents.sort(formats.read(file, lambda _: None))
    return safetensors.torch.load(b"".join(contents.write(found.tensors, 10**6))), found


def flat(value: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """The tensors in what ``torch.load`` gave, by their dotted paths; those in a list by the list's."""
    if isinstance(value, Tensor):
        return [(path, value)]
    if isinstance(value, list | tuple):
        return [(path, tensor) for each in value for _, tensor in flat(each)]
    if not isinstance(value, dict):
        return []
    found = []
    for key, each in value.items():
        shown = f"({', '.join(map(str, key))})" if isinstance(key, tuple) else key
        shown = f"({key!r})" if isinstance(key, bytes) else str(shown)
        found += flat(each, f"{path}.{shown}" if path else shown)
    return found


def assert_as_torch_gives_it(content: bytes) -> str:
    """Every tensor is as in ``torch.load``'s, or is named as one that is not read; or the file is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = flat(torch.load(io.BytesIO(content), weights_only=True))
    except Exception:  # whatever a program at random makes of it
        return "refused by torch"
    try:
        ours, found = opened_here(content)
    except RefusedError as error:
        return error.why
    names = [name for name, _ in theirs]
    for name, value in ours.items():
        assert names.count(name) == 1, name
        assert same({name: value}, {name: dict(theirs)[name]})
    unread = {name for name in names if name not in ours}
    assert unread <= found.unread.keys()
    return "read"


ORDERED = b"ccollections\nOrderedDict\n"


class Programs:
    """Pickles at random, of the steps that ``torch.load`` takes, and of what could be read in two ways."""

    def __init__(self, seed: int):
        self.random, self.memo = random.Random(seed), 0

    def value(self, depth: int) -> bytes:
        kinds: list[Callable[[int], bytes]] = [self.tensor, self.tensor, self.again]
        kinds += [self.dict, self.dict, self.ordered, self.made_of_pairs, self.list, self.counter] if depth else []
        steps = self.random.choice(kinds)(depth - 1)
        self.memo += 1
        return steps + b"q" + bytes([self.memo % 200 + 10])

    def tensor(self, _: int) -> bytes:
        n = self.random.random
        key = self.random.choice("01")
        steps = hostile.view(bytes([75, n() < 0.3]), b"K\x01\x85", key=key)
        if n() < 0.05:
            steps = steps.replace(b"FloatStorage", b"IntStorage")
        if n() < 0.3:
            steps = b"ctorch._utils\n_rebuild_parameter\n(" + steps + b"\x89" + ORDERED + b")RtR"
        if n() < 0.05:
            steps += b"(" + hostile.view(key="1") + self.random.choice((b"", b"K\x00K\x01\x85K\x01\x85")) + b"tb"
        if n() < 0.1:
            attribute = hostile.text(self.random.choice(("data", "mine"))) + hostile.view(key="1")
            steps = (
                b"(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n"
                + steps[:-1].partition(b"(")[1]
                + (hostile.view(key=key).partition(b"(")[2][:-1] + b"}" + attribute + b"s")
            )
            steps = b"ctorch._tensor\n_rebuild_from_type_v2\n" + steps + b"tR"
        return steps

    def again(self, _: int) -> bytes:
        return b"h" + bytes([self.random.randint(1, self.memo) % 200 + 10]) if self.memo else self.tensor(0)

    def key(self) -> bytes:
        word = self.random.choice(("a", "b", "a.b", "1"))
        latin = b"c_codecs\nencode\n" + hostile.text(word) + hostile.text("latin1") + b"\x86R"
        old = b"U" + bytes([len(word)]) + word.encode()
        return self.random.choice((*[hostile.text(word)] * 4, latin, old, b"K\x01", hostile.text(word) + b"\x85"))

    def items(self, depth: int) -> bytes:
        return b"(" + b"".join(self.key() + self.value(depth) for _ in range(self.random.randint(1, 3))) + b"u"

    def dict(self, depth: int) -> bytes:
        return b"}" + self.items(depth)

    def ordered(self, depth: int) -> bytes:
        start = ORDERED + self.random.choice((b")R", b")R", b")\x81", b"(" + self.dict(depth) + b"t\x81"))
        end = self.random.choice((b"", b"}" + hostile.text("_metadata") + b"}sb"))
        return start + self.items(depth) + end

    def made_of_pairs(self, depth: int) -> bytes:
        pairs = b"".join(self.key() + self.value(depth) + b"\x86" for _ in range(2))
        made = self.random.choice((b"](" + pairs + b"e", self.dict(depth), self.again(depth)))
        return ORDERED + b"(" + made + b"tR" + self.items(depth)

    def counter(self, depth: int) -> bytes:
        return b"ccollections\nCounter\n(" + self.dict(depth) + b"tR" + self.items(depth)

    def list(self, depth: int) -> bytes:
        return b"](" + self.value(depth) + b"K\x01e"


def test_what_is_read_of_a_program_at_random_is_what_torch_reads() -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in range(600):
        program = b"\x80\x02" + Programs(seed).dict(3) + b"."
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            for key, numbers in (("0", (1, 2)), ("1", (8, 9))):
                archive.writestr(f"archive/data/{key}", struct.pack("<ff", *numbers))
            archive.writestr("archive/version", "3\n")
        outcomes[assert_as_torch_gives_it(out.getvalue())] += 1
    assert outcomes["read"] > 100
    assert len(outcomes) > 3, outcomes


def test_what_is_read_of_a_changed_archive_is_what_torch_reads() -> None:
    """Bytes are changed in the directory and behind it, and archives are put into one another."""
    random_ = random.Random(7)
    outcomes: collections.Counter[str] = collections.Counter()
    one, other = hostile.one(1), hostile.one(9)
    joined = [hostile.two_archives(one, other), one + other, one + other[-22:], one[:-22] + other, b"\0" * 8 + one]
    for content in (one, *joined):
        outcomes[assert_as_torch_gives_it(content)] += 1
    for _ in range(600):
        changed = bytearray(random_.choice((one, other, joined[0])))
        start = changed.index(b"PK\x01\x02")
        for _ in range(random_.randint(1, 2)):
            at = random_.randrange(start, len(changed))
            changed[at] = random_.choice((0, 1, changed[at] ^ 32, random_.randrange(256)))
        outcomes[assert_as_torch_gives_it(bytes(changed))] += 1
    assert outcomes["read"] > 20, outcomes


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_the_files_with_two_readings_have_two() -> None:
    """Else that they are refused shows nothing."""
    assert torch.load(io.BytesIO(hostile.two_readings()), weights_only=True)["w"][0] == 9
    assert safetensors.torch.load(hostile.two_readings())["w"][0] == 1
    content = io.BytesIO(hostile.two_archives(hostile.one(9), hostile.one(1)))
    assert torch.load(content, weights_only=True)["w"][0] == 9
    with zipfile.ZipFile(content) as archive:
        assert archive.read("archive/data/0") == struct.pack("<ff", 1, 1)


PARTS = {
    # of the old format: a part's name, its first element and how many; and what comes of it
    "a part": (hostile.text("part") + b"K\x01K\x02\x87", "read"),
    "a part of the whole's name": (hostile.text("0") + b"K\x01K\x02\x87", "two storages in it have one name"),
    "a part that reaches out": (hostile.text("part") + b"K\x03K\x02\x87", "refused by torch"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_storages_are_read_as_torch_reads_them(name: str) -> None:
    part, said = PARTS[name]
    start = b"".join(pickle.dumps(each, 2) for each in (formats.MAGIC, formats.PROTOCOL, {}))
    whole = hostile.view(numel=b"K\x04")
    steps = b"\x80\x02}" + hostile.text("w") + whole.replace(b"K\x04tQ", b"K\x04" + part + b"tQ") + b"s."
    content = start + steps + pickle.dumps(["0"], 2) + struct.pack("<Q4f", 4, 1, 2, 3, 4)
    assert assert_as_torch_gives_it(content) == said
    if said == "refused by torch":
        with pytest.raises(RefusedError):
            opened_here(content)


def test_tensors_are_never_hidden_behind_what_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(monkeypatch, "somebody.training", "Made")
    made = b"csomebody.training\nMade\n"
    tensor = hostile.view()
    deep = b"](](" + tensor + b"ee"
    for steps in (
        deep,
        b"(" + tensor + b"K\x01t",
        b"ccollections\ndeque\n" + deep + b"\x85R",
        made + deep + b"\x85R",
        made + b")R(" + tensor + b"e",
        made + b")R" + deep + b"b",
        made + b")R}" + hostile.text("a") + deep + b"sb",
        made + b")RK\x01" + tensor + b"s",
        made + b")RK\x01K\x02s}" + hostile.text("a") + tensor + b"sb",
        made + b")R}" + hostile.text("a") + tensor + b"sb}" + hostile.text("b") + b"Nsb",
        b"cargparse\nNamespace\n)RK\x01" + tensor + b"s",
        b"ccollections\nOrderedDict\n" + made + b")RK\x01" + tensor + b"s\x85R",
        b"(" + hostile.text("storage") + b"ctorch\nFloatStorage\n" + hostile.text("0") + b"NK\x02tQ",
        b"(" + hostile.text("MT19937") + tensor + b"K\x01t",
    ):
        many = b"}(" + b"".join(hostile.text(str(number)) + b"]" for number in range(60))
        door = hostile.Door(many + hostile.text("conv1.weight") + steps + b"u")
        hostile.write_door(door, tmp_path / "a.pth")
        _, found = opened_here((tmp_path / "a.pth").read_bytes())
        assert any("conv1.weight" in name for name in found.unread), steps


def test_weights_beside_the_marks_of_an_optimizer_are_read() -> None:
    out = io.BytesIO()
    weights = {"conv1.weight": torch.ones(2)}
    torch.save({"a": weights | {"state": {}, "param_groups": []}, "optimizer": weights, "b": weights}, out)
    ours, _ = opened_here(out.getvalue())
    assert ours.keys() == {f"{name}.conv1.weight" for name in ("a", "optimizer", "b")}


def test_of_two_tensors_of_one_name_neither_is_read() -> None:
    out = io.BytesIO()
    torch.save({"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2), "c": torch.ones(1)}, out)
    ours, found = opened_here(out.getvalue())
    assert ours.keys() == {"c"}
    assert found.unread == {"a.b": "two tensors of one name"}


def test_attributes_of_tensors_and_state_dicts_do_no_harm() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.is_mine = True  # type: ignore[attr-defined]
    plain = torch.ones(3)
    plain.note = "x"  # type: ignore[attr-defined]
    for zipped in (True, False):
        out = io.BytesIO()
        content = {"state_dict": nn.Linear(2, 2).state_dict(), "weight": weight, "plain": plain}
        torch.save(content, out, _use_new_zipfile_serialization=zipped)
        ours, _ = opened_here(out.getvalue())
        assert same(ours, dict(flat(torch.load(io.BytesIO(out.getvalue()), weights_only=True))))


REASONS = {
    "reduce, protocol 4": "would run posix.system",
    "INST, zipped": "would run os.system",
    "a bomb": "compressed",
    "a link out of the archive": "is a link",
    "entries that share their bytes": "overlap",
    "two entries of one name": "two entries of one name",
    "an archive with two directories": "a directory that is elsewhere, or two",
    "weights with two readings": "a safetensors file that is called something else",
    "TorchScript": "TorchScript",
    "a terabyte of views on one number": "larger than the file",
    "weights that are not a number": "opened",
    "a whole module": "opened",
    "a dict that holds itself": "holds no tensor",
    "a million marks": "no pickle that can be read",
    "cut in half, archive": "was cut",
    "cut in half, legacy": "was cut",
    "a symbolic link": "symbolic link",
    "a pipe": "no regular file",
    "a web page": "HTML",
    "empty": "is empty",
    "safetensors with a header of exabytes": "its header claims",
    "safetensors cut short": "was cut",
    "a pickle that is called safetensors": "called safetensors, and is something else",
}

FAST_DOORS = (
    *("an object by REDUCE", "an object by BUILD", "an object by OBJ", "an object by NEWOBJ EX", "an object as a key"),
    *("a foreign setstate", "a function that is called", "an import", "objects in one another", "keys that read alike"),
    *("a storage that says it is a little larger", "an offset of terabytes", "an object as a persistent id"),
    *("a program in bytes in a pickle", "an import in bytes in a pickle", "an entry that unpacks to more than it says"),
)


@pytest.fixture(scope="module")
def reasons(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    request.getfixturevalue("sandbox_holds")
    return attempt_all([*REASONS, *FAST_DOORS], tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", [*REASONS, *FAST_DOORS])
def test_a_hostile_file_is_refused_with_a_reason_or_is_inert(name: str, reasons: dict[str, str]) -> None:
    assert (REASONS[name] if name in REASONS else hostile.DOORS[name].said) in reasons[name]


CORPUS = (*hostile.PICKLES, *(f"{name}, zipped" for name in ZIPPED), *hostile.FILES, *hostile.DOORS)

SOUND = (
    # files that only no encoder can be made of, or with something odd beside the weights
    *("safetensors of another backbone", "safetensors that are not a number", "weights that are not a number"),
    *("infinite weights", "a whole module", "a sparse tensor", "a quantized tensor", "a tensor without data"),
    *(name for name, door in hostile.DOORS.items() if door.said == "opened"),
)


def test_the_corpus_is_large() -> None:
    assert len(set(CORPUS)) == len(CORPUS) >= 200
    assert len(hostile.DOORS) >= 100


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    request.getfixturevalue("sandbox_holds")
    return attempt_all(CORPUS, tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_every_hostile_file_does_nothing_and_is_refused_or_inert(name: str, outcomes: dict[str, str]) -> None:
    said = outcomes[name]
    assert (said == "opened") == (name in SOUND)
    assert not said.startswith("no place")
    assert "Traceback" not in said
    if name in hostile.DOORS:
        assert hostile.DOORS[name].said in said
    payload = name.removesuffix(", zipped") in hostile.PICKLES
    assert "would run" in said or not payload
    assert "brought the process down" not in said  # caught by what looks at it, not by what it broke
    assert "did not start" not in said


@pytest.mark.usefixtures("reasons")
def test_nothing_filled_the_memory() -> None:
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 2**20  # KiB: what torch itself takes, and some


LOCKED = """
import os, socket, subprocess, sys, threading, ctypes
from sapper.sandbox import lockdown
kept = os.open("/dev/null", os.O_WRONLY)
assert lockdown.lock() is None
attempts = {
    "open": lambda: open("/etc/passwd"),
    "write": lambda: open("/tmp/x", "w"),
    "list": lambda: os.listdir("/"),
    "unlink": lambda: os.unlink("/tmp/x"),
    "rename": lambda: os.rename("/tmp/x", "/tmp/y"),
    "chmod": lambda: os.chmod("/tmp", 0o777),
    "socket": lambda: socket.socket(),
    "pair": lambda: socket.socketpair(),
    "fork": lambda: os.fork(),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "run": lambda: subprocess.run(["/bin/true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "pipe": lambda: os.pipe(),
    "memfd": lambda: os.memfd_create("x"),
    "priority": lambda: os.nice(1),
}
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except PermissionError:
        pass
try:
    threading.Thread(target=print).start()
    done.append("thread")
except RuntimeError:
    pass
os.write(kept, b"x")
assert sum(range(1000)) == 499500
print(done)
"""


@pytest.mark.usefixtures("sandbox_holds")
def test_a_locked_process_can_do_nothing_but_compute() -> None:
    said = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "[]\n"


@pytest.mark.parametrize(
    "header", ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"]
)
def test_the_numbers_of_system_calls_are_the_kernels(header: str) -> None:
    path, column = Path(header), 0 if "x86" in header else 1
    if not path.exists():
        pytest.skip(f"{header} is not here")
    words = [line.split() for line in path.read_text().splitlines() if line.startswith("#define __NR")]
    numbers = {each[1]: each[2] for each in words if len(each) > 2}
    for name, ours in lockdown.CALLS.items():
        known = numbers[f"__NR_{name}"]
        assert numbers.get(known, known) == str(ours[column]), name


def test_without_a_filter_nothing_is_opened_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the filter cannot be set, here because the machine's name is unknown to it."""
    path, canary = tmp_path / "a.pth", tmp_path / "canary"
    torch.save(hostile.checkpoint(), path)
    monkeypatch.setattr(sandbox.outside, "PROGRAM", ("-c", UNKNOWN_MACHINE))
    with pytest.raises(SapperError, match=r"nothing here can lock it in.*\n.*--allow-weak-sandbox"):
        sources.read(path)
    assert sources.read(path, allow_weak_sandbox=True).tensors.keys() == {"state_dict.conv1.weight"}
    path.write_bytes(pickle.dumps(hostile.Reduced(canary.touch, ())))
    with pytest.raises(SapperError, match="refused"):
        sources.read(path, allow_weak_sandbox=True)
    assert not canary.exists()


UNKNOWN_MACHINE = """
import json, platform, runpy, sys
sys.path[:] = json.loads(sys.argv.pop())
platform.machine = lambda: "pdp11"
runpy.run_module("sapper.sandbox.inside", run_name="__main__")
"""


@pytest.mark.slow
def test_a_reader_that_dies_or_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has looked at the file, that is our failure; after that, it is the file's."""
    path = tmp_path / "a.pth"
    torch.save(hostile.checkpoint(), path)
    monkeypatch.setattr(sandbox.outside, "SECONDS", 1)
    for program, said, ours in (
        ("import os; os.abort()", "out of memory, or worse", "signal 6"),
        ("import time; time.sleep(60)", "did not come to an end", "not ready in time"),
        ("import sys; sys.exit(3)", "exit code 3", "exit code 3"),
        ("print('[]')", "exit code 0", "exit code 0"),
        ('print(\'{"status": "converted", "notes": 3}\')', "exit code 0", "exit code 0"),
        ("import numpy_that_is_not_there", "exit code 1", "ModuleNotFoundError: No module named 'numpy_that_is"),
    ):
        monkeypatch.setattr(sandbox.outside, "PROGRAM", ("-c", f"print('ready', flush=True); {program}"))
        with pytest.raises(SapperError, match=said):
            sources.read(path)
        monkeypatch.setattr(sandbox.outside, "PROGRAM", ("-c", program))
        with pytest.raises(SapperError, match=rf"the file was not looked at: .*{ours}") as caught:
            sources.read(path)
        assert "no fault of the file" in str(caught.value.remedy)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(SapperError, match="cannot be started: No such file"):
        sources.read(path)


INSTALLED: dict[str, Callable[[str, Path], dict[str, str]]] = {
    "by PYTHONPATH": lambda folders, _: {"PYTHONPATH": folders},
    "for the user alone": lambda _, base: {"PYTHONUSERBASE": str(base)},
}


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("how", INSTALLED)
def test_an_installation_that_isolated_mode_does_not_see(how: str, tmp_path: Path) -> None:
    """As ``pip install --user`` makes it, and as people set it up by hand."""
    path = tmp_path / "a.pth"
    torch.save(hostile.checkpoint(), path)
    folders = [folder for folder in sys.path if Path(folder).is_dir()]
    site = tmp_path / "base" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    (site / "all.pth").write_text("\n".join(folders))
    program = "import pathlib, sys\nfrom sapper import sandbox\nwith sandbox.scratch() as to:\n"
    program += "    print(sandbox.convert(pathlib.Path(sys.argv[1]), to))"
    said = subprocess.run(
        [getattr(sys, "_base_executable", sys.executable), "-c", program, str(path)],
        env=INSTALLED[how](":".join(folders), tmp_path / "base"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert said.stdout.startswith("Converted("), said.stderr


@pytest.mark.usefixtures("sandbox_holds")
def test_the_folder_that_the_user_stands_in_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, canary = tmp_path / "a.pth", tmp_path / "canary"
    torch.save(hostile.checkpoint(), path)
    for name in ("numpy", "picklescan", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", ".", *sys.path])
    assert sources.read(path).tensors
    assert not canary.exists()


@pytest.mark.usefixtures("sandbox_holds")
def test_no_room_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    torch.save(hostile.checkpoint(), path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    assert sources.read(path).tensors  # needs no folder for temporary files
    with Path("/dev/full").open("wb") as full, pytest.raises(SapperError, match="no room for its weights") as caught:
        sandbox.convert(path, full)
    assert "TMPDIR" in str(caught.value.remedy)
    monkeypatch.delattr(sandbox.outside.os, "memfd_create")
    with pytest.raises(SapperError, match="no folder for temporary files"):
        sources.read(path)
