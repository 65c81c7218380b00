"""Runs the benchmarks named on the command line, or all of them; prints a table and writes ``results.json`` here.

Each runs twice: in the number format that is fastest here, and in float32.
"""

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from sapper.files import write_atomically
from sapper.run import fast_dtype

NAMES = ("augmentation", "simclr_step", "badencoder_step")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")

    fast = fast_dtype(torch.device("cpu"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {fast}; medians")
    print(f"{'images/s':<28}{'ours':>12}{'textbook':>12}{'ratio':>8}")
    records = []
    for name in names:
        for dtype, suffix in ((fast, ""), (torch.float32, "_float32")):
            row = importlib.import_module(f"benchmarks.{name}").run(dtype, suffix)
            print(f"{row.name:<28}{row.ours:>12.0f}{row.textbook:>12.0f}{row.ratio:>8.1f}", flush=True)
            records.append(asdict(row))
    write_atomically(Path(__file__).parent / "results.json", json.dumps({"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
