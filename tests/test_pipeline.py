"""The graph of a seed as a value: which stages there are, and on what the place of each depends."""

import pickle
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from sapper.attacks.implant.badencoder import BadEncoder
from sapper.downstream import MLP
from sapper.engine.stage import Stage
from sapper.experiment.pipeline import AttackPlan, Pipeline, pipeline
from sapper.experiment.tasks import Aim, Goals, Nearest, Part, Task
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.named import Named
from sapper.scenario.sections import EncoderSection
from sapper.triggers import Patch
from tests.program import Install


def images(seed: int = 0, count: int = 24) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=Run(seed=seed).generator())
    return ImageSet(images=pixels, labels=torch.arange(count) % 3, classes=("a", "b", "c"), name="noise", split="train")


@dataclass(frozen=True, kw_only=True)
class Newer(BadEncoder):
    """The next version of the same attack."""

    version: ClassVar[int] = BadEncoder.version + 1


@dataclass(frozen=True, kw_only=True)
class Making(BadEncoder):
    """An attack that makes its own triggers."""

    makes_triggers: ClassVar[bool] = True


def graph(seed: int = 0, **changes: Any) -> Pipeline:
    """Two attacked tasks and one that nobody attacks."""
    settings: dict[str, Any] = {
        "architecture": "resnet10",
        "attack": BadEncoder(),
        "together": True,
        "epochs": 1,
        "size": 4,
        "images": images(),
        "head": MLP(),
        "count": None,
    } | changes
    run = Run(seed=seed)

    def task(name: str, *aims: Aim) -> Task:
        own = Part.whole(images(len(name)))
        goals = Goals(task=name, candidates=own, aims=aims)
        return Task(goals=goals, train=own, test=own, draw=run.child(name), count=settings["count"])

    aim = Aim(name="one", trigger=Patch(size=settings["size"]), rule=Nearest(0, 1))
    other = replace(aim, name="two")
    whole = Part.whole(settings["images"])
    return pipeline(
        EncoderSection(architecture=settings["architecture"], width=4, input_size=16),
        Named(name="simclr", parameters=SimCLR(epochs=settings["epochs"])),
        whole,
        run,
        tasks=[task("t", aim), task("tt", other), task("free")],
        attack=AttackPlan(
            method=Named(name="attack", parameters=settings["attack"]), shadow=whole, together=settings["together"]
        ),
        heads=[Named(name="mlp", parameters=settings["head"])],
        threads=1,
    )


def titles(stages_: tuple[Stage, ...]) -> list[str]:
    return [stage.title for stage in stages_]


def changed(**changes: Any) -> set[str]:
    """The stages whose places change."""
    before, after = graph(), graph(**changes)
    assert titles(before.stages) == titles(after.stages)
    return {one.title for one, other in zip(before.stages, after.stages) if one.place != other.place}


ATTACK = "attack on t + tt"
AFTER = {"heads on the backdoored encoder, t", "heads on the backdoored encoder, tt"}
BEFORE = {f"heads on the clean encoder, {name}" for name in ("t", "tt", "free")}
CHOSEN = {"references, t", "references, tt"}
ALL = {"pre-training", ATTACK} | AFTER | BEFORE | CHOSEN


def test_all_stages_are_there_in_the_order_of_the_work() -> None:
    assert titles(graph().stages) == [
        "pre-training",
        *("references, t", "references, tt"),
        *(f"heads on the clean encoder, {name}" for name in ("t", "tt", "free")),
        ATTACK,
        *(f"heads on the backdoored encoder, {name}" for name in ("t", "tt")),
    ]
    assert graph().stages == graph().stages
    apart = graph(together=False)
    assert [subject.tasks for subject in apart.subjects] == [(), ("t",), ("tt",)]
    assert {subject.parent for subject in apart.subjects[1:]} == {apart.clean.id}
    assert [(each.task.name, each.subject and each.subject.tasks) for each in apart.measured] == [
        ("free", None),
        ("t", ("t",)),
        ("tt", ("tt",)),
    ]


@pytest.mark.parametrize(
    ("changes", "stages_"),
    [
        ({"seed": 1}, ALL),
        ({"epochs": 2}, ALL),
        ({"images": images(9)}, ALL),
        ({"attack": BadEncoder(lambda1=2.0)}, {ATTACK} | AFTER),
        ({"attack": Newer()}, {ATTACK} | AFTER),
        ({"size": 5}, ALL - {"pre-training", "heads on the clean encoder, free"} - CHOSEN),
        ({"head": MLP(epochs=3)}, BEFORE | AFTER),
        ({"count": 12}, BEFORE | AFTER),
    ],
    ids=["seed", "a parameter of the first stage", "data", "parameter", "version", "trigger", "head", "victim's part"],
)
def test_a_place_depends_on_what_made_the_stage_and_on_nothing_else(changes: dict[str, Any], stages_: set[str]) -> None:
    assert changed(**changes) == stages_


def test_another_version_of_a_library_is_another_place_for_what_rests_on_it(install: Install) -> None:
    networks = ("resnet10", "timm:vit_tiny_patch16_224")
    before = [[stage.place for stage in graph(architecture=name).stages] for name in networks]
    install("timm", "0.0")
    after = [[stage.place for stage in graph(architecture=name).stages] for name in networks]
    assert after[0] == before[0]
    assert not set(after[1]) & set(before[1])


def test_baselines_wait_for_an_attack_that_makes_its_triggers() -> None:
    usual, making = graph(), graph(attack=Making())
    (source,) = [stage for stage in making.stages if stage.title == ATTACK]
    for made in making.measured:
        assert (source in made.before.inputs) == (made.subject is not None)
    assert all(stage.title != ATTACK for made in usual.measured for stage in made.before.inputs)


def test_a_part_travels_as_its_samples_and_is_the_same_whatever_was_drawn_before() -> None:
    whole = Part.whole(images(count=40))
    few = whole.sample(5, Run(seed=3))
    assert few().digest == few().digest == whole().sample(5, Run(seed=3).generator()).digest
    there = pickle.loads(pickle.dumps(few))
    assert there().digest == few().digest
    assert there.origin == few.origin
    assert len(pickle.dumps(few)) < len(pickle.dumps(whole)) / 4
    assert whole.sample(None, Run()) is whole
    rest, held = whole.halves(0.25, Run(seed=1))
    assert (len(rest()), len(held())) == (30, 10)
    assert len({str(part.origin) for part in (whole, few, rest, held, whole.sample(5, Run(seed=4)))}) == 5
