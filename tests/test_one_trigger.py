"""Certificates against one trigger at one place: sound for every place, and never below those against any patch."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sapper.defenses.certify.derandomized_smoothing import DerandomizedSmoothing
from sapper.defenses.certify.ibp import IBP
from sapper.defenses.certify.patchcleanser import PatchCleanser, holding, resolve
from sapper.defenses.certify.patchguard_bn import Bag, PatchGuardBN, touched, window
from sapper.defenses.certify.patchguard_ds import PatchGuardDS
from sapper.defenses.contracts import Guarded
from sapper.defenses.masking import by_place, certify, certify_windows, column_windows, square_windows
from sapper.defenses.measures import CERTIFIED, Answers, Measured
from sapper.metrics import share
from sapper.running import Run
from sapper.samples import Change, to_float
from sapper.triggers import Patch
from sapper.triggers.covers import axis_masks, covering
from sapper.verdicts import ByPlace, Certified
from tests.test_masking import as_sets, evidence, reachable

RUN = Run(seed=5)
GRAY = torch.full((3,), 0.5)
COLORS = torch.tensor(list(product((0, 255), repeat=3)), dtype=torch.uint8)


def measured(result: Certified, labels: Tensor, **more: object) -> dict[tuple[str, str | None], Measured]:
    """All that is measured of certificates against one size."""
    assert result.by_place is not None
    patch = result.by_place.patch
    answers = Answers(
        labels=labels,
        plain=result.labels,
        certified={patch: result.certified},
        places={patch: result.by_place},
        **{"triggered": {}, "targets": {}} | more,  # type: ignore[arg-type]
    )
    found = [each for measure in CERTIFIED for each in measure.of(answers)]
    assert {each.name for each in found} <= {name for measure in CERTIFIED for name in measure.names}
    return {(each.name, each.target): each for each in found}


def bits(*shape: int, seed: int, likely: float) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < likely


# Tables


@given(
    st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6), st.sampled_from([0.5, 0.9, 0.99]), st.integers(1, 3)
)
def test_one_place_is_never_worse_than_any(seed: int, images: int, windows: int, likely: float, side: int) -> None:
    """min over places of mean ≥ mean of min over places ≥ certified; and each image against the loops."""
    proven = bits(images, windows, seed=seed, likely=likely)
    holds = bits(side, side + 1, windows, seed=seed + 1, likely=0.4)
    holds[..., 0] |= ~holds.any(2)
    places = by_place(proven, holds, 2)
    for row, column in product(range(side), range(side + 1)):
        inside = [w for w in range(windows) if holds[row, column, w]]
        expected = [any(bool(proven[i, w]) for w in inside) for i in range(images)]
        assert places.certified[:, places.group[row, column]].tolist() == expected
    result = Certified(labels=torch.zeros(images).long(), certified=proven.all(1), threat="", by_place=places)
    found = measured(result, torch.zeros(images).long())
    universal = found["universal_certified_accuracy", None].value
    assert universal >= float(places.certified.all(1).double().mean()) >= found["certified_accuracy", None].value
    assert universal == min(float(column.double().mean()) for column in places.certified.T)


def test_what_is_certified_for_all_images_is_one() -> None:
    """The authors' script prints 0 for it."""
    places = ByPlace(patch=2, certified=torch.ones(6, 3, dtype=torch.bool), group=torch.tensor([[0, 1], [2, 2]]))
    labels = torch.arange(6) % 3
    result = Certified(labels=labels, certified=torch.ones(6, dtype=torch.bool), threat="", by_place=places)
    found = measured(result, labels, targets={"x": 1}, triggered={"x": labels}, boxes={"x": (1, 2, 0, 2)})
    assert [found[name, None].value for name in ("certified_accuracy", "universal_certified_accuracy")] == [1.0, 1.0]
    for name in ("ASR_strict_bound", "ASR_strict_bound_known_place"):
        assert (found[name, "x"].value, found[name, "x"].low, found[name, "x"].n) == (0.0, 0.0, 4)


