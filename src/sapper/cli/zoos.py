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
    int,
    typer.Option("--jobs", "--workers", "-j", min=0, help="Processes that train or examine encoders; 0: one per core."),
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
        from sapper.progress import progress
        from sapper.running import Run
        from sapper.zoo import building, whole

    place, crew = device_of(device), Workers(workers or torch.get_num_threads(), process.settle)
    torch.set_num_threads(1)  # as in the workers, whose stages these are
    with telling_interrupts(GOES_ON), progress(err) as bars:
        members = whole.build_zoo(
            plan,
            folder,
            parts=parts or (),
            data_root=data_root,
            download=download,
            workers=crew,
            surroundings=Run(device=place, progress=bars),
        )
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
    strangers: Annotated[
        bool, typer.Option("--strangers", help="Judge each as one that no bag fits: beside other families.")
    ] = False,
    among: Annotated[
        Path | None,
        typer.Option("--among", help="With --strangers: this bag over families, by default the calibration part."),
    ] = None,
    families_file: Annotated[
        Path | None, typer.Option("--families", help="With --strangers: write the bag over families to this file.")
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    workers: Processes = 0,
) -> None:
    """Let the detectors of a budget examine a zoo: AUC, true positives and false alarms of each."""
    from sapper.audits import calibration, families
    from sapper.defenses.budgets import budget as budget_of
    from sapper.zoo.outline import check_parts, outline_of

    budget_of(budget)
    outlined = outline_of(folder)
    with located(f"zoo {outlined.name}"):
        check_parts(parts or (), outlined.parts)
    check_device(device)
    _check_strangers(strangers, {"--bag": beside, "--bags": bags}, {"--among": among, "--families": families_file})
    if families_file is not None:
        check_file(families_file)
    if bags is not None:
        check_writable(bags, "--bags")
    given = calibration.distinct([calibration.read_bag(path) for path in beside or []])
    for file in learned or []:
        check_learned(file)
    process.settle()  # before torch is loaded
    with err.status("loading"):
        import torch

        from sapper.engine.executors import Workers
        from sapper.progress import progress
        from sapper.report import zoo as page
        from sapper.running import Run
        from sapper.zoo import whole

    place, crew = device_of(device), Workers(workers or torch.get_num_threads(), process.settle)
    torch.set_num_threads(1)  # as in the workers, whose stages these are
    with progress(err) as bars:
        scored = whole.score_zoo(
            folder,
            budget=budget,
            parts=parts or (),
            learned=learned or (),
            beside=given,
            strangers=strangers,
            among=None if among is None else families.read_families(among),
            strict=bags is not None,
            command=shlex.join(["sapper", *sys.argv[1:]]),
            data_root=data_root,
            download=download,
            workers=crew,
            surroundings=Run(device=place, progress=bars),
        )
    for family, why in scored.unjudged.items():
        say(f"{family} cannot be judged: {why}")
    if bags is not None:
        if not scored.bags:
            say("no bag is written: none was made from encoders trained like these")
        for bag in scored.bags:
            calibration.write_bag(bag, bags / f"{bag.name}.json")
            say(f"bag: {bags / f'{bag.name}.json'}, {bag.size} encoders")
    if families_file is not None:
        if scored.families is None:
            what, remedy = "no family is known to be clean", "build the calibration part, or name --part calibration"
            raise SapperError(what, where="--families", remedy=remedy)
        families.write_families(scored.families, families_file)
        without = sum(score is None for family in scored.families.families for score in family.scores)
        told = f"{scored.families.encoders} encoders" + (f", {without} of them without a score" if without else "")
        say(f"bag over {scored.families.size} families, {told}: {families_file}")
    path = scored.scores.with_suffix(".html")
    page.write(scored.board, path)
    for line in page.lines(scored.board):
        say(line)
    say(f"report: {path}")


def _check_strangers(strangers: bool, without: dict[str, object], only: dict[str, object]) -> None:
    """Raises ``SapperError`` for options that do nothing."""
    for name, value in (without if strangers else only).items():
        if value:
            what = f"{name} is for bags of one kind" if strangers else f"{name} does nothing by itself"
            raise SapperError(what, where=name, remedy="leave --strangers out" if strangers else "add --strangers")


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
        from sapper.progress import progress
        from sapper.running import Run
        from sapper.zoo import whole

    with progress(err) as bars:
        _, said = whole.learn_from_zoo(
            folder,
            family,
            out_file,
            method=method,
            parameters=changes,
            data_root=data_root,
            download=download,
            surroundings=Run(device=device_of(device), progress=bars),
        )
    say(f"{said}: {out_file}")
