"""Mask-DS: what the classifier sees, and that no patch changes a certified image's answer."""

import pytest
import torch
from torch import Tensor, nn

from sapper.defenses.certify.patchcleanser import PatchCleanser
from sapper.defenses.certify.patchguard_ds import PatchGuardDS
from sapper.defenses.defender import Defender
from sapper.defenses.masking import column_windows
from sapper.defenses.views import column_bands, random_part
from sapper.downstream import MLP
from sapper.encoders import Card, Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec, to_float
from sapper.triggers import Blend

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
    guarded = PatchGuardDS(band=3).guard(watch, torch.tensor([0.1, 0.2, 0.3]), 8)
    evidence = guarded.evidence(images, RUN)
    views = torch.cat(seen).view(3, 8, 3, 8, 8)
    assert evidence.shape == (3, 8, 2)
    for start in range(8):
        columns = [(start + i) % 8 for i in range(3)]
        rest = [column for column in range(8) if column not in columns]
        assert torch.equal(views[:, start, :, :, columns], to_float(images)[..., columns])
        assert (views[:, start][:, :, :, rest] == torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).all()
        torch.testing.assert_close(evidence[:, start], redness(views[:, start]).softmax(1))


def test_no_patch_that_is_tried_changes_a_certified_answer() -> None:
    guarded, images = PatchGuardDS(band=2, patch=2).guard(redness, BLACK, 8), random_images(40, seed=3)
    labels = (torch.arange(40) >= 20).long()
    result = guarded.certify(images, labels, [2], RUN)[0]
    assert 0 < result.certified.sum() < 40
    kept, truth = images[result.certified], labels[result.certified]
    assert torch.equal(result.labels[result.certified], truth)
    for top in range(0, 7, 2):
        for left in range(7):
            for color in ((255, 0, 0), (0, 255, 0), (0, 0, 0)):
                attacked = kept.clone()
                attacked[:, :, top : top + 2, left : left + 2] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
                answers = guarded.predict(attacked, RUN)
                assert torch.equal(answers, truth)


def test_a_larger_patch_certifies_fewer() -> None:
    images, labels = random_images(100, seed=4), (torch.arange(100) >= 50).long()
    results = PatchGuardDS(band=2).guard(redness, BLACK, 8).certify(images, labels, range(1, 8), RUN)
    counts = [int(result.certified.sum()) for result in results]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 0


def test_training_views_are_bands_of_all_places() -> None:
    images = torch.rand(400, 3, 8, 8, generator=RUN.generator()) + 0.01
    views = random_part(column_bands(8, 8, 3), BLACK)(images, RUN.generator())
    seen = (views != 0).all(1).all(1)
    shown = seen.view(400, 1, 1, 8).expand_as(images)
    assert torch.equal(views[shown], images[shown])
    assert (seen.sum(1) == 3).all()
    assert len(seen.unique(dim=0)) == 8


def colors() -> Encoder:
    """A small network on pixels whose blank is gray."""
    with RUN.seeded():
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 8))
    return Encoder(net, Card(architecture="colors", input=PixelSpec(size=8, mean=(0.5, 0.5, 0.5))), 8)


@pytest.fixture(scope="module")
def owner() -> Defender:
    labels = (torch.arange(80) >= 40).long()
    train = ImageSet(images=random_images(80, seed=6), labels=labels, classes=("red", "gray"), name="colors")
    return Defender.of(colors(), MLP(epochs=20, learning_rate=0.01, hidden=(16, 8)), train, RUN)


def test_each_training_sees_more_of_the_bands_and_leaves_the_owners_encoder_alone(owner: Defender) -> None:
    images, labels = random_images(60, seed=7), (torch.arange(60) >= 30).long()
    before = {name: value.clone() for name, value in owner.encoder.state_dict().items()}
    losses = {}
    for training in ("as-is", "head", "encoder"):
        method = PatchGuardDS(band=2, training=training, epochs=30, batch=16)  # type: ignore[arg-type]
        guarded = method.prepare(owner.build(RUN), owner, RUN)
        evidence = guarded.evidence(images, RUN)
        losses[training] = float(-evidence[torch.arange(60), :, labels].clamp_min(1e-9).log().mean())
        again = method.prepare(owner.build(RUN), owner, RUN).evidence(images, RUN)
        assert torch.equal(again, evidence), "the same seed gives the same defense"
    assert losses["encoder"] < losses["head"] < losses["as-is"]
    assert all(torch.equal(value, before[name]) for name, value in owner.encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in owner.encoder.parameters())


def test_a_trigger_is_stamped_before_the_bands_are_cut() -> None:
    images = random_images(3, seed=8)
    guarded = PatchGuardDS(band=3, patch=2).guard(redness, BLACK, 8)
    blend = Blend(alpha=0.3)
    changed = blend(to_float(images))
    seen = column_windows(8, 3)
    for start in range(8):
        view = torch.where(seen[start], changed, torch.zeros(()))
        torch.testing.assert_close(guarded.evidence(images, RUN, blend)[:, start], redness(view).softmax(1))


def test_what_a_guarded_classifier_is_given_is_checked() -> None:
    images, labels = random_images(4, seed=0), torch.tensor([0, 1, 0, 1])
    guarded = PatchGuardDS(band=3, patch=2).guard(redness, BLACK, 8)
    cleanser = PatchCleanser(patch=2, masks=2).guard(redness, BLACK)
    for defense in (guarded, cleanser):
        with pytest.raises(SapperError, match="must be uint8"):
            defense.predict(to_float(images), RUN)
        with pytest.raises(SapperError, match=r"labels must be int64 \(4,\)"):
            defense.certify(images, labels[:3], [2], RUN)
        for patch in (-3, 0, 8):
            with pytest.raises(SapperError, match=f"a patch of {patch} pixels on images of 8×8"):
                defense.certify(images, labels, [2, patch], RUN)
        assert defense.predict(images[:0], RUN).shape == (0,)
    with pytest.raises(SapperError, match="labels run from 0 to 9, there are 2 classes"):
        guarded.certify(images, torch.tensor([0, 1, 0, 9]), [2], RUN)


def test_a_band_as_wide_as_the_image_is_no_band(owner: Defender) -> None:
    with pytest.raises(SapperError, match="a band of 8 columns covers images of 8"):
        PatchGuardDS(band=8, patch=2).prepare(owner.build(RUN), owner, RUN)
