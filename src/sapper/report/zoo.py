"""A zoo's scoreboard for people: a page with one table and one plot, and lines for the terminal."""

from pathlib import Path

from sapper.files import write_atomically
from sapper.report import figures, text
from sapper.report.figures import Key, RocLine
from sapper.report.pages import environment
from sapper.zoo.scoreboard import Row, Scoreboard, Share


def write(board: Scoreboard, path: Path) -> None:
    """Write the page."""
    write_atomically(path, render(board))


def render(board: Scoreboard) -> str:
    """The page's HTML."""
    keys = [Key(figures.class_color(at), "line", name) for at, name in enumerate(board.curves)]
    return (
        environment()
        .get_template("zoo.html.j2")
        .render(
            board=board,
            columns=COLUMNS,
            nothing_judged=NOTHING_JUDGED,
            table=table(board),
            counts=counts(board),
            missed_columns=MISSED,
            missed=missed(board),
            keys=keys,
            drawing=figures.roc([RocLine(key, board.curves[key.name]) for key in keys], "roc"),
        )
    )


NOTHING_JUDGED = "Nothing was judged: there is no judgement part with clean and backdoored encoders."

COLUMNS = (
    "family",
    "detector",
    "AUC",
    "found",
    "found of those that work",
    "false alarms",
    "found, own threshold",
    "false alarms, own threshold",
    "time each",
)


def table(board: Scoreboard) -> list[list[str]]:
    """A line for each detector and family, as in ``COLUMNS``."""
    return [_cells(row, board) for row in board.rows]


def _cells(row: Row, board: Scoreboard) -> list[str]:
    leads = " (decides)" if row.detector == board.leading else ""
    return [
        row.family,
        f"{row.detector}{leads}",
        f"{text.number(row.auc)} ({text.span(row.auc_low, row.auc_high)})",
        *(
            _share(share)
            for share in (
                row.true_positives,
                row.working,
                row.false_alarms,
                row.own_true_positives,
                row.own_false_alarms,
            )
        ),
        text.duration(row.seconds),
    ]


def _share(share: Share | None) -> str:
    if share is None or share.n == 0:
        return text.NOTHING
    return f"{share.found} of {share.n}: {text.number(share.value)} ({text.span(share.low, share.high)})"


DIGEST = 64
"""Letters of a SHA-256."""

MISSED = ("missed", "trigger", "strict ASR", "score", "p-value", "drop found (log10)", "under its own trigger")


def missed(board: Scoreboard) -> list[list[str]]:
    """A line for each backdoored encoder that an audit would pass, as in ``MISSED``."""
    return [
        [
            each.name,
            ", ".join(f"{key} {_plain(value)}" for key, value in each.trigger.items() if _tells(key, value)),
            text.number(each.asr_strict),
            *(text.NOTHING if value is None else f"{value:.2g}" for value in (each.score, each.p_value)),
            *(text.NOTHING if value is None else f"{value:.2g}" for value in (each.powers, each.under_trigger)),
        ]
        for each in board.missed
    ]


def _tells(key: str, value: object) -> bool:
    """Whether a reader learns anything from it: not from the digest of a tensor."""
    return key != "margin" and not (isinstance(value, str) and len(value) == DIGEST)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def counts(board: Scoreboard) -> str:
    """How many encoders of which kind are in which part, in words."""
    groups: dict[tuple[str, str], int] = {}
    for each in board.members:
        place = each.member.part, text.STATES[each.member.state]
        groups[place] = groups.get(place, 0) + 1
    return "; ".join(f"{part}: {n} {kind}" for (part, kind), n in groups.items())


def lines(board: Scoreboard) -> list[str]:
    """The table as Markdown, which a terminal shows as well; and what was found of which triggers."""
    found = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(cells)} |" for cells in table(board)),
        "",
        f"In %, with 95 % intervals (Newcombe's for AUC, Clopper–Pearson's for shares); bound {board.bound:g}. "
        f"Beside {', '.join(board.beside) or 'nothing'}. Encoders: {counts(board)}.",
    ]
    if not board.rows:
        found = [f"{NOTHING_JUDGED} Encoders: {counts(board)}."]
    found += [
        f"{power.trigger}: {power.found} of {power.planted} found ({text.span(power.low, power.high)} %)"
        for power in board.power
    ]
    if board.missed:
        found += ["", f"| {' | '.join(MISSED)} |", f"|{'---|' * len(MISSED)}"]
    return found + [f"| {' | '.join(cells)} |" for cells in missed(board)]
