"""Results as one self-contained HTML page: no network, no script, readable on a phone and in the dark.

The page is a head and a list of sections. To add a section: a function from Results to plain data and a line in
``SECTIONS``, both in ``sections.py``, and a partial in ``templates/sections/`` that shows the data as ``content``.
A section whose content is empty is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sapper.experiment.results import Results
from sapper.files import write_atomically
from sapper.report import audited, means, summaries, targeted, text
from sapper.report.means import Estimate
from sapper.report.pages import environment
from sapper.report.sections import FOLDED, SECTIONS
from sapper.report.summaries import aim


def write_report(results: Results, path: Path) -> None:
    """Write the page to ``path``; the same results give the same bytes.

    Raises ``SapperError`` when it cannot be written; an older report is then untouched.
    """
    write_atomically(path, render(results))


def render(results: Results) -> str:
    """The page's HTML."""
    pages = environment()
    pages.globals |= {
        "aim": aim,
        "columns": [(metric, means.LABELS.get(metric, metric)) for metric in means.METRICS],
    }
    contents = [(section, section.content(results)) for section in SECTIONS]
    return pages.get_template("report.html.j2").render(
        results=results,
        facts=facts(results),
        lead=lead(results),
        verdicts=verdicts(results),
        sections=[(section, content) for section, content in contents if content],
        folded=FOLDED if results.scenario.get("matrix") else (),
    )


# The head of the page


@dataclass(frozen=True)
class Verdict:
    """A sentence of the summary and the numbers to show large: the strict ASR with the backdoor and without.

    ``alarming``: the backdoor, not the trigger alone, decides what at least a tenth of the images are taken for.
    """

    label: str
    sentence: str
    attacked: Estimate | None
    before: Estimate | None
    alarming: bool


def verdicts(results: Results) -> list[Verdict]:
    """A verdict for each task and target of the primary head; none where all was varied, or a matrix tells it."""
    if results.scenario.get("matrix"):
        return []
    return [
        Verdict(
            summaries.of_attack(results, row.attack, aim(row.task, row.target)),
            summaries.sentence(results, row),
            row.estimates.get("ASR_strict"),
            row.estimates.get("ASR_B_strict"),
            alarming=_surely(row.estimates.get("lift"), above=0.1),
        )
        for row in summaries.headline_rows(results)
    ]


def _surely(estimate: Estimate | None, *, above: float) -> bool:
    """Whether the whole interval lies above."""
    return estimate is not None and (estimate.value if estimate.low is None else estimate.low) > above


def lead(results: Results) -> list[str]:
    """What stands above the verdicts, or in their place."""
    told = [summaries.headline(results)] if summaries.headline_rows(results) else summaries.summary_sentences(results)
    return [words for words in [*told, *targeted.sentences(results), audited.headline(results)] if words]


def facts(results: Results) -> list[str]:
    """The line under the title: attack, seeds, primary head, time."""
    attack, several = results.scenario.get("attack"), summaries.attacks(results)
    method = attack.get("method") if isinstance(attack, Mapping) else None
    seeds = sorted({record.seed for record in results.records if record.seed is not None})
    head = summaries.primary_head(results)
    seconds = sum(item.get("seconds") or 0 for item in results.timings)
    known = {
        f"attack {method}": method,
        f"attacks {text.listing(several)}": several and method is None,
        f"{'seed' if len(seeds) == 1 else 'seeds'} {text.listing(seeds)}": seeds,
        f"primary head {head}": head and not results.scenario.get("primary_heads"),
        "measured on held-out training images": results.scenario.get("judge_on") == "validation",
        f"{text.duration(seconds)} of computation": seconds,
    }
    return [fact for fact, value in known.items() if value]
