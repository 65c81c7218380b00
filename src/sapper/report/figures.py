"""The drawings, as SVG for pasting into the page.

A drawing holds marks and numbers only. Names stand beside it in HTML, where they are escaped, wrap, and need no
font that knows their script. It holds no colors either: it is drawn in placeholders that become variables of the
page's style sheet, so that the same drawing fits light and dark.
"""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sapper.experiment.results import Curve, FeatureMap, Picture
from sapper.report.means import Estimate
from sapper.report.summaries import SummaryRow

N_COLORS = 12
_VARIABLES = ("ink", "muted", "line", "paper", "alarm", *(f"c{i}" for i in range(N_COLORS)))
# Near black, so that a placeholder that is ever missed is still a color that reads.
_PLACEHOLDERS = {name: f"#{0x0F00 + i:06x}" for i, name in enumerate(_VARIABLES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "sapper",  # else ids are random, and no two reports equal
    "text.parse_math": False,
    "font.size": 8,
    "axes.edgecolor": _PLACEHOLDERS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _PLACEHOLDERS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": _PLACEHOLDERS["line"],
    "ytick.color": _PLACEHOLDERS["line"],
    "xtick.labelcolor": _PLACEHOLDERS["muted"],
    "ytick.labelcolor": _PLACEHOLDERS["muted"],
    "lines.solid_capstyle": "round",
}

SWEPT = {
    "ASR_strict": ("alarm", "line"),
    "ASR_B_strict": ("alarm", "dotted"),
    "BA": ("c0", "line"),
    "CA": ("c0", "dotted"),
}
"""The metrics that a sweep shows: what the attack wants and what it must not cost, each with its clean twin."""


@dataclass(frozen=True)
class Strip:
    """A row of small pictures; ``role`` is what they show."""

    title: str
    role: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Key:
    """One entry of a legend. ``color`` and ``mark`` (star, cross, dot, line, dotted) are the style sheet's names."""

    color: str
    mark: str
    name: str
    value: str = ""


@dataclass(frozen=True)
class RocLine:
    """One ROC curve: ``points``, from (0, 0) to (1, 1); ``at``: the one that a threshold chose."""

    key: Key
    points: Sequence[tuple[float, float]]
    at: tuple[float, float] | None = None


def class_color(label: float) -> str:
    """The style sheet's name of a class's color; colors repeat after ``N_COLORS`` classes."""
    return f"c{int(label) % N_COLORS}"


def feature_map(drawn: FeatureMap, name: str) -> Markup:
    """Clean images as dots colored by class, triggered ones as crosses, references as stars. Axes are to scale."""
    with rc_context(_STYLE):
        figure, axes = _canvas(3.4, 3.0)
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_aspect("equal", adjustable="datalim")
        clean, triggered, reference = (drawn.points.get(role) for role in ("clean", "triggered", "reference"))
        if clean:
            colors = [_PLACEHOLDERS[class_color(label)] for label in clean["label"]]
            axes.scatter(clean["x"], clean["y"], s=9, c=colors, alpha=0.75, linewidths=0, clip_on=False)
        if triggered:
            ink = _PLACEHOLDERS["ink"]
            axes.scatter(
                triggered["x"], triggered["y"], s=11, c=ink, marker="x", alpha=0.55, linewidths=0.8, clip_on=False
            )
        if reference:
            fill, edge = _PLACEHOLDERS["alarm"], _PLACEHOLDERS["paper"]
            axes.scatter(reference["x"], reference["y"], s=170, c=fill, marker="*", edgecolors=edge, linewidths=0.9)
        return _svg(figure, name)


def curves(drawn: Sequence[Curve], name: str) -> Markup:
    """The same curves of several seeds over one another: one color for each series, in the order of ``series_of``."""
    with rc_context(_STYLE):
        figure, axes = _canvas(4.4, 2.3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        for index, series in enumerate(series_of(drawn)):
            for curve in drawn:
                values = curve.series.get(series, [])
                axes.plot(
                    range(1, len(values) + 1),
                    values,
                    color=_PLACEHOLDERS[class_color(index)],
                    alpha=1 if len(drawn) == 1 else 0.6,
                    linewidth=1.4,
                    marker="o" if len(values) == 1 else "",
                )
        return _svg(figure, name)


def series_of(drawn: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(series for curve in drawn for series in curve.series))


def sweep(rows: Sequence[SummaryRow], key: str, name: str) -> Markup:
    """Metrics against one numeric condition, its values evenly spaced, with their intervals."""
    rows = sorted(rows, key=lambda row: float(row.condition[key]))
    with rc_context(_STYLE):
        figure, axes = _canvas(4.4, 2.5)
        axes.set_ylim(-3, 103)
        axes.set_xticks(range(len(rows)), labels=[f"{row.condition[key]:g}" for row in rows])
        for metric, (color, mark) in SWEPT.items():
            known = {at: row.estimates[metric] for at, row in enumerate(rows) if metric in row.estimates}
            _line_with_intervals(axes, known, _PLACEHOLDERS[color], ":" if mark == "dotted" else "-")
        return _svg(figure, name)


def scores(
    groups: Mapping[str, Sequence[float]], colors: Mapping[str, str], threshold: float | None, name: str
) -> Markup:
    """Scores as points, one row for each encoder, and the threshold; on a logarithmic scale where they go far."""
    with rc_context(_STYLE):
        figure, axes = _canvas(4.4, 1.5)
        axes.set(yticks=[], ylim=(-0.6, len(groups) - 0.4))
        axes.grid(axis="y", visible=False)
        highest = max((abs(value) for values in groups.values() for value in values), default=0)
        if highest > 100:
            axes.set_xscale("symlog", linthresh=10)
        for row, (encoder, values) in enumerate(reversed(list(groups.items()))):
            color = _PLACEHOLDERS[colors[encoder]]
            axes.scatter(values, [row] * len(values), s=28, c=color, alpha=0.6, linewidths=0, clip_on=False)
        if threshold is not None:
            axes.axvline(threshold, color=_PLACEHOLDERS["ink"], linestyle=":", linewidth=1.2)
        return _svg(figure, name)


def certified(lines: Mapping[str, Mapping[float, Estimate]], colors: Mapping[str, str], name: str) -> Markup:
    """Certified accuracy against the patch's side, or a radius, a line with intervals for each encoder."""
    with rc_context(_STYLE):
        figure, axes = _canvas(4.4, 2.3)
        axes.set_ylim(-3, 103)
        whole = all(size == int(size) for estimates in lines.values() for size in estimates)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=whole))
        for encoder, estimates in lines.items():
            _line_with_intervals(axes, estimates, _PLACEHOLDERS[colors[encoder]], "-")
        return _svg(figure, name)


