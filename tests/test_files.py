"""Text files of users: what every reader of one takes, and what it says of the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapper.audits.calibration import SHIPPED, read_bag
from sapper.audits.replaying import read_audit
from sapper.datasets.readers import read_class_names
from sapper.errors import SapperError
from sapper.experiment.results import read_results
from sapper.files import read_text
from sapper.scenario.reading import read
from sapper.zoo.building import plan_of
from sapper.zoo.plans import read_plan

READERS: dict[str, Callable[[Path], object]] = {
    "scenario.toml": read,
    "plan.toml": read_plan,
    "bag.json": read_bag,
    "results.json": read_results,
    "audit.json": read_audit,
    "classes.json": lambda path: read_class_names(path.parent),
    "zoo.json": lambda path: plan_of(path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_another_encoding(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for encoding, said in (("utf-16", "UTF-16"), ("utf-32-be", "UTF-32"), ("latin-1", "Latin-1")):
        mark = "\ufeff" if encoding == "utf-32-be" else ""
        path.write_bytes((mark + '{"name": "för"}').encode(encoding))
        with pytest.raises(SapperError, match=said) as caught:
            READERS[name](path)
        assert caught.value.where == str(path)
        assert "UTF-8" in str(caught.value.remedy)


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_makes_no_difference(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def end(encoding: str) -> str:
        path.write_text("a = 1" if path.suffix == ".toml" else "{}", encoding=encoding)
        try:
            return repr(READERS[name](path))
        except SapperError as error:
            return str(error)

    assert end("utf-8-sig") == end("utf-8")


def test_a_bag_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    shipped = sorted(SHIPPED.glob("*.json"))[0]
    (tmp_path / "bag.json").write_bytes(b"\xef\xbb\xbf" + shipped.read_bytes().replace(b"\n", b"\r\n"))
    assert read_bag(tmp_path / "bag.json") == read_bag(shipped)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), max_size=30))
def test_text_comes_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text"
    for content in (text, "\ufeff" + text, text.replace("\n", "\r\n"), text.replace("\n", "\r")):
        path.write_bytes(content.encode())
        assert read_text(path, "") == text
