"""Runs of one scenario with different seeds, or different attacks of it, put together as if they had been one run.

Numbers of one attack and seed are taken over. What is told of the models of all seeds together, by detectors of
encoders and with thresholds from other seeds, is counted again from the verdicts. A detector that learns from a fleet
has learned anew in every run, so what each run tells of it stays by itself, under the condition ``seeds``.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sapper.defenses.contracts import EncoderExaminer
from sapper.errors import SapperError
from sapper.experiment.findings import unique
from sapper.experiment.records import by_detector, held_out_records, records_of_encoders
from sapper.experiment.results import Judged, Record, Results
from sapper.scenario.reading import Scenario, parse
from sapper.scenario.singles import singles

HEADS = ("primary_head", "primary_heads")
"""Keys of ``Results.scenario`` that are not of the scenario's file."""

TOGETHER = ("seeds", "only", *HEADS)
"""Keys of ``Results.scenario`` that may differ, or are not of the scenario's file."""


BESIDE = " / "
"""Between what several runs were computed with."""

DIFFER = "The runs that were put together differ"
"""How a flag begins that tells of it."""


def merged(runs: Mapping[Path, Results], out: Path) -> Results:
    """Results of all runs; ``runs``: by the folder that each is in; ``out``: the folder that the new ones are for.

    The runs' files of networks stay where they are. Where some attack was not run with some seed, a flag says so.
    Raises ``SapperError`` for fewer than two runs, for runs of different scenarios, and for an attack that two of them
    have with the same seed.
    """
    _check(runs)
    names = _attacks(runs)
    cells = {folder: _cells(results, names) for folder, results in runs.items()}
    for folder, some in cells.items():
        if not some:
            raise SapperError("it has no numbers of any attack", where=str(folder), remedy="leave it out")
    _check_apart(cells)
    ordered = {folder: runs[folder] for folder in sorted(runs, key=lambda folder: _order(cells[folder], names))}
    first, every = next(iter(ordered.values())), list(ordered.values())
    there = [cell for folder in ordered for cell in cells[folder]]
    content = _content(first.scenario, there, names)
    plain = {key: value for key, value in content.items() if key not in HEADS}
    scenario, verdicts = parse(plain, str(next(iter(ordered)))), _all(every, lambda each: each.verdicts)
    environment, differences = _environments(every)
    flags = [
        flag
        for folder, results in ordered.items()
        for flag in results.flags
        if not flag.startswith(DIFFER) and flag not in _gaps(cells[folder])
    ]
    return replace(
        first,
        scenario=content,
        environment=environment,
        command=shlex.join(["sapper", "merge", *(str(folder) for folder in ordered), "--out", str(out)]),
        records=(*_records(every, scenario), *_counted_again(verdicts, scenario)),
        subjects=unique(_all(every, lambda each: each.subjects)),
        artifacts=unique(
            (
                replace(each, path=Path(os.path.relpath(folder / each.path, out)).as_posix())
                for folder, results in ordered.items()
                for each in results.artifacts
            ),
            key=lambda artifact: (artifact.subject, artifact.sha256),
        ),
        datasets=unique(_all(every, lambda each: each.datasets)),
        references=unique(_all(every, lambda each: each.references)),
        curves=unique(_all(every, lambda each: each.curves)),
        maps=_all(every, lambda each: each.maps),
        verdicts=verdicts,
        rocs=_all(every, lambda each: each.rocs),
        audits=unique(_all(every, lambda each: each.audits), key=lambda audit: (audit.subject, audit.sha256)),
        guarantees=unique(_all(every, lambda each: each.guarantees)),
        left_out=unique(_all(every, lambda each: each.left_out)),
        timings=_all(every, lambda each: each.timings),
        flags=unique((*flags, *differences, *_gaps(there))),
    )


def _check(runs: Mapping[Path, Results]) -> None:
    """Raises ``SapperError`` for runs that cannot be put together."""
    if len(runs) < 2:
        raise SapperError("there is one run, or none", where="merge", remedy="name the folders of two runs or more")
    for folder, results in runs.items():
        seeds = results.scenario.get("seeds")
        if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
            what = f"the seeds of its scenario are {seeds!r}, and not a list of numbers"
            raise SapperError(what, where=str(folder), remedy="name a run of a scenario")
        told = {record.defense for record in results.records if record.seed is None}
        if told - {verdict.defense for verdict in results.verdicts}:
            what = "verdicts of all seeds would be counted again, and they are not in its results"
            raise SapperError(what, where=str(folder), remedy="name the run's own folder")
    (one, first), *others = runs.items()
    for folder, results in others:
        for key in sorted({*first.scenario, *results.scenario} - {*TOGETHER}):
            if first.scenario.get(key) != results.scenario.get(key):
                what = f"its scenario differs from that of {one} in {key!r}"
                remedy = "name runs that differ in their seeds, or in the attacks that they are limited to"
                raise SapperError(what, where=str(folder), remedy=remedy)


