"""PatchCleanser's masks cover every patch, its answers follow the two rounds, and its certificates hold."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sapper.defenses.certify.patchcleanser import PatchCleanser, pairs, resolve
from sapper.defenses.defender import Defender
from sapper.defenses.views import random_part
from sapper.downstream import KNN, MLP
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from sapper.triggers.covers import axis_masks, covering
from tests.test_patchguard_ds import colors, random_images

GRAY = torch.full((3,), 0.5)


@given(side=st.integers(1, 64), patch=st.integers(1, 64), count=st.integers(1, 9))
def test_any_patch_lies_wholly_under_one_mask(side: int, patch: int, count: int) -> None:
    if patch > side:
        with pytest.raises(SapperError, match="does not fit"):
            axis_masks(side, patch, count)
        return
    masks = axis_masks(side, patch, count)
    assert len(masks) <= count
    assert all(0 <= start < end <= side for start, end in masks)
    for first in range(side - patch + 1):
        assert any(start <= first and first + patch <= end for start, end in masks)


def two_rounds(table: Tensor) -> int:
    """The answer for one image, written out: ``table`` (M, M) of predictions under pairs of masks."""
    first = [int(table[i, i]) for i in range(len(table))]
    majority = max(sorted(set(first)), key=first.count)
    for i, answer in enumerate(first):
        if answer != majority and all(int(other) == answer for other in table[i]):
            return answer
    return majority


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 3))
def test_answers_follow_the_two_rounds(seed: int, masks: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(classes, (20, masks, masks), generator=generator)
    table[:, 0] = table[:, 0, :1]  # some constant rows
    table = torch.where(torch.rand(20, 1, 1, generator=generator) < 0.5, table, table.transpose(1, 2))
    assert resolve(table).tolist() == [two_rounds(one) for one in table]


def brightest_quarter(images: Tensor) -> Tensor:
    """A classifier that a patch fools easily: in which quarter the brightest pixel of the red channel is."""
    return F.max_pool2d(images[:, 0], images.shape[-1] // 2).flatten(1)


def majority_of_quarters(images: Tensor) -> Tensor:
    """A classifier that a small patch fools only where it is close: whether the mean of red is above that of green."""
    return images[:, [1, 0]].mean((2, 3))


def test_certified_images_withstand_every_patch_that_is_tried() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (24, 3, 8, 8), dtype=torch.uint8, generator=generator)
    images[:12, 0] += 55
    guarded = PatchCleanser(patch=2, masks=3).guard(majority_of_quarters, GRAY)
    labels = majority_of_quarters(to_float(images)).argmax(1)
    (result,) = guarded.certify(images, labels, [2], Run())
    assert 0 < result.certified.sum() < len(images)
    assert torch.equal(result.labels, guarded.predict(images, Run()))
    kept = images[result.certified]
    for top in range(7):
        for left in range(7):
            for color in ((255, 0, 0), (0, 255, 0)):
                attacked = kept.clone()
                attacked[:, :, top : top + 2, left : left + 2] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
                answers = guarded.predict(attacked, Run())
                assert torch.equal(answers, labels[result.certified])


def test_the_first_round_alone_would_be_fooled() -> None:
    """A bright spot decides for an undefended classifier; masked, nothing is left of it."""
    attacked = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    attacked[0, 0, :4, :4] = 100
    attacked[0, 0, 6:8, 6:8] = 255
    guarded = PatchCleanser(patch=2, masks=4).guard(brightest_quarter, torch.zeros(3))
    assert brightest_quarter(to_float(attacked)).argmax(1).item() == 3
    assert guarded.predict(attacked, Run()).item() == 0


def test_a_wrong_prediction_is_not_certified() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[:, 0] = 255
    guarded = PatchCleanser(masks=2).guard(majority_of_quarters, GRAY)
    right, wrong = torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    for labels, certified in ((right, True), (wrong, False)):
        results = guarded.certify(images, labels, [1, 2], Run())
        assert [bool(result.certified.all()) for result in results] == [certified] * 2
        assert not any(result.certified.any() for result in results if not certified)


@pytest.mark.parametrize("seed", range(4))
def test_certificates_are_those_of_the_whole_table_and_take_no_more_forwards(seed: int) -> None:
    """Of images that all first masks agree on wrongly there is no second round."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (30,), generator=generator)
    weights = torch.randn(192, 3, generator=generator)
    count = 0

    def classify(pixels: Tensor) -> Tensor:
        nonlocal count
        count += len(pixels)
        return (pixels - 0.5).flatten(1) @ weights + 4 * (pixels - 0.5).mean((2, 3))

    masks = covering(images, 2, 3)
    tables = torch.stack(
        [torch.stack([_answers(classify, images, one | other) for other in masks], 1) for one in masks], 1
    )
    count = 0
    (result,) = PatchCleanser(patch=2, masks=3).guard(classify, GRAY).certify(images, labels, [2], Run())
    first = tables.diagonal(dim1=1, dim2=2)
    wrong = (first == first[:, :1]).all(1) & (first[:, 0] != labels)
    assert count <= int((~wrong).sum()) * 9 * 10 // 2 + int(wrong.sum()) * 9
    assert result.labels.tolist() == [two_rounds(table) for table in tables]
    right = tables == labels.view(-1, 1, 1)
    assert torch.equal(result.certified, right.all(2).all(1))
    assert result.by_place is not None
    for row in range(7):
        for column in range(7):
            over = masks[:, row : row + 2, column : column + 2].all(2).all(1)
            found = result.by_place.certified[:, result.by_place.group[row, column]]
            assert torch.equal(found, right.all(2)[:, over].any(1))


