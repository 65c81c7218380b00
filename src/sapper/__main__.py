"""The program: ``sapper``, and ``python -m sapper``.

An audit's exit codes are verdicts, and Python's own code for whatever goes wrong is 1, evidence of a backdoor. So what
fails where nothing else could help, an import, a message that cannot be written, ends with 2 here.
"""

import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

FAILED, INTERRUPTED = 2, 130


def main() -> NoReturn:
    """Run the command that the words on the command line name, and end with its exit code."""
    code = FAILED
    try:
        from sapper.cli import main as commands

        code = commands()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        with suppress(Exception):  # nobody may be there to read it
            traceback.print_exc()
    _drop_unwritten()
    sys.exit(code)


def _drop_unwritten() -> None:
    """Python would try again at its end to write what nobody could read, and then end with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # full, closed by somebody, never there
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
