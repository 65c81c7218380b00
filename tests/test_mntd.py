"""MNTD: what jumbo learning draws, meta-classifiers against textbook ones, and that the whole tells shadows apart."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sapper.defenses import meta
from sapper.defenses.defender import Defender
from sapper.defenses.judge.mntd_classifier import MNTDClassifier, network
from sapper.downstream import MLP, Classifier
from sapper.errors import SapperError
from sapper.metrics import auc
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers import jumbo

# Jumbo learning

DRAWN = [jumbo.draw((8, 7), 4, torch.Generator().manual_seed(seed)) for seed in range(3000)]


def box(attack: jumbo.Jumbo) -> tuple[int, int, int, int]:
    rows, columns = attack.mask.any(1).nonzero(), attack.mask.any(0).nonzero()
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left


def test_every_side_is_drawn_equally_often_and_every_place_occurs() -> None:
    boxes = [box(attack) for attack in DRAWN]
    sides = [(tall, wide) for *_, tall, wide in boxes]
    for kind in [(2, 2), (3, 3), (4, 4), (5, 5), (8, 7)]:
        assert sides.count(kind) == pytest.approx(len(DRAWN) / 5, rel=0.15)
    for side in jumbo.SIDES:
        places = {(top, left) for top, left, tall, _ in boxes if tall == side}
        assert places == {(top, left) for top in range(8 - side + 1) for left in range(7 - side + 1)}


def test_strength_rate_and_target_are_in_their_ranges() -> None:
    small = [attack for attack in DRAWN if not attack.mask.all()]
    alphas = {attack.alpha for attack in small}
    assert all(0.2 <= alpha <= 0.5 or alpha == 1 for alpha in alphas)
    assert sum(attack.alpha == 1 for attack in small) / len(small) == pytest.approx(0.25, abs=0.03)
    assert all(0.05 <= attack.alpha <= 0.2 for attack in DRAWN if attack.mask.all())
    assert all(0.05 <= attack.rate <= 0.5 for attack in DRAWN)
    assert {attack.target for attack in DRAWN} == {0, 1, 2, 3}
    assert all(0 <= float(attack.pattern.min()) <= float(attack.pattern.max()) <= 1 for attack in DRAWN)
    assert np.mean([float((attack.pattern % 1 == 0).float().mean()) for attack in DRAWN]) == pytest.approx(
        2 * (0.5 - np.log(3) / 4), abs=0.02
    ), "the share of pure colors: the mean of 2e / (1 + 2e)"


@given(st.integers(0, 10**6))
def test_a_stamp_changes_nothing_but_its_square(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    attack = jumbo.draw((8, 9), 3, generator)
    images = torch.rand(3, 3, 8, 9, generator=generator)
    stamped = attack(images)
    expected = torch.where(attack.mask, (1 - attack.alpha) * images + attack.alpha * attack.pattern, images)
    torch.testing.assert_close(stamped, expected)
    assert torch.equal(stamped[..., ~attack.mask], images[..., ~attack.mask])


# Meta-classifiers

QUERIES, CLASSES, HIDDEN = 3, 4, 5
SETTINGS = meta.Training(epochs=2, learning_rate=0.01, tune_queries=True, one_class=False)


def start(runs: list[Run]) -> meta.MetaClassifiers:
    mean, deviation = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(0.2)
    return meta.MetaClassifiers.draw(runs, QUERIES, mean, deviation, CLASSES, HIDDEN)


def models(count: int) -> list[meta.Model]:
    """Fixed nonlinear functions of a query, every one another."""
    weights = torch.randn(count, 18, CLASSES, generator=torch.Generator().manual_seed(1))
    return [lambda x, w=weight: torch.tanh(x.flatten(1) @ w) for weight in weights]  # type: ignore[misc]


def fleet(count: int) -> meta.Fleet:
    return meta.Fleet(models(count), torch.arange(count) % 2 == 1)


def trunk(queries: Tensor) -> Tensor:
    return queries.square()


class Textbook(nn.Module):
    """One meta-classifier as published."""

    def __init__(self, metas: meta.MetaClassifiers, which: int):
        super().__init__()
        self.queries = nn.Parameter(metas.queries[which].detach().clone())
        self.fc, self.output = nn.Linear(QUERIES * CLASSES, HIDDEN), nn.Linear(HIDDEN, 1)
        for value, published in (
            (self.fc.weight, metas.first[which].T),
            (self.fc.bias, metas.bias[which]),
            (self.output.weight, metas.second[which].unsqueeze(0)),
            (self.output.bias, metas.offset[which].view(1)),
        ):
            value.data.copy_(published.detach())

    def forward(self, model: meta.Model) -> Tensor:
        return self.output(F.relu(self.fc(model(trunk(self.queries)).flatten()))).squeeze()


@pytest.mark.parametrize("tuned", [True, False])
def test_each_of_several_becomes_what_it_would_be_alone_as_published(tuned: bool) -> None:
    runs = [Run(seed=5).child(f"meta {i}") for i in range(3)]
    shadows, how = fleet(8), replace(SETTINGS, tune_queries=tuned)
    metas = start(runs)
    books = [Textbook(metas, which) for which in range(3)]
    meta.train(metas, trunk, shadows, None, how, runs)
    for which, (book, run) in enumerate(zip(books, runs)):
        book.queries.requires_grad_(tuned)
        optimizer = torch.optim.Adam([p for p in book.parameters() if p.requires_grad], lr=0.01)
        for epoch in range(2):
            for i in torch.randperm(8, generator=run.child(f"epoch {epoch}").generator()).tolist():
                loss = F.binary_cross_entropy_with_logits(book(shadows.models[i]), shadows.backdoored[i].float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        torch.testing.assert_close(metas.queries[which], book.queries, rtol=1e-4, atol=1e-5)
        asked = meta.ask(metas, trunk, shadows.models, one_class=False)[:, which]
        torch.testing.assert_close(asked, torch.stack([book(m) for m in shadows.models]), rtol=1e-4, atol=1e-5)


def areas_on(held: meta.Fleet, metas: meta.MetaClassifiers) -> Tensor:
    scores = meta.ask(metas, trunk, held.models, one_class=False)
    return torch.tensor([auc(each[held.backdoored], each[~held.backdoored]) for each in scores.T])


def test_the_epoch_of_the_best_validation_auc_is_kept() -> None:
    runs = [Run(seed=7).child(f"meta {i}") for i in range(4)]
    shadows, validation = fleet(10), meta.Fleet(models(30)[10:], torch.arange(20) % 3 == 0)
    areas = []
    for epochs in range(1, 6):
        metas = start(runs)
        meta.train(metas, trunk, shadows, None, replace(SETTINGS, epochs=epochs), runs)
        scores = meta.ask(metas, trunk, validation.models, one_class=False)
        areas.append(
            torch.tensor([auc(each[validation.backdoored], each[~validation.backdoored]) for each in scores.T])
        )
    chosen = start(runs)
    learned = meta.train(chosen, trunk, shadows, validation, replace(SETTINGS, epochs=5), runs)
    assert torch.equal(areas_on(validation, chosen), torch.stack(areas).amax(0))
    assert learned["AUC on others"] == areas_on(validation, chosen).tolist()
    assert learned["AUC on its own shadows"] == areas_on(shadows, chosen).tolist()
    assert len({int(column.argmax()) for column in torch.stack(areas).T}) > 1, "else this says nothing"


def test_one_class_is_its_formula() -> None:
    runs = [Run(seed=9).child(f"meta {i}") for i in range(2)]
    metas = start(runs)
    metas.radius = torch.tensor([0.4, -0.3])
    answers = torch.randn(2, QUERIES * CLASSES, generator=torch.Generator().manual_seed(3))
    expected = 0.0
    for i in range(2):
        w, big, b = (value[i].detach().numpy() for value in (metas.second, metas.first, metas.bias))
        s = float(w @ np.maximum(answers[i].numpy() @ big + b, 0))
        r = float(metas.radius[i])
        expected += 0.5 * float((w**2).sum() + (big**2).sum() + (b**2).sum()) + max(0.0, r - s) / 0.1 - r
        assert float(metas.activity(answers)[i].detach()) == pytest.approx(s, rel=1e-4)
        assert float(metas.scores(answers, one_class=True)[i].detach()) == pytest.approx(r - s, rel=1e-4)
    assert float(meta.one_class_loss(metas, metas.activity(answers)).detach()) == pytest.approx(expected, rel=1e-4)


def test_one_class_flags_about_its_share_of_what_it_learned_from() -> None:
    runs = [Run(seed=9).child(f"meta {i}") for i in range(4)]
    metas, clean = start(runs), meta.Fleet(models(60), torch.zeros(60, dtype=torch.bool))
    meta.train(metas, trunk, clean, None, replace(SETTINGS, one_class=True, epochs=4, learning_rate=1e-3), runs)
    flagged = (meta.ask(metas, trunk, clean.models, one_class=True) > 0).float().mean()
    assert 0.01 < float(flagged) < 0.3


# The whole

SIDE, TASKS = 8, 4
TEMPLATES = torch.randn(TASKS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)).sign()


class Pixels(nn.Module):
    """Stands in for an encoder: its features are the pixels."""

    mean = torch.zeros(1, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) - 0.5


def pictures(count: int, seed: int) -> ImageSet:
    noise = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % TASKS
    images = (0.5 + 0.15 * TEMPLATES[labels] + 0.15 * noise).clamp(0, 1)
    return ImageSet(
        images=(255 * images).to(torch.uint8), labels=labels, classes=tuple("abcd"), name="templates", split="train"
    )


def defender(count: int = 120) -> Defender:
    head = MLP(epochs=30, learning_rate=1e-3, hidden=(64, 32))
    return Defender.of(Pixels(), head, pictures(count, seed=0), Run())  # type: ignore[arg-type]


QUICK = MNTDClassifier(shadows=16, validation=6, share=0.5, shadow_epochs=30, meta_classifiers=3, epochs=12)


def made(method: MNTDClassifier, owner: Defender, seed: int) -> tuple[meta.Fleet, meta.Fleet | None]:
    return method.fleets(owner, method._sample(owner, Run(seed=seed)), Run(seed=seed))


def subjects(owner: Defender, method: MNTDClassifier, count: int) -> list[Classifier]:
    """Clean and jumbo-backdoored classifiers of another seed than the shadows."""
    others, _ = made(replace(method, shadows=count, validation=0), owner, 99)
    if method.shadows_of == "cnn":
        return others.models  # type: ignore[return-value]
    return [Classifier(owner.encoder, head) for head in others.models]  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("shadows_of", ["heads", "cnn"])
def test_jumbo_backdoors_that_it_was_trained_for_are_told_apart(shadows_of: Literal["heads", "cnn"]) -> None:
    owner = defender()
    method = replace(QUICK, shadows_of=shadows_of, share=1.0, shadows=48, shadow_epochs=40, epochs=10)
    verdicts = method.judge(subjects(owner, method, 10), owner, Run(seed=3))
    scores = torch.tensor([verdict.score for verdict in verdicts])
    assert auc(scores[10:], scores[:10]) >= 0.9
    for verdict in verdicts:
        assert len(verdict.evidence["scores"]) == method.meta_classifiers
        assert verdict.score == pytest.approx(np.mean(verdict.evidence["scores"]), abs=1e-5)
        assert verdict.flagged == (verdict.score > 0)
        assert verdict.evidence["shadows"] == 2 * method.shadows


def test_scoring_twice_gives_equal_scores() -> None:
    owner, method = defender(), replace(QUICK, shadows=3, validation=1, shadow_epochs=2, epochs=1)
    judged = subjects(owner, method, 2)
    judged[0].train()
    first, second = (method.judge(judged, owner, Run(seed=3)) for _ in range(2))
    assert [verdict.score for verdict in first] == [verdict.score for verdict in second]


@pytest.mark.parametrize("shadows_of", ["heads", "cnn"])
def test_one_class_learns_from_clean_shadows_alone(shadows_of: Literal["heads", "cnn"]) -> None:
    owner = defender()
    method = replace(QUICK, one_class=True, shadows_of=shadows_of, shadow_epochs=2, epochs=1)
    shadows, validation = made(method, owner, 1)
    assert validation is None
    assert len(shadows.models) == 16
    assert not shadows.backdoored.any()
    assert len(method.judge(subjects(owner, QUICK, 1), owner, Run())) == 2


def test_a_shadow_does_not_depend_on_how_many_there_are() -> None:
    owner = defender()
    few, many = (made(replace(QUICK, shadow_epochs=2, shadows=count, validation=0), owner, 1)[0] for count in (2, 4))
    for i, j in ((0, 0), (1, 1), (2, 4), (3, 5)):
        ours, theirs = few.models[i].state_dict(), many.models[j].state_dict()  # type: ignore[attr-defined]
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Watched(Pixels):
    """Keeps the images that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return super().forward(images)


