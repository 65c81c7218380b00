"""The stages of one seed and their edges, made by one function for scenarios, zoos and fleets:

data → [poison] → pre-train → references → [implant] → [repair] → [poison the task] → heads, or [attacked training]

Nothing runs here: what comes back are values, for an executor. In brackets: by what the attacker holds (``kind`` in
``attacks.contracts``), at most one of them; and each repair of an attacked encoder. The clean encoder of the same seed
is always there: references are chosen by it, and every other subject is compared with it. Behind all that, repairs of
attacked classifiers; and what was poisoned is sifted and trained on again, from the same seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sapper.attacks.contracts import makes_triggers
from sapper.engine.stage import Stage, Work
from sapper.experiment.defending import Classifiers
from sapper.experiment.repairing import RecoverTrigger, RepairEncoder, RepairPlan
from sapper.experiment.repairing_classifiers import ClassifierRepairPlan, RecoverFromClassifier, RepairClassifier
from sapper.experiment.sifting import SiftPlan, SiftRows
from sapper.experiment.subjects import ATTACKED, CLEAN, REPAIRED, Subject
from sapper.experiment.tasks import Part, Task
from sapper.experiment.victims import AttackSingleInputs, AttackTraining, BuildHeads, TuneHead
from sapper.experiment.works import ChooseReferences, Implant, Poison, Pretrain
from sapper.pretraining.contracts import Pretraining
from sapper.running import Run
from sapper.scenario.kinds import kind_of, makes_encoders
from sapper.scenario.named import Named
from sapper.scenario.sections import EncoderSection


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """An attack by a method of any kind. ``shadow``: an implant's unlabeled images.

    ``together``: one attacked encoder for all tasks, instead of one for each. ``name``: where there are several.
    """

    method: Named
    shadow: Part
    together: bool = True
    name: str | None = None

    @property
    def title(self) -> str:
        """What stands behind the titles of its stages."""
        return f" ({self.name})" if self.name else ""

    @property
    def kind(self) -> str:
        """What the attacker holds; of poison, also whose data: ``poison pretraining`` or ``poison task``."""
        return kind_of(self.method.parameters)

    @property
    def makes_triggers(self) -> bool:
        """Whether triggers are known only when the attack is done."""
        return makes_triggers(self.method.parameters)

    def groups(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Which tasks are attacked with one another. Who attacks a task's own data or training attacks it alone."""
        together = self.together and makes_encoders(self.method.parameters)
        return [list(tasks)] if together and tasks else [[task] for task in tasks]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Classifiers of a task on a subject, and the same on its baseline: what leaves the predictions of each.

    ``subject`` is none for a task that nobody attacks.
    """

    task: Task
    baseline: Subject
    before: Stage
    subject: Subject | None = None
    after: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """``stages``: all of them, in the order of the work. ``subjects``: the clean one first.

    ``choices``: what leaves the references of each attacked task, by its name. ``targeted``: for each task and head,
    what leaves ``Hits``.
    """

    stages: tuple[Stage, ...]
    subjects: tuple[Subject, ...]
    choices: dict[str, Stage]
    measured: tuple[Measured, ...] = ()
    targeted: tuple[tuple[Task, Named, Stage], ...] = ()

    @property
    def clean(self) -> Subject:
        """The one that every other is compared with."""
        return self.subjects[0]


def pipeline(
    encoder: EncoderSection,
    pretraining: Named[Pretraining],
    images: Part,
    run: Run,
    *,
    tasks: Sequence[Task] = (),
    attack: AttackPlan | None = None,
    heads: Sequence[Named] = (),
    repairs: Sequence[RepairPlan] = (),
    classifier_repairs: Sequence[ClassifierRepairPlan] = (),
    sifts: Sequence[SiftPlan] = (),
    threads: int,
    early: str = "",
    late: str = "",
    last: str = "",
    where: str = "",
) -> Pipeline:
    """All stages of one seed, that of ``run``: an encoder pre-trained on ``images``, attacked, measured on ``tasks``.

    Without ``heads`` nothing is measured. Every attacked encoder is repaired by each of ``repairs``, and the clean one,
    too, to see what that costs where nothing was planted. Every attacked classifier is repaired by each of
    ``classifier_repairs``, every poisoned set is sifted by each of ``sifts`` and trained on again; all are measured
    again. ``early`` and ``late`` go behind the ids of the clean subject and of attacked ones, ``last`` behind those of
    repaired ones; ``where`` in front of errors in a stage.
    """
    graph = _Graph(run=run, threads=threads, where=where)
    pretrain = Pretrain(encoder=encoder, method=pretraining, images=images)
    clean = Subject(id=f"clean{early}", state=CLEAN, seed=run.seed, stage=graph.add("pre-training", pretrain))
    for task in tasks:
        if task.aims:
            graph.choices[task.name] = graph.add(
                f"references, {task.name}", ChooseReferences(goals=task.goals), clean.stage
            )
    subjects, measured, before = [clean], list[Measured](), dict[str, Stage]()
    targeted: list[tuple[Task, Named, Stage]] = []
    for task in tasks if heads else ():
        if not (task.aims and attack is not None and attack.makes_triggers):  # else its baseline waits for the attack
            before[task.name] = graph.heads(f"on the clean encoder, {task.name}", task, heads, clean)
        if not task.aims:
            measured.append(Measured(task=task, baseline=clean, before=before[task.name]))
    if attack is not None and attack.kind == "targeted":
        for task, head in ((task, head) for task in tasks for head in heads):
            work = AttackSingleInputs(method=attack.method, task=task, head=head)
            targeted.append(
                (task, head, graph.add(f"attack on {task.name}, {head.name} head{attack.title}", work, clean.stage))
            )
    elif attack is not None:
        controls = [*_controls(graph, clean, attack, repairs, last or late)]
        subjects += [control for _, control in controls]
        for group in attack.groups([task for task in tasks if task.aims]):
            for subject, some in _attacked(graph, attack, pretrain, clean, group, heads, late):
                subjects.append(subject)
                own = [
                    _measured(graph, attack, task, some, clean, subject, before.get(task.name))
                    for task in (group if heads else ())
                ]
                measured += own
                mended = [*_repaired(graph, subject, repairs, last or late)]
                mended += _sifted(graph, attack, pretrain, subject, group, sifts, last or late)
                for plan, repaired in mended:
                    subjects.append(repaired)
                    measured += [
                        _measured(graph, attack, each.task, some, clean, repaired, each.before)
                        for each in own
                        if plan.on(each.task.name)
                    ]
                for plan, control in controls:
                    shown = replace(control, source=subject.source)  # its triggers are the attack's
                    measured += [
                        _measured(graph, attack, each.task, some, clean, shown, each.before)
                        for each in own
                        if plan.on(each.task.name)
                    ]
                for each in own:
                    again = list(_repaired_classifiers(graph, attack, each, classifier_repairs, last or late))
                    subjects += [one.subject for one in again if one.subject is not None]
                    measured += again
    return Pipeline(
        stages=tuple(graph.stages),
        subjects=tuple(subjects),
        choices=graph.choices,
        measured=tuple(measured),
        targeted=tuple(targeted),
    )


@dataclass(kw_only=True)
class _Graph:
    """Stages as they are added; ``choices`` of each task's references."""

    run: Run
    threads: int
    where: str
    stages: list[Stage] = field(default_factory=list)
    choices: dict[str, Stage] = field(default_factory=dict)

    def add(self, title: str, work: Work, *inputs: Stage | None) -> Stage:
        """A stage on those of the inputs that there are."""
        needed = tuple(each for each in inputs if each is not None)
        stage = Stage(work, self.run, needed, threads=self.threads, title=title, where=self.where)
        self.stages.append(stage)
        return stage

    def heads(
        self, title: str, task: Task, heads: Sequence[Named], subject: Subject, made: Stage | None = None
    ) -> Stage:
        """Heads on a subject; ``made`` leaves the triggers that an attack made."""
        poisoned, chosen = subject.source if subject.of == "task" else None, self.choices.get(task.name)
        work = BuildHeads(task=task, heads=tuple(heads), made_triggers=made is not None, poisoned=poisoned is not None)
        tuned = [self.tuned(title, task, head, subject) for head in heads if head.parameters.kind == "tuned"]
        return self.add(f"heads {title}", work, subject.stage, chosen, made, poisoned, *tuned)

    def tuned(self, title: str, task: Task, head: Named, subject: Subject) -> Stage:
        """A head that is trained together with a copy of a subject's encoder."""
        poisoned = subject.source if subject.of == "task" else None
        work = TuneHead(task=task, head=head, poisoned=poisoned is not None)
        return self.add(f"{head.name} {title}", work, subject.stage, self.choices.get(task.name), poisoned)


