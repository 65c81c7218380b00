"""Seeds that depend on names, not on order; progress in logs; images in memory."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from sapper.errors import SapperError
from sapper.methods import find, parameters
from sapper.progress import progress
from sapper.running import Run, native_dtype
from sapper.samples import ImageSet, to_float
from tests.test_badencoder import images


def test_children_have_seeds_of_their_own() -> None:
    run = Run(seed=1)
    assert run.child("a").seed == run.child("a").seed
    assert len({run.seed, run.child("a").seed, run.child("b").seed, Run(seed=2).child("a").seed}) == 4
    assert run.child("a").child("b").seed != run.child("b").child("a").seed


def test_seeded_code_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    with Run(seed=1).seeded():
        first = torch.rand(3)
    assert torch.equal(before, torch.random.get_rng_state())
    with Run(seed=1).seeded():
        assert torch.equal(first, torch.rand(3))


def test_the_native_format_is_one_that_works_here() -> None:
    dtype = native_dtype(torch.device("cpu"))
    assert dtype in (torch.float32, torch.bfloat16)
    with Run(dtype=dtype).autocast():
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == dtype


def test_a_log_gets_a_line_now_and_then() -> None:
    """No control characters, counts of what is done, and nothing at all before its time."""
    told = {}
    for every in (0.0, 1000.0):
        log = io.StringIO()
        with (
            progress(Console(file=log, width=20), every) as bars,
            bars.bar("looking at [encoders]", 40, done=10) as bar,
        ):
            bar.advance(20)
            bar.advance(10, note="score 3.1")
        told[every] = log.getvalue().splitlines()
    assert told[1000.0] == []
    first, last = told[0.0]
    assert first.startswith("looking at [encoders]: 30 of 40, about ")
    assert last == "looking at [encoders]: 40 of 40, about 0 s left (score 3.1)"


def labeled() -> ImageSet:
    return replace(images(12, 1), labels=torch.arange(12) % 3, classes=("a", "b", "c"), groups=torch.arange(12) // 2)


def test_parts_of_a_set_keep_images_labels_and_groups_together() -> None:
    whole = labeled()
    rows = torch.tensor([5, 2])
    part = whole.take(rows)
    assert torch.equal(part.images, whole.images[rows])
    assert part.targets().tolist() == [2, 2]
    assert len(whole.without(rows)) == 10
    some = whole.sample(7, Run(seed=3).generator())
    assert len(some) == 7
    rest, held = whole.held_out(0.3, Run(seed=3).generator())
    assert len(rest) + len(held) == 12
    assert not torch.isin(rest.groups, held.groups).any()  # type: ignore[arg-type]


def test_the_digest_is_of_the_content() -> None:
    assert labeled().digest == labeled().digest
    assert labeled().digest != replace(labeled(), labels=torch.arange(12) % 2).digest
    assert labeled().digest == replace(labeled(), name="another name").digest


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.rand(12, 3, 4, 4)},
        {"images": torch.zeros(12, 1, 4, 4, dtype=torch.uint8)},
        {"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "labels": None, "groups": None},
        {"labels": torch.arange(12)},
        {"labels": torch.full((12,), -1)},
        {"labels": torch.zeros(11, dtype=torch.int64)},
        {"labels": torch.zeros(12)},
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, torch.Tensor | None]) -> None:
    with pytest.raises(SapperError):
        replace(labeled(), **change)  # type: ignore[arg-type]


def test_to_float_covers_the_range() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]


def test_methods_are_found_by_name_and_the_nearest_offered() -> None:
    table = {"simclr": "sapper.pretraining.simclr:SimCLR"}
    method = find("pretraining", table, "simclr", "here")
    assert {p.name: p.default for p in parameters(method)}["temperature"] == "0.5"
    with pytest.raises(SapperError, match="did you mean simclr"):
        find("pretraining", table, "simclar", "here")
