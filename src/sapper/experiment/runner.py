"""From a Scenario to Results: the graph of every variant and seed, then its stages, then the numbers that they left."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sapper.defenses.contracts import Sift
from sapper.engine.environment import environment
from sapper.engine.stage import Stage
from sapper.engine.store import Finished
from sapper.experiment.audits import audits, check_audit, record_audit
from sapper.experiment.data import Data, load_data, uses
from sapper.experiment.findings import Findings, describe_images, unique
from sapper.experiment.fitting import check_fit
from sapper.experiment.pictures import trigger_pictures
from sapper.experiment.pipeline import Measured
from sapper.experiment.records import sift_records
from sapper.experiment.repairing import RecoverTrigger
from sapper.experiment.repairing_classifiers import RecoverFromClassifier
from sapper.experiment.results import LeftOut, Record, Results
from sapper.experiment.running_defenses import Defended, check_fleets, defended, hold_out, look_at_encoders, record
from sapper.experiment.sifting import read_marked
from sapper.experiment.subjects import CLEAN, REPAIRED, Subject
from sapper.experiment.tasks import Choices, Task
from sapper.experiment.trial import Lab, Session, Trial, Variant
from sapper.experiment.verdicts import verdicts
from sapper.experiment.victims import TuneHead
from sapper.experiment.works import TRIGGERS, read_choices
from sapper.scenario.defending import DefensePlan
from sapper.scenario.kinds import kind_of
from sapper.scenario.reading import Scenario
from sapper.triggers import Trigger, read_triggers


def run_scenario(scenario: Scenario, lab: Lab) -> Results:
    """Run all variants and seeds; stages that the Store has are not repeated.

    Raises ``SapperError`` for data that is missing or does not fit, before any training starts.
    """
    variants = _variants(scenario)
    data = load_data(
        [variant.scenario for variant in variants], lab.run, data_root=lab.data_root, download=lab.download
    )
    for variant in variants:
        with variant.scenario.placed():
            check_fit(variant.scenario, data, lab.run)
            check_fleets(variant.scenario, data, lab)
            check_audit(variant.scenario, data)
    findings = Findings(out=lab.out)
    session = Session(lab=lab, findings=findings)
    planned = [
        [
            planned_trial(Trial(variant=variant, data=data, lab=lab, run=replace(lab.run, seed=seed)))
            for seed in scenario.seeds
        ]
        for variant in variants
    ]
    with lab.store.locked():
        if lab.side_by_side:
            session.make(_first_trials([each for trials in planned for each in trials]))
        for variant, trials in zip(variants, planned):
            for each in trials:
                session.make(dict.fromkeys(each.stages, each.trial))
                each.record(session)
            look_at_encoders([each.trial for each in trials], session)
            hold_out(variant, findings)
        findings.place_files()
    return Results(
        scenario=scenario.content | _primary_heads(scenario),
        environment=environment(lab.run),
        command=lab.command,
        records=tuple(findings.records),
        subjects=unique(findings.subjects),
        artifacts=unique(findings.artifacts),
        datasets=_datasets(data, [variant.scenario for variant in variants]),
        references=unique(findings.references),
        curves=unique(findings.curves),
        maps=tuple(findings.maps),
        pictures=tuple(findings.pictures),
        verdicts=tuple(findings.verdicts),
        rocs=tuple(findings.rocs),
        audits=unique(findings.audits, key=lambda audit: (audit.subject, audit.sha256)),
        guarantees=unique(findings.guarantees),
        left_out=_left_out(variants),
        timings=tuple(findings.timings),
        flags=unique(findings.flags),
    )


def _datasets(data: Data, scenarios: list[Scenario]) -> tuple[dict[str, Any], ...]:
    """Every split with what the scenarios use of it."""
    wanted = [use for scenario in scenarios for use in uses(scenario)]
    return tuple(
        describe_images(images, [use for use in wanted if use.place == place]) for place, images in data.sets.items()
    )


def _left_out(variants: list[Variant]) -> tuple[LeftOut, ...]:
    """Of a matrix, which defenses do not apply to which attacks."""
    return unique(
        LeftOut(attack=str(variant.scenario.attack_name), defense=each.defense, reason=each.reason)
        for variant in variants
        for each in variant.scenario.left_out
    )


def _primary_heads(scenario: Scenario) -> dict[str, Any]:
    """The head that the summary speaks of, and of attacks with heads of their own each one's."""
    own = {
        each.attack_name: each.primary_head for each in scenario.singles if each.primary_head != scenario.primary_head
    }
    return {"primary_head": scenario.primary_head} | ({"primary_heads": own} if own else {})


