"""Audits: p-values, bags, verdicts, and what nobody may influence them by."""

import hashlib
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sarif_pydantic import Sarif
from torch import Tensor, nn

import sapper
from sapper import datasets, encoders
from sapper.audits import auditing, replaying
from sapper.audits.auditing import audit
from sapper.audits.calibration import (
    Bag,
    InClean,
    Key,
    distinct,
    fitting,
    in_clean,
    p_value,
    read_bag,
    shipped_bags,
    write_bag,
)
from sapper.audits.differential import compare
from sapper.audits.families import Family, FamilyBag, parameters_of
from sapper.audits.found import AuditReport, as_json, trigger_tensors
from sapper.audits.recorded import TRIGGERS
from sapper.defenses.budgets import BUDGETS, Budget
from sapper.defenses.inversion import collapse
from sapper.encoders import Card, Encoder
from sapper.encoders.schemes import ASSUMED
from sapper.errors import SapperError
from sapper.report import audit as page
from sapper.report import cyclonedx, sarif
from sapper.running import Run
from sapper.samples import ImageSet, PixelSpec, to_float
from sapper.tensors import KeptIn
from sapper.triggers import Colors, Mask
from sapper.verdicts import Verdict
from tests.test_encoder_inversion import SIZE, Fragile, encoder, photos

RUN = Run(seed=5)

SHORT: dict[str, Any] = {
    "patches": ((0.25, 0.3, 0.2),),
    "blends": (),
    "filters": (),
    "rounds": ((0, 8, 8), (8, 16, 10), (3, 24, 20)),
    "images": 64,
    "held_out": 32,
}
BUDGET = Budget(name="short", detectors={"multi_prior": SHORT}, tried=("squares",), left_out=("all else",))


def clean_scores() -> list[float]:
    """What encoders without a backdoor score, that differ in their ordinary features."""
    found = []
    for number in range(24):
        verdict = auditing.scores(varied(number), photos(), BUDGET.make(), RUN.child(f"clean {number}"))["multi_prior"]
        assert verdict.score is not None
        found.append(verdict.score)
    return found


def varied(number: int, gain: float = 0.0) -> Encoder:
    """The toy encoder, its ordinary features turned at random."""
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(number)))[0]
    inner = encoder(gain)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.turn = inner.backbone, nn.Parameter(turn)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) @ self.turn

    return Encoder(Turned(), inner.card, 48)


@pytest.fixture(scope="module")
def bag() -> Bag:
    scores = {"multi_prior": clean_scores()}
    key = Key.of(encoder(0.0), photos(), BUDGET)
    gathered: list[float | None] = [0.1 + 0.02 * (i % 3) for i in range(len(scores["multi_prior"]) - 1)]
    return Bag(
        name="toys",
        key=key,
        pretraining="not at all",
        images="photos",
        scores=scores,  # type: ignore[arg-type]
        gathered={"multi_prior": [*gathered, None]},
        made={"number format": "float32"},
    )


@pytest.fixture(scope="module")
def found(bag: Bag) -> AuditReport:
    return audit(varied(99, gain=30.0), photos(), BUDGET, [bag], RUN)


# p-values and bags


def test_p_values_by_hand() -> None:
    assert p_value(3.0, [1.0, 2.0, 3.0]) == 2 / 4
    assert p_value(9.0, [1.0, 2.0, 3.0]) == 1 / 4
    assert p_value(-1.0, [1.0, 2.0, 3.0]) == 1.0
    assert p_value(5.0, [math.inf]) == 1.0


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30))
def test_p_values_of_exchangeable_scores_keep_every_bound(scores: list[int]) -> None:
    """Each score in turn beside all the others, ties included: at most a share α of them has p ≤ α."""
    values = [p_value(score, scores[:i] + scores[i + 1 :]) for i, score in enumerate(scores)]
    for alpha in [k / 20 for k in range(1, 20)]:
        assert sum(p <= alpha + 1e-12 for p in values) <= alpha * len(scores) + 1e-9


def edited(path: Path, **change: Any) -> str:
    return json.dumps(json.loads(path.read_text()) | change)


