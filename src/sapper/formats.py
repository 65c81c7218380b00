"""The number format of matrix work, by what a second's measurement of the very network says.

Processors differ: on one with bfloat16 a training step takes half as long in it, on another that has it, too, a step
takes longer. So a few steps are timed in both formats, in turn, and bfloat16 is taken where it is clearly faster.
Where a processor has no bfloat16, torch emulates it, which is always slower; accelerators that have it gain by it.
Neither is measured.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import nn

from sapper.running import Run, native_dtype

Step = Callable[[torch.dtype, int], object]
"""One step of a network in a number format, on so many images."""

BUDGET = 1.0
"""Seconds that a measurement may take, but for networks so slow that a few steps take longer.

Of one thread's processor time, and all steps are timed on one thread: what other programs take does not count, and
neither does waiting for other threads, which on a busy machine can be longer than the work.
"""

ROUNDS = 5
"""How often each format is timed; at least three times, whatever the budget."""

CLEARLY = 1.05
"""How many times as fast bfloat16 must be to be taken: it is a little less exact."""


def measurable(device: torch.device) -> bool:
    """Whether only a measurement can tell which format is faster on a device."""
    return device.type == "cpu" and native_dtype(device) == torch.bfloat16


def fastest(run: Run, step: Callable[[], Step], most: int, clock: Callable[[], float] = time.thread_time) -> Run:
    """The run in the format that is faster for the network whose ``step`` is timed, on up to ``most`` images.

    ``step`` is called only where there is something to measure. No random state is changed by it. ``Run.why`` says why
    the format was chosen.
    """
    dtype, device = native_dtype(run.device), "processor" if run.device.type == "cpu" else "device"
    if not measurable(run.device):
        why = "no bfloat16" if dtype == torch.float32 else "bfloat16 of its own"
        return replace(run, dtype=dtype, why=f"this {device} has {why}")
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)
            ratio = speedup(step(), most, clock)
        except RuntimeError as error:  # what the network cannot do will be said where that matters
            reason = (str(error).splitlines() or [""])[0][:100]
            return replace(run, dtype=torch.float32, why=f"bfloat16 could not be measured on this encoder: {reason}")
        finally:
            torch.set_num_threads(threads)
    if ratio > CLEARLY:
        why = f"measured {ratio:.2f} times as fast as float32 on this encoder"
        return replace(run, dtype=torch.bfloat16, why=why)
    return replace(run, dtype=torch.float32, why=f"bfloat16 was {ratio:.2f} times as fast on this encoder")


def speedup(step: Step, most: int, clock: Callable[[], float] = time.thread_time) -> float:
    """How many times as fast steps are in bfloat16 as in float32: medians of a few of each, in turn.

    On ``most`` images, or on so few that all steps take ``BUDGET`` seconds; each format's first step is not counted.
    """

    def seconds(dtype: torch.dtype, count: int) -> float:
        began = clock()
        step(dtype, count)
        return clock() - began

    few = min(2, most)
    step(torch.float32, few)
    for_one = max(seconds(torch.float32, few) / few, 1e-9)
    count = max(few, min(most, int(BUDGET / (2 * (ROUNDS + 1)) / for_one)))
    for dtype in (torch.float32, torch.bfloat16):
        step(dtype, count)
    began = clock()
    taken: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for done in range(ROUNDS):
        if done >= 3 and clock() - began > BUDGET:
            break
        for dtype, times in taken.items():
            times.append(seconds(dtype, count))
    return median(taken[torch.float32]) / max(median(taken[torch.bfloat16]), 1e-9)


def training_step(network: nn.Module, size: int, device: torch.device) -> Step:
    """Steps of a training: forward and backward to the weights. ``network`` is for this alone: its buffers change."""
    network.train()

    def step(dtype: torch.dtype, count: int) -> None:
        _loss(network, _images(count, size, device), dtype).backward()
        network.zero_grad(set_to_none=True)

    return step


def search_step(network: nn.Module, size: int, device: torch.device) -> Step:
    """Steps of a search for triggers: forward and backward to the images. ``network``, in ``eval`` mode, stays."""

    def step(dtype: torch.dtype, count: int) -> None:
        images = _images(count, size, device).requires_grad_()
        torch.autograd.grad(_loss(network, images, dtype), images)

    return step


def _images(count: int, size: int, device: torch.device) -> torch.Tensor:
    """Images in [0, 1] that are always the same, float32 (count, 3, size, size)."""
    values = torch.linspace(0, 20, count * 3 * size * size, device=device)
    return values.sin().square().view(count, 3, size, size)


def _loss(network: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        features: torch.Tensor = network(images)
    return features.float().square().mean()
