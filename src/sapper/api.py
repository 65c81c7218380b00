"""What the command line does, from Python: ``sapper.audit``, ``repair``, ``screen``, ``calibrate``, ``run`` ….

They take names and paths as the commands do, or the objects themselves, and return plain frozen dataclasses. Nothing is
printed; progress goes where ``surroundings`` says. Every mistake is a ``SapperError`` with a place and a remedy.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from sapper import defenses, process
from sapper.attestations import SigningKey, signing_key
from sapper.attestations.verifying import check_attestable, digest_of
from sapper.audits import auditing, calibrating, calibration, repairing, replaying
from sapper.audits.calibration import BOUND, Bag
from sapper.audits.families import FamilyBag, read_families, shipped_families
from sapper.audits.found import AuditReport
from sapper.audits.repairing import RepairReport
from sapper.audits.replaying import Replay
from sapper.defenses.budgets import Budget
from sapper.defenses.budgets import budget as budget_of
from sapper.defenses.contracts import Examiner, Repair, Screen, Screener
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.engine.buckets import store_at
from sapper.engine.environment import environment
from sapper.engine.executors import Executor, Workers
from sapper.errors import SapperError, closest
from sapper.experiment.precision import of_searching, of_training
from sapper.experiment.results import Results, write_results
from sapper.experiment.runner import run_scenario
from sapper.experiment.trial import Lab
from sapper.files import shipped_file
from sapper.methods import imported, known
from sapper.opening import HowToOpen, load_classifier, load_images, open
from sapper.report import write_report
from sapper.report.audit_files import write_audit
from sapper.report.notebook import ShownReport
from sapper.running import FORMATS, Run
from sapper.samples import ImageSet
from sapper.scenario.checking import read_instance
from sapper.scenario.reading import Scenario, read


def audit(
    encoder: str | Path | Encoder,
    images: str | Path | Tensor | ImageSet,
    *,
    budget: str = "quick",
    bags: Sequence[Path | Bag] | None = None,
    false_alarms: float = BOUND,
    base: Encoder | None = None,
    more: Mapping[str, Examiner] | None = None,
    families: Sequence[Path | FamilyBag] | None = None,
    out: str | Path | None = None,
    sign: str | Path | SigningKey | None = None,
    surroundings: Run | None = None,
) -> AuditReport:
    """Is this encoder safe to build on? ``report.verdict`` is "no-evidence", "backdoor" or "undecided".

    A notebook shows the report as a page, ``print`` as lines.

    ``images``: ordinary images without labels, 64 or more, 256 are better, and some thousand where no
    bag fits. ``bags``: of known-clean encoders, by
    default those that come with Sapper; ``families``: bags over families likewise, for where none fits.
    ``false_alarms``: the share of clean encoders that may come out as backdoored.
    ``base``: the encoder that this one is said to be, or to be made from. ``out``: a folder for the files that
    ``sapper audit`` leaves; ``sign``: a private key that signs them, for ``verify``. The encoder is then one that is
    named: nobody knows whether what is held in memory is what was opened. ``surroundings``: device, seed, progress.
    """
    run, chosen, key = surroundings or Run(), budget_of(budget), _signer(sign, encoder, out)
    digest = digest_of(str(encoder)) if key else None
    subject = encoder if isinstance(encoder, Encoder) else open(encoder, allow_backdoored=True, surroundings=run)
    if key:
        check_attestable(subject.card.origin, digest)
    shown = _images(images, subject)
    known = _bags(bags)
    run = run if run.why else searching(subject, shown, chosen, known, run, false_alarms)
    among = _families(families)
    found = auditing.audit(subject, shown, chosen, known, run, bound=false_alarms, base=base, more=more, families=among)
    report = ShownReport.of(found)
    if out is not None:
        opening = {"uri": str(subject.card.origin.get("opened", ""))}
        write_audit(report, Path(out), environment(run), opening=opening, command="sapper.audit(…)", sign=key)
    return report


def _signer(sign: str | Path | SigningKey | None, encoder: object, out: str | Path | None) -> SigningKey | None:
    """The key that is to sign an audit. Raises ``SapperError`` where there is nothing that could be signed."""
    if sign is None:
        return None
    if out is None or isinstance(encoder, Encoder):
        what = "an audit is signed of an encoder that is named, and with its report"
        raise SapperError(what, where="sign", remedy="give the encoder's file, and a folder as out")
    return sign if isinstance(sign, SigningKey) else signing_key(sign)


def repair(
    encoder: str | Path | Encoder,
    images: str | Path | Tensor | ImageSet,
    *,
    method: str = "fine_pruning",
    preset: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    trigger_of: str | None = None,
    budget: str = "quick",
    bags: Sequence[Path | Bag] | None = None,
    false_alarms: float = BOUND,
    surroundings: Run | None = None,
) -> RepairReport:
    """Take a backdoor out of an encoder by ordinary images: an audit, a repair, and an audit of what came of it.

    ``report.repaired.encoder`` is the new encoder (``save`` keeps it), ``report.after.verdict`` what is to be said of
    it; ``encoder`` is left as it is. ``method``: a defense of the kind ``repair``, with one of its presets and with
    ``parameters``. ``trigger_of``: for one that unlearns a trigger, the detector that recovers it; by default the one
    that leads the audit. It works in the number format of ``surroundings``; audits choose theirs. The rest is as for
    ``audit``. Raises ``SapperError``, before anything is computed, for a method that cannot work with what is there.
    """
    run = surroundings or Run()
    made, more = chosen_repair(method, preset, parameters, trigger_of, budget)
    held = encoder if isinstance(encoder, Encoder) else open(encoder, allow_backdoored=True, surroundings=run)
    subject, shown = copy.deepcopy(held), _images(images, held)  # audits leave what they look at frozen
    auditing.check_images(subject, shown)
    made.check(subject, len(shown))
    ask: dict[str, Any] = {"budget": budget, "bags": bags, "false_alarms": false_alarms, "surroundings": run}
    before = audit(subject, shown, more=more, **ask)
    repaired = repairing.repair(subject, shown, method, made, before, run, trigger_of=trigger_of)
    after = audit(repaired.encoder, shown, more=more, **ask)
    repaired.encoder.eval().requires_grad_(True)
    return RepairReport(before=before, repaired=repaired, after=after, images=auditing.about_images(shown))


def chosen_repair(
    method: str, preset: str | None, parameters: Mapping[str, Any] | None, trigger_of: str | None, budget: str
) -> tuple[Repair, dict[str, Examiner]]:
    """What ``repair`` works with; and the detector that recovers the trigger, where the audit's budget lacks it.

    Raises ``SapperError`` for what is unknown or does not go together.
    """
    made: Repair = _method("repair", "repair encoders", method, preset, parameters)
    if trigger_of is None:
        return made, {}
    if "trigger" not in made.needs:
        raise SapperError(f"{method} unlearns no trigger", where="trigger_of", remedy="leave it out")
    detector = _method("examine", "examine an encoder by itself", trigger_of, None, None, where="trigger_of")
    return made, {} if trigger_of in budget_of(budget).detectors else {trigger_of: detector}


def screen(
    model: str | Path | Encoder | Classifier,
    clean: str | Path | Tensor | ImageSet,
    *,
    method: str = "strip",
    preset: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    surroundings: Run | None = None,
) -> Screener:
    """A screen of inputs: ``screener.scores(images)`` above ``screener.threshold`` are rejected; images uint8.

    ``model``: a classifier or a bare encoder, or its file, whichever the ``method`` looks at. ``clean``: images without
    a trigger that it was not trained on, a few hundred. ``parameters``: ``false_rejections``, the share of clean
    inputs that may be rejected, and the method's others. Raises ``SapperError`` for what does not fit.
    """
    run, opened = surroundings or Run(), model
    made: Screen = _method("screen", "screen inputs", method, preset, parameters)
    if isinstance(opened, str | Path):
        opener = load_classifier if made.looks_at == "classifier" else open
        opened = opener(opened, allow_backdoored=True, surroundings=run)
    encoder = opened.encoder if isinstance(opened, Classifier) else opened
    return made.prepare(opened, _images(clean, encoder), run)


def _method(
    kind: str, does: str, name: str, preset: str | None, parameters: Mapping[str, Any] | None, where: str = "method"
) -> Any:
    """The defense of that kind and name with its parameters. Raises ``SapperError`` for anything else."""
    there = known("defenses", defenses.METHODS)
    method = imported(there[name]) if name in there else None
    if method is None or method.kind != kind:
        able = [each for each, place in there.items() if imported(place).kind == kind]
        what = f"unknown method {name!r}" if method is None else f"{name} does not {does}"
        raise SapperError(what, where=where, remedy=closest(name, able))
    if preset is not None and preset not in method.presets:
        remedy = closest(preset, list(method.presets)) if method.presets else f"{name} has none"
        raise SapperError(f"unknown preset {preset!r}", where="preset", remedy=remedy)
    return read_instance(method, method.presets.get(preset, {}) | dict(parameters or {}), name, "parameters")


def replay(
    audit_json: str | Path,
    encoder: str | Path | Encoder,
    images: str | Path | Tensor | ImageSet,
    *,
    surroundings: Run | None = None,
    **how: Unpack[HowToOpen],
) -> list[Replay]:
    """What the triggers that an audit recovered do on other images, and beside it changes that mean nothing.

    ``audit_json``: what ``write_audit`` left. ``encoder``: the audited one, or another one to try; ``how`` it is to be
    opened. Raises ``SapperError`` where nothing was recovered, and for an encoder of another size.
    """
    run, found = surroundings or Run(), replaying.read_audit(Path(audit_json))
    run = dataclasses.replace(run, dtype=FORMATS.get(str(found.content.get("number_format")), run.dtype))
    subject = encoder if isinstance(encoder, Encoder) else open(encoder, allow_backdoored=True, surroundings=run, **how)
    return replaying.replay(found, subject, _images(images, subject), run)


def searching(
    encoder: Encoder, shown: ImageSet, budget: Budget, bags: Sequence[Bag], run: Run, false_alarms: float = BOUND
) -> Run:
    """The run in the number format of an audit: that of the bags that fit, else the faster one on this machine."""
    match = calibration.fitting(calibration.Key.of(encoder, shown, budget), bags, false_alarms)
    run = auditing.as_the_bags(run, match.bags)
    return run if run.why else of_searching(encoder, run)


def calibrate(
    known_clean: Sequence[str | Path],
    images: str | Path | Tensor | ImageSet | Callable[[int], ImageSet],
    *,
    name: str,
    budget: str = "quick",
    pretraining: str = "not said",
    opener: Callable[[str], Encoder] | None = None,
    lenient: bool = False,
    kept: Path | None = None,
    tell: Callable[[str], None] = lambda _line: None,
    surroundings: Run | None = None,
) -> Bag:
    """What audits find in encoders that are known to be clean, all of one architecture: a bag to compare others with.

    ``images``: as for ``audit``, or what gives those of a size. ``name`` of the bag; ``pretraining``: how the encoders
    were trained, in words. ``opener``: how to open one, ``open`` by default. Each is opened twice: all are checked
    before hours are spent on the first. ``kept``: a file that keeps what was found in each, so that an interrupted call
    goes on. ``lenient``: leave out what cannot be opened, copies, and what is not of the kind that most are of; the bag
    names it, and ``tell`` gets a line for each. ``write_bag`` keeps the bag. Raises ``SapperError`` for too few images,
    and unless ``lenient`` for copies and for encoders of several kinds.
    """
    run, chosen = surroundings or Run(), budget_of(budget)
    uris = [str(each) for each in known_clean]
    if not uris:
        raise SapperError("no encoder is named", where="known_clean", remedy="name one or more")
    open_one = opener or (lambda uri: open(uri, surroundings=run))
    shown: dict[int, ImageSet] = {}

    def opened(uri: str) -> tuple[Encoder, ImageSet]:
        subject = open_one(uri)
        side = subject.card.input_size
        if side not in shown:
            shown[side] = images(side) if callable(images) else _images(images, subject)
        return subject, shown[side]

    known = calibrating.candidates(uris, opened, chosen, lenient=lenient, tell=tell)
    looked, run = calibrating.looks(known, opened, chosen, of_searching, run, kept)
    some = shown[known.key.input_size]
    return calibrating.bag_of(
        known,
        looked,
        name=name,
        images=f"{some.name} {some.split}",
        pretraining=pretraining,
        made=environment(run),
    )


def run(
    scenario: str | Path | Scenario,
    out: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    store: str | Path | None = None,
    data_root: Path | None = None,
    download: bool = False,
    jobs: int = 1,
    executor: Executor | None = None,
    command: str = "sapper.run(…)",
    tell: Callable[[str], None] = lambda _line: None,
    surroundings: Run | None = None,
) -> Results:
    """Run a scenario: a TOML file, or the name of one that comes with Sapper. Leaves ``results.json``, ``report.html``.

    ``out``: their folder, ``runs/NAME`` by default. ``overrides`` such as ``attack.epochs=50``. ``store``: finished
    stages, a folder or an address such as ``s3://bucket/store``, ``store`` below ``out`` by default; interrupted, the
    same call goes on. ``jobs``: processes that make stages side by side, each on as many threads as torch has here
    (``torch.set_num_threads``); or an ``executor`` that makes them, such as ``Ray()``. ``tell`` gets a line for each
    stage.
    """
    if not isinstance(scenario, Scenario):
        scenario = read(shipped_file(str(scenario), "scenarios", "scenario"), tuple(overrides))
    base, folder = surroundings or Run(), out or Path("runs") / scenario.name
    kept = store_at(store or folder / "store")
    networks = [(scenario.encoder, scenario.pretraining_method)]
    lab = Lab(
        store=kept,
        out=folder,
        run=of_training(scenario.precision, networks, kept, base),
        command=command,
        data_root=data_root,
        executor=executor or Workers(jobs if jobs > 1 else torch.get_num_threads(), process.settle),
        side_by_side=executor is not None or jobs > 1,
        download=download,
        tell=tell,
    )
    results = run_scenario(scenario, lab)
    write_results(results, folder)
    write_report(results, folder / "report.html")
    return results


def _images(given: str | Path | Tensor | ImageSet, encoder: Encoder) -> ImageSet:
    return load_images(given, encoder.card.input_size)


def _bags(given: Sequence[Path | Bag] | None) -> list[Bag]:
    if given is None:
        return calibration.shipped_bags()
    return [each if isinstance(each, Bag) else calibration.read_bag(each) for each in given]


def _families(given: Sequence[Path | FamilyBag] | None) -> list[FamilyBag]:
    if given is None:
        return shipped_families()
    return [each if isinstance(each, FamilyBag) else read_families(each) for each in given]