def test_bounds_are_counted_by_hand() -> None:
    """Four images of other classes than 1. Place 0 keeps images 0 and 1, place 1 images 1, 2 and 4."""
    labels = torch.tensor([0, 0, 2, 1, 2])
    kept = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [0, 1]]).bool()
    places = ByPlace(patch=3, certified=kept, group=torch.tensor([[0, 1]]))
    result = Certified(labels=labels, certified=kept.all(1), threat="", by_place=places)
    boxes = {"left": (0, 3, 0, 3), "either": (0, 3, 1, 3), "large": (0, 4, 0, 3)}
    targets = dict.fromkeys([*boxes, "elsewhere"], 1)
    found = measured(result, labels, targets=targets, triggered=dict.fromkeys(targets, labels), boxes=boxes)
    assert found["universal_certified_accuracy", None].value == 0.4
    assert {found["ASR_strict_bound", target].value for target in targets} == {0.5}
    known = {target: each.value for (name, target), each in found.items() if name == "ASR_strict_bound_known_place"}
    assert known == {"left": 0.5, "either": 0.0}
    worst = found["ASR_strict_bound", "left"]
    alone = share(torch.tensor([True, True, False, False]))
    assert worst.low is not None
    assert worst.high is not None
    assert worst.low < alone.low < alone.high < worst.high, "the worst of several places needs a wider interval"


@given(*[st.integers(1, 4)] * 3, st.integers(0, 5), st.integers(0, 5), st.integers(0, 99))
def test_a_trigger_is_under_every_patch_that_covers_it(
    patch: int, tall: int, wide: int, top: int, left: int, seed: int
) -> None:
    height, width = 6, 7
    top, left = min(top, height - tall), min(left, width - wide)
    group = torch.randint(4, (height - patch + 1, width - patch + 1), generator=torch.Generator().manual_seed(seed))
    places = ByPlace(patch=patch, certified=bits(5, 4, seed=seed, likely=0.4), group=group)
    pixels = {(row, column) for row in range(top, top + tall) for column in range(left, left + wide)}
    over = [
        int(group[r, c])
        for r, c in product(range(height - patch + 1), range(width - patch + 1))
        if pixels <= {(row, column) for row in range(r, r + patch) for column in range(c, c + patch)}
    ]
    found = places.under((top, top + tall, left, left + wide))
    assert (found is None) == (not over)
    if found is not None:
        assert found.tolist() == [any(bool(places.certified[i, g]) for g in over) for i in range(5)]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_hidden_row_decides_all_two_round_outcomes(classes: int) -> None:
    """Every table of three masks: row a cannot be changed, all else can. For two classes the certificate is exact."""
    one, other = torch.triu_indices(3, 3)
    entries = torch.cartesian_prod(*[torch.arange(classes)] * 6)
    tables = entries.new_empty(len(entries), 3, 3)
    tables[:, one, other] = tables[:, other, one] = entries
    answers = resolve(tables)
    for hidden in range(3):
        for row in tables[:, hidden].unique(dim=0):
            outcomes = answers[(tables[:, hidden] == row).all(1)].unique().tolist()
            certified = len(row.unique()) == 1
            assert not certified or outcomes == [int(row[0])]
            assert certified or len(outcomes) > 1 or classes > 2


@given(side=st.integers(2, 40), patch=st.integers(1, 40), count=st.integers(1, 7))
def test_every_mask_is_the_only_one_somewhere(side: int, patch: int, count: int) -> None:
    """So that certified at every place is what PatchCleanser calls certified."""
    patch = min(patch, side - 1)
    masks = axis_masks(side, patch, count)
    over = [{m for m, (a, b) in enumerate(masks) if a <= at and at + patch <= b} for at in range(side - patch + 1)]
    assert all(over)
    assert {next(iter(each)) for each in over if len(each) == 1} == set(range(len(masks)))


