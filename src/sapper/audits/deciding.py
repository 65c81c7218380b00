"""The decision of an audit, by its leading detector: beside the bags that fit, else among families.

    backdoor       the p-value is at most the false-alarm bound beside every bag that fits, and the score above the
                   detector's threshold
    no-evidence    one of the two is not so: nothing unusual was found, or nothing that is of use to an attacker
    undecided      there is no fitting bag, so that nobody can say what a clean encoder would have scored; or the
                   encoder's features cannot be measured

The second condition keeps encoders that are unusual without being dangerous, a supervised classifier's say, from
being flagged for that; it can only lower the rate of false alarms.
"""

from collections.abc import Sequence
from dataclasses import replace

from sapper.audits.calibration import Bag, Match
from sapper.audits.families import AmongFamilies, FamilyBag
from sapper.audits.found import Answer, Finding, beside_bag


def among(leading: Finding, families: FamilyBag) -> Finding:
    """The leading finding with its p-value among families."""
    return leading if leading.score is None else replace(leading, p_value=families.p_value(leading.score))


def decide(
    leading: Finding, match: Match, families: AmongFamilies | None, bound: float
) -> tuple[float | None, Answer, str]:
    """The p-value, the verdict, and why, in one sentence. ``families``: none where no bag over families was given."""
    if families is not None and families.bag is not None:
        return _decide_among(leading, families.bag, bound)
    if not match.bags:
        why = match.reason if match.too_small else f"there is nothing to compare the score with: {match.reason}"
        why += f"; {families.reason}" if families is not None and families.reason else ""
        return None, "undecided", f"{why[0].upper()}{why[1:]}."
    if leading.score is None or leading.p_value is None:
        return None, "undecided", _no_score(leading)
    beside = _beside(leading.method, leading.score, match.bags)
    if leading.p_value <= bound and not leading.flagged:
        return leading.p_value, "no-evidence", _too_weak(leading, beside)
    if leading.p_value <= bound:
        return leading.p_value, "backdoor", f"A small change gives nearly all images the same features; {beside}."
    if any(beside_bag(leading, bag) <= bound for bag in match.bags):
        what = "The score is unusual beside some kinds of known-clean encoders, but not beside others"
        return leading.p_value, "no-evidence", f"{what}; {beside}."
    return leading.p_value, "no-evidence", f"No change that was tried is unusual; {beside}."


def _too_weak(leading: Finding, beside: str) -> str:
    weak = f"too weak to be of use: score {leading.score:.3f}, needed: more than {leading.threshold:g}"
    return f"What was found is unusual, but {weak}; {beside}."


def _no_score(leading: Finding) -> str:
    return f"{leading.method} gave no score: {leading.evidence.get('why', 'it ended without one')}."


def _decide_among(leading: Finding, families: FamilyBag, bound: float) -> tuple[float | None, Answer, str]:
    if leading.score is None or leading.p_value is None:
        return None, "undecided", _no_score(leading)
    beside = (
        f"no bag of its kind is known; of {families.size} other families of known-clean encoders "
        f"{families.reaching(leading.score)} have one that scores as high"
    )
    if leading.p_value > bound:
        return leading.p_value, "no-evidence", f"No change that was tried is unusual; {beside}."
    if not leading.flagged:
        return leading.p_value, "no-evidence", _too_weak(leading, beside)
    winner = leading.evidence.get("priors", {}).get(leading.evidence.get("prior"), {})
    does = (
        "sends more images to one cluster of features" if "share" in winner else "draws features together much further"
    )
    why = f"A small change {does} than in the encoder's twins"
    return leading.p_value, "backdoor", f"{why}; {beside}."


def _beside(method: str, score: float, bags: Sequence[Bag]) -> str:
    """How many of each bag score as high, in words."""
    counts = [f"{sum(other >= score for other in bag.of(method))} of {bag.size} in {bag.name}" for bag in bags]
    return f"known-clean encoders that score as high: {', '.join(counts)}"
