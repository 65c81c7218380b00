"""Versions and hardware, for the report."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

import sapper
from sapper.running import Run

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")


def environment(run: Run) -> dict[str, str]:
    """What a result was computed with. Values are text."""
    return {
        "sapper": sapper.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type,
        "number format": run.number_format,
        **({"why this format": run.why} if run.why else {}),
        "threads": str(torch.get_num_threads()),
    }


def processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
