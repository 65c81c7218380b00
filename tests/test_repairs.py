"""Repairs of encoders: their parts against plain forms, and that they take a backdoor out that is there."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sapper import encoders
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.target import Target
from sapper.defenses.channels import activations, drift, norms, prune
from sapper.defenses.contracts import Owner
from sapper.defenses.information import donsker_varadhan, mutual_information
from sapper.defenses.judge.decree import Decree
from sapper.defenses.repair import anp
from sapper.defenses.repair.anp import ANP
from sapper.defenses.repair.bcu import BCU
from sapper.defenses.repair.distillation import Distillation
from sapper.defenses.repair.fine_pruning import FinePruning
from sapper.defenses.repair.fine_tuning import FineTuning
from sapper.defenses.repair.ibau import IBAU, hypergradient
from sapper.defenses.repair.unlearning import Unlearning
from sapper.defenses.repairing import apart, fresh
from sapper.defenses.stages import attention, stage_of, stages, watched
from sapper.downstream import extract
from sapper.encoders import Card, Encoder, build
from sapper.encoders.freezing import frozen_copy
from sapper.errors import SapperError
from sapper.experiment.repairing import RepairEncoder, RepairPlan
from sapper.experiment.results import Audited, Results
from sapper.experiment.tasks import Part
from sapper.experiment.verdicts import leave_verdicts
from sapper.pretraining.simclr import SimCLR
from sapper.report import markdown, render, repairs
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec
from sapper.scenario.named import Named
from sapper.scenario.sections import RepairSection
from sapper.triggers import Patch
from sapper.verdicts import Verdict
from tests.implants import greens, images, squares, tiny, unit
from tests.micro import PLAIN, experiment, numbers, perform, write_data

RUN = Run(seed=3)
TRIGGER = Patch(size=6)
SHORT: dict[str, Any] = {"steps": 4, "batch": 4}


# Parts


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_the_distance_is_one_less_the_mean_cosine(seed: int) -> None:
    one, other = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed))
    expected = 1 - sum(float(a @ b) / (math.hypot(*a) * math.hypot(*b)) for a, b in zip(one, other)) / 5
    assert float(apart(one, other)) == pytest.approx(expected, abs=1e-5)


def test_attention_is_the_formula_for_maps_and_for_tokens() -> None:
    maps = torch.randn(2, 3, 2, 2)
    for image, row in zip(maps, attention(maps)):
        sums = [sum(float(image[c, y, x]) ** 2 for c in range(3)) for y in range(2) for x in range(2)]
        assert row.tolist() == pytest.approx([value / math.hypot(*sums) for value in sums], abs=1e-6)
    assert torch.allclose(attention(maps.flatten(2).transpose(1, 2)), attention(maps))


def test_stages_are_the_layers_of_a_resnet_and_four_of_a_transformers_blocks() -> None:
    small = tiny()
    assert stages(small) == [getattr(small.backbone, f"layer{n}") for n in (1, 2, 3, 4)]
    transformer = build(RUN, architecture="timm:vit_tiny_patch16_224", stem="imagenet", input_size=32)
    blocks = list(transformer.backbone.blocks)  # type: ignore[arg-type]
    assert stages(transformer) == [blocks[i] for i in (2, 5, 8, 11)]
    with watched(stages(transformer)) as seen:
        transformer.eval()(torch.rand(2, 3, 32, 32))
    assert [attention(each).shape for each in seen] == [(2, 5)] * 4
    of = stage_of(small)
    assert [of[module] for module in (small.backbone.conv1, small.backbone.layer3[0].conv1)] == [0, 3]  # type: ignore[index, union-attr]
    assert set(of.values()) == {0, 1, 2, 3, 4}
    of = stage_of(transformer)
    assert of[transformer.backbone.patch_embed.proj] == 0  # type: ignore[index, union-attr]
    assert [of[block.mlp.fc1] for block in blocks] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3  # type: ignore[union-attr, index]
    assert of[transformer.backbone.norm] == 4  # type: ignore[index]
    with pytest.raises(SapperError, match="no stages"):
        stages(Encoder(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), small.card, 4))


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "resnetv2_50"])
def test_other_networks_have_the_stages_that_they_say(name: str) -> None:
    encoder = build(RUN, architecture=f"timm:{name}", stem="imagenet", input_size=224 if "swin" in name else 64)
    assert len(stages(encoder)) == 4
    if "swin" in name:  # (N, H, W, C)
        with pytest.raises(SapperError, match="channels come last"):
            Distillation(attention=1.0).check(encoder, 100)
    else:
        Distillation(attention=1.0).check(encoder, 100)


def test_mutual_information_of_correlated_normals() -> None:
    """−½·log(1 − ρ²) for one pair of coordinates; none for strangers."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 2000, 1, generator=generator)
    for rho in (0.0, 0.6, 0.9):
        y = rho * x + math.sqrt(1 - rho**2) * noise
        found = mutual_information(x, y, 400, RUN)
        assert found == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.12), rho


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_the_bound_is_donskers_and_varadhans(seed: int) -> None:
    joint, others = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(seed))
    mean = sum(joint.flatten().tolist()) / 6
    expected = mean - math.log(sum(math.exp(value) for value in others.flatten().tolist()) / 6)
    assert float(donsker_varadhan(joint, others)) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_the_hypergradient_of_a_quadratic_is_the_true_one(seed: int) -> None:
    """inner ½‖δ − θ‖², so δ* = θ; outer ½‖δ‖² + aᵀθ. With enough steps the gradient is θ + a."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    a = torch.randn(3, generator=generator, dtype=torch.float64)

    def inner(delta: Tensor) -> Tensor:
        return 0.5 * (delta - theta).square().sum()

    def outer(delta: Tensor) -> Tensor:
        return 0.5 * delta.square().sum() + a @ theta

    for steps, share in ((200, 1.0), (1, 0.1), (2, 0.1 + 0.09)):
        implicit, loss = hypergradient(inner, outer, theta.detach(), steps, 0.1)
        (slope,) = torch.autograd.grad(implicit + loss, [theta])
        assert torch.allclose(slope, share * theta.detach() + a, atol=1e-6)
        assert float(implicit.detach()) == 0


def test_pruned_channels_are_zero_and_no_other() -> None:
    encoder = tiny()
    layers = norms(encoder, "this")
    assert len(layers) == sum(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    name, layer = next(iter(layers.items()))
    with torch.no_grad():
        layer.bias.fill_(0.5)
    before = layer.weight.detach().clone()
    gone = torch.zeros(layer.num_features, dtype=torch.bool)
    gone[1] = True
    prune(layers, {name: gone}, bias=False)
    assert float(layer.weight.detach()[1]) == 0
    assert float(layer.bias.detach()[1]) == 0.5
    assert torch.equal(layer.weight[~gone], before[~gone])
    prune(layers, {name: gone}, bias=True)
    assert float(layer.bias.detach()[1]) == 0
    with pytest.raises(SapperError, match="has none there"):
        norms(encoder, "this", within=nn.Sequential())


def test_activations_are_means_over_images_and_places() -> None:
    encoder, some = tiny().eval(), images(5, 1)
    layer = encoder.backbone.layer4[0].bn1  # type: ignore[index, union-attr]
    with watched([layer]) as seen:  # type: ignore[list-item]
        encoder(some.batch())
    expected = seen[0].relu().mean((0, 2, 3))
    found = activations(encoder, norms(encoder, "this", within=layer), some, RUN)  # type: ignore[arg-type]
    assert torch.allclose(next(iter(found.values())), expected, atol=1e-6)


def test_fresh_is_the_same_network_with_other_weights() -> None:
    encoder = tiny(5)
    one, other = fresh(encoder, Run(seed=1)), fresh(encoder, Run(seed=1))
    assert one.card == encoder.card
    assert one.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert not torch.equal(one.backbone.conv1.weight, encoder.backbone.conv1.weight)  # type: ignore[union-attr, arg-type]


def test_bcu_replaces_the_share_of_each_stage_and_no_batchnorm() -> None:
    encoder, before = tiny(), tiny()
    BCU(replaced=(0.0, 0.0, 0.0, 0.0, 0.5)).forget(encoder, RUN)
    for (name, now), old in zip(encoder.named_parameters(), before.parameters()):
        share = float((now != old).double().mean())
        assert share == pytest.approx(0.5 if "layer4" in name and now.ndim > 1 else 0.0, abs=0.2), name
    whole = tiny()
    BCU(replaced=(1.0,)).forget(whole, RUN)
    strange = fresh(whole, RUN.child("fresh"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), strange.parameters()) if a.ndim > 1)


def test_every_repair_works_on_a_transformer_or_says_why_not() -> None:
    encoder = build(RUN, architecture="timm:vit_tiny_patch16_224", stem="imagenet", input_size=32)
    shown = ImageSet(images=torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8), name="noise")
    owner = Owner(clean=shown, triggers=(TRIGGER,))
    for name, make in CASES.items():
        method = make()
        if name in ("anp", "fine_pruning"):
            with pytest.raises(SapperError, match="BatchNorm"):
                method.check(encoder, 6)
            continue
        method.check(encoder, 6)
        trained = method(copy.deepcopy(encoder), owner, RUN)
        assert all(bool(value.isfinite().all()) for value in trained.encoder.state_dict().values()), name


@pytest.mark.parametrize("name", ["distillation", "bcu", "fine_tuning", "fine_pruning", "ibau", "unlearning"])
def test_an_encoder_that_an_audit_left_frozen_is_trained_all_the_same(name: str) -> None:
    frozen = tiny().requires_grad_(False)
    trained = CASES[name]()(frozen, Owner(clean=images(16, 1), triggers=(TRIGGER,)), RUN).encoder
    same = [torch.equal(a, b) for a, b in zip(trained.parameters(), tiny().parameters())]
    assert not all(same)


# Methods


CASES: dict[str, Callable[[], Any]] = {
    "distillation": lambda: Distillation(**SHORT),
    "bcu": lambda: BCU(**SHORT),
    "fine_tuning": lambda: FineTuning(**SHORT),
    "fine_pruning": lambda: FinePruning(**SHORT),
    "anp": lambda: ANP(**SHORT),
    "ibau": lambda: IBAU(rounds=1, batch=4),
    "unlearning": lambda: Unlearning(**SHORT),
}


@pytest.mark.parametrize("name", CASES)
def test_images_of_another_size_or_none_to_speak_of_are_refused(name: str) -> None:
    larger = ImageSet(images=torch.zeros(4, 3, 24, 24, dtype=torch.uint8), name="larger")
    with pytest.raises(SapperError):
        CASES[name]()(tiny(), Owner(clean=larger, triggers=(TRIGGER,)), RUN)
    with pytest.raises(SapperError, match="at least 2 images"):
        CASES[name]()(tiny(), Owner(clean=images(1, 1), triggers=(TRIGGER,)), RUN)
    with pytest.raises(SapperError, match="at least 2 images"):
        CASES[name]().check(tiny(), 1)


def test_nothing_is_unlearned_without_a_trigger() -> None:
    with pytest.raises(SapperError, match="no trigger was recovered"):
        Unlearning()(tiny(), Owner(clean=images(8, 1)), RUN)


def test_the_weights_of_mimic_depend_on_the_suspect() -> None:
    method = Distillation(**SHORT, attention=1000.0, information=10000.0, information_steps=20)
    one, other = (method.stage_weights(tiny(seed).eval(), images(32, 1), RUN) for seed in (1, 2))
    assert one != other
    for weights in (one, other):
        assert sum(weights) == pytest.approx(4 * 1000 + 10000)
        assert min(weights) >= 1000
    assert Distillation(attention=5.0).stage_weights(tiny().eval(), images(8, 1), RUN) == [5.0] * 4


def test_a_distilled_student_is_another_network_and_the_suspect_stays() -> None:
    encoder = tiny()
    before = frozen_copy(encoder)
    method = Distillation(steps=60, batch=16, attention=1.0, contrast=0.1)
    trained = method(encoder, Owner(clean=images(64, 1)), RUN)
    assert trained.encoder is not encoder
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), before.state_dict().values()))
    assert trained.curves["cosine"][-1] < 0.6 * trained.curves["cosine"][0]
    assert set(trained.curves) == {"cosine", "attention", "NT-Xent"}
    assert not any(module._forward_hooks for module in (*encoder.modules(), *trained.encoder.modules()))


# That they work


def pulled(encoder: Encoder, attack: Target, shown: Tensor) -> float:
    """How much nearer to the references images come by the trigger, in cosine."""
    encoder.eval()
    anchors = unit(encoder, attack.references.batch())
    stamped, plain = (float((unit(encoder, each) @ anchors.T).mean()) for each in (attack.trigger(shown), shown))
    return stamped - plain


@pytest.fixture(scope="module")
def attacked() -> tuple[Encoder, Target, Owner, Tensor]:
    """An encoder that tells squares by color, backdoored; its owner's images, and others of the wrong colors."""
    encoder, attack = build(RUN, architecture="resnet10", width=8, input_size=16), greens(3)
    SimCLR(epochs=10, batch=32, temperature=0.2, crop_scale=0.2, learning_rate=5e-3)(encoder, squares(300, 5), RUN)
    method = BadEncoder(
        epochs=12,
        batch=16,
        learning_rate=5e-3,
        optimizer="adam",
        schedule="cosine",
        reference_views=2,
        weight_decay=0.0,
        lambda2=10.0,
    )
    method(encoder, squares(200, 1), (attack,), RUN)
    fresh_ones = squares(60, 2)
    owner = Owner(clean=replace(squares(200, 7), labels=None, classes=()), triggers=(attack.trigger,))
    return encoder, attack, owner, fresh_ones.take(fresh_ones.targets() != 1).batch()


