"""MNTD's meta-classifiers on disk: learned once from a zoo's encoders, asked in any audit of the same kind of encoder.

Queries and weights lie in a safetensors file, whose metadata says for which encoders they were made.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sapper.defenses.judge.mntd_encoder import Judge, MNTDEncoder
from sapper.encoders import Encoder
from sapper.errors import SapperError, first_mistake
from sapper.files import write_atomically
from sapper.run import Run
from sapper.samples import ImageSet
from sapper.verdicts import Verdict

NAME = "mntd_encoder"
"""What its finding is called."""

METADATA = "sapper.meta-classifiers"

TENSORS = {"queries", "first", "bias", "second", "offset", "radius"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The encoders that meta-classifiers have learned from, and how many pairs of them."""

    architecture: str
    width: int
    feature_size: int
    input_size: int
    pairs: int
    source: str


@dataclass(frozen=True)
class StoredJudge:
    """Learned meta-classifiers as a detector of bare encoders. They bring images of their own: the tuned queries."""

    judge: Judge
    kind: Kind

    metric: ClassVar[str] = "score"

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """Whether ``encoder`` resembles the backdoored ones. Raises ``SapperError`` for another kind of encoder."""
        self.check(encoder)
        return self.judge.judge([encoder], run)[0]

    def check(self, encoder: Encoder) -> None:
        """Raises ``SapperError`` for an encoder of another kind than those that were learned from."""
        card = encoder.card
        here = (card.network, card.width, encoder.feature_size, card.input_size)
        there = (self.kind.architecture, self.kind.width, self.kind.feature_size, self.kind.input_size)
        if here != there:
            names = [f"{name} of width {width}, {k} features, {size} pixels" for name, width, k, size in (there, here)]
            what, remedy = f"they judge {names[0]}; this is {names[1]}", "learn others with sapper zoo learn"
            raise SapperError(what, where="--mntd", remedy=remedy)


def save(judge: Judge, kind: Kind, path: Path) -> None:
    """Write what was learned."""
    state = {name: value.detach().cpu().contiguous() for name, value in judge.state_dict().items()}
    write_atomically(path, safetensors.torch.save(state, {METADATA: json.dumps(asdict(kind))}))


def load(path: Path) -> StoredJudge:
    """What ``save`` wrote. Raises ``SapperError`` for anything else."""
    remedy = "name a file that sapper zoo learn wrote"
    try:
        with safe_open(str(path), "pt") as file:
            kind = TypeAdapter(Kind).validate_json((file.metadata() or {})[METADATA])
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check(state, kind)
        return StoredJudge(MNTDEncoder().restore(state), kind)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        what = first_mistake(error) if isinstance(error, ValidationError) else error
        raise SapperError(f"no meta-classifiers can be read: {what}", where=str(path), remedy=remedy) from error


def _check(state: dict[str, Tensor], kind: Kind) -> None:
    """Shapes that fit one another and the kind of encoder; finite numbers."""
    learned = {name for name in state if name.startswith("AUC ")}
    if state.keys() - learned != TENSORS:
        raise ValueError(f"other tensors than {', '.join(sorted(TENSORS))}")
    if any(value.dtype != torch.float32 for value in state.values()) or any(state[name].ndim != 1 for name in learned):
        raise ValueError("tensors of other kinds")
    count, queries = state["queries"].shape[:2]
    if count * queries == 0:
        raise ValueError("there are no queries")
    hidden = state["bias"].shape[-1]
    expected: dict[str, tuple[int, ...]] = {
        "queries": (count, queries, 3, kind.input_size, kind.input_size),
        "first": (count, queries * kind.feature_size, hidden),
        "bias": (count, hidden),
        "second": (count, hidden),
        "offset": (count,),
        "radius": (count,),
    }
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)} instead of {shape}")
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError("numbers that are not finite")
