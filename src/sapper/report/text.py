"""Numbers and plain data as people read them. Nothing here knows HTML; escaping is the template's work."""

import json
import re
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

NOTHING = "–"


def number(value: float | None, unit: str = "fraction", *, signed: bool = False) -> str:
    """A value without its unit: fractions as percent with one decimal, all else with four digits."""
    if value is None:
        return NOTHING
    text = f"{100 * value:+.1f}" if unit == "fraction" else f"{value:+.4g}"
    text = text.replace("-", "−")
    if float(text.replace("−", "-")) == 0:  # no "−0.0"
        text = text[1:]
    return text if signed else text.removeprefix("+")


def span(low: float | None, high: float | None, unit: str = "fraction", *, signed: bool = False) -> str:
    """An interval without its unit, empty where there is none."""
    if low is None or high is None:
        return ""
    return f"{number(low, unit, signed=signed)}…{number(high, unit, signed=signed)}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def listing(values: Sequence[Any], most: int = 24) -> str:
    """The values with commas; past ``most`` of them only how many more there are."""
    shown = ", ".join(plain(value) for value in values[:most])
    return shown if len(values) <= most else f"{shown}, … ({len(values) - most} more)"


def condition(values: Mapping[str, Any]) -> str:
    """``lambda1 = 0.25, trigger.size = 5``."""
    return ", ".join(f"{key} = {plain(value)}" for key, value in values.items())


def plain(value: Any) -> str:
    """Any JSON value on one line, without JSON's quotes and brackets where they only disturb."""
    match value:
        case None:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            return listing(value)
        case Mapping():
            return condition(value)
        case _:
            return str(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted keys with one line of text each."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", plain(value)))
    return rows


def toml(values: Mapping[str, Any], path: str = "") -> str:
    """A mapping as a scenario file would have it: plain keys first, then its tables, blocks apart by empty lines.

    TOML has no null, so keys that are not set are left out.
    """
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping) or _is_table_array(value)}
    lines = _assignments({key: value for key, value in values.items() if key not in tables})
    blocks = ["\n".join(lines)] if lines else []
    for key, value in tables.items():
        name = path + _toml_key(key)
        if isinstance(value, Mapping):
            inner = toml(value, f"{name}.")
            blocks.append(f"[{name}]\n{inner}")
        else:
            blocks += ["\n".join([f"[[{name}]]", *_assignments(item)]) for item in value]
    return "\n\n".join(blocks)


def _assignments(values: Mapping[str, Any]) -> list[str]:
    return [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items() if value is not None]


def _toml_value(value: Any) -> str:
    """A value on one line, tables within it in braces. TOML's strings and numbers are written as JSON's."""
    if isinstance(value, Mapping):
        inner = ", ".join(_assignments(value))
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _is_table_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


LIMITS = {
    "lift": (-1.0, 1.0),
    "accuracy_change": (-1.0, 1.0),
    "fraction": (0.0, 1.0),
    "cosine": (-1.0, 1.0),
    "SSIM": (-1.0, 1.0),
    "levels": (0.0, 255.0),
}
"""From where to where values go, by metric or unit."""


def limits(metric: str, unit: str) -> tuple[float, float]:
    """From where to where a metric goes."""
    return LIMITS.get(metric, LIMITS.get(unit, (-inf, inf)))


STATES = {"clean": "clean", "attacked": "backdoored", "repaired": "repaired"}
"""What is said of a subject's state."""
