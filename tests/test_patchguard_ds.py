"""Mask-DS: what the classifier sees, and that no patch changes a certified image's answer."""

import torch
from torch import Tensor

from sapper.defenses.certify.patchguard_ds import PatchGuardDS
from sapper.images import to_float
from sapper.run import Run

BLACK = torch.zeros(3)
RUN = Run(seed=1)


def redness(images: Tensor) -> Tensor:
    """Logits of two classes, from all that is seen: red against green."""
    return 200 * images[:, :2].mean((2, 3))


def random_images(count: int, seed: int) -> Tensor:
    images = torch.randint(0, 200, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    images[: count // 2, 0] += 55
    return images


def test_the_classifier_sees_one_band_at_a_time() -> None:
    seen: list[Tensor] = []

    def watch(views: Tensor) -> Tensor:
        seen.append(views.clone())
        return redness(views)

    images = random_images(3, seed=0)
    evidence = PatchGuardDS(band=3).evidence(images, watch, torch.tensor([0.1, 0.2, 0.3]), RUN)
    views = torch.cat(seen).view(3, 8, 3, 8, 8)
    assert evidence.shape == (3, 8, 2)
    for start in range(8):
        columns = [(start + i) % 8 for i in range(3)]
        rest = [column for column in range(8) if column not in columns]
        assert torch.equal(views[:, start, :, :, columns], to_float(images)[..., columns])
        assert (views[:, start][:, :, :, rest] == torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).all()
        torch.testing.assert_close(evidence[:, start], redness(views[:, start]).softmax(1))


def test_no_patch_that_is_tried_changes_a_certified_answer() -> None:
    method, images = PatchGuardDS(band=2, patch=2), random_images(40, seed=3)
    labels = (torch.arange(40) >= 20).long()
    result = method.certify(redness, images, labels, BLACK, [2], RUN)[0]
    assert 0 < result.certified.sum() < 40
    kept, truth = images[result.certified], labels[result.certified]
    assert torch.equal(result.labels[result.certified], truth)
    for top in range(0, 7, 2):
        for left in range(7):
            for color in ((255, 0, 0), (0, 255, 0), (0, 0, 0)):
                attacked = kept.clone()
                attacked[:, :, top : top + 2, left : left + 2] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
                answers = method.predict(redness, attacked, BLACK, RUN)
                assert torch.equal(answers, truth)


def test_a_larger_patch_certifies_fewer() -> None:
    images, labels = random_images(100, seed=4), (torch.arange(100) >= 50).long()
    results = PatchGuardDS(band=2).certify(redness, images, labels, BLACK, range(1, 8), RUN)
    counts = [int(result.certified.sum()) for result in results]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 0


def test_training_views_are_bands_of_all_places() -> None:
    images = torch.rand(400, 3, 8, 8, generator=RUN.generator()) + 0.01
    views = PatchGuardDS(band=3).bands(images, BLACK, RUN.generator())
    seen = (views != 0).all(1).all(1)
    shown = seen.view(400, 1, 1, 8).expand_as(images)
    assert torch.equal(views[shown], images[shown])
    assert (seen.sum(1) == 3).all()
    assert len(seen.unique(dim=0)) == 8
