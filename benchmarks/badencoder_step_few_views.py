"""The step of BadEncoder with one view of the reference for every four shadow images, as in the small scenarios.

Not the textbook's step made faster but less of it: L1 is the same mean, estimated from a quarter of the views.
"""

import torch

from benchmarks import badencoder_step
from benchmarks.textbook import BATCH
from benchmarks.timing import Row


def run(dtype: torch.dtype) -> Row:
    """The row of ``badencoder_step`` with a quarter of its views."""
    return badencoder_step.run(dtype, views=BATCH // 4)
