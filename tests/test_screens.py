"""Screens of inputs: their statistics against textbook forms, what they promise, and each at what it was made for."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from sapper import defenses
from sapper.attacks.poisoning import stamped
from sapper.conformal import conformal_threshold, fewest
from sapper.defenses.measures import SCREENED, Marked
from sapper.defenses.screen.dede import Decoder, DeDe, errors, visible
from sapper.defenses.screen.masking_test import MaskingTest, gap, spans
from sapper.defenses.screen.strip import STRIP, entropy
from sapper.defenses.screen.strip_encoder import STRIPEncoder, closeness
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.experiment.screening import POINTS, thinned
from sapper.methods import find
from sapper.metrics import auc, roc, share
from sapper.running import Run
from sapper.samples import ImageSet, check_pixels, to_float
from sapper.training import shuffled
from sapper.triggers import Patch
from sapper.verdicts import Scores
from tests.victims import balls, plain, victim

RUN = Run(seed=4)
CORNER = Patch(size=4, position="bottom-right", margin=0, color="white")
CLEAN, TEST = plain(balls(150, 1)), balls(60, 2)
TINY: dict[str, Any] = {
    "strip": STRIP(overlays=5),
    "strip_encoder": STRIPEncoder(overlays=5),
    "masking_test": MaskingTest(places=3),
    "dede": DeDe(width=32, depth=1, steps=2, batch=32),
}
WEIGHTS = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))


def pooled(images: Tensor) -> Tensor:
    """Features (n, 48) of images of 16×16: the mean colors of 16 cells, without the image's mean."""
    cells = F.avg_pool2d(images, 4).flatten(1)
    return cells - cells.mean(1, keepdim=True)


def logits(images: Tensor) -> Tensor:
    return 5 * pooled(images) @ WEIGHTS


def planted(images: Tensor) -> Tensor:
    """The same features, but one fixed feature wherever the corner is white."""
    own = pooled(images)
    white = torch.sigmoid(40 * (images[:, :, -4:, -4:].mean((1, 2, 3)) - 0.9)).unsqueeze(1)
    fixed = own.std() * torch.randn(own.shape[1], generator=torch.Generator().manual_seed(0))
    return (1 - white) * own + white * fixed


def model_for(screen: Any) -> Callable[[Tensor], Tensor]:
    return logits if screen.looks_at == "classifier" else pooled


# The threshold


@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    rate=st.sampled_from([0.01, 0.05, 0.07, 0.1, 1 / 3, 0.5, 0.9, 0.99]),
)
def test_of_all_places_among_the_scores_at_most_the_chosen_share_exceeds_the_threshold(
    scores: list[int], rate: float
) -> None:
    """Each of n + 1 exchangeable scores is the further one; the others choose. Ties only help."""
    rejected = 0
    for i, score in enumerate(scores):
        threshold = conformal_threshold([*scores[:i], *scores[i + 1 :]], rate)
        rejected += threshold is not None and score > threshold
    assert rejected <= rate * len(scores) + 1e-6
    assert (conformal_threshold(scores, rate) is None) == (len(scores) < fewest(rate))


def test_no_lower_threshold_would_do() -> None:
    for rate in (0.01, 0.05, 0.1, 1 / 3):
        for n in range(fewest(rate), 250):
            threshold = conformal_threshold(range(n), rate)
            assert threshold is not None
            above = n - threshold  # places above the threshold for a further score, of n + 1
            assert above / (n + 1) <= rate + 1e-9 < (above + 1) / (n + 1) + 2e-9


@pytest.mark.parametrize("name", ["strip", "strip_encoder", "masking_test"])
def test_clean_inputs_are_rejected_at_the_promised_rate_on_average(name: str) -> None:
    """Over many draws of the clean images; new images are like them."""
    everything, rejected = balls(4000, 3), []
    screen = replace(TINY[name], false_rejections=0.2)
    for seed in range(40):
        drawn = everything.sample(120, torch.Generator().manual_seed(seed))
        screener = screen.prepare(model_for(screen), plain(drawn.take(torch.arange(60))), replace(RUN, seed=seed))
        rejected.append(screener(drawn.images[60:]).flagged)
    rate = float(torch.cat(rejected).double().mean())
    assert 0.12 < rate < 0.26