def test_a_bag_survives_its_file(bag: Bag, tmp_path: Path) -> None:
    path = tmp_path / "toys.json"
    write_bag(bag, path)
    assert read_bag(path) == bag
    short = json.loads(path.read_text())
    short["scores"]["multi_prior"] = []
    for text in (
        "",
        "{}",
        json.dumps(short),
        path.read_text().replace('"schema": 1', '"schema": 2'),
        '{"schema": 1, "scores": [NaN]}',
        edited(path, made={"number format": math.nan}),
        edited(path, power=[{"trigger": "x", "found": 1, "planted": 1, "low": math.nan, "high": 1.0}]),
        edited(path, name="\x1b[2Jtoys"),
    ):
        path.write_text(text)
        with pytest.raises(SapperError, match=r"no bag can be read|do not fit together"):
            read_bag(path)
    with pytest.raises(SapperError, match="no bag can be read"):
        read_bag(tmp_path / "absent.json")


def test_a_bag_fits_only_what_it_was_made_for(bag: Bag) -> None:
    assert fitting(bag.key, [bag], 0.05).bags == (bag,)
    assert fitting(bag.key, [], 0.05).bags == ()
    few = replace(bag, gathered={}, scores={"multi_prior": bag.scores["multi_prior"][:18]})
    match = fitting(bag.key, [few], 0.05)
    assert (match.bags, match.too_small) == ((), True)
    assert "has 18 of the 19 encoders" in match.reason
    assert fitting(bag.key, [few, bag], 0.05).bags == ()  # what is too small must not lose its say
    own = replace(bag, name="own")
    assert fitting(bag.key, [own, bag], 0.05).bags == (own, bag)
    assert distinct([own, bag, own]) == [own, bag]
    with pytest.raises(SapperError, match="two different bags"):
        distinct([bag, replace(own, name=bag.name, images="others")])
    assert "has 24 of the 33 encoders" in fitting(bag.key, [bag], 0.03).reason
    for change in (
        {"architecture": "resnet10"},
        {"stem": "imagenet"},
        {"width": 3},
        {"feature_size": 47},
        {"input_size": 17},
        {"images": "0" * 64},
        {"budget": "quick"},
        {"detectors": {}},
    ):
        match = fitting(replace(bag.key, **change), [bag], 0.05)
        assert (match.bags, match.too_small) == ((), False)
        assert next(iter(change)).replace("_", " ") in match.reason


def test_a_bag_that_comes_with_sapper_fits_the_demos_encoder() -> None:
    """The embedded images are the same on this machine as where the bag was made."""
    demo = encoders.build(RUN, architecture="resnet10", width=16)
    key = Key.of(demo, datasets.load("objects", "test"), BUDGETS["quick"])
    fitting_ones = {bag.name for bag in fitting(key, shipped_bags(), 0.05).bags}
    assert fitting_ones == {"small-objects-quick", "small-objects-supervised-quick"}


def test_bags_that_come_with_sapper_fit_its_detectors_and_are_large_enough() -> None:
    families = ("objects", "cifar10", "objects-supervised", "cifar10-supervised")
    assert {shipped.name for shipped in shipped_bags()} == {
        f"small-{family}-{budget}" for family in families for budget in ("quick", "standard")
    }
    for shipped in shipped_bags():
        budget = BUDGETS[shipped.key.budget]
        current = Key.of(encoder(0.0), photos(), budget).detectors
        assert shipped.key.detectors == current, f"{shipped.name} was made by other detectors"
        assert shipped.size >= 30
        assert shipped.scores.keys() == budget.detectors.keys()


def test_shipped_bags_tell_their_power() -> None:
    assert all(shipped.power for shipped in shipped_bags())


# Verdicts


def test_a_planted_backdoor_is_found_and_shown(found: AuditReport) -> None:
    assert found.verdict == "backdoor"
    assert found.p_value == pytest.approx(1 / 25)
    leading = found.leading
    assert leading.collapse is not None
    assert leading.collapse.gathered > 0.9
    assert leading.collapse.there_before < 0.2
    assert isinstance(leading.trigger, Mask)


def test_what_is_unusual_but_weak_is_no_evidence(bag: Bag) -> None:
    """Beside a bag of encoders that all score lower still, an ordinary one has the smallest p-value there is."""
    lower = replace(bag, gathered={}, scores={"multi_prior": [-1e6] * 40})
    report = audit(varied(55), photos(), BUDGET, [lower], RUN)
    assert report.p_value == pytest.approx(1 / 41)
    assert report.verdict == "no-evidence"
    assert f"too weak to be of use: score {report.leading.score:.3f}, needed: more than 2;" in report.reason


def test_no_backdoor_no_evidence(bag: Bag) -> None:
    report = audit(varied(55), photos(), BUDGET, [bag], RUN)
    assert report.verdict == "no-evidence"
    assert report.p_value is not None
    assert report.p_value > 0.05


