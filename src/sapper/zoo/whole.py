"""A zoo from end to end, as the commands ``sapper zoo build``, ``score`` and ``learn`` have it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sapper import encoders
from sapper.audits import auditing, calibration, stored
from sapper.audits.calibration import Bag
from sapper.audits.families import FamilyBag, read_families
from sapper.defenses.budgets import budget as budget_of
from sapper.defenses.contracts import EncoderJudge, Examiner
from sapper.engine.environment import environment
from sapper.engine.executors import Workers
from sapper.engine.store import Store
from sapper.errors import SapperError, closest, located
from sapper.experiment.precision import of_searching, of_training
from sapper.files import shipped_file
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.checking import read_instance
from sapper.zoo import building, examining, for_audits, plans, scoreboard
from sapper.zoo.examining import DEVELOPMENT
from sapper.zoo.images import Splits, ordinary_images
from sapper.zoo.making import Member
from sapper.zoo.outline import check_parts, outline, outline_of, read_content
from sapper.zoo.scoreboard import Scoreboard

NO_FAMILIES = "no bag over families is named, and the zoo's calibration part was not examined"
UNCALIBRATED = "the zoo's calibration part has no known-clean encoders of its kind"


def build_zoo(
    plan: str | Path,
    folder: Path,
    *,
    parts: Sequence[str] = (),
    data_root: Path | None = None,
    download: bool = False,
    workers: Workers | None = None,
    surroundings: Run | None = None,
) -> list[Member]:
    """Make the encoders of a zoo; those that are in the folder already are kept.

    ``plan``: a TOML file, or the name of one that comes with Sapper. ``parts``: of the plan, all by default.
    ``workers``: processes, each with one thread. The seed is the plan's.
    """
    base, file = surroundings or Run(), shipped_file(str(plan), "zoos", "plan")
    content = read_content(file)
    outlined = outline(content, str(file))
    with located(f"zoo {outlined.name}"):
        check_parts(parts, outlined.parts)
    read = plans.parse_plan(content, str(file))
    networks = [(specimen.encoder, specimen.pretraining_method) for specimen in read.specimens]
    building.claim(folder, read)
    run = of_training("auto", networks, Store(folder), _seeded(base, read.seed))
    splits = Splits.load(read, run, parts=parts, data_root=data_root, download=download)
    return building.build(read, folder, run, workers or Workers(torch.get_num_threads()), parts=parts, data=splits)


@dataclass(frozen=True, kw_only=True)
class ScoredZoo:
    """How detectors tell a zoo's encoders apart, and the file that says so, ``scores``.

    ``bags``: those that its encoders were judged beside, with the power that was measured. ``unjudged``: families for
    which no bag fits, and why. ``families``: the bag over families that strangers were judged beside.
    """

    board: Scoreboard
    scores: Path
    bags: tuple[Bag, ...]
    unjudged: Mapping[str, str]
    families: FamilyBag | None = None


def score_zoo(
    folder: Path,
    *,
    budget: str = "quick",
    parts: Sequence[str] = (),
    learned: Sequence[Path] = (),
    beside: Sequence[Path | Bag] = (),
    strangers: bool = False,
    among: Path | FamilyBag | None = None,
    strict: bool = False,
    command: str = "sapper.score_zoo(…)",
    data_root: Path | None = None,
    download: bool = False,
    workers: Workers | None = None,
    surroundings: Run | None = None,
) -> ScoredZoo:
    """Let the detectors of a budget examine a zoo; leaves their scores in its folder.

    ``parts``: all but development by default. ``learned``: what ``learn_from_zoo`` wrote, for one family each.
    ``beside``: bags to compare with, by default the calibration part, else those that come with Sapper. ``strict``: a
    family that no bag fits is an error. ``strangers``: the budget's detector for those that no bag fits, and a bag over
    families to compare with, ``among``, by default that of the calibration part. Raises ``SapperError`` for a zoo
    without members of these parts, and for a bag over families that was made otherwise, or with those to be judged.
    """
    base, chosen, outlined = surroundings or Run(), budget_of(budget), outline_of(folder)
    if strangers:
        chosen = for_audits.of_strangers(chosen)
    with located(f"zoo {outlined.name}"):
        check_parts(parts, outlined.parts)
    given = calibration.distinct([each if isinstance(each, Bag) else calibration.read_bag(each) for each in beside])
    plan = building.plan_of(folder)
    default_parts = (examining.JUDGEMENT,) if given or among is not None else scoreboard.PARTS
    members = [member for member in building.read_members(folder, plan) if member.part in (parts or default_parts)]
    others = read_families(among) if isinstance(among, Path) else among
    if strangers:
        for_audits.check_strangers(members, others, chosen)
    if not members:
        remedy = "sapper zoo build makes them"
        raise SapperError("the zoo has no members of these parts", where=str(folder), remedy=remedy)
    run = _seeded(base, plan.seed)
    images = {
        family: ordinary_images(plan, family, run, data_root=data_root, download=download)
        for family in dict.fromkeys(member.family for member in members)
    }
    if others is not None:
        for_audits.check_enough(images, others)
    more, unjudged = _by_family(learned, list(images)), dict[str, str]()
    calibrates = not given and any(member.part == examining.CALIBRATION for member in members)
    if not calibrates and not strangers:
        strict, given = strict or bool(given), given or calibration.shipped_bags()
        unjudged = for_audits.unfit(members, folder, images, given, chosen, run)
        for family, why in unjudged.items() if strict else ():  # before hours are spent on what cannot be judged
            raise SapperError(f"{family} cannot be judged: {why}", where="--bag", remedy="name a bag that fits")
        run = auditing.as_the_bags(run, given)
    if strangers and others is not None:
        run = auditing.as_the_bags(run, [others])
    if not run.why:
        run = of_searching(encoders.load(folder / members[0].file, run), run, Store(folder))
    crew = workers or Workers(torch.get_num_threads())
    scored = examining.examine(members, folder, images, chosen, run, crew, more)
    families = None
    if strangers:
        families = others or for_audits.families_of(scored, images, chosen, plan.name, environment(run))
        unjudged = {} if families else {each.member.family: NO_FAMILIES for each in scored}
        known = {} if families is None else for_audits.among_families(scored, families)
    elif calibrates:
        known = scoreboard.own_calibration(scored, plan.name, budget)
        given = for_audits.bags(scored, folder, images, chosen, plan.name, run, environment(run))
        unjudged = {each.member.family: UNCALIBRATED for each in scored if each.looks not in known}
    else:
        known = scoreboard.beside_bags(scored, given)
    board = scoreboard.board(scored, known, plan.name, chosen, environment(run), command)
    return ScoredZoo(
        board=board,
        scores=scoreboard.write_scores(board, folder),
        bags=() if strangers else tuple(for_audits.measured(given, scored, known, chosen)),
        unjudged=unjudged,
        families=families,
    )


def learn_from_zoo(
    folder: Path,
    family: str,
    out: Path,
    *,
    method: str = "mntd_encoder",
    parameters: Mapping[str, Any] | None = None,
    data_root: Path | None = None,
    download: bool = False,
    surroundings: Run | None = None,
) -> tuple[EncoderJudge, str]:
    """Let a detector learn from a family's development part; ``out`` can then be asked in audits.

    ``parameters`` of the method. Returns what it has learned, and that in words.
    """
    base, families = surroundings or Run(), [each.name for each in outline_of(folder).families]
    if family not in families:
        remedy = closest(family, families)
        raise SapperError(f"the zoo has no family {family!r}", where="--family", remedy=remedy)
    chosen = read_instance(stored.learner(method, "--method"), dict(parameters or {}), method, "--set")
    plan = building.plan_of(folder)
    members = [
        member
        for member in building.read_members(folder, plan)
        if member.family == family and member.part == DEVELOPMENT
    ]
    pairs, run = sum(member.attacked for member in members), _seeded(base, plan.seed)
    images: ImageSet = ordinary_images(plan, family, run, data_root=data_root, download=download)
    if members:
        run = of_searching(encoders.load(folder / members[0].file, run), run, Store(folder))
    chosen = chosen.with_pairs(max(1, pairs))
    judge, kind = for_audits.learn(members, folder, images, method, chosen, run.child(method))
    stored.save(judge, kind, out)
    areas = "; ".join(f"{name} {sum(values) / len(values):.2f}" for name, values in judge.learned.items())
    return judge, f"{method}: {chosen.state} from {pairs} pairs, {areas}"


def _seeded(run: Run, seed: int) -> Run:
    """The run with the plan's seed."""
    return Run(seed=seed, device=run.device, dtype=run.dtype, why=run.why, progress=run.progress)


def _by_family(files: Sequence[Path], families: list[str]) -> dict[str, dict[str, Examiner]]:
    """Detectors by the families that they learned from, with whose names their source begins, and their methods."""
    found: dict[str, dict[str, Examiner]] = {}
    for path in files:
        judge = stored.load(path)
        family = judge.kind.source.partition(",")[0]
        if family not in families:
            remedy = closest(family, families)
            raise SapperError(f"it has learned from the family {family!r}", where=str(path), remedy=remedy)
        ours, name = found.setdefault(family, {}), judge.kind.method
        if name in ours:
            what = f"another {name} has learned from the family {family!r}, too"
            raise SapperError(what, where=str(path), remedy="name one file of each method for each family")
        ours[name] = judge
    return found
