"""Writes what the pages show of committed JSON; with ``--check`` it only tells which pages say something else.

A page says in a comment what it shows, and everything from there to ``<!-- end -->`` is written by this program::

    <!-- results data/demo.json -->        all tables of a kept results.json, as sapper report prints them
    <!-- matrix data/matrix.json -->      every attack and every defense of a kept results.json;
                                          or only its "tables" or "sentences", named after the file
    <!-- bags ../../src/sapper/audits/bags --> what the bags in a folder hold
    <!-- methods attacks -->               all methods of a table, with their sources
    <!-- source sapper.PLACE:NAME -->      the code of a class or function as it stands

    <!-- table                             a table of records; its keys are those of docs.tables.RecordTable
    from = "data/cifar10.json"
    rows = ["task", "head"]
    columns = ["CA", "BA"]
    -->

    <!-- text                              words with single figures in them: docs.tables.Text
    text = "{found} were found."
    figures.found = { from = "data/zoo.json", where = { family = "all" }, value = "found" }
    -->

Paths are relative to the page.
"""

import argparse
import inspect
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from pydantic import ValidationError

from docs import tables
from sapper.errors import SapperError, first_mistake, located
from sapper.experiment.results import read_results
from sapper.files import write_atomically
from sapper.methods import imported
from sapper.report import markdown

REPOSITORY = Path(__file__).resolve().parents[1]
END = "<!-- end -->"
BLOCK = re.compile(
    r"^<!-- (results|matrix|bags|methods|source|table|text)\b(.*?)-->\n(.*?)(?=^<!-- |\Z)", re.MULTILINE | re.DOTALL
)


def _of_results(words: str, folder: Path) -> str:
    return markdown.render(read_results(folder / words.strip()))


def _of_matrix(words: str, folder: Path) -> str:
    path, _, part = words.strip().partition(" ")
    if part not in get_args(markdown.MatrixPart):
        raise SapperError(f"a matrix has no part {part!r}", remedy="ask for tables, for sentences, or for no part")
    return markdown.matrices(read_results(folder / path), cast(markdown.MatrixPart, part))


def _of_bags(words: str, folder: Path) -> str:
    return tables.of_bags(folder / words.strip())


def _of_methods(words: str, _folder: Path) -> str:
    return tables.of_methods(words.strip())


def _of_source(words: str, _folder: Path) -> str:
    return f"```python\n{inspect.getsource(imported(words.strip())).rstrip()}\n```"


def _of_records(words: str, folder: Path) -> str:
    return tables.of_records(tables.RecordTable.model_validate(tomllib.loads(words)), folder)


def _of_figures(words: str, folder: Path) -> str:
    return tables.of_figures(tables.Text.model_validate(tomllib.loads(words)), folder)


KINDS: dict[str, Callable[[str, Path], str]] = {
    "results": _of_results,
    "matrix": _of_matrix,
    "bags": _of_bags,
    "methods": _of_methods,
    "source": _of_source,
    "table": _of_records,
    "text": _of_figures,
}
"""What follows the word in the comment, and the page's folder, to Markdown."""


def pages(repository: Path = REPOSITORY) -> list[Path]:
    """Every page that may show figures."""
    return [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]


def written(page: Path) -> str:
    """The page as the JSON would have it."""
    old = page.read_text(encoding="utf-8")

    def block(found: re.Match[str]) -> str:
        kind, words, shown = found.groups()
        line = old.count("\n", 0, found.start()) + 1
        where = f"{page}: line {line}"
        if not old.startswith(END, found.end()):
            raise SapperError(f"the block has no {END}", where=where, remedy="put it after the block")
        with located(where):
            try:
                new = KINDS[kind](words, page.parent)
            except (ValidationError, tomllib.TOMLDecodeError) as error:
                told = first_mistake(error) if isinstance(error, ValidationError) else str(error)
                raise SapperError(told, remedy="see python -m docs --help") from error
        return f"{found[0].removesuffix(shown)}\n{new.strip()}\n\n"

    return BLOCK.sub(block, old)


def main(arguments: list[str], repository: Path = REPOSITORY) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is stale")
    only_look = parser.parse_args(arguments).check
    stale = {page: new for page in pages(repository) if (new := written(page)) != page.read_text(encoding="utf-8")}
    for page, new in stale.items():
        print(f"{page.relative_to(repository)}: {'not what its data say; run make docs' if only_look else 'written'}")
        if not only_look:
            write_atomically(page, new)
    return 1 if stale and only_look else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SapperError as error:
        sys.exit(str(error))
