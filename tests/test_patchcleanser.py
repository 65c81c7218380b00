"""PatchCleanser's masks cover every patch, its answers follow the two rounds, and its certificates hold."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sapper.defenses.certify.patchcleanser import PatchCleanser, resolve
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import to_float
from sapper.triggers.covers import axis_masks

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
