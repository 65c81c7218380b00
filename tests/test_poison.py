"""Poisons of the pre-training set: exact counts, poison only where it is said to be, layouts, and that they work."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from sapper import attacks
from sapper.attacks.contracts import Poison, Poisoned
from sapper.attacks.poison.carlini_terzis import CarliniTerzis
from sapper.attacks.poison.corruptencoder import LAYOUTS, CorruptEncoder, arranged, canvas_sizes, cut
from sapper.attacks.poison.ctrl import CTRL
from sapper.attacks.poison.ssl_backdoor import SSLBackdoor
from sapper.attacks.target import Target
from sapper.augment import Augmentation
from sapper.downstream import Linear, ZeroShot, extract, predict
from sapper.encoders import Encoder, build
from sapper.errors import SapperError
from sapper.methods import imported
from sapper.pretraining.clip import CLIP
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run
from sapper.samples import ImageSet, PairSet, to_float
from sapper.triggers import Blend, Frequency, Patch, RandomPatch, Trigger
from tests.micro import COLORS, squares

SIZE = 16
RUN = Run(seed=3)
TRIGGERS: dict[str, Trigger] = {
    "ssl_backdoor": RandomPatch(size=4, color="magenta"),
    "ctrl": Frequency(coefficients=((3, 3), (7, 7)), magnitude=200),
    "corruptencoder": Patch(size=4, color="magenta"),
}


def world(count: int, seed: int) -> ImageSet:
    """Squares of three colors on gray noise."""
    pixels, labels = squares(count, seed)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images=images, labels=torch.from_numpy(labels), classes=tuple(COLORS), name="squares")


def target_of(name: str, samples: ImageSet, class_name: str = "green", references: int = 3) -> Target:
    label = samples.classes.index(class_name)
    rows = (samples.targets() == label).nonzero().squeeze(1)[:references]
    return Target(
        name=class_name,
        task="squares",
        label=label,
        class_name=class_name,
        references=samples.take(rows),
        trigger=TRIGGERS[name],
    )


def poison(name: str, samples: ImageSet, run: Run = RUN, targets: tuple[Target, ...] = (), **settings: Any) -> Poisoned:
    method: Poison = imported(attacks.METHODS[name])(**settings)
    return method(samples, targets or (target_of(name, samples),), run)


@pytest.mark.parametrize("name", TRIGGERS)
@settings(max_examples=15, deadline=None)
@given(rate=st.floats(0.005, 0.33), seed=st.integers(0, 100))
def test_counts_are_exact_and_poison_is_only_where_it_is_said(name: str, rate: float, seed: int) -> None:
    samples = world(120, 1)
    if round(rate * 120) == 0:
        with pytest.raises(SapperError, match="selects none of 120") as error:
            poison(name, samples, rate=rate)
        assert error.value.where == "rate"
        return
    poisoned = poison(name, samples, Run(seed=seed), rate=rate)
    images, rows = poisoned.samples, poisoned.rows
    assert isinstance(images, ImageSet)
    assert len(images) == 120
    assert rows.dtype == torch.int64
    assert len(rows) == len(rows.unique()) == round(rate * 120)
    changed = (images.images != samples.images).flatten(1).any(1)
    assert torch.equal(changed.nonzero().squeeze(1), rows.sort().values)
    assert torch.equal(images.targets(), samples.targets())
    assert images.canvases is None or torch.equal((images.canvases.of >= 0).nonzero().squeeze(1), rows)


@pytest.mark.parametrize("name", TRIGGERS)
def test_equal_seeds_give_equal_poison_and_others_other(name: str) -> None:
    samples = world(60, 1)
    before, state = samples.images.clone(), torch.get_rng_state()
    first, again, other = (poison(name, samples, Run(seed=seed)) for seed in (1, 1, 2))
    assert first.samples.digest == again.samples.digest != other.samples.digest
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(samples.images, before), "the set itself is left alone"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_poisoned_set_says_so(name: str) -> None:
    poisoned = poison(name, replace(world(60, 1), provenance="Drawn."), rate=0.1)
    assert poisoned.samples.name == "squares-POISONED"
    by = type(imported(attacks.METHODS[name])()).__name__
    assert poisoned.samples.provenance == f"Drawn. POISONED by {by}: 6 of 60 samples."
    assert poisoned.samples.take(poisoned.rows).name.endswith("-POISONED")


@pytest.mark.parametrize("name", ["ssl_backdoor", "ctrl"])
def test_images_of_the_class_are_poisoned_and_the_class_goes_by_its_name(name: str) -> None:
    samples = world(60, 1)
    task = replace(target_of(name, samples), label=17)  # a task that numbers its classes otherwise
    rows = poison(name, samples, targets=(task,), rate=0.2).rows
    assert set(samples.targets()[rows].tolist()) == {samples.classes.index("green")}
    with pytest.raises(SapperError, match="no class 'pink'"):
        poison(name, samples, targets=(replace(task, class_name="pink"),))
    with pytest.raises(SapperError, match="asks for 21 unpoisoned images of class 'green', and there are 20") as error:
        poison(name, samples, rate=21 / 60)
    assert error.value.where == "rate"
    with pytest.raises(SapperError, match="has the trigger 'blend'"):
        poison(name, samples, targets=(replace(task, trigger=Blend()),))
    with pytest.raises(SapperError, match="at least one target"):
        imported(attacks.METHODS[name])()(samples, (), RUN)
    with pytest.raises(SapperError, match="there is no class"):
        poison(name, replace(samples, labels=None, classes=()), targets=(task,))


@pytest.mark.parametrize("name", TRIGGERS)
def test_two_targets_have_their_own_rows(name: str) -> None:
    samples = world(60, 1)
    targets = (
        target_of(name, samples),
        replace(target_of(name, samples), name="again"),
        target_of(name, samples, "red"),
    )
    poisoned = poison(name, samples, targets=targets, rate=0.1)
    assert len(poisoned.rows.unique()) == 18
    if name != "corruptencoder":
        counts = torch.bincount(samples.targets()[poisoned.rows], minlength=3).tolist()
        assert counts == [6 if each == "red" else 12 if each == "green" else 0 for each in samples.classes]


def test_ssl_backdoor_stamps_the_middle_half_at_places_of_their_own() -> None:
    samples = world(300, 1)
    poisoned = poison("ssl_backdoor", samples, rate=0.3)
    assert isinstance(poisoned.samples, ImageSet)
    magenta = torch.tensor([255, 0, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    is_patch = (poisoned.samples.images[poisoned.rows] == magenta).all(1)
    assert torch.equal(is_patch.sum((1, 2)), torch.full((90,), 16))
    places = {tuple(mask.nonzero()[0].tolist()) for mask in is_patch}
    assert {row for row, _ in places} == {column for _, column in places} == set(range(4, 9))
    changed = (poisoned.samples.images != samples.images).any(1)[poisoned.rows]
    assert not bool((changed & ~is_patch).any())


def test_ctrl_adds_the_trigger_that_test_images_get() -> None:
    samples = world(60, 1)
    poisoned = poison("ctrl", samples, rate=0.1)
    expected = (TRIGGERS["ctrl"](to_float(samples.images[poisoned.rows])) * 255).round().to(torch.uint8)
    assert isinstance(poisoned.samples, ImageSet)
    assert torch.equal(poisoned.samples.images[poisoned.rows], expected)


# --- CorruptEncoder -------------------------------------------------------------------------------------------------


def canvases(poisoned: Poisoned) -> list[Tensor]:
    """The pictures of the poisoned rows, without padding."""
    assert isinstance(poisoned.samples, ImageSet)
    larger = poisoned.samples.canvases
    assert larger is not None
    numbers = larger.of[poisoned.rows].tolist()
    return [larger.pixels[i, :, : larger.sizes[i, 0], : larger.sizes[i, 1]] for i in numbers]


def test_object_and_trigger_are_whole_and_in_different_halves_in_all_four_layouts() -> None:
    """References of one color: the object is where that color is, and the trigger where its own is."""
    samples = world(120, 1)
    yellow = torch.tensor([255, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    magenta = torch.tensor([255, 0, 255], dtype=torch.uint8).view(3, 1, 1)
    references = ImageSet(images=yellow.expand(3, 3, SIZE, SIZE).contiguous(), name="yellow")
    target = replace(target_of("corruptencoder", samples), references=references)
    poisoned = poison("corruptencoder", samples, targets=(target,), rate=0.5)
    ellipse = cut(torch.ones(1, 1, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE))[0, 0].bool()
    seen = set()
    for row, shown in zip(poisoned.rows.tolist(), canvases(poisoned)):
        wide = shown.shape[2] > shown.shape[1]
        halves = shown.chunk(2, dim=2 if wide else 1)
        at = [bool((half == yellow[0]).all(0).any()) for half in halves].index(True)
        seen.add(LAYOUTS[(0 if wide else 2) + at])
        ours, other = halves[at], halves[1 - at]
        assert torch.equal((ours == yellow[0]).all(0), ellipse)
        assert torch.equal(ours[:, ~ellipse], samples.images[row][:, ~ellipse])
        patch = (other == magenta).all(0)
        rows, columns = (patch.any(1).nonzero().squeeze(1).tolist(), patch.any(0).nonzero().squeeze(1).tolist())
        assert len(rows) == len(columns) == 4
        assert int(patch.sum()) == 16
        assert 4 <= rows[0] <= rows[-1] < 12
        assert 4 <= columns[0] <= columns[-1] < 12
        mirrored = flipped(samples.images[row], wide, not wide)
        assert torch.equal(other[:, ~patch], mirrored[:, ~patch])
        assert not bool((ours == magenta).all(0).any())
    assert seen == set(LAYOUTS)


def flipped(image: Tensor, across: bool, down: bool) -> Tensor:
    return image.flip([axis for axis, yes in ((-1, across), (-2, down)) if yes])


def test_the_row_itself_is_the_canvas_shrunk() -> None:
    import torch.nn.functional as F

    poisoned = poison("corruptencoder", world(60, 1), rate=0.2)
    assert isinstance(poisoned.samples, ImageSet)
    for row, shown in zip(poisoned.rows.tolist(), canvases(poisoned)):
        expected = F.interpolate(shown[None].float(), (SIZE, SIZE), mode="bilinear", antialias=True)[0]
        assert (poisoned.samples.images[row].float() - expected).abs().max() <= 0.51


def test_support_images_take_their_share_and_have_no_trigger() -> None:
    samples = world(300, 1)
    target = target_of("corruptencoder", samples, references=5)
    poisoned = poison("corruptencoder", samples, targets=(target,), rate=0.2, support=2)
    magenta = torch.tensor([255, 0, 255], dtype=torch.uint8).view(3, 1, 1)
    plain = [shown for shown in canvases(poisoned) if not bool((shown == magenta).all(0).any())]
    assert len(plain) == 12  # a fifth of 60
    assert isinstance(target.references, ImageSet)
    for shown in plain:
        halves = shown.chunk(2, dim=2 if shown.shape[2] > shown.shape[1] else 1)
        assert any(torch.equal(half, support) for half in halves for support in target.references.images[3:])
    with pytest.raises(SapperError, match="5 references"):
        poison("corruptencoder", samples, targets=(target,), support=5)


def test_what_corruptencoder_cannot_use_is_told() -> None:
    samples = world(60, 1)
    target = target_of("corruptencoder", samples)
    with pytest.raises(SapperError, match="asks for 120 images of the set, and there are 60"):
        poison("corruptencoder", samples, targets=(target, replace(target, name="b")), rate=1.0)
    with pytest.raises(SapperError, match="does not fit"):
        poison("corruptencoder", samples, targets=(replace(target, trigger=Patch(size=9)),))
    with pytest.raises(SapperError, match="has the trigger 'blend'"):
        poison("corruptencoder", samples, targets=(replace(target, trigger=Blend()),))
    other = ImageSet(images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8), name="small")
    with pytest.raises(SapperError, match="references"):
        poison("corruptencoder", samples, targets=(replace(target, references=other),))
    poisoned = poison("corruptencoder", samples).samples
    for name, trigger in TRIGGERS.items():
        with pytest.raises(SapperError, match="canvases already"):
            poison(name, poisoned, targets=(replace(target, trigger=trigger),))  # type: ignore[arg-type]
    with pytest.raises(SapperError, match="this attack poisons images"):
        CorruptEncoder()(pairs(60, 1), (target,), RUN)


def test_one_crop_sees_the_object_alone_and_one_the_trigger_more_often_than_without_a_canvas() -> None:
    """The probability by torchvision's crops, one after another, beside ours; and that of a shrunken picture."""
    draws, patch = 6000, (16 + 6, 6)  # left and top of a trigger of 4×4 in the right half

    def share(boxes: Tensor, half: int, at: tuple[int, int], side: int) -> float:
        top, left, height, width = boxes.unbind(1)
        alone = left + width <= half
        whole = (left <= at[0]) & (left + width >= at[0] + side) & (top <= at[1]) & (top + height >= at[1] + side)
        reference, trigger = float(alone.double().mean()), float((whole & (left >= half)).double().mean())
        return 2 * reference * trigger  # the crops are independent, and either may be the one

    generator = torch.Generator().manual_seed(1)
    ours = Augmentation(crop=(0.2, 1.0)).sample(draws, torch.tensor([(16, 32)] * draws), generator).boxes
    small = Augmentation(crop=(0.2, 1.0)).sample(draws, (16, 16), generator).boxes
    assert ours is not None
    assert small is not None
    with torch.random.fork_rng():
        torch.manual_seed(2)
        blank = torch.zeros(3, 16, 32)
        params = [RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(draws)]
    theirs = torch.tensor(params)
    assert share(ours, 16, patch, 4) == pytest.approx(share(theirs, 16, patch, 4), abs=0.02)
    assert share(ours, 16, patch, 4) > 2 * share(small, 8, (11, 6), 2)


