"""From committed records to Markdown.

A record is a flat JSON object; a file is a list of them, or an object that has them under ``records``, as results.json.
A figure of a record is a number, or an object:

* ``{"value": 0.586, "low": 0.577, "high": 0.594}``, with a 95 % interval (of a plain number ``value`` the interval may
  stand beside it as ``low`` and ``high``, of a number ``CA`` as ``CA_low`` and ``CA_high``);
* ``{"found": 87, "of": 90, "low": 0.906, "high": 0.993}``, a share;
* ``{"value": 0.49, "sd": 0.155}``, with a standard deviation;
* ``[0.586, 0.577, 0.594]``, a value and its 95 % interval.

A key with dots goes into objects: ``metrics.mlp.lift``.

Several records in one place must differ in their ``seed``; shown is their mean, with Student's t interval over seeds.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sapper import attacks, defenses, pretraining
from sapper.attacks import adaptive
from sapper.errors import SapperError
from sapper.experiment.results import Record
from sapper.files import read_text
from sapper.methods import HEADS, TRIGGERS, imported
from sapper.report import means, text
from sapper.report.means import Estimate

Json = dict[str, Any]

TABLES = {
    "pretraining": pretraining.METHODS,
    "attacks": attacks.METHODS,
    "adaptive": adaptive.METHODS,
    "defenses": defenses.METHODS,
    "heads": HEADS,
    "triggers": TRIGGERS,
}
"""All methods, by what they are for."""


class Spec(BaseModel):
    """What a page says about a block; a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Spec):
    """Figures under one heading.

    ``value``: their key in the record. ``where``: what else the record must say. ``name``: the heading. ``format``:
    ``%`` for fractions in per cent, ``+%`` the same with a sign, ``s`` for seconds, or one of Python's. Without it
    fractions (``"unit": "fraction"``) are in per cent and other numbers have four digits.
    """

    value: str = "value"
    where: Json = {}
    name: str | None = None
    format: str | None = None


class RecordTable(Spec):
    """``rows``: the keys that tell rows apart, each with a column. A value of ``where`` may be a list of
    allowed ones, or "" for a key that says nothing.

    ``names``: other headings, by key. ``format``: for columns that have none of their own.
    """

    source: str = Field(alias="from")
    rows: tuple[str, ...]
    columns: tuple[str | Column, ...]
    where: Json = {}
    names: dict[str, str] = {}
    format: str | None = None


class Figure(Column):
    """One figure of a file, as a column has it."""

    source: str = Field(alias="from")


class Text(Spec):
    """``text`` with a figure's name in braces wherever it is to stand."""

    text: str
    figures: dict[str, Figure]


def of_records(spec: RecordTable, folder: Path) -> str:
    """The table, then where its records come from and what its intervals are."""
    chosen = [record for record in read(folder / spec.source) if _fits(record, spec.where)]
    if not chosen:
        raise SapperError(f"no record in it has {text.condition(spec.where)}", where=spec.source)
    groups: dict[tuple[str, ...], list[Json]] = {}
    for record in chosen:
        groups.setdefault(tuple(text.plain(said(record).get(key)) for key in spec.rows), []).append(record)
    columns = [Column(value=each) if isinstance(each, str) else each for each in spec.columns]
    cells = {row: [_cell(group, column, spec.format) for column in columns] for row, group in groups.items()}
    headings = [*spec.rows, *(column.name or column.value for column in columns)]
    lines = [
        _line(_heading(heading, spec.names) for heading in headings),
        f"|{'---|' * len(spec.rows)}{'---:|' * len(columns)}",
        *(_line([*row, *(cell.below for cell in found)]) for row, found in cells.items()),
    ]
    every = [cell.estimate for found in cells.values() for cell in found if cell.estimate]
    sources = dict.fromkeys(record["source"] for record in chosen if "source" in record)
    over_seeds = [each for each in every if each.source in ("seeds", "models")]
    notes = [f"{means.interval_note(over_seeds)}."] if over_seeds else []
    return "\n".join([*lines, "", *(f"{_sentence(note)}" for note in [*sources, *notes])])


def of_figures(spec: Text, folder: Path) -> str:
    """The text with every figure, its interval in brackets behind it."""
    shown = {}
    for name, figure in spec.figures.items():
        chosen = [record for record in read(folder / figure.source) if _fits(record, figure.where)]
        if not chosen:
            raise SapperError(f"{name}: no record of {figure.source} has {text.condition(figure.where)}")
        shown[name] = _cell(chosen, figure, None).beside
    try:
        return spec.text.format_map(shown)
    except KeyError as error:
        raise SapperError(f"the text names the figure {error}, which is not below figures") from error


def of_bags(folder: Path) -> str:
    """What the scores of the known-clean encoders in bags are, of the detector that decides."""
    headings = ["bag", "encoders", "median score", "second largest", "largest"]
    lines = [_line([*headings, "at one point, median", "at one point, largest"]), "|---|" + "---:|" * 6]
    for path in sorted(folder.glob("*.json")):
        bag = json.loads(read_text(path, "name a folder of bags"))
        scores, gathered = sorted(bag["scores"]["multi_prior"]), bag["gathered"]["multi_prior"]
        figures = [f"{value:.2f}" for value in (statistics.median(scores), scores[-2], scores[-1])]
        shares = [f"{value:.0%}" for value in (statistics.median(gathered), max(gathered))]
        lines.append(
            _line([bag["name"], *(value.replace("-", "−") for value in (str(len(scores)), *figures, *shares))])
        )
    return "\n".join(lines)


