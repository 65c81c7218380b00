"""Keeps of a run's results what pages show: the numbers, without pictures, curves and single pieces of evidence.

    python -m docs.keep runs/matrix docs/results/data/matrix.json "sapper run matrix --jobs 2" --metrics BA AUC

The command is the one that a reader repeats, without folders of one's own. With ``--metrics`` other numbers are left
out.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from sapper.errors import SapperError
from sapper.experiment.results import Results, read_results
from sapper.files import write_atomically


def kept(results: Results, command: str, metrics: list[str] | None = None) -> Results:
    """The results for a page. ``command``: what a reader types; ``metrics``: all by default.

    Raises ``SapperError`` for a metric that is not in them.
    """
    if unknown := set(metrics or []) - {record.metric for record in results.records}:
        what, known = f"nothing is told of {sorted(unknown)[0]!r}", sorted({each.metric for each in results.records})
        raise SapperError(what, where="--metrics", remedy=f"choose from: {', '.join(known)}")
    return replace(
        results,
        command=command,
        records=tuple(each for each in results.records if metrics is None or each.metric in metrics),
        verdicts=tuple(replace(each, evidence={}, triggers=()) for each in results.verdicts),
        artifacts=(),
        curves=(),
        maps=(),
        pictures=(),
        rocs=(),
        audits=(),
    )


def main(arguments: list[str]) -> int:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m docs.keep", description=__doc__, formatter_class=described)
    parser.add_argument("run", type=Path, help="a run's folder, or its results.json")
    parser.add_argument("file", type=Path, help="the file for the pages")
    parser.add_argument("command", help="what a reader types to repeat it")
    parser.add_argument("--metrics", nargs="+", help="keep these numbers only")
    asked = parser.parse_args(arguments)
    write_atomically(asked.file, kept(read_results(asked.run), asked.command, asked.metrics).to_json())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SapperError as error:
        sys.exit(str(error))
