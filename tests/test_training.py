"""The one loop against a loop written out, and against itself when it is interrupted."""

import pytest
import torch
from torch import nn

from sapper.errors import SapperError
from sapper.running import Run
from sapper.training import Checkpoint, Step, Terms, plain_sum, train, weighted

ROWS = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
WANTED = ROWS @ torch.tensor([1.0, -2.0, 0.5])


def line() -> nn.Linear:
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def fitted(model: nn.Linear, run: Run, epochs: int = 4, **more):  # type: ignore[no-untyped-def]
    def terms(step: Step) -> Terms:
        off = model(ROWS[step.rows]).squeeze(1) - WANTED[step.rows]
        return {"square": off.square().mean(), "size": model.weight.square().sum()}

    settings = {"count": len(ROWS), "batch": 4, "epochs": epochs, "run": run, "label": "line"} | more
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    return train(model, terms, optimizer, lambda step: 0.1 * (1 - step.done), **settings)


@pytest.mark.parametrize(("combine", "weights"), [(plain_sum, (1.0, 1.0)), (weighted({"square": 2.0}), (2.0, 0.0))])
def test_the_loop_is_what_one_would_write(combine, weights) -> None:  # type: ignore[no-untyped-def]
    run, model, plain = Run(seed=3), line(), line()
    curves = fitted(model, run, combine=combine)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9)
    for epoch in range(4):
        order = torch.randperm(10, generator=run.child(f"epoch {epoch}").generator())
        squares = []
        for number in range(2):  # ten rows make two whole batches of four
            rows = order[4 * number : 4 * number + 4]
            square = (plain(ROWS[rows]).squeeze(1) - WANTED[rows]).square().mean()
            squares.append(square.item())
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (1 - (2 * epoch + number) / 8)
            optimizer.zero_grad()
            (weights[0] * square + weights[1] * plain.weight.square().sum()).backward()
            optimizer.step()
        assert curves["square"][epoch] == pytest.approx(sum(squares) / 2, rel=1e-6)
    assert torch.allclose(model.weight, plain.weight, atol=1e-7)
    assert torch.allclose(model.bias, plain.bias, atol=1e-7)


def test_an_interrupted_training_ends_as_a_whole_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    whole = line()
    curves = fitted(whole, Run(seed=1), epochs=5)
    checkpoint, first = Checkpoint(tmp_path / "checkpoint.safetensors"), line()

    class CutError(Exception):
        pass

    def cut(step: Step) -> None:
        if step.epoch == 3:
            raise CutError

    with pytest.raises(CutError):
        fitted(first, Run(seed=1), epochs=5, checkpoint=checkpoint, after_step=cut)
    second = line()
    assert fitted(second, Run(seed=1), epochs=5, checkpoint=checkpoint) == curves
    assert torch.equal(second.weight, whole.weight)


def test_incomplete_batches_and_further_values() -> None:
    seen: list[int] = []
    curves = fitted(
        line(), Run(), epochs=2, drop_last=False, after_step=lambda step: seen.append(len(step.rows)),
        after_epoch=lambda: {"more": 7.0},
    )  # fmt: skip
    assert seen == [4, 4, 2] * 2
    assert curves["more"] == [7.0, 7.0]


def test_what_diverges_is_told_at_once() -> None:
    def explode(terms: Terms, _step: Step, _curves: object) -> torch.Tensor:
        return -1e30 * terms["square"]

    with pytest.raises(SapperError, match=r"diverged: .* is not finite in epoch"):
        fitted(line(), Run(), epochs=50, combine=explode)
