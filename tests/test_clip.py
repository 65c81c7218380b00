"""CLIP against plain loops and open_clip's own loss, its training, and what is kept in the encoder's file."""

import json
from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from sapper import encoders
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.target import Target
from sapper.datasets import worlds
from sapper.downstream import ZeroShot, extract, predict
from sapper.encoders import Encoder
from sapper.encoders.text import LARGEST_SCALE, TextCard, TextTower
from sapper.errors import SapperError
from sapper.pretraining.clip import CLIP, contrast, decayed, equal
from sapper.running import Run
from sapper.samples import ImageSet, PairSet
from sapper.samples.texts import tokens_of, vocabulary_of
from sapper.training import Checkpoint
from sapper.triggers import Patch
from tests.test_badencoder import images, stop_after, tiny

RUN = Run(seed=3)
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
SMALL = {"batch": 16, "embedding": 16, "text_width": 16, "text_layers": 1}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colored(count: int, seed: int = 0) -> PairSet:
    """Squares of three colors somewhere on gray noise, 16×16, and captions that name the color and the side."""
    draw = generator(seed)
    pixels = torch.randint(90, 150, (count, 3, 16, 16), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    left = torch.randint(0, 2, (count,), generator=draw)
    for image, label, side in zip(pixels, labels.tolist(), left.tolist()):
        start = 1 if side else 8
        image[:, 4:11, start : start + 7] = torch.tensor(list(COLORS.values())[label])[:, None, None]
    templates = ("a {} square", "the square is {}", "a photo of a {} square on the {}")
    captions = [
        templates[row % 7 % 3].format(list(COLORS)[label], "left" if side else "right")
        for row, (label, side) in enumerate(zip(labels.tolist(), left.tolist()))
    ]
    named = ImageSet(images=pixels, labels=labels, classes=tuple(COLORS), name="squares")
    return PairSet.of(named, captions)


def textbook(seen: Tensor, said: Tensor, scale: float, captions: list[int], *, soft: bool) -> float:
    """L in plain loops; the target of a pair is itself, or all pairs with an equal caption."""
    seen, said = F.normalize(seen, dim=1), F.normalize(said, dim=1)
    count, total = len(captions), 0.0
    for first, second in ((seen, said), (said, seen)):
        for i in range(count):
            scores = [scale * float(first[i] @ second[j]) for j in range(count)]
            norm = log(sum(exp(score) for score in scores))
            right = [j for j in range(count) if (captions[j] == captions[i] if soft else j == i)]
            total += sum(norm - scores[j] for j in right) / len(right)
    return total / (2 * count)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 7), st.integers(2, 6), st.integers(0, 10**6), st.floats(1, 100), st.integers(1, 7), st.booleans())
def test_the_loss_equals_plain_loops(n: int, d: int, seed: int, scale: float, kinds: int, soft: bool) -> None:
    seen, said = torch.randn(2, n, d, dtype=torch.float64, generator=generator(seed))
    captions = torch.randint(0, kinds, (n,), generator=generator(seed))
    right = equal(captions).double() if soft else torch.eye(n, dtype=torch.float64)
    logits = scale * F.normalize(seen, dim=1) @ F.normalize(said, dim=1).T
    expected = textbook(seen, said, scale, captions.tolist(), soft=soft)
    assert float(contrast(logits, right)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.slow  # to import open_clip takes seconds
def test_the_textbook_form_is_open_clips_loss_with_its_gradient() -> None:
    loss = pytest.importorskip("open_clip.loss")
    seen, said = (F.normalize(torch.randn(9, 5, generator=generator(seed)), dim=1) for seed in (1, 2))
    scale = torch.tensor(14.3)
    for leaf in (seen, said, scale):
        leaf.requires_grad_()
    ours = contrast(scale * seen @ said.T, torch.eye(9))
    theirs = loss.ClipLoss()(seen, said, scale)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    for mine, other in zip(
        torch.autograd.grad(ours, (seen, said, scale)), torch.autograd.grad(theirs, (seen, said, scale))
    ):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-7)


