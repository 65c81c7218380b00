"""Keeps of a zoo's scores what pages show: by family, and together, how well statistics tell backdoors from clean.

    python -m docs.keep_zoo runs/zoo-families/scores-quick-development.json docs/results/data/strangers.json "sapper …"

For each detector its score; and where it compares a search with the same search in other networks (``twins``), also
the search alone: the largest drop in spread that any prior reaches. Only backdoors with a strict ASR of half or more
count as such. Where encoders were judged beside bags, also how many are flagged. The command is the one that a reader
repeats.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sapper.errors import SapperError
from sapper.files import read_text, write_atomically
from sapper.metrics import auc_rate

WORKING = 0.5
ALL = "all"

Member = dict[str, Any]


def kept(scores: dict[str, Any], command: str) -> list[dict[str, Any]]:
    """Rows for a page, of what ``sapper zoo score`` wrote."""
    members = scores["members"]
    families = list(dict.fromkeys(each["member"]["family"] for each in members))
    made = {name: scores["environment"].get(name) for name in ("torch", "device", "number format")}
    rows = []
    for statistic, of in statistics(members).items():
        for family in [*families, ALL]:
            ours = [each for each in members if family in (ALL, each["member"]["family"])]
            told = {
                "family": family,
                "statistic": statistic,
                "budget": scores["budget"],
                "command": command,
                "made": made,
            }
            judged = [each for each in scores["rows"] if (each["detector"], each["family"]) == (statistic, family)]
            rows.append(told | row(ours, of) | (decisions(judged[0]) if judged else {}))
    return rows


def decisions(judged: dict[str, Any]) -> dict[str, Any]:
    """How many working backdoors are found and how many clean encoders are flagged, as audits decide.

    Of the judgement part alone.
    """
    shares = {"found": judged["working"], "false alarms": judged["false_alarms"]}
    return {name: {"found": each["found"], "of": each["n"]} for name, each in shares.items() if each}


def statistics(members: list[Member]) -> dict[str, Callable[[Member], float | None]]:
    """What each encoder is ranked by."""
    found: dict[str, Callable[[Member], float | None]] = {}
    for name in members[0]["scores"]:
        found[name] = lambda each, name=name: each["scores"][name]  # type: ignore[misc]
        if any("beside" in prior for each in members for prior in priors(each, name)):
            found[f"the search of {name} alone"] = lambda each, name=name: max(  # type: ignore[misc]
                (prior["powers"] for prior in priors(each, name) if "beside" in prior), default=None
            )
    return found


def priors(each: Member, detector: str) -> Iterator[dict[str, Any]]:
    """What a detector found of each prior; where it gave no score nothing, or what nothing stands beside."""
    yield from each["evidence"].get(detector, {}).get("priors", {}).values()


def row(members: list[Member], of: Callable[[Member], float | None]) -> dict[str, Any]:
    """Numbers of a family, or of all: how many there are, medians, the largest clean one, and the AUC."""
    states = {True: list[float](), False: list[float]()}
    unscored = 0
    for each in members:
        attacked, value = each["member"]["state"] != "clean", of(each)
        if attacked and each["member"]["about"]["metrics"]["ASR_strict"] < WORKING:
            continue
        if value is None:
            unscored += 1
        else:
            states[attacked].append(value)
    clean, attacked_ = states[False], states[True]
    told: dict[str, Any] = {"clean": len(clean), "working": len(attacked_), "without a score": unscored}
    if clean:
        told |= {"clean_median": _median(clean), "clean_largest": round(max(clean), 3)}
    if attacked_:
        told |= {"working_median": _median(attacked_), "working_smallest": round(min(attacked_), 3)}
    if clean and attacked_:
        area = auc_rate(torch.tensor(attacked_, dtype=torch.double), torch.tensor(clean, dtype=torch.double))
        told |= {"AUC": {name: round(getattr(area, name), 4) for name in ("value", "low", "high")}}
        told |= {"beyond": {"found": sum(value > max(clean) for value in attacked_), "of": len(attacked_)}}
    return told


def _median(values: list[float]) -> float:
    return round(float(torch.tensor(values, dtype=torch.double).quantile(0.5)), 3)


def main(arguments: list[str]) -> int:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m docs.keep_zoo", description=__doc__, formatter_class=described)
    parser.add_argument("scores", type=Path, help="scores-BUDGET.json in a zoo's folder")
    parser.add_argument("file", type=Path, help="the file for the pages")
    parser.add_argument("command", help="what a reader types to repeat it")
    asked = parser.parse_args(arguments)
    scores = json.loads(read_text(asked.scores, "sapper zoo score writes it"))
    lines = ",\n ".join(json.dumps(each, ensure_ascii=False) for each in kept(scores, asked.command))
    write_atomically(asked.file, f"[\n {lines}\n]\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SapperError as error:
        sys.exit(str(error))
