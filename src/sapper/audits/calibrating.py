"""Bags are made: encoders that are known to be clean are opened, checked, and examined as an audit does.

Hours of work are not lost: after each encoder what was found is kept beside the bag (``kept``), and the same call goes
on from there. Of a list of public models, some cannot be had today, or are of another kind: where ``lenient``, they are
left out and named, and the others make the bag.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sapper.audits import auditing
from sapper.audits.calibration import Bag, Key
from sapper.defenses.budgets import Budget
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.files import as_text, write_atomically
from sapper.running import FORMATS, Run
from sapper.samples import ImageSet

Opened = Callable[[str], tuple[Encoder, ImageSet]]
"""An encoder by its name, and images of its size."""


@dataclass(frozen=True)
class Candidates:
    """Encoders of one kind: their fingerprints by name, the key that they share, and who was left out and why.

    ``marks``: by name what an encoder is, with how it normalizes images, which its weights do not say.
    """

    digests: dict[str, str]
    marks: dict[str, str]
    key: Key
    left_out: dict[str, str]


def candidates(
    uris: Sequence[str],
    opened: Opened,
    budget: Budget,
    *,
    lenient: bool = False,
    tell: Callable[[str], None] = lambda _line: None,
) -> Candidates:
    """Are these encoders of one kind, and each there once? Asked before hours are spent on a bag of them.

    Raises ``SapperError`` for copies, for other kinds, and for what cannot be opened; where ``lenient``, that is left
    out, the kind that most are of is taken, and only if nothing is left there is an error. ``tell`` gets a line for
    each that is left out, as soon as that is known.
    """
    keys: dict[str, Key] = {}
    digests: dict[str, str] = {}
    marks: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for uri in uris:
        try:
            digest, key, marks[uri] = _checked(uri, opened, budget)
            copy = next((other for other, known in digests.items() if known == digest), None)
            if copy is not None:
                what = f"these are the weights of {copy}"
                raise SapperError(what, where=uri, remedy="name each encoder once: copies tell nothing")
            first = next(iter(keys.values()), key)
            if key != first and not lenient:
                what = f"it has other {', '.join(first.differs(key))} than {uris[0]}"
                raise SapperError(what, where=uri, remedy="make a bag of each kind")
        except SapperError as error:
            if not lenient:
                raise
            left_out[uri] = f"{error.what}; {error.remedy}" if error.remedy else error.what
            tell(f"left out: {uri}: {left_out[uri]}")
        else:
            digests[uri], keys[uri] = digest, key
    if not keys:
        what = f"none of {len(uris)} encoders can be opened; the first: {next(iter(left_out.values()))}"
        raise SapperError(what, where=uris[0], remedy="check the network, or what is in the caches")
    most = Counter(json.dumps(asdict(key), sort_keys=True) for key in keys.values()).most_common(1)[0][0]
    chosen = next(key for key in keys.values() if json.dumps(asdict(key), sort_keys=True) == most)
    for uri in [uri for uri, key in keys.items() if key != chosen]:
        left_out[uri] = f"it is of another kind: {', '.join(chosen.differs(keys[uri]))}"
        tell(f"left out: {uri}: {left_out[uri]}")
        del digests[uri]
    return Candidates(digests=digests, marks=marks, key=chosen, left_out=left_out)


def _checked(uri: str, opened: Opened, budget: Budget) -> tuple[str, Key, str]:
    subject, shown = opened(uri)
    if subject.card.backdoored:
        what, remedy = "this encoder says that it is backdoored", "name known-clean encoders only"
        raise SapperError(what, where=uri, remedy=remedy)
    auditing.check_images(subject, shown)
    digest, card = auditing.fingerprint(subject), subject.card
    return digest, Key.of(subject, shown, budget), f"{digest} mean {card.mean} std {card.std}"


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What an audit's detectors found in one encoder: for each its score, and the share that its trigger gathers."""

    scores: dict[str, float | None]
    gathered: dict[str, float | None]


def looks(
    known: Candidates,
    opened: Opened,
    budget: Budget,
    choose: Callable[[Encoder, Run], Run],
    run: Run,
    kept: Path | None,
) -> tuple[dict[str, Looked], Run]:
    """What is found in each encoder, by its name, and the run in the number format that was used.

    ``choose``: the number format, by the first encoder. ``kept``: a file that each is written to when it is done, and
    taken from when it is there and of the same key and seed. An encoder that normalizes otherwise is looked at anew.
    """
    about = {"key": asdict(known.key), "seed": run.seed}
    done, number_format = _read(kept, about)
    if number_format is None:
        run = choose(opened(next(iter(known.digests)))[0], run)
    else:
        run = replace(run, dtype=FORMATS[number_format], why="as it was begun")
    found: dict[str, Looked] = {}
    with run.progress.bar("known-clean encoders", len(known.digests)) as bar:
        for uri, digest in known.digests.items():
            mark = known.marks[uri]
            if mark not in done:
                done[mark] = _look(uri, digest, opened, budget, run)
                if kept is not None:
                    looked = {name: asdict(each) for name, each in done.items()}
                    write_atomically(kept, as_text(about | {"number_format": run.number_format, "looked": looked}))
            found[uri] = done[mark]
            bar.advance()
    return found, run


def _look(uri: str, digest: str, opened: Opened, budget: Budget, run: Run) -> Looked:
    subject, shown = opened(uri)
    if auditing.fingerprint(subject) != digest:
        what, remedy = "its weights changed while others were measured", "name files that stay as they are"
        raise SapperError(what, where=uri, remedy=remedy)
    child, scores, gathered = run.child(digest), {}, {}
    for detector, verdict in auditing.scores(subject, shown, budget.make(), child).items():
        effect = auditing.effect(subject, verdict, shown, child)
        scores[detector], gathered[detector] = verdict.score, effect.gathered if effect else None
    return Looked(scores=scores, gathered=gathered)


def _read(kept: Path | None, about: dict[str, Any]) -> tuple[dict[str, Looked], str | None]:
    """What an interrupted call left, by fingerprint, and its number format; nothing where it is of something else."""
    try:
        content = json.loads(kept.read_text(encoding="utf-8")) if kept is not None else {}
        same = all(content[name] == json.loads(json.dumps(value)) for name, value in about.items())
        if not same or content["number_format"] not in FORMATS:
            return {}, None
        return {digest: Looked(**each) for digest, each in content["looked"].items()}, content["number_format"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}, None


def bag_of(
    known: Candidates,
    looked: dict[str, Looked],
    *,
    name: str,
    images: str,
    pretraining: str,
    made: dict[str, str],
) -> Bag:
    """The bag. It names its encoders, and those that were left out."""
    detectors = known.key.detectors
    more = {"encoders": "; ".join(looked)}
    if known.left_out:
        more["left out"] = "; ".join(f"{uri}: {why}" for uri, why in known.left_out.items())
    return Bag(
        name=name,
        key=known.key,
        pretraining=pretraining,
        images=images,
        scores={detector: [each.scores[detector] for each in looked.values()] for detector in detectors},
        gathered={detector: [each.gathered[detector] for each in looked.values()] for detector in detectors},
        made=made | more,
    )
