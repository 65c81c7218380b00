"""Runs of one scenario with different seeds, or different attacks of it, put together as if they had been one run.

Numbers of one attack and seed are taken over. What is told of the models of all seeds together, by detectors of
encoders and with thresholds from other seeds, is counted again from the verdicts. A detector that learns from a fleet
has learned anew in every run: where several runs have an attack, what each tells of it stays by itself, under the
condition ``seeds``.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapper.defenses.contracts import EncoderExaminer
from sapper.errors import SapperError
from sapper.experiment.findings import unique
from sapper.experiment.records import by_detector, held_out_records, records_of_encoders
from sapper.experiment.results import Artifact, Judged, Picture, Record, Results
from sapper.scenario.reading import Scenario, parse
from sapper.scenario.singles import singles

MISSING = "missing"
"""Key of ``Results.scenario`` after a merge: the seeds that an attack was not run with, by its name."""

NOT_OF_THE_FILE = ("primary_head", "primary_heads", MISSING)
"""Keys of ``Results.scenario`` that a scenario's file does not have."""

TOGETHER = ("seeds", "only", *NOT_OF_THE_FILE)
"""Keys of ``Results.scenario`` that may differ."""

BESIDE = " / "
"""Between what several runs were computed with."""

DIFFER = "The runs that were put together differ"
"""How a flag begins that tells of it."""

Cell = tuple[str | None, int]
"""The name of an attack, none without any, and a seed."""


@dataclass(frozen=True)
class Part:
    """A run, the folder that it is in, and what was run."""

    folder: Path
    results: Results
    cells: tuple[Cell, ...]

    def seeds(self, attack: str | None) -> list[int]:
        """Those that the attack was run with."""
        return [seed for name, seed in self.cells if name == attack]


def merged(runs: Mapping[Path, Results], out: Path) -> Results:
    """Results of all runs; ``runs``: by the folder that each is in; ``out``: the folder that the new ones are for.

    The runs' files of networks stay where they are. Where some attack was not run, or not with some seed, a flag says
    so. Raises ``SapperError`` for fewer than two runs, for runs of different scenarios, and for an attack that two of
    them have with the same seed.
    """
    _check(runs)
    names = _attacks(runs)
    parts = [Part(folder, results, _cells(results, names)) for folder, results in runs.items()]
    _check_apart(parts)
    parts.sort(key=lambda part: (min(names.index(name) for name, _ in part.cells), min(seed for _, seed in part.cells)))
    first, every = parts[0].results, [part.results for part in parts]
    content = _content(parts, names)
    plain = {key: value for key, value in content.items() if key not in NOT_OF_THE_FILE}
    scenario = parse(plain, str(parts[0].folder))
    verdicts = _in_order(_all(every, lambda each: each.verdicts), names)
    records, doubts = _records(parts, scenario)
    environment, differences = _environments(every)
    return replace(
        first,
        scenario=content,
        environment=environment,
        command=shlex.join(["sapper", "merge", *(str(part.folder) for part in parts), "--out", str(out)]),
        records=_in_order((*records, *_counted_again(verdicts, scenario)), names),
        subjects=unique(_all(every, lambda each: each.subjects)),
        artifacts=unique(_artifacts(parts, out), key=lambda artifact: (artifact.subject, artifact.sha256)),
        datasets=_datasets(every),
        references=unique(_all(every, lambda each: each.references)),
        curves=unique(_all(every, lambda each: each.curves), key=lambda curve: (curve.seed, curve.stage)),
        maps=_in_order(_all(every, lambda each: each.maps), names),
        pictures=_pictures(parts, names),
        verdicts=verdicts,
        rocs=_in_order(_all(every, lambda each: each.rocs), names),
        audits=unique(_all(every, lambda each: each.audits), key=lambda audit: (audit.subject, audit.sha256)),
        guarantees=unique(_all(every, lambda each: each.guarantees)),
        left_out=unique(_all(every, lambda each: each.left_out)),
        timings=_timings(every),
        flags=unique((*_flags(every, names), *differences, *doubts, *_gaps(content, names))),
    )