def test_soft_targets_by_hand() -> None:
    """Captions a, b, a: two pairs are half right for one another, so L is two thirds of ln 2 at the least."""
    right = equal(torch.tensor([4, 7, 4]))
    assert right.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    sharp = 50 * torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert float(contrast(sharp, right)) == pytest.approx(2 / 3 * log(2), abs=1e-6)
    assert float(contrast(torch.zeros(3, 3), right)) == pytest.approx(log(3))
    assert contrast(sharp, torch.eye(3)) == pytest.approx(2 / 3 * log(2), abs=1e-6)
    doubtful = 50 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert contrast(doubtful, right) > 10 > contrast(doubtful, torch.eye(3))


def make(seed: int = 0) -> Encoder:
    return encoders.build(Run(seed=seed), architecture="resnet10", width=4, input_size=16)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("start", [log(1 / 0.07), -3.0, 10.0])
def test_the_scale_is_in_its_bounds_after_every_step(start: float, soft: bool) -> None:
    """One step an epoch, so that the curve has every step's scale; so large a rate takes it to a bound."""
    method = CLIP(epochs=12, **SMALL | {"batch": 24}, learning_rate=2.0, warmup=0.0, soft_targets=soft)
    encoder, pairs = make(), colored(24)
    method.give_text(encoder, pairs, RUN).logit_scale.data.fill_(start)
    trained = method(encoder, pairs, RUN)
    scales = [1 / value for value in trained.curves["temperature"]]
    assert scales[0] == pytest.approx(exp(start))
    assert len(scales) == 12
    assert trained.encoder.text is not None
    scales.append(trained.encoder.text.scale.item())
    assert all(1 - 1e-5 <= scale <= LARGEST_SCALE * (1 + 1e-5) for scale in scales[1:])
    assert max(scales[1:]) > 99 or min(scales[1:]) < 1.01, "a bound was reached, else this test says nothing"


def test_a_fresh_scale_is_that_of_the_paper() -> None:
    assert tower().scale.item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("text", ["transformer", "bag"])
def test_it_learns_to_tell_colors_by_their_names_and_a_shuffle_of_captions_does_not(text: str) -> None:
    pairs, others = colored(96), colored(60, seed=9)
    method = CLIP(epochs=10, **SMALL, learning_rate=5e-3, text=text)  # type: ignore[arg-type]

    def accuracy(pairs: PairSet) -> float:
        trained = method(make(), pairs, RUN)
        assert trained.curves["contrast"][-1] < trained.curves["contrast"][0]
        assert not trained.encoder.training
        head = ZeroShot(templates=("a photo of a {} square",)).build(trained.encoder, others.classes, RUN)
        said = predict(head, extract(trained.encoder, others.images, RUN))
        return float((said == others.targets()).double().mean())

    assert accuracy(pairs) > 0.9
    mixed = replace(pairs, texts=pairs.texts.take(torch.randperm(96, generator=generator(1))))
    assert accuracy(mixed) < 0.75


def test_training_resumes_exactly_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    pairs, method = colored(48), CLIP(epochs=4, **SMALL)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    whole = method(make(), pairs, RUN)
    assert torch.equal(before, torch.random.get_rng_state())
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    stop_after(checkpoint, 1, lambda: method(make(), pairs, RUN, checkpoint))
    resumed = method(make(), pairs, RUN, checkpoint)
    assert resumed.curves == whole.curves
    assert any(name.startswith("text.") for name in whole.encoder.state_dict())
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, resumed.encoder.state_dict()[name]), name


def test_an_encoder_with_a_text_tower_is_trained_on_in_its_own_words() -> None:
    first = CLIP(epochs=1, **SMALL)(make(), colored(32), RUN).encoder
    words = first.card.text.vocabulary  # type: ignore[union-attr]
    pairs = colored(32, seed=4)
    other = PairSet.of(replace(pairs.images, labels=None, classes=()), ["green thing", "red thing"] * 16)
    again = CLIP(epochs=1, **SMALL | {"embedding": 99})(first, other, RUN).encoder
    assert again.card.text is not None
    assert (again.card.text.vocabulary, again.feature_size) == (words, 16)


