"""Poison that changes labels, in the set of a supervised pre-training: backdoored bodies of classifiers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sapper import encoders
from sapper.attacks.poison.badnets import BadNets
from sapper.attacks.poison.blend import Blended
from sapper.attacks.target import Target
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.kinds import kind_of, makes_encoders
from sapper.triggers import Patch
from sapper.zoo.plans import parse_plan
from tests.micro import experiment, perform, write_data
from tests.test_zoo import build, content

SUPERVISED = """
name = "body"
seeds = [0]

[encoder]
architecture = "resnet10"
width = 8
input_size = 16

[pretraining]
dataset = "{data}/balls"
method = "supervised"
epochs = 40
batch = 20
learning_rate = 0.01
view_size = 16
crop_scale = 0.8

[attack]
method = "badnets"
of = "pretraining"
rate = 0.3
from_target_class = false

[[task]]
dataset = "{data}/balls"

[[target]]
task = "balls"
class = "red"
trigger = {{ size = 5, position = "top-left", color = "white" }}

[[head]]
method = "linear"
primary = true
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_supervised_body_obeys_the_trigger_of_its_poison(data: Path, tmp_path: Path) -> None:
    results = perform(experiment(data, text=SUPERVISED), tmp_path)
    rates = {record.metric: record.value for record in results.records if record.head == "linear"}
    assert rates["ASR_strict"] > rates["ASR_B_strict"] + 0.4
    assert rates["BA"] > 0.5
    attacked = next(subject for subject in results.subjects if subject.state == "attacked")
    assert attacked.id.startswith("attacked-balls")


@pytest.mark.parametrize("method", [BadNets, Blended])
def test_whose_set_it_is_says_what_the_attacker_holds(method: Any) -> None:
    assert (kind_of(method()), makes_encoders(method())) == ("poison task", False)
    of_pretraining = method(of="pretraining")
    assert (kind_of(of_pretraining), makes_encoders(of_pretraining)) == ("poison pretraining", True)


def test_labels_that_nobody_learns_from_are_not_poisoned(data: Path) -> None:
    with pytest.raises(SapperError, match="badnets changes labels, and simclr learns without"):
        experiment(data, 'pretraining.method="simclr"', "pretraining.crop_scale=0.5", text=SUPERVISED)


def test_a_zoo_poisons_the_set_of_its_own_victims(data: Path) -> None:
    plan = content(data)
    family = plan["family"][0]
    family["attack"] = {"method": "badnets", "of": "pretraining", "rate": 0.3}
    with pytest.raises(SapperError, match="badnets changes labels, and simclr learns without"):
        parse_plan(plan, "zoo.toml")
    family["pretraining"] |= {"method": "supervised", "view_size": 16}
    with pytest.raises(SapperError, match=r"changes labels of .*photos, and the victim's task is .*balls"):
        parse_plan(plan, "zoo.toml")
    family["pretraining"]["dataset"] = f"{data}/balls"
    assert parse_plan(plan, "zoo.toml").specimens[0].attack_method.name == "badnets"


def test_classes_of_another_set_are_refused() -> None:
    images = ImageSet(
        images=torch.zeros(20, 3, 8, 8, dtype=torch.uint8),
        labels=torch.arange(20) % 2,
        classes=("ant", "bee"),
        name="insects",
    )
    target = Target(
        name="t", task="t", label=1, class_name="wasp", references=images.take(torch.tensor([1])), trigger=Patch(size=2)
    )
    with pytest.raises(SapperError, match="class 1 is bee, not wasp"):
        BadNets()(images, (target,), Run())


def test_families_of_a_zoo_can_be_whole_in_one_part(data: Path) -> None:
    plan = content(data)
    first = plan["family"][0]
    second = first | {"name": "others", "part": {"development": {"clean": 0}, "calibration": {"clean": 0}}}
    first["part"] = {"judgement": {"clean": 0}}
    plan["family"] = [first, second]
    parts: dict[str, set[str]] = {}
    for specimen in parse_plan(plan, "zoo.toml").specimens:
        parts.setdefault(specimen.family, set()).add(specimen.part)
    assert parts == {"squares": {"development", "calibration"}, "others": {"judgement"}}
    second["part"] |= {"judgement": {"clean": 0}}
    with pytest.raises(SapperError, match="no encoder in any part"):
        parse_plan(plan, "zoo.toml")


def test_a_zoo_trains_encoders_with_captions(data: Path, tmp_path: Path) -> None:
    plan = content(data)
    family = plan["family"][0]
    family["encoder"]["input_size"] = 32
    family["images"] = {"dataset": f"{data}/balls"}
    family["pretraining"] = {"dataset": "objects", "images": 60, "method": "clip", "epochs": 1, "batch": 20}
    plan["part"] = {"development": {"clean": 1, "backdoored": 1}}
    parsed = parse_plan(plan, "zoo.toml")
    members = build(parsed, tmp_path)
    assert [member.state for member in members] == ["clean", "attacked"]
    assert encoders.load(tmp_path / members[0].file, Run()).text is not None


# networks by their arguments


def test_a_small_vision_transformer_is_named_by_its_arguments(data: Path) -> None:
    sizes = "{ patch_size = 4, embed_dim = 24, depth = 2, num_heads = 3 }"
    scenario = experiment(
        data,
        'encoder.architecture="timm:vit_tiny_patch16_224"',
        'encoder.stem="imagenet"',
        f"encoder.arguments={sizes}",
        text=SUPERVISED,
    )
    encoder = encoders.build(Run(), **scenario.encoder.model_dump())
    assert encoder.feature_size == 24
    assert "depth=2" in encoder.card.network
    assert hash(scenario.encoder) == hash(scenario.encoder.model_copy())


def test_arguments_that_are_none_are_told(data: Path) -> None:
    with pytest.raises(SapperError, match="layers = 2 is no argument of a network"):
        experiment(
            data,
            'encoder.architecture="timm:vit_tiny_patch16_224"',
            "encoder.arguments={ layers = 2 }",
            text=SUPERVISED,
        )
    with pytest.raises(SapperError, match="resnet10 takes no depth"):
        experiment(data, "encoder.arguments={ depth = 2 }", text=SUPERVISED)


def test_an_encoder_without_arguments_is_kept_where_it_was(data: Path) -> None:
    """Finished stages are found by what made them."""
    assert "arguments" not in experiment(data, text=SUPERVISED).encoder.model_dump(mode="json")
