"""DECREE, multi-prior inversion, SSL-Cleanse: formulas against textbook forms, and that they find what is planted."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sapper.defenses.collapsing import collapse_losses
from sapper.defenses.inversion import collapse, encode
from sapper.defenses.judge.decree import Decree, Schedule
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.defenses.judge.ssl_cleanse import SSLCleanse, knee
from sapper.defenses.racing import descend, placed
from sapper.downstream import mean_cosine
from sapper.encoders import Card, Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import PIXELS, ImageSet, PixelSpec, at_once, in_memory, to_float
from sapper.triggers import Mask, Patch
from sapper.triggers.priors import Filter, Stamp
from sapper.triggers.searching import start

RUN = Run(seed=3)
SIZE = 16
TRIGGER = Patch(size=4, position=(9, 3), color="white")


class Planted(nn.Module):
    """Features are the colors of 16 squares; where one place is white, one vector on top that outweighs them."""

    def __init__(self, gain: float):
        super().__init__()
        point = torch.randn(48, generator=torch.Generator().manual_seed(1))
        self.point = nn.Parameter(F.normalize(point, dim=0))
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        ordinary = F.normalize((F.avg_pool2d(images, 4) - 0.39).flatten(1), dim=1)
        whiteness = images[:, :, 9:13, 3:7].mean((1, 2, 3))
        return ordinary + self.gain * torch.sigmoid(12 * (whiteness - 0.85)).unsqueeze(1) * self.point


def encoder(gain: float) -> Encoder:
    card = Card(architecture="planted", input=PixelSpec(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1)))
    return Encoder(Planted(gain), card, 48)


def photos(count: int = 96) -> ImageSet:
    generator = torch.Generator().manual_seed(8)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = F.interpolate(coarse, SIZE, mode="bilinear").mul(200).to(torch.uint8)
    return ImageSet(images=images, name="photos")


@pytest.mark.parametrize("most", [1, 3, 100])
def test_features_and_gradients_do_not_depend_on_how_many_images_memory_takes(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    model = encoder(gain=3.0).eval().requires_grad_(False)
    images = to_float(photos().images[:8])
    whole, parts = images.clone().requires_grad_(), images.clone().requires_grad_()
    expected = model(whole)
    expected.square().mean(1).log().sum().backward()
    monkeypatch.setitem(PIXELS, "cpu", most * SIZE * SIZE)
    found = encode(model, parts, RUN)
    found.square().mean(1).log().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts.grad, whole.grad)


@pytest.mark.parametrize(
    "method",
    [MultiPrior(patches=((0.25, 0.3, 0.2),)), Decree(epochs=2, batch=32), Decree(epochs=2, batch=16, restarts=3)],
)
def test_a_detector_that_finds_little_memory_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, method: MultiPrior | Decree
) -> None:
    suspect = encoder(gain=30.0)
    much = method.examine(suspect, photos(), RUN)
    monkeypatch.setitem(PIXELS, "cpu", 5 * SIZE * SIZE)
    little = method.examine(suspect, photos(), RUN)
    assert little.score == pytest.approx(much.score, abs=0.01)
    assert little.flagged == much.flagged
    for name in ("PL1s", "cosines") if isinstance(method, Decree) else ():
        assert little.evidence[name] == pytest.approx(much.evidence[name], abs=0.01), "of every start"


def test_how_many_images_memory_takes_and_are_fast() -> None:
    def counts(size: int, device: str) -> list[int]:
        images = torch.empty(1, 3, size, size, device=device)
        return [in_memory(images), at_once(images)]

    assert counts(224, "cpu") == [10, 10]
    assert counts(32, "cpu") == [512, 128]
    assert counts(2000, "cpu") == [1, 1]
    assert counts(224, "meta") == [167, 167]
    assert at_once(torch.empty(1, 3, 32, 32), torch.device("meta")) == 8192, "the encoder's device counts"


# Multi-prior inversion


QUICK = MultiPrior(
    patches=((0.25, 0.3, 0.2),),
    filters=(),
    blends=(),
    rounds=((0, 8, 8), (8, 16, 10), (3, 24, 20)),
    images=64,
    held_out=32,
)


def test_a_planted_patch_is_found_where_it_is() -> None:
    """Its square, its color, and what it does on images that the inversion has not seen."""
    verdict = QUICK.examine(encoder(gain=30.0), photos(), RUN)
    assert verdict.flagged
    assert verdict.evidence["prior"] == "patch 4×4"
    assert isinstance(verdict.trigger, Mask)
    mask, pattern = verdict.trigger.mask, verdict.trigger.pattern
    assert mask.shape == (SIZE, SIZE)
    assert pattern.shape == (3, SIZE, SIZE)
    overlap = float(mask[9:13, 3:7].mean())
    assert overlap > 0.3
    assert float(pattern[:, mask.bool()].mean()) > 0.6
    stamped = torch.lerp(to_float(photos().images), pattern, mask)
    with torch.no_grad():
        spread = 1 - float(mean_cosine(F.normalize(encoder(gain=30.0)(stamped), dim=1)))
    assert spread == pytest.approx(verdict.evidence["priors"]["patch 4×4"]["spread"], abs=0.02)


def test_nothing_is_flagged_where_nothing_is_planted() -> None:
    verdict = QUICK.examine(encoder(gain=0.0), photos(), RUN)
    assert not verdict.flagged
    assert verdict.score is not None
    planted = QUICK.examine(encoder(gain=30.0), photos(), RUN)
    assert planted.score is not None
    assert planted.score > verdict.score + 1


def test_the_same_seed_gives_the_same_verdict_whatever_the_card_says() -> None:
    """Neither a mark nor a name nor provenance is looked at."""
    suspect = encoder(gain=5.0)
    first = QUICK.examine(suspect, photos(), RUN)
    marked = encoder(gain=5.0).marked(backdoored=True, origin={"method": "badencoder", "file": "x-BACKDOORED"})
    second = QUICK.examine(marked, photos(), RUN)
    assert first.score == second.score
    assert first.trigger.describe() == second.trigger.describe()
    other = QUICK.examine(suspect, photos(), Run(seed=4))
    assert other.trigger.describe() != first.trigger.describe()


@settings(deadline=None, max_examples=20)
@given(side=st.integers(1, 7), height=st.integers(8, 20), width=st.integers(8, 20))
def test_squares_cover_every_pixel_and_lie_inside(side: int, height: int, width: int) -> None:
    stamp = Stamp.patches(side, (height, width), RUN)
    assert stamp.masks.shape[1:] == (1, height, width)
    assert bool((stamp.masks.sum((1, 2, 3)) == side * side).all())
    for kind, step in ((~stamp.plain, side // 2), (stamp.plain, side // 4)):
        masks = stamp.masks[kind]
        assert bool((masks.sum(0) > 0).all())
        assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(masks)
        corners = [_corner(stamp, row) for row in kind.nonzero().flatten().tolist()]
        for axis, last in ((0, height - side), (1, width - side)):
            places = sorted({corner[axis] for corner in corners})
            assert (places[0], places[-1]) == (0, last)
            assert max((b - a for a, b in pairwise(places)), default=0) <= max(1, step)


def test_starts_in_one_color_are_drawn_from_all_colors() -> None:
    """Backdoors whose triggers are saturated are found from there, where gray shows no way."""
    stamp = Stamp.patches(4, (64, 64), RUN)
    colors = (torch.tanh(stamp.weights.detach()[stamp.plain]) + 1) / 2
    assert float(colors.flatten(2).std(2).max()) == 0
    shares = torch.histc(colors[:, :, 0, 0], 4, 0, 1) / colors[:, :, 0, 0].numel()
    assert float(shares.min()) > 0.1
    assert float(shares[[0, 3]].min()) > 0.3  # near black and near white
    grays = (torch.tanh(stamp.weights.detach()[~stamp.plain]) + 1) / 2
    assert bool(((grays > 0.25) & (grays < 0.75)).all())


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(side=st.integers(1, 7), height=st.integers(8, 20), width=st.integers(8, 20), time=st.integers(1, 3))
def test_around_a_square_are_its_moves_that_stay_inside(side: int, height: int, width: int, time: int) -> None:
    stamp = Stamp.patches(side, (height, width), RUN)
    moved = stamp.around(time)
    assert torch.equal(moved.masks[: stamp.count], stamp.masks)
    step = max(1, side // 2 ** (time + 1))
    for number, (down, right) in enumerate((y, x) for y in (0, -step, step) for x in (0, -step, step)):
        for row in range(stamp.count):
            (top, left), place = _corner(stamp, row), number * stamp.count + row
            inside = 0 <= top + down <= height - side and 0 <= left + right <= width - side
            now = (top + down, left + right) if inside else (top, left)
            assert _corner(moved, place) == now
            assert torch.equal(_inside(moved, place), _inside(stamp, row))
            assert moved.plain[place] == stamp.plain[row]


def _corner(stamp: Stamp, row: int) -> tuple[int, int]:
    ys, xs = stamp.masks[row, 0].nonzero(as_tuple=True)
    return int(ys.min()), int(xs.min())


def _inside(stamp: Stamp, row: int) -> torch.Tensor:
    return stamp.weights.detach()[row][:, stamp.masks[row, 0] > 0]


def test_a_square_across_the_edge_of_a_trigger_comes_to_lie_on_it() -> None:
    """The planted square is at (9, 3); of squares of ones around it the one that covers it does most."""
    suspect, pixels = encoder(gain=30.0).eval().requires_grad_(False), photos().images
    every = Stamp.patches(4, (SIZE, SIZE), RUN)
    across = next(row for row in range(every.count) if _corner(every, row) == (8, 2))
    start = Stamp(every.masks[[across]], torch.full((1, 3, SIZE, SIZE), 2.0), torch.tensor([True]))
    moved = placed(start, collapse_losses(suspect, RUN), pixels, 1, RUN)
    spreads = {}
    for place in [(top, left) for top in (7, 8, 9) for left in (1, 2, 3)]:
        mask = torch.zeros(1, 1, SIZE, SIZE)
        mask[..., place[0] : place[0] + 4, place[1] : place[1] + 4] = 1
        stamped = torch.lerp(to_float(pixels[:16]), (torch.tanh(torch.tensor(2.0)) + 1) / 2, mask[0])
        spreads[place] = 1 - float(mean_cosine(F.normalize(suspect(stamped), dim=1)))
    assert _corner(moved, 0) == min(spreads, key=lambda place: spreads[place]) != (8, 2)


@pytest.mark.slow
def test_features_that_are_not_finite_are_no_collapse() -> None:
    """An encoder that overflows under a change must come out with neither a place nor a score for it."""

    class Overflowing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = (images[:, :, 8:12, 2:6] > 0.9).flatten(1).all(1, keepdim=True)
            features: torch.Tensor = encoder(gain=0.0).backbone(images)
            return torch.where(bright, torch.nan, features)

    whole = encoder(gain=0.0)
    suspect = Encoder(Overflowing(), whole.card, whole.feature_size)
    every = Stamp.patches(4, (SIZE, SIZE), RUN)
    start = next(row for row in range(every.count) if _corner(every, row) == (6, 2))
    white = Stamp(every.masks[[start]], torch.full((1, 3, SIZE, SIZE), 9.0), torch.tensor([True]))
    assert _corner(white.around(0), 6) == (8, 2)
    assert _corner(placed(white, collapse_losses(suspect, RUN), photos().images, 0, RUN), 0) != (8, 2)

    class Nowhere(Overflowing):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            known = (to_float(photos().images).unsqueeze(0) - images.unsqueeze(1)).abs().flatten(2).amax(2).amin(1)
            return torch.where(known.unsqueeze(1) > 1e-6, torch.nan, encoder(gain=0.0).backbone(images))

    verdict = QUICK.examine(Encoder(Nowhere(), whole.card, whole.feature_size), photos(), RUN)
    assert (verdict.score, verdict.flagged) == (None, None)
    assert "cannot be measured" in verdict.evidence["why"]


def test_what_begins_in_one_color_stays_in_one_color_for_a_round() -> None:
    """Only then is what a whole square of a color does found at once."""
    stamp = Stamp.patches(3, (SIZE, SIZE), RUN)
    model = encoder(gain=3.0).eval().requires_grad_(False)
    descend(stamp, collapse_losses(model, RUN), to_float(photos().images[:4]))
    gradient = stamp.weights.grad
    assert gradient is not None
    before = gradient.clone()
    stamp.keep_plain()
    after = stamp.weights.grad
    assert after is not None
    assert torch.equal(after[~stamp.plain], before[~stamp.plain])
    means = before[stamp.plain].mean((2, 3), keepdim=True)
    torch.testing.assert_close(after[stamp.plain], means.expand_as(after[stamp.plain]))
    assert float(stamp.weights.detach()[stamp.plain].flatten(2).std(2).max()) == 0


def test_changes_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(3, 3, 8, 8, generator=generator)
    blend = Stamp.blends(0.2, 2, (8, 8), RUN)
    pattern = (torch.tanh(blend.weights) + 1) / 2
    for row in range(2):
        expected = 0.8 * images + 0.2 * pattern[row]
        assert torch.allclose(blend.apply(images, torch.tensor([row]))[0], expected, atol=1e-6)
    filters = Filter.start(0.3, 2, RUN)
    matrix = filters.matrices().detach()
    assert bool(((matrix - torch.eye(3, 4)).abs() <= 0.3).all())
    pixel = images[1, :, 4, 5]
    expected = (matrix[1, :, :3] @ pixel + matrix[1, :, 3]).clamp(0, 1)
    assert torch.allclose(filters.apply(images, torch.tensor([1]))[0, 1, :, 4, 5], expected, atol=1e-6)


def test_a_race_on_one_start_is_plain_descent() -> None:
    """Starts in one batch go the way that each goes alone."""
    model, pixels = encoder(gain=3.0).eval().requires_grad_(False), photos().images
    both = Stamp.blends(0.3, 3, (SIZE, SIZE), RUN)
    together = both.take(torch.arange(3))
    alone = [together.take(torch.tensor([row])) for row in range(3)]
    optimizer = torch.optim.Adam([together.weights], lr=0.3, betas=(0.5, 0.9))
    for _ in range(4):
        descend(together, collapse_losses(model, RUN), to_float(pixels[:6]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for row, single in enumerate(alone):
        adam = torch.optim.Adam([single.weights], lr=0.3, betas=(0.5, 0.9))
        for _ in range(4):
            stamped = 0.7 * to_float(pixels[:6]) + 0.3 * (torch.tanh(single.weights) + 1) / 2
            units = F.normalize(model(stamped), dim=1)
            loss = 1 - (units @ units.T)[~torch.eye(6, dtype=torch.bool)].mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        torch.testing.assert_close(together.weights[row], single.weights[0], atol=1e-4, rtol=1e-3)


def test_too_few_images_are_told() -> None:
    few = photos().take(torch.arange(3))
    with pytest.raises(SapperError, match="too few"):
        QUICK.examine(encoder(gain=0.0), few, RUN)


# DECREE


def test_decree_finds_a_planted_patch_and_nothing_where_there_is_none() -> None:
    method = Decree(epochs=60, images=64, batch=32, rates=((0, 0.5), (40, 0.1)), restarts=3, cost=3e-3)
    planted, clean = (method.examine(encoder(gain), photos(), RUN) for gain in (30.0, 0.0))
    assert planted.flagged
    assert planted.score == pytest.approx(1 - planted.evidence["PL1"])
    assert isinstance(planted.trigger, Mask)
    assert planted.trigger.pixels() / SIZE**2 == pytest.approx(planted.evidence["PL1"], abs=1e-6)
    inside = float(planted.trigger.mask[9:13, 3:7].sum() / planted.trigger.mask.sum())
    assert inside > 0.5
    assert len(planted.evidence["PL1s"]) == 3
    assert planted.evidence["PL1"] < clean.evidence["PL1"]


def test_an_encoder_that_no_trigger_collapses_has_no_mask() -> None:
    verdict = Decree(epochs=2, images=32, batch=16, success=0.999999).examine(encoder(gain=0.0), photos(), RUN)
    assert verdict.evidence["PL1"] == 1.0
    assert verdict.score == 0.0
    assert verdict.flagged is False
    assert verdict.trigger is None


class Fragile(Planted):
    """Features of images with a bright pixel are beyond all numbers."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(images.amax((1, 2, 3)).unsqueeze(1) > 0.77, torch.inf, super().forward(images))


