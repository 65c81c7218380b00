"""Scenario files: what is read, what ``--set`` and variants change, and one clear error for every mistake."""

import re
import tomllib
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapper.attacks.implant.badencoder import BadEncoder
from sapper.downstream import MLP, Linear
from sapper.errors import SapperError
from sapper.pretraining.simclr import SimCLR
from sapper.scenario.reading import Scenario, parse, read
from sapper.triggers import Blend, Patch
from tests.conftest import REPOSITORY

SHIPPED = sorted((REPOSITORY / "scenarios").glob("*.toml"))

VALID = """
name = "trial"
seeds = [0, 1]

[encoder]
width = 8

[pretraining]
dataset = "objects"
method = "simclr"
epochs = 3

[attack]
method = "badencoder"
lambda1 = 0.5

[[task]]
dataset = "signs"

[[task]]
dataset = "data/my-digits.npz"

[[target]]
task = "signs"
class = "stop"

[[target]]
task = "my-digits"
class = 1
name = "ones"
references = 3
trigger = { kind = "blend", alpha = 0.3 }

[[head]]
method = "mlp"
primary = true

[[head]]
method = "linear"
name = "probe"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.toml"
    path.write_text(VALID)
    return path


def changed(old: str, new: str) -> str:
    """The valid file with some text replaced."""
    assert VALID.count(old) == 1
    return VALID.replace(old, new)


def without(*headings: str) -> str:
    """The valid file without all tables of these headings."""
    tables = re.split(r"^(?=\[)", VALID, flags=re.MULTILINE)
    return "".join(table for table in tables if not table.startswith(headings))


def refused(path: Path, text: str | None = None, *overrides: str) -> SapperError:
    """The error for a file with that text (as it is, by default); it must name a place and a remedy."""
    if text is not None:
        path.write_text(text)
    with pytest.raises(SapperError) as caught:
        read(path, overrides)
    assert caught.value.where
    assert caught.value.remedy
    return caught.value


# What is read


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_scenarios_are_valid_named_as_their_files_and_begin_with_a_comment(path: Path) -> None:
    assert read(path).name == path.stem
    assert path.read_text(encoding="utf-8").startswith("#")


SMALL = [
    *("badencoder-cifar10-small", "badencoder-multi"),
    *(path.stem for path in SHIPPED if re.fullmatch("ablation-.*(?<!-small)|paper-.*-small", path.stem)),
]
SMALL.remove("paper-mntd-encoders-small")  # needs ten encoders, smaller ones
SMALL.remove("paper-lba-small")  # has three seeds, and the demo's budget
EMBEDDED = [path.stem for path in SHIPPED if re.fullmatch("(ablation-.*|badencoder-multi)-small", path.stem)]


@pytest.mark.slow
@pytest.mark.parametrize("names", [SMALL, EMBEDDED], ids=["real data", "embedded data"])
def test_small_scenarios_share_their_pretraining_and_attack(names: list[str]) -> None:
    """So that one Store serves them all, and an ablation says something of the main table."""
    scenarios = [read(REPOSITORY / "scenarios" / f"{name}.toml") for name in names]
    assert len(scenarios) > 5
    assert len({repr((s.encoder, s.pretraining, s.pretraining_method)) for s in scenarios}) == 1
    assert len({repr(s.attack_method) for s in scenarios}) == 1
    assert len({repr(s.heads[0]) for s in scenarios}) == 1


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_ablation_on_embedded_data_repeats_anywhere_and_has_one_variant_with_nothing_changed(name: str) -> None:
    """Three seeds in one number format, and the common setting among the variants: all tables have it as a row."""
    scenario = read(REPOSITORY / "scenarios" / f"{name}.toml")
    assert (scenario.seeds, scenario.precision, scenario.judge_on) == ((0, 1, 2), "float32", "test")
    variants = [scenario.with_variant(changes) for changes in scenario.variants]
    same = [(variant.attack_method, variant.targets) for variant in variants]
    assert (scenario.attack_method, scenario.targets) in same


def test_a_file_becomes_sections_and_methods_with_their_parameters(file: Path) -> None:
    scenario = read(file)
    assert (scenario.name, scenario.seeds, scenario.judge_on) == ("trial", (0, 1), "test")
    assert scenario.encoder.width == 8
    assert scenario.pretraining_method.parameters == SimCLR(epochs=3)
    assert scenario.attack_method is not None
    assert scenario.attack_method.parameters == BadEncoder(lambda1=0.5)
    assert [head.parameters for head in scenario.heads] == [MLP(), Linear()]
    assert [head.name for head in scenario.heads] == ["mlp", "probe"]
    assert scenario.primary_head == "mlp"


def test_audits_have_the_commands_defaults(file: Path) -> None:
    assert read(file).audit is None
    section = read(file, ("audit.images=objects",)).audit
    assert section is not None
    assert (section.budget, section.split, section.bags) == ("quick", None, None)
    assert (section.false_alarms, section.seed) == (0.05, 0)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("audit.images=nowhere", "audit.images"),
        ("audit.image=objects", "audit.image"),
        ("audit.budget=quik", "audit.budget"),
        ("audit.false_alarms=0", "audit.false_alarms"),
        ("audit.false_alarms=1.0", "audit.false_alarms"),
        ("audit.bags=[]", "audit.bags"),
        ("audit.seed=-1", "audit.seed"),
        ("audit=objects", "audit"),
    ],
)
def test_mistakes_in_audits_are_told_with_their_key(file: Path, change: str, place: str) -> None:
    images = () if "images" in change or change.startswith("audit=") else ("audit.images=objects",)
    assert f": {place}" in str(refused(file, None, *images, change).where)


def test_the_demos_defenses_are_tried_on_the_demos_encoders() -> None:
    """So that one Store serves both."""
    demo, defenses = (read(REPOSITORY / "scenarios" / f"{name}.toml") for name in ("demo", "demo-defenses"))
    shared = ("encoder", "pretraining", "pretraining_method", "attack", "attack_method", "tasks", "targets", "primary")
    assert all(getattr(demo, name) == getattr(defenses, name) for name in shared)
    assert demo.audit is not None
    assert not demo.defenses
    assert len(defenses.defenses) == 4


def test_names_that_are_left_out_are_made_from_the_data(file: Path) -> None:
    scenario = read(file)
    assert [task.name for task in scenario.tasks] == ["signs", "my-digits"]
    assert [target.name for target in scenario.targets] == ["signs/stop", "ones"]
    assert [target.trigger for target in scenario.targets] == [Patch(), Blend(alpha=0.3)]


def test_without_heads_the_papers_is_taken(file: Path) -> None:
    file.write_text(without("[[head]]"))
    scenario = read(file)
    assert [head.parameters for head in scenario.heads] == [MLP()]
    assert scenario.primary_head == "mlp"


def test_a_single_head_is_primary_without_saying_so(file: Path) -> None:
    file.write_text(without("[[head]]") + '[[head]]\nmethod = "knn"\n')
    assert read(file).primary_head == "knn"


def test_a_scenario_may_have_no_attack(file: Path) -> None:
    file.write_text(without("[attack]", "[[target]]"))
    scenario = read(file)
    assert scenario.attack is None
    assert scenario.targets == ()


def test_a_preset_is_where_the_own_keys_start_from(file: Path) -> None:
    file.write_text(changed("epochs = 3", 'preset = "paper"\nbatch = 64'))
    parameters = read(file).pretraining_method.parameters
    assert (parameters.schedule, parameters.epochs, parameters.batch) == ("constant", 1000, 64)


# --set


def test_set_changes_a_dotted_key_with_the_values_of_toml(file: Path) -> None:
    scenario = read(file, ("attack.lambda1=0", "seeds=[4, 5]", "encoder.stem = 'imagenet'", "pretraining.monitor=true"))
    assert scenario.attack_method is not None
    assert scenario.attack_method.parameters.lambda1 == 0
    assert scenario.seeds == (4, 5)
    assert scenario.encoder.stem == "imagenet"
    assert scenario.pretraining_method.parameters.monitor is True


@pytest.mark.parametrize("value", ["cifar10", "./some/folder", "a.npz", "./it's=odd", '"./quoted"'])
def test_set_takes_a_bare_word_as_text(file: Path, value: str) -> None:
    assert read(file, (f"pretraining.dataset={value}",)).pretraining.dataset == value.strip('"')


def test_set_changes_every_table_of_a_list_or_the_one_of_a_number(file: Path) -> None:
    scenario = read(file, ("target.trigger={size = 5}", "target.0.trigger.size=3", "task.1.train_images=100"))
    assert [target.trigger for target in scenario.targets] == [Patch(size=3), Patch(size=5)]
    assert [task.train_images for task in scenario.tasks] == [None, 100]


def test_set_may_bring_a_section_that_the_file_lacks(file: Path) -> None:
    file.write_text(without("[encoder]"))
    assert read(file, ("encoder.width=4",)).encoder.width == 4


def test_the_resolved_content_holds_the_overrides(file: Path) -> None:
    assert read(file, ("attack.epochs=7",)).content["attack"]["epochs"] == 7


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("attack.epochs", "not KEY=VALUE"),
        ("=5", "not KEY=VALUE"),
        ("attack.=5", "not KEY=VALUE"),
        (".epochs=5", "not KEY=VALUE"),
        ("name.first=5", "name.first"),
        ("seeds.0=5", "seeds.0"),
        ("seeds.first=5", "seeds.first"),
        ("task.0=5", "task.0"),
        ("task.7.dataset=signs", "no task number 7"),
        ("attack.epochs=many", "attack.epochs"),
        ("attack.epochs=" + "9" * 5000, "attack.epochs"),
        ("attack.lamda1=5", "lambda1"),
        ("atack.epochs=5", "did you mean attack"),
    ],
)
def test_a_wrong_override_is_refused(file: Path, override: str, says: str) -> None:
    assert says in str(refused(file, None, override))


# Variants


def with_variants(text: str) -> str:
    return f"{VALID}\n{text}"


def test_a_variant_changes_its_keys_and_nothing_else(file: Path) -> None:
    file.write_text(with_variants('[[variant]]\n"attack.lambda1" = 0\n\n[[variant]]\nattack.lambda1 = 2\n'))
    scenario = read(file)
    assert scenario.variants == ({"attack.lambda1": 0}, {"attack.lambda1": 2})
    for changes, weight in zip(scenario.variants, (0, 2)):
        variant = scenario.with_variant(changes)
        assert variant.attack_method is not None
        assert scenario.attack_method is not None
        assert variant.attack_method.parameters.lambda1 == weight
        assert variant.attack_method.parameters.lambda2 == scenario.attack_method.parameters.lambda2
        assert variant.pretraining_method == scenario.pretraining_method
        assert variant.variants == ()
    assert scenario.content["attack"]["lambda1"] == 0.5


def test_a_table_below_a_quoted_key_replaces_what_was_there(file: Path) -> None:
    file.write_text(with_variants('[[variant]]\n"target.trigger" = { size = 4 }\n'))
    scenario = read(file)
    variant = scenario.with_variant(scenario.variants[0])
    assert [target.trigger for target in variant.targets] == [Patch(size=4), Patch(size=4)]


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ('"attack.lamda1" = 0', "did you mean lambda1"),
        ('"attac.lambda1" = 0', "did you mean attack"),
        ('"target.1.trigger.alpha" = 2', "outside (0, 1]"),
        ('"target.0.trigger.size" = 40', "does not fit"),
        ('"encoder.input_size" = 8', "does not fit"),
        ('"encoder.architecture" = "resnet81"', "resnet18"),
        ('"encoder.width" = 0', "encoder.width"),
        ("seeds = [3]", "cannot change"),
        ('name = "other"', "cannot change"),
        ('precision = "float32"', "cannot change"),
        ('judge_on = "validation"', "cannot change"),
        ('only = ["badencoder"]', "cannot change"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_before_anything_runs(file: Path, variant: str, says: str) -> None:
    error = str(refused(file, with_variants(f'[[variant]]\n"attack.epochs" = 1\n\n[[variant]]\n{variant}\n')))
    assert says in error
    assert f"{file}: variant[1]" in error


# Mistakes in a file

BLEND = '{ kind = "blend", alpha = 0.3 }'

MISTAKES = {
    # what it is: (text of the valid file, what stands there instead, the key that the error names, what else it says)
    "unknown key of the file": ('name = "trial"', 'name = "trial"\nseed = 3', "seed", "did you mean seeds"),
    "unknown table": ("[encoder]", "[encodr]", "encodr", "did you mean encoder"),
    "misspelt table": ("[pretraining]", "[pretrainig]", "pretrainig", "did you mean pretraining"),
    "unknown key of the encoder": ("width = 8", "widht = 8", "encoder.widht", "did you mean width"),
    "unknown key of the pre-training": ("epochs = 3", "epoch = 3", "pretraining.epoch", "did you mean epochs"),
    "unknown key of the attack": ("lambda1", "lamda1", "attack.lamda1", "did you mean lambda1"),
    "unknown key of a task": ('dataset = "signs"', 'datset = "signs"', "task[0].datset", "did you mean dataset"),
    "unknown key of a target": ("references", "reference", "target[1].reference", "did you mean references"),
    "unknown key of a trigger": ("alpha", "alfa", "target[1].trigger.alfa", "did you mean alpha"),
    "unknown key of a head": ("primary", "primry", "head[0].primry", "did you mean primary"),
    "text for a whole number": ("epochs = 3", 'epochs = "5"', "pretraining.epochs", "valid integer"),
    "fraction for a whole number": ("epochs = 3", "epochs = 5.0", "pretraining.epochs", "valid integer"),
    "truth for a whole number": ("epochs = 3", "epochs = true", "pretraining.epochs", "valid integer"),
    "number for a truth": ("primary = true", "primary = 1", "head[0].primary", "valid boolean"),
    "number for a text": ('"objects"', "5", "pretraining.dataset", "valid string"),
    "number for a method": ('"simclr"', "5", "pretraining.method", "valid string"),
    "number for a table": ("\n[encoder]\nwidth", "encoder", "encoder", "8"),
    "date for a text": ('"trial"', "1979-05-27", "name", "put quotes around it"),
    "no epochs": ("epochs = 3", "epochs = 0", "pretraining.epochs", "greater than 0"),
    "infinite learning rate": ("lambda1 = 0.5", "learning_rate = inf", "attack.learning_rate", "finite"),
    "learning rate that is no number": ("epochs = 3", "learning_rate = nan", "pretraining.learning_rate", "finite"),
    "negative learning rate": ("epochs = 3", "learning_rate = -1", "pretraining.learning_rate", "greater than 0"),
    "number beyond 64 bits": ("epochs = 3", f"epochs = 0x{'f' * 17}", "pretraining.epochs", "64 bits"),
    "unknown pre-training": ('"simclr"', '"simclar"', "pretraining.method", "did you mean simclr"),
    "unknown attack": ('"badencoder"', '"badencodr"', "attack.method", "did you mean badencoder"),
    "unknown head": ('"linear"', '"liner"', "head[1].method", "did you mean linear"),
    "unknown preset": ("epochs = 3", 'preset = "papre"', "pretraining.preset", "did you mean paper"),
    "preset where there is none": ('name = "probe"', 'preset = "paper"', "head[1].preset", "linear has none"),
    "unknown schedule": ("epochs = 3", 'schedule = "cosin"', "pretraining.schedule", "'cosine' or 'constant'"),
    "unknown architecture": ("width = 8", 'architecture = "resnet81"', "encoder.architecture", "resnet18"),
    "unknown one of timm's": ("width = 8", 'architecture = "timm:rsnet18"', "encoder.architecture", "resnet18"),
    "unknown stem": ("width = 8", 'stem = "cifra"', "encoder.stem", "'cifar-pool' or 'imagenet'"),
    "width zero": ("width = 8", "width = 0", "encoder.width", "greater than or equal to 1"),
    "width beyond all memory": ("width = 8", "width = 1_000_000", "encoder.width", "less than or equal to"),
    "std zero": ("width = 8", "std = [0.2, 0.0, 0.2]", "encoder.std[1]", "greater than 0"),
    "two means for three channels": ("width = 8", "mean = [0.5, 0.5]", "encoder.mean", "[0.5, 0.5]"),
    "unknown share of encoders": ("lambda1 = 0.5", 'encoders = "one"', "attack.encoders", "'one-for-all'"),
    "momentum one": ("lambda1 = 0.5", "momentum = 1.0", "attack.momentum", "less than 1"),
    "negative weight of a loss": ("lambda1 = 0.5", "lambda1 = -0.5", "attack.lambda1", "or equal to 0"),
    "negative number of views": ("lambda1 = 0.5", "reference_views = -1", "attack.reference_views", "or equal to 0"),
    "warm-up beyond the end": ("epochs = 3", "warmup = 1.5", "pretraining.warmup", "less than or equal to 1"),
    "crop beyond the image": ("epochs = 3", "crop_scale = 1.5", "pretraining.crop_scale", "less than or equal to 1"),
    "dropout of everything": ("primary = true", "primary = true\ndropout = 1.0", "head[0].dropout", "less than 1"),
    "unknown task of a target": ('task = "my-digits"', 'task = "my-digit"', "target[1].task", "my-digits"),
    "unknown kind of trigger": ('kind = "blend"', 'kind = "blnd"', "target[1].trigger.kind", "did you mean blend"),
    "list for a kind of trigger": ('kind = "blend"', 'kind = ["blend"]', "target[1].trigger.kind", "unknown trigger"),
    "number for a trigger": (BLEND, "5", "target[1].trigger", "5"),
    "blend of nothing": ("alpha = 0.3", "alpha = 0", "target 'ones': trigger.alpha", "above 0"),
    "trigger larger than the image": (BLEND, "{ size = 40 }", "target 'ones': trigger.size", "32×32"),
    "trigger without pixels": (BLEND, "{ size = -4 }", "target 'ones': trigger.size", "at least 1"),
    "trigger beside the image": (BLEND, "{ position = [30, 0] }", "target 'ones': trigger.size", "another position"),
    "trigger with three sides": (BLEND, "{ size = [4, 4, 4] }", "target[1].trigger.size", "valid integer, or"),
    "unknown corner": (BLEND, '{ position = "left" }', "target[1].trigger.position", "'bottom-left'"),
    "unknown color": (BLEND, '{ color = "wite" }', "target 'ones': trigger.color", "white"),
    "color out of range": (BLEND, "{ color = [0, 0, 2] }", "target 'ones': trigger.color", "0…1"),
    "negative class": ("class = 1", "class = -1", "target[1].class", "greater than or equal to 0"),
    "no class": ("class = 1\n", "", "target[1].class", "is missing"),
    "two tasks of one name": ('"data/my-digits.npz"', '"signs"', "task", "'signs'"),
    "two targets of one name": ('"ones"', '"signs/stop"', "target", "'signs/stop'"),
    "two heads of one name": ('"probe"', '"mlp"', "head", "'mlp'"),
    "head name that is no file name": ('"probe"', '"a/b"', "head[1].name", "no slash"),
    "name that leaves its folder": ('"trial"', '"../trial"', "name", "no slash"),
    "empty name": ('"trial"', '""', "name", "not empty"),
    "no primary head": ("primary = true\n", "", "head", "0 heads are primary"),
    "two primary heads": ('name = "probe"', "primary = true", "head", "2 heads are primary"),
    "no seeds": ("[0, 1]", "[]", "seeds", "at least 1"),
    "a seed twice": ("[0, 1]", "[1, 1]", "seeds", "twice"),
    "negative seed": ("[0, 1]", "[0, -1]", "seeds[1]", "greater than or equal to 0"),
    "text for a seed": ("[0, 1]", '["0"]', "seeds[0]", "valid integer"),
    "no name": ('name = "trial"', "", "name", "is missing"),
    "misspelt data set of a task": ('dataset = "signs"', 'dataset = "singns"', "task[0].dataset", "did you mean signs"),
    "misspelt data set": ('dataset = "objects"', 'dataset = "object"', "pretraining.dataset", "did you mean objects"),
    "no data set": ('dataset = "objects"', "", "pretraining.dataset", "add it to [pretraining]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_file_key_and_remedy(file: Path, mistake: str) -> None:
    old, new, key, says = MISTAKES[mistake]
    error = refused(file, changed(old, new))
    assert str(file) in str(error)
    assert key in str(error.where)
    assert says in str(error)


@pytest.mark.parametrize(
    ("heading", "says"),
    [
        ("[pretraining]", "'pretraining' is missing"),
        ("[attack]", "[attack] is missing"),
        ("[[target]]", "[[target]] is missing"),
    ],
)
def test_a_missing_section_is_told(file: Path, heading: str, says: str) -> None:
    error = str(refused(file, without(heading)))
    assert says in error
    assert str(file) in error


def test_a_scenario_needs_a_task(file: Path) -> None:
    assert "'task' is missing" in str(refused(file, without("[[task]]", "[[target]]", "[attack]")))


@pytest.mark.parametrize(
    "content",
    [b"name = ", b"[[[", b"name = 1\nname = 2", b"\xff\xfe", b"a = " + b"9" * 5000, b"a = " + b"[" * 5000, b"\x00"],
    ids=["cut off", "brackets", "key twice", "not UTF-8", "long number", "deep array", "NUL"],
)
def test_what_is_not_toml_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert str(file) in str(refused(file))


CRLF = VALID.replace("\n", "\r\n")


@pytest.mark.parametrize(
    "content",
    [
        CRLF.encode(),
        CRLF.encode("utf-8-sig"),
        VALID.replace("\n", "\r").encode(),
        VALID.rstrip().replace("width", "\twidth").encode(),
    ],
    ids=["CRLF", "byte-order mark", "CR", "tabs, no end of line"],
)
def test_a_file_is_read_as_editors_leave_it(file: Path, content: bytes) -> None:
    expected = read(file).content
    file.write_bytes(content)
    assert read(file).content == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (VALID.encode("utf-16"), "UTF-16"),
        (VALID.encode("utf-16-be"), "UTF-16"),
        (VALID.encode("utf-32"), "UTF-32"),
        (changed('name = "ones"', 'name = "för"').encode("latin-1"), "byte 0xf6 in line 30, as in Latin-1"),
        (b"\x7fELF\0\0\1" + b"a" * 100, "something binary"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "UTF-32", "Latin-1", "binary"],
)
def test_another_encoding_is_named(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)
    error = refused(file)
    assert says in str(error)
    assert "save it as UTF-8" in str(error)


@pytest.mark.parametrize(
    "path", [r"C:\Users\me\data", r"C:\data", r"C:\temp\new", r"\\server\photos"], ids=["hex", "d", "tab", "server"]
)
def test_a_path_of_windows_in_double_quotes_is_explained(file: Path, path: str) -> None:
    assert "single quotes" in str(refused(file, changed("data/my-digits.npz", path)))


@pytest.mark.parametrize("name", ["nothing.toml", "."])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    assert str(tmp_path) in str(refused(tmp_path / name))


def test_more_shadow_images_than_the_encoder_saw_are_refused(file: Path) -> None:
    error = refused(file, None, "pretraining.images=8", "attack.shadow_images=9")
    assert f"{file}: attack.shadow_images" in str(error)
    assert read(file, ("pretraining.images=8", "attack.shadow_images=9", "attack.shadow=signs")).attack is not None


def test_views_larger_than_the_images_are_refused(file: Path) -> None:
    content = changed("[pretraining]", "[pretraining]\nview_size = 33")
    assert f"{file}: pretraining.view_size" in str(refused(file, content))


def test_the_same_variant_twice_is_refused(file: Path) -> None:
    twice = '\n[[variant]]\n"attack.lambda1" = 2.0\n\n[[variant]]\nattack.lambda1 = 2.0\n'
    assert f"{file}: variant[1]" in str(refused(file, VALID + twice))


def test_an_encoder_that_takes_other_images_is_refused(file: Path) -> None:
    edit = 'architecture = "torchvision:vit_b_16"\nstem = "imagenet"'
    error = refused(file, changed("width = 8", edit))
    assert f"{file}: encoder.input_size" in str(error)
    assert "224" in str(error)
    sized = f"{edit}\ninput_size = 224"
    views = changed("width = 8", sized).replace("[pretraining]", "[pretraining]\nview_size = 96")
    assert f"{file}: pretraining.view_size" in str(refused(file, views))


# Anything at all

CONTENT = tomllib.loads(VALID)

KEYS = {
    (): ["name", "seeds", "precision", "judge_on", "encoder", "attack", "task", "head", "variant", "anything"],
    ("encoder",): ["architecture", "width", "stem", "input_size", "mean", "std"],
    ("pretraining",): ["dataset", "images", "method", "preset", "epochs", "learning_rate", "warmup", "monitor"],
    ("attack",): ["method", "preset", "shadow", "encoders", "epochs", "momentum", "schedule", "reference_views"],
    ("task", 0): ["dataset", "name", "train_images", "test_images"],
    ("target", 0): ["task", "class", "name", "references", "trigger"],
    ("target", 1, "trigger"): ["kind", "alpha", "key_seed", "size"],
    ("head", 0): ["method", "preset", "name", "primary", "hidden", "dropout"],
}

PLACES = [(table, key) for table, keys in KEYS.items() for key in keys]

WORDS = ["simclr", "paper", "patch", "blend", "white", "signs", "cosine", "test", "timm:x", "attack.epochs", "."]

VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-3, 40),
        st.integers(),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(WORDS),
        st.dates(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WORDS, "kind", "a"]), inner),
    max_leaves=5,
)


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2))
@settings(max_examples=200, deadline=None)
def test_any_value_of_any_key_is_read_or_refused_but_never_crashes(changes: list[Any]) -> None:
    content = deepcopy(CONTENT)
    for (table, key), value in changes:
        with suppress(KeyError, IndexError, TypeError):  # an earlier change took the table away
            reduce(getitem, table, content)[key] = value
    refused_in_words(lambda: parse(content, "any.toml"))


@given(st.sampled_from(PLACES), VALUES, st.text(st.characters(codec="utf-8"), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_override_is_taken_or_refused_but_never_crashes(place: Any, value: Any, text: str) -> None:
    table, key = place
    dotted = ".".join(map(str, (*table, key)))
    for override in (f"{dotted}={value}", f"{dotted}={text}", f"{dotted}.{text}=1", f"{text}={value}", text):
        refused_in_words(lambda override=override: read(SHIPPED[0], (override,)))


def refused_in_words(attempt: Callable[[], Scenario]) -> None:
    """It works, or raises a ``SapperError`` with a place and a remedy, and nothing else."""
    error = None
    try:
        attempt()
    except SapperError as caught:
        error = caught
    assert error is None or (error.where and error.remedy)