RECOVERIES = (RecoverTrigger.name, RecoverFromClassifier.name)
"""What works are called that recover a trigger for a repair."""

EARLY = ("encoder", "pretraining")
"""Tables whose keys a pre-training depends on."""

PLAIN = (*EARLY, "task", "head")
"""Tables whose keys a classifier without any attack depends on."""


def _variants(scenario: Scenario) -> list[Variant]:
    """The scenario's variants, or the scenario itself as the only one, each with every attack by itself."""
    ends = {key: key.rpartition(".")[2] for changes in scenario.variants for key in changes}
    uses = Counter(ends.values())
    names = {key: end if uses[end] == 1 else key for key, end in ends.items()}

    def suffix(changes: dict[str, Any], *tables: str) -> str:
        """``-lambda1-0.25`` for the keys below ``tables``; with the whole key where its end could mean another."""
        return "".join(f"-{names[key]}-{value}" for key, value in changes.items() if key.startswith(tables))

    found = []
    for i, changes in enumerate(scenario.variants or ({},)):
        whole = scenario.with_variant(changes) if changes else scenario
        for single in whole.chosen or (whole,):
            name = single.attack_name if len(whole.singles) > 1 else None
            tables = (*EARLY, "attack", "task", "target", *(("head",) if _attacks_training(single) else ()))
            found.append(
                Variant(
                    scenario=single,
                    condition=changes,
                    suffix=suffix(changes, ""),
                    early=suffix(changes, *EARLY) + _own_start(single, whole),
                    attacked=suffix(changes, *tables) + (f"-{name}" if name else ""),
                    shown=i == 0,
                    attack=name,
                    own=any(single.content.get(table) != whole.content.get(table) for table in PLAIN),
                )
            )
    return found


def _attacks_training(single: Scenario) -> bool:
    """Whether its attack makes classifiers, which differ by their heads."""
    return single.attack_method is not None and kind_of(single.attack_method.parameters) == "training"


