"""Sets that an attack cannot work with: they are told when the data is loaded, before anything is trained."""

import json
from pathlib import Path

import pytest
import torch

from sapper.attacks.poison.corruptencoder import CorruptEncoder
from sapper.errors import SapperError
from sapper.experiment.data import load_data
from sapper.experiment.fitting import check_fit
from sapper.running import Run
from sapper.samples import ImageSet, PairSet
from tests.micro import PLAIN, experiment, write_data, write_npz

FAINT = 'trigger = { kind = "frequency", coefficients = [[3, 3]] }'
PATCH = "trigger = { size = 4 }"
ONE = '[[target]]\ntask = "balls"\nclass = "blue"\n'
BOTH = ONE + PATCH + '\n[[target]]\ntask = "boxes"\nclass = 2\n'


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Besides the usual sets, coins, which have no blue."""
    folder = write_data(tmp_path_factory.mktemp("data"))
    write_npz(folder / "coins" / "train.npz", 60, seed=5)
    (folder / "coins" / "classes.json").write_text(json.dumps(["red", "green", "gold"]))
    return folder


def loaded(data: Path, dataset: str, attack: str, target: str) -> None:
    text = PLAIN.replace("{data}/photos", f"{{data}}/{dataset}")
    extra = f"\n[attack]\n{attack}\n{target}\n".replace("DATA", data.as_posix())
    scenario = experiment(data, text=text, extra=extra)
    check_fit(scenario, load_data([scenario], Run(), data_root=None, download=False), Run())


@pytest.mark.parametrize(
    ("dataset", "attack", "target", "message", "where"),
    [
        ("photos", 'method = "lba"', ONE + PATCH, "lba needs labels, and .* has none", "attack.shadow"),
        ("coins", 'method = "lba"', ONE + PATCH, "none is 'blue'", "attack: data set"),
        ("photos", 'method = "lba"\nshadow = "DATA/coins"', ONE + PATCH, "none is 'blue'", "attack: data set"),
        ("coins", 'method = "ssl_backdoor"', ONE + PATCH, "no class 'blue'", "attack: data set"),
        ("coins", 'method = "ctrl"', ONE + FAINT, "no class 'blue'", "attack: data set"),
        ("balls", 'method = "ssl_backdoor"\nrate = 0.4', ONE + PATCH, "24 unpoisoned .* are 20", "attack: rate"),
        ("balls", 'method = "ctrl"\nrate = 0.4', ONE + FAINT, "24 unpoisoned .* are 20", "attack: rate"),
        (
            "balls",
            'method = "ssl_backdoor"\nrate = 0.2\nencoders = "one-for-all"',
            BOTH + PATCH,
            "12 unpoisoned .* are 8",
            "attack: rate",
        ),
    ],
)
def test_what_an_attack_cannot_work_with_is_told(
    data: Path, dataset: str, attack: str, target: str, message: str, where: str
) -> None:
    with pytest.raises(SapperError, match=message) as caught:
        loaded(data, dataset, attack, target)
    assert where in str(caught.value.where)


@pytest.mark.parametrize(
    ("attack", "target", "message", "where"),
    [
        ('method = "trojannn"', ONE + FAINT, "a frequency covers no place", "attack: target.trigger"),
        ('method = "trojannn"\nlayer = 5', ONE + PATCH, "has 3 linear layers, number 5", "attack: layer"),
        ('method = "ssl_backdoor"', ONE + "trigger = { size = 9 }", "9×9 patch does not fit", "attack: trigger.size"),
        ('method = "corruptencoder"', ONE + "trigger = { size = 9 }", "9×9 patch does not fit", "attack: trigger.size"),
    ],
)
def test_what_an_attack_cannot_do_at_all_is_told_when_the_scenario_is_read(
    data: Path, attack: str, target: str, message: str, where: str
) -> None:
    with pytest.raises(SapperError, match=message) as caught:
        experiment(data, text=PLAIN, extra=f"\n[attack]\n{attack}\n{target}\n")
    assert where in str(caught.value.where)


FLEET = """
[attack]
method = "badencoder"
{target}
[[defense]]
method = "mntd_encoder"
shadows = 1
validation = 1
share = 0.5
{more}
"""


def test_a_fleet_has_fewer_images_than_the_encoders(data: Path) -> None:
    text = PLAIN.replace('dataset = "{data}/photos"', 'dataset = "{data}/photos"\nmethod = "moco"\nqueue = 64')

    def check(more: str) -> None:
        scenario = experiment(data, text=text, extra=FLEET.format(target=ONE + PATCH, more=more))
        check_fit(scenario, load_data([scenario], Run(), data_root=None, download=False), Run())

    check("pretraining = { queue = 32 }")
    with pytest.raises(SapperError, match="queue") as caught:
        check("")
    assert "defense[0].pretraining.queue" in str(caught.value.where)


def test_a_set_of_pairs_is_not_for_corruptencoder() -> None:
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    pairs = PairSet.of(ImageSet(images=pixels, name="two", labels=torch.tensor([0, 1]), classes=("a", "b")), ["a", "b"])
    with pytest.raises(SapperError, match="poisons images"):
        CorruptEncoder().check_samples(pairs, ["a"])


def test_an_attack_on_each_task_by_itself_may_have_what_one_on_all_may_not(data: Path) -> None:
    loaded(data, "balls", 'method = "ssl_backdoor"\nrate = 0.2', BOTH + PATCH)
    loaded(data, "photos", 'method = "lba"\nshadow = "DATA/balls"', ONE + PATCH)
