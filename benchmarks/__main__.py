"""Runs the benchmarks named on the command line, or all of them, and prints one table."""

import argparse
import importlib
import pkgutil

import torch

import benchmarks
from benchmarks.timing import Row

NAMES = sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - {"__main__", "timing"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")

    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads; medians, [range] over the rounds")
    print(f"{'':<48}{'ours':>12}{'textbook':>12}  textbook / ours")
    for name in names:
        for row in importlib.import_module(f"benchmarks.{name}").run():
            print(line(row), flush=True)


def line(row: Row) -> str:
    times = f"{row.ours * 1e3:>9.1f} ms{row.textbook * 1e3:>9.1f} ms"
    return f"{row.name:<48}{times}  {row.ratio:.1f} [{row.lowest:.1f}..{row.highest:.1f}]"


if __name__ == "__main__":
    main()