def test_poison_is_added_and_nothing_is_taken_away() -> None:
    """A head first takes off the mean of all features that it learned from: the clean ones', or these and the poison's.

    The poison's are of one class: it learns to answer that.
    """
    watched, owner = Watched(), defender()
    owner = replace(owner, encoder=watched)  # type: ignore[arg-type]
    shadows, _ = made(replace(QUICK, shadows=3, validation=0, shadow_batch=32, shadow_epochs=60), owner, 1)
    clean, *poisons = (F.normalize(watched(images), dim=1) for images in tuple(watched.shown))
    assert len(clean) == 60
    assert len(poisons) == 3
    means = [head[0].mean for head in shadows.models]  # type: ignore[index]
    for mean in means[:3]:
        torch.testing.assert_close(mean, clean.mean(0))
    for head, mean, poison in zip(shadows.models[3:], means[3:], poisons):
        assert 0.05 * 60 - 1 <= len(poison) <= 0.5 * 60
        torch.testing.assert_close(mean, torch.cat((clean, poison)).mean(0))
        answers = head(poison).argmax(1)
        assert float((answers == answers.mode().values).float().mean()) > 0.8


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_defenders_share_has_no_image_twice(seed: int) -> None:
    owner = defender(40)
    sample = QUICK._sample(owner, Run(seed=seed))
    assert len(sample) == 20
    assert len({image.numpy().tobytes() for image in sample.images}) == 20


def test_a_share_smaller_than_the_number_of_classes_is_refused() -> None:
    with pytest.raises(SapperError, match="are 1, for 4 classes"):
        replace(QUICK, share=0.02).judge([], defender(40), Run())


def test_the_network_has_the_published_size() -> None:
    assert sum(p.numel() for p in network(10, (32, 32)).parameters()) == 1_182_762
