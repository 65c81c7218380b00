"""A race of many changes of images: all take few steps on few images, the best go on with more.

What a change is to do is handed in as a loss. Between rounds each change goes where its loss is smallest, of its own
place and those around it. With large images every pass is costly; there a race goes *by halves*: after a third of a
round's steps, and after two thirds, the worse half leaves, but none before it has taken a step.
"""

import hashlib
from collections.abc import Callable

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from sapper.defenses.inversion import carry
from sapper.running import Bar, Run
from sapper.samples import at_once, to_float
from sapper.triggers.priors import Prior

TOGETHER = 256
"""Images that go through the encoder at once; fewer on a CPU, and of large ones (``at_once``)."""

PLACING = 16
"""Images by which a change's place is chosen."""

LARGE = 112
"""Pixels a side from which on images are large: searches take less time there, and look less closely."""

Rounds = tuple[tuple[NonNegativeInt, PositiveInt, PositiveInt], ...]
"""For each round how many changes are left (0: all), how many images a step sees, and how many steps it takes."""

RACE: Rounds = ((0, 4, 3), (8, 8, 12), (2, 16, 20))

Losses = Callable[[Tensor, Tensor], Tensor]
"""Float images (N, 3, H, W) as they are, and under P changes (P, N, 3, H, W): a loss for each change, (P,)."""


def race(
    prior: Prior,
    losses: Losses,
    final: Callable[[Prior], float],
    seen: Tensor,
    run: Run,
    *,
    rounds: Rounds = RACE,
    halves: bool = False,
    learning_rate: float = 0.3,
    bar: Bar,
    label: str,
) -> Prior:
    """The best of a prior's changes, by ``losses`` on ``seen`` images, uint8 (N, 3, H, W).

    ``final``: what the last ones are compared by, each as a prior of its own; by halves only one is left. ``halves``:
    whether the race goes by halves. ``learning_rate`` of Adam. ``bar``: has ``work`` steps for it. Those that are left
    after each round are kept (``Run.kept``), and an interrupted race goes on from there to the same end.
    """
    key, generator, first = _key(prior, seen, (rounds, halves), learning_rate, run), run.generator(), 0
    values = torch.zeros(prior.count, device=run.device)
    kept = run.kept.get(key)
    resumed = kept is not None and prior.tensors().keys() | {"round", "generator"} == kept.keys()
    if kept is not None and resumed:
        totals = (work(rounds, prior.count, len(seen), begun, halves=halves) for begun in (0, int(kept["round"])))
        bar.advance(next(totals) - next(totals))
        prior, first = prior.restored(kept), int(kept["round"])
        generator.set_state(kept["generator"].cpu())
    for number, (keep, count, _) in enumerate(rounds):
        if number < first:
            continue
        if number > first or not resumed:
            if 0 < keep < prior.count:
                prior = prior.take(values.argsort()[:keep])
            if number:
                prior = placed(prior, losses, seen, number, run)
                _keep(key, prior, number, generator, run)
        optimizer = torch.optim.Adam([prior.weights], lr=learning_rate, betas=(0.5, 0.9))
        for left in _left(rounds, number, prior.count, halves):
            if left < prior.count:
                prior = _leaving(prior, values.argsort()[:left], optimizer)
            rows = torch.randint(len(seen), (min(count, len(seen)),), generator=generator)
            values = descend(prior, losses, to_float(seen[rows.to(seen.device)]))
            if number == 0:
                prior.keep_plain()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.advance(prior.count * len(rows), f"{label}: {prior.count} left, loss {float(values.min()):.4f}")
    _keep(key, prior, len(rounds), generator, run)
    if prior.count == 1:
        return prior
    finals = [final(prior.take(torch.tensor([row]))) for row in range(prior.count)]
    return prior.take(torch.tensor([min(range(prior.count), key=lambda row: finals[row])]))


def _key(prior: Prior, seen: Tensor, rules: tuple[Rounds, bool], learning_rate: float, run: Run) -> str:
    """Under which a race is kept: all that it depends on but the encoder, for which ``Run.kept`` has to be."""
    told = (type(prior).__name__, prior.count, rules, learning_rate, run.number_format)
    digest = hashlib.sha256(repr(told).encode() + seen.cpu().contiguous().numpy().tobytes())
    return f"race-{run.seed}-{digest.hexdigest()[:16]}"


def _keep(key: str, prior: Prior, number: int, generator: torch.Generator, run: Run) -> None:
    run.kept.put(key, prior.tensors() | {"round": torch.tensor(number), "generator": generator.get_state()})


def work(rounds: Rounds, starts: int, images: int, first: int = 0, *, halves: bool = False) -> int:
    """How many changed images a race of that many starts descends on, from round ``first`` on: most in the first."""
    total = 0
    for number, (keep, count, _) in enumerate(rounds):
        lefts = _left(rounds, number, min(keep or starts, starts), halves)
        total += sum(lefts) * min(count, images) if number >= first else 0
        starts = lefts[-1]
    return total


def _left(rounds: Rounds, number: int, starts: int, halves: bool) -> list[int]:
    """How many changes take each of the steps of a round: by halves no fewer than begin the next one."""
    steps = rounds[number][2]
    least = (rounds[number + 1][0] or starts) if number + 1 < len(rounds) else 1
    # A step tells the losses before it: those after the first step are known at the second.
    times = [max(0, step - 1) * 3 // steps if halves else 0 for step in range(steps)]
    return [min(starts, max(least, -(-starts // 2**each))) for each in times]


def _leaving(prior: Prior, rows: Tensor, optimizer: torch.optim.Optimizer) -> Prior:
    """The changes in ``rows``, which go on with their moments in the optimizer."""
    fewer = prior.take(rows)
    carry(optimizer, prior.weights, fewer.weights, rows)
    optimizer.param_groups[0]["params"] = [fewer.weights]
    return fewer


@torch.no_grad()
def placed(prior: Prior, losses: Losses, seen: Tensor, number: int, run: Run) -> Prior:
    """Every change where it has the smallest loss, of its place and those around it."""
    moved, images = prior.around(number), to_float(seen[:PLACING])
    if moved.count == prior.count:
        return prior
    values = torch.cat([losses(images, moved.apply(images, part)) for part in groups(moved, images)])
    # Where features overflow there is no loss, which torch would take for the smallest.
    places = values.nan_to_num(torch.inf).unflatten(0, (-1, prior.count)).argmin(0)
    return moved.take(places * prior.count + torch.arange(prior.count, device=run.device))


def descend(prior: Prior, losses: Losses, images: Tensor) -> Tensor:
    """Gradients of every change's loss on the images; the losses (count,)."""
    found = []
    for rows in groups(prior, images):
        values = losses(images, prior.apply(images, rows))
        values.sum().backward()
        found.append(values.detach())
    return torch.cat(found)


def groups(prior: Prior, images: Tensor) -> tuple[Tensor, ...]:
    """The changes in groups that go through the encoder at once, each on all of the images; rows, int64 (n,)."""
    together = min(TOGETHER, at_once(images))
    return torch.arange(prior.count, device=images.device).split(max(1, together // len(images)))
