"""Runs the benchmarks named on the command line, or all of them; prints a table and writes ``results.json`` here.

Each runs in float32 and, where the processor has it, in bfloat16.
"""

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.timing import Row
from sapper.engine.environment import environment
from sapper.files import write_atomically
from sapper.running import Run, native_dtype

NAMES = (
    *("augmentation", "simclr_step", "badencoder_step", "badencoder_step_few_views"),
    *("patchguard_ds_certify", "patchguard_bn_certify", "neural_cleanse", "mntd_shadow", "mntd_meta_epoch"),
    *("mntd_fleet", "stacked_step", "trigger_inversion", "beatrix", "patchcleanser_certify", "strip"),
)
RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")

    fast = native_dtype(torch.device("cpu"))
    machine = environment(Run(dtype=fast))
    print(", ".join(f"{key} {machine[key]}" for key in ("torch", "processor", "threads", "number format")))
    print(f"{'medians':<36}{'ours':>10}{'textbook':>10}{'ratio':>7}{'lowest…highest':>18}")
    for name in names:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        for dtype in dict.fromkeys((fast, torch.float32)):
            row, form = benchmark.run(dtype), str(dtype).removeprefix("torch.")
            spread = f"{row.lowest:.1f}…{row.highest:.1f}"
            label = f"{name}, {form}"
            print(
                f"{label:<36}{row.ours:>10.4g}{row.textbook:>10.4g}{row.ratio:>7.1f}{spread:>18}  {row.unit}",
                flush=True,
            )
            _keep({"name": name, "format": form}, row, machine)


def _keep(which: dict[str, str], row: Row, machine: dict[str, str]) -> None:
    """Put the row into ``results.json``, in the place of an older one of its name and number format."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["records"] if RESULTS.exists() else []
    records = [record for record in known if not which.items() <= record.items()]
    records.append(which | asdict(row) | {"environment": machine})
    write_atomically(RESULTS, json.dumps({"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
