"""One bar for a computation of several parts, and how far audits say that they are."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapper.audits.auditing import audit
from sapper.defenses.budgets import Budget
from sapper.defenses.judge.decree import Decree
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.defenses.judge.twins import Twins
from sapper.defenses.reaching import ReachSearch
from sapper.running import Bar, Run, shares
from sapper.samples import ImageSet
from sapper.triggers.priors import Stamp
from tests.test_twins import BY_SPREAD, SMALL, encoder, photos

RUN = Run(seed=3)


@dataclass
class Recorded:
    """Keeps every bar: its label and total, and how far it came; and all notes."""

    bars: list["Recorded"] = field(default_factory=list)
    label: str = ""
    total: int = 0
    done: int = 0
    notes: list[str] = field(default_factory=list)

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]:
        self.bars.append(Recorded(label=label, total=total, done=done))
        return nullcontext(self.bars[-1])

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self.notes.append(note)


def test_parts_move_the_bar_of_the_whole_by_hand() -> None:
    """A half of the first part, of 100; then the second, whose two bars are of 4 steps each."""
    seen = Recorded()
    with shares(seen, "whole", [100, 50]) as parts:
        (whole,) = seen.bars
        with next(parts).bar("a", 10) as bar:
            bar.advance(5, "so far")
        assert (whole.done, whole.notes[-1]) == (50, "a: so far")
        second = next(parts)
        assert whole.done == 100  # what the first had left will not be done
        for _ in range(2):
            with second.bar("b", 4) as bar:
                bar.advance(2)
                assert whole.done == 125
    assert (whole.label, whole.total, whole.done) == ("whole", 150, 150)


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=4),
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=9),
    total=st.integers(0, 40),
)
def test_a_bar_never_goes_back_nor_beyond_its_end(sizes: list[int], steps: list[int], total: int) -> None:
    seen = Recorded()
    with shares(seen, "whole", sizes) as parts:
        for before, part in zip(range(len(sizes)), parts):
            reached = seen.bars[0].done
            with part.bar("a", total) as bar:
                for each in steps:
                    bar.advance(each)
                    assert reached <= seen.bars[0].done <= sum(sizes[: before + 1])
                    reached = seen.bars[0].done
    assert seen.bars[0].done == sum(sizes)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("side", "height", "width"), [(4, 16, 16), (3, 17, 11), (1, 5, 5), (7, 7, 9)])
def test_places_are_counted_as_patches_are_made(side: int, height: int, width: int, coarse: bool) -> None:
    made = Stamp.patches(side, (height, width), RUN, coarse=coarse)
    assert Stamp.places(side, (height, width), coarse=coarse) == made.count


@pytest.mark.parametrize(("size", "passes"), [(111, 6500), (112, 3368)])
def test_large_images_take_half_the_passes(size: int, passes: int) -> None:
    """By hand, at 112: 98 and 50 starts; 4 images each for two steps, and half of them for a third; then by thirds."""
    method = MultiPrior(blends=(), filters=())
    assert method.passes(ImageSet(images=torch.zeros(256, 3, size, size, dtype=torch.uint8), name="black")) == passes
    assert 148 * 4 * 2 + 74 * 4 + 2 * (8 * (5 * 8 + 4 * 4 + 3 * 2) + 16 * (8 * 2 + 12)) == 3368


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"large": 8},
        {"patches": ((0.25, 0.0, 1.0), (0.375, 0.0, 1.0))},
        {"blends": ((0.2, 0.0, 1.0),), "restarts": 3},
    ],
)
def test_passes_are_the_images_that_go_through_with_gradients(change: dict[str, object]) -> None:
    method, subject, seen = MultiPrior(**SMALL | change), encoder(8.0), list[int]()  # type: ignore[arg-type]
    subject.backbone.register_forward_hook(
        lambda _body, images, output: seen.append(len(images[0]) if output.requires_grad else 0)
    )
    method.examine(subject, photos(), RUN)
    assert method.passes(photos()) == sum(seen)


def test_an_audit_has_one_bar_with_what_each_detector_takes() -> None:
    short = SMALL | {"rounds": ((0, 4, 2), (2, 4, 3))}
    detectors = {"multi_prior": short, "decree": {"epochs": 2, "images": 32, "batch": 16}}
    budget, seen = Budget(name="short", detectors=detectors, tried=(), left_out=()), Recorded()
    audit(encoder(8.0), photos(), budget, [], replace(RUN, progress=seen))
    whole = seen.bars[0]
    assert whole.label == "audit"
    assert whole.total == MultiPrior(**short).passes(photos()) + Decree(**detectors["decree"]).passes(photos())  # type: ignore[arg-type]
    assert whole.done == whole.total
    assert any(note.startswith("trigger inversion: patch") for note in whole.notes)
    assert any(note.startswith("trigger inversion (DECREE)") for note in whole.notes)
    assert "trigger inversion" not in {bar.label for bar in seen.bars}


def test_twins_have_one_bar_for_all_that_they_do() -> None:
    method, seen = Twins(**BY_SPREAD, twins=2, enough=-9.0, steps=5, worst_fit=2.0), Recorded()  # type: ignore[arg-type]
    method.examine(encoder(8.0), photos(), replace(RUN, progress=seen))
    (whole,) = seen.bars
    search = MultiPrior(**SMALL).passes(photos())  # type: ignore[arg-type]
    assert whole.total == method.passes(photos()) == 3 * search + 2 * 5 * 64
    assert whole.done == whole.total
    kinds = [note.partition(":")[0] for note in whole.notes if note]
    assert list(dict.fromkeys(kinds)) == ["trigger inversion", "twin"]
    assert kinds[0] == kinds[-1] == "trigger inversion"


def test_twins_that_look_at_clusters_have_shares_of_the_bar_for_that() -> None:
    """Of 10 clusters the nearest 2 are looked at, from 3 starts each, with 8 images for 2 steps, then 2 for 16."""
    rounds = ((3, 8, 2), (2, 16, 1))
    method, seen = Twins(**SMALL, towards=((0.25, 0.0, 1.0),), nearest=2, twins=1, steps=5, worst_fit=2.0), Recorded()  # type: ignore[arg-type]
    method.examine(encoder(8.0), photos(), replace(RUN, progress=seen))
    (whole,) = seen.bars
    reach = ReachSearch(most=2, images=64).work(64, 10, large=False)
    assert ReachSearch(most=2, images=64, rounds=rounds).work(64, 10, large=False) == 2 * (3 * 8 * 2 + 2 * 16)
    assert whole.total == 2 * (MultiPrior(**SMALL).passes(photos()) + reach) + 5 * 64  # type: ignore[arg-type]
    assert whole.done == whole.total
    assert any("class" in note for note in whole.notes)