def test_every_bag_that_fits_has_a_say(bag: Bag) -> None:
    """What is unusual beside contrastive encoders only may be an ordinary supervised one."""
    suspect, low, high = varied(99, gain=30.0), -1e6, 1e6
    others = [
        replace(bag, name=f"at {score:g}", gathered={}, scores={"multi_prior": [score] * 40}) for score in (low, high)
    ]
    told = {
        names: audit(suspect, photos(), BUDGET, some, RUN)
        for names, some in (("low", [bag, others[0]]), ("high", [bag, others[1]]))
    }
    assert told["low"].verdict == "backdoor"
    assert told["low"].p_value == pytest.approx(1 / 25)
    assert told["low"].reason.endswith(f"score as high: 0 of 24 in {bag.name}, 0 of 40 in at -1e+06.")
    assert "but not beside others" in told["high"].reason
    page_of_both = page.render(told["high"], {}, "sapper audit")
    assert f"Beside the bag {bag.name}: p = 0.04" in page_of_both
    assert "Beside the bag at 1e+06: p = 1;" in page_of_both
    assert told["high"].verdict == "no-evidence"
    assert told["high"].p_value == 1.0
    bags = as_json(told["high"])["bags"]
    assert [(each["name"], each["p_value"]) for each in bags] == [(bag.name, 1 / 25), ("at 1e+06", 1.0)]


@pytest.mark.parametrize("scale", [1e22, 1e-14, 0.0])
def test_features_that_cannot_be_measured_are_no_sign_of_innocence(bag: Bag, scale: float) -> None:
    """Whoever scales features so far hides a backdoor from cosines; dividing them again brings it back."""
    hidden = varied(99, gain=30.0)

    class Scaled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = hidden.backbone(images)
            return features * scale

    report = audit(Encoder(Scaled(), hidden.card, 48), photos(), BUDGET, [bag], RUN)
    assert report.verdict == "undecided"
    assert "no score" in report.reason


def test_without_a_fitting_bag_nobody_knows() -> None:
    report = audit(varied(99, gain=30.0), photos(), BUDGET, [], RUN)
    assert report.verdict == "undecided"
    assert report.reason.startswith("There is nothing to compare the score with: there is no bag")
    assert report.p_value is None
    assert report.leading.collapse is not None


@pytest.mark.parametrize(("bound", "needed"), [(0.03, 33), (0.01, 99)])
def test_a_bag_that_is_too_small_for_the_bound_is_told_with_the_size_that_would_do(
    bag: Bag, bound: float, needed: int
) -> None:
    report = audit(varied(55), photos(), BUDGET, [bag], RUN, bound=bound)
    assert report.verdict == "undecided"
    assert report.reason.startswith(f"The bag that fits is too small: {bag.name!r} has 24 of the {needed} encoders")
    assert f"Make a bag of {needed} or more" in page.meaning(report)


@pytest.mark.slow
def test_only_the_leading_detector_decides(bag: Bag) -> None:
    """A second opinion with p = 1/25 on every encoder must not add false alarms."""
    both = replace(BUDGET, detectors={"multi_prior": SHORT, "decree": {"epochs": 1, "images": 32, "success": 0.2}})
    low = replace(
        bag,
        key=Key.of(encoder(0.0), photos(), both),
        gathered={},
        scores=bag.scores | {"decree": [-1.0] * len(clean_scores())},
    )
    report = audit(varied(55), photos(), both, [low], RUN)
    assert report.detectors[1].p_value == pytest.approx(1 / 25)
    assert report.verdict == "no-evidence"


def test_neither_mark_nor_name_nor_provenance_is_read(bag: Bag) -> None:
    """A clean encoder that says it is backdoored, and the other way round, get the verdicts of their weights."""
    mark = {"method": "badencoder", "file": "x-BACKDOORED.safetensors", "opened": "/evil/BACKDOORED.pth"}
    for gain, verdict in ((0.0, "no-evidence"), (30.0, "backdoor")):
        plain = audit(varied(77, gain), photos(), BUDGET, [bag], RUN)
        swapped = varied(77, gain).marked(backdoored=gain == 0.0, origin=mark if gain == 0.0 else {"method": "simclr"})
        told = audit(swapped, photos(), BUDGET, [bag], RUN)
        assert plain.verdict == told.verdict == verdict
        assert (plain.p_value, plain.leading.score) == (told.p_value, told.leading.score)
        assert plain.leading.trigger is not None
        assert told.leading.trigger is not None
        assert plain.leading.trigger.describe() == told.leading.trigger.describe()


