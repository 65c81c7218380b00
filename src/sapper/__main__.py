"""``python -m sapper`` is ``sapper``."""

from sapper.cli import main

main()