def _answers(classify, images: Tensor, mask: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return classify(torch.where(mask, GRAY.view(3, 1, 1), to_float(images))).argmax(1)


def test_training_views_are_the_pairs_that_the_defense_uses() -> None:
    images = torch.rand(600, 3, 8, 8, generator=Run().generator()) + 0.01
    masks = covering(images, 3, 2)
    views = random_part(~pairs(masks), torch.zeros(3))(images, Run().generator())
    hidden = (views == 0).all(1)
    assert torch.equal(views, torch.where(hidden.unsqueeze(1), 0, images))
    wanted = {tuple((one | other).flatten().tolist()) for one in masks for other in masks}
    assert {tuple(each) for each in hidden.flatten(1).tolist()} == wanted


@pytest.fixture(scope="module")
def owner() -> Defender:
    labels = (torch.arange(80) >= 40).long()
    train = ImageSet(images=random_images(80, seed=6), labels=labels, classes=("red", "gray"), name="colors")
    return Defender.of(colors(), MLP(epochs=20, learning_rate=0.01, hidden=(16, 8)), train, Run(seed=1))


def test_a_classifier_that_has_seen_masks_bears_them(owner: Defender) -> None:
    """Trained for masks, it errs less under all pairs, and three quarters of the images are certified."""
    run, images, labels = Run(seed=1), random_images(60, seed=7), (torch.arange(60) >= 30).long()
    before = {name: value.clone() for name, value in owner.encoder.state_dict().items()}
    masks = covering(images, 2, 2)
    losses, certified = {}, {}
    for training in ("as-is", "head", "encoder"):
        method = PatchCleanser(patch=2, masks=2, training=training, epochs=30, batch=16, views=4)  # type: ignore[arg-type]
        guarded = method.prepare(owner.build(run), owner, run)
        views = [torch.where(one | other, GRAY.view(3, 1, 1), to_float(images)) for one in masks for other in masks]
        with torch.no_grad():
            losses[training] = float(F.cross_entropy(guarded.logits(torch.cat(views)), labels.repeat(len(views))))
        (result,) = guarded.certify(images, labels, [2], run)
        (again,) = method.prepare(owner.build(run), owner, run).certify(images, labels, [2], run)
        assert torch.equal(again.certified, result.certified), "the same seed gives the same defense"
        certified[training] = float(result.certified.float().mean())
    assert losses["encoder"] < losses["head"] < losses["as-is"]
    assert certified["encoder"] > 0.6 > 0.5 > certified["as-is"]
    assert all(torch.equal(value, before[name]) for name, value in owner.encoder.state_dict().items())


def test_a_head_that_knows_the_encoder_as_it_was_is_not_tuned(owner: Defender) -> None:
    neighbors = Defender(owner.encoder, KNN(neighbors=3), owner.train, owner.features)
    with pytest.raises(SapperError, match="without weights") as caught:
        PatchCleanser(patch=2, masks=2, training="encoder", views=1).prepare(owner.build(Run()), neighbors, Run())
    assert caught.value.where == "patchcleanser.training"