def _attacked(
    graph: _Graph,
    attack: AttackPlan,
    pretrain: Pretrain,
    clean: Subject,
    group: Sequence[Task],
    heads: Sequence[Named],
    late: str,
) -> Iterator[tuple[Subject, Sequence[Named]]]:
    """The subjects that an attack on some tasks makes, each with the heads that are measured on it."""
    names, method = tuple(task.name for task in group), attack.method
    goals = tuple(task.goals for task in group)
    title, chosen = f"attack on {' + '.join(names)}", [graph.choices[name] for name in names]
    made = replace(
        clean,
        id=f"attacked-{'+'.join(names)}{late}",
        state=ATTACKED,
        parent=clean.id,
        tasks=names,
        targets=tuple(aim.name for task in group for aim in task.aims),
        attack=attack.name,
    )
    match attack.kind:
        case "implant":
            work: Work = Implant(method=method, shadow=attack.shadow, goals=goals)
            implanted = graph.add(f"{title}{attack.title}", work, clean.stage, *chosen)
            yield replace(made, stage=implanted, source=implanted), heads
        case "poison pretraining":
            work = Poison(method=method, data=pretrain.images, goals=goals)
            poison = graph.add(f"{title}{attack.title}", work, *chosen)
            trained = graph.add(f"pre-training on poison, {' + '.join(names)}{attack.title}", pretrain, poison)
            yield replace(made, stage=trained, source=poison), heads
        case "poison task":
            work = Poison(method=method, data=group[0], goals=goals)
            poison = graph.add(f"{title}{attack.title}", work, *chosen)
            yield replace(made, source=poison, of="task"), heads
        case "training":
            (task,) = group
            for head in heads:
                training = AttackTraining(method=method, task=task, head=head)
                trained = graph.add(f"{title}, {head.name} head{attack.title}", training, clean.stage, *chosen)
                own_id = f"attacked-{task.name}-{head.name}{late}"
                yield replace(made, id=own_id, source=trained, of="classifier", head=head.name), [head]


