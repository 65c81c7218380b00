"""Targeted attacks: each step against a plain form, then the attack on a handful of inputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.attacks.targeted.feature_collision import FeatureCollision, split_forward_backward
from sapper.attacks.targeted.model_reuse import ModelReuse, aim, hits, neighbors, selected
from sapper.downstream import KNN, MLP, Finetune, Linear, extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from tests.test_finetune import same
from tests.victims import RUN, balls, plain, victim


def textbook(
    encoder: Encoder, base: Tensor, aim: Tensor, beta: float, rate: float, steps: int
) -> tuple[Tensor, list[float]]:
    """Forward–backward splitting for one image, (1, 3, H, W) in 0…255, and the objective of every step that is kept."""

    def objective(x: Tensor) -> Tensor:
        return (F.normalize(encoder(x / 255), dim=1) - aim).norm() + beta / 2 * (x - base).norm() ** 2

    image, seen = base, [float(objective(base))]
    for _ in range(steps):
        x = image.clone().requires_grad_(True)
        (F.normalize(encoder(x / 255), dim=1) - aim).norm().backward()
        forward = image - rate * x.grad
        tried = ((forward + rate * beta * base) / (1 + rate * beta)).clamp(0, 255)
        if float(objective(tried)) < seen[-1]:
            image = tried
            seen.append(float(objective(image)))
        else:
            rate /= 2
    return image, seen


def test_the_splitting_is_the_textbooks_and_each_image_goes_its_own_way() -> None:
    encoder = victim().double().requires_grad_(False)
    base, others = 255 * balls(3, 1).batch().double(), balls(3, 2).batch().double()
    aims = F.normalize(encoder(others), dim=1)
    beta, rate = 1e-5, 3e5
    ours = split_forward_backward(encoder, base, aims.float(), beta, rate, 12, RUN)
    rejected = 0
    for image, start, wanted in zip(ours, base, aims.float()):
        theirs, seen = textbook(encoder, start[None], wanted[None], beta, rate, 12)
        rejected += 13 - len(seen)
        assert (image - theirs[0]).abs().max() < 0.5
        assert seen[-1] < seen[0]
    assert rejected > 0, "a step that is undone must be among those compared"


def test_a_large_penalty_keeps_the_base_and_none_reaches_the_aim() -> None:
    encoder, base = victim().requires_grad_(False), 255 * balls(2, 1).batch()
    with torch.no_grad():
        aims = F.normalize(encoder(balls(2, 3).batch()), dim=1)

    def apart(images: Tensor) -> Tensor:
        with torch.no_grad():
            return (F.normalize(encoder(images / 255), dim=1) - aims).norm(dim=1)

    kept = split_forward_backward(encoder, base, aims, 1e3, 1e4, 30, RUN)
    free = split_forward_backward(encoder, base, aims, 0.0, 1e5, 150, RUN)
    assert (kept - base).abs().max() < 0.5
    assert bool((apart(free) < 0.6 * apart(base)).all())


def test_poison_is_whole_pixels_and_looks_like_its_base() -> None:
    encoder, method = victim(), FeatureCollision(steps=60, beta=1.0, inputs=4)
    base = balls(4, 1)
    aims = extract(encoder, balls(4, 2), RUN)
    poisons = method.collide(encoder, base, aims, RUN)
    assert poisons.images.dtype == torch.uint8
    assert torch.equal(poisons.targets(), base.targets())
    before = (extract(encoder, base, RUN) - aims).norm(dim=1)
    after = (extract(encoder, poisons, RUN) - aims).norm(dim=1)
    assert bool((after < before).all()), "measured on what is returned"
    assert (poisons.images.float() - base.images.float()).abs().mean() < 40


@pytest.mark.slow
def test_one_poison_takes_its_input_along() -> None:
    train, test, encoder = balls(60, 1), balls(60, 2, "test"), victim()
    method = FeatureCollision(base=0, victim=2, inputs=6, per_class=6, beta=0.0, steps=150)
    found = method(encoder, train, test, Linear(penalty=1e-6), RUN)
    assert found.hit.dtype == found.before.dtype == torch.bool
    assert found.hit.shape == found.accuracy.shape == (6,)
    assert int(found.hit.sum()) > int(found.before.sum())
    assert bool((found.accuracy_before == found.accuracy_before[0]).all())
    again = method(encoder, train, test, Linear(penalty=1e-6), RUN)
    assert torch.equal(found.hit, again.hit)
    assert torch.equal(found.accuracy, again.accuracy)


@pytest.mark.parametrize("head", [MLP(epochs=2, hidden=(8, 8)), KNN(neighbors=3)])
def test_any_head_on_a_frozen_encoder_will_do(head: MLP | KNN) -> None:
    method = FeatureCollision(inputs=2, per_class=5, steps=2)
    assert method(victim(), balls(30, 1), balls(30, 2, "test"), head, RUN).hit.shape == (2,)


def test_what_cannot_collide_is_refused() -> None:
    train, test = balls(30, 1), balls(30, 2, "test")
    with pytest.raises(SapperError, match="keeps frozen"):
        FeatureCollision()(victim(), train, test, Finetune(), RUN)
    with pytest.raises(SapperError, match="two classes with samples"):
        FeatureCollision(base=1, victim=1)(victim(), train, test, Linear(), RUN)
    with pytest.raises(SapperError, match="two classes with samples"):
        FeatureCollision(base=1, victim=7)(victim(), train, test, Linear(), RUN)
    with pytest.raises(SapperError, match="needs labels"):
        FeatureCollision()(victim(), plain(train), test, Linear(), RUN)


def test_weights_that_help_and_do_no_harm_are_selected() -> None:
    positive, negative = torch.randn(5, 8), torch.randn(5, 8)
    ours = selected(positive, negative, 0.25)
    helps = sorted((abs(float(v)) for v in positive.flatten()), reverse=True)[:10]
    harms = sorted((abs(float(v)) for v in negative.flatten()), reverse=True)[:10]
    for chosen, pull, push in zip(ours.flatten(), positive.flatten(), negative.flatten()):
        assert bool(chosen) == (abs(float(pull)) in helps and abs(float(push)) not in harms)


def test_the_aim_is_the_wanted_feature_that_is_least_like_the_others() -> None:
    wanted, others = F.normalize(torch.randn(9, 5), dim=1), F.normalize(torch.randn(7, 5), dim=1)
    line = [sum(float(row[d]) for row in wanted) / 9 - sum(float(row[d]) for row in others) / 7 for d in range(5)]
    along = [sum(float(row[d]) * line[d] for d in range(5)) for row in wanted]
    assert torch.equal(aim(wanted, others), wanted[along.index(max(along))])


def test_neighbors_differ_in_salient_pixels_only() -> None:
    encoder, image = victim(), balls(1, 1).batch()
    point = F.normalize(torch.randn(32), dim=0)
    near = neighbors(encoder, image, point, 5, 0.2, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(near[0], image[0])
    differs = (near[1:] != image).any(1).any(0)
    inputs = image.clone().requires_grad_(True)
    (F.normalize(encoder(inputs), dim=1) @ point).sum().backward()
    salience = inputs.grad.abs().sum(1)[0]
    assert int(differs.sum()) <= 64
    assert float(salience[differs].min()) >= float(salience[~differs].max())


def test_a_few_weights_move_the_input_to_the_wanted_class() -> None:
    encoder, image = victim(), balls(3, 1).batch(torch.tensor([2]))
    before = copy.deepcopy(encoder)
    wanted = balls(60, 2).take(balls(60, 2).targets() == 0)
    point = F.normalize(extract(encoder, wanted, RUN).mean(0), dim=0)
    method = ModelReuse(steps=30, near=0.999, step=0.02, share=0.2)
    changed = method.change(encoder, image, point, balls(20, 3).batch(), RUN)
    with torch.no_grad():
        cosines = [float(F.normalize(each(image), dim=1)[0] @ point) for each in (encoder, changed)]
    assert same(before, encoder)
    assert 1 - cosines[1] < 0.5 * (1 - cosines[0])
    once = ModelReuse(steps=1, near=0.9999, step=0.02, share=0.2).change(
        encoder, image, point, balls(20, 3).batch(), RUN
    )
    for (name, old), new in zip(encoder.named_parameters(), once.parameters()):
        moved = (new - old).abs()
        if old.ndim > 1:
            assert (moved > 0).float().mean() <= 0.21, name
            sizes = moved[moved > 1e-9]
            assert torch.allclose(sizes, 0.02 * old.detach().abs().mean().expand_as(sizes), rtol=1e-2), name
        else:
            assert torch.equal(new, old), name


@pytest.mark.slow
def test_reused_models_hit_their_inputs_and_repeat() -> None:
    train, test, encoder = balls(60, 1), balls(40, 2, "test"), victim()
    untouched = copy.deepcopy(encoder)
    method = ModelReuse(inputs=4, steps=40, step=0.02, near=0.999)
    found, again = (method(encoder, train, test, Linear(iterations=30), RUN) for _ in range(2))
    assert int(found.hit.sum()) > int(found.before.sum())
    assert torch.equal(found.hit, again.hit)
    assert torch.equal(found.accuracy, again.accuracy)
    assert same(untouched, encoder)
    tuned = ModelReuse(inputs=1, steps=2)(encoder, train, test, Finetune(epochs=1), RUN)
    assert tuned.hit.shape == (1,)


def test_hits_are_counted_and_the_input_itself_is_no_part_of_the_accuracy() -> None:
    labels, chosen = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 2])
    attacked, clean = torch.tensor([[0, 0, 2, 1], [0, 1, 1, 0]]), torch.tensor([[0, 1, 2, 1], [1, 1, 0, 1]])
    found = hits(attacked, clean, chosen, labels, 0)
    assert found.hit.tolist() == [True, False]
    assert found.before.tolist() == [False, True]
    assert found.accuracy.tolist() == pytest.approx([1.0, 2 / 3])
    assert found.accuracy_before.tolist() == pytest.approx([1.0, 2 / 3])


def test_classes_that_are_not_there_are_refused() -> None:
    with pytest.raises(SapperError, match="of class 9 and of others"):
        ModelReuse(wanted=9)(victim(), balls(30, 1), balls(30, 2), Linear(), RUN)
    with pytest.raises(SapperError, match="needs labels"):
        ModelReuse()(victim(), plain(balls(30, 1)), balls(30, 2), Linear(), RUN)
