"""Runs of one scenario with different seeds, put together as if they had been one run.

Numbers of one seed are taken over. What is told of the models of all seeds together, by detectors of encoders and with
thresholds from other seeds, is counted again from the verdicts. A detector that learns from a fleet has learned anew in
every run, so what each run tells of it stays by itself, under the condition ``seeds``.
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

TOGETHER = ("seeds", "primary_head", "primary_heads")
"""Keys of ``Results.scenario`` that may differ, or are not of the scenario's file."""


def merged(runs: Mapping[Path, Results], out: Path) -> Results:
    """Results of all runs; ``runs``: by the folder that each is in; ``out``: the folder that the new ones are for.

    The runs' files of networks stay where they are. Raises ``SapperError`` for fewer than two runs, for runs of
    different scenarios, and for a seed that is in two of them.
    """
    _check(runs)
    ordered = dict(sorted(runs.items(), key=lambda run: min(run[1].scenario["seeds"])))
    first, every = next(iter(ordered.values())), list(ordered.values())
    content = first.scenario | {"seeds": [seed for results in every for seed in results.scenario["seeds"]]}
    plain = {key: value for key, value in content.items() if key not in TOGETHER[1:]}
    scenario, verdicts = parse(plain, str(next(iter(ordered)))), _all(every, lambda each: each.verdicts)
    environment, flags = _environments(every)
    return replace(
        first,
        scenario=content,
        environment=environment,
        command=shlex.join(["sapper", "merge", *(str(folder) for folder in ordered), "--out", str(out)]),
        records=(*_records(every, scenario), *_counted_again(verdicts, scenario)),
        subjects=unique(_all(every, lambda each: each.subjects)),
        artifacts=tuple(
            replace(each, path=Path(os.path.relpath(folder / each.path, out)).as_posix())
            for folder, results in ordered.items()
            for each in results.artifacts
        ),
        datasets=unique(_all(every, lambda each: each.datasets)),
        references=unique(_all(every, lambda each: each.references)),
        curves=_all(every, lambda each: each.curves),
        maps=_all(every, lambda each: each.maps),
        verdicts=verdicts,
        rocs=_all(every, lambda each: each.rocs),
        audits=_all(every, lambda each: each.audits),
        guarantees=unique(_all(every, lambda each: each.guarantees)),
        left_out=unique(_all(every, lambda each: each.left_out)),
        timings=_all(every, lambda each: each.timings),
        flags=unique((*_all(every, lambda each: each.flags), *flags)),
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
    known = dict.fromkeys(first.scenario["seeds"], one)
    for folder, results in others:
        for key in sorted({*first.scenario, *results.scenario} - {*TOGETHER}):
            if first.scenario.get(key) != results.scenario.get(key):
                what = f"its scenario differs from that of {one} in {key!r}"
                raise SapperError(what, where=str(folder), remedy="name runs that differ in their seeds alone")
        for seed in results.scenario["seeds"]:
            if seed in known:
                what = f"seed {seed} is in {known[seed]}, too"
                raise SapperError(what, where=str(folder), remedy="leave one of them out")
            known[seed] = folder


def _all(runs: Iterable[Results], items: Callable[[Results], tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(item for results in runs for item in items(results))


def _environments(runs: Sequence[Results]) -> tuple[dict[str, str], list[str]]:
    """What all were computed with, and a sentence for each thing that was not the same."""
    found, flags = dict[str, str](), list[str]()
    for key in dict.fromkeys(key for results in runs for key in results.environment):
        values = list(dict.fromkeys(results.environment.get(key, "–") for results in runs))
        found[key] = " / ".join(values)
        if len(values) > 1:
            flags.append(f"The runs that were put together differ in {key}: {found[key]}.")
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
                yield replace(record, condition=record.condition | {"seeds": seeds})


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
