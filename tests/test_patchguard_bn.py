"""Mask-BN: how far a patch reaches into the map, the training loss, and that certificates hold."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapper.defenses.certify.patchguard_bn import Bag, PatchGuardBN, local_evidence, window
from sapper.defenses.defender import Defender
from sapper.running import Run
from sapper.samples import ImageSet, to_float

RUN = Run(seed=1)


def bag(classes: int = 3) -> Bag:
    with RUN.seeded():
        net = Bag(4, classes, torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25))
    return net.eval()


@settings(deadline=None, max_examples=40)
@given(patch=st.integers(1, 10), top=st.integers(0, 22), left=st.integers(0, 22), seed=st.integers(0, 1000))
def test_a_patch_reaches_no_further_than_its_window(patch: int, top: int, left: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(1, 3, 32, 32, generator=generator)
    attacked = images.clone()
    attacked[..., top : top + patch, left : left + patch] = torch.rand(1, 3, patch, patch, generator=generator)
    with torch.no_grad():
        changed = (bag()(images) != bag()(attacked)).any(1)[0]
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    for touched in (rows, columns):
        assert int(touched.max() - touched.min()) + 1 <= window(patch)


@pytest.mark.parametrize("patch", [2, 5])
def test_the_window_is_no_larger_than_it_must_be(patch: int) -> None:
    """Some patch touches all of it: a smaller window would not be sound."""
    images = torch.full((1, 3, 32, 32), 0.5)
    reach = []
    for left in range(10, 14):
        attacked = images.clone()
        attacked[..., left : left + patch] = 1.0
        with torch.no_grad():
            columns = (bag()(images) != bag()(attacked)).any(1).any(1)[0].nonzero()
        reach.append(int(columns.max() - columns.min()) + 1)
    assert max(reach) == window(patch)


def test_the_training_loss_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    scores, labels = torch.randn(5, 4, 7, 6, generator=generator), torch.tensor([0, 1, 2, 3, 1])
    for patch, size in ((1, 5), (2, 5), (3, 6)):
        expected = []
        for u, y in zip(scores, labels.tolist()):
            total = u.sum((1, 2))
            sums = [
                float(u[y, top : top + size, left : left + size].sum())
                for top in range(7 - size + 1)
                for left in range(6 - size + 1)
            ]
            total[y] -= max(sums)
            expected.append(F.cross_entropy(total / 42, torch.tensor(y)))
        assert window(patch) == size
        torch.testing.assert_close(PatchGuardBN(patch=patch).loss(scores, labels), torch.stack(expected).mean())
    plain = F.cross_entropy(scores.mean((2, 3)), labels)
    torch.testing.assert_close(PatchGuardBN(provable=False).loss(scores, labels), plain)


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images full of small squares of their class's color, uint8 (N, 3, 32, 32), and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(90, 140, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    spots = F.interpolate((torch.rand(count, 1, 8, 8, generator=generator) < 0.5).float(), scale_factor=4).bool()
    colored = noise.clone()
    colored[torch.arange(count), labels] = 255
    return torch.where(spots, colored, noise), labels


def learn(patch: int) -> Bag:
    images, labels = pictures(96, seed=0)
    encoder = torch.nn.Module()
    encoder.mean, encoder.std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    train = ImageSet(images=images, labels=labels, classes=("r", "g", "b"), name="spots")
    owner = Defender(encoder, None, train, torch.empty(0))  # type: ignore[arg-type]
    method = PatchGuardBN(width=4, epochs=8, batch=16, learning_rate=0.01, patch=patch)
    return method.fit(owner, RUN)


@pytest.fixture(scope="module")
def trained() -> Bag:
    return learn(patch=2)


@given(seed=st.integers(0, 1000), shift=st.floats(-40, 40))
def test_losing_a_window_never_pays(seed: int, shift: float) -> None:
    """With scores in place of evidence it does: a network that makes all of them negative then leaves none."""
    generator = torch.Generator().manual_seed(seed)
    scores, labels = shift + torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0])
    evidence = local_evidence(scores)
    robust, plain = (PatchGuardBN(patch=2, provable=provable).loss(evidence, labels) for provable in (True, False))
    assert robust >= plain - 1e-6


def test_evidence_is_left_where_windows_are_large() -> None:
    """A patch of 10 takes 81 of 256 places."""
    images, labels = pictures(60, seed=6)
    guarded = PatchGuardBN(patch=10).guard(learn(patch=10), (32, 32))
    assert float((guarded.predict(images, RUN) == labels).float().mean()) > 0.8
    evidence = guarded.evidence(images, RUN)
    own = evidence[torch.arange(60), :, labels].mean(1)
    others = (evidence.sum(2).mean(1) - own) / 2
    assert bool((own > 2 * others).all())


def test_what_it_learned_is_certified_and_no_patch_that_is_tried_changes_it(
    trained: Bag,
) -> None:
    images, labels = pictures(30, seed=5)
    guarded = PatchGuardBN(patch=4).guard(trained, (32, 32))
    results = guarded.certify(images, labels, [1, 4, 10], RUN)
    counts = [int(result.certified.sum()) for result in results]
    assert counts == sorted(counts, reverse=True)
    assert counts[1] > 10
    certified = results[1].certified
    assert torch.equal(guarded.predict(images, RUN), results[1].labels)
    for place in range(0, 29, 7):
        for channel in range(3):
            attacked = images[certified].clone()
            attacked[:, :, place : place + 4, 28 - place : 32 - place] = 0
            attacked[:, channel, place : place + 4, 28 - place : 32 - place] = 255
            assert torch.equal(guarded.predict(attacked, RUN), labels[certified])


def test_evidence_is_never_negative_and_lies_row_by_row() -> None:
    images = pictures(4, seed=3)[0]
    guarded = PatchGuardBN().guard(bag(), (32, 32))
    evidence = guarded.evidence(images, RUN)
    assert guarded.windows(1).shape[1] == evidence.shape[1] == 16 * 16
    with torch.no_grad():
        expected = (1 + bag()(to_float(images)).exp()).log()
    assert float(evidence.min()) >= 0
    torch.testing.assert_close(evidence.view(4, 16, 16, 3), expected.permute(0, 2, 3, 1))
