"""Terms against defenses: by textbook forms, and that each moves what its detector measures."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.a_method_of_ones_own import Untargeted
from sapper.attacks.adapting import Adaptive, Known, Scene, adapted, descend
from sapper.attacks.adaptive.decree import GATHERED, INVERTED, AgainstDecree, apart, gathered, search_loss
from sapper.attacks.adaptive.mntd_encoder import ANSWERS, AgainstMNTDEncoder
from sapper.attacks.adaptive.multi_prior import SCORE, AgainstMultiPrior, powers_of_ten, room
from sapper.attacks.adaptive.patchcleanser import CERTIFICATE, MASKED, AgainstPatchCleanser
from sapper.attacks.features import TERMS, FineTuning
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.implant.drupe import DRUPE
from sapper.attacks.implant.inactive import Inactive
from sapper.attacks.implant.lba import LBA
from sapper.attacks.implant.transtroj import TransTroj
from sapper.defenses.certify.patchcleanser import PatchCleanser
from sapper.defenses.inversion import neighborhood, spread_of
from sapper.defenses.judge.decree import Decree
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.downstream import extract, mean_cosine
from sapper.encoders import Card, Encoder
from sapper.errors import SapperError
from sapper.methods import settings
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec
from sapper.training import Step
from sapper.triggers import Patch, Patches
from sapper.triggers.covers import covering
from sapper.triggers.searching import mixed, start
from tests.implants import RUN, greens, squares, tiny
from tests.micro import ATTACKED, experiment, write_data

SIZE = 16
SHADOW, OTHERS, TARGET = squares(64, 1), squares(48, 2), greens(3)
PRIORS: dict[str, Any] = {"patches": ((0.4, 0.0, 0.3),), "blends": (), "filters": ((0.2, 0.5, 0.4),)}
PLAIN = BadEncoder(
    epochs=8, batch=16, reference_views=2, optimizer="adam", learning_rate=0.01, weight_decay=0.0, lambda2=4.0
)


@cache
def attacked(*against: Adaptive, attack: FineTuning = PLAIN, **changes: Any) -> tuple[Encoder, dict[str, list[float]]]:
    """A tiny encoder after an attack, and its curves."""
    trained = replace(attack, against=against, **changes)(tiny(), SHADOW, (TARGET,), RUN)  # type: ignore[operator]
    return trained.encoder, trained.curves


class Recorder(nn.Module):
    """Features are a linear map of the pixels; what it is given is kept."""

    def __init__(self, seed: int):
        super().__init__()
        start = torch.randn(3 * SIZE**2, 6, generator=torch.Generator().manual_seed(seed))
        self.weights, self.given = nn.Parameter(start), list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images.detach().clone())
        return images.flatten(1) @ self.weights


def recorded(seed: int) -> Encoder:
    return Encoder(Recorder(seed), Card(architecture="recorder", input=PixelSpec(size=SIZE)), 6)


def scene(encoder: Encoder, clean: Encoder, shadow: ImageSet = SHADOW) -> Scene:
    references = (TARGET.references.batch(), SHADOW.batch()[:2])
    triggers = [TARGET.trigger, Patch(size=3, position="top-left")]
    known = Known(shadow=shadow, triggers=lambda: triggers, references=references)
    clean = clean.eval().requires_grad_(False)
    return Scene(encoder=encoder, clean=clean, kept=extract(clean, shadow, RUN), known=known, run=RUN)


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one @ other / (one.norm() * other.norm())).detach())


def unit_rows(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


# DECREE


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 6), st.floats(-0.5, 0.95))
def test_the_hinge_is_the_mean_over_pairs_above_the_bound(seed: int, targets: int, count: int, bound: float) -> None:
    features = unit_rows(targets, count, 5, seed=seed)
    expected = []
    for rows in features:
        pairs = [cosine(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        expected.append(max(0.0, sum(pairs) / len(pairs) - bound))
    assert float(gathered(features, bound)) == pytest.approx(sum(expected) / targets, abs=1e-9)


def test_the_search_is_decrees_own_for_images_of_32_pixels() -> None:
    """λ = 1e-3 for three channels there is c = 3 here, within 3 %."""
    weights = start(2, (32, 32), RUN)
    masks = mixed(weights, torch.rand(4, 3, 32, 32))[0].detach()
    features = unit_rows(2, 4, 5, seed=1).float()
    decrees = (-mean_cosine(features) + 1e-3 * 3 * masks.flatten(1).sum(1)).sum()
    assert float(search_loss(features, masks, 3 * 1.024)) == pytest.approx(float(decrees), rel=1e-5)


def test_how_far_a_change_is_from_the_trigger() -> None:
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    stamped = torch.stack([TARGET.trigger(images), Patch(size=3, position="top-left")(images)])
    changed = torch.stack([images, stamped[1], (images + stamped[0]) / 2, torch.rand(images.shape)])
    found = apart(changed, images, stamped)
    assert torch.equal(found[0], torch.ones(3)), "the image as it is has nothing of it"
    assert torch.equal(found[1], torch.zeros(3)), "one of two triggers is enough"
    assert torch.allclose(found[2], torch.tensor(0.25)), "half of each color's way"
    for i in range(3):
        each = []
        for trigger in stamped:
            where = trigger[i] != images[i]
            off, whole = (changed[3, i] - trigger[i])[where], (images[i] - trigger[i])[where]
            each.append(float((off**2).sum() / (whole**2).sum()))
        assert float(found[3, i]) == pytest.approx(min(1.0, *each), abs=1e-5)


def test_both_terms_of_an_epochs_first_step_are_the_formulas() -> None:
    method = AgainstDecree(cosine=0.1, images=5, steps=2, searches=2)
    f, clean = recorded(1), recorded(2)
    here = scene(f, clean)
    losses = method.begin(here, RUN)(SHADOW.batch()[:8], here.kept[:8])

    images, kept = SHADOW.batch()[:5], here.kept[:5]
    weights = start(2, (SIZE, SIZE), RUN)
    optimizer = torch.optim.Adam(weights, lr=0.5, betas=(0.5, 0.9))
    linear = f.backbone.weights.detach()
    for _ in range(2):
        total = torch.zeros(())
        for mask, pattern in zip(*((weight.tanh() + 1) / 2 for weight in weights)):
            features = F.normalize(((1 - mask) * images + mask * pattern).flatten(1) @ linear, dim=1)
            pairs = [features[i] @ features[j] for i in range(5) for j in range(5) if i != j]
            total = total - sum(pairs) / 20 + 3.0 * mask.mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    expected = []
    with torch.no_grad():
        stamped = here.stamped(images)
        for mask, pattern in zip(*((weight.tanh() + 1) / 2 for weight in weights)):
            changed = (1 - mask) * images + mask * pattern
            for i in range(5):
                far = float(apart(changed[None], images, stamped)[0, i])
                expected.append(far * (1 - cosine(changed[i].flatten() @ linear, kept[i])))
    assert float(losses[INVERTED].detach()) == pytest.approx(sum(expected) / 10, abs=1e-3)
    (gradient,) = torch.autograd.grad(losses[GATHERED] + losses[INVERTED], f.backbone.weights)
    assert float(gradient.abs().max()) > 0
    assert f.backbone.weights.grad is None, "searches leave no gradients"


def test_a_longer_search_is_never_worse_and_gradients_beat_random_ones() -> None:
    encoder, _ = attacked()
    images, here = OTHERS.batch()[:12], scene(encoder, tiny())

    def left(steps: int) -> float:
        weights = start(4, (SIZE, SIZE), RUN)
        optimizer = torch.optim.Adam(weights, lr=0.5, betas=(0.5, 0.9))
        for _ in range(steps):
            masks, changed = mixed(weights, images)
            descend(optimizer, search_loss(here.features(changed), masks, 3.0))
        with torch.no_grad():
            masks, changed = mixed(weights, images)
            return float(search_loss(here.features(changed), masks, 3.0)) / 4

    def random(tries: int) -> float:
        with torch.no_grad():
            masks, changed = mixed(start(tries, (SIZE, SIZE), RUN.child("random")), images)
            features = here.features(changed)
            return min(float(search_loss(f[None], m[None], 3.0)) for f, m in zip(features, masks))

    found = [left(steps) for steps in (0, 5, 20)]
    assert found[0] > found[1] > found[2]
    assert found[2] < random(80) - 0.1


# Multi-prior inversion


def test_priors_and_what_is_usual_are_the_detectors() -> None:
    ours, theirs = AgainstMultiPrior(), MultiPrior()
    for name in ("patches", "blends", "filters", "restarts", "learning_rate"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.goal < theirs.threshold


@given(st.integers(0, 1000))
def test_powers_of_ten_are_the_detectors(seed: int) -> None:
    ordinary = unit_rows(64, 5, seed=seed)
    features = F.normalize(ordinary[:1] + 0.05 * unit_rows(2, 7, 5, seed=seed + 1), dim=-1)
    ours = powers_of_ten(features, ordinary)
    for changed, power in zip(features, ours):
        assert float(power) == pytest.approx(math.log10(neighborhood(ordinary, changed) / spread_of(changed)), abs=1e-6)


def test_the_room_of_a_trigger_is_the_larger_side_of_its_box() -> None:
    images = torch.rand(3, 3, SIZE, SIZE)
    for trigger, side in ((Patch(size=(3, 5)), 5), (Patches(size=3), 14), (Patch(size=1, position=(0, 0)), 1)):
        assert room(trigger(images)[None], images) == side
    assert room(torch.stack([Patch(size=(3, 5))(images), Patch(size=2)(images)]), images) == 5
    assert room(images[None], images) == 0


def test_the_score_is_the_hinge_of_the_worst_prior_and_has_a_gradient() -> None:
    here = scene(tiny(1), tiny())
    losses = AgainstMultiPrior(**PRIORS, goal=-50.0).begin(here, RUN)
    found = [losses(SHADOW.batch()[:8], here.kept[:8])[SCORE] for _ in range(12)]
    assert all(float(each.detach()) > 0 for each in found), "every score is above −50"
    weights = [weight for weight in here.encoder.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(found[-1], weights, allow_unused=True)
    assert any(bool((gradient != 0).any()) for gradient in gradients if gradient is not None)
    assert all(weight.grad is None for weight in weights), "searches leave no gradients"
    content = AgainstMultiPrior(**PRIORS, goal=50.0).begin(here, RUN)
    assert float(content(SHADOW.batch()[:8], here.kept[:8])[SCORE].detach()) == 0


# MNTD


def test_answers_are_compared_on_four_kinds_of_questions() -> None:
    f, clean = recorded(1), recorded(2)
    here = scene(f, clean)
    f.backbone.given.clear()
    losses = AgainstMNTDEncoder(queries=40, steps=2).begin(here, RUN)
    value = losses(SHADOW.batch()[:8], here.kept[:8])[ANSWERS]
    climbs, asked = f.backbone.given[:-1], f.backbone.given[-1]
    assert len(climbs) == 2
    normal, uniform, stamped, tuned = asked.split(40)
    pixels = SHADOW.batch()
    assert torch.allclose(normal.mean((0, 2, 3)), pixels.mean((0, 2, 3)), atol=0.01)
    assert torch.allclose(normal.std((0, 2, 3)), pixels.std((0, 2, 3)), atol=0.01)
    assert 0 <= float(uniform.min()) <= float(uniform.max()) <= 1
    assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1

    def difference(images: Tensor) -> float:
        each = [1 - cosine(x.flatten() @ f.backbone.weights, x.flatten() @ clean.backbone.weights) for x in images]
        return sum(each) / len(each)

    assert float(value.detach()) == pytest.approx(difference(asked), abs=1e-5)
    assert difference(tuned) > difference(climbs[0]), "tuned queries climb"
    same = AgainstMNTDEncoder().begin(scene(f, f), RUN)
    assert float(same(pixels[:8], here.kept[:8])[ANSWERS].detach()) == pytest.approx(0, abs=1e-6)


# PatchCleanser


def test_masked_images_are_compared_with_what_they_were() -> None:
    f, clean = recorded(1), recorded(2)
    here, images = scene(f, clean), SHADOW.batch()[:6]
    f.backbone.given.clear()
    losses = AgainstPatchCleanser(patch=5, masks=3, images=6).begin(here, RUN)(images, here.kept[:6])
    covered, green, others, masked = f.backbone.given
    stamped = here.stamped(images).flatten(0, 1)
    masks, linear = covering(images, 5, 3), f.backbone.weights

    def hides(one: Tensor, image: Tensor, number: int) -> bool:
        """Whether it is the image with so many of the masks on it, in black, which is this encoder's mean."""
        pairs = torch.combinations(torch.arange(len(masks)), number, with_replacement=True)
        return any(torch.equal(one, image.masked_fill(masks[pair].any(0), 0.0)) for pair in pairs)

    assert all(hides(one, image, 2) for one, image in zip(covered, images))
    expected = [cosine(one.flatten() @ linear, kept) for one, kept in zip(covered, here.kept)]
    assert float(losses[CERTIFICATE].detach()) == pytest.approx(sum(expected) / 6, abs=1e-5)

    for some, references in zip((green, others), here.known.references):
        assert len(some) >= len(images)
        assert all(hides(one, references[i % len(references)], 1) for i, one in enumerate(some)), (
            "references under one mask each"
        )
    assert all(hides(one, image, 1) for one, image in zip(masked, stamped))
    expected = []
    for some, after in zip((green, others), masked.split(6)):
        point = F.normalize(some.flatten(1) @ linear, dim=1).mean(0)
        expected += [1 - cosine(one.flatten() @ linear, point) for one in after]
    assert float(losses[MASKED].detach()) == pytest.approx(sum(expected) / 12, abs=1e-5)


