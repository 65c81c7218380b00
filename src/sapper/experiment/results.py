"""What a scenario leaves behind: plain data, written to ``results.json``, from which every report is made."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from sapper.errors import SapperError
from sapper.files import read_text, write_atomically

SCHEMA = 2

State = Literal["clean", "attacked", "repaired"]
"""What was done to a subject."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number. Rates are fractions; what does not apply is null.

    ``seed``: null where all seeds' encoders were judged together. ``subject``: the id of the model that was measured,
    null where it is several; ``baseline``: of the one that it is compared with, where the metric compares. ``low``,
    ``high``: 95 % interval of ``value`` for this seed. ``n``: test images behind it, or judged models, or scorers.
    ``seconds``: time of the stage that measured it. ``condition``: what else was set, such as a patch size.
    """

    seed: int | None
    stage: str
    metric: str
    value: float
    subject: str | None = None
    baseline: str | None = None
    task: str | None = None
    target: str | None = None
    attack: str | None = None
    head: str | None = None
    defense: str | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = "fraction"
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A subject: a model that was measured. ``state``: "clean", "attacked" or "repaired".

    ``of``: what was made: an encoder, a task's training set ("task"), or a classifier. ``parent``: the id of the
    subject that it was made from. ``tasks``, ``targets``: what it was attacked for; ``attack``: by which of several;
    ``repair``: by which it was repaired.
    """

    id: str
    state: State
    seed: int
    of: str = "encoder"
    parent: str | None = None
    tasks: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    attack: str | None = None
    repair: str | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The file of a subject; ``path`` is relative to ``results.json``."""

    subject: str
    state: State
    seed: int
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over the epochs of one stage: ``series`` maps a term's name to one value per epoch."""

    seed: int
    stage: str
    series: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """Features of one subject's encoder on one task in two dimensions (PCA of the L2-normalized features).

    ``points`` maps "clean", "triggered" and "reference" to ``{"x": […], "y": […], "label": […]}``, labels being
    the images' true classes. ``explained`` is the share of the variance that the two axes show. ``attack``: which one's
    subject stands beside its baseline.
    """

    seed: int
    task: str
    target: str
    subject: str
    state: State
    points: dict[str, dict[str, list[float]]]
    explained: float
    attack: str | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small picture: ``role`` is "clean", "triggered" or "reference"; ``png`` is base64 text."""

    task: str
    target: str
    role: str
    caption: str
    png: str
    attack: str | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A detector's verdict about one classifier, or about one encoder: then ``classifier`` is null.

    ``subject``: the id of the encoder, or of what the classifier stands on; ``state`` is its. ``classifier``: its
    number among those on that encoder. ``task``: the classifier's; that which an encoder was attacked for, else null.
    ``attack``: whose models are told from clean ones. ``evidence`` is plain data. ``triggers``: what was recovered, the
    smallest first: class name, norm, success (a fraction), png.
    """

    seed: int
    defense: str
    subject: str
    state: State
    score: float | None
    threshold: float | None
    flagged: bool | None
    seconds: float
    task: str | None = None
    attack: str | None = None
    classifier: int | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    triggers: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Roc:
    """How a screen's scores of one target's triggered images lie above those of plain ones, for one model.

    ``subject``: the id of what the model stands on; ``state`` is its. ``points``: the ROC curve from (0, 0) to (1, 1),
    as (share of plain images, share of triggered ones) above each threshold. ``at``: the same for the screen's own.
    """

    seed: int
    defense: str
    target: str
    subject: str
    state: State
    points: tuple[tuple[float, float], ...]
    at: tuple[float, float]
    task: str | None = None
    attack: str | None = None
    condition: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stamped:
    """Images of an audit, changed alike: PNG in base64.

    ``by``: "nothing", "audit" (the trigger that it recovered) or "attacker" (a true one; then ``target`` names whose).
    """

    by: str
    images: tuple[str, ...]
    target: str | None = None


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What the audit of one encoder found.

    ``subject``: its id, ``state`` what was done to it; ``task``: what for; ``attack``: by which of several;
    ``repair``: by which it was repaired.
    ``sha256`` of the encoder's file.
    ``report`` is what ``sapper audit`` writes to ``audit.json`` (``found.as_json``). ``beside``: for each bag that
    fits the scores of its known-clean encoders, of the detector that decides. ``stamped``: some images, plain, with
    what the audit recovered, and with the true triggers; those of the first seed are enough.
    """

    seed: int
    subject: str
    state: State
    sha256: str
    report: dict[str, Any]
    task: str | None = None
    attack: str | None = None
    repair: str | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, list[float]] = field(default_factory=dict)
    stamped: tuple[Stamped, ...] = ()

    @property
    def control(self) -> bool:
        """Whether it is of a clean encoder that was repaired."""
        return self.state == "repaired" and self.task is None


@dataclass(frozen=True, kw_only=True)
class Guaranteed:
    """What a certified defense guarantees against, and what it does not cover, in words.

    ``size_is``: which key of ``condition`` has the size of the threat, "patch" or "radius".
    """

    defense: str
    size_is: str
    threat: str
    covers_not: str


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A defense of a matrix that does not apply to an attack, and why."""

    attack: str
    defense: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything a report shows. ``scenario`` is the resolved scenario, ``environment`` versions and hardware.

    ``command`` repeats the run. ``datasets``: name, split, n, size, classes, sha256, provenance of each set, and for
    what how many of its images were used.
    ``references``: seed, target, task, class name, label, rows of the training split, source of each target's
    reference images. ``timings``: seed, stage, seconds, cached. ``flags``: why a number may be unreliable.
    """

    scenario: dict[str, Any]
    environment: dict[str, Any]
    command: str
    records: tuple[Record, ...]
    subjects: tuple[Model, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    datasets: tuple[dict[str, Any], ...] = ()
    references: tuple[dict[str, Any], ...] = ()
    curves: tuple[Curve, ...] = ()
    maps: tuple[FeatureMap, ...] = ()
    pictures: tuple[Picture, ...] = ()
    verdicts: tuple[Judged, ...] = ()
    rocs: tuple[Roc, ...] = ()
    audits: tuple[Audited, ...] = ()
    guarantees: tuple[Guaranteed, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    timings: tuple[dict[str, Any], ...] = ()
    flags: tuple[str, ...] = ()
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The content of ``results.json``."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def read_results(path: str | Path) -> Results:
    """The results in ``path``, a ``results.json`` or the folder that holds one.

    Files of schema 1 are read as well (``_renewed``). Raises ``SapperError`` when it is missing, is not JSON, or was
    written with another schema.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    again = "run the scenario again: what its store holds is not computed anew"
    try:
        raw = json.loads(read_text(path, "name the folder that a run was given with --out"))
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema == 1:
            raw, schema = _renewed(raw), SCHEMA
        if schema != SCHEMA:
            raise SapperError(f"its schema is {schema!r} instead of {SCHEMA}", where=str(path), remedy=again)
        return TypeAdapter(Results).validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SapperError(f"not a results file: {first['msg']}", where=f"{path}: {where}", remedy=again) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SapperError(f"not a results file: {error}", where=str(path), remedy=again) from error


