"""Repair: an audit, a repair by ordinary images, and an audit of what came of it.

Nothing is proved by it: the second audit sees what the first one can see, and no more.
"""

import copy
import time
from dataclasses import asdict, dataclass
from typing import Any

from sapper.audits.auditing import about_images, fingerprint
from sapper.audits.found import AuditReport, Finding
from sapper.defenses.contracts import Owner, Repair
from sapper.downstream import extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.training import Curves, check_finite


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A repaired encoder, in ``eval`` mode, its losses per epoch, and how it came about.

    ``kept``: the mean cosine of both encoders' features of the images. ``seconds`` of the repair alone. ``trigger_of``:
    the detector whose trigger it worked with, for a method that needs one.
    """

    encoder: Encoder
    curves: Curves
    method: str
    parameters: dict[str, Any]
    kept: float
    seconds: float
    trigger_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """A repair between two audits with the same ``images``."""

    before: AuditReport
    repaired: Repaired
    after: AuditReport
    images: dict[str, Any]


def repair(
    encoder: Encoder,
    images: ImageSet,
    name: str,
    method: Repair,
    found: AuditReport,
    run: Run,
    *,
    trigger_of: str | None = None,
) -> Repaired:
    """A repaired copy of ``encoder``; ``found``: what its audit recovered, for methods that need a trigger.

    ``trigger_of``: whose trigger, of the audit's detectors; by default that of the one that leads.

    Its card says from what, by what and with which images it was made; the mark of a backdoored one stays. Raises
    ``SapperError`` where the method cannot work with what is there.
    """
    used = _with_trigger(found, trigger_of) if "trigger" in method.needs else None
    owner = Owner(clean=images, triggers=() if used is None or used.trigger is None else (used.trigger,))
    started, card = time.perf_counter(), encoder.card
    trained = method(copy.deepcopy(encoder), owner, run.child("repair"))
    check_finite(trained.encoder, name)
    seconds = time.perf_counter() - started
    before, after = (extract(each, images, run) for each in (encoder, trained.encoder))
    made_from = {key: card.origin[key] for key in ("opened", "sha256", "layout", "normalization") if key in card.origin}
    parameters = asdict(method)
    origin: dict[str, Any] = {"method": name, "parameters": parameters, "images": about_images(images)}
    origin |= {"repaired": {"weights": fingerprint(encoder)} | made_from}
    origin |= {"triggers": [each.describe() for each in owner.triggers]}
    origin |= {} if used is None else {"trigger_of": used.method}
    origin |= {"seed": run.seed, "number format": run.number_format}
    return Repaired(
        encoder=trained.encoder.marked(backdoored=card.backdoored, origin=origin),
        curves=trained.curves,
        method=name,
        parameters=parameters,
        kept=float((before * after).sum(1).mean()),
        seconds=seconds,
        trigger_of=None if used is None else used.method,
    )


def _with_trigger(found: AuditReport, name: str | None) -> Finding:
    """What the named detector, or the leading one, found. Raises ``SapperError`` where that is no trigger."""
    wanted = name or found.leading.method
    finding = next((each for each in found.detectors if each.method == wanted), None)
    if finding is None:  # where no bag fits, another detector leads
        what, remedy = (
            f"the audit did not ask {wanted}",
            f"it asked {', '.join(each.method for each in found.detectors)}",
        )
        raise SapperError(what, where="trigger_of", remedy=remedy)
    if finding.trigger is None:
        others = [each.method for each in found.detectors if each.trigger is not None]
        remedy = f"take that of {' or '.join(others)}" if others else "take a repair that needs none"
        raise SapperError(f"{finding.method} recovered no trigger to unlearn", where="repair", remedy=remedy)
    return finding
