"""What every training here shares: one loop, batches, schedules, checkpoints that resume exactly."""

from sapper.training.batches import shuffled, steps_per_epoch
from sapper.training.checkpoint import Checkpoint, Curves, check_finite, note
from sapper.training.loop import Step, Terms, plain_sum, train, weighted
from sapper.training.schedules import part_done, set_learning_rate, warm_cosine

__all__ = [
    "Checkpoint",
    "Curves",
    "Step",
    "Terms",
    "check_finite",
    "note",
    "part_done",
    "plain_sum",
    "set_learning_rate",
    "shuffled",
    "steps_per_epoch",
    "train",
    "warm_cosine",
    "weighted",
]