def test_images_too_few_of_another_size_or_all_the_same_are_told(bag: Bag) -> None:
    with pytest.raises(SapperError, match="too few"):
        audit(encoder(0.0), photos(20), BUDGET, [bag], RUN)
    large = ImageSet(images=torch.zeros(64, 3, 32, 32, dtype=torch.uint8), name="large")
    with pytest.raises(SapperError, match="the encoder takes 16×16"):
        audit(encoder(0.0), large, BUDGET, [bag], RUN)
    plain = ImageSet(images=torch.full((64, 3, SIZE, SIZE), 7, dtype=torch.uint8), name="plain")
    with pytest.raises(SapperError, match="all the same"):
        audit(encoder(0.0), plain, BUDGET, [bag], RUN)


# Strangers: no bag of their kind fits


STRANGERS = replace(BUDGET, detectors={"decree": {"epochs": 1, "images": 32, "batch": 16}})
STRANGERS = replace(STRANGERS, strangers={"multi_prior": SHORT})


def families(count: int = 20, **change: Any) -> FamilyBag:
    known = [
        Family(name=f"family {i}", about="toys", scores=[score, score - 1]) for i, score in enumerate(usual(count))
    ]
    parameters = parameters_of(STRANGERS.for_strangers()["multi_prior"])
    bag = FamilyBag(name="others", detector="multi_prior", parameters=parameters, images=8, families=known)
    return replace(bag, **change)


def usual(count: int) -> list[float]:
    """Scores of other families, all of them below that of the planted one."""
    return [0.1 * i - 1.0 for i in range(count)]


def test_where_no_bag_fits_families_decide() -> None:
    planted = audit(varied(99, gain=30.0), photos(), STRANGERS, [], RUN, families=[families()])
    assert (planted.verdict, planted.p_value) == ("backdoor", pytest.approx(1 / 21))
    assert planted.leading.method == "multi_prior"
    assert [finding.method for finding in planted.detectors] == ["multi_prior"]  # in place of the one that led
    assert "of 20 other families of known-clean encoders 0 have one that scores as high" in planted.reason
    assert planted.families is not None
    told = as_json(planted)["families"]
    assert (told["families"], told["encoders"], len(told["largest"])) == (20, 40, 20)
    lines = "\n".join(page.lines(planted))
    assert "of a new family" in lines
    assert "20 families with 40 known-clean encoders" in page.render(planted, {}, "sapper audit")
    clean = audit(varied(98), photos(), STRANGERS, [], RUN, families=[families()])
    assert clean.verdict == "no-evidence"
    assert clean.p_value is not None
    assert clean.p_value > 0.05


def test_a_bag_of_its_kind_goes_before_families(bag: Bag, found: AuditReport) -> None:
    budget = replace(BUDGET, strangers={"multi_prior": SHORT | {"held_out": 16}})
    report = audit(varied(99, gain=30.0), photos(), budget, [bag], RUN, families=[families()])
    assert report.families is None
    assert (report.verdict, report.p_value, report.reason) == (found.verdict, found.p_value, found.reason)


@pytest.mark.parametrize(
    "known", [[], [families(18)], [families(parameters={"version": 0})]], ids=["none", "few", "other"]
)
def test_without_families_that_fit_a_stranger_is_undecided(known: list[FamilyBag]) -> None:
    report = audit(varied(99, gain=30.0), photos(), STRANGERS, [], RUN, families=known)
    assert report.verdict == "undecided"
    assert report.families is None
    assert report.leading.method == "decree"


def test_a_bag_of_its_kind_that_is_too_small_is_not_passed_over(bag: Bag) -> None:
    budget = replace(BUDGET, strangers={"multi_prior": SHORT})
    few = replace(bag, gathered={}, scores={"multi_prior": bag.scores["multi_prior"][:5]})
    report = audit(varied(99, gain=30.0), photos(), budget, [few], RUN, families=[families()])
    assert (report.verdict, report.families) == ("undecided", None)
    assert "too small" in report.reason


def test_an_interrupted_audit_knows_another_normalization_for_another_encoder(tmp_path: Path) -> None:
    """The same weights with another normalization are another network; what was searched in the first is not its."""
    plain = varied(99, gain=30.0)
    other = varied(99, gain=30.0)
    other.mean = other.mean + 0.2
    assert auditing.fingerprint(plain) == auditing.fingerprint(other)
    keeping = replace(RUN, kept=KeptIn(tmp_path))
    audit(plain, photos(), BUDGET, [], keeping)
    count = len(list(tmp_path.iterdir()))
    audit(plain, photos(), BUDGET, [], keeping)
    assert len(list(tmp_path.iterdir())) == count
    report = audit(other, photos(), BUDGET, [], keeping)
    assert len(list(tmp_path.iterdir())) == 2 * count
    assert report.leading.score == audit(other, photos(), BUDGET, [], RUN).leading.score


