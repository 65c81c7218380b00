"""Triggers: functions on batches of samples that leave shape and range alone."""

from sapper.triggers.base import Trigger, from_tensors, to_tensors
from sapper.triggers.frequency import Frequency
from sapper.triggers.images import COLORS, Blend, Colors, Filter, Mask, Patch, filtered
from sapper.triggers.random_patch import RandomPatch

__all__ = [
    "COLORS",
    "Blend",
    "Colors",
    "Filter",
    "Frequency",
    "Mask",
    "Patch",
    "RandomPatch",
    "Trigger",
    "filtered",
    "from_tensors",
    "to_tensors",
]
