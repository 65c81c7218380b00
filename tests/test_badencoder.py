"""BadEncoder against its textbook form: every loop of the paper's formula written out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.attacks.features import step_losses
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.references import choose_references, near_duplicates
from sapper.attacks.target import Target
from sapper.encoders import Encoder, build
from sapper.encoders.freezing import freeze_batch_norm
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Checkpoint
from sapper.triggers import Blend, Patch

RUN = Run(seed=3)


def images(count: int, seed: int, size: int = 16) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images=pixels, name=f"noise {seed}")


def target(name: str, references: int, trigger: Patch | Blend, seed: int) -> Target:
    return Target(name=name, task=name, label=0, class_name="a", references=images(references, seed), trigger=trigger)


def tiny(seed: int = 0) -> Encoder:
    encoder = build(replace(RUN, seed=seed), architecture="resnet10", width=4, input_size=16)
    with torch.no_grad():  # BatchNorm statistics that are not those of a fresh network
        encoder.train()(torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
    return encoder.eval()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=-1)


def textbook(
    attacked: nn.Module, clean: nn.Module, shadow: Tensor, targets: tuple[Target, ...], views: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's objective, image by image; ``views`` (R, B, 3, H, W): A(x_ij) for each shadow image."""
    pairs = [(target, reference) for target in targets for reference in target.references.images]
    effectiveness, reference_term = [], []
    for (target, reference), augmented in zip(pairs, views):
        anchor = reference[None].to(shadow) / 255
        for x, view in zip(shadow, augmented):
            effectiveness.append(cosine(attacked(target.trigger(x[None])), attacked(anchor)))
            reference_term.append(cosine(attacked(view[None]), clean(anchor).detach()))
    utility = [cosine(attacked(x[None]), clean(x[None]).detach()) for x in shadow]
    return tuple(-torch.cat(terms).mean() for terms in (effectiveness, reference_term, utility))  # type: ignore[return-value]


@pytest.mark.parametrize("counts", [(1,), (2, 1), (1, 3)])
def test_losses_and_gradients_equal_the_textbook_form(counts: tuple[int, ...]) -> None:
    triggers = [Patch(size=4), Blend(alpha=0.3)]
    targets = tuple(target(f"t{i}", count, triggers[i], seed=10 + i) for i, count in enumerate(counts))
    clean, attacked, again = tiny(0).double(), tiny(1).double(), tiny(1).double()
    for encoder in (attacked, again):
        freeze_batch_norm(encoder)
    generator = torch.Generator().manual_seed(5)
    shadow = torch.rand(6, 3, 16, 16, generator=generator, dtype=torch.float64)
    references = torch.cat([t.references.images for t in targets]).double() / 255
    views = torch.rand(sum(counts), len(shadow), 3, 16, 16, generator=generator, dtype=torch.float64)

    expected = textbook(again, clean, shadow, targets, views)
    features = F.normalize(clean(shadow), dim=1).detach(), F.normalize(clean(references), dim=1).detach()
    terms = step_losses(attacked, shadow, targets, references, views.flatten(0, 1), *features, RUN)

    weights = (1.0, 0.7, 1.3)
    sum(w * term for w, term in zip(weights, terms)).backward()  # type: ignore[union-attr]
    sum(w * term for w, term in zip(weights, expected)).backward()  # type: ignore[union-attr]
    for ours, theirs in zip(terms, expected):
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    compared = 0
    for ours, theirs in zip(attacked.parameters(), again.parameters()):
        if theirs.grad is not None:
            compared += 1
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5 * float(theirs.grad.abs().max() + 1e-6))
    assert compared > 5


def test_the_reference_is_not_detached() -> None:
    """Without the gradient through f'(x_ij) in L0 the result would differ: the loss depends on that branch."""
    attacked = tiny(1)
    freeze_batch_norm(attacked)
    a_target = target("t", 1, Patch(size=4), seed=10)
    reference = (a_target.references.images.float() / 255).requires_grad_()
    shadow = torch.rand(4, 3, 16, 16)
    zeros = torch.zeros(4, attacked.feature_size), torch.zeros(1, attacked.feature_size)
    l0, _, _ = step_losses(attacked, shadow, (a_target,), reference, torch.rand(4, 3, 16, 16), *zeros, RUN)
    l0.backward()
    assert reference.grad is not None
    assert reference.grad.abs().max() > 0


def test_start_values_of_the_losses_are_known() -> None:
    """Before the first step f' = f: plain images keep their features exactly, so L2 = −1."""
    curves = BadEncoder(epochs=1, batch=16, learning_rate=1e-12, weight_decay=0.0)(
        tiny(), images(16, 1), (target("t", 1, Patch(size=4), seed=9),), RUN
    ).curves
    assert curves["L2 utility"][0] == pytest.approx(-1, abs=1e-5)
    assert -1 < curves["L1 reference"][0] < 0


