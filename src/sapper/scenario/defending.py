"""The ``[[defense]]`` tables of a scenario: what each becomes, by the kind of its method."""

from dataclasses import dataclass
from typing import Any

from sapper import defenses
from sapper.attacks.contracts import Aware
from sapper.defenses.budgets import BUDGETS
from sapper.defenses.contracts import Certifier, Kind, Smoother
from sapper.errors import SapperError, closest, located
from sapper.methods import imported, settings
from sapper.pretraining.contracts import Pretraining
from sapper.scenario.checking import read_instance
from sapper.scenario.kinds import DoesNotApplyError, check_defense, check_fleet, check_sift
from sapper.scenario.named import Named, with_method
from sapper.scenario.outline import with_place
from sapper.scenario.sections import (
    CertifySection,
    ClassifierRepairSection,
    DefenseSection,
    DetectorSection,
    DetectSection,
    ExamineSection,
    FleetSection,
    OwnerSection,
    RepairSection,
    ScreenSection,
    SiftSection,
)

DEFENSE_SECTIONS: dict[Kind, type[DefenseSection]] = {
    "judge": DetectSection,
    "examine": ExamineSection,
    "learn": FleetSection,
    "certify": CertifySection,
    "screen": ScreenSection,
    "sift": SiftSection,
    "repair": RepairSection,
    "repair_classifier": ClassifierRepairSection,
}
"""Which section a defense has, by its kind (``defenses/contracts.py``)."""

Section = (
    DetectSection
    | ExamineSection
    | FleetSection
    | CertifySection
    | RepairSection
    | ClassifierRepairSection
    | ScreenSection
    | SiftSection
)
"""Of a defense."""


@dataclass(frozen=True, kw_only=True)
class DefensePlan:
    """A defense, and on which tasks and with how much of their data it is tried.

    ``shadows``: for a detector that learns from a fleet, how the fleet is pre-trained and attacked. ``detector``: for a
    repair that needs a trigger, what recovers it. ``key``: of its table in the file, such as ``defense[0]``.
    """

    name: str
    key: str
    method: Named
    section: Section
    shadows: tuple[Named[Pretraining], Named[Any]] | None = None
    detector: Named[Any] | None = None

    @property
    def repairs(self) -> bool:
        """Whether it makes another encoder, instead of judging."""
        return isinstance(self.section, RepairSection)

    @property
    def sifts(self) -> bool:
        """Whether it filters what an attack poisoned, instead of judging."""
        return isinstance(self.section, SiftSection)

    def on(self, task: str) -> bool:
        """Whether it is tried on the classifiers of ``task``."""
        return self.section.tasks is None or task in self.section.tasks


def read_defense(
    raw: dict[str, Any],
    key: str,
    file: str,
    attacked: list[str],
    size: int,
    methods: tuple[Named, Named],
    elsewhere: frozenset[str] = frozenset(),
) -> DefensePlan:
    """``methods``: the scenario's own pre-training and attack. ``elsewhere``: of a matrix, all tasks that are attacked.

    Raises ``DoesNotApplyError`` for a defense that such an attack leaves nothing to do.
    """
    common = {field: raw[field] for field in DefenseSection.model_fields if field in raw}
    kind: Kind = imported(with_place(DefenseSection, common, "defenses", defenses.METHODS, file, key)[1]).kind
    section, chosen = with_method(DEFENSE_SECTIONS[kind], raw, "defenses", defenses.METHODS, file, key)
    assert isinstance(section, Section)
    pretraining, attack = methods
    check_defense(chosen.parameters, attack.name, attack.parameters, f"{file}: {key}.method")
    for i, task in enumerate(section.tasks or []):
        if task not in attacked and task not in elsewhere:
            where, remedy = f"{file}: {key}.tasks[{i}]", closest(task, attacked)
            raise SapperError(f"no task with a target is called {task!r}", where=where, remedy=remedy)
    if section.tasks and not set(section.tasks) & set(attacked):
        what, remedy = f"{attack.name} attacks none of its tasks", "name one that has a target"
        raise DoesNotApplyError(what, where=f"{file}: {key}.tasks", remedy=remedy)
    if isinstance(section, CertifySection):
        _check_sizes(section, chosen, size, f"{file}: {key}")
    if isinstance(section, SiftSection):
        check_sift(chosen.parameters, pretraining.parameters, attack.parameters, f"{file}: {key}")
    if isinstance(section, DetectSection):
        _check_inputs(section, chosen, f"{file}: {key}")
    shadows = None
    if isinstance(section, FleetSection):
        unaware, where = _unaware(attack), f"{file}: {key}.method"
        check_fleet(chosen.name, pretraining, unaware, where)
        shadows = (
            _changed(pretraining, section.pretraining, file, f"{key}.pretraining"),
            _changed(unaware, section.attack, file, f"{key}.attack"),
        )
        check_fleet(chosen.name, *shadows, where)
    detector = None
    if isinstance(section, OwnerSection):
        _check_owner(chosen, section, f"{file}: {key}")
        detector = _detector(section, chosen, file, key)
    name = section.name or section.method
    return DefensePlan(name=name, key=key, method=chosen, section=section, shadows=shadows, detector=detector)