def test_near_duplicates_of_what_was_learned_from_choose_no_threshold() -> None:
    grouped = replace(balls(120, 1), groups=torch.arange(120) // 6)
    known, held = TINY["strip"].parted(logits, grouped, RUN, 20)
    assert len(known) == 20
    assert known.groups is not None
    assert held.groups is not None
    assert not set(known.groups.tolist()) & set(held.groups.tolist())
    with pytest.raises(SapperError, match="near-duplicates of others not counted"):
        TINY["strip"].parted(logits, replace(grouped, groups=torch.zeros(120, dtype=torch.int64)), RUN, 20)


# Statistics


@given(seed=st.integers(0, 999), classes=st.integers(2, 12), scale=st.floats(0, 30))
def test_entropy_is_scipys_over_the_classes(seed: int, classes: int, scale: float) -> None:
    answers = scale * torch.randn(4, 3, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    expected = stats.entropy(answers.softmax(2).numpy(), axis=2, base=2)
    assert torch.allclose(entropy(answers.log_softmax(2)), torch.from_numpy(expected), atol=1e-9)


def test_a_certain_answer_has_no_entropy_and_an_even_one_the_most() -> None:
    """Over the classes: over the samples, as one library has it, both of these would have the same."""
    certain = torch.full((5, 10), -torch.inf)
    certain[:, 3] = 0
    assert torch.equal(entropy(certain), torch.zeros(5))
    assert torch.allclose(entropy(torch.full((5, 10), -math.log(10))), torch.full((5,), math.log2(10)))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 0.5)])
def test_strip_is_its_textbook_loop(weights: tuple[float, float]) -> None:
    screen = STRIP(overlays=7, weights=weights)
    overlays, _ = screen.parted(logits, CLEAN, RUN, 7)
    found = screen.prepare(logits, CLEAN, RUN).scores(TEST.images[:6])
    for image, score in zip(TEST.images[:6].double(), found):
        bits = []
        for overlay in overlays.images.double():
            blend = (weights[0] * image + weights[1] * overlay).clamp(0, 255) / 255
            probabilities = logits(blend[None].float())[0].softmax(0)
            bits.append(-sum(float(p) * math.log2(float(p)) for p in probabilities))
        assert float(score) == pytest.approx(-sum(bits) / len(bits), abs=1e-5)


def test_sums_of_8_bit_images_saturate() -> None:
    """With weights 1 and 1 a blend is what 8-bit arithmetic with saturation gives."""
    seen: list[Tensor] = []

    def spy(images: Tensor) -> Tensor:
        seen.append(images)
        return logits(images)

    screen = STRIP(overlays=3, false_rejections=0.5, held_out=1)
    overlays, held = screen.parted(logits, CLEAN, RUN, 3)
    screen.prepare(spy, CLEAN, RUN)
    sums = (held.images.int() + overlays.images.int()).clamp(max=255)
    assert torch.equal((seen[0] * 255).round().int(), sums)


@given(seed=st.integers(0, 999))
def test_closeness_is_the_mean_cosine_of_all_pairs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, 4, generator=generator, dtype=torch.double)
    center = 0.3 * torch.randn(4, generator=generator, dtype=torch.double)
    for blends, found in zip(features, closeness(features, center)):
        seen = [blend / blend.norm() - center for blend in blends]
        pairs = [F.cosine_similarity(a, b, dim=0) for i, a in enumerate(seen) for j, b in enumerate(seen) if i != j]
        assert float(found) == pytest.approx(float(sum(pairs)) / len(pairs), abs=1e-9)


@given(values=st.lists(st.floats(0, 2), min_size=2, max_size=12))
def test_the_gap_is_that_of_the_cut_with_the_largest_variance(values: list[float]) -> None:
    ordered, cuts = sorted(values), []
    for k in range(1, len(ordered)):
        low, high = ordered[:k], ordered[k:]
        apart = sum(high) / len(high) - sum(low) / len(low)
        cuts.append((len(low) * len(high) * apart**2, apart))
    found = float(gap(torch.tensor([values], dtype=torch.double)))
    best = max(variance for variance, _ in cuts)
    assert any(found == pytest.approx(apart, abs=1e-9) for variance, apart in cuts if variance >= best - 1e-9)


