"""The command line: the only room that prints. torch is imported only by commands that compute."""

import re
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from sapper import __version__
from sapper.cli import attesting, audits, calibrating, experiments, listing, repairing, replaying, zoos
from sapper.cli.shared import BROKEN_PIPE, ChosenEnd, err, guarded, out, spare_streams
from sapper.errors import SapperError

app = typer.Typer(
    help="Puts backdoors into pre-trained encoders, finds and clears them, and measures attacks and defenses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def root(
    # ``main`` takes --debug out wherever it stands, because every command knows it; here it is for --help.
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all commands."""


COMMANDS: tuple[Callable[..., None], ...] = (
    experiments.run,
    experiments.demo,
    experiments.report,
    experiments.merge,
    audits.audit,
    replaying.replay,
    repairing.repair,
    attesting.verify,
    calibrating.calibrate,
    listing.methods,
)
for command in COMMANDS:
    app.command()(guarded(command))

zoo = typer.Typer(help="Many small encoders, clean and backdoored, to measure detectors by.", no_args_is_help=True)
for of_zoos in (zoos.build, zoos.score, zoos.learn):
    zoo.command()(guarded(of_zoos))
app.add_typer(zoo, name="zoo")


def main() -> int:
    """Run a command; its exit code: 0, or 2 with one message when something from outside cannot be used.

    An audit has codes of its own. A crash ends with 2; an interrupt with 130 and a closed pipe with 141, as in shells.
    """
    spare_streams()
    try:
        app([word for word in sys.argv[1:] if word != "--debug"])
    except ChosenEnd as end:
        return end.chosen
    except SystemExit as end:  # Typer's: for help, wrong usage, an interrupt, and with 1 for a pipe that is closed
        return end.code if end.code in (0, 130, BROKEN_PIPE) else 2
    except SapperError as error:
        return _end(error)
    except Exception as error:
        # torch's own kinds: OutOfMemoryError on an accelerator, a plain RuntimeError on the CPU
        full = isinstance(error, RuntimeError) and re.search("(out of|not enough|allocate) memory", str(error))
        if not full and not isinstance(error, MemoryError):
            traceback.print_exc()
            err.print("[bold red]error[/bold red] this is a fault in sapper; please report it with the lines above")
            return 2
        remedy = "take a smaller batch, a narrower encoder or fewer images; finished stages and epochs are kept"
        return _end(SapperError("the memory is not enough", remedy=remedy))
    return 0


def _end(error: SapperError) -> int:
    """Tell what is wrong; the exit code for that."""
    if "--debug" in sys.argv:
        traceback.print_exc()
    err.print(f"[bold red]error[/bold red] {escape(str(error))}", soft_wrap=True)
    return 2
