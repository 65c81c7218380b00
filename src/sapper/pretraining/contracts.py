"""What a pre-training is, for all that choose, check and call one."""

from dataclasses import Field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from sapper.encoders import Encoder, Trained
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint

Need = Literal["labels", "captions"]
"""What a pre-training cannot do without: a class for every sample, or a text for every image."""


class Pretraining(Protocol):
    """A frozen dataclass of parameters; calling it trains an encoder (``methods.Method`` besides).

    ``batch``: samples in a step. ``view_size``: height and width in pixels of what the encoder is shown, 0 for the
    images' own and for samples that are no images. Equal seeds give equal encoders.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    needs: ClassVar[frozenset[Need]]
    version: ClassVar[int]

    @property
    def batch(self) -> int: ...

    @property
    def view_size(self) -> int: ...

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on ``samples``; with ``checkpoint``, resumably."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A pre-training that does not go with every number of samples."""

    def check(self, count: int) -> None:
        """Raises ``SapperError`` for parameters that ``count`` samples are too few for; asked before anything runs."""
        ...


def check_count(method: Pretraining, count: int) -> None:
    """Raises ``SapperError`` where ``count`` samples are too few for a pre-training."""
    if isinstance(method, Counting):
        method.check(count)
