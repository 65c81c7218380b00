"""Sets that an attack cannot work with: they are told when the data is loaded, before anything is trained."""

import json
from pathlib import Path

import pytest

from sapper.errors import SapperError
from sapper.experiment.data import load_data
from sapper.experiment.fitting import check_fit
from sapper.running import Run
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


def test_an_attack_on_each_task_by_itself_may_have_what_one_on_all_may_not(data: Path) -> None:
    loaded(data, "balls", 'method = "ssl_backdoor"\nrate = 0.2', BOTH + PATCH)
    loaded(data, "photos", 'method = "lba"\nshadow = "DATA/balls"', ONE + PATCH)
