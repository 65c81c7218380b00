"""Commands for zoos: many small encoders, clean and backdoored, to measure detectors by."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sapper import process
from sapper.cli.shared import (
    GOES_ON,
    BudgetOption,
    DataRoot,
    Device,
    Download,
    check_device,
    check_file,
    check_learned,
    check_writable,
    device_of,
    err,
    say,
    telling_interrupts,
)
from sapper.errors import SapperError, closest, located
from sapper.files import shipped_file

Processes = Annotated[
    int, typer.Option("--workers", min=0, help="Processes that train or examine encoders; 0: as many as cores.")
]


def build(
    plan: Annotated[str, typer.Argument(help="A plan's file, or the name of one that comes with sapper.")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the zoo, runs/zoo-NAME by default.")
    ] = None,
    parts: Annotated[list[str] | None, typer.Option("--part", help="Only this part. Can be repeated.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    workers: Processes = 0,
) -> None:
    """Make the encoders of a zoo; those that are there already are kept."""
    from sapper.zoo.outline import MANIFEST, check_parts, outline, read_content

    file = shipped_file(plan, "zoos", "plan")
    content = read_content(file)
    outlined = outline(content, str(file))
    with located(f"zoo {outlined.name}"):
        check_parts(parts or (), outlined.parts)
    check_device(device)
    folder = out_folder or Path("runs") / f"zoo-{outlined.name}"
    check_writable(folder)
    process.settle()  # before torch is loaded
    with err.status("loading"):
        import torch

        from sapper.engine.executors import Workers
        from sapper.engine.store import Store
        from sapper.experiment.precision import of_training
        from sapper.progress import progress
        from sapper.running import Run
        from sapper.zoo import building, plans
        from sapper.zoo.images import Splits

    read, place = plans.parse_plan(content, str(file)), device_of(device)
    crew = Workers(workers or torch.get_num_threads(), process.settle)
    torch.set_num_threads(1)  # as in the workers, whose stages these are
    with telling_interrupts(GOES_ON), progress(err) as bars:
        networks = [(specimen.encoder, specimen.pretraining_method) for specimen in read.specimens]
        building.claim(folder, read)
        run = of_training("auto", networks, Store(folder), Run(seed=read.seed, device=place, progress=bars))
        splits = Splits.load(read, run, parts=parts or (), data_root=data_root, download=download)
        members = building.build(read, folder, run, crew, parts=parts or (), data=splits)
    say(f"{building.summary(members)}: {folder / MANIFEST}")


def score(
    folder: Annotated[Path, typer.Argument(help="A zoo's folder.")],
    budget: BudgetOption = "quick",
    parts: Annotated[
        list[str] | None, typer.Option("--part", help="Only this part, by default all but development. Repeatable.")
    ] = None,
    learned: Annotated[
        list[Path] | None,
        typer.Option("--learned", help="What sapper zoo learn wrote, for one family. Repeatable."),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--bag", help="Compare with this bag; by default the calibration part, else shipped bags. Repeatable."
        ),
    ] = None,
    bags: Annotated[
        Path | None, typer.Option("--bags", help="Write bags to this folder, with the share of backdoors found.")
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    workers: Processes = 0,
) -> None:
    """Let the detectors of a budget examine a zoo: AUC, true positives and false alarms of each."""
    from sapper.audits import calibration
    from sapper.audits.budgets import budget as budget_of
    from sapper.zoo.outline import check_parts, outline_of

    chosen, outlined = budget_of(budget), outline_of(folder)
    with located(f"zoo {outlined.name}"):
        check_parts(parts or (), outlined.parts)
    check_device(device)
    if bags is not None:
        check_writable(bags, "--bags")
    given = calibration.distinct([calibration.read_bag(path) for path in beside or []])
    for file in learned or []:
        check_learned(file)
    process.settle()  # before torch is loaded
    with err.status("loading"):
        import torch

        from sapper import encoders
        from sapper.audits import auditing
        from sapper.engine.environment import environment
        from sapper.engine.executors import Workers
        from sapper.engine.store import Store
        from sapper.experiment.precision import of_searching
        from sapper.progress import progress
        from sapper.report import zoo as page
        from sapper.running import Run
        from sapper.zoo import building, examining, for_audits, scoreboard
        from sapper.zoo.images import ordinary_images

    plan, place = building.plan_of(folder), device_of(device)
    default_parts = (examining.JUDGEMENT,) if given else scoreboard.PARTS
    members = [member for member in building.read_members(folder, plan) if member.part in (parts or default_parts)]
    if not members:
        remedy = "sapper zoo build makes them"
        raise SapperError("the zoo has no members of these parts", where=str(folder), remedy=remedy)
    calibrates = not given and any(member.part == examining.CALIBRATION for member in members)
    crew = Workers(workers or torch.get_num_threads(), process.settle)
    torch.set_num_threads(1)  # as in the workers, whose stages these are
    with progress(err) as bars:
        run = Run(seed=plan.seed, device=place, progress=bars)
        images = {
            family: ordinary_images(plan, family, run, data_root=data_root, download=download)
            for family in dict.fromkeys(member.family for member in members)
        }
        more = _by_family(learned or [], list(images))
        if not calibrates:
            given, asked = given or calibration.shipped_bags(), bool(given) or bags is not None
            for family, why in for_audits.unfit(members, folder, images, given, chosen, run).items():
                if asked:  # before hours are spent on what cannot be judged
                    raise SapperError(f"{family} cannot be judged: {why}", where="--bag", remedy="name a bag that fits")
                say(f"{family} cannot be judged: {why}")
            run = auditing.as_the_bags(run, given)
        if not run.why:
            run = of_searching(encoders.load(folder / members[0].file, run), run, Store(folder))
        scored = examining.examine(members, folder, images, chosen, run, crew, more)
    around = environment(run)
    if calibrates:
        known = scoreboard.own_calibration(scored, plan.name, budget)
        given = for_audits.bags(scored, folder, images, chosen, plan.name, run, around)
    else:
        known = scoreboard.beside_bags(scored, given)
    board = scoreboard.board(scored, known, plan.name, chosen, around, shlex.join(["sapper", *sys.argv[1:]]))
    path = scoreboard.write_scores(board, folder)
    if bags is not None:
        measured = for_audits.measured(given, scored, known, chosen)
        if not measured:
            say("no bag is written: none was made from encoders trained like these")
        for bag in measured:
            calibration.write_bag(bag, bags / f"{bag.name}.json")
            say(f"bag: {bags / f'{bag.name}.json'}, {bag.size} encoders")
    page.write(board, path.with_suffix(".html"))
    for line in page.lines(board):
        say(line)
    say(f"report: {path.with_suffix('.html')}")


def learn(
    folder: Annotated[Path, typer.Argument(help="A zoo's folder.")],
    family: Annotated[str, typer.Option("--family", help="Whose development part to learn from.")],
    out_file: Annotated[Path, typer.Option("--out", help="The file for what it learns, .safetensors.")],
    method: Annotated[str, typer.Option("--method", help="A defense of the kind learn.")] = "mntd_encoder",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a parameter of it, e.g. epochs=30. Repeatable.")
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
) -> None:
    """Let a detector learn from a zoo's development part, to be asked in audits (--learned)."""
    from sapper import defenses
    from sapper.methods import place_of
    from sapper.scenario.overrides import apply
    from sapper.zoo.outline import outline_of

    families = [each.name for each in outline_of(folder).families]
    if family not in families:
        remedy = closest(family, families)
        raise SapperError(f"the zoo has no family {family!r}", where="--family", remedy=remedy)
    place_of("defenses", defenses.METHODS, method, "--method")
    changes: dict[str, Any] = {}
    for change in overrides or []:
        apply(changes, change)
    check_device(device)
    check_file(out_file)
    process.settle()  # before torch is loaded
    with err.status("loading"):
        from sapper import encoders
        from sapper.audits import stored
        from sapper.engine.store import Store
        from sapper.experiment.precision import of_searching
        from sapper.progress import progress
        from sapper.running import Run
        from sapper.scenario.checking import read_instance
        from sapper.zoo import building, for_audits
        from sapper.zoo.examining import DEVELOPMENT
        from sapper.zoo.images import ordinary_images

    chosen = read_instance(stored.learner(method, "--method"), changes, method, "--set")
    plan, place = building.plan_of(folder), device_of(device)
    members = [
        member
        for member in building.read_members(folder, plan)
        if member.family == family and member.part == DEVELOPMENT
    ]
    pairs = sum(member.attacked for member in members)
    with progress(err) as bars:
        run = Run(seed=plan.seed, device=place, progress=bars)
        images = ordinary_images(plan, family, run, data_root=data_root, download=download)
        if members:
            run = of_searching(encoders.load(folder / members[0].file, run), run, Store(folder))
        chosen = chosen.with_pairs(max(1, pairs))
        judge, kind = for_audits.learn(members, folder, images, method, chosen, run.child(method))
    stored.save(judge, kind, out_file)
    areas = "; ".join(f"{name} {sum(values) / len(values):.2f}" for name, values in judge.learned.items())
    say(f"{method}: {chosen.state} from {pairs} pairs, {areas}: {out_file}")


def _by_family(files: list[Path], families: list[str]) -> Any:
    """Detectors by the families that they learned from, with whose names their source begins, and their methods."""
    from sapper.audits import stored

    found: dict[str, Any] = {}
    for path in files:
        judge = stored.load(path)
        family = judge.kind.source.partition(",")[0]
        if family not in families:
            remedy = closest(family, families)
            raise SapperError(f"it has learned from the family {family!r}", where=str(path), remedy=remedy)
        ours, name = found.setdefault(family, {}), judge.kind.method
        if name in ours:
            remedy = "name one file of each method for each family"
            raise SapperError(
                f"another {name} has learned from the family {family!r}, too", where=str(path), remedy=remedy
            )
        ours[name] = judge
    return found