def test_what_is_unusual_but_weak_is_no_evidence_among_families_either() -> None:
    weak = replace(STRANGERS, strangers={"multi_prior": SHORT | {"threshold": 1e6}})
    parameters = parameters_of(weak.for_strangers()["multi_prior"])
    report = audit(varied(99, gain=30.0), photos(), weak, [], RUN, families=[families(parameters=parameters)])
    assert report.verdict == "no-evidence"
    assert "too weak" in report.reason


def test_a_stranger_that_cannot_be_measured_is_undecided() -> None:
    subject = varied(97)
    subject.backbone.turn.data.zero_()  # type: ignore[union-attr]
    report = audit(subject, photos(), STRANGERS, [], RUN, families=[families()])
    assert (report.verdict, report.p_value, report.hidden) == ("undecided", None, True)
    assert "gave no score" in report.reason


@pytest.mark.parametrize(("count", "worst", "hidden"), [(300, 1e-9, True), (40, 2.0, False)])
def test_twins_that_say_nothing_leave_it_undecided(count: int, worst: float, hidden: bool) -> None:
    """An encoder could hide behind features that nobody can learn, and not behind too few images."""
    budget = replace(STRANGERS, strangers={"twins": SHORT | {"twins": 1, "steps": 2, "worst_fit": worst}})
    known = replace(families(), detector="twins", parameters=parameters_of(budget.for_strangers()["twins"]))
    report = audit(varied(98), photos(count), budget, [], RUN, families=[known])
    assert (report.verdict, report.p_value, report.hidden) == ("undecided", None, hidden)
    assert "twins gave no score" in report.reason
    assert report.leading.trigger is not None  # what was found is there all the same
    assert "which decides" in report.coverage.tried[0]
    assert "–" in page.render(report, {}, "sapper audit")


# Collapse, replay, differential


def test_collapse_by_hand() -> None:
    """Two of four changed images point one way: counted against the cosine with their mean direction."""
    card = Card(architecture="plain", input=PixelSpec(size=2, mean=(0, 0, 0), std=(1, 1, 1)))
    inner = nn.Flatten()
    subject = Encoder(inner, card, 12)
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 255, 255
    images[2, 1, 0, 0], images[3, 2, 0, 0] = 255, 255
    some = ImageSet(images=images, name="dots")
    effect = collapse(subject, lambda pixels: pixels, some, RUN)
    # Mean direction (2, 1, 1)/√6: cosines 0.816, 0.816, 0.408, 0.408; of six pairs one has cosine 1.
    assert effect.gathered == effect.there_before == 0.0
    assert effect.spread == pytest.approx(1 - 1 / 6)
    one = collapse(subject, lambda pixels: pixels[:1].expand_as(pixels), some, RUN)
    assert (one.gathered, one.there_before) == (1.0, 0.5)
    assert one.spread == pytest.approx(0.0, abs=1e-6)


def test_a_recovered_trigger_is_its_formula() -> None:
    images = to_float(photos().images[:3])
    mask, pattern = torch.rand(SIZE, SIZE), torch.rand(3, SIZE, SIZE)
    stamped = Mask(mask=mask, pattern=pattern)
    torch.testing.assert_close(stamped(images), (1 - mask) * images + mask * pattern)
    matrix = torch.eye(3, 4) + 0.3 * torch.randn(3, 4)
    colored = Colors(matrix=matrix)
    expected = (matrix[:, :3] @ images[1].flatten(1) + matrix[:, 3:]).clamp(0, 1).view(3, SIZE, SIZE)
    torch.testing.assert_close(colored(images)[1], expected)


def record(report: AuditReport, folder: Path) -> Path:
    """The audit on disk as the command leaves it."""
    tensors = safetensors.torch.save(trigger_tensors(report))
    (folder / TRIGGERS).write_bytes(tensors)
    digest = __import__("hashlib").sha256(tensors).hexdigest()
    content = as_json(report) | {
        "triggers": {"file": TRIGGERS, "sha256": digest},
        "opening": {"uri": "x"},
    }
    (folder / "audit.json").write_text(json.dumps(content))
    return folder / "audit.json"


