"""Runs of one scenario with different seeds or attacks, from several folders into one."""

from collections.abc import Sequence
from pathlib import Path

from sapper.errors import SapperError
from sapper.experiment.merging import merged
from sapper.experiment.results import Results, read_results, write_results
from sapper.report import write_report


def merge(folders: Sequence[str | Path], out: str | Path) -> Results:
    """Put runs together that differ in their seeds, or in the attacks that they are limited to (``only``).

    ``folders``: of the runs, or their ``results.json``. Leaves ``results.json`` and ``report.html`` in ``out``; the
    networks stay where they are, and are named from there. Raises ``SapperError`` as ``read_results`` and ``merged``
    do, and where ``out`` is one of the folders.
    """
    places, target = [Path(each) for each in folders], Path(out)
    runs = {place if place.is_dir() else place.parent: read_results(place) for place in places}
    if len(runs) < len(places):
        raise SapperError("a folder is named twice", where="merge", remedy="name each once")
    if target.resolve() in {folder.resolve() for folder in runs}:
        raise SapperError("it is one of the runs", where=f"--out {out}", remedy="name a folder of its own")
    results = merged(runs, target)
    write_results(results, target)
    write_report(results, target / "report.html")
    return results
