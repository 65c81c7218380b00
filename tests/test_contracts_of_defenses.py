"""Every defense says what it is, what it needs and what it is measured by; what it answers survives a file."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapper import defenses
from sapper.audits import auditing, found, replaying
from sapper.audits.recorded import TRIGGERS as FILE
from sapper.defenses import contracts
from sapper.defenses.budgets import Budget
from sapper.defenses.certify.patchguard_ds import PatchGuardDS
from sapper.defenses.judge.multi_prior import MultiPrior
from sapper.defenses.measures import (
    CERTIFIED,
    TARGET_NAMED,
    Answers,
    Labeled,
    Measured,
    OfVerdicts,
    detection,
    held_out,
    scorers,
)
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.experiment import pictures
from sapper.files import sha256, write_atomically
from sapper.methods import TRIGGERS, find
from sapper.metrics import auc, share
from sapper.report import audit as page
from sapper.report import defenses as told
from sapper.report import render
from sapper.running import Run
from sapper.samples import ImageSet, InputSpec, PixelSpec
from sapper.scenario.defending import DEFENSE_SECTIONS
from sapper.scenario.reading import read_trigger
from sapper.scenario.sections import DetectSection
from sapper.triggers import Blend, Colors, Filter, Mask, Patch, Trigger
from sapper.triggers import from_tensors as triggers_from_tensors
from sapper.triggers import to_tensors as triggers_to_tensors
from sapper.verdicts import Reached, Verdict, from_tensors, to_tensors
from tests.micro import experiment, perform, write_data
from tests.program import Install
from tests.test_encoder_inversion import SIZE, encoder, photos

PROTOCOLS: dict[str, type] = {
    "judge": contracts.ClassifierJudge,
    "examine": contracts.EncoderExaminer,
    "learn": contracts.EncoderLearner,
    "certify": contracts.Certifier,
    "screen": contracts.Screen,
    "sift": contracts.Sift,
    "repair": contracts.Repair,
    "repair_classifier": contracts.ClassifierRepair,
}
SMOOTHERS = ("rab", "randomized_smoothing")
"""Certified defenses within a radius."""

METHODS = {name: find("defenses", defenses.METHODS, name, "here") for name in defenses.METHODS}


def test_every_kind_has_a_protocol_and_a_section() -> None:
    assert set(get_args(contracts.Kind)) == PROTOCOLS.keys() == DEFENSE_SECTIONS.keys()
    assert len(set(DEFENSE_SECTIONS.values())) == len(PROTOCOLS)


@pytest.mark.parametrize("name", METHODS)
def test_a_defense_says_what_it_is_needs_and_is_measured_by(name: str) -> None:
    method = METHODS[name]
    protocol = contracts.Smoother if name in SMOOTHERS else PROTOCOLS[method.kind]
    assert protocol in method.__mro__ or method.kind != "certify"
    assert method.needs <= set(get_args(contracts.Need))
    if method.kind in ("repair", "repair_classifier"):
        assert not hasattr(method, "measures"), "what it gives back is measured as every model is"
    else:
        names = [each for measure in method.measures for each in measure.names]
        assert names
        assert len(names) == len(set(names))
    assert method.version >= 1
    assert method.source
    for base in protocol.__mro__:
        for offered in vars(base):
            if not offered.startswith("_") and protocol in method.__mro__:
                assert getattr(method, offered) is not getattr(protocol, offered), f"{offered} is only declared"
    assert not {field.name for field in fields(method)} & DEFENSE_SECTIONS[method.kind].model_fields.keys()


def test_parts_together_are_the_whole() -> None:
    for name, method in METHODS.items():
        if method.kind == "examine":
            parts = method().parts()
            assert parts == [method()] or name == "multi_prior"
    whole = MultiPrior()
    assert [(p.patches, p.blends, p.filters) for p in whole.parts()] == [
        *(((each,), (), ()) for each in whole.patches),
        *(((), (each,), ()) for each in whole.blends),
        *(((), (), (each,)) for each in whole.filters),
    ]


CERTIFIERS = [name for name, method in METHODS.items() if method.kind == "certify"]


@pytest.mark.parametrize("name", CERTIFIERS)
def test_a_certified_defense_says_what_it_guarantees_and_what_not(name: str) -> None:
    method = METHODS[name]()
    assert isinstance(method, contracts.Smoother) == (name in SMOOTHERS)
    told = contracts.guarantee(method)
    assert told.threat
    assert not told.covers_not.endswith(".")
    assert ("encoder" in told.covers_not) == (not method.uses_encoder or name in SMOOTHERS)


@pytest.mark.parametrize("name", sorted({*CERTIFIERS} - {*SMOOTHERS}))
def test_a_certified_defense_says_which_sizes_it_covers(name: str) -> None:
    method = METHODS[name](patch=5)
    method.check(6)
    with pytest.raises(SapperError, match="a patch of 5 pixels covers images of 5") as caught:
        method.check(5)
    assert caught.value.where == "patch"


def test_a_band_that_covers_the_image_is_refused() -> None:
    with pytest.raises(SapperError, match="a band of 8 pixels covers images of 8") as caught:
        PatchGuardDS(patch=2, band=8).check(8)
    assert caught.value.where == "band"


# A verdict survives its file

numbers = st.floats(allow_nan=False) | st.none()
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def masks(seed: int) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return Mask(mask=torch.rand(4, 4, generator=generator), pattern=torch.rand(3, 4, 4, generator=generator))


triggers = st.one_of(
    st.builds(masks, st.integers(0, 99)),
    st.builds(lambda seed: Colors(matrix=masks(seed).pattern[:, 0]), st.integers(0, 99)),
    st.builds(Blend, alpha=st.floats(0.1, 1.0), key_seed=st.integers(0, 9)),
    st.builds(Filter, strength=st.floats(0.1, 1.0)),
    st.builds(
        Patch,
        size=st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
        position=st.sampled_from(["center", "top-left"]) | st.tuples(st.integers(0, 1), st.integers(0, 1)),
        color=st.just("red") | st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    ),
)  # fmt: skip


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    labels = draw(st.lists(st.integers(0, 99), unique=True, max_size=3))
    return Verdict(
        score=draw(numbers),
        threshold=draw(numbers),
        flagged=draw(st.booleans() | st.none()),
        trigger=draw(triggers | st.none()),
        reached=tuple(
            Reached(label=label, trigger=draw(triggers), pixels=draw(st.floats(0, 9)), success=draw(st.floats(0, 1)))
            for label in labels
        ),
        evidence=draw(st.dictionaries(st.text(max_size=4), plain, max_size=3)),
        seconds=draw(st.floats(0, 9)),
    )


def known(verdict: Verdict) -> dict[str, Any]:
    """A verdict as values that can be compared."""
    return vars(verdict) | {
        "trigger": verdict.trigger and verdict.trigger.describe(),
        "reached": [vars(each) | {"trigger": each.trigger.describe()} for each in verdict.reached],
    }


@settings(deadline=None)
@given(verdict=verdicts())
def test_a_verdict_survives_json_and_a_file_of_tensors(verdict: Verdict) -> None:
    described, tensors = to_tensors(verdict)
    again = from_tensors(
        json.loads(json.dumps(described)), safetensors.torch.load(safetensors.torch.save(tensors)), "x"
    )
    assert known(again) == known(verdict)
    images = torch.rand(2, 3, 4, 4)
    for ours, theirs in zip((verdict, *verdict.reached), (again, *again.reached)):
        if ours.trigger is not None:
            assert theirs.trigger is not None
            assert torch.equal(ours.trigger(images), theirs.trigger(images))


def test_tensors_that_two_triggers_share_are_written_twice() -> None:
    mask = masks(0)
    verdict = Verdict(
        score=1.0,
        threshold=0.0,
        flagged=True,
        trigger=mask,
        reached=(Reached(label=3, trigger=mask, pixels=1.0, success=1.0),),
    )
    described, tensors = to_tensors(verdict)
    assert known(from_tensors(described, safetensors.torch.load(safetensors.torch.save(tensors)), "x")) == known(
        verdict
    )


@pytest.mark.parametrize(
    "change",
    [
        {"trigger": {"kind": "mask"}},
        {"trigger": {"kind": "unheard-of"}},
        {"trigger": 5},
        {"reached": [{"label": 0}]},
        {"more": 1},
    ],
)
def test_what_is_no_verdict_is_one_clear_error(change: dict[str, Any]) -> None:
    described, tensors = to_tensors(Verdict(score=1.0, threshold=0.0, flagged=True))
    with pytest.raises(SapperError):
        from_tensors(described | change, tensors, "x")


# Measures, against textbook loops

verdict_scores = st.lists(st.tuples(st.booleans(), st.none() | st.integers(-3, 3), st.integers(0, 4)), min_size=1)


def labeled(drawn: list[tuple[bool, int | None, int]], wanted: frozenset[int] = frozenset({1, 2})) -> list[Labeled]:
    return [
        Labeled(
            verdict=Verdict(
                score=None if score is None else float(score),
                threshold=0.5,
                flagged=None if score is None else score > 0.5,
                evidence={"suspect": suspect},
            ),
            attacked=attacked,
            wanted=wanted,
        )
        for attacked, score, suspect in drawn
    ]


def measured(measures: tuple[OfVerdicts, ...], some: list[Labeled]) -> dict[tuple[Any, ...], Measured]:
    found = [each for measure in measures for each in measure.of(some)]
    assert {each.name for each in found} <= {name for measure in measures for name in measure.names}
    keys = [(each.name, each.attacked, *each.condition.values()) for each in found]
    assert len(keys) == len(set(keys))
    return dict(zip(keys, found))


@settings(deadline=None)
@given(drawn=verdict_scores)
def test_what_every_detector_is_measured_by(drawn: list[tuple[bool, int | None, int]]) -> None:
    found = measured((*detection("s"), TARGET_NAMED), labeled(drawn))
    for kind in (False, True):
        ours = [(score, suspect) for attacked, score, suspect in drawn if attacked is kind]
        scores = sorted(score for score, _ in ours if score is not None)
        assert (("s", kind) in found) == bool(scores)
        if scores:
            middle = (scores[(len(scores) - 1) // 2] + scores[len(scores) // 2]) / 2
            assert (found["s", kind].value, found["s", kind].n, found["s", kind].unit) == (middle, len(scores), "")
        assert (("flagged", kind) in found) == bool(ours)
        if ours:
            hits = [score is not None and score > 0.5 for score, _ in ours]
            assert found["flagged", kind].value == pytest.approx(sum(hits) / len(hits))
            assert found["flagged", kind].low == share(torch.tensor(hits)).low
            named = [suspect in (1, 2) for _, suspect in ours]
            assert found["target_named", kind].value == pytest.approx(sum(named) / len(named))
    right = [score is not None and (score > 0.5) is attacked for attacked, score, _ in drawn]
    assert found["detection_accuracy", None].value == pytest.approx(sum(right) / len(right))
    pairs = [(p, n) for kind, p, _ in drawn for other, n, _ in drawn if kind and not other and None not in (p, n)]
    assert (("AUC", None) in found) == bool(pairs)
    if pairs:
        wins = [(p > n) + 0.5 * (p == n) for p, n in pairs]  # type: ignore[operator]
        assert found["AUC", None].value == pytest.approx(sum(wins) / len(wins))


def test_the_suspect_is_measured_only_where_all_of_a_kind_name_one() -> None:
    unnamed = Labeled(verdict=Verdict(score=None, threshold=0.0, flagged=None), attacked=True)
    found = measured((TARGET_NAMED,), [*labeled([(False, 1, 1), (True, 1, 1)]), unnamed])
    assert found.keys() == {("target_named", False)}


@pytest.mark.parametrize("by_kind", [False, True])
def test_scorers_are_measured_one_by_one(by_kind: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    scores, kinds = torch.randn(6, 4, generator=generator).double(), [False, True, True, False, True, False]
    areas = {False: [0.1, 0.2, 0.3, 0.4], True: [0.9, 0.8, 0.7, 0.6]}
    some = [
        Labeled(
            verdict=Verdict(
                score=float(each.mean()),
                threshold=0.0,
                flagged=None,
                evidence={"scores": each.tolist(), "learned": {"AUC on others": areas[kind and by_kind]}},
            ),
            attacked=kind,
        )
        for each, kind in zip(scores.tolist(), kinds)
        for each in [torch.tensor(each)]
    ]
    found = measured(scorers(learned_by_kind=by_kind), some)
    truth = torch.tensor(kinds)
    own = [float(((each > 0) == truth).double().mean()) for each in scores.T]
    middle = [float(((each > each.quantile(0.5)) == truth).double().mean()) for each in scores.T]
    ranks = [auc(each[truth], each[~truth]) for each in scores.T]
    shadows = areas[False] + areas[True] if by_kind else areas[False]
    for name, where, values in (
        ("scorer_accuracy", ("own",), own),
        ("scorer_accuracy", ("median",), middle),
        ("scorer_AUC", (), ranks),
        ("shadow_AUC", ("on others",), shadows),
    ):
        expected = torch.tensor(values).double()
        mean, deviation = (found[each, None, *where] for each in (name, f"{name}_sd"))
        assert mean.value == pytest.approx(float(expected.mean()), abs=1e-6)
        assert deviation.value == pytest.approx(float(expected.var(correction=0).sqrt()), abs=1e-6)
        assert mean.n == deviation.n == len(values)


def test_thresholds_of_other_groups_are_as_high_as_nineteen_clean_scores() -> None:
    drawn = [(False, score, 0) for score in range(19)] + [(False, 99, 0), (True, 18, 0), (True, 19, 0), (True, None, 0)]
    groups = [0] * 19 + [1] * 4
    found = {each.attacked: each for each in held_out(labeled(drawn), groups)}
    assert (found[False].value, found[False].n) == (1.0, 1)  # 99 exceeds 18, the largest of 19
    assert (found[True].value, found[True].n) == (pytest.approx(1 / 3), 3)
    assert list(held_out(labeled(drawn[1:]), groups[1:])) == []


def test_answers_under_a_certified_defense_are_counted() -> None:
    answers = Answers(
        labels=torch.tensor([0, 1, 2, 1]),
        plain=torch.tensor([0, 1, 2, 0]),
        triggered={"x": torch.tensor([2, 2, 2, 0])},
        targets={"x": 2},
        certified={10: torch.tensor([False, True, False, False]), 2: torch.tensor([True, True, False, True])},
    )
    found = [each for measure in CERTIFIED for each in measure.of(answers)]
    assert [(each.name, each.target, dict(each.condition), each.value, each.n) for each in found] == [
        ("defended_accuracy", None, {}, 0.75, 4),
        ("defended_ASR", "x", {}, 0.75, 4),
        ("defended_ASR_strict", "x", {}, pytest.approx(2 / 3), 3),
        ("certified_accuracy", None, {"patch": 2}, 0.75, 4),
        ("certified_accuracy", None, {"patch": 10}, 0.25, 4),
    ]


# A kind of trigger that nothing in the package knows


@dataclass(frozen=True, kw_only=True)
class Negative(Trigger):
    """So many of the upper rows of an image, turned into their negative."""

    kind: ClassVar[str] = "negative"

    rows: int = 2

    def check(self, spec: InputSpec) -> None:
        assert isinstance(spec, PixelSpec)
        if not 0 < self.rows <= spec.size:
            raise SapperError(f"{self.rows} rows", where="trigger.rows", remedy="take fewer")

    def __call__(self, batch: Tensor) -> Tensor:
        changed = batch.clone()
        changed[..., : self.rows, :] = 1 - changed[..., : self.rows, :]
        return changed

    def picture(self) -> Tensor:
        return self(torch.full((3, 8, 8), 0.25))


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A detector of classifiers and of encoders that always recovers the same trigger."""

    trigger: Trigger

    kind: ClassVar[str] = "judge"
    needs: ClassVar[frozenset[contracts.Need]] = frozenset()
    measures: ClassVar[tuple[OfVerdicts, ...]] = detection("guess")
    version: ClassVar[int] = 1
    source: ClassVar[str] = "here"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        return Verdict(score=1.0, threshold=0.0, flagged=True, trigger=self.trigger)