def roc(lines: Sequence[RocLine], name: str) -> Markup:
    """ROC curves, and the diagonal of a coin toss; both axes in per cent. Of several with one key, each is thinner."""
    with rc_context(_STYLE):
        figure, axes = _canvas(3.4, 3.2)
        axes.set(xlim=(-2, 102), ylim=(-2, 102))
        axes.set_aspect("equal")
        axes.plot([0, 100], [0, 100], color=_PLACEHOLDERS["muted"], linestyle=":", linewidth=1)
        counts = Counter(line.key for line in lines)
        for line in lines:
            color, alone = _PLACEHOLDERS[line.key.color], counts[line.key] == 1
            style: dict[str, Any] = {"color": color, "alpha": 1.0 if alone else 0.7, "clip_on": False}
            x, y = ([100 * value for value in values] for values in zip(*line.points))
            dots = ":" if line.key.mark == "dotted" else "-"
            axes.plot(x, y, linestyle=dots, linewidth=1.6 if alone else 0.9, drawstyle="steps-post", **style)
            if line.at:
                axes.plot(100 * line.at[0], 100 * line.at[1], marker="o", markersize=5 if alone else 3.5, **style)
        return _svg(figure, name)


def _line_with_intervals(
    axes: Axes, estimates: Mapping[int, Estimate] | Mapping[float, Estimate], color: str, line: str
) -> None:
    values = [100 * item.value for item in estimates.values()]
    axes.plot(list(estimates), values, color=color, linestyle=line, linewidth=1.5, marker="o", markersize=3)
    for at, item in estimates.items():
        if item.low is not None and item.high is not None:
            axes.vlines(at, 100 * item.low, 100 * item.high, color=color, alpha=0.35, linewidth=1)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Figure, name: str) -> Markup:
    """The drawing as an element of a page. ``name`` keeps its ids apart from those of the page's other drawings."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", svg)  # HTML needs no name spaces
    svg = re.sub(r'(?<=<svg) width="[^"]*" height="[^"]*"|font-family: [^;]*; ', "", svg)  # the style sheet's work
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)  # hundredths of a point will do
    for variable, placeholder in _PLACEHOLDERS.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return Markup(svg)  # safe: made of numbers alone