# Which runs belong together


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


def _attacks(runs: Mapping[Path, Results]) -> list[str | None]:
    """The names of all attacks of the runs' scenario, in its order."""
    folder, results = next(iter(runs.items()))
    return [single.name for single in singles(dict(results.scenario), str(folder))]


def _cells(results: Results, names: Sequence[str | None]) -> tuple[Cell, ...]:
    """What was run: every chosen attack with every seed, but for those that a merged run says are missing."""
    only, missing = results.scenario.get("only"), results.scenario.get(MISSING, {})
    return tuple(
        (name, seed)
        for name in names
        for seed in results.scenario["seeds"]
        if (only is None or name in only) and seed not in missing.get(name, ())
    )


def _check_apart(parts: Sequence[Part]) -> None:
    """Raises ``SapperError`` for an attack that two runs have with the same seed, and for a run of none."""
    known = dict[Cell, Path]()
    for part in parts:
        if not part.cells:
            raise SapperError("it has none of the scenario's attacks", where=str(part.folder), remedy="leave it out")
        for name, seed in part.cells:
            if (name, seed) in known:
                of = f" of {name}" if name is not None else ""
                what = f"seed {seed}{of} is in {known[name, seed]}, too"
                raise SapperError(what, where=str(part.folder), remedy="leave one of them out")
            known[name, seed] = part.folder


def _content(parts: Sequence[Part], names: Sequence[str | None]) -> dict[str, Any]:
    """The scenario of all runs."""
    there = {cell for part in parts for cell in part.cells}
    seeds, ran = sorted({seed for _, seed in there}), [name for name in names if any(name == of for of, _ in there)]
    missing = {name: without for name in ran if (without := [seed for seed in seeds if (name, seed) not in there])}
    content = {key: value for key, value in parts[0].results.scenario.items() if key not in ("only", MISSING)}
    content["seeds"] = seeds
    content |= {"only": ran} if len(ran) < len(names) else {}
    return content | ({MISSING: missing} if missing else {})


# What is said of them


def _flags(runs: Sequence[Results], names: Sequence[str | None]) -> Iterator[str]:
    """The runs' own, without what an earlier merge has said of itself."""
    for results in runs:
        of_merge = _gaps(results.scenario, names)
        yield from (flag for flag in results.flags if not flag.startswith(DIFFER) and flag not in of_merge)


def _gaps(content: Mapping[str, Any], names: Sequence[str | None]) -> list[str]:
    """Sentences about attacks that were not run at all, or not with every seed."""
    only = content.get("only") or names
    absent = [str(name) for name in names if name not in only]
    told = [f"Not run, of the attacks of this scenario: {', '.join(absent)}."] if absent else []
    for name, seeds in content.get(MISSING, {}).items():
        told.append(f"{name} was not run with seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}.")
    return told


def _environments(runs: Sequence[Results]) -> tuple[dict[str, str], list[str]]:
    """What all were computed with, and a sentence for each thing that was not the same."""
    found, flags = dict[str, str](), list[str]()
    for key in dict.fromkeys(key for results in runs for key in results.environment):
        values = dict.fromkeys(value for results in runs for value in results.environment.get(key, "–").split(BESIDE))
        found[key] = BESIDE.join(values)
        if len(values) > 1:
            flags.append(f"{DIFFER} in {key}: {found[key]}.")
    return found, flags


# What they hold