def test_a_replay_measures_the_collapse_on_other_images_and_controls(found: AuditReport, tmp_path: Path) -> None:
    recorded = replaying.read_audit(record(found, tmp_path))
    others = ImageSet(images=photos(200).images[100:], name="others")
    (each,) = replaying.replay(recorded, varied(99, gain=30.0), others, RUN)
    assert each.detector == "multi_prior"
    assert each.trigger.gathered > 0.9
    assert each.trigger.images == 100
    assert each.controls.keys() == {"noise", "gray", "shuffled pixels"}
    assert each.controls["gray"].gathered < 0.3
    assert sapper.replay(tmp_path / "audit.json", varied(99, gain=30.0), others, surroundings=RUN) == [each]
    (innocent,) = replaying.replay(recorded, varied(99), others, RUN)
    assert innocent.trigger.gathered < 0.3


def test_a_finding_and_its_replay_say_what_is_usual_in_known_clean_encoders(
    found: AuditReport, bag: Bag, tmp_path: Path
) -> None:
    shares = [share for share in bag.gathered["multi_prior"] if share is not None]
    usual = found.leading.in_clean
    assert usual == InClean(median=statistics.median(shares), largest=max(shares), encoders=len(shares))
    words = f"in {len(shares)} known-clean encoders the same search reaches 12% (median), 14% at most"
    assert any(words in line for line in page.lines(found))
    recorded = replaying.read_audit(record(found, tmp_path))
    assert recorded.in_clean == {"multi_prior": usual}
    replays = replaying.replay(recorded, varied(99, gain=30.0), photos(), RUN)
    assert any(words in line for line in page.replay_lines(replays, recorded.in_clean))
    html = page.render(found, {"number format": "bfloat16"}, "sapper audit")
    assert "12 %, up to 14 %" in html
    assert "measured in float32, this audit in bfloat16" in html
    assert "this audit in" not in page.render(found, {"number format": "float32"}, "sapper audit")
    two = [bag, replace(bag, gathered={"multi_prior": [0.9] + [None] * (bag.size - 1)})]
    both = in_clean(two, "multi_prior")
    assert both is not None
    assert (both.largest, both.encoders) == (0.9, len(shares) + 1)
    assert in_clean(two, "decree") is None
    with pytest.raises(SapperError, match="its shares do not fit its scores"):
        replace(bag, gathered={"multi_prior": [0.9]})
    content = json.loads((tmp_path / "audit.json").read_text())
    content["detectors"][0]["in_clean"]["median"] = 7
    (tmp_path / "audit.json").write_text(json.dumps(content))
    with pytest.raises(SapperError, match="no audit can be read"):
        replaying.read_audit(tmp_path / "audit.json")


def test_a_normalization_that_nobody_said_is_a_warning(found: AuditReport) -> None:
    assert page.guess(found.encoder) == []
    guessed = replace(found, encoder=found.encoder | {"normalization": ASSUMED})
    assert "can hide a backdoor" in page.lines(guessed)[-1]
    assert "--mean, --std and --size" in page.lines(guessed)[-1]
    assert "can hide a backdoor" in page.render(guessed, {}, "sapper audit")
    assert "can hide a backdoor" not in page.render(found, {}, "sapper audit")


def test_what_was_tampered_with_is_not_replayed(found: AuditReport, tmp_path: Path) -> None:
    path = record(found, tmp_path)
    whole = path.read_text()
    triggers = tmp_path / TRIGGERS
    for text in (
        "",
        "[]",
        "{}",
        whole.replace('"schema": 1', '"schema": 7'),
        whole.replace('"sha256": "', '"sha256": "0'),
    ):
        path.write_text(text)
        with pytest.raises(SapperError, match="no audit can be read"):
            replaying.read_audit(path)
    path.write_text(whole)
    triggers.write_bytes(triggers.read_bytes()[:-1] + b"\1")
    with pytest.raises(SapperError, match="is not the one that this audit wrote"):
        replaying.read_audit(path)
    triggers.unlink()
    with pytest.raises(SapperError, match="no audit can be read"):
        replaying.read_audit(path)


def as_before(path: Path) -> None:
    """An ``audit.json`` that does not name the kinds of its triggers."""
    content = json.loads(path.read_text())
    for detector in content["detectors"]:
        del detector["trigger"]
    path.write_text(json.dumps(content))


def test_an_audit_that_does_not_name_the_kinds_of_its_triggers_is_read(found: AuditReport, tmp_path: Path) -> None:
    path = record(found, tmp_path)
    named = replaying.read_audit(path)
    as_before(path)
    unnamed = replaying.read_audit(path)
    assert unnamed.triggers.keys() == named.triggers.keys() == {"multi_prior"}
    assert unnamed.triggers["multi_prior"].describe() == named.triggers["multi_prior"].describe()
    colors = Colors(matrix=torch.eye(3, 4) + 0.1 * torch.rand(3, 4))
    other = record(replace(found, detectors=(replace(found.leading, trigger=colors),)), tmp_path)
    as_before(other)
    assert replaying.read_audit(other).triggers["multi_prior"].describe() == colors.describe()