@dataclass(frozen=True, kw_only=True)
class Guesser(Guess):
    """The same, as a scenario names it."""

    trigger: str = "negative"  # type: ignore[assignment]

    def check(self, images: int, classes: int) -> None:
        pass

    def judge(self, classifiers: list[Any], defender: Any, run: Run) -> list[Verdict]:
        found = find("triggers", TRIGGERS, self.trigger, "here")()
        return [Verdict(score=1.0, threshold=0.0, flagged=True, trigger=found) for _ in classifiers]


@pytest.fixture
def negative(install: Install) -> Negative:
    """Installed as a kind of trigger."""
    install("negatives", points={"sapper.triggers": {"negative": f"{__name__}:Negative"}})
    return Negative()


def test_a_trigger_of_another_kind_goes_through_a_scenario(
    negative: Negative, tmp_path: Path, install: Install
) -> None:
    install("guessing", points={"sapper.defenses": {"guess": f"{__name__}:Guesser"}})
    data = write_data(tmp_path / "data")
    short = ("pretraining.epochs=1", "attack.epochs=1", "head.0.epochs=1")
    scenario = experiment(
        data, *short, 'target.0.trigger={kind = "negative", rows = 3}', extra='[[defense]]\nmethod = "guess"\n'
    )
    assert scenario.targets[0].trigger == Negative(rows=3)
    assert scenario.targets[0].trigger.describe() == {"kind": "negative", "rows": 3}
    assert isinstance(scenario.defenses[0].section, DetectSection)
    results = perform(scenario, tmp_path / "out")
    assert {picture.role for picture in results.pictures} == {"clean", "triggered", "reference"}
    (middle,) = {record.value for record in results.records if record.metric == "guess"}
    assert middle == 1.0
    shown = results.verdicts[0].triggers
    expected = pictures.png((negative.picture() * 255).round().to(torch.uint8))
    assert shown == ({"class": None, "norm": None, "success": None, "png": expected},)
    assert expected in render(results)
    assert told.detections(results)


