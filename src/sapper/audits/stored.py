"""What detectors have learned, on disk: once from a zoo's encoders, asked in any audit of the same kind of encoder.

It lies in a safetensors file, whose metadata says what it is and for which encoders it was made.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sapper.defenses.contracts import EncoderJudge, EncoderLearner
from sapper.encoders import Encoder
from sapper.errors import SapperError, first_mistake
from sapper.files import write_atomically
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.verdicts import Verdict


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The encoders that a detector has learned from, and how many pairs of them."""

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
            raise SapperError(what, where="--mntd", remedy=remedy)


def _metadata(method: EncoderLearner) -> str:
    return f"sapper.{method.state}"


def save(judge: EncoderJudge, kind: Kind, method: EncoderLearner, path: Path) -> None:
    """Write what ``method`` has learned."""
    state = {name: value.detach().cpu().contiguous() for name, value in judge.state_dict().items()}
    write_atomically(path, safetensors.torch.save(state, {_metadata(method): json.dumps(asdict(kind))}))


def load(path: Path, method: EncoderLearner) -> StoredJudge:
    """What ``save`` wrote for that method. Raises ``SapperError`` for anything else."""
    remedy = "name a file that sapper zoo learn wrote"
    try:
        with safe_open(str(path), "pt") as file:
            kind = TypeAdapter(Kind).validate_json((file.metadata() or {})[_metadata(method)])
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        method.check_state(state, kind.feature_size, kind.input_size)
        return StoredJudge(method.restore(state), kind)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        what = first_mistake(error) if isinstance(error, ValidationError) else error
        raise SapperError(f"no {method.state} can be read: {what}", where=str(path), remedy=remedy) from error
