"""Measures what the brief search of large images costs: both searches on the encoders of a zoo, small as they are.

    python -m docs.brief_search runs/zoo-families docs/results/data/brief-search.json --part development --data-root D

For each kind of square, and for the larger drop of all: the medians of the drop in spread (log10) in clean encoders and
in those whose backdoor works, the AUC, and how long both take in one process, one after the other.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from docs import keep_zoo
from sapper import encoders
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.errors import SapperError
from sapper.files import write_atomically
from sapper.running import FORMATS, Run
from sapper.zoo import building
from sapper.zoo.images import ordinary_images
from sapper.zoo.making import Member

WHOLE, BRIEF = "whole", "brief"
SQUARES = MultiPrior(blends=(), filters=())
WAYS = {WHOLE: replace(SQUARES, large=10_000), BRIEF: replace(SQUARES, large=1)}


def measured(folder: Path, member: Member, plan: Any, run: Run, data_root: Path | None) -> list[dict[str, Any]]:
    """Both searches on one encoder: the powers of ten that each kind of square reaches, and the seconds."""
    encoder = encoders.load(folder / member.file, run).to(run.device).eval().requires_grad_(False)
    images = ordinary_images(plan, member.family, run, data_root=data_root, download=False)
    found = []
    for way, method in WAYS.items():
        started = time.perf_counter()
        search = method.search(encoder, *method.split(images, run, member.name), run)
        powers = [each.powers for each in search.found.values()]
        told = {"encoder": member.name, "ASR_strict": keep_zoo.strict_asr(vars(member)), "search": way}
        found.append(told | {"powers": [round(each, 4) for each in powers], "seconds": time.perf_counter() - started})
    return found


def row(seen: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """One search on all encoders, by the larger drop of its squares."""
    ours = [each for each in seen if each["search"] == way]
    told = keep_zoo.row(ours, lambda each: max(each["powers"], default=None))
    return {"search": way} | told | {"seconds": round(statistics.fmean(each["seconds"] for each in ours), 2)}


def main(arguments: list[str]) -> int:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m docs.brief_search", description=__doc__, formatter_class=described)
    parser.add_argument("zoo", type=Path, help="a zoo's folder")
    parser.add_argument("file", type=Path, help="the file for the pages")
    parser.add_argument("--part", default="development")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--number-format", choices=sorted(FORMATS), default="bfloat16")
    asked = parser.parse_args(arguments)
    plan = building.plan_of(asked.zoo)
    members = [each for each in building.read_members(asked.zoo, plan) if each.part == asked.part]
    run = Run(seed=plan.seed, dtype=FORMATS[asked.number_format])
    members = [each for each in members if keep_zoo.counts({"ASR_strict": keep_zoo.strict_asr(vars(each))})]
    seen = [each for member in members for each in measured(asked.zoo, member, plan, run, asked.data_root)]
    rows = [row(seen, way) for way in WAYS]
    write_atomically(asked.file, keep_zoo.as_written({"records": rows, "members": seen}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SapperError as error:
        sys.exit(str(error))
