"""The program: ``sapper``, and ``python -m sapper``.

An audit's exit codes are verdicts, and Python's own code for whatever goes wrong is 1, evidence of a backdoor. So what
fails where nothing else could help, an import, a message that cannot be written, ends with 2 here.
"""

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
    sys.exit(code)


if __name__ == "__main__":
    main()