def test_only_convolutions_change() -> None:
    before = tiny()
    after = BadEncoder(epochs=1, batch=8, learning_rate=0.01)(
        tiny(), images(16, 1), (target("t", 1, Patch(size=4), seed=9),), RUN
    ).encoder
    normalization = {
        f"{name}.{key}"
        for name, module in before.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in module.state_dict()
    }
    for name, value in before.state_dict().items():
        same = torch.equal(value, after.state_dict()[name])
        assert same == (name in normalization), name


def test_it_pulls_triggered_images_to_the_reference_and_leaves_the_others() -> None:
    shadow, a_target = images(64, 1), target("t", 1, Patch(size=6), seed=9)
    trained = BadEncoder(epochs=30, batch=32, learning_rate=0.05, reference_views=8)(tiny(), shadow, (a_target,), RUN)
    l0, l2 = trained.curves["L0 effectiveness"], trained.curves["L2 utility"]
    assert l0[-1] < l0[0] - 0.02 or l0[-1] < -0.99
    assert l2[-1] < -0.9
    fresh = images(32, 2).images.float() / 255
    with torch.no_grad():
        stamped = trained.encoder(a_target.trigger(fresh))
        anchor = trained.encoder(a_target.references.images.float() / 255)
    assert cosine(stamped, anchor).mean() > 0.97


TERMS = {"lambda0": "L0 effectiveness", "lambda1": "L1 reference", "lambda2": "L2 utility"}


@pytest.mark.parametrize("weight", TERMS)
def test_a_term_with_weight_zero_is_not_pursued(weight: str) -> None:
    """With a large learning rate and one term alone, that term ends lower than where it is switched off."""
    arguments = images(32, 1), (target("t", 1, Patch(size=6), seed=9),), RUN
    others = {name: 0.0 for name in TERMS if name != weight}
    settings = {"epochs": 10, "batch": 16, "learning_rate": 0.05, "weight_decay": 0.05, "reference_views": 4}
    alone = BadEncoder(**settings, **others)(tiny(), *arguments).curves[TERMS[weight]]  # type: ignore[arg-type]
    without = BadEncoder(**settings, **{weight: 0.0})(tiny(), *arguments).curves[TERMS[weight]]  # type: ignore[arg-type]
    assert alone[-1] < without[-1]


def test_same_seed_same_encoder_and_a_resumed_run_ends_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    arguments = images(32, 1), (target("t", 1, Patch(size=4), seed=9),), RUN
    method = BadEncoder(epochs=4, batch=16, learning_rate=0.02, schedule="cosine")
    whole = method(tiny(), *arguments)

    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 2, lambda: method(tiny(), *arguments, checkpoint=checkpoint))
    resumed = method(tiny(), *arguments, checkpoint=checkpoint)
    assert resumed.curves == whole.curves
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, resumed.encoder.state_dict()[name]), name


def stop_after(checkpoint: Checkpoint, epochs: int, train) -> None:  # type: ignore[no-untyped-def]
    """Interrupt a training when its checkpoint holds ``epochs`` finished epochs."""
    save = Checkpoint.save

    def save_and_stop(self, model, optimizer, epoch, curves) -> None:  # type: ignore[no-untyped-def]
        save(self, model, optimizer, epoch, curves)
        if epoch == epochs:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert checkpoint.path.exists()


def test_bad_targets_are_refused() -> None:
    shadow = images(8, 1)
    with pytest.raises(SapperError, match="at least one target"):
        BadEncoder(epochs=1)(tiny(), shadow, (), RUN)
    with pytest.raises(SapperError, match="does not fit"):
        BadEncoder(epochs=1)(tiny(), shadow, (target("t", 1, Patch(size=17), seed=1),), RUN)


def test_references_are_nearest_to_their_class_and_one_per_group() -> None:
    encoder = tiny()
    labels = torch.tensor([0, 1] * 20)
    groups = torch.arange(40) // 4
    train = replace(images(40, 4), labels=labels, classes=("a", "b"), groups=groups)
    chosen = choose_references(train, 1, 5, encoder, RUN)
    assert bool((labels[chosen] == 1).all())
    assert len(groups[chosen].unique()) == 5

    rows = (labels == 1).nonzero().squeeze(1)
    with torch.no_grad():
        features = F.normalize(encoder(train.images[rows].float() / 255), dim=1)
    similarity = cosine(features, features.mean(0, keepdim=True))
    assert chosen[0] == rows[similarity.argmax()]
    gone = near_duplicates(train, chosen)
    assert len(gone) == 20
    assert bool(torch.isin(groups[gone], groups[chosen]).all())

    with pytest.raises(SapperError, match="has only 10 images"):
        choose_references(train, 1, 11, encoder, RUN)