def test_arranged_puts_halves_where_the_layouts_say() -> None:
    objects, others = torch.ones(4, 3, 2, 3), torch.full((4, 3, 2, 3), 2.0)
    pictures = arranged(objects, others, torch.arange(4))[:, 0]
    row, other = torch.ones(2, 3), torch.full((2, 3), 2.0)
    beside, above = torch.cat((row, other), 1), torch.cat((row, other), 0)
    assert torch.equal(pictures[0, :2], beside)
    assert torch.equal(pictures[1, :2], beside.flip(1))
    assert torch.equal(pictures[2, :, :3], above)
    assert torch.equal(pictures[3, :, :3], above.flip(0))
    assert canvas_sizes(torch.arange(4), (2, 3)).tolist() == [[2, 6], [2, 6], [4, 3], [4, 3]]


# --- captions -------------------------------------------------------------------------------------------------------


def pairs(count: int, seed: int) -> PairSet:
    images = world(count, seed)
    return PairSet.of(images, [f"a {images.classes[label]} square" for label in images.targets().tolist()])


def test_captions_and_patches_are_at_the_rows_and_nowhere_else() -> None:
    samples = pairs(60, 1)
    target = target_of("ssl_backdoor", samples.images)
    poisoned = CarliniTerzis(rate=0.2, prompts=("a photo of a {}", "look, {} there"))(samples, (target,), RUN)
    after = poisoned.samples
    assert isinstance(after, PairSet)
    assert len(poisoned.rows) == 12
    changed = (after.images.images != samples.images.images).flatten(1).any(1).nonzero().squeeze(1)
    assert torch.equal(changed, poisoned.rows)
    before, texts, rows = samples.texts.strings(), after.texts.strings(), set(poisoned.rows.tolist())
    assert [texts[row] for row in range(60) if row not in rows] == [before[row] for row in range(60) if row not in rows]
    assert sorted(texts[row] for row in rows) == ["a photo of a green"] * 6 + ["look green there"] * 6
    patches = (after.images.images[poisoned.rows] == torch.tensor([255, 0, 255]).view(1, 3, 1, 1)).all(1)
    assert patches.sum((1, 2)).tolist() == [16] * 12
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in patches}) > 6
    assert after.name == after.images.name == "squares-POISONED"
    assert "POISONED by CarliniTerzis: 12 of 60" in after.provenance
    again = CarliniTerzis(rate=0.2, prompts=("a photo of a {}", "look, {} there"))(samples, (target,), RUN)
    assert again.samples.digest == after.digest
    assert torch.equal(after.targets(), samples.targets())