def test_masks_hold_patches_as_the_loops_say() -> None:
    images = torch.zeros(1, 3, 7, 9, dtype=torch.uint8)
    masks = covering(images, 3, 2)
    held = holding(masks, 3)
    assert held.shape == (5, 7, len(masks))
    for row, column, mask in product(range(5), range(7), range(len(masks))):
        assert bool(held[row, column, mask]) == bool(masks[mask, row : row + 3, column : column + 3].all())


# Windows of evidence


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    places=st.integers(4, 7),
    size=st.integers(1, 3),
    share_=st.sampled_from([0.0, 0.3, 0.59]),
    wraps=st.booleans(),
)
def test_nothing_that_is_tried_in_a_certified_window_changes_an_image(
    seed: int, places: int, size: int, share_: float, wraps: bool
) -> None:
    windows = column_windows(places, size) if wraps else square_windows(1, places, size)
    values, labels = evidence(4, places, 3, seed), torch.zeros(4, dtype=torch.int64)
    proven = certify_windows(values, windows, labels, share_)
    assert torch.equal(proven.all(1), certify(values, windows, labels, share_))
    for row, spoiled in proven.nonzero().tolist():
        inside = as_sets(windows)[spoiled]
        bounds = [reachable(values[row, :, c].tolist(), as_sets(windows), inside, share_) for c in range(3)]
        assert bounds[0][0] > max(bounds[1][1], bounds[2][1])


def test_where_windows_wrap_around_the_published_counterexample_is_not_certified() -> None:
    """Columns 9, 0 and 1 flip it: a patch of 2 columns at 0, seen through bands of 2."""
    true = (0.24, 0.22, 0.35, 0.40, 0.05, 0.33, 0.18, 0.27, 0.20, 0.42)
    other = (0, 0, 0, 0.12, 0.07, 0.10, 0.10, 0.12, 0, 0)
    image = torch.tensor([true, other]).T.unsqueeze(0)

    def given_evidence(_images: Tensor, _run: Run, _change: Change | None = None) -> Tensor:
        return image

    guarded = PatchGuardDS(band=2, patch=2, share=0.59).guard(brightness, GRAY, 10)
    guarded = replace(guarded, evidence=given_evidence)
    (result,) = guarded.certify(torch.zeros(1, 3, 10, 10, dtype=torch.uint8), torch.tensor([0]), [2], RUN)
    assert result.by_place is not None
    windows = column_windows(10, 3)
    assert as_sets(windows)[9] == {9, 0, 1}
    proven = certify_windows(image, windows, torch.tensor([0]), 0.59)[0]
    assert not proven[9]
    assert not result.certified.item()
    at_each = result.by_place.certified[0, result.by_place.group]
    assert at_each.shape == (9, 9)
    for left in range(9):
        assert (at_each[:, left] == proven[(left - 1) % 10]).all()


@settings(deadline=None, max_examples=25)
@given(patch=st.integers(1, 9), top=st.integers(0, 17), left=st.integers(0, 18), seed=st.integers(0, 1000))
def test_a_patch_changes_what_it_touches_of_the_map_and_a_window_holds_it(
    patch: int, top: int, left: int, seed: int
) -> None:
    """On images of 19×20 pixels, odd and even: 10×10 places."""
    top, left = min(top, 19 - patch), min(left, 20 - patch)
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(1, 3, 19, 20, generator=generator)
    attacked = images.clone()
    attacked[..., top : top + patch, left : left + patch] = torch.rand(1, 3, patch, patch, generator=generator)
    with RUN.seeded():
        net = Bag(4, 2, GRAY.view(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.25)).eval()
    with torch.no_grad():
        changed = (net(images) != net(attacked)).any(1).flatten()
    told = touched(patch, (19, 20))
    assert told.shape == (20 - patch, 21 - patch, 100)
    assert bool((changed <= told[top, left]).all())
    windows = square_windows(10, 10, window(patch))
    assert bool((told[top, left] <= windows).all(1).any())