def test_a_trigger_of_another_kind_is_audited_and_replayed(negative: Negative, tmp_path: Path) -> None:
    quick = {"patches": ((0.25, 0.3, 0.2),), "blends": (), "filters": (), "rounds": ((0, 4, 1),), "images": 32}
    budget = Budget(name="short", detectors={"multi_prior": quick}, tried=(), left_out=())
    subject, images, run = encoder(gain=0.0), photos(), Run(seed=1)
    report = auditing.audit(subject, images, budget, [], run, more={"guess": Guess(trigger=negative)})
    assert [shown.finding.method for shown in page.pictures(report)] == ["multi_prior", "guess"]
    write_atomically(tmp_path / FILE, safetensors.torch.save(found.trigger_tensors(report)))
    content = found.as_json(report)
    content |= {"triggers": {"file": FILE, "sha256": sha256(tmp_path / FILE)}, "opening": {"uri": "x"}}
    (tmp_path / "audit.json").write_text(json.dumps(content))
    recorded = replaying.read_audit(tmp_path / "audit.json")
    assert recorded.triggers["guess"] == negative
    _, other = replaying.replay(recorded, subject, images, run)
    assert (other.detector, other.controls) == ("guess", {})
    assert other.trigger.images == len(images)
    assert page.replay_lines([other], {})
    content["detectors"][1]["trigger"]["rows"] = SIZE + 1
    (tmp_path / "audit.json").write_text(json.dumps(content))
    with pytest.raises(SapperError, match="no audit can be read"):
        replaying.read_audit(tmp_path / "audit.json")


@pytest.mark.usefixtures("negative")
def test_a_package_adds_a_kind_of_trigger_by_an_entry_point() -> None:
    described, tensors = triggers_to_tensors(Negative(rows=3))
    assert triggers_from_tensors(described, tensors, "x") == Negative(rows=3)
    assert read_trigger({"kind": "negative", "rows": 3}, "file", "trigger") == Negative(rows=3)


@pytest.mark.parametrize("kind", ["mask", "colors"])
def test_a_trigger_made_of_tensors_is_not_written_in_a_scenario(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SapperError, match="cannot be written down") as caught:
        experiment(write_data(tmp_path), f'target.0.trigger={{kind = "{kind}"}}')
    assert caught.value.where is not None
    assert caught.value.where.endswith("target[0].trigger.kind")
