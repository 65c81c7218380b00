"""Keeps of a zoo's scores what pages show: by family, and together, how well statistics tell backdoors from clean.

    python -m docs.keep_zoo runs/zoo-families/scores-quick-strangers-development.json kept.json "sapper zoo score …"

For each detector its score; and where it compares a search with the same search in other networks (``twins``), also
the search alone, the largest drop in spread that any prior reaches; and its score by the spread only, and by what is
sent to clusters only. Only backdoors with a strict ASR of half or more count as such. With ``--among`` also how
many are flagged beside a bag over families, as audits decide. The command is the one that a reader repeats.

The file has the members, too. Those that it has already stay if the new scores are without them: a zoo that is made
and scored in portions is kept in portions. They have to be of one part, budget, machine and set of detectors. Where a
detector itself has changed, delete the file first.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sapper.audits.calibration import BOUND
from sapper.audits.families import FamilyBag, read_families
from sapper.errors import SapperError
from sapper.files import read_text, write_atomically
from sapper.metrics import auc_rate

WORKING = 0.5
ALL = "all"
KEPT = ("powers", "beside", "score", "share")
"""What is kept of a prior; only those have a share that send images to a cluster."""

Member = dict[str, Any]


def short(scored: dict[str, Any], budget: str, made: dict[str, Any]) -> Member:
    """What is kept of one encoder. ``priors``: of each detector that compares, its numbers and those beside it."""
    member = scored["member"]
    priors = {
        detector: {name: {key: each[key] for key in KEPT if key in each} for name, each in found.items()}
        for detector, seen in scored["evidence"].items()
        if (found := {name: each for name, each in seen.get("priors", {}).items() if "beside" in each})
    }
    told = {
        "name": member["name"],
        "family": member["family"],
        "part": member["part"],
        "ASR_strict": strict_asr(member),
        "budget": budget,
        "made": made,
        "scores": scored["scores"],
        "flagged": scored["flagged"],
        "priors": priors,
    }
    return rounded(told)


def strict_asr(member: Mapping[str, Any]) -> float | None:
    """Of a member of a zoo; none of a clean one."""
    return None if member["state"] == "clean" else member["about"]["metrics"]["ASR_strict"]


def rounded(value: Any) -> Any:
    """With no more digits than anyone reads."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: rounded(each) for key, each in value.items()}
        case list():
            return [rounded(each) for each in value]
    return value


def rows_of(members: list[Member], command: str, bag: FamilyBag | None = None) -> list[dict[str, Any]]:
    """Rows for a page. ``bag``: what the scores of its detector are compared with."""
    families, rows = list(dict.fromkeys(each["family"] for each in members)), []
    for statistic, of in statistics(members).items():
        for family in [*families, ALL]:
            ours = [each for each in members if family in (ALL, each["family"])]
            told = {"family": family, "statistic": statistic, "budget": ours[0]["budget"], "command": command}
            judged = decisions(ours, bag) if bag is not None and statistic == bag.detector else {}
            rows.append(told | row(ours, of) | judged)
    return rows


def decisions(members: list[Member], bag: FamilyBag) -> dict[str, Any]:
    """How many working backdoors are found and how many clean encoders are flagged, as audits decide."""
    hits: dict[str, list[bool]] = {"found": [], "false alarms": []}
    for each in members:
        score = each["scores"][bag.detector]
        surprising = score is not None and bag.p_value(score) <= BOUND and each["flagged"][bag.detector] is True
        if counts(each):
            hits["found" if attacked(each) else "false alarms"].append(surprising)
    return {name: {"found": sum(each), "of": len(each)} for name, each in hits.items() if each}


def attacked(each: Member) -> bool:
    return each["ASR_strict"] is not None


def counts(each: Member) -> bool:
    """Whether it is clean, or its backdoor works."""
    return not attacked(each) or each["ASR_strict"] >= WORKING


def statistics(members: list[Member]) -> dict[str, Callable[[Member], float | None]]:
    """What each encoder is ranked by."""
    found: dict[str, Callable[[Member], float | None]] = {}
    for name in members[0]["scores"]:
        found[name] = lambda each, name=name: each["scores"][name]  # type: ignore[misc]
        if any(priors(each, name) for each in members):
            found[f"the search of {name} alone"] = partial(largest, detector=name, of="powers", sent=False)
            found[f"{name} by the spread"] = partial(largest, detector=name, of="score", sent=False)
            found[f"{name} by clusters"] = partial(largest, detector=name, of="score", sent=True)
    return found