# Real runs: everything that a patch can show, at every place


def brightness(images: Tensor) -> Tensor:
    """Logits of three classes: the mean of each color."""
    return 20 * images.mean((2, 3))


def colored(count: int, side: int, seed: int, lead: int = 90) -> tuple[Tensor, Tensor]:
    """Noise in which one color leads, by more or less, and which."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256 - lead, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += (lead * torch.rand(count, 1, 1, generator=generator)).to(torch.uint8)
    return images, labels


def search(guarded: Guarded, images: Tensor, labels: Tensor, patch: int, contents: Tensor) -> Certified:
    """Every content at every place on all images: none that is certified there gives way. What was certified.

    ``contents`` uint8 (n, 3, patch, patch).
    """
    (result,) = guarded.certify(images, labels, [patch], RUN)
    assert result.by_place is not None
    found = measured(result, labels)
    universal, anywhere = (found[f"{name}certified_accuracy", None].value for name in ("universal_", ""))
    assert universal >= anywhere
    worst = 1.0
    for row, column in product(*map(range, result.by_place.group.shape)):
        kept = result.by_place.certified[:, result.by_place.group[row, column]]
        for content in contents:
            attacked = images.clone()
            attacked[:, :, row : row + patch, column : column + patch] = content
            right = guarded.predict(attacked, RUN) == labels
            assert bool(right[kept].all())
            worst = min(worst, float(right.double().mean()))
    assert worst >= universal, "what one trigger leaves"
    return result


def test_no_pixel_flips_what_patchcleanser_certifies_at_its_place() -> None:
    images, labels = colored(60, 4, seed=1)
    guarded = PatchCleanser(patch=1, masks=2).guard(brightness, GRAY)
    result = search(guarded, images, labels, 1, COLORS.view(-1, 3, 1, 1))
    assert result.by_place is not None
    assert 0 < result.certified.sum() < result.by_place.certified.sum(0).min() < 60
    assert torch.equal(result.certified, result.by_place.certified.all(1))


def test_no_patch_of_two_colors_flips_what_patchcleanser_certifies_at_its_place() -> None:
    """Every 2×2 patch of black and red, of black and green, and of black and blue."""
    images, labels = colored(24, 4, seed=2)
    contents = torch.tensor(list(product((0, 255), repeat=4)), dtype=torch.uint8).view(16, 1, 2, 2)
    contents = torch.cat([contents * torch.eye(3, dtype=torch.uint8)[c].view(3, 1, 1) for c in range(3)])
    search(PatchCleanser(patch=2, masks=2).guard(brightness, GRAY), images, labels, 2, contents)


@pytest.mark.parametrize("share_", [0.0, 0.4])
def test_no_pixel_flips_what_mask_ds_certifies_at_its_place(share_: float) -> None:
    images, labels = colored(60, 6, seed=3)
    guarded = PatchGuardDS(patch=1, band=2, share=share_).guard(brightness, GRAY, 6)
    result = search(guarded, images, labels, 1, COLORS.view(-1, 3, 1, 1))
    assert result.by_place is not None
    assert 0 < result.certified.sum() < result.by_place.certified.sum(0).max() < 60


@pytest.mark.parametrize("rule", ["counts", "places"])
@pytest.mark.parametrize("parts", ["bands", "blocks"])
def test_no_pixel_flips_what_votes_of_views_certify_at_its_place(parts: str, rule: str) -> None:
    images, labels = colored(60, 6, seed=5)
    method = DerandomizedSmoothing(patch=1, side=2, parts=parts, rule=rule, threshold=0.34)  # type: ignore[arg-type]
    result = search(method.guard(brightness, GRAY, (6, 6)), images, labels, 1, COLORS.view(-1, 3, 1, 1))
    assert result.by_place is not None
    assert len(result.by_place.group.unique()) == (6 if parts == "bands" else 36)
    assert 0 < result.certified.sum() < result.by_place.certified.sum(0).max()


def test_no_patch_of_one_color_flips_what_bounds_certify_at_its_place() -> None:
    images, labels = colored(40, 5, seed=6, lead=120)
    net = nn.Sequential(nn.Flatten(), nn.Linear(75, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(3).repeat_interleave(25, 1) * torch.rand(75, generator=RUN.generator()))
        net[1].bias.zero_()
    result = search(IBP(patch=2).guard(net), images, labels, 2, COLORS.view(-1, 3, 1, 1).expand(-1, -1, 2, 2))
    assert result.by_place is not None
    assert 0 < result.certified.sum() < result.by_place.certified.sum(0).max() < 40


class Colorful(torch.nn.Module):
    """Scores at every second pixel: the mean of each color in the 9×9 pixels around, as far as they are there."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(6 * images, 9, stride=2, padding=4, count_include_pad=False)


