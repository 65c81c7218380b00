"""What detectors have learned, on disk: once from a zoo's encoders, asked in any audit of the same kind of encoder.

It lies in a safetensors file, whose metadata says which method has learned it, and for which encoders.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sapper import defenses
from sapper.defenses.contracts import EncoderJudge, EncoderLearner
from sapper.encoders import Encoder
from sapper.errors import SapperError, first_mistake
from sapper.files import write_atomically
from sapper.methods import find
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.verdicts import Verdict

LEARNED = "sapper.learned"
"""The key of a ``Kind`` in a file's metadata."""

OPTION = "--learned"
"""What names such files to commands."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Which method has learned, from what kind of encoders, and from how many pairs of them."""

    method: str
    architecture: str
    width: int
    feature_size: int
    input_size: int
    pairs: int
    source: str


@dataclass(frozen=True)
class StoredJudge:
    """What was learned as a detector of bare encoders. It looks at no images but its own."""

    judge: EncoderJudge
    kind: Kind

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
            raise SapperError(what, where=OPTION, remedy=remedy)


def learner(name: str, where: str) -> type[EncoderLearner]:
    """The method of that name. Raises ``SapperError`` (``where`` names it) for one that does not learn from a fleet."""
    method: type[EncoderLearner] = find("defenses", defenses.METHODS, name, where)
    if method.kind != "learn":
        remedy = "sapper methods shows which do: their kind is learn"
        raise SapperError(f"{name} does not learn from encoders", where=where, remedy=remedy)
    return method


def save(judge: EncoderJudge, kind: Kind, path: Path) -> None:
    """Write what the method of that ``kind`` has learned."""
    state = {name: value.detach().cpu().contiguous() for name, value in judge.state_dict().items()}
    write_atomically(path, safetensors.torch.save(state, {LEARNED: json.dumps(asdict(kind))}))


def load(path: Path) -> StoredJudge:
    """What ``save`` wrote. Raises ``SapperError`` for anything else."""
    remedy = "name a file that sapper zoo learn wrote"
    try:
        with safe_open(str(path), "pt") as file:
            kind = TypeAdapter(Kind).validate_json((file.metadata() or {})[LEARNED])
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        method = learner(kind.method, str(path))()
        method.check_state(state, kind.feature_size, kind.input_size)
        return StoredJudge(method.restore(state), kind)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        what = first_mistake(error) if isinstance(error, ValidationError) else error
        raise SapperError(f"nothing that was learned can be read: {what}", where=str(path), remedy=remedy) from error
