"""Texts and pairs as sets: what holds for every set of strings."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapper.errors import SapperError
from sapper.samples import ImageSet, PairSet, PixelSpec, TextSet, TokenSpec, joined
from sapper.samples.texts import PADDING, UNKNOWN, tokens_of, vocabulary_of, words

RANDOM = settings(deadline=None, max_examples=60)
STRINGS = st.lists(st.text(alphabet="abc dé'.,1 ß中_", max_size=12), min_size=1, max_size=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts_of(strings: list[str], **rest: object) -> TextSet:
    return TextSet.of(strings, name="texts", **rest)  # type: ignore[arg-type]


def pairs_of(strings: list[str], seed: int = 0) -> PairSet:
    count = len(strings)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator(seed), dtype=torch.uint8)
    labels, groups = torch.arange(count) % 2, torch.arange(count) // 2
    images = ImageSet(images=pixels, labels=labels, classes=("even", "odd"), groups=groups, name="dots", split="train")
    return PairSet.of(images, strings)


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("A red-rimmed STAR, isn't it? (no_1)") == ["a", "red", "rimmed", "star", "isn't", "it", "no", "1"]
    assert words("... !") == []


def test_a_vocabulary_has_the_most_frequent_words_first_and_equal_ones_by_the_alphabet() -> None:
    assert vocabulary_of(["b a", "c b", "c b"]) == (PADDING, UNKNOWN, "b", "c", "a")
    assert vocabulary_of(["b a", "c b", "c b"], largest=2) == (PADDING, UNKNOWN, "b", "c")
    assert vocabulary_of(["z y x"]) == (PADDING, UNKNOWN, "x", "y", "z")


def test_tokens_are_filled_up_and_cut_off_and_unknown_words_are_one() -> None:
    tokens = tokens_of(["red star", "star", "blue star by night", "!"], (PADDING, UNKNOWN, "red", "star"), length=3)
    assert tokens.ids.tolist() == [[2, 3, 0], [3, 0, 0], [1, 3, 1], [1, 0, 0]]
    assert tokens.lengths.tolist() == [2, 1, 3, 1]
    assert tokens.mask.tolist() == [[True, True, False], [True, False, False], [True] * 3, [True, False, False]]
    assert len(tokens) == 4


@RANDOM
@given(STRINGS)
def test_strings_come_back_as_their_words(strings: list[str]) -> None:
    made = texts_of(strings)
    assert made.strings() == [" ".join(words(text)) or UNKNOWN for text in strings]
    assert len(made) == len(strings)


@RANDOM
@given(STRINGS, STRINGS)
def test_sets_of_other_words_are_joined_as_one_set_of_all_strings(first: list[str], second: list[str]) -> None:
    both = joined([texts_of(first), texts_of(second, length=20)])
    assert both.strings() == texts_of(first).strings() + texts_of(second).strings()
    kinds = both.distinct.tolist()
    for i, one in enumerate(both.strings()):
        for j, other in enumerate(both.strings()):
            assert (kinds[i] == kinds[j]) == (one == other)


@RANDOM
@given(STRINGS, st.integers(0, 99))
def test_what_is_taken_from_pairs_stays_together(strings: list[str], seed: int) -> None:
    strings = [f"{text} {number}" for number, text in enumerate(strings)]
    pairs = pairs_of(strings)
    rows = torch.randint(0, len(strings), (5,), generator=generator(seed))
    taken = pairs.take(rows)
    whole = pairs.texts.strings()
    for place, row in enumerate(rows.tolist()):
        image, tokens = taken.batch(torch.tensor([place]))
        assert torch.equal(image[0], pairs.images.images[row] / 255)
        assert taken.texts.strings()[place] == whole[row]
        assert torch.equal(tokens.ids[0], pairs.texts.ids[row])
    assert torch.equal(taken.targets(), pairs.targets()[rows])
    images, tokens = pairs.batch(rows)
    assert len(images) == len(tokens) == 5
    again, more = pairs.batch()
    assert torch.equal(again[rows], images)
    assert torch.equal(more.ids[rows], tokens.ids)


@RANDOM
@given(STRINGS, st.integers(0, 99))
def test_parts_of_pairs_make_up_the_whole(strings: list[str], seed: int) -> None:
    pairs = pairs_of([*strings, "one more", "and another", "and the last"])
    rest, held = pairs.held_out(0.4, generator(seed))
    both = joined([rest, held])
    assert sorted(both.texts.strings()) == sorted(pairs.texts.strings())
    assert not set(rest.groups.tolist()) & set(held.groups.tolist())  # type: ignore[union-attr]
    sample = pairs.sample(2, generator(seed))
    assert len(sample) == len(sample.images) == len(sample.texts) == 2
    assert len(pairs.without(torch.tensor([0]))) == len(pairs) - 1
    assert pairs.sample(1000, generator()) is pairs


def test_a_digest_tells_texts_images_and_labels_apart() -> None:
    pairs = pairs_of(["a star", "a heart", "a star"])
    same = pairs_of(["a star", "a heart", "a star"])
    assert pairs.digest == same.digest
    others = [
        pairs_of(["a star", "a heart", "a heart"]),
        pairs_of(["a star", "a heart", "a star"], seed=1),
        pairs_of(["a moon", "a heart", "a moon"]),
        replace(pairs, labels=torch.tensor([1, 1, 0])),
        replace(pairs, groups=None),
        replace(pairs, classes=("odd", "even")),
    ]
    assert len({pairs.digest, *(other.digest for other in others)}) == len(others) + 1
    assert (
        texts_of(["a b"]).digest != texts_of(["a b"], labels=torch.zeros(1, dtype=torch.int64), classes=("x",)).digest
    )


def test_equal_captions_have_equal_numbers() -> None:
    ids = pairs_of(["a star", "a heart", "A star!", "star a"]).caption_ids
    assert ids[0] == ids[2]
    assert len(ids.unique()) == 3


def test_texts_are_written_in_another_vocabulary() -> None:
    texts = texts_of(["red star", "blue star"])
    assert texts.written_in(texts.vocabulary) is texts
    other = texts.written_in((PADDING, UNKNOWN, "star", "blue"))
    assert other.strings() == [f"{UNKNOWN} star", "blue star"]
    assert other.lengths.tolist() == [2, 2]


def test_an_encoder_takes_its_side_and_says_what_does_not_fit() -> None:
    pairs = pairs_of(["a star", "a big heart"])
    vocabulary = len(pairs.texts.vocabulary)
    pairs.check(PixelSpec(size=4))
    pairs.check(TokenSpec(vocabulary=vocabulary, length=3))
    with pytest.raises(SapperError, match="4×4"):
        pairs.check(PixelSpec(size=8))
    with pytest.raises(SapperError, match="longest text has 3 words"):
        pairs.check(TokenSpec(vocabulary=vocabulary, length=2))
    with pytest.raises(SapperError, match="vocabulary has 6 words"):
        pairs.texts.check(TokenSpec(vocabulary=9, length=3))
    with pytest.raises(SapperError, match="these are texts"):
        pairs.texts.check(PixelSpec(size=4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": torch.zeros(2, 2)}, "int64"),
        ({"lengths": torch.tensor([2, 1, 1])}, "int64"),
        ({"lengths": torch.tensor([2, 0])}, "lengths run from 0"),
        ({"lengths": torch.tensor([2, 3])}, "lengths run from 2 to 3 of 2"),
        ({"lengths": torch.tensor([2, 2])}, "padding"),
        ({"ids": torch.tensor([[2, 9], [3, 0]])}, "an id is none"),
        ({"ids": torch.tensor([[0, 2], [3, 0]])}, "padding"),
        ({"vocabulary": ("red", "star", "by", "night")}, "begins with"),
        ({"vocabulary": (PADDING, UNKNOWN, "star", "star")}, "once"),
        ({"ids": torch.zeros(0, 2, dtype=torch.int64), "lengths": torch.zeros(0, dtype=torch.int64)}, "nothing"),
    ],
)
def test_texts_that_do_not_fit_together_are_refused(change: dict[str, object], said: str) -> None:
    texts = texts_of(["red star", "star"])
    with pytest.raises(SapperError, match=said):
        replace(texts, **change)  # type: ignore[arg-type]


def test_pairs_of_unequal_length_are_refused() -> None:
    pairs = pairs_of(["a", "b", "c"])
    with pytest.raises(SapperError, match="3 images and 2 texts"):
        replace(pairs, texts=texts_of(["a", "b"]))


def test_the_largest_batch_is_that_of_the_larger_side() -> None:
    pairs = pairs_of(["a", "b"])
    assert pairs.at_once() == min(pairs.images.at_once(), pairs.texts.at_once())
    assert pairs.texts.at_once(torch.device("meta")) == 16 * pairs.texts.at_once()
    device = torch.device("cpu")
    assert pairs.to(device).digest == pairs.digest
    assert torch.equal(pairs.texts.batch().to(device).ids, pairs.texts.ids)