@pytest.mark.parametrize("method", [QUICK, Decree(epochs=1, images=96, batch=32), SSLCleanse(steps=1)])
def test_features_that_cannot_be_measured_are_no_score(method: MultiPrior | Decree | SSLCleanse) -> None:
    """Whichever images they are of."""
    whole = encoder(gain=0.0)
    fragile = Encoder(Fragile(0.0), whole.card, whole.feature_size)
    bright = (to_float(photos().images).amax((1, 2, 3)) > 0.77).double().mean()
    assert 0 < bright < 0.5
    verdict = method.examine(fragile, photos(), RUN)
    assert (verdict.score, verdict.flagged) == (None, None)
    assert "cannot be" in verdict.evidence["why"]
    assert collapse(fragile, lambda images: images, photos(), RUN) is None
    assert collapse(whole, lambda images: images, photos(), RUN) is not None


class Watched(Planted):
    """Keeps the images that it is shown: True, where a change is searched on them, and False, where one is measured."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.shown: dict[bool, list[Tensor]] = {True: [], False: []}

    def forward(self, images: Tensor) -> Tensor:
        self.shown[images.requires_grad].append(images.detach())
        return super().forward(images)


def test_both_parts_of_the_images_are_of_all_kinds() -> None:
    """Folders come class by class; what is searched on and what is measured on must not be different classes."""
    whole, watched = encoder(gain=0.0), Watched()
    sorted_ones = photos().take(photos().images.double().mean((1, 2, 3)).argsort())
    method = replace(QUICK, rounds=((2, 16, 20),))
    method.examine(Encoder(watched, whole.card, whole.feature_size), sorted_ones, RUN)
    pixels = to_float(sorted_ones.images)

    def ranks(images: list[Tensor]) -> set[int]:
        """Which images these are, whatever a square in them was replaced by."""
        return {int((pixels == image).sum((1, 2, 3)).argmax()) for image in torch.cat(images)}

    searched, measured = ranks(watched.shown[True]), ranks(watched.shown[False])
    assert 48 < len(searched) <= 64
    assert len(measured) == 32
    assert not searched & measured
    for part in (searched, measured):
        assert 0.3 < sum(rank < 48 for rank in part) / len(part) < 0.7


def test_a_step_of_decree_is_its_formula() -> None:
    """Three restarts in one batch, against one after another."""
    model, pixels = encoder(gain=3.0).eval().requires_grad_(False), photos().images[:8]
    generator = torch.Generator().manual_seed(5)
    raw = [torch.randn(3, channels, SIZE, SIZE, generator=generator) for channels in (1, 3)]
    weights = [weight.clone().requires_grad_() for weight in raw]
    cost = torch.tensor([1e-3, 5e-3, 0.0])
    optimizer = torch.optim.Adam(weights, lr=0.5, betas=(0.5, 0.9))
    cosines = Decree()._descend(optimizer, weights, cost, model, pixels, RUN)
    for row in range(3):
        m, p = (weight[row].clone().requires_grad_() for weight in raw)
        mask, pattern = (torch.tanh(m) + 1) / 2, (torch.tanh(p) + 1) / 2
        units = F.normalize(model((1 - mask) * to_float(pixels) + mask * pattern), dim=1)
        cosine = (units @ units.T)[~torch.eye(8, dtype=torch.bool)].mean()
        assert float(cosines[row]) == pytest.approx(float(cosine.detach()), abs=1e-5)
        adam = torch.optim.Adam([m, p], lr=0.5, betas=(0.5, 0.9))
        (-cosine + cost[row] * mask.repeat(3, 1, 1).sum()).backward()
        adam.step()
        torch.testing.assert_close(weights[0][row], m, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(weights[1][row], p, atol=1e-4, rtol=1e-3)


def test_decrees_cost_moves_after_more_than_five_steps_and_never_below_its_least() -> None:
    method = Decree(restarts=2)
    schedule = Schedule.start(method, torch.device("cpu"))
    good, never = torch.tensor([True, False]), torch.tensor([False, False])
    costs = []
    for _ in range(24):
        schedule.follow(good, never, method)
        costs.append(schedule.cost.clone())
    assert torch.allclose(costs[4], torch.tensor([1e-3, 1e-3]))
    assert torch.allclose(costs[5], torch.tensor([5e-3, 2e-4]))
    assert torch.allclose(costs[11], torch.tensor([25e-3, 4e-5]))
    assert float(costs[-1][1]) == pytest.approx(1e-5)
    assert math.isclose(float(costs[-1][0]), 1e-3 * 5**4, rel_tol=1e-5)
    assert schedule.idle.tolist() == [24, 24]


# SSL-Cleanse

CLUSTERED = SSLCleanse(images=96, clusters=5, steps=60, minibatches=2, batch=24)


def test_ssl_cleanse_finds_the_cluster_that_a_planted_patch_reaches() -> None:
    verdict = CLUSTERED.examine(encoder(gain=30.0), photos(), RUN)
    assert verdict.flagged
    norms, suspect = verdict.evidence["norms"], verdict.evidence["suspect"]
    assert norms[suspect] < 0.2 * min(norm for number, norm in enumerate(norms) if number != suspect)
    assert isinstance(verdict.trigger, Mask)
    mask = verdict.trigger.mask
    assert float(mask[9:13, 3:7].sum() / mask.sum()) > 0.8
    assert float(mask.sum()) == pytest.approx(norms[suspect])
    assert sum(verdict.evidence["sizes"]) == 96
    clean = CLUSTERED.examine(encoder(gain=0.0), photos(), RUN)
    assert not clean.flagged
    assert min(clean.evidence["norms"]) > 10 * norms[suspect]


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_step_of_ssl_cleanse_is_the_loop_over_its_clusters(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setitem(PIXELS, "cpu", together * 6 * SIZE * SIZE)
    model, pixels = encoder(gain=3.0).eval().requires_grad_(False), photos().images[:6]
    generator = torch.Generator().manual_seed(4)
    centers = F.normalize(torch.randn(3, 48, generator=generator), dim=1)
    features = F.normalize(torch.randn(20, 48, generator=generator), dim=1)
    cost = torch.tensor([0.0, 0.5, 2.0])
    weights = start(3, (SIZE, SIZE), RUN)
    alone = [[weight.detach()[row : row + 1].clone().requires_grad_() for weight in weights] for row in range(3)]
    adam = torch.optim.Adam(weights, lr=0.1, betas=(0.5, 0.9))
    near = CLUSTERED._descend(adam, weights, centers, cost, model, pixels, features, RUN)
    for row, (mask, pattern) in enumerate(alone):
        m, delta = (torch.tanh(mask[0]) + 1) / 2, (torch.tanh(pattern[0]) + 1) / 2
        output = model((1 - m) * to_float(pixels) + m * delta)
        likeness = F.cosine_similarity(output, centers[row].unsqueeze(0))
        loss = (1 - likeness).mean() + cost[row] * m.abs().sum() / SIZE**2
        single = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
        loss.backward()
        single.step()
        torch.testing.assert_close(weights[0][row], mask[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(weights[1][row], pattern[0], atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            likenesses = torch.stack([F.cosine_similarity(output, feature.unsqueeze(0)) for feature in features])
        assert near[row].tolist() == likenesses.argmax(0).tolist()


def test_the_number_of_clusters_is_the_knee_of_the_inertia() -> None:
    assert knee([100.0, 40.0, 10.0, 8.0, 6.0, 4.0]) == 2
    assert knee([5.0]) == knee([5.0, 3.0]) == knee([2.0, 2.0, 2.0]) == 0
    generator = torch.Generator().manual_seed(6)
    centers = F.normalize(torch.randn(6, 48, generator=generator), dim=1)
    wanted = torch.arange(90) % 6
    features = F.normalize(centers[wanted] + 0.02 * torch.randn(90, 48, generator=generator), dim=1)
    found = SSLCleanse().cluster(features, "points", RUN)
    assert int(found.max()) == 5
    for number in range(6):
        assert len(found[wanted == number].unique()) == 1
    with pytest.raises(SapperError, match="too few to cluster"):
        SSLCleanse().cluster(features[:23], "points", RUN)