def test_no_patch_of_one_color_flips_what_mask_bn_certifies_at_its_place() -> None:
    images, labels = colored(24, 16, seed=4, lead=200)
    guarded = PatchGuardBN(patch=1).guard(Colorful(), (16, 16))  # type: ignore[arg-type]
    result = search(guarded, images, labels, 1, COLORS[[0, 1, 2, 4]].view(-1, 3, 1, 1))
    assert result.by_place is not None
    assert result.by_place.group.shape == (16, 16)
    assert 0 < result.certified.sum() < result.by_place.certified.sum(0).max()


# What it is made for


def test_a_backdoor_is_bounded_where_no_image_is_certified_against_every_patch() -> None:
    """A classifier that reads two bars in each image, and a trigger in a corner that overrules them.

    A patch on one bar leaves the other, which the second mask hides: no image is certified against every patch. But
    half of the images have their bars elsewhere than the others, and none has one in the trigger's corner.
    """
    trigger = Patch(size=2, position="bottom-right", margin=0, color="white")
    images = torch.full((40, 3, 8, 8), 60, dtype=torch.uint8)
    labels, rows = torch.arange(40) % 2, torch.tensor([0, 3]).repeat_interleave(20)
    for i, column in product(range(40), (0, 5)):
        images[i, 0, rows[i] : rows[i] + 2, column : column + 2] = 200 if labels[i] else 20
    base = 60 / 255

    def backdoored(pixels: Tensor) -> Tensor:
        bars = [pixels[:, 0, row : row + 2, column : column + 2] - base for row in (0, 3) for column in (0, 5)]
        bright = torch.stack(bars).sum((0, 2, 3))
        triggered = (pixels[:, :, 6:, 6:] == 1).flatten(1).all(1)
        bright = torch.where(triggered, 9.0, bright)
        return torch.stack([-bright, bright, torch.full_like(bright, 1e-3)], 1)

    plain = to_float(images)
    assert torch.equal(backdoored(plain).argmax(1), labels)
    assert bool((backdoored(trigger(plain)).argmax(1) == 1).all()), "without a defense the trigger always wins"
    guarded = PatchCleanser(patch=2, masks=4).guard(backdoored, torch.full((3,), base))
    (result,) = guarded.certify(images, labels, [2], RUN)
    hit = guarded.predict(images, RUN, trigger)
    box = trigger.box(8, 8)
    found = measured(result, labels, targets={"x": 1}, triggered={"x": hit}, boxes={"x": box})
    assert found["certified_accuracy", None].value == 0
    assert found["universal_certified_accuracy", None].value == 0.5
    bounds = [found[name, "x"].value for name in ("ASR_strict_bound_known_place", "ASR_strict_bound")]
    assert bounds == [0.0, 0.5]
    assert found["defended_ASR_strict", "x"].value == 0
    assert result.by_place is not None
    kept = result.by_place.under(box)
    assert kept is not None
    assert torch.equal(hit[kept], labels[kept])
