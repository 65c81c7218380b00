"""The demo keeps its promises, read from its results.json: on all three tasks, for the primary head."""

import json
import sys
from pathlib import Path

MARKS = {
    "CA at least 70 %": lambda m: m["CA"] >= 0.70,
    "BA at most 2 points under CA": lambda m: m["BA"] >= m["CA"] - 0.02,
    "strict ASR at least 95 %": lambda m: m["ASR_strict"] >= 0.95,
    "strict ASR-B at most 15 %": lambda m: m["ASR_B_strict"] <= 0.15,
}

DEFENSES = {"neural_cleanse", "mntd_classifier", "patchguard_ds", "patchcleanser"}


def main(folder: str) -> int:
    results = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
    tasks: dict[str, dict[str, float]] = {}
    for record in results["records"]:
        if record["head"] == results["scenario"]["primary_head"] and record["defense"] is None:
            tasks.setdefault(record["task"], {})[record["metric"]] = record["value"]
    missed = [f"{task}: {mark}" for task, m in tasks.items() for mark, kept in MARKS.items() if not kept(m)]
    for line in missed:
        print(f"the demo misses its mark: {line}")
    if len(tasks) != 3:
        print(f"the demo has {len(tasks)} tasks instead of 3")
    tried = {record["defense"] for record in results["records"] if record["defense"] is not None}
    if absent := DEFENSES - tried:
        print(f"the demo did not try {', '.join(sorted(absent))}")
        return 1
    if not Path(folder, "report.html").exists():
        print("the demo left no report")
        return 1
    print(f"demo: {len(tasks)} tasks, {len(missed)} marks missed")
    return 1 if missed or len(tasks) != 3 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