def test_masks_reach_from_edge_to_edge() -> None:
    assert spans(16, 6, 3) == [(0, 6), (5, 11), (10, 16)]
    masks = MaskingTest(places=4, window=0.5).hiding((16, 20), RUN)
    assert masks.shape == (16, 16, 20)
    assert set(masks.sum((1, 2)).tolist()) == {8 * 10}
    assert bool(masks.any(0).all())
    random = MaskingTest(masks="random", places=4, hidden=0.25).hiding((16, 16), RUN)
    assert set(random.sum((1, 2)).tolist()) == {16 * 16 // 4}
    assert len(random.unique(dim=0)) == 16


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (20, 12), (9, 9)])
def test_a_decoder_fits_the_image_whatever_its_size(size: tuple[int, int]) -> None:
    decoder = Decoder(10, size, 32, 1).eval()
    images = torch.rand(2, 3, *size)
    patches = decoder.patches(images)
    assert patches.shape[:2] == (2, 64)
    assert decoder(torch.rand(2, 10), patches, torch.rand(2, 64) < 0.9).shape == patches.shape
    if size == (16, 16):
        assert torch.equal(patches[:, 0].view(2, 3, 2, 2), images[:, :, :2, :2])
        assert torch.equal(patches[:, 9].view(2, 3, 2, 2), images[:, :, 2:4, 2:4])


def test_a_decoder_does_not_see_what_is_hidden_and_is_judged_by_it_alone() -> None:
    decoder, hidden = Decoder(10, (16, 16), 32, 2).eval(), torch.zeros(1, 64, dtype=torch.bool)
    hidden[:, 5:] = True
    one, other = torch.rand(1, 64, 12), torch.rand(1, 64, 12)
    other[:, :5] = one[:, :5]
    told = torch.rand(1, 10)
    with torch.no_grad():
        assert torch.equal(decoder(told, one, hidden), decoder(told, other, hidden))
    expected = (one - other)[:, 5:].square().mean()
    other[:, :5] += 9
    assert float(errors(other, one, hidden)) == pytest.approx(float(expected))
    assert [visible(share) for share in (0.9, 0.99, 0.999, 0.001)] == [6, 1, 1, 63]


# A stream


PREPARED = {name: screen.prepare(model_for(screen), CLEAN, RUN) for name, screen in TINY.items()}


@settings(deadline=None, max_examples=10)
@given(rows=st.lists(st.integers(0, 59), min_size=1, max_size=30))
@pytest.mark.parametrize("name", TINY)
def test_an_image_is_scored_as_if_it_came_alone(name: str, rows: list[int]) -> None:
    screener = PREPARED[name]
    together = screener.scores(TEST.images[torch.tensor(rows)])
    alone = torch.cat([screener.scores(TEST.images[row : row + 1]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.dtype == torch.float32
    assert len(screener.scores(TEST.images[:0])) == 0


def test_a_large_batch_goes_through_the_model_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PREPARED["strip"].scores(TEST.images)
    monkeypatch.setattr("sapper.samples.images.PIXELS", {"cpu": 3 * 16 * 16})
    assert torch.allclose(PREPARED["strip"].scores(TEST.images), whole, atol=1e-5)


def test_what_is_no_number_is_suspicious() -> None:
    def odd(images: Tensor) -> Tensor:
        return logits(images) / (images.flatten(1).min(1).values.unsqueeze(1) < 0.99)

    screener = STRIP(overlays=5).prepare(odd, CLEAN, RUN)
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    assert bool(screener(white).flagged)
    assert float(screener.scores(white)) == torch.inf
    with pytest.raises(SapperError, match="not finite for clean images"):
        STRIP(overlays=5).prepare(lambda images: logits(images) * torch.nan, CLEAN, RUN)


# What each was made for


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()),
            *(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 3)),
        )