def _repaired(
    graph: _Graph, subject: Subject, repairs: Sequence[RepairPlan], last: str
) -> Iterator[tuple[RepairPlan | SiftPlan, Subject]]:
    """What each repair makes of an attacked encoder."""
    for plan in repairs if subject.of == "encoder" else ():
        if any(plan.on(task) for task in subject.tasks):
            named = f"repaired-{'+'.join(subject.tasks)}-{plan.name}{last}"
            yield plan, _repair(graph, subject, plan, named, f", {subject.task}")


def _controls(
    graph: _Graph, clean: Subject, attack: AttackPlan, repairs: Sequence[RepairPlan], last: str
) -> Iterator[tuple[RepairPlan, Subject]]:
    """What each repair makes of the clean encoder, as a control of an attack that makes encoders."""
    for plan in repairs if makes_encoders(attack.method.parameters) else ():
        yield plan, replace(_repair(graph, clean, plan, f"control-{plan.name}{last}"), attack=attack.name)


def _repair(graph: _Graph, subject: Subject, plan: RepairPlan, named: str, of: str = "") -> Subject:
    """An encoder after a repair; ``named``: its id, ``of``: what is added to titles."""
    found = None
    if plan.detector is not None:
        work = RecoverTrigger(detector=plan.detector, images=plan.images)
        found = graph.add(f"recovery of a trigger from the {subject.words}{of}", work, subject.stage)
    title = f"repair of the {subject.words} by {plan.name}{of}"
    made = graph.add(title, RepairEncoder(plan=plan), subject.stage, found)
    return replace(subject, id=named, state=REPAIRED, parent=subject.id, repair=plan.name, stage=made)