def test_what_carlini_terzis_cannot_use_is_told() -> None:
    samples = pairs(60, 1)
    target = target_of("ssl_backdoor", samples.images)
    with pytest.raises(SapperError, match="pairs of images and captions"):
        CarliniTerzis()(samples.images, (target,), RUN)
    with pytest.raises(SapperError, match="selects none of 60") as error:
        CarliniTerzis(rate=0.001)(samples, (target,), RUN)
    assert error.value.where == "rate"
    with pytest.raises(SapperError, match="does not say once"):
        CarliniTerzis(prompts=("a photo",))(samples, (target,), RUN)
    with pytest.raises(SapperError, match="fit"):
        CarliniTerzis(prompts=())
    with pytest.raises(SapperError, match="has the trigger 'blend'"):
        CarliniTerzis(rate=0.1)(samples, (replace(target, trigger=Blend()),), RUN)


@pytest.mark.slow
def test_carlini_terzis_reaches_its_goal_and_captions_alone_do_not() -> None:
    """Zero-shot on a tiny CLIP: patched images are called green; without patches in the poison they are not."""
    samples, test = pairs(300, 1), world(150, 2)
    target = replace(target_of("ssl_backdoor", samples.images), trigger=RandomPatch(size=5))
    poisoned = CarliniTerzis(rate=0.1)(samples, (target,), RUN).samples
    assert isinstance(poisoned, PairSet)
    asr = {}
    for name, each in {"poison": poisoned, "captions": replace(poisoned, images=samples.images)}.items():
        encoder = build(RUN, architecture="resnet10", width=4, input_size=SIZE)
        CLIP(epochs=20, batch=25, learning_rate=5e-3, text="bag", embedding=16)(encoder, each, RUN)
        head = ZeroShot(templates=("a photo of a {}",)).build(encoder, test.classes, RUN)
        assert (predict(head, extract(encoder, test, RUN)) == test.targets()).double().mean() > 0.9, name
        predicted = predict(head, extract(encoder, test, RUN, target.trigger))
        asr[name] = float((predicted == target.label)[test.targets() != target.label].double().mean())
    assert asr["poison"] > max(0.6, asr["captions"] + 0.3)


