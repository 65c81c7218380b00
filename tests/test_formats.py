"""The number format is what is faster on the very network; what was chosen is kept, and measuring changes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sapper import encoders, formats
from sapper.engine.environment import environment, processor
from sapper.engine.stage import place_of
from sapper.engine.store import Store
from sapper.experiment import precision
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run
from sapper.scenario.named import Named
from sapper.scenario.sections import EncoderSection

CPU = torch.device("cpu")
SPEC = EncoderSection(architecture="resnet10", width=4, input_size=8)
NETWORKS = [(SPEC, Named(name="simclr", parameters=SimCLR(batch=16)))]


class Clock:
    """A clock that stands still but for the steps, which take so many seconds an image in each format."""

    def __init__(self, float32: float, bfloat16: float):
        self.now, self.steps = 0.0, 0
        self.seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
        self.counts: list[int] = []

    def __call__(self) -> float:
        return self.now

    def step(self, dtype: torch.dtype, count: int) -> None:
        self.steps += 1
        first = 10.0 if self.steps in (1, 4) else 1.0  # first steps are slow, and do not count
        self.now += first * self.seconds[dtype] * count
        self.counts.append(count)


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that torch takes for one with bfloat16, wherever this runs."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


@pytest.mark.usefixtures("with_bfloat16")
@pytest.mark.parametrize(
    ("float32", "bfloat16", "dtype", "why"),
    [
        (1.42e-3, 1e-3, torch.bfloat16, "measured 1.42 times as fast as float32 on this encoder"),
        (0.87e-3, 1e-3, torch.float32, "bfloat16 was 0.87 times as fast on this encoder"),
        (1.04e-3, 1e-3, torch.float32, "bfloat16 was 1.04 times as fast on this encoder"),
    ],
)
def test_bfloat16_is_taken_where_it_is_clearly_faster(
    float32: float, bfloat16: float, dtype: torch.dtype, why: str
) -> None:
    clock = Clock(float32, bfloat16)
    run = formats.fastest(Run(seed=3), lambda: clock.step, 256, clock)
    assert (run.dtype, run.why, run.seed) == (dtype, why, 3)
    assert environment(run)["number format"] == run.number_format
    assert environment(run)["why this format"] == why


def test_a_measurement_takes_about_a_second_and_of_a_slow_network_a_few_steps() -> None:
    for seconds, steps, longest in ((1e-6, 14, 0.1), (2e-3, 14, 2.0), (1.0, 10, 60.0)):
        clock = Clock(seconds, seconds)
        formats.speedup(clock.step, 256, clock)
        assert clock.steps == steps
        assert clock.now < longest
        assert min(clock.counts) >= 2
        assert max(clock.counts) <= 256


def test_without_bfloat16_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> formats.Step:
        raise AssertionError("measured")

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    run = formats.fastest(Run(), step, 16)
    assert (run.dtype, run.why) == (torch.float32, "this processor has no bfloat16")
    cuda = formats.fastest(Run(device=torch.device("cuda")), step, 16)
    assert (cuda.dtype, cuda.why) == (torch.float32, "this device has no bfloat16")


@pytest.mark.usefixtures("with_bfloat16")
def test_a_network_that_cannot_be_measured_is_computed_in_float32() -> None:
    def step() -> formats.Step:
        raise RuntimeError("no kernel\nand more")

    run = formats.fastest(Run(), step, 16)
    assert run.dtype == torch.float32
    assert run.why == "bfloat16 could not be measured on this encoder: no kernel"


@pytest.mark.usefixtures("with_bfloat16")
def test_measuring_leaves_the_network_and_all_randomness_as_they_are(tmp_path: Path) -> None:
    encoder = encoders.build(Run(seed=1), architecture="resnet10", width=4, input_size=8).eval()
    encoder.backbone.add_module("noise", nn.Dropout())
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.random.get_rng_state()
    precision.of_searching(encoder, Run())
    precision.of_training("auto", NETWORKS, Store(tmp_path), Run())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules() if module is not encoder.backbone.noise)


def kept_in(store: Store) -> tuple[Path, dict[str, Any]]:
    """The one choice in a store."""
    (file,) = store.root.glob("number-format-*.json")
    return file, json.loads(file.read_text())


MEASURED = re.compile(r"(measured|bfloat16 was) \d+\.\d\d times as fast( as float32)? on this encoder")


@pytest.mark.usefixtures("with_bfloat16")
def test_what_was_measured_is_kept_in_the_store_whatever_a_later_measurement_says(tmp_path: Path) -> None:
    """What is in the store is not what would be measured now: its words, and the other format."""
    store = Store(tmp_path / "store")
    first = precision.of_training("auto", NETWORKS, store, Run())
    file, content = kept_in(store)
    assert (content["format"], content["why"]) == (first.number_format, first.why)
    assert MEASURED.fullmatch(first.why)
    other = {"float32": "bfloat16", "bfloat16": "float32"}[first.number_format]
    file.write_text(json.dumps(content | {"format": other, "why": "as long ago"}))
    again = precision.of_training("auto", NETWORKS, store, Run(seed=4))
    assert (again.number_format, again.why, again.seed) == (other, "as long ago", 4)
    wider = [(SPEC.model_copy(update={"width": 5}), NETWORKS[0][1])]
    assert MEASURED.fullmatch(precision.of_training("auto", wider, store, Run()).why)
    assert MEASURED.fullmatch(precision.of_training("auto", NETWORKS, Store(tmp_path / "other"), Run()).why)


@pytest.mark.usefixtures("with_bfloat16")
def test_a_choice_is_found_by_the_machine_that_it_was_measured_on(tmp_path: Path) -> None:
    precision.of_training("auto", NETWORKS, Store(tmp_path), Run())
    file, content = kept_in(Store(tmp_path))
    machine = {"processor": processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    assert machine.items() <= content["of"].items()
    assert file.stem == place_of("number-format", content["of"])


@pytest.mark.usefixtures("with_bfloat16")
def test_a_damaged_choice_is_made_anew(tmp_path: Path) -> None:
    encoder, store = encoders.build(Run(), architecture="resnet10", width=4, input_size=8).eval(), Store(tmp_path)
    for content in ("{", "[]", '{"format": "float8", "why": ""}', '{"format": ["float32"], "why": ""}'):
        precision.of_searching(encoder, Run(), store)
        file, kept = kept_in(store)
        assert kept["of"]["search"]["width"] == 4
        file.write_text(content)
        chosen = precision.of_searching(encoder, Run(), store)
        assert MEASURED.fullmatch(chosen.why)
        assert kept_in(store)[1]["format"] == chosen.number_format


@pytest.mark.usefixtures("with_bfloat16")
@pytest.mark.parametrize("said", ["float32", "bfloat16"])
def test_a_scenario_may_say_its_format(tmp_path: Path, said: str) -> None:
    run = precision.of_training(said, NETWORKS, Store(tmp_path), Run())
    assert (run.number_format, run.why) == (said, "as the scenario says")
    assert not list(tmp_path.iterdir())