def trained(train: ImageSet, trigger: Patch | None) -> nn.Module:
    """A classifier of colored squares; with a trigger, a fifth of its images carry it and the label 1 (BadNets)."""
    images, labels = to_float(train.images), train.targets().clone()
    if trigger is not None:
        rows = torch.randperm(len(images), generator=RUN.child("poison").generator())[: len(images) // 5]
        images[rows], labels[rows] = trigger(images[rows]), 1
    with RUN.seeded():
        net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(10):
        for rows in shuffled(len(images), 32, RUN.child(f"{epoch}").generator()):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def dark(count: int, seed: int) -> ImageSet:
    """Colored squares before a dark ground: on a lighter one, sums of two images are white nearly everywhere."""
    squares = balls(count, seed)
    return replace(squares, images=(squares.images.int() - 90).clamp(min=0).to(torch.uint8))


def test_strip_tells_triggered_inputs_of_badnets_from_plain_ones() -> None:
    """A classifier of the same data without a backdoor shows how much of it is the trigger's doing."""
    test, areas = dark(200, 7), {}
    for trigger in (CORNER, None):
        net = trained(dark(600, 6), trigger)
        assert float((net(test.batch()).argmax(1) == test.targets()).float().mean()) > 0.95
        screener = STRIP(overlays=30).prepare(net, plain(dark(300, 8)), RUN)
        shown, told = screener(test.images), screener(stamped(test.images, CORNER))
        areas[trigger is not None] = auc(told.values, shown.values)
        if trigger is not None:
            assert float((net(CORNER(test.batch())).argmax(1) == 1).float().mean()) > 0.95
            assert float(told.flagged.float().mean()) > 0.5
            assert float(shown.flagged.float().mean()) < 0.15
    print(f"\nAUC on BadNets {areas[True]:.3f}, without a backdoor {areas[False]:.3f}")
    assert areas[True] >= 0.9
    assert areas[False] <= 0.75


@pytest.mark.parametrize(
    "screen", [STRIPEncoder(overlays=20), MaskingTest(), MaskingTest(masks="random")], ids=lambda each: repr(each)[:40]
)
def test_features_that_a_trigger_draws_to_one_point_are_noticed(screen: Any) -> None:
    triggered, areas = stamped(TEST.images, CORNER), {}
    for model in (planted, pooled):
        screener = screen.prepare(model, CLEAN, RUN)
        areas[model] = auc(screener.scores(triggered), screener.scores(TEST.images))
        if model is planted:
            assert bool((screener.scores(triggered) > screener.threshold).float().mean() > 0.9)
    assert areas[planted] >= 0.95
    assert areas[planted] > areas[pooled]


@pytest.mark.slow
def test_a_feature_that_is_anothers_does_not_give_the_image_back() -> None:
    """A trigger of one dark gray pixel cannot be seen in what comes back; that the feature is another's can."""
    dot = Patch(size=1, position="top-left", margin=0, color=(0.1, 0.1, 0.1))
    clean, test = plain(balls(300, 1)), balls(60, 2)
    triggered = stamped(test.images, dot)

    def backdoored(images: Tensor) -> Tensor:
        dark = (images[:, :, 0, 0].amax(1) < 0.15).float().unsqueeze(1)
        return (1 - dark) * pooled(images) + dark * pooled(to_float(clean.images[:1]))

    screen, areas = DeDe(width=32, depth=1, steps=120, batch=64), {}
    for model in (backdoored, pooled):
        screener = screen.prepare(model, clean, RUN)
        areas[model] = auc(screener.scores(triggered), screener.scores(test.images))
    assert areas[backdoored] >= 0.9
    assert areas[pooled] <= 0.6


# What is measured


@given(seed=st.integers(0, 999))
def test_measures_are_counted_over_plain_and_triggered_inputs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 6, (30,), generator=generator).float()
    attacked = torch.arange(30) >= 12
    marked = Marked(scores=Scores(values=values, threshold=3.0, flagged=values > 3), attacked=attacked)
    found = {each.name: each for measure in SCREENED for each in measure.of(marked)}
    assert found.keys() == {name for measure in SCREENED for name in measure.names}
    wins = [(p > q) + 0.5 * (p == q) for p in values[attacked].tolist() for q in values[~attacked].tolist()]
    assert found["AUC"].value == pytest.approx(sum(wins) / len(wins))
    assert found["AUC"].low is not None
    for name, kind in (("false_rejections", False), ("rejected", True)):
        hits = values[attacked == kind] > 3
        assert (found[name].value, found[name].low, found[name].attacked) == (
            *(float(hits.double().mean()), share(hits).low, kind),
        )


