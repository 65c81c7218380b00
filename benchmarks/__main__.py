"""Runs the benchmarks named on the command line, or all of them; prints a table and writes ``results.json`` here.

Each runs in bfloat16 where the processor has it and, as ``NAME_float32``, in float32: once, where it has none.
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
from sapper.run import Run, native_dtype

NAMES = (
    *("augmentation", "simclr_step", "badencoder_step", "badencoder_step_few_views"),
    *("patchguard_ds_certify", "patchguard_bn_certify", "neural_cleanse", "mntd_shadow", "mntd_meta_epoch"),
    *("mntd_fleet", "stacked_step", "trigger_inversion"),
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
    print(f"{'medians':<34}{'ours':>10}{'textbook':>10}{'ratio':>7}{'lowest…highest':>18}")
    for name in names:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        in_float32 = benchmark.run(torch.float32)
        in_fast = in_float32 if fast == torch.float32 else benchmark.run(fast)
        for label, row in ((name, in_fast), (f"{name}_float32", in_float32)):
            spread = f"{row.lowest:.1f}…{row.highest:.1f}"
            print(
                f"{label:<34}{row.ours:>10.4g}{row.textbook:>10.4g}{row.ratio:>7.1f}{spread:>18}  {row.unit}",
                flush=True,
            )
            _keep(label, row, machine)


def _keep(name: str, row: Row, machine: dict[str, str]) -> None:
    """Put the row into ``results.json``, in the place of an older one of its name."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["records"] if RESULTS.exists() else []
    records = [record for record in known if record["name"] != name]
    records.append({"name": name} | asdict(row) | {"environment": machine})
    write_atomically(RESULTS, json.dumps({"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