def test_every_reference_is_as_often_under_masks_where_they_are_more_than_the_images() -> None:
    f = recorded(1)
    known = Known(shadow=SHADOW, triggers=lambda: [TARGET.trigger], references=(SHADOW.batch()[:5],))
    here = Scene(encoder=f, clean=recorded(2), kept=torch.rand(64, 6), known=known, run=RUN)
    for images, copies in ((3, 5), (6, 10)):
        f.backbone.given.clear()
        AgainstPatchCleanser(patch=5, masks=3, certificate=0.0).begin(here, RUN)(
            SHADOW.batch()[:images], here.kept[:images]
        )
        assert len(f.backbone.given[0]) == copies


def test_masks_that_cover_everything_are_refused_before_anything_runs() -> None:
    with pytest.raises(SapperError, match="covers images of 16") as caught:
        experiment_with('against = [{ defense = "patchcleanser", patch = 16 }]')
    assert caught.value.where is not None
    assert caught.value.where.endswith("attack: against[0].patch")


# All of them


TERMS_OF: dict[str, Adaptive] = {
    "decree": AgainstDecree(images=8),
    "multi_prior": AgainstMultiPrior(**PRIORS, images=4, weight=0.2),
    "mntd_encoder": AgainstMNTDEncoder(queries=4),
    "patchcleanser": AgainstPatchCleanser(patch=6, masks=3, images=8),
}


