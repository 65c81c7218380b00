"""Races of starts: what is kept of an interrupted one, and that it ends as if nothing had happened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sapper.defenses.collapsing import CollapseSearch, collapse_losses
from sapper.defenses.judge.twins import Twins
from sapper.defenses.racing import race, work
from sapper.running import KeptFor, Run, Silent
from sapper.samples import to_float
from sapper.tensors import KeptIn
from sapper.triggers.priors import Filter, Prior, Stamp
from tests.test_encoder_inversion import SIZE, encoder, photos

RUN = Run(seed=5)
ROUNDS = ((0, 4, 2), (4, 4, 3), (2, 6, 3))


@dataclass
class Stopping:
    """Keeps in memory, and stops the computation after so many parts."""

    after: int
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def get(self, key: str) -> dict[str, Tensor] | None:
        return self.parts.get(key)

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        self.parts[key] = {name: value.clone() for name, value in tensors.items()}
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt


def priors() -> dict[str, Prior]:
    return {"square": Stamp.patches(4, (SIZE, SIZE), RUN), "filter": Filter.start(0.2, 6, RUN)}


def raced(prior: Prior, run: Run, calls: list[int] | None = None, *, halves: bool = False) -> Prior:
    model, seen = encoder(gain=3.0).eval().requires_grad_(False), photos().images[:32]
    plain = collapse_losses(model, run)

    def losses(images: Tensor, changed: Tensor) -> Tensor:
        if calls is not None:
            calls.append(len(changed))
        return plain(images, changed)

    def final(change: Prior) -> float:
        with torch.no_grad():
            return float(plain(seen, change.apply(seen[:8].float() / 255, torch.tensor([0]))))

    return race(prior, losses, final, seen, run, rounds=ROUNDS, halves=halves, bar=Silent(), label="race")


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("kind", ["square", "filter"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_race_ends_as_one_that_was_not(kind: str, after: int, halves: bool) -> None:
    whole, kept = raced(priors()[kind], RUN, halves=halves).tensors(), Stopping(after)
    with pytest.raises(KeyboardInterrupt):
        raced(priors()[kind], replace(RUN, kept=kept), halves=halves)
    calls, anew = list[int](), list[int]()
    again = raced(priors()[kind], replace(RUN, kept=kept), calls, halves=halves).tensors()
    raced(priors()[kind], RUN, anew, halves=halves)
    assert sum(calls) < sum(anew)
    for name, value in whole.items():
        assert torch.equal(again[name], value)


def test_what_was_kept_of_other_images_or_rounds_does_not_count() -> None:
    kept = Stopping(0)
    raced(priors()["square"], replace(RUN, kept=kept))
    known = set(kept.parts)
    raced(priors()["square"].take(torch.arange(5)), replace(RUN, kept=kept))
    raced(priors()["square"], replace(RUN, kept=kept, seed=6))
    raced(priors()["square"], replace(RUN, kept=kept), halves=True)
    assert len(kept.parts) == len(known) + 3


@pytest.mark.parametrize("halves", [False, True])
def test_a_bar_is_full_at_the_end_whether_a_race_was_interrupted_or_not(halves: bool) -> None:
    @dataclass
    class Counting(Silent):
        steps: int = 0

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.steps += steps

    model, seen = encoder(gain=3.0).eval().requires_grad_(False), photos().images[:32]
    kept, total = Stopping(2), work(ROUNDS, priors()["square"].count, 32, halves=halves)
    for _ in range(2):
        bar = Counting()
        with pytest.raises(KeyboardInterrupt) if kept.after > 0 else torch.enable_grad():
            race(
                priors()["square"], collapse_losses(model, RUN), lambda _change: 0.0, seen, replace(RUN, kept=kept),
                rounds=ROUNDS, halves=halves, bar=bar, label="race",
            )  # fmt: skip
    assert bar.steps == total


def test_by_halves_the_worse_half_leaves_after_each_third_of_a_round() -> None:
    """None before it took a step, and no fewer stay than begin the next round: the nearest to what is wanted wins."""
    counts, prior = list[int](), Stamp.patches(2, (SIZE, SIZE), RUN).take(torch.arange(16))
    shades = torch.linspace(-3, 3, 16)[torch.randperm(16, generator=RUN.generator())]
    with torch.no_grad():
        prior.weights.copy_(shades.view(-1, 1, 1, 1).expand_as(prior.weights))

    def losses(_images: Tensor, changed: Tensor) -> Tensor:
        if changed.requires_grad:
            counts.append(len(changed))
        return (changed.sum((2, 3, 4)) - wanted).square().mean(1)

    rounds, seen = ((0, 2, 3), (6, 2, 6), (2, 2, 2)), torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    wanted = float(prior.apply(to_float(seen[:1]), torch.tensor([11])).detach().sum())
    best = race(
        prior,
        losses,
        lambda change: float((change.weights.detach().mean() - shades[11]).abs()),
        seen,
        RUN,
        rounds=rounds,
        halves=True,
        learning_rate=1e-6,
        bar=Silent(),
        label="",
    )
    assert counts == [16, 16, 8, 6, 6, 6, 3, 3, 2, 2, 2]
    assert work(rounds, 16, 4, halves=True) == 2 * sum(counts)
    assert work(rounds, 16, 4, 1, halves=True) == 2 * sum(counts[3:])
    assert float(best.weights.detach().mean()) == pytest.approx(float(shades[11]), abs=1e-3)


def test_who_stays_goes_on_as_if_nobody_had_left() -> None:
    """With what the optimizer knew of it: the steps of the winner are those that it takes among all."""
    model, seen = encoder(gain=3.0).eval().requires_grad_(False), photos().images[:32]

    def ended(halves: bool, final: Callable[[Prior], float]) -> Stamp:
        prior = Stamp.patches(4, (SIZE, SIZE), RUN).take(torch.arange(8))
        losses = collapse_losses(model, RUN)
        best = race(prior, losses, final, seen, RUN, rounds=((0, 4, 6),), halves=halves, bar=Silent(), label="race")
        assert isinstance(best, Stamp)
        return best

    winner = ended(True, lambda _: 0.0)
    among_all = ended(False, lambda change: float((change.tensors()["masks"] - winner.masks).abs().sum()))
    assert torch.equal(among_all.masks, winner.masks)
    assert torch.allclose(among_all.weights, winner.weights, atol=1e-4)
    starts = Stamp.patches(4, (SIZE, SIZE), RUN)
    (own,) = (starts.masks[:8] == winner.masks).flatten(1).all(1).nonzero()
    assert not torch.allclose(winner.weights, starts.weights[own], atol=1e-1)  # it has moved


def test_parts_are_kept_in_files_and_a_damaged_one_is_not_there(tmp_path: Path) -> None:
    kept = KeptIn(tmp_path / "parts")
    assert kept.get("a") is None
    kept.put("a", {"x": torch.arange(3)})
    KeptFor(kept, "twin").put("a", {"x": torch.zeros(1)})
    (known,) = [kept.get("a")]
    assert known is not None
    assert known["x"].tolist() == [0, 1, 2]
    (tmp_path / "parts" / "a.safetensors").write_bytes(b"{}")
    assert kept.get("a") is None
    assert KeptFor(kept, "twin").get("a") is not None
    KeptIn(tmp_path / "parts" / "a.safetensors").put("b", {})  # no folder: nothing is kept, and nothing stops


def test_twins_are_not_taken_for_the_encoder_nor_trained_twice(tmp_path: Path) -> None:
    """The same seeds draw the starts of all searches; what was found in the encoder is not a twin's."""
    short = {
        "patches": ((0.25, 0.0, 1.0),),
        "blends": (),
        "filters": (),
        "towards": (),
        "rounds": ROUNDS,
        "images": 16,
        "held_out": 16,
    }
    method, model = Twins(twins=2, enough=-9.0, steps=3, worst_fit=2.0, **short), encoder(gain=3.0)  # type: ignore[arg-type]
    plain = method.examine(model, photos(), RUN)
    keeping = replace(RUN, kept=KeptIn(tmp_path))
    first, again = (method.examine(model, photos(), keeping) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 5  # three searches, two students
    assert first.evidence == plain.evidence == again.evidence
    assert isinstance(method, CollapseSearch)