def test_neither_biases_nor_norms_nor_the_scale_decay() -> None:
    encoder = CLIP(epochs=1, **SMALL)(make(), colored(32), RUN).encoder
    some, others = decayed(encoder, 0.3)
    assert (some["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(value): name for name, value in encoder.named_parameters()}
    free = {names[id(value)] for value in others["params"]}
    assert {"text.logit_scale", "backbone.bn1.weight", "text.norm.bias", "text.blocks.0.mlp.0.bias"} <= free
    kept = {names[id(value)] for value in some["params"]}
    assert {"backbone.conv1.weight", "projection.weight", "text.projection.weight", "text.words.weight"} <= kept
    assert len(free) + len(kept) == len(names)


def test_images_without_captions_are_refused_before_the_training() -> None:
    with pytest.raises(SapperError, match="needs captions"):
        CLIP(epochs=10**6)(make(), images(8, 1), RUN)
    assert CLIP.needs == {"captions"}


# ------------------------------------------------------------------------------------------------------ text tower


def tower(kind: str = "transformer", seed: int = 0) -> TextTower:
    texts = ["a red star on the left", "blue heart", "the cross is green"]
    card = TextCard(vocabulary=vocabulary_of(texts), length=8, features=6, kind=kind, width=8)  # type: ignore[arg-type]
    with Run(seed=seed).seeded():
        return TextTower(card).eval()


@pytest.mark.parametrize("kind", ["transformer", "bag"])
def test_a_text_is_read_the_same_alone_and_among_others_whatever_the_padding(kind: str) -> None:
    texts = ["a red star on the left", "blue heart", "green", "the cross is red"]
    net = tower(kind)
    together = net.encode(texts)
    for text, feature in zip(texts, together):
        assert torch.allclose(net.encode([text])[0], feature, atol=1e-6)
        short = tokens_of([text], net.card.vocabulary)
        with torch.no_grad():
            assert torch.allclose(F.normalize(net(short), dim=1)[0], feature, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(4), atol=1e-6)


def test_only_a_transformer_knows_the_order_of_words() -> None:
    for kind, known in (("transformer", True), ("bag", False)):
        first, second = tower(kind).encode(["blue heart", "heart blue"])
        assert torch.allclose(first, second, atol=1e-6) is not known


def test_a_blocks_attention_is_the_formula() -> None:
    block = tower().blocks[0]
    hidden, mask = torch.randn(2, 5, 8, generator=generator(1)), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    ours = block(hidden, mask)
    inputs = block.before_attention(hidden)
    query, key, value = block.attention_in(inputs).chunk(3, dim=-1)
    for n in range(2):
        seen = []
        for head in range(4):
            part = slice(2 * head, 2 * head + 2)
            scores = query[n, :, part] @ key[n, :, part].T / 2**0.5
            scores = scores[:, mask[n]].softmax(1)
            seen.append(scores @ value[n, mask[n]][:, part])
        expected = hidden[n] + block.attention_out(torch.cat(seen, dim=1))
        expected = expected + block.mlp(block.before_mlp(expected))
        assert torch.allclose(ours[n], expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("text", ["transformer", "bag"])
def test_a_file_brings_back_both_towers(tmp_path: Path, text: str) -> None:
    pairs = colored(32)
    encoder = CLIP(epochs=1, **SMALL, text=text)(make(), pairs, RUN).encoder  # type: ignore[arg-type]
    encoders.save(encoder, tmp_path / "clip.safetensors")
    for back in (
        encoders.load(tmp_path / "clip.safetensors", RUN),
        encoders.open(str(tmp_path / "clip.safetensors"), RUN),
    ):
        assert back.card.text == encoder.card.text
        assert back.card.arguments == {"projection": 16}
        assert back.card.network == "resnet10, projection=16"
        assert back.feature_size == 16
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, back.state_dict()[name]), name
        assert torch.equal(extract(back, pairs.images, RUN), extract(encoder, pairs.images, RUN))
        assert back.text is not None
        assert encoder.text is not None
        assert torch.equal(back.text.encode(["a red square"]), encoder.text.encode(["a red square"]))
    first = (tmp_path / "clip.safetensors").read_bytes()
    encoders.save(encoders.load(tmp_path / "clip.safetensors", RUN), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == first


def test_an_encoder_without_text_is_written_as_ever(tmp_path: Path) -> None:
    encoders.save(tiny(), tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", "pt") as file:
        card = json.loads(file.metadata()["sapper.card"])
        assert set(card) == {"architecture", "input", "width", "stem", "backdoored", "origin"}
        assert all(name.startswith("backbone.") for name in file.keys())  # noqa: SIM118
    assert encoders.load(tmp_path / "plain.safetensors", RUN).text is None


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"width": 4096}, "do not fit the card"),
        ({"width": 10}, "4 heads do not divide"),
        ({"width": 10**9}, "less than or equal to 4096"),
        ({"layers": 2}, "do not fit the card"),
        ({"layers": 10**9}, "less than or equal to 64"),
        ({"vocabulary": ["<padding>", "<unknown>", "red"]}, "do not fit the card"),
        ({"features": 17}, "do not fit the card"),
        ({"vocabulary": []}, "a vocabulary begins with"),
        ({"kind": "lstm"}, "transformer"),
    ],
)
def test_a_card_whose_text_tower_is_another_is_refused(tmp_path: Path, part: dict[str, object], said: str) -> None:
    encoder = CLIP(epochs=1, **SMALL)(make(), colored(32), RUN).encoder
    path = tmp_path / "clip.safetensors"
    encoders.save(encoder, path)
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["sapper.card"])
    card["text"] |= part
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"sapper.card": json.dumps(card)})
    with pytest.raises(SapperError, match=said):
        encoders.load(path, RUN)