@pytest.mark.parametrize(
    "trigger",
    [
        None,
        5,
        [],
        {},
        {"kind": "colors"},
        {"kind": "unheard-of"},
        {"kind": "mask", "more": 1},
        {"kind": "patch", "size": 4},
        {"kind": "blend", "alpha": "much"},
        {"kind": "blend", "version": 1},
        {"kind": "mask", "mask": [[0.0]]},
    ],
)
def test_a_trigger_whose_plain_part_was_edited_is_refused(found: AuditReport, tmp_path: Path, trigger: Any) -> None:
    path = record(found, tmp_path)
    content = json.loads(path.read_text())
    content["detectors"][0]["trigger"] = trigger
    path.write_text(json.dumps(content))
    with pytest.raises(SapperError, match="no audit can be read"):
        replaying.read_audit(path)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"mask": torch.zeros(SIZE, SIZE), "pattern": torch.full((3, SIZE, SIZE), 1e30)}, "no trigger has"),
        ({"mask": torch.full((SIZE, SIZE), -0.1), "pattern": torch.zeros(3, SIZE, SIZE)}, "no trigger has"),
        ({"mask": torch.zeros(SIZE, SIZE), "pattern": torch.full((3, SIZE, SIZE), torch.nan)}, "no trigger has"),
        ({"mask": torch.zeros(SIZE, SIZE, dtype=torch.complex64), "pattern": torch.zeros(3, SIZE, SIZE)}, "complex64"),
        ({"mask": torch.zeros(SIZE, SIZE), "pattern": torch.zeros(3, SIZE, SIZE, dtype=torch.int64)}, "int64"),
        ({"mask": torch.zeros(SIZE, 1), "pattern": torch.zeros(3, SIZE, SIZE)}, "shape"),
        ({"mask": torch.zeros(SIZE, SIZE)}, "is no trigger"),
        ({"matrix": 3 * torch.eye(3, 4)}, "no trigger has"),
    ],
)
def test_a_forged_trigger_is_not_replayed(
    found: AuditReport, tmp_path: Path, tensors: dict[str, Tensor], why: str
) -> None:
    """Pixels beyond all images would gather the features of any encoder, and frame a clean one."""
    path = record(found, tmp_path)
    as_before(path)
    forged = safetensors.torch.save({f"multi_prior/{name}": value for name, value in tensors.items()})
    (tmp_path / TRIGGERS).write_bytes(forged)
    known = {"file": TRIGGERS, "sha256": hashlib.sha256(forged).hexdigest()}
    path.write_text(edited(path, triggers=known))
    with pytest.raises(SapperError, match=rf"no audit can be read: .*{why}"):
        replaying.read_audit(path)


@pytest.mark.parametrize(
    "change",
    [
        {"opening": {"uri": "x", "mean": 0.5}},
        {"opening": {"uri": "x", "trust_code": True}},
        {"opening": {}},
        {"images": 3},
    ],
)
def test_what_was_edited_by_hand_is_one_clear_error(found: AuditReport, tmp_path: Path, change: dict[str, Any]) -> None:
    path = record(found, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SapperError, match="no audit can be read: it does not say"):
        replaying.read_audit(path)


def test_only_what_the_base_does_not_do_speaks_against_an_encoder(found: AuditReport) -> None:
    assert found.leading.trigger is not None
    triggers = {"multi_prior": found.leading.trigger}
    suspect, base = varied(99, gain=30.0), varied(99)
    verdict = compare(suspect, base, triggers, photos(), RUN)
    assert verdict.flagged
    assert verdict.score is not None
    before, after = (verdict.evidence["triggers"]["multi_prior"][whose]["spread"] for whose in ("base", "encoder"))
    assert verdict.score == pytest.approx(math.log10(before / after), rel=1e-6)
    assert verdict.evidence["same_tensors"] == verdict.evidence["tensors"] == 2
    same = compare(suspect, suspect, triggers, photos(), RUN)
    assert same.score == 0.0
    assert not same.flagged
    assert same.evidence["likeness"] == pytest.approx(1.0, abs=1e-6)
    assert compare(suspect, base, {}, photos(), RUN).flagged is None