def _repaired_classifiers(
    graph: _Graph, attack: AttackPlan, attacked: Measured, repairs: Sequence[ClassifierRepairPlan], last: str
) -> Iterator[Measured]:
    """What each repair makes of an attacked classifier: that of the plan's head, if there is one."""
    subject, task, after = attacked.subject, attacked.task, attacked.after
    assert subject is not None
    assert after is not None
    for plan in repairs:
        if not plan.on(task.name) or subject.head not in (None, plan.head.name):
            continue
        kept = subject.source if subject.of == "classifier" else tuned_head(after, plan.head)
        poisoned = subject.source if subject.of == "task" and kept is None else None
        who = Classifiers(task=task, head=plan.head, poisoned=poisoned is not None, kept=kept is not None)
        there, place = (subject.stage, graph.choices[task.name], poisoned, kept), f"on the {subject.words}, {task.name}"
        made, found = subject.source if attack.makes_triggers else None, None
        if plan.detector is not None:
            recover = RecoverFromClassifier(plan=plan, detector=plan.detector, classifiers=who)
            found = graph.add(f"recovery of a trigger from the {plan.head.name} head {place}", recover, *there)
        work = RepairClassifier(plan=plan, classifiers=who, made_triggers=made is not None)
        stage = graph.add(f"repair by {plan.name} of the {plan.head.name} head {place}", work, *there, made, found)
        repaired = replace(
            subject,
            id=f"repaired-{task.name}-{plan.name}{last}",
            state=REPAIRED,
            parent=subject.id,
            of="classifier",
            source=stage,
            head=plan.head.name,
            tasks=(task.name,),
            targets=tuple(aim.name for aim in task.aims),
            repair=plan.name,
        )
        yield Measured(task=task, baseline=attacked.baseline, before=attacked.before, subject=repaired, after=stage)


def tuned_head(heads: Stage, head: Named) -> Stage | None:
    """What leaves the classifier of a head that was trained with its encoder, of those that ``heads`` asks."""
    works = ((stage, stage.work) for stage in heads.inputs)
    return next((stage for stage, work in works if isinstance(work, TuneHead) and work.head.name == head.name), None)


def _sifted(
    graph: _Graph,
    attack: AttackPlan,
    pretrain: Pretrain,
    subject: Subject,
    group: Sequence[Task],
    sifts: Sequence[SiftPlan],
    last: str,
) -> Iterator[tuple[RepairPlan | SiftPlan, Subject]]:
    """What comes of training on what each sift leaves of a poisoned set, an encoder or a task's training set."""
    names = " + ".join(subject.tasks)
    for plan in sifts if attack.kind.startswith("poison") else ():
        if not any(plan.on(task) for task in subject.tasks):
            continue
        made = replace(
            subject,
            id=f"repaired-{'+'.join(subject.tasks)}-{plan.name}{last}",
            state=REPAIRED,
            parent=subject.id,
            repair=plan.name,
        )
        title = f"sift of the poisoned set by {plan.name}, {names}{attack.title}"
        if subject.of == "encoder":
            sifted = graph.add(title, SiftRows(plan=plan), subject.source, subject.stage)
            again = graph.add(f"pre-training on what {plan.name} left, {names}{attack.title}", pretrain, sifted)
            yield plan, replace(made, source=sifted, stage=again)
        else:
            (task,), tuned = group, None
            if plan.head.parameters.kind == "tuned":
                tuned = graph.tuned(f"on the {subject.words}, {task.name}", task, plan.head, subject)
            sifted = graph.add(title, SiftRows(plan=plan, task=task), subject.source, subject.stage, tuned)
            yield plan, replace(made, source=sifted)


def _measured(
    graph: _Graph,
    attack: AttackPlan,
    task: Task,
    heads: Sequence[Named],
    clean: Subject,
    subject: Subject,
    before: Stage | None,
) -> Measured:
    """Classifiers of a task on an attacked subject beside those on the clean one."""
    made = subject.source if attack.makes_triggers else None
    if before is None:
        before = graph.heads(f"on the clean encoder, {task.name}{attack.title}", task, heads, clean, made)
    after = subject.source
    if subject.of != "classifier":
        after = graph.heads(f"on the {subject.words}, {task.name}", task, heads, subject, made)
    return Measured(task=task, baseline=clean, before=before, subject=subject, after=after)
