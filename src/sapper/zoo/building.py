"""A zoo in a folder: its encoders and a manifest. A build goes on where it stopped."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from sapper.engine.executors import Workers, execute
from sapper.engine.stage import Stage
from sapper.engine.store import Finished, Store
from sapper.errors import SapperError, first_mistake
from sapper.files import write_atomically
from sapper.running import Run, Silent
from sapper.zoo.images import Splits
from sapper.zoo.making import WORKING, Member
from sapper.zoo.outline import MANIFEST, SCHEMA, read_manifest
from sapper.zoo.plans import Plan, Specimen, parse_plan

_MEMBER = TypeAdapter(Member)


def build(
    plan: Plan, folder: Path, run: Run, workers: Workers, *, parts: Sequence[str] = (), data: Splits
) -> list[Member]:
    """Make the members of some parts of a zoo, or of all; those that are there are not made again.

    Leaves ``zoo.json``. On a CPU one process a core with one thread each trains them, on an accelerator they are
    trained one after another. Raises ``SapperError`` for a folder that holds another zoo.
    """
    specimens = plan.of_parts(parts)
    claim(folder, plan)
    store = Store(folder)
    made = [data.planned(each, replace(run, seed=each.seed, progress=Silent())) for each in specimens]
    last = {each.pipeline.stages[-1] for each in made}
    with store.locked(), run.progress.bar(f"zoo of {_count(specimens)} encoders", len(made)) as bar:

        def tell(stage: Stage, _finished: Finished) -> None:
            bar.advance(stage in last)

        done = execute([stage for each in made for stage in each.pipeline.stages], store, executor=workers, tell=tell)
        members = [member for each in made for member in each.members(done, store)]
        there = [member for member in read_members(folder, plan) if member.part not in {each.part for each in members}]
        _write(folder, plan, there + members)
    return members


def _write(folder: Path, plan: Plan, members: Sequence[Member]) -> None:
    content = {"schema": SCHEMA, "plan": plan.content, "members": [asdict(member) for member in members]}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def _count(specimens: Sequence[Specimen]) -> str:
    twins = sum(specimen.twin for specimen in specimens)
    return f"{len(specimens)} clean and {twins} backdoored"


def summary(members: Sequence[Member]) -> str:
    """How many there are, and how many of the backdoors work, in words."""
    rates = [member.about["metrics"]["ASR_strict"] for member in members if member.attacked]
    clean, working = len(members) - len(rates), sum(asr >= WORKING for asr in rates)
    text = f"{clean} clean and {len(rates)} backdoored encoders"
    return f"{text}, {working} of them with a strict ASR of {WORKING:.0%} or more" if rates else text


def read_members(folder: Path, plan: Plan) -> list[Member]:
    """The members of the plan's zoo in a folder. Raises ``SapperError`` if there is none, or one is not of the plan."""
    members = []
    for place, content in enumerate(read_manifest(folder)["members"]):
        try:
            member = _MEMBER.validate_python(content)
            _check(member, plan, folder)
        except (ValueError, LookupError, TypeError, OSError, SafetensorError) as error:
            remedy = "build the zoo anew; what is there is not made again"
            where = f"{folder / MANIFEST}: members[{place}]"
            what = first_mistake(error) if isinstance(error, ValidationError) else error
            raise SapperError(f"a member cannot be read: {what}", where=where, remedy=remedy) from error
        members.append(member)
    return members


def _check(member: Member, plan: Plan, folder: Path) -> None:
    """Raises an error for what ``build`` does not write, and for a trigger that cannot be read."""
    files = [PurePath(each) for each in (member.file, member.made) if each is not None]
    if member.family not in plan.images or member.part not in plan.parts:
        raise ValueError(f"the plan has no family {member.family!r} with a part {member.part!r}")
    for path in files:
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"its file {str(path)!r} is not in this folder")
    if member.attacked and (member.trigger(folder) is None or not 0 <= member.about["metrics"]["ASR_strict"] <= 1):
        raise ValueError("it does not say what its backdoor does")


def plan_of(folder: Path) -> Plan:
    """The plan of the zoo in a folder."""
    return parse_plan(read_manifest(folder)["plan"], str(folder / MANIFEST))


def claim(folder: Path, plan: Plan) -> None:
    """The folder as this plan's own. Raises ``SapperError`` if it holds another zoo."""
    if not (folder / MANIFEST).exists() or not read_manifest(folder)["members"]:
        _write(folder, plan, [])
    elif read_manifest(folder)["plan"] != json.loads(json.dumps(plan.content)):
        remedy = "name another folder with --out"
        raise SapperError("this folder holds a zoo of another plan", where=str(folder), remedy=remedy)