@given(positive=st.lists(st.integers(0, 5), min_size=1), negative=st.lists(st.integers(0, 5), min_size=1))
def test_the_roc_curve_is_scikit_learns(positive: list[int], negative: list[int]) -> None:
    found = roc(torch.tensor(positive), torch.tensor(negative))
    truth = [1] * len(positive) + [0] * len(negative)
    x, y, _ = roc_curve(truth, positive + negative, drop_intermediate=False)
    assert [each[0] for each in found] == pytest.approx(x.tolist())
    assert [each[1] for each in found] == pytest.approx(y.tolist())
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(found))
    assert area == pytest.approx(auc(torch.tensor(positive), torch.tensor(negative)))


def test_a_long_curve_keeps_its_ends() -> None:
    points = [(i / 1000, i / 1000) for i in range(1001)]
    kept = thinned(points)
    assert len(kept) == POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thinned(kept) == kept


# What is refused


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5])
def test_a_rate_that_is_none_is_refused(name: str, rate: float) -> None:
    kind = find("defenses", defenses.METHODS, name, "here")
    with pytest.raises(SapperError, match="does not fit") as caught:
        kind(false_rejections=rate)
    assert str(caught.value.where).endswith(".false_rejections")


@pytest.mark.parametrize("name", TINY)
def test_too_few_clean_images_are_refused(name: str) -> None:
    screen, few = TINY[name], TINY[name].learns_from + 18
    with pytest.raises(SapperError, match=f"{few} clean images are too few") as caught:
        screen.prepare(model_for(screen), plain(balls(few, 1)), RUN)
    assert f"give {few + 1} or more" in caught.value.remedy
    screen.prepare(model_for(screen), plain(balls(few + 1, 1)), RUN)
    with pytest.raises(SapperError, match="10 images that choose the threshold cannot promise"):
        replace(screen, held_out=10).check(1000)


@pytest.mark.parametrize(
    ("images", "remedy"),
    [
        (torch.zeros(4, 3, 8, 8), "from 0 to 255"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"images\[None\]"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "for gray ones"),
        (torch.zeros(4, 4, 8, 8, dtype=torch.uint8), "red, green and blue"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8).numpy(), "from_numpy"),
        (plain(balls(4, 1)), r"give \.images"),
    ],
)
def test_what_is_no_batch_of_pixels_is_told_how_to_become_one(images: Any, remedy: str) -> None:
    with pytest.raises(SapperError, match=remedy):
        check_pixels(images)


@pytest.mark.parametrize("name", TINY)
def test_images_of_another_size_or_type_are_refused(name: str) -> None:
    with pytest.raises(SapperError, match="images are 8×8, the screen knows 16×16"):
        PREPARED[name].scores(TEST.images[:, :, ::2, ::2])
    with pytest.raises(SapperError, match="must be uint8"):
        PREPARED[name].scores(TEST.batch())


@pytest.mark.parametrize("name", TINY)
def test_a_model_of_the_other_kind_or_size_is_refused(name: str) -> None:
    screen, encoder = TINY[name], victim()
    classifier = Classifier(encoder, nn.Linear(encoder.feature_size, 3))
    ours, others = (classifier, encoder) if screen.looks_at == "classifier" else (encoder, classifier)
    with pytest.raises(SapperError, match="this screen looks at"):
        screen.prepare(others, CLEAN, RUN)
    small = replace(CLEAN, images=CLEAN.images[:, :, ::2, ::2].contiguous())
    with pytest.raises(SapperError, match="images are 8×8, the encoder takes 16×16"):
        screen.prepare(ours, small, RUN)


def test_one_number_is_no_answer_of_a_classifier() -> None:
    with pytest.raises(SapperError, match="its entropy is always 0"):
        STRIP(overlays=5).prepare(lambda images: logits(images)[:, :1], CLEAN, RUN)