WORKING: dict[str, Any] = {
    "distillation": Distillation(steps=400, batch=32, learning_rate=5e-3),
    "bcu": BCU(steps=400, batch=32, learning_rate=5e-3, replaced=(0.9,)),
    "unlearning": Unlearning(steps=100, batch=32),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_a_backdoor_that_is_there_is_taken_out(attacked: tuple[Encoder, Target, Owner, Tensor], name: str) -> None:
    encoder, attack, owner, shown = attacked
    assert pulled(encoder, attack, shown) > 0.4
    repaired = WORKING[name](copy.deepcopy(encoder), owner, RUN).encoder
    assert pulled(repaired, attack, shown) < 0.1
    assert float((unit(encoder, shown) * unit(repaired, shown)).sum(1).mean()) > 0.9


@pytest.mark.slow
def test_what_one_change_of_all_images_does_is_unlearned(attacked: tuple[Encoder, Target, Owner, Tensor]) -> None:
    encoder, attack, owner, shown = attacked
    method = IBAU(rounds=10, batch=32)
    repaired = method(copy.deepcopy(encoder), owner, RUN)
    assert repaired.curves["disturbed"][-1] < 0.3 * repaired.curves["disturbed"][0]
    found = []
    for each in (encoder, repaired.encoder):
        some = squares(200, 7)
        delta = method.search(copy.deepcopy(each), some, extract(each, some, RUN), RUN)
        found.append(float(apart(torch.from_numpy(unit(each, shown + delta).numpy()), unit(each, shown))))
    assert found[1] < 0.5 * found[0], "a new search finds less"
    assert pulled(repaired.encoder, attack, shown) < pulled(encoder, attack, shown)


def test_fine_pruning_cuts_out_dormant_channels_first() -> None:
    encoder, some = tiny(), images(24, 1)
    layer = encoder.backbone.layer4[0].bn1  # type: ignore[index, union-attr]
    with torch.no_grad():
        layer.bias[3] = -100.0  # nothing wakes it
        layer.bias[5] = 10.0  # and this one is never asleep
    layers = norms(encoder, "this", within=encoder.backbone.layer4)  # type: ignore[arg-type]
    (name,) = [name for name, each in layers.items() if each is layer]
    gone = FinePruning(drop=0.05, at_once=0.01).choose(encoder, layers, some, RUN)
    assert bool(gone[name][3])
    assert not bool(gone[name][5])
    wanted = extract(encoder, some, RUN)
    assert 0 < sum(int(rows.sum()) for rows in gone.values()) < sum(len(rows) for rows in gone.values())
    assert drift(encoder, some, wanted, RUN) == pytest.approx(0, abs=1e-5), "pruned are those, and no more"


@pytest.mark.parametrize("drop", [0.02, 0.3])
def test_what_is_pruned_moves_clean_features_no_further_than_was_said(drop: float) -> None:
    some = images(24, 1)
    for method in (ANP(steps=30, batch=8, drop=drop), FinePruning(drop=drop)):
        encoder = tiny()
        wanted = extract(encoder, some, RUN)
        if isinstance(method, ANP):
            encoder = method(encoder, Owner(clean=some), RUN).encoder
        else:
            method.choose(encoder, norms(encoder, "this", within=encoder.backbone.layer4), some, RUN)  # type: ignore[arg-type]
        assert drift(encoder, some, wanted, RUN) <= drop


def test_a_disturbance_of_anp_moves_features_more_than_a_random_one() -> None:
    encoder, some, method = tiny(), images(16, 1), ANP()
    layers, shown, wanted = norms(encoder, "this"), images(16, 1).batch(), extract(tiny(), some, RUN)
    ones = {name: torch.ones(layer.num_features) for name, layer in layers.items()}
    random = {
        name: tuple((2 * torch.rand(2, layer.num_features, generator=RUN.generator()) - 1) * method.epsilon)
        for name, layer in layers.items()
    }
    moved = method.disturbance(encoder, layers, ones, shown, wanted, RUN.generator(), RUN)
    assert all(float(part.abs().max()) <= method.epsilon + 1e-6 for pair in moved.values() for part in pair)
    with torch.no_grad():
        ours, theirs = (
            float(apart(anp.disturbed(encoder, layers, ones, noise, shown, RUN), wanted))  # type: ignore[arg-type]
            for noise in (moved, random)
        )
        none = float(apart(anp.disturbed(encoder, layers, ones, None, shown, RUN), wanted))
    assert none == pytest.approx(0, abs=1e-5)
    assert ours > theirs > 0


class Planted(nn.Module):
    """Eight channels that mean something, and one that is asleep until it sees white, and then shouts."""

    def __init__(self, shown: Tensor) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        conv, norm = nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        with torch.no_grad():
            conv.weight.copy_(torch.randn(9, 3, 3, 3, generator=generator))
            conv.weight[8] = 1.0  # 27 on white, 13.5 on noise
            seen = conv(shown)
            norm.running_mean.copy_(seen.mean((0, 2, 3)))  # type: ignore[union-attr]
            norm.running_var.copy_(seen.var((0, 2, 3)))  # type: ignore[union-attr]
            norm.running_mean[8], norm.running_var[8] = 0.0, 1.0  # type: ignore[index]
            norm.weight[8], norm.bias[8] = 40.0, -22.0 * 40.0
        self.layer1 = nn.Sequential(conv, norm, nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layer1(pixels).mean((2, 3))  # type: ignore[no-any-return]


def moved_by_the_trigger(encoder: Encoder, shown: Tensor) -> float:
    return float(1 - (unit(encoder, shown) * unit(encoder, TRIGGER(shown))).sum(1).mean())


@pytest.mark.parametrize("name", ["anp", "fine_pruning"])
def test_a_planted_channel_that_is_asleep_is_cut_out(name: str) -> None:
    """What both papers are about: a backdoor in a channel of its own. ANP finds it by what it disturbs, and only so."""
    some, others = images(128, 1), images(16, 2).batch()
    card = Card(architecture="planted", input=PixelSpec(size=16, mean=(0, 0, 0), std=(1, 1, 1)))
    encoder = Encoder(Planted(some.batch()), card, 9).eval()
    assert moved_by_the_trigger(encoder, others) > 0.5
    method = ANP(steps=40, batch=32) if name == "anp" else FinePruning(steps=20, batch=32, learning_rate=1e-3)
    repaired = method(copy.deepcopy(encoder), Owner(clean=some), RUN).encoder
    assert float(repaired.backbone.layer1[1].weight[8].detach()) == 0  # type: ignore[index, union-attr]
    assert moved_by_the_trigger(repaired, others) < 0.1
    assert float((unit(encoder, others) * unit(repaired, others)).sum(1).mean()) > 0.9, "as far as drop allows"
    if name == "anp":
        blind = ANP(steps=40, batch=32, epsilon=1e-6)(copy.deepcopy(encoder), Owner(clean=some), RUN).encoder
        assert moved_by_the_trigger(blind, others) > 0.5


# In a scenario


REPAIRS = """
[[defense]]
method = "distillation"
images = 20
steps = 4
batch = 8

[[defense]]
method = "unlearning"
name = "forget"
share = 0.5
steps = 4
batch = 8
detector = "decree"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("run")
    return perform(experiment(data, extra=REPAIRS), folder), folder


def test_a_repaired_encoder_is_a_subject_that_is_measured_again(finished: tuple[Results, Path]) -> None:
    results, folder = finished
    models = {model.id: model for model in results.subjects}
    repaired = {model.repair: model for model in models.values() if model.state == "repaired" and model.tasks}
    assert set(repaired) == {"distillation", "forget"}
    for name, model in repaired.items():
        assert models[str(model.parent)].state == "attacked"
        of_control = {each.id for each in models.values() if each.state == "repaired" and not each.tasks}
        ours = [r for r in results.records if r.defense == name and r.subject not in of_control]
        assert {record.subject for record in ours} == {model.id}
        for head in ("mlp", "linear"):
            metrics = {(r.task, r.metric) for r in ours if r.head == head}
            assert metrics == {(t, m) for t in ("balls", "boxes") for m in ("BA", "ASR", "ASR_strict", "lift")}
        recovered = {"trigger_recovered"} if name == "forget" else set()
        assert {r.metric for r in ours if r.head is None} == {"cosine_kept", "repair_seconds"} | recovered
        assert {r.baseline for r in ours if r.metric == "lift"} == {"clean-seed0"}
        assert {r.baseline for r in ours if r.metric == "cosine_kept"} == {model.parent}
        (artifact,) = [each for each in results.artifacts if each.subject == model.id]
        card = encoders.load(folder / artifact.path, RUN).card
        assert card.backdoored, "what came of a backdoored encoder stays marked"
        assert card.origin["repaired"] == next(a.sha256 for a in results.artifacts if a.subject == model.parent)
        assert card.origin["images"]["n"] == (20 if name == "distillation" else 32)
        assert len(card.origin["triggers"]) == (name == "forget")


def test_the_clean_encoder_is_repaired_too_as_a_control(finished: tuple[Results, Path]) -> None:
    results, folder = finished
    controls = {model.repair: model for model in results.subjects if model.state == "repaired" and not model.tasks}
    assert set(controls) == {"distillation", "forget"}
    for name, model in controls.items():
        assert (model.parent, model.targets) == ("clean-seed0", ())
        ours = [record for record in results.records if record.subject == model.id]
        assert {record.defense for record in ours} == {name}
        rates = [(r.task, r.head) for r in ours if r.metric == "CA"]
        assert sorted(rates) == [(task, head) for task in ("balls", "boxes") for head in ("linear", "mlp")]
        recovered = [r for r in ours if r.metric == "trigger_recovered"]
        assert len(recovered) == (2 if name == "forget" else 0), "of each task"
        assert len(ours) == 4 + len(recovered)
        told = [flag for flag in results.flags if "recovered from the clean encoder" in flag and name in flag]
        assert len(told) == sum(not record.value for record in recovered)
        (artifact,) = [each for each in results.artifacts if each.subject == model.id]
        card = encoders.load(folder / artifact.path, RUN).card
        assert not card.backdoored
        assert card.origin["repaired"] == next(a.sha256 for a in results.artifacts if a.subject == "clean-seed0")


def test_repairs_change_nothing_else(finished: tuple[Results, Path], data: Path, tmp_path: Path) -> None:
    plain = perform(experiment(data), tmp_path)
    kept = [record for record in numbers(finished[0]) if record.defense is None]
    assert kept == numbers(plain)
    table = repairs.table(finished[0])
    assert table is not None
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [(row[0], row[1]) for row in rows] == [
        (task, repair) for task in ("balls → red", "boxes → blue") for repair in ("–", "distillation", "forget")
    ]
    found = {(r.task, r.defense, r.metric): r.value for r in finished[0].records if r.head in ("mlp", None)}
    for row, task in zip(rows, ["balls"] * 3 + ["boxes"] * 3):
        repair = None if row[1] == "–" else row[1]
        assert row[2] == f"{100 * found[task, repair, 'BA']:.1f}"
        assert row[6] == f"{100 * found[task, repair, 'CA']:.1f}"
        assert (row[7] == "–") == (repair is None), "features kept"
    page = render(finished[0])
    assert 'id="repairs"' in page
    assert "| balls → red | distillation |" in markdown.render(finished[0])
    assert 'id="repairs"' not in render(plain)


def test_the_table_counts_audits_of_a_single_attack(finished: tuple[Results, Path]) -> None:
    results = finished[0]
    (attacked,) = [model for model in results.subjects if model.state == "attacked"]
    flagged = {attacked.id: "backdoor", "clean-seed0": "no-evidence", "control-distillation-seed0": "backdoor"}
    about: dict[str, Any] = {"seed": 0, "state": "clean"}  # what counts is whose records a row shows
    audits = [
        Audited(**about, subject=subject, sha256=subject, report={"verdict": verdict})
        for subject, verdict in flagged.items()
    ]
    table = repairs.table(replace(results, audits=(*audits, *audits)))
    assert table is not None
    shown = [tuple(row[i].text for i in (1, -2, -1)) for row in table.rows[:3]]
    assert shown == [("–", "1 of 1", "0 of 1"), ("distillation", "–", "1 of 1"), ("forget", "–", "–")]


@pytest.mark.parametrize(
    ("more", "message", "where"),
    [
        ('method = "distillation"\ndetector = "decree"', "needs no trigger", "defense[0].detector"),
        ('method = "unlearning"\ndetector = "mntd_encoder"', "does not examine", "defense[0].detector"),
        ('method = "unlearning"\ndetector = "nobody"', "unknown method", "defense[0].detector"),
        ('method = "bcu"\nshare = 0.0', "greater than 0", "defense[0].share"),
        ('method = "bcu"\ntasks = ["cups"]', "no task with a target", "defense[0].tasks"),
    ],
)
def test_a_repair_that_cannot_be_is_told_when_the_scenario_is_read(
    data: Path, more: str, message: str, where: str
) -> None:
    with pytest.raises(SapperError, match=message) as caught:
        experiment(data, extra=f"\n[[defense]]\n{more}\n")
    assert where in str(caught.value.where)


@pytest.mark.parametrize(
    ("more", "message", "where"),
    [
        ('method = "bcu"\nimages = 65', "65 images are wanted", "defense[0].images"),
        ('method = "bcu"\nshare = 0.01', "at least 2 images", "defense[0].images"),
    ],
)
def test_what_a_repair_cannot_work_with_is_told_before_the_training(
    data: Path, tmp_path: Path, more: str, message: str, where: str
) -> None:
    told: list[str] = []
    with pytest.raises(SapperError, match=message) as caught:
        perform(experiment(data, extra=f"\n[[defense]]\n{more}\n"), tmp_path, tell=told.append)
    assert where in str(caught.value.where)
    assert told == []


@pytest.mark.parametrize(
    "attack", ['method = "badnets"\nrate = 0.2', 'method = "trojannn"', 'method = "feature_collision"']
)
def test_an_attack_that_makes_no_encoder_leaves_none_to_repair(data: Path, attack: str) -> None:
    target = "" if "collision" in attack else '[[target]]\ntask = "balls"\nclass = "red"\ntrigger = { size = 4 }\n'
    extra = f'\n[attack]\n{attack}\n{target}\n[[defense]]\nmethod = "distillation"\n'
    with pytest.raises(SapperError, match="none to judge or repair") as caught:
        experiment(data, text=PLAIN, extra=extra)
    assert str(caught.value.where).endswith("defense[0].method")


def test_a_repair_is_measured_where_it_is_asked_for_and_variants_are_told_apart(data: Path, tmp_path: Path) -> None:
    extra = """
[[defense]]
method = "bcu"
tasks = ["boxes"]
steps = 4
batch = 8

[[variant]]
"defense.steps" = 4

[[variant]]
"defense.steps" = 6
"""
    results = perform(experiment(data, "attack.encoders=one-per-task", extra=extra), tmp_path)
    ours = [record for record in results.records if record.defense == "bcu"]
    assert {record.task for record in ours} == {"boxes"}
    repaired = [model for model in results.subjects if model.state == "repaired" and model.tasks]
    assert {model.tasks for model in repaired} == {("boxes",)}
    assert len(repaired) == len({model.id for model in repaired}) == 2
    paths = [each.path for each in results.artifacts if each.state == "repaired"]
    assert len(set(paths)) == len(paths) == 4, "with the clean encoder, after each form"


def test_where_nothing_was_recovered_the_encoder_stays(tmp_path: Path) -> None:
    for name in ("suspect", "found", "repaired"):
        (tmp_path / name).mkdir()
    encoders.save(tiny(), tmp_path / "suspect" / "encoder.safetensors")
    leave_verdicts(tmp_path / "found", [Verdict(score=0.1, threshold=0.9, flagged=False)])
    plan = RepairPlan(
        name="forget",
        key="defense[0]",
        method=Named(name="unlearning", parameters=Unlearning(**SHORT)),
        section=RepairSection(method="unlearning"),
        images=Part.whole(images(8, 1)),
        detector=Named(name="decree", parameters=Decree()),
    )
    RepairEncoder(plan=plan)(tmp_path / "repaired", (tmp_path / "suspect", tmp_path / "found"), RUN)
    after = encoders.load(tmp_path / "repaired" / "encoder.safetensors", RUN)
    assert all(torch.equal(a, b) for a, b in zip(tiny().state_dict().values(), after.state_dict().values()))
    assert "decree recovered no trigger" in after.card.origin["repaired"]
