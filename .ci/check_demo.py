"""The demo keeps its promises, read from its results.json: accuracies on all three tasks, audits of both encoders.

Every seed is looked at by itself. The time is told, and no mark: machines differ.
"""

import json
import sys
from pathlib import Path
from typing import Any

MARKS = {
    "CA at least 70 %": lambda m: m["CA"] >= 0.70,
    "BA at most 2 points under CA": lambda m: m["BA"] >= m["CA"] - 0.02,
    "strict ASR at least 95 %": lambda m: m["ASR_strict"] >= 0.95,
    "strict ASR-B at most 15 %": lambda m: m["ASR_B_strict"] <= 0.15,
}

TASKS = {"objects", "signs", "digits"}

VERDICTS = {"clean": "no-evidence", "attacked": "backdoor"}
"""By the state of an encoder."""


def missed_by_tasks(results: dict[str, Any], seed: int) -> list[str]:
    """Marks of accuracy that the primary head misses."""
    tasks: dict[str, dict[str, float]] = {}
    for record in results["records"]:
        if record["head"] == results["scenario"]["primary_head"] and record["seed"] == seed:
            tasks.setdefault(record["task"], {})[record["metric"]] = record["value"]
    missed = [f"{task}: {mark}" for task, m in tasks.items() for mark, kept in MARKS.items() if not kept(m)]
    return missed + [f"{task} was not measured" for task in sorted(TASKS - tasks.keys())]


def missed_by_audits(results: dict[str, Any], seed: int) -> list[str]:
    """Wrong verdicts, and a recovered trigger that is not shown beside the true ones."""
    audits = {audit["state"]: audit for audit in results["audits"] if audit["seed"] == seed}
    missed = [f"the {state} encoder was not audited" for state in VERDICTS if state not in audits]
    for state, audit in audits.items():
        report = audit["report"]
        if report["verdict"] != VERDICTS[state]:
            missed.append(f"audit of the {state} encoder: {report['verdict']} (p = {report['p_value']})")
        shown = [stamped["by"] for stamped in audit["stamped"]]
        wanted = ["nothing", "audit"] + ["attacker"] * len(TASKS) * (state == "attacked")
        if seed == results["scenario"]["seeds"][0] and shown != wanted:
            missed.append(f"audit of the {state} encoder: it shows {', '.join(shown) or 'no picture'}")
    return missed


def main(folder: str) -> int:
    results = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
    seeds = results["scenario"]["seeds"]
    missed = [
        f"seed {seed}, {mark}"
        for seed in seeds
        for mark in missed_by_tasks(results, seed) + missed_by_audits(results, seed)
    ]
    if not Path(folder, "report.html").exists():
        missed.append("there is no report")
    for line in missed:
        print(f"the demo misses its mark: {line}")
    seconds = sum(timing["seconds"] for timing in results["timings"])
    each = f"{seconds / len(seeds):.0f} s of computation{' for each' if len(seeds) > 1 else ''}"
    print(f"demo: seeds {', '.join(map(str, seeds))}; {len(missed)} marks missed; {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