def test_draws_depend_on_the_encoder_as_in_bags(found: AuditReport) -> None:
    """Scores of a bag and of an audit come about alike: that of an encoder in the bag is its own."""
    suspect = varied(99, gain=30.0)
    run = RUN.child(auditing.fingerprint(suspect))
    assert auditing.scores(suspect, photos(), BUDGET.make(), run)["multi_prior"].score == found.leading.score


def test_the_format_of_the_bags_goes_before_any_measurement(bag: Bag) -> None:
    half = replace(bag, name="half", made={"number format": "bfloat16"})
    assert auditing.as_the_bags(RUN, [half]).why == "as the bags were measured"
    assert auditing.as_the_bags(RUN, [bag, half]).why == ""


def test_an_audit_computes_in_the_number_format_of_its_bags(bag: Bag) -> None:
    def formats(*bags: Bag) -> str:
        return audit(varied(55), photos(), BUDGET, bags, RUN).number_format

    half = replace(bag, name="half", made={"number format": "bfloat16"})
    assert formats(half) == "bfloat16"
    assert formats(half, bag) == formats(replace(bag, made={})) == formats() == "float32"


def test_what_cannot_be_measured_is_undecided_and_told(bag: Bag) -> None:
    """Wherever features are beyond all numbers, and whatever further detectors answer: nothing is lost."""

    class Boundless:
        def examine(self, *_: Any) -> Verdict:
            return Verdict(score=math.inf, threshold=0.0, flagged=True, evidence={"norm": math.inf})

    whole = encoder(gain=0.0)
    fragile = Encoder(Fragile(0.0), whole.card, whole.feature_size)
    report = audit(fragile, photos(), BUDGET, [bag], RUN, base=whole, more={"boundless": Boundless()})
    assert (report.verdict, report.hidden) == ("undecided", True)
    assert "features of this encoder cannot be measured" in page.meaning(report)
    assert "cannot be" in report.reason
    assert [(each.score, each.flagged) for each in report.detectors] == [(None, None)] * 3
    assert not audit(varied(55), photos(), BUDGET, [], RUN).hidden


# What it leaves


@pytest.fixture(params=["backdoor", "no-evidence", "undecided"])
def report(request: pytest.FixtureRequest, found: AuditReport, bag: Bag) -> AuditReport:
    if request.param == "backdoor":
        return found
    return audit(varied(55), photos(), BUDGET, [bag] if request.param == "no-evidence" else [], RUN)


def _strays(model: BaseModel) -> list[str]:
    """Keys that SARIF does not know; the models keep them apart."""
    found = list(model.model_extra or {})
    for name in type(model).model_fields:
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                found += _strays(each)
    return found


def test_sarif_is_valid_and_says_what_the_verdict_says(report: AuditReport) -> None:
    content = sarif.render(report)
    # The two that these models lack are in the standard's schema.
    assert set(_strays(Sarif.model_validate(content))) == {"taxonomies", "supportedTaxonomies"}
    results = [(result["kind"], result["level"]) for result in content["runs"][0]["results"]]
    expected = {"backdoor": [("fail", "error")], "no-evidence": [], "undecided": [("open", "none")]}
    assert results == expected[report.verdict]
    assert content["runs"][0]["properties"]["verdict"] == report.verdict
    assert content["runs"][0]["taxonomies"][0]["version"]


def test_the_bill_of_materials_is_valid(report: AuditReport) -> None:
    text = json.dumps(cyclonedx.render(report))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace("machine-learning-model", "model"))
    properties = {each["name"]: each["value"] for each in json.loads(text)["components"][0]["properties"]}
    assert properties["sapper:audit:verdict"] == report.verdict
    assert properties["sapper:audit:atlas:technique"] == "AML.T0018.000@5.6.0"


def test_the_page_shows_verdict_trigger_and_coverage(report: AuditReport) -> None:
    html = page.render(report, {"torch": "x"}, "sapper audit <b>")
    assert page.WORDS[report.verdict] in html
    assert html.count("data:image/png") == 12
    assert "sapper audit &lt;b&gt;" in html
    for words in ("squares", "all else", "an attacker who knew this audit"):
        assert words in html
    assert "<script" not in html


def test_the_json_has_the_promised_keys(report: AuditReport) -> None:
    content = json.loads(json.dumps(as_json(report)))
    assert content["schema"] == 1
    assert content["verdict"] == report.verdict
    assert content["false_alarm_bound"] == 0.05
    for detector in content["detectors"]:
        assert {"method", "score", "threshold", "flagged", "p_value", "evidence", "seconds"} <= detector.keys()
    assert content["encoder"]["input_size"] == SIZE
    assert content["coverage"]["unseen"]
    assert content["number_format"] == "float32"