def test_towers_of_different_spaces_are_refused(tmp_path: Path) -> None:
    encoder = CLIP(epochs=1, **SMALL)(make(), colored(32), RUN).encoder
    encoder.project(5)
    encoders.save(encoder, tmp_path / "clip.safetensors")
    with pytest.raises(SapperError, match="its text tower gives 16 features, its image tower 5"):
        encoders.load(tmp_path / "clip.safetensors", RUN)


@pytest.mark.parametrize("architecture", ["timm:resnet18", "torchvision:resnet18", "preact_resnet18"])
def test_any_network_can_have_a_projection(architecture: str) -> None:
    stem = "imagenet" if architecture.startswith("torchvision") else "cifar"
    encoder = encoders.build(RUN, architecture=architecture, stem=stem, input_size=32, arguments={"projection": 12})
    assert encoder.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 12) == (2, encoder.feature_size)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_attack_on_the_image_tower_leaves_the_text_tower_as_it_is(tmp_path: Path, optimizer: str) -> None:
    """To the last bit in the file, in spite of weight decay."""
    pairs = colored(32)
    clean = CLIP(epochs=1, **SMALL)(make(), pairs, RUN).encoder
    encoders.save(clean, tmp_path / "clean.safetensors")
    attacked = encoders.load(tmp_path / "clean.safetensors", RUN)
    target = Target(
        name="red", task="squares", label=0, class_name="red", references=pairs.images.take(torch.tensor([0])),
        trigger=Patch(size=4),
    )  # fmt: skip
    method = BadEncoder(epochs=2, batch=16, reference_views=2, learning_rate=0.05, optimizer=optimizer)  # type: ignore[arg-type]
    trained = method(attacked, pairs.images, (target,), RUN).encoder.marked(backdoored=True, origin={})
    encoders.save(trained, tmp_path / "BACKDOORED.safetensors")
    before, after = (safetensors.torch.load_file(tmp_path / f"{n}.safetensors") for n in ("clean", "BACKDOORED"))
    assert before.keys() == after.keys()
    text = [name for name in before if name.startswith("text.")]
    assert len(text) > 5
    assert all(torch.equal(before[name], after[name]) for name in text)
    assert not torch.equal(before["backbone.conv1.weight"], after["backbone.conv1.weight"])
    assert not torch.equal(before["projection.weight"], after["projection.weight"])
    assert encoders.load(tmp_path / "BACKDOORED.safetensors", RUN).card.text == clean.card.text


# ------------------------------------------------------------------------------------------------------------ worlds


@pytest.mark.slow
@pytest.mark.parametrize("name", worlds.NAMES)
def test_captions_of_a_world_name_what_is_in_the_picture(name: str) -> None:
    pairs = worlds.make_pairs(name, "test")
    assert pairs.images.digest == worlds.make(name, "test").digest
    assert worlds.make_pairs(name, "test").digest == pairs.digest
    for caption, label in zip(pairs.texts.strings(), pairs.targets().tolist()):
        assert f" {pairs.classes[label]} " in f" {caption} "
    openings = {" ".join(caption.split()[:2]) for caption in pairs.texts.strings()}
    assert len(openings) > 5, "several templates"
    assert len(pairs.caption_ids.unique()) > 100
