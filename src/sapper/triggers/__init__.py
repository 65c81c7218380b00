"""Triggers: functions on batches of samples that leave shape and range alone."""

from sapper.triggers.base import Trigger, from_tensors, to_tensors
from sapper.triggers.faintness import mean_change, ssim
from sapper.triggers.files import read_triggers, write_triggers
from sapper.triggers.frequency import Frequency
from sapper.triggers.images import COLORS, Blend, Colors, Filter, Mask, Patch, filtered
from sapper.triggers.learned import Network, Noise, levels
from sapper.triggers.patches import Patches
from sapper.triggers.random_patch import RandomPatch

__all__ = [
    "COLORS",
    "Blend",
    "Colors",
    "Filter",
    "Frequency",
    "Mask",
    "Network",
    "Noise",
    "Patch",
    "Patches",
    "RandomPatch",
    "Trigger",
    "filtered",
    "from_tensors",
    "levels",
    "mean_change",
    "read_triggers",
    "ssim",
    "to_tensors",
    "write_triggers",
]