def _own_start(single: Scenario, whole: Scenario) -> str:
    """``-NAME``, the first attack with this pre-training, where it is not the scenario's own."""
    if all(single.content.get(table) == whole.content.get(table) for table in EARLY):
        return ""
    alike = (each for each in whole.singles if all(each.content.get(t) == single.content.get(t) for t in EARLY))
    return f"-{next(alike).attack_name}"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A trial with all its stages; nothing has run. ``defended``: the defenses of each place where it is measured."""

    trial: Trial
    defended: tuple[tuple[Measured, tuple[Defended, ...]], ...]
    audits: tuple[tuple[Subject, Stage], ...]

    @property
    def stages(self) -> list[Stage]:
        """All of them, in the order of the work."""
        of_defenses = [stage for _, some in self.defended for each in some for _, stage in each.sides]
        return [*self.trial.pipeline.stages, *of_defenses, *(stage for _, stage in self.audits)]

    def record(self, session: Session) -> None:
        """What its stages left, once they are finished."""
        trial, findings, done = self.trial, session.findings, session.done
        self._record_subjects(session)
        for task, head, stage in trial.pipeline.targeted:
            findings.add_hits(trial.place | {"task": task.name}, head.name, trial.pipeline.clean, done[stage])
        for measured, defenses in self.defended:
            task, before = measured.task, done[measured.before]
            if measured.subject is None or measured.after is None:
                place = {key: value for key, value in trial.place.items() if key != "attack" or trial.variant.own}
                findings.add_accuracy(place, task, before, measured.baseline)
                continue
            after, choices = done[measured.after], read_choices(done[trial.pipeline.choices[task.name]].folder)
            sides = ((measured.baseline, before), (measured.subject, after))
            if measured.subject.control:
                self._record_control(measured, session)
                continue
            if measured.subject.state == REPAIRED:
                self._record_repair(measured, choices, session)
                continue
            findings.add_attack(trial.place, task, choices, *sides, primary_head=trial.scenario.primary_head)
            assert measured.subject.source is not None
            triggers = read_triggers(done[measured.subject.source].folder / TRIGGERS)
            findings.add_effects(trial.place, task, *sides, triggers, _seconds(measured, done))
            for defense in defenses:
                record(trial, defense, session)
            if trial.variant.shown:
                findings.add_maps(trial.run.seed, trial.scenario.attack_name, task, choices, sides)
        if trial.variant.shown and trial.run.seed == trial.scenario.seeds[0]:
            self._record_pictures(session)
        for subject, audit in self.audits:
            record_audit(trial, subject, audit, session)

    def _record_repair(self, measured: Measured, choices: Choices, session: Session) -> None:
        """What repaired classifiers, or those on a repaired encoder, do, and how far features are from before."""
        trial, findings, done, repaired = self.trial, session.findings, session.done, measured.subject
        assert repaired is not None
        assert measured.after is not None
        suspect = next(
            each.after
            for each, _ in self.defended
            if each.task is measured.task and each.subject is not None and each.subject.id == repaired.parent
        )
        assert suspect is not None
        place = trial.place | {"defense": repaired.repair}
        sides = (measured.baseline, done[measured.before]), (repaired, done[measured.after])
        findings.add_attack(place, measured.task, choices, *sides, primary_head=trial.scenario.primary_head)
        plan = next(plan for plan in trial.scenario.defenses if plan.name == repaired.repair)
        if plan.sifts:
            self._record_sift(place | {"task": measured.task.name}, plan, repaired, session)
            return
        made = repaired.stage if repaired.of == "encoder" else measured.after
        seconds = round(sum(done[stage].seconds for stage in (made, *_recoveries(made))), 2)
        findings.add_repair(place, measured.task, repaired, done[suspect], done[measured.after], seconds)
        there = _recovered(made, done)
        if there is not None:
            about = place | {"task": measured.task.name, "subject": repaired.id}
            findings.records.append(
                Record(**about, stage="repair", metric="trigger_recovered", value=float(there), n=1)
            )
            if not there:
                where = f"{measured.task.name} ({trial.title})"
                findings.flags.append(f"{where}: no trigger was recovered, so {repaired.repair} changed nothing.")

    def _record_control(self, measured: Measured, session: Session) -> None:
        """What a repair makes of the clean encoder: accuracy on it, and whether there was a trigger to work with."""
        trial, findings, control = self.trial, session.findings, measured.subject
        assert control is not None
        assert measured.after is not None
        place = trial.place | {"defense": control.repair}
        findings.add_accuracy(place, measured.task, session.done[measured.after], control)
        there = _recovered(control.stage, session.done)
        if there is None:
            return
        about = place | {"task": measured.task.name, "subject": control.id}
        about["condition"] = about["condition"] | {"state": CLEAN}
        findings.records.append(Record(**about, stage="repair", metric="trigger_recovered", value=float(there), n=1))
        if not there:
            where = f"{measured.task.name} ({trial.title})"
            findings.flags.append(
                f"{where}: no trigger was recovered from the clean encoder, so {control.repair} left it as it was. "
                "What is said of it afterwards is what is said of a clean encoder."
            )

    def _record_sift(self, place: dict[str, Any], plan: DefensePlan, repaired: Subject, session: Session) -> None:
        """What a sift took out of a poisoned set; the time is that of sifting, and of pre-training again."""
        done = session.done
        parent = next(each for each in self.trial.pipeline.subjects if each.id == repaired.parent)
        assert repaired.source is not None
        assert parent.source is not None
        marked = read_marked(done[repaired.source].folder, done[parent.source].folder)
        seconds = sum(done[stage].seconds for stage in {repaired.source, repaired.stage} - {parent.stage})
        about = place | {"subject": repaired.id, "baseline": parent.id}
        sift: Sift = plan.method.parameters
        session.findings.records += sift_records(about, sift.measures, marked, round(seconds, 2))

    def _record_subjects(self, session: Session) -> None:
        """The models that were made, and which references were chosen."""
        trial, variant = self.trial, self.trial.variant
        for task in _attacked(trial):
            choices = read_choices(session.done[trial.pipeline.choices[task.name]].folder)
            session.findings.add_references(trial.run.seed, task, choices, trial.scenario.attack_name)
        for subject in trial.pipeline.subjects:
            stage, label = f"pre-training{variant.early}", f"clean{variant.early}"
            if subject.state != CLEAN:
                head = f", {subject.head} head" if subject.head else ""
                stage = f"attack on {subject.task}{head}{variant.attacked}"
                label = "-".join(filter(None, ["+".join(subject.tasks), subject.head])) + variant.attacked
                if subject.repair:
                    name = f"-{variant.attack}" if variant.attack else ""
                    of = "the clean encoder" if subject.control else subject.task
                    stage = f"repair by {subject.repair}, {of}{variant.suffix}{name}"
                    label = f"{'+'.join(subject.tasks) or 'clean'}-{subject.repair}{variant.suffix}{name}"
            trained = (subject.source if subject.of == "classifier" else None) or subject.stage
            session.findings.add_subject(subject, session.done[trained].folder, stage, label)

    def _record_pictures(self, session: Session) -> None:
        """What triggers look like: those that the attack left."""
        trial = self.trial
        made = [subject for subject in trial.pipeline.subjects if subject.state != REPAIRED]
        sources = [subject.source for subject in made if subject.source is not None]
        triggers: dict[str, Trigger] = {}
        for source in sources:
            triggers |= read_triggers(session.done[source].folder / TRIGGERS)
        for task in _attacked(trial):
            targets = task.goals.targets(read_choices(session.done[trial.pipeline.choices[task.name]].folder))
            stamped = [replace(target, trigger=triggers.get(target.name, target.trigger)) for target in targets]
            session.findings.pictures += trigger_pictures(task, trial.scenario.attack_name, stamped, trial.run)


def planned_trial(trial: Trial) -> Planned:
    """All stages of a trial."""
    return Planned(
        trial=trial,
        defended=tuple((measured, tuple(defended(trial, measured))) for measured in trial.pipeline.measured),
        audits=tuple(audits(trial)),
    )


def _seconds(measured: Measured, done: Mapping[Stage, Finished]) -> float:
    """How long an attack and the classifiers that measure it took, without the clean encoder."""
    assert measured.subject is not None
    assert measured.after is not None
    tuned = {stage for stage in measured.after.inputs if stage.work.name == TuneHead.name}
    stages = {measured.subject.source, measured.subject.stage, measured.after, *tuned} - {measured.baseline.stage, None}
    return round(sum(done[stage].seconds for stage in stages if stage is not None), 2)


def _recoveries(repair: Stage) -> list[Stage]:
    """Of a repair that needs a trigger: what recovers it."""
    return [stage for stage in repair.inputs if stage.work.name in RECOVERIES]


def _recovered(repair: Stage, done: Mapping[Stage, Finished]) -> bool | None:
    """Whether a trigger was recovered; none where the repair needs none."""
    stages = _recoveries(repair)
    return any(verdict.trigger for stage in stages for verdict in verdicts(done[stage].folder)) if stages else None


def _first_trials(planned: Iterable[Planned]) -> dict[Stage, Trial]:
    """All stages, each with the first trial that needs it."""
    trials: dict[Stage, Trial] = {}
    for each in planned:
        for stage in each.stages:
            trials.setdefault(stage, each.trial)
    return trials


def _attacked(trial: Trial) -> list[Task]:
    """The tasks that are attacked, each once, however many subjects are measured on it."""
    return list({each.task.name: each.task for each in trial.pipeline.measured if each.subject is not None}.values())