def of_methods(table: str) -> str:
    """All methods of a table ("attacks"): of which kind each is, what it does in a sentence, its source."""
    rows = []
    for name, place in TABLES[table].items():
        method = imported(place)
        kind = vars(method).get("kind", name)
        of = f" of the {vars(method)['of']} set" if kind == "poison" else ""
        sentence = (method.__doc__ or "").strip().partition("\n")[0].replace("|", "\\|")
        rows.append([f"`{name}`", f"{kind}{of}", sentence, method.source])
    kinds = any(row[1] != row[0].strip("`") for row in rows)
    head = ["name", "kind", "what it is", "source"]
    kept = [row if kinds else [row[0], *row[2:]] for row in (head, *rows)]
    return "\n".join([_line(kept[0]), "|" + "---|" * len(kept[0]), *(_line(row) for row in kept[1:])])


def read(path: Path) -> list[Json]:
    """The records of a file."""
    found = json.loads(read_text(path, "commit the file that the page names"))
    return list(found["records"] if isinstance(found, dict) else found)


@dataclass(frozen=True)
class Cell:
    """A figure and what stands with it: the interval ``below`` it in a table, ``beside`` it in a text."""

    figure: str
    span: str = ""
    estimate: Estimate | None = None

    @property
    def below(self) -> str:
        return f"{self.figure}<br><sub>{self.span}</sub>" if self.span else self.figure

    @property
    def beside(self) -> str:
        return f"{self.figure} ({self.span})" if self.span else self.figure


def _cell(group: Sequence[Json], column: Column, form: str | None) -> Cell:
    """The figure of one row in one column: of one record, or the mean over seeds."""
    fitting = [
        record for record in group if _fits(record, column.where) and figure_of(record, column.value) is not None
    ]
    if not fitting:
        return Cell(text.NOTHING)
    if len(fitting) > 1 and len({record.get("seed") for record in fitting}) < len(fitting):
        told = f"{len(fitting)} records with the same seed are in one row, of {text.condition(fitting[0])}"
        raise SapperError(f"{column.value}: {told}", remedy="name the key that tells them apart in rows or where")
    first = figure_of(fitting[0], column.value)
    if not isinstance(first, dict | int | float) or isinstance(first, bool):
        return Cell(text.plain(first))
    form = column.format or form or ("%" if fitting[0].get("unit") == "fraction" else "")
    found = means.estimate([_record(record, column.value, form) for record in fitting])
    span = f"{shown(found.low, form)}…{shown(found.high, form)}" if found.low is not None else ""
    figure = shown(found.value, form)
    if isinstance(first, dict) and len(fitting) == 1:
        figure = f"{first['found']} of {first['of']}: {figure}" if "found" in first else figure
        figure += f" ± {shown(first['sd'], form)}" if "sd" in first else ""
    return Cell(figure, span, found)


def _record(record: Json, key: str, form: str) -> Record:
    """One figure as the report knows it: a fraction where it is shown in per cent, the lift where it has a sign."""
    value = figure_of(record, key)
    if isinstance(value, dict):
        low, high = value.get("low"), value.get("high")
        value = value["found"] / value["of"] if "found" in value else value["value"]
    else:
        low, high = (record.get(end if key == "value" else f"{key}_{end}") for end in ("low", "high"))
    unit = "fraction" if form in ("%", "+%") else ""
    metric = "lift" if form == "+%" else record.get("metric", key) if key == "value" else key
    told: Json = {"value": value, "low": low, "high": high, "n": record.get("n")}
    return Record(seed=record.get("seed"), stage="", metric=metric, unit=unit, **told)


def shown(value: float | None, form: str = "") -> str:
    """A number in one of the formats of a ``Column``."""
    match form:
        case "%" | "+%":
            return text.number(value, signed=form == "+%")
        case "s":
            return text.NOTHING if value is None else text.duration(value)
        case "":
            return f"{value:,.0f}" if value is not None and abs(value) >= 1000 else text.number(value, unit="")
        case _:
            return text.NOTHING if value is None else format(value, form).replace("-", "−")


def figure_of(record: Json, key: str) -> Any:
    """What stands at a key, none if nothing does; of three numbers in a list a value with its interval."""
    value: Any = record
    for part in [key] if key in record else key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return dict(zip(("value", "low", "high"), value)) if isinstance(value, list) and len(value) == 3 else value


def said(record: Json) -> Json:
    """What the record says; the keys of its ``condition`` count as its own, and tell more than one of the same name."""
    return record | record.get("condition", {})


def _fits(record: Json, where: Json) -> bool:
    """Whether the record says all of it; "" stands for nothing."""
    found = {key: "" if said(record).get(key) is None else said(record)[key] for key in where}
    return all(found[key] in (value if isinstance(value, list) else [value]) for key, value in where.items())


def _heading(key: str, names: dict[str, str]) -> str:
    return names.get(key) or means.LABELS.get(key) or key.replace("_", " ")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"