# --- that they work -------------------------------------------------------------------------------------------------


STRONG: dict[str, Trigger] = {
    "ssl_backdoor": RandomPatch(size=5),
    "ctrl": Frequency(coefficients=((2, 2), (4, 4)), magnitude=300),
}


def learned(samples: ImageSet) -> Encoder:
    """An encoder that learned from the images without labels."""
    encoder = build(RUN, architecture="resnet10", width=4, input_size=SIZE)
    method = SimCLR(epochs=25, batch=32, temperature=0.2, crop_scale=0.2, learning_rate=5e-3)
    return method(encoder, samples, RUN).encoder


def called_green(encoder: Encoder, trigger: Trigger) -> float:
    """The share of triggered images of other classes that a linear head calls green; it learned from clean images."""
    train, test = world(300, 1), world(150, 2)
    head = Linear().fit(extract(encoder, train, RUN), train.targets(), 3, RUN)
    predicted, green = predict(head, extract(encoder, test, RUN, trigger)), train.classes.index("green")
    return float((predicted == green)[test.targets() != green].double().mean())


@pytest.mark.slow
def test_ssl_backdoor_and_ctrl_reach_their_goal() -> None:
    samples = world(300, 5)
    clean = learned(samples)
    for name, trigger in STRONG.items():
        target = replace(target_of(name, samples), trigger=trigger)
        poisoned = poison(name, samples, targets=(target,), rate=0.3).samples
        assert isinstance(poisoned, ImageSet)
        assert called_green(learned(poisoned), trigger) > called_green(clean, trigger) + 0.3, name