def _check_sizes(section: CertifySection, chosen: Named[Certifier | Smoother], size: int, where: str) -> None:
    """Raises ``SapperError`` for patches and radii that a certified defense does not know; ``size`` of the images."""
    certifier = chosen.parameters
    by_radius = isinstance(certifier, Smoother)
    wrong, right = ("patches", "radii") if by_radius else ("radii", "patches")
    if wrong in section.model_fields_set:
        what, remedy = f"{chosen.name} certifies {right}, not {wrong}", f"name {right} instead, or leave it out"
        raise SapperError(what, where=f"{where}.{wrong}", remedy=remedy)
    with located(where, "."):
        certifier.check(size)
        if isinstance(certifier, Smoother):
            certifier.check_radii(section.radii or certifier.radii)
            return
    for side in section.patches:
        if side >= size:
            what, remedy = f"a patch of {side} pixels covers images of {size}", f"choose it below {size}"
            raise SapperError(what, where=f"{where}.patches", remedy=remedy)


def _check_inputs(section: DetectSection, detector: Named, where: str) -> None:
    """Raises ``SapperError`` for keys about images in doubt that a detector does not look at."""
    given = sorted(section.model_fields_set & {"inputs", "triggered"})
    if given and "inputs" not in detector.parameters.needs:
        what, remedy = f"{detector.name} looks at no images in doubt", "leave it out"
        raise SapperError(what, where=f"{where}.{given[0]}", remedy=remedy)


def _check_owner(repair: Named, section: OwnerSection, where: str) -> None:
    """Raises ``SapperError`` for a repair that needs what an owner in a scenario does not have, and for two amounts."""
    if {"share", "images"} <= section.model_fields_set:
        raise SapperError("share and images both say how many", where=f"{where}.share", remedy="leave one of them out")
    labeled = isinstance(section, ClassifierRepairSection)
    held = {"samples", "trigger", "gradients"} | ({"labels"} if labeled else set())
    if lacking := sorted(set(repair.parameters.needs) - held):
        what = f"{repair.name} needs {lacking[0]}, and an owner has {'labeled images' if labeled else 'images alone'}"
        raise SapperError(what, where=f"{where}.method", remedy="call it from Python")


def _detector(section: OwnerSection, repair: Named, file: str, key: str) -> Named | None:
    """What recovers the trigger for a repair that needs one: the detector that is named, or the default."""
    said, where = section.detector, f"{file}: {key}.detector"
    if "trigger" not in repair.parameters.needs:
        if said is not None:
            what, remedy = f"{repair.name} needs no trigger, so there is nothing to recover", "leave it out"
            raise SapperError(what, where=where, remedy=remedy)
        return None
    wanted: Kind = "judge" if isinstance(section, ClassifierRepairSection) else "examine"
    if said is None and wanted == "examine":
        name, found = next(iter(BUDGETS["quick"].make().items()))
        return Named(name=name, parameters=found)
    raw = said if isinstance(said, dict) else {"method": said or "neural_cleanse"}
    _, detector = with_method(DetectorSection, raw, "defenses", defenses.METHODS, file, f"{key}.detector")
    if detector.parameters.kind != wanted:
        does = "judge classifiers" if wanted == "judge" else "examine an encoder by itself"
        what, remedy = f"{detector.name} does not {does}", f"name a defense of the kind {wanted}"
        raise SapperError(what, where=where, remedy=remedy)
    named: Named = detector
    return named


def _unaware(attack: Named[Any]) -> Named[Any]:
    """The attack as a defender knows it: what it does against defenses is the attacker's secret."""
    if isinstance(attack.parameters, Aware):
        return Named(name=attack.name, parameters=attack.parameters.unaware())
    return attack


def _changed(method: Named, changes: dict[str, Any], file: str, key: str) -> Named:
    """A method with some parameters changed."""
    parameters = read_instance(type(method.parameters), settings(method.parameters) | changes, file, key)
    return Named(name=method.name, parameters=parameters)