OLD_STATES: dict[str, State] = {"clean": "clean", "backdoored": "attacked"}
"""What schema 1 calls the states of encoders; there were no others."""


def _renewed(raw: dict[str, Any]) -> dict[str, Any]:
    """Content of schema 1 in this one: there, an encoder was clean or backdoored, and had no id."""

    def subject(item: dict[str, Any], old: str, task: str | None = None) -> dict[str, Any]:
        own = "clean" if old == "clean" else task or item.get("task") or old
        return {"subject": f"{own}-seed{item['seed']}", "state": OLD_STATES[old]}

    new = raw | {"schema": SCHEMA}
    for key, field_name in (("maps", "encoder"), ("artifacts", "role"), ("verdicts", "encoder"), ("audits", "encoder")):
        items = []
        for item in raw.get(key, ()):
            rest = {name: value for name, value in item.items() if name != field_name}
            items.append(rest | subject(item, item[field_name].removesuffix("-encoder")))
        new[key] = items
    for record in new["records"]:
        if "encoder" in record["condition"]:
            record["condition"]["state"] = OLD_STATES[record["condition"].pop("encoder")]
    return new


def without_pictures(results: Results) -> Results:
    """The results without pictures and feature maps: a tenth of the size, and every number is still there."""
    return replace(results, maps=(), pictures=())


def write_results(results: Results, folder: Path) -> Path:
    """Write ``results.json`` into ``folder`` and say where it is."""
    path = folder / "results.json"
    write_atomically(path, results.to_json())
    return path