def largest(each: Member, detector: str, of: str, *, sent: bool) -> float | None:
    """Of the priors that send images to clusters, or of the others; none where there is none."""
    found = [prior for prior in priors(each, detector) if ("share" in prior) is sent]
    return max((prior[of] for prior in found if of in prior), default=None)


def priors(each: Member, detector: str) -> list[dict[str, Any]]:
    """What a detector found of each prior; where it gave no score nothing, or what nothing stands beside."""
    return list(each["priors"].get(detector, {}).values())


def row(members: list[Member], of: Callable[[Member], float | None]) -> dict[str, Any]:
    """Numbers of a family, or of all: how many there are, medians, the largest clean one, and the AUC."""
    counted = [(attacked(each), of(each)) for each in members if counts(each)]
    clean, working = (
        [value for is_, value in counted if is_ is state and value is not None] for state in (False, True)
    )
    unscored = sum(value is None for _, value in counted)
    told: dict[str, Any] = {"clean": len(clean), "working": len(working), "without a score": unscored}
    if clean:
        told |= {"clean_median": _median(clean), "clean_largest": round(max(clean), 3)}
    if working:
        told |= {"working_median": _median(working), "working_smallest": round(min(working), 3)}
    if clean and working:
        area = auc_rate(torch.tensor(working, dtype=torch.double), torch.tensor(clean, dtype=torch.double))
        told |= {"AUC": {name: round(getattr(area, name), 4) for name in ("value", "low", "high")}}
        told |= {"beyond": {"found": sum(value > max(clean) for value in working), "of": len(working)}}
    return told


def _median(values: list[float]) -> float:
    return round(float(torch.tensor(values, dtype=torch.double).quantile(0.5)), 3)


def kept_members(file: Path) -> list[Member]:
    """The members that a file has already."""
    kept = json.loads(read_text(file, "delete it"))
    if not isinstance(kept, dict) or "members" not in kept:
        raise SapperError("it has no members", where=str(file), remedy="delete it; it is made anew")
    return list(kept["members"])


def check_alike(members: list[Member], bag: FamilyBag | None, where: str) -> None:
    """Raises ``SapperError`` for members that cannot stand in one table, or beside the bag."""
    for name in ("part", "budget", "made"):
        if len(found := {json.dumps(each[name]) for each in members}) > 1:
            what = f"its members differ in {name}: {', '.join(sorted(found))}"
            raise SapperError(what, where=where, remedy="keep them in files of their own")
    if len(detectors := {tuple(each["scores"]) for each in members}) > 1:
        remedy = "keep them in files of their own"
        raise SapperError("its members were scored by different detectors", where=where, remedy=remedy)
    if bag is None:
        return
    if bag.detector not in next(iter(detectors)):
        remedy = "name a bag of a detector that scored them"
        raise SapperError(f"{bag.name} is of {bag.detector}, which scored none", where="--among", remedy=remedy)
    if both := {family.name for family in bag.families} & {each["family"] for each in members}:
        what = f"{bag.name} has families that are judged: {', '.join(sorted(both))}"
        raise SapperError(what, where="--among", remedy="name a bag of other families")


def as_written(kept: dict[str, list[dict[str, Any]]]) -> str:
    """JSON, with a line for each row and member."""
    tables = []
    for name, lines in kept.items():
        inner = ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in lines)
        tables.append(f' "{name}": [\n  {inner}\n ]')
    return "{\n" + ",\n".join(tables) + "\n}\n"


def main(arguments: list[str]) -> int:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m docs.keep_zoo", description=__doc__, formatter_class=described)
    parser.add_argument("scores", type=Path, help="scores-BUDGET.json in a zoo's folder")
    parser.add_argument("file", type=Path, help="the file for the pages")
    parser.add_argument("command", help="what a reader types to repeat it")
    parser.add_argument("--among", type=Path, help="a bag over families that decides")
    asked = parser.parse_args(arguments)
    scores = json.loads(read_text(asked.scores, "sapper zoo score writes it"))
    made = {name: scores["environment"].get(name) for name in ("torch", "device", "number format")}
    known = kept_members(asked.file) if asked.file.exists() else []
    new = [short(each, scores["budget"], made) for each in scores["members"]]
    names = {each["name"] for each in new}
    members = [each for each in known if each["name"] not in names] + new
    bag = None if asked.among is None else read_families(asked.among)
    check_alike(members, bag, str(asked.file))
    rows = rows_of(members, asked.command, bag)
    write_atomically(asked.file, as_written({"records": rows, "members": members}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SapperError as error:
        sys.exit(str(error))