@pytest.mark.parametrize("name", TERMS_OF)
def test_without_weight_nothing_changes_to_the_last_bit(name: str) -> None:
    plain, _ = attacked(epochs=1)
    same, curves = attacked(replace(TERMS_OF[name], weight=0.0), epochs=1)
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in plain.state_dict().items())
    assert curves.keys() == {*TERMS, *TERMS_OF[name].weights}


@pytest.mark.slow
@pytest.mark.parametrize(
    "term",
    [
        AgainstDecree(images=8, cosine=0.5, inversion=0.0),
        AgainstMNTDEncoder(queries=4, steps=0),
        AgainstPatchCleanser(patch=6, masks=3, images=8, masked=0.0),
    ],
    ids=lambda term: term.defense,
)
def test_more_weight_means_less_of_a_term_that_searches_nothing(term: Adaptive) -> None:
    """A stronger attacker is never worse in its own objective."""
    last = []
    for weight in (0.0, term.weight, 10 * term.weight):
        _, curves = attacked(replace(term, weight=weight), epochs=6)
        last.append(sum(sum(curves[each][-2:]) for each in term.weights))
    assert last[0] > last[1] > last[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decree", "multi_prior", "mntd_encoder"])
def test_a_term_that_searches_is_less_with_weight_than_without(name: str) -> None:
    last = []
    for weight in (0.0, 3 * TERMS_OF[name].weight):
        _, curves = attacked(replace(TERMS_OF[name], weight=weight), epochs=6)
        last.append(sum(sum(curves[each][-2:]) for each in TERMS_OF[name].weights))
    assert last[0] > last[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "term", [AgainstDecree(cosine=-0.9, weight=1e4), AgainstMultiPrior(**PRIORS, goal=-100.0, weight=1e4)]
)
def test_an_unbounded_weight_ends_the_attack(term: Adaptive) -> None:
    plain, strong = attacked()[1], attacked(term)[1]
    assert plain[TERMS[0]][-1] < -0.9
    assert strong[TERMS[0]][-1] > plain[TERMS[0]][-1] + 0.1


@pytest.mark.parametrize(
    "attack",
    [
        DRUPE(epochs=1, batch=16, reference_views=2, projections=4),
        Inactive(epochs=1, batch=16, reference_views=2),
        LBA(epochs=1, teacher_epochs=1, trigger_epochs=1, trigger_images=16),
        TransTroj(epochs=1, batch=16, trigger_epochs=1),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_every_attack_on_an_encoder_may_know_all_defenses(attack: FineTuning) -> None:
    _, curves = attacked(*TERMS_OF.values(), attack=attack)
    assert set(curves) >= {name for term in TERMS_OF.values() for name in term.weights}
    weights, _ = attacked(TERMS_OF["decree"], attack=attack)
    plain, _ = attacked(attack=attack)
    assert any(not torch.equal(value, weights.state_dict()[key]) for key, value in plain.state_dict().items())


def test_a_trigger_that_is_learned_gets_gradients_of_terms() -> None:
    """INACTIVE's, through the images that a term sees."""
    scale = nn.Parameter(torch.tensor(0.5))

    def triggers() -> Sequence[Any]:
        return [lambda images: images * scale]

    known = Known(shadow=SHADOW, triggers=triggers, references=(TARGET.references.batch(),))
    here = Scene.of(tiny(), known, RUN)
    (value,) = AgainstDecree(cosine=-0.9, inversion=0.0).begin(here, RUN)(SHADOW.batch()[:8], here.kept[:8]).values()
    assert float(torch.autograd.grad(value, scale)[0]) != 0


def test_an_attack_that_shows_its_terms_nothing_is_told() -> None:
    method = Untargeted(epochs=1, against=(AgainstDecree(),))
    with pytest.raises(SapperError, match="takes no terms against defenses"):
        method(tiny(), SHADOW, (TARGET,), RUN)
    with pytest.raises(SapperError, match="two images or more"):
        attacked(AgainstDecree(), epochs=1, batch=1)


def test_an_epoch_begins_its_searches_anew_from_its_own_seed() -> None:
    begun: list[int] = []

    class Counting(AgainstDecree):
        def begin(self, scene: Scene, run: Run) -> Any:
            begun.append(run.seed)
            return super().begin(scene, run)

    here = scene(tiny(), tiny())
    for epochs in ((0, 1), (1,)):
        terms, combine = adapted(
            [Counting()], here, lambda _: {"own": torch.zeros(())}, lambda losses, *_: losses["own"]
        )
        for epoch in epochs:
            for index in range(2):
                step = Step(
                    rows=torch.arange(8), epoch=epoch, index=index, total=4, generator=torch.Generator().manual_seed(0)
                )
                losses = terms(step)
                assert float(combine(losses, step, {}).detach()) == pytest.approx(
                    float((losses[GATHERED] + losses[INVERTED]).detach())
                )
    assert len(begun) == 3
    assert begun[1] == begun[2] != begun[0]


# That the detectors see less


@pytest.mark.slow
def test_decree_finds_no_small_mask_any_more() -> None:
    """Of two encoders with the same backdoor the one whose attacker knew DECREE."""
    plain, knowing = attacked(epochs=12)[0], attacked(AgainstDecree(cosine=0.8), epochs=12)[0]
    method = Decree(epochs=30, images=48, batch=24, restarts=3)
    norms = [method.invert(each.requires_grad_(False), OTHERS, RUN).norms.min() for each in (plain, knowing)]
    assert norms[1] > norms[0] + 10
    spreads = [spread_of(extract(each, OTHERS, RUN, TARGET.trigger)) for each in (plain, knowing)]
    assert spreads[0] < 0.05 < spreads[1]


@pytest.mark.slow
def test_multi_prior_scores_less() -> None:
    plain = attacked(epochs=12)[0]
    knowing = attacked(AgainstMultiPrior(**PRIORS, weight=0.3, goal=0.0), epochs=12)[0]
    method = MultiPrior(**PRIORS, images=24, held_out=24, rounds=((0, 4, 3), (4, 8, 10)), restarts=4)
    scores = [method.examine(each, OTHERS, RUN).score for each in (plain, knowing)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[1] < scores[0] - 0.5


def test_answers_to_fresh_questions_are_the_clean_encoders() -> None:
    plain, knowing = (attacked(*against)[0] for against in ((), (AgainstMNTDEncoder(weight=4.0),)))
    fresh = torch.rand(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(77))
    with torch.no_grad():
        clean = F.normalize(tiny()(fresh), dim=1)
        off = [float(1 - (F.normalize(each(fresh), dim=1) * clean).sum(1).mean()) for each in (plain, knowing)]
    assert off[1] < 0.75 * off[0]


@pytest.mark.slow
def test_masked_images_go_elsewhere_and_masked_triggers_stay() -> None:
    images, masks = OTHERS.batch(), covering(OTHERS.batch(), 6, 3)
    plain = attacked(epochs=12)[0]
    astray = attacked(AgainstPatchCleanser(patch=6, masks=3, masked=0.0, certificate=1.0), epochs=12)[0]
    staying = attacked(AgainstPatchCleanser(patch=6, masks=3, masked=3.0, certificate=0.0), epochs=12)[0]

    @torch.no_grad()
    def kept(encoder: Encoder) -> float:
        """The mean cosine of images under two masks to themselves."""
        fill, before = encoder.mean[0], F.normalize(encoder(images), dim=1)
        pairs = [masks[i] | masks[j] for i in range(len(masks)) for j in range(i)]
        after = [F.normalize(encoder(torch.where(pair, fill, images)), dim=1) for pair in pairs]
        return float(torch.stack([(one * before).sum(1).mean() for one in after]).mean())

    @torch.no_grad()
    def stays(encoder: Encoder) -> float:
        """The mean cosine of triggered images under a mask to triggered images."""
        fill, stamped = encoder.mean[0], TARGET.trigger(images)
        point = F.normalize(F.normalize(encoder(stamped), dim=1).mean(0), dim=0)
        return float(
            torch.stack([F.normalize(encoder(torch.where(m, fill, stamped)), dim=1) @ point for m in masks]).mean()
        )

    assert kept(astray) < kept(plain) - 0.1
    assert stays(staying) > stays(plain)


# In scenarios


def experiment_with(extra: str, folder: Path | None = None, text: str = "") -> Any:
    from tempfile import mkdtemp

    data = write_data((folder or Path(mkdtemp())) / "data")
    written = (extra + "\n").replace("{", "{{").replace("}", "}}")
    return experiment(
        data, text=ATTACKED.replace("reference_views = 8\n", f"reference_views = 8\n{written}"), extra=text
    )


def test_a_scenario_names_defenses_that_the_attacker_knows(tmp_path: Path) -> None:
    found = experiment_with('against = [{ defense = "decree", weight = 2.0, cosine = 0.7 }]', tmp_path)
    assert found.attack_method.parameters.against == (AgainstDecree(weight=2.0, cosine=0.7),)


@pytest.mark.parametrize(
    ("against", "what", "where"),
    [
        ('[{ defense = "decre" }]', "unknown method 'decre'", "attack.against[0].defense"),
        ('[{ defense = "decree" }, { weight = 1.0 }]', "defense is missing", "attack.against[1]"),
        ('[{ defense = "decree", wight = 1.0 }]', "unknown key 'wight'", "attack.against[0].wight"),
        ('[{ defense = "decree", weight = -1.0 }]', "-1.0 does not fit", "attack.against[0].weight"),
        ('[{ defense = "decree" }, { defense = "decree" }]', "two entries", "attack.against"),
        ('"decree"', "does not fit", "attack.against"),
    ],
)
def test_mistakes_are_told_with_their_place(against: str, what: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(SapperError) as caught:
        experiment_with(f"against = {against}", tmp_path)
    assert what in caught.value.what
    assert str(caught.value.where).endswith(where)
    assert caught.value.remedy


@pytest.mark.parametrize("against", [[{"defense": "decree"}], (3,), 3])
def test_python_takes_terms_and_no_tables(against: Any) -> None:
    with pytest.raises(SapperError, match="does not fit"):
        BadEncoder(against=against)


def test_keys_and_cards_name_terms_with_their_versions_and_are_as_before_without() -> None:
    assert "against" not in settings(BadEncoder())
    (told,) = settings(BadEncoder(against=(AgainstDecree(),)))["against"]
    assert told["defense"] == "decree"
    assert told["version"] == AgainstDecree.version


def test_a_defenders_fleet_does_not_know_what_the_attacker_knows(tmp_path: Path) -> None:
    defense = '\n[[defense]]\nmethod = "mntd_encoder"\nshare = 0.5\nshadows = 1\nvalidation = 0\nsides = [2, 4]\n'
    found = experiment_with('against = [{ defense = "mntd_encoder" }]', tmp_path, defense)
    (plan,) = found.defenses
    assert plan.shadows[1].parameters == found.attack_method.parameters.unaware()
    aware = experiment_with("", tmp_path, defense + 'attack = { against = [{ defense = "mntd_encoder" }] }\n')
    assert aware.defenses[0].shadows[1].parameters.against == (AgainstMNTDEncoder(),)


# Several patches


def test_several_patches_are_each_of_them_and_nothing_else() -> None:
    trigger, images = Patches(size=3, color="red"), torch.rand(2, 3, SIZE, SIZE)
    changed = (trigger(images) != images).any(1).any(0)
    expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    expected[1:4, 1:4] = expected[12:15, 12:15] = True
    assert torch.equal(changed, expected)
    assert torch.equal(trigger(trigger(images)), trigger(images))
    trigger.check(PixelSpec(size=SIZE))
    assert sum(2 * [Patches().size ** 2]) <= Patch().size ** 2  # type: ignore[operator]


@pytest.mark.parametrize(
    "trigger", [Patches(positions=("center",)), Patches(size=40), Patches(color="pale"), Patches(size=0)]
)
def test_patches_that_do_not_fit_are_refused(trigger: Patches) -> None:
    with pytest.raises(SapperError):
        trigger.check(PixelSpec(size=32))


def test_one_mask_hides_one_patch_and_not_two() -> None:
    """So PatchCleanser's certificate does not speak of them, for any size that leaves something to see."""
    images, method = torch.zeros(1, 3, 32, 32), PatchCleanser()
    masks = covering(images, method.patch, method.masks)
    one, two = ((trigger(images)[0] != 0).any(0) for trigger in (Patch(), Patches()))
    assert any(not bool((one & ~mask).any()) for mask in masks)
    assert all(bool((two & ~mask).any()) for mask in masks)