Cell = tuple[str | None, int]
"""The name of an attack, none without any, and a seed."""


def _attacks(runs: Mapping[Path, Results]) -> list[str | None]:
    """The names of all attacks of the runs' scenario, in its order."""
    folder, results = next(iter(runs.items()))
    return [single.name for single in singles(dict(results.scenario), str(folder))]


def _cells(results: Results, names: Sequence[str | None]) -> list[Cell]:
    """What was run: of several attacks, each with the seeds that it has records of."""
    if len(names) < 2:
        return [(names[0], seed) for seed in results.scenario["seeds"]]
    ran = {(record.attack, record.seed) for record in results.records}
    return [(name, seed) for name in names for seed in results.scenario["seeds"] if (name, seed) in ran]


def _check_apart(cells: Mapping[Path, Sequence[Cell]]) -> None:
    """Raises ``SapperError`` for an attack that two runs have with the same seed."""
    known = dict[Cell, Path]()
    for folder, some in cells.items():
        for name, seed in some:
            if (name, seed) in known:
                of = f" of {name}" if name is not None else ""
                what = f"seed {seed}{of} is in {known[name, seed]}, too"
                raise SapperError(what, where=str(folder), remedy="leave one of them out")
            known[name, seed] = folder


def _order(cells: Sequence[Cell], names: Sequence[str | None]) -> tuple[int, int]:
    """Runs stand in the order of their first attacks, and then of their seeds."""
    return min(names.index(name) for name, _ in cells), min(seed for _, seed in cells)


def _content(scenario: Mapping[str, Any], there: Sequence[Cell], names: Sequence[str | None]) -> dict[str, Any]:
    """The scenario of all runs."""
    content = {key: value for key, value in scenario.items() if key != "only"}
    content["seeds"] = sorted({seed for _, seed in there})
    ran = {name for name, _ in there}
    return content if ran >= {*names} else content | {"only": [name for name in names if name in ran]}


def _gaps(there: Sequence[Cell]) -> list[str]:
    """A sentence for each attack that was not run with all the seeds."""
    seeds = sorted({seed for _, seed in there})
    of = {
        name: [seed for seed in seeds if (name, seed) not in there] for name in dict.fromkeys(name for name, _ in there)
    }
    return [
        f"{name} was not run with seed{'s' if len(without) > 1 else ''} {', '.join(map(str, without))}."
        for name, without in of.items()
        if without
    ]


def _all(runs: Iterable[Results], items: Callable[[Results], tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(item for results in runs for item in items(results))


def _environments(runs: Sequence[Results]) -> tuple[dict[str, str], list[str]]:
    """What all were computed with, and a sentence for each thing that was not the same."""
    found, flags = dict[str, str](), list[str]()
    for key in dict.fromkeys(key for results in runs for key in results.environment):
        values = dict.fromkeys(value for results in runs for value in results.environment.get(key, "–").split(BESIDE))
        found[key] = BESIDE.join(values)
        if len(values) > 1:
            flags.append(f"{DIFFER} in {key}: {found[key]}.")
    return found, flags


def _records(runs: Sequence[Results], scenario: Scenario) -> Iterator[Record]:
    """What is told of one seed; and of detectors that learned anew in each run, by its seeds."""
    pooled = _examiners(scenario)
    for results in runs:
        seeds = ", ".join(str(seed) for seed in results.scenario["seeds"])
        for record in results.records:
            if record.seed is not None:
                yield record
            elif record.task is None and record.defense not in pooled:
                yield replace(record, condition={"seeds": seeds} | record.condition)


def _counted_again(verdicts: Sequence[Judged], scenario: Scenario) -> Iterator[Record]:
    """What is told of the verdicts of all seeds together."""
    pooled, heads = _examiners(scenario), {each.attack_name: each.primary_head for each in _singles(scenario)}
    for place, judged in by_detector(verdicts):
        if place["task"] is not None:
            yield from held_out_records(place | {"head": heads[place["attack"]]}, judged)
        elif place["defense"] in pooled:
            yield from records_of_encoders(place, pooled[place["defense"]].measures, judged)
            yield from held_out_records(place, judged)


def _singles(scenario: Scenario) -> tuple[Scenario, ...]:
    return scenario.singles or (scenario,)


def _examiners(scenario: Scenario) -> dict[str, EncoderExaminer]:
    """Detectors of encoders that need no fleet, by their names."""
    plans = (plan for each in _singles(scenario) for plan in each.defenses)
    return {plan.name: plan.method.parameters for plan in plans if plan.method.parameters.kind == "examine"}