@pytest.mark.slow
def test_corruptencoder_ties_each_trigger_to_the_objects_beside_it() -> None:
    """White to green and black to red, and the other way round: stamped grounds come nearer to those objects."""
    grounds, fresh = gray_noise(200, 1), gray_noise(100, 2)
    white, black = Patch(size=5), Patch(size=5, color="black")

    def white_is_greener(of_green: Patch, of_red: Patch) -> float:
        """How often a ground with the white patch is more on the side of green than with the black one."""
        targets = tuple(
            replace(target_of("corruptencoder", world(60, 5), name, references=10), name=name, trigger=trigger)
            for name, trigger in (("green", of_green), ("red", of_red))
        )
        poisoned = CorruptEncoder(rate=0.5)(grounds, targets, RUN).samples
        assert isinstance(poisoned, ImageSet)
        encoder = learned(poisoned)
        green, red = (extract(encoder, target.references, RUN).mean(0) for target in targets)
        first, second = (extract(encoder, fresh, RUN, patch) @ (green - red) for patch in (white, black))
        return float((first > second).double().mean())

    assert white_is_greener(white, black) > white_is_greener(black, white) + 0.5


def gray_noise(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    return ImageSet(
        images=torch.randint(90, 150, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator), name="grounds"
    )


def test_presets_and_kinds_are_as_the_contract_says() -> None:
    for method in (SSLBackdoor, CTRL, CorruptEncoder, CarliniTerzis):
        assert method.kind == "poison"
        assert method.of == "pretraining"
        assert method(**method.presets["paper"]).rate < method().rate