def _all(runs: Iterable[Results], items: Callable[[Results], tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(item for results in runs for item in items(results))


def _in_order(items: Iterable[Any], names: Sequence[str | None]) -> tuple[Any, ...]:
    """By the attacks' places in the scenario; otherwise as they come."""
    places = {name: i for i, name in enumerate(names)}
    return tuple(sorted(items, key=lambda item: places.get(item.attack, -1)))


def _artifacts(parts: Sequence[Part], out: Path) -> Iterator[Artifact]:
    """The files of networks, named from the new folder."""
    for part in parts:
        for each in part.results.artifacts:
            yield replace(each, path=Path(os.path.relpath(part.folder / each.path, out)).as_posix())


def _datasets(runs: Sequence[Results]) -> tuple[dict[str, Any], ...]:
    """Every split once, with what any run used of it."""
    found = list[dict[str, Any]]()
    for each in _all(runs, lambda results: results.datasets):
        same = next((one for one in found if _without_uses(one) == _without_uses(each)), None)
        if same is None:
            found.append(dict(each))
        elif "used for" in each:
            same["used for"] = list(unique([*same.get("used for", ()), *each["used for"]]))
    return tuple(found)


def _without_uses(dataset: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dataset.items() if key != "used for"}


def _pictures(parts: Sequence[Part], names: Sequence[str | None]) -> tuple[Picture, ...]:
    """Of each attack those of the smallest seed that has any: of the seeds of one run, the first alone is pictured."""
    best = dict[str | None, tuple[int, Sequence[Picture]]]()
    for part in parts:
        for attack in dict.fromkeys(each.attack for each in part.results.pictures):
            seed = min(part.seeds(attack) or part.results.scenario["seeds"])
            if attack not in best or seed < best[attack][0]:
                best[attack] = seed, [each for each in part.results.pictures if each.attack == attack]
    return _in_order((each for _, pictures in best.values() for each in pictures), names)


def _timings(runs: Sequence[Results]) -> tuple[dict[str, Any], ...]:
    """All stages; one that a run took from the Store, where another of the runs had it, too, once."""
    found = list[dict[str, Any]]()
    for results in runs:
        others = list(found)
        for each in results.timings:
            same = next((one for one in others if _one_stage(one, each)), None)
            if same is None:
                found.append(each)
            else:
                others.remove(same)
    return tuple(found)


def _one_stage(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs tell of the same stage, as far as seed, name and time say, and one of them did not make it."""
    alike = all(one.get(key) == other.get(key) for key in ("seed", "stage", "seconds"))
    return alike and bool(one.get("cached") or other.get("cached"))


def _records(parts: Sequence[Part], scenario: Scenario) -> tuple[list[Record], list[str]]:
    """What is told of one seed, and of detectors that learned anew in each run; and where runs contradict each other.

    Of several attacks all runs of a seed tell what is of none, such as the accuracy on a task that nobody attacks.
    """
    pooled, several = _examiners(scenario), len(_singles(scenario)) > 1
    found, shared, doubts = list[Record](), list[tuple[Record, Record]](), list[str]()
    for part in parts:
        for record in part.results.records:
            if record.seed is None:
                if record.task is None and record.defense not in pooled:
                    found.append(_of_fleet(record, part, parts))
                continue
            if record.attack is None and several:
                place = replace(record, value=0.0, low=None, high=None, seconds=None)
                same = next((told for at, told in shared if at == place), None)
                if same is not None:
                    if same.value != record.value:
                        where = f"{record.metric} on {record.task} with seed {record.seed}"
                        doubts.append(f"{DIFFER} in {where}; that of the first one is shown.")
                    continue
                shared.append((place, record))
            found.append(record)
    return found, doubts


def _of_fleet(record: Record, part: Part, parts: Sequence[Part]) -> Record:
    """What a detector tells that has learned in this run; where others have the attack, too, with its seeds there."""
    attacks = [name for name, _ in part.cells]
    attack = record.attack if record.attack in attacks else attacks[0]
    if "seeds" in record.condition or sum(bool(each.seeds(attack)) for each in parts) < 2:
        return record
    return replace(record, condition=record.condition | {"seeds": ", ".join(map(str, part.seeds(attack)))})


# What is counted again


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
