"""Names of models are known from the libraries' files, without importing them."""

import importlib
import subprocess
import sys

import pytest

from sapper.encoders.names import kind_of
from sapper.encoders.spelling import check_spelling, models_of
from sapper.errors import SapperError


def listed(library: str) -> set[str]:
    """What the library itself lists."""
    if library == "torchvision":
        models = importlib.import_module("torchvision.models")
        return set(models.list_models(module=models))
    return set(importlib.import_module(library).list_models())


@pytest.mark.parametrize("library", ["timm", "torchvision", "open_clip"])
def test_the_names_are_those_that_the_library_lists(library: str) -> None:
    pytest.importorskip(library)
    assert listed(library) == models_of(library)


@pytest.mark.parametrize(
    ("uri", "near"),
    [
        ("timm:resnet5O", "resnet50"),
        ("timm:resnet5O.a1_in1k", "resnet50"),
        ("torchvision:resnet5o/IMAGENET1K_V1", "resnet50"),
        ("open_clip:RN5O/openai", "RN50"),
    ],
)
def test_a_misspelled_model_is_told_with_the_nearest(uri: str, near: str) -> None:
    pytest.importorskip(uri.partition(":")[0])
    with pytest.raises(SapperError, match="has no model") as error:
        kind_of(uri)
    assert near in (error.value.remedy or "")


@pytest.mark.parametrize(
    "name", ["timm:resnet50", "timm:resnet50.a1_in1k", "torchvision:vit_b_16", "hf-hub:nobody/nothing"]
)
def test_names_that_may_be_there_pass(name: str) -> None:
    assert kind_of(name) == "name"


def test_a_library_that_is_not_installed_has_its_say_later() -> None:
    check_spelling("no_such_library", "resnet5O")


def test_no_library_is_imported_for_it() -> None:
    code = (
        "import sys; from sapper.encoders.names import kind_of; kind_of('timm:resnet50'); "
        "kind_of('torchvision:resnet18'); print(sorted({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
