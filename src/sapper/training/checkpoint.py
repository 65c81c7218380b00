"""Checkpoints: a training that was interrupted goes on and ends the same."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sapper.errors import SapperError
from sapper.files import write_atomically

Curves = dict[str, list[float]]
"""One value per epoch for each named term of a loss."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state between epochs, so that an interrupted one goes on and ends the same.

    One safetensors file (parameters, buffers, optimizer state), the number of finished epochs and the curves in
    its metadata. Randomness needs no state: every epoch seeds itself from the run.
    """

    path: Path

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, curves: Curves) -> None:
        """Replace the file with the state after ``epoch`` finished epochs."""
        tensors = {f"model/{name}": value.contiguous() for name, value in model.state_dict().items()}
        state = optimizer.state_dict()["state"]
        tensors |= {
            f"optimizer/{index}/{name}": value.contiguous()
            for index, values in state.items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        metadata = {"progress": json.dumps({"epoch": epoch, "curves": curves})}
        write_atomically(self.path, safetensors.torch.save(tensors, metadata))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Curves]:
        """Load the state, if there is one; returns the finished epochs and the curves so far.

        A damaged file is as good as none: the training begins again.
        """
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                progress = json.loads(file.metadata()["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError):
            return 0, {}
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                like = parameters[int(number)]
                # Fused optimizers walk through memory: a moment must lie in it as its parameter does.
                laid_out = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                state.setdefault(int(number), {})[key] = laid_out
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        return progress["epoch"], progress["curves"]

    def part(self, name: str) -> "Checkpoint":
        """Another beside it, for a training that comes before the main one. Who makes it removes it at the end."""
        return Checkpoint(self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}"))

    def remove(self) -> None:
        """The training is finished: its result is kept elsewhere."""
        self.path.unlink(missing_ok=True)


def check_finite(module: nn.Module, method: str) -> None:
    """Raises ``SapperError`` when a training of ``method`` left weights that are not finite."""
    if not all(bool(value.isfinite().all()) for value in module.state_dict().values()):
        what, remedy = "the training diverged: weights are not finite", "lower its learning_rate"
        raise SapperError(what, where=method, remedy=remedy)


def note(curves: Curves, values: dict[str, float]) -> None:
    """Append one epoch's values to the curves."""
    for name, value in values.items():
        curves.setdefault(name, []).append(value)
