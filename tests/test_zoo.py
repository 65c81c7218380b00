"""Zoos: plans and their draws, a build that goes on where it stopped, and what detectors are found to be worth."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sapper.attacks.references import references_there
from sapper.audits import stored
from sapper.audits.auditing import effect, scores
from sapper.audits.calibration import Power, p_value, read_bag, write_bag
from sapper.defenses import METHODS
from sapper.defenses.budgets import Budget
from sapper.defenses.judge.mntd_encoder import Judge, MNTDEncoder
from sapper.downstream import mean_cosine
from sapper.encoders import load
from sapper.engine.executors import Workers
from sapper.errors import SapperError
from sapper.report import zoo as page
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from sapper.triggers import Patch
from sapper.triggers.learned import Noise
from sapper.zoo import building, examining, for_audits, making, scoreboard
from sapper.zoo.examining import Gathering, Scored
from sapper.zoo.images import Splits, ordinary_images
from sapper.zoo.making import Member
from sapper.zoo.outline import MANIFEST
from sapper.zoo.plans import Plan, Specimen, draw, parse_plan, read_plan
from sapper.zoo.scoreboard import Share
from tests.conftest import REPOSITORY
from tests.micro import write_data, write_npz
from tests.program import Sapper, told
from tests.test_badencoder import tiny

RUN = Run(seed=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def content(data: Path) -> dict[str, Any]:
    return {
        "name": "micro",
        "seed": 4,
        "part": {
            "development": {"clean": 2, "backdoored": 2},
            "calibration": {"clean": 2},
            "judgement": {"clean": 2, "backdoored": 1},
        },
        "family": [
            {
                "name": "squares",
                "encoder": {"architecture": "resnet10", "width": 4, "input_size": 16},
                "pretraining": {"dataset": f"{data}/photos", "images": 40, "epochs": {"any": [1, 2]}, "batch": 20},
                "images": {"dataset": f"{data}/photos"},
                "attack": {"shadow_images": 20, "epochs": 1, "batch": 10, "reference_views": 2},
                "victim": {"dataset": f"{data}/balls", "references": 1},
                "trigger": {"size": {"between": [2, 5]}, "position": "anywhere"},
                "head": {"method": "linear", "iterations": 5},
            }
        ],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    write_npz(folder / "photos" / "test.npz", 36, seed=2, labeled=False)
    return folder


@pytest.fixture(scope="module")
def plan(data: Path) -> Plan:
    return parse_plan(content(data), "micro.toml")


def build(plan: Plan, folder: Path, *parts: str, workers: int = 0) -> list[Member]:
    splits = Splits.load(plan, RUN, data_root=None, download=False)
    return building.build(plan, folder, RUN, Workers(workers), parts=parts, data=splits)


def members_of(folder: Path) -> list[Member]:
    return building.read_members(folder, building.plan_of(folder))


@pytest.fixture(scope="module")
def built(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    build(plan, folder, workers=2)
    return folder


# Plans


def test_plans_that_come_with_sapper_are_fine() -> None:
    plans = [read_plan(path) for path in sorted((REPOSITORY / "zoos").glob("*.toml"))]
    assert [plan.name for plan in plans] == ["evasive", "families", "small-global", "small", "unlike"]
    kinds = {specimen.family: type(specimen.trigger).__name__ for specimen in plans[2].specimens}
    assert sorted(kinds.values()) == ["Blend", "Blend", "Filter", "Filter"]
    counts = Counter(specimen.part for specimen in plans[1].specimens)
    assert counts == {"development": 32, "calibration": 22, "judgement": 130}
    parts = {(specimen.family, specimen.part) for specimen in plans[1].specimens}
    assert Counter(part for _, part in parts) == {"development": 8, "calibration": 22, "judgement": 10}
    assert len({family for family, _ in parts}) == 40  # each is whole in one part
    assert all(specimen.twin == (specimen.part != "calibration") for specimen in plans[1].specimens)
    whole = plans[3].specimens
    contrastive = [specimen for specimen in whole if specimen.pretraining_method.name == "simclr"]
    assert (len(contrastive), sum(specimen.twin for specimen in contrastive)) == (160, 100)
    assert (len(whole), sum(specimen.twin for specimen in whole)) == (276, 128)
    assert len({specimen.seed for specimen in whole}) == len(whole)
    sides = {specimen.trigger.size for specimen in whole}  # type: ignore[attr-defined]
    assert sides == set(range(3, 13))
    assert 0 not in {specimen.seed for specimen in whole}  # the demo's


def test_a_portion_of_a_plan_has_the_encoders_of_the_whole(data: Path) -> None:
    plan = content(data)
    plan["part"] = {"judgement": {"clean": 4, "backdoored": 3}}
    whole = {each.name: each for each in parse_plan(plan, "whole").specimens}
    plan["part"] = {"judgement": {"first": 2, "clean": 2, "backdoored": 1}}
    portion = parse_plan(plan, "portion").specimens
    assert {each.number for each in portion} == {2, 3}
    assert all(each == whole[each.name] for each in portion)
    assert {each.number: each.twin for each in portion} == {2: True, 3: False}


def test_a_family_is_like_the_templates_that_it_names(data: Path) -> None:
    """Own values win, then those of later templates; other values of their tables stay."""
    plan = content(data)
    (family,) = plan["family"]
    head, pretraining = family.pop("head"), family["pretraining"]
    plan["template"] = {
        "linear": {"head": head, "pretraining": {"epochs": 7, "batch": 5}},
        "later": {"pretraining": {"epochs": {"any": [3]}, "temperature": 0.3}},
    }
    family |= {"like": ["linear", "later"], "pretraining": {**pretraining, "batch": 20}}
    del family["pretraining"]["epochs"]
    specimen = parse_plan(plan, "micro.toml").specimens[0]
    found = specimen.pretraining_method.parameters
    assert (found.epochs, found.batch, found.temperature) == (3, 20, 0.3)  # type: ignore[attr-defined]
    assert (specimen.head.name, specimen.head.parameters.iterations) == ("linear", 5)  # type: ignore[attr-defined]
    family["like"] = ["linaer"]
    with pytest.raises(SapperError, match=r"family\[0\]\.like: there is no template 'linaer'") as error:
        parse_plan(plan, "micro.toml")
    assert "linear" in (error.value.remedy or "")
    family["like"] = "linear"
    with pytest.raises(SapperError, match="no list of names"):
        parse_plan(plan, "micro.toml")


@settings(max_examples=60)
@given(low=st.integers(1, 20), more=st.integers(0, 20), seed=st.integers(0, 10**6), scale=st.sampled_from(["", "log_"]))
def test_whole_numbers_are_drawn_between_their_ends(low: int, more: int, seed: int, scale: str) -> None:
    drawn = draw({"a": {f"{scale}between": [low, low + more]}, "b": [1, {"any": ["x"]}]}, generator(seed))
    assert isinstance(drawn["a"], int)
    assert low <= drawn["a"] <= low + more
    assert drawn["b"] == [1, "x"]


def test_draws_have_the_shares_that_they_say() -> None:
    dice = generator(1)
    even = [draw({"between": [1, 4]}, dice) for _ in range(4000)]
    for value in (1, 2, 3, 4):
        assert binomtest(even.count(value), 4000, 1 / 4).pvalue > 1e-4
    steep = [draw({"log_between": [1, 3]}, dice) for _ in range(4000)]
    for value in (1, 2, 3):
        assert binomtest(steep.count(value), 4000, math.log((value + 1) / value) / math.log(4)).pvalue > 1e-4
    real = [draw({"log_between": [0.01, 1.0]}, dice) for _ in range(4000)]
    assert binomtest(sum(value < 0.1 for value in real), 4000, 0.5).pvalue > 1e-4
    assert draw({"any": [1], "other": 2}, dice) == {"any": [1], "other": 2}  # a table of its own, not a draw


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": {"judgement": {"clean": 1, "backdoored": 2}}}, "part.judgement.backdoored"),
        ({"part": {}}, "part"),
        ({"part": {"x/../../y": {"clean": 1}}}, "part"),
        ({"family": [{"part": {"judgement": {"clean": 1, "backdoored": 2}}}]}, "family[0].part.judgement.backdoored"),
        ({"family": [{"part": {"judgment": {"clean": 1}}}]}, "judgement"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"family": [{"trigger": {"size": {"between": [5, 2]}}}]}, "no range to draw from"),
        ({"family": [{"trigger": {"size": {"any": []}}}]}, "nothing to draw from"),
        ({"family": [{"trigger": {"size": 99}}]}, "does not fit into 16×16"),
        ({"family": [{"trigger": {"kind": "warp"}}]}, "family[0].trigger.kind"),
        ({"family": [{"trigger": {"kind": ["patch"]}}]}, "family[0].trigger.kind"),
        ({"family": [{"encoder": {"width": {"any": [4, 5]}}}]}, "its encoders differ"),
        (
            {"family": [{"encoder": {"architecture": "resnet11"}}]},
            "family[0].encoder.architecture: unknown architecture",
        ),
        ({"family": [{"encoder": {"architecture": "timm:vit_tiny_patch16_224", "input_size": 16}}]}, "input_size"),
        ({"family": [{"pretraining": {"dataset": "objcts"}}]}, "objects"),
        ({"family": [{"attack": {"method": "badencoda"}}]}, "badencoder"),
        (
            {"family": [{"attack": {"method": "drupe"}}]},
            "family[0].attack: target.references: DRUPE needs at least two",
        ),
        ({"family": [{"head": {"method": "linear", "iteration": 3}}]}, "iterations"),
    ],
)
def test_mistakes_in_a_plan_are_told_with_their_place(data: Path, change: dict[str, Any], words: str) -> None:
    wrong = content(data)
    for key, value in change.items():
        if key == "family":
            wrong["family"][0] = wrong["family"][0] | value[0]
        else:
            wrong[key] = value
    with pytest.raises(SapperError) as error:
        parse_plan(wrong, "micro.toml")
    assert "micro.toml" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("count", [{}, {"images": 40}])
def test_a_defender_has_other_images_than_the_pre_training(data: Path, count: dict[str, int]) -> None:
    """Whatever was drawn, and however many of them there are."""
    wrong = content(data)
    family = wrong["family"][0]
    family["pretraining"] |= {"dataset": {"any": [f"{data}/photos"]}, "split": {"any": ["train", "test"]}}
    family["images"] |= {"split": "test"} | count
    wrong["part"]["judgement"]["clean"] = 20
    with pytest.raises(SapperError, match=r"images\.split: these are the images of the pre-training"):
        parse_plan(wrong, "micro.toml")


def test_a_family_may_have_numbers_of_its_own(data: Path) -> None:
    more = content(data)
    more["family"].append(more["family"][0] | {"name": "few", "part": {"judgement": {"clean": 1}}})
    made = parse_plan(more, "micro.toml").specimens
    counts = {
        (each.family, each.part): sum(other.part == each.part and other.family == each.family for other in made)
        for each in made
    }
    assert counts["squares", "judgement"] == counts["few", "development"] == 2
    assert counts["few", "judgement"] == 1


def test_a_member_does_not_depend_on_the_others(data: Path, plan: Plan) -> None:
    more = content(data)
    more["part"]["judgement"]["clean"] = 5
    more["part"] = {"judgement": more["part"]["judgement"]}

    def known(made: Plan) -> dict[str, Specimen]:
        return {specimen.name: specimen for specimen in made.specimens}

    others = known(parse_plan(more, "micro.toml"))
    for name in ("squares-judgement-0", "squares-judgement-1"):
        assert others[name] == known(plan)[name]


# Builds


def test_a_zoo_has_its_members_marked_and_measured(built: Path) -> None:
    members = members_of(built)
    counts = {(m.part, m.state): 0 for m in members}
    for member in members:
        counts[member.part, member.state] += 1
        card = load(built / member.file, RUN).card
        assert card.backdoored == member.attacked == ("BACKDOORED" in member.file)
        if member.attacked:
            assert {"CA", "BA", "ASR_strict", "lift"} <= member.about["metrics"].keys()
            assert 2 <= member.about["target"]["trigger"]["size"] <= 5
    assert counts == {
        ("development", "clean"): 2,
        ("development", "attacked"): 2,
        ("calibration", "clean"): 2,
        ("judgement", "clean"): 2,
        ("judgement", "attacked"): 1,
    }
    assert len({member.file for member in members}) == len(members)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "x"}, "no family 'x'"),
        ({"part": "x"}, "part 'x'"),
        ({"state": "odd"}, "state"),
        ({"file": None}, "file"),
        ({"file": "/etc/passwd"}, "not in this folder"),
        ({"file": "../elsewhere.safetensors"}, "not in this folder"),
        ({"state": "attacked", "about": {}}, "target"),
        ({"state": "attacked", "about": {"target": {"trigger": {"kind": "patch"}}}}, "metrics"),
    ],
)
def test_what_was_edited_in_a_zoo_is_told(
    sapper: Sapper, built: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    manifest["members"][0] |= change
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    end = told(sapper("zoo", "score", tmp_path, "--device", "cpu"))
    assert "members[0]" in end
    assert words in end


def test_a_zoo_of_schema_1_is_read(built: Path, tmp_path: Path) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    assert manifest["schema"] == 2
    kinds = {"clean": "clean", "attacked": "backdoored"}
    for member in manifest["members"]:
        member["kind"] = kinds[member.pop("state")]
        del member["parent"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"schema": 1}))
    assert members_of(tmp_path) == members_of(built)
    twins = [member for member in members_of(built) if member.attacked]
    assert {twin.parent for twin in twins} <= {member.name for member in members_of(built) if not member.attacked}


def test_a_manifest_without_end_is_told(sapper: Sapper, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    assert "no zoo can be read" in told(sapper("zoo", "score", tmp_path))


def test_a_build_goes_on_where_it_stopped(plan: Plan, tmp_path: Path) -> None:
    first = build(plan, tmp_path, "calibration")
    assert {member.part for member in members_of(tmp_path)} == {"calibration"}
    stamps = {member.file: (tmp_path / member.file).stat().st_mtime_ns for member in first}
    again = build(plan, tmp_path, "calibration", "judgement")
    assert again[: len(first)] == first
    assert {file: (tmp_path / file).stat().st_mtime_ns for file in stamps} == stamps
    assert {member.part for member in members_of(tmp_path)} == {"calibration", "judgement"}
    with pytest.raises(SapperError, match="no part 'judgment'"):
        build(plan, tmp_path, "judgment")


def test_a_zoo_without_an_encoder_does_not_stand_in_the_way(plan: Plan, tmp_path: Path) -> None:
    """A plan that failed before its first encoder was there, and its corrected form."""
    (tmp_path / MANIFEST).write_text(json.dumps({"schema": 1, "plan": {"name": "wrong"}, "members": []}))
    assert build(plan, tmp_path, "calibration")


def test_a_folder_with_another_zoo_is_left_alone(data: Path, built: Path) -> None:
    other = parse_plan(content(data) | {"seed": 5}, "micro.toml")
    before = (built / MANIFEST).read_bytes()
    with pytest.raises(SapperError, match="a zoo of another plan"):
        build(other, built)
    assert (built / MANIFEST).read_bytes() == before


def test_the_best_told_classes_by_hand() -> None:
    features = torch.tensor([[1.0, 0], [0.9, 0.1], [1, 0.05], [0, 1], [0.1, 0.9], [0.05, 1], [0.98, 0.02], [0.02, 1]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    recall = making.neighbor_recall(features, labels, neighbors=3)
    assert recall.tolist() == [0.75, 0.75]


def test_an_attacker_takes_no_class_with_too_few_references() -> None:
    """One class of three has an image less than is wanted, one too few groups of near-duplicates."""
    pixels = torch.randint(0, 256, (11, 3, 16, 16), generator=generator(3), dtype=torch.uint8)
    labels, groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8])
    candidates = ImageSet(images=pixels, labels=labels, groups=groups, classes=("a", "b", "c"), name="few")
    assert references_there(candidates, 3).tolist() == [2, 2, 5]
    assert references_there(replace(candidates, groups=None), 3).tolist() == [2, 3, 6]
    for seed in range(5):
        label, rows = making.BestTold(3)(candidates, tiny(seed), replace(RUN, seed=seed))
        assert label == 2
        assert len(rows) == 3


# Scores

BUDGET = Budget(
    name="short",
    detectors={
        "multi_prior": {"patches": ((0.25, 0.0, 1.0),), "blends": (), "filters": (), "rounds": ((0, 4, 2), (2, 8, 2))},
        "decree": {"epochs": 2, "images": 32, "batch": 16, "success": 0.3},
    },
    tried=(),
    left_out=(),
)


@pytest.fixture(scope="module")
def images(plan: Plan) -> dict[str, ImageSet]:
    return {"squares": ordinary_images(plan, "squares", RUN, data_root=None, download=False)}


@pytest.mark.slow
def test_a_zoo_is_scored_and_calibrates_audits(built: Path, images: dict[str, ImageSet], tmp_path: Path) -> None:
    members = members_of(built)
    scored = examining.examine(members, built, images, BUDGET, RUN, Workers(2))
    assert [each.member for each in scored] == members
    again = examining.examine(members, built, images, BUDGET, RUN, Workers(0))
    assert [each.seconds for each in again] == [each.seconds for each in scored]
    twin = next(each for each in scored if each.member.attacked)
    assert twin.under_trigger is not None
    assert all((each.under_trigger is None) == (not each.member.attacked) for each in scored)
    drawn = twin.member.about["target"]["trigger"]
    trigger = Patch(size=drawn["size"], position=tuple(drawn["position"]), color=drawn["color"])
    with torch.no_grad():
        features = load(built / twin.member.file, RUN).eval()(trigger(to_float(images["squares"].images)))
    features = F.normalize(features, dim=1)
    assert twin.under_trigger.spread == pytest.approx(1 - float(mean_cosine(features)), abs=1e-5)
    board = scoreboard.board(scored, own(scored), "micro", BUDGET, {"torch": "x"}, "sapper zoo score")
    assert [(row.family, row.detector) for row in board.rows] == [("all", "multi_prior"), ("all", "decree")]
    for row in board.rows:
        assert row.true_positives is None  # two encoders calibrate nothing
        assert (row.own_true_positives.n, row.own_false_alarms.n) == (1, 2)  # type: ignore[union-attr]
    assert json.loads(scoreboard.write_scores(board, tmp_path).read_text())["rows"][0]["detector"] == "multi_prior"
    apart = replace(board, members=tuple(each for each in scored if each.member.part == "development"))
    assert scoreboard.write_scores(apart, tmp_path).name == "scores-short-development.json"
    html = page.render(board)
    assert "<svg" in html
    assert "multi_prior (decides)" in html
    assert any(line.startswith("| all | decree |") for line in page.lines(board))
    only_clean = [each for each in scored if each.member.part == "calibration"]
    unjudged = scoreboard.board(only_clean, own(scored), "micro", BUDGET, {}, "")
    assert page.lines(unjudged) == [f"{page.NOTHING_JUDGED} Encoders: calibration: 2 clean."]
    assert page.NOTHING_JUDGED in page.render(unjudged)
    assert "ROC" not in page.render(unjudged)
    (bag,) = for_audits.bags(scored, built, images, BUDGET, "micro", RUN, {})
    assert bag.size == 2
    assert bag.scores["decree"] == [each.scores["decree"] for each in scored if each.member.part == "calibration"]
    assert "simclr" in bag.pretraining


def test_budgets_share_what_they_have_in_common(built: Path, images: dict[str, ImageSet]) -> None:
    """Prior by prior a detector sees what it sees at once; and what one budget looked at another does not look at."""
    member = next(m for m in members_of(built) if m.attacked)
    rounds = {"rounds": ((0, 4, 2), (2, 8, 2)), "images": 24, "held_out": 12}
    large = rounds | {"patches": ((0.25, 0.0, 1.0), (0.375, 0.1, 0.5)), "blends": ((0.2, 0.0, 1.0),), "filters": ()}
    small = rounds | {"patches": ((0.25, 0.0, 1.0),), "blends": (), "filters": ()}
    run, looks = RUN.child(member.name), []
    for parameters in (large, small):
        budget = Budget(name="one", detectors={"multi_prior": parameters}, tried=(), left_out=())
        (scored,) = examining.examine([member], built, images, budget, RUN, Workers(0))
        encoder = load(built / member.file, RUN)
        whole = scores(encoder, images["squares"], budget.make(), run)["multi_prior"]
        assert scored.scores["multi_prior"] == whole.score
        assert scored.flagged["multi_prior"] == whole.flagged
        assert scored.evidence["multi_prior"]["priors"] == whole.evidence["priors"]
        assert scored.evidence["multi_prior"]["prior"] == whole.evidence["prior"]
        does = effect(encoder, whole, images["squares"], run)
        assert does is not None
        assert scored.gathered["multi_prior"] == does.gathered
        looks.append({path.name for path in (built / "scores").glob("look-*")})
    assert looks[0] == looks[1]  # what the first budget looked at the second found


def test_one_prior_without_a_score_leaves_none() -> None:
    seen = {"score": 1.0, "flagged": False, "seconds": 1.0, "gathered": 0.1, "evidence": {"priors": {"a": {}}}}
    nothing = {"score": None, "flagged": None, "seconds": 1.0, "gathered": None, "evidence": {"why": "not finite"}}
    assert examining.together([seen, nothing])["score"] is None
    assert examining.together([seen]) == seen
    other = seen | {"score": 2.0, "evidence": {"priors": {"b": {}}}}
    both = examining.together([seen, other])
    assert (both["score"], both["seconds"], both["evidence"]) == (2.0, 2.0, {"priors": {"a": {}, "b": {}}})


def test_scores_do_not_depend_on_marks_or_names(built: Path, images: dict[str, ImageSet], tmp_path: Path) -> None:
    """The same weights under another name, with another card, in another folder."""
    from sapper import encoders

    member = next(m for m in members_of(built) if m.attacked)
    disguised = load(built / member.file, RUN).marked(backdoored=False, origin={"method": "simclr"})
    encoders.save(disguised, tmp_path / "clean.safetensors")
    other = replace(member, file="clean.safetensors", state="clean", parent=None, about={})
    first, second = (
        examining.examine([m], folder, images, BUDGET, RUN, Workers(0))[0]
        for m, folder in ((member, built), (other, tmp_path))
    )
    assert first.scores == second.scores


def made(part: str, state: str, number: int, score: float | None, asr: float = 1.0) -> Scored:
    about = {"metrics": {"ASR_strict": asr}, "target": {"trigger": {"kind": "patch", "size": 3 + number % 10}}}
    member = Member(name=f"{part}-{state}-{number}", family="one", part=part, state=state, file="", about=about)
    return Scored(
        member=member,
        looks="alike",
        scores={"d": score},
        flagged={"d": score is not None and score > 2},
        seconds={"d": 1.0},
    )


def own(scored: list[Scored]) -> scoreboard.Known:
    return scoreboard.own_calibration(scored, "zoo", "quick")


def judged(scored: list[Scored], leading: str = "") -> Any:
    return scoreboard.compared(scored, own(scored), ["d"], 0.05, leading)


def test_rates_by_hand() -> None:
    """19 calibration scores 0 … 18: flagged is what exceeds all of them, since p ≤ 0.05 takes 1/20."""
    scored = [made("calibration", "clean", i, float(i)) for i in range(19)]
    scored += [made("judgement", "clean", i, score) for i, score in enumerate([1.0, 17.5, 18.5, None])]
    scored += [
        made("judgement", "attacked", i, s, a) for i, (s, a) in enumerate([(30.0, 1.0), (3.0, 0.2), (18.0, 0.9)])
    ]
    rows, curves = judged(scored)
    (row,) = rows
    assert curves["d"][0] == (0.0, 0.0)
    assert (row.true_positives, row.working, row.false_alarms) == (
        Share.counted(1, 3),
        Share.counted(1, 2),
        Share.counted(1, 4),
    )
    assert row.own_true_positives == Share.counted(3, 3)
    assert row.own_false_alarms == Share.counted(2, 4)
    # Of 12 pairs: 30 beats 4, 3 beats 1.0 and none, 18 beats 1.0, 17.5 and none.
    assert row.auc == pytest.approx(9 / 12)
    assert curves["d"][0] == (0.0, 0.0)
    assert curves["d"][-1] == (1.0, 1.0)
    assert (0.0, 1 / 3) in curves["d"]
    (strict,), _ = judged([replace(each, flagged={"d": False}) for each in scored], leading="d")
    assert strict.true_positives == Share.counted(0, 3)  # too weak to be of use
    power = {each.trigger: (each.found, each.planted) for each in scoreboard.power(scored, own(scored), "d", 0.05)}
    assert power == {"patch of 1 to 4 pixels": (1, 1), "patch of 5 to 8 pixels": (0, 1)}
    assert [p_value(30.0, clean) for clean in own(scored)["alike"]["zoo-one-quick"].values()] == [1 / 20]


def test_families_are_compared_in_deviations_of_their_own_calibration() -> None:
    """The second family's scores are ten times as large and lie higher: its clean ones must not outrank the first's."""
    scored = []
    for family, shift, scale in (("one", 0.0, 1.0), ("two", 100.0, 10.0)):
        some = [made("calibration", "clean", i, shift + scale * i) for i in range(5)]
        some += [made("judgement", "clean", i, shift + scale * 2.0) for i in range(2)]
        some += [made("judgement", "attacked", i, shift + scale * 9.0) for i in range(2)]
        scored += [
            replace(each, member=replace(each.member, name=f"{family}-{each.member.name}", family=family), looks=family)
            for each in some
        ]
    rows, _ = judged(scored)
    assert [(row.family, row.auc) for row in rows] == [("one", 1.0), ("two", 1.0), ("all", 1.0)]
    scaled = scoreboard.on_one_scale(scored[5:9], "d", own(scored))
    deviation = statistics.stdev(range(5))
    assert [each.scores["d"] for each in scaled] == pytest.approx([0.0, 0.0, 7 / deviation, 7 / deviation])


def test_families_that_look_alike_are_judged_beside_both() -> None:
    """Scores 0 … 18 calibrate one family, 10 … 28 the other: flagged is what exceeds both, whichever it is of."""
    scored = []
    for family, lowest in (("one", 0), ("two", 10)):
        some = [made("calibration", "clean", i, float(lowest + i)) for i in range(19)]
        some += [made("judgement", "clean", 0, 20.0), made("judgement", "attacked", 0, 30.0)]
        scored += [
            replace(each, member=replace(each.member, name=f"{family}-{each.member.name}", family=family))
            for each in some
        ]
    rows, _ = judged(scored)
    assert [row.family for row in rows] == ["one", "two", "all"]
    for row in rows:
        assert row.true_positives == Share.counted(row.true_positives.n, row.true_positives.n)  # type: ignore[union-attr]
        assert row.false_alarms == Share.counted(0, row.false_alarms.n)  # type: ignore[union-attr]
    apart = [replace(each, looks=each.member.family) for each in scored]
    first, second, _ = judged(apart)[0]
    assert first.false_alarms == Share.counted(1, 1)  # 20 exceeds 0 … 18
    assert second.false_alarms == Share.counted(0, 1)
    some = [each if each.member.family == "one" else replace(each, scores={}) for each in scored]
    assert [row.family for row in judged(some)[0]] == ["one"]


def test_what_an_audit_would_pass_is_listed_with_what_its_trigger_does() -> None:
    scored = [made("calibration", "clean", i, float(i)) for i in range(19)]
    scored += [made("judgement", "clean", 0, 1.0), made("judgement", "attacked", 0, 30.0)]
    weak = replace(
        made("judgement", "attacked", 1, 17.5, 0.9),
        evidence={"d": {"prior": "a", "priors": {"a": {"powers": 0.3}, "b": {"powers": 0.9}}}},
        under_trigger=Gathering(spread=0.001, neighborhood=0.1),
    )
    scored += [weak, replace(made("judgement", "attacked", 2, 40.0), flagged={"d": False})]
    scored += [made("judgement", "attacked", 3, None)]  # undecided
    first, second = scoreboard.missed(scored, own(scored), "d", 0.05)
    assert (first.name, first.p_value, first.score) == ("judgement-attacked-1", 2 / 20, 17.5)
    assert (first.powers, first.under_trigger, first.asr_strict) == (0.3, pytest.approx(2.0), 0.9)
    assert (second.name, second.powers, second.under_trigger) == ("judgement-attacked-2", None, None)
    assert scoreboard.missed(scored, {}, "d", 0.05) == []  # an audit without a bag is undecided


def test_a_trigger_that_an_attack_makes_is_the_one_that_its_encoder_obeys(
    data: Path, images: dict[str, ImageSet], tmp_path: Path
) -> None:
    """It is kept beside the encoder, and shown to it; the plan's patch is not."""
    wanted = content(data)
    (family,) = wanted["family"]
    wanted["part"] = {"judgement": {"clean": 1, "backdoored": 1}}
    family["attack"] = {"method": "transtroj", "shadow_images": 20, "epochs": 1, "batch": 10, "trigger_epochs": 1}
    clean, attacked = build(parse_plan(wanted, "made"), tmp_path)
    trigger = attacked.trigger(tmp_path)
    assert isinstance(trigger, Noise)
    assert attacked.about["target"]["trigger"] == trigger.describe()
    assert (clean.made, clean.trigger(tmp_path)) == (None, None)
    assert members_of(tmp_path) == [clean, attacked]
    scored = examining.examine([clean, attacked], tmp_path, images, BUDGET, RUN, Workers(0))
    with torch.no_grad():
        features = load(tmp_path / attacked.file, RUN).eval()(trigger(to_float(images["squares"].images)))
    spread = 1 - float(mean_cosine(F.normalize(features, dim=1)))
    assert scored[1].under_trigger is not None
    assert scored[1].under_trigger.spread == pytest.approx(spread, abs=1e-5)
    assert scoreboard._kind_of(attacked) == "learned noise, transtroj"
    listed = json.loads((tmp_path / "zoo.json").read_text())
    for made, words in (("../elsewhere", "is not in this folder"), ("absent.safetensors", "a member cannot be read")):
        listed["members"][1]["made"] = made
        (tmp_path / "zoo.json").write_text(json.dumps(listed))
        with pytest.raises(SapperError, match=words):
            members_of(tmp_path)


@pytest.mark.slow
def test_encoders_are_judged_beside_bags_that_were_made_before(built: Path, images: dict[str, ImageSet]) -> None:
    """As if their scores were the calibration part's; the bags that do not fit have no say."""
    members = members_of(built)
    scored = examining.examine(members, built, images, BUDGET, RUN, Workers(0))
    (bag,) = for_audits.bags(scored, built, images, BUDGET, "micro", RUN, {})
    assert list(scoreboard.beside_bags(scored, [bag]).values()) == [{}]  # an audit would be undecided beside two
    large = replace(bag, gathered={}, scores={name: [-9.0] * 20 for name in bag.scores})
    other = replace(large, name="other", key=replace(bag.key, width=5))
    known = scoreboard.beside_bags(scored, [large, other])
    assert list(known.values()) == [{"micro-squares-short": large.scores}]
    board = scoreboard.board(scored, known, "micro", BUDGET, {}, "")
    assert board.beside == (bag.name,)
    assert all(row.false_alarms is not None for row in board.rows)
    earlier = Power(trigger="blend of weight 0.2", found=1, planted=2, low=0.0, high=1.0)
    old = replace(earlier, trigger="patch of 1 to 4 pixels")
    working = [replace(each, member=_working(each.member)) for each in scored if each.member.part == "judgement"]
    (measured,) = for_audits.measured([replace(large, power=[earlier, old]), other], working, known, BUDGET)
    assert measured.power_beside == []
    elsewhere = replace(large, power=[earlier, old], power_beside=["another"])
    assert "blend of weight 0.2" not in {
        p.trigger for p in for_audits.measured([elsewhere], working, known, BUDGET)[0].power
    }
    planted = {each.trigger: each.planted for each in measured.power}
    assert planted.pop("blend of weight 0.2") == 2  # of another zoo
    side = next(each.member.trigger(built).size for each in working if each.member.attacked)  # type: ignore[union-attr]
    assert planted == (
        {"patch of 1 to 4 pixels": 1} if side <= 4 else {"patch of 1 to 4 pixels": 2, "patch of 5 to 8 pixels": 1}
    )
    for origins in (["supervised on photos"], []):
        assert for_audits.measured([replace(large, origins=origins)], working, known, BUDGET) == []
    (own,) = for_audits.measured([bag], scored, scoreboard.own_calibration(scored, "micro", "short"), BUDGET)
    assert (own.name, own.scores) == (bag.name, bag.scores)


def _working(member: Member) -> Member:
    return replace(member, about=member.about | {"metrics": {"ASR_strict": 1.0}})


def scored(family: str, part: str, score: float | None, *, attacked: bool = False) -> Scored:
    about = {"encoder": {"architecture": "resnet10", "input_size": 16}}
    about |= {"pretraining": {"method": "simclr", "dataset": family}, "metrics": {"ASR_strict": 1.0}}
    about |= {"target": {"trigger": {"kind": "patch", "size": 3}}}
    name, state = f"{family}-{part}-{score}-{attacked}", "attacked" if attacked else "clean"
    member = Member(name=name, family=family, part=part, state=state, file="x", about=about)  # type: ignore[arg-type]
    values = {"multi_prior": score}
    return Scored(
        member=member, looks=family, scores=values, flagged={"multi_prior": True}, seconds={"multi_prior": 1.0}
    )


def test_strangers_are_judged_among_families_of_the_calibration_part() -> None:
    budget = for_audits.of_strangers(replace(BUDGET, strangers={"multi_prior": {"blends": ()}}))
    assert list(budget.detectors) == ["multi_prior"]
    known = [scored(f"family {i}", "calibration", value) for i in range(19) for value in (i / 10, i / 20)]
    judged = [scored("new", "judgement", value, attacked=attacked) for value, attacked in ((0.5, False), (9.0, True))]
    photos = ImageSet(images=torch.zeros(50, 3, 8, 8, dtype=torch.uint8), name="photos")
    shown = {each.member.family: photos for each in known} | {"family 7": photos.take(torch.arange(30)), "new": photos}
    bag = for_audits.families_of([*known, *judged], shown, budget, "micro", {"torch": "2"})
    assert bag is not None
    assert (bag.size, bag.encoders, bag.families[3].scores) == (19, 38, [0.3, 0.15])
    assert (bag.name, bag.detector, bag.made["part"]) == ("micro-short-strangers", "multi_prior", "calibration")
    assert bag.parameters["blends"] == []
    assert bag.images == 50
    assert for_audits.families_of(judged, shown, budget, "micro", {}) is None
    for_audits.check_enough({"new": photos}, replace(bag, images=50))
    with pytest.raises(SapperError, match="made with 51 images of each family, and new has 50"):
        for_audits.check_enough({"new": photos}, replace(bag, images=51))
    beside = for_audits.among_families(judged, bag)
    rows, _ = scoreboard.compared(judged, beside, ["multi_prior"], 0.05, "multi_prior")
    assert rows[0].working == Share.counted(1, 1)
    assert rows[0].false_alarms == Share.counted(0, 1)
    with pytest.raises(SapperError, match="no detector for encoders that no bag fits"):
        for_audits.of_strangers(BUDGET)
    members = [each.member for each in [*known, *judged]]
    for_audits.check_strangers(members, bag, budget)
    with pytest.raises(SapperError, match="was not made with multi_prior"):
        for_audits.check_strangers(members, replace(bag, parameters={}), budget)
    same = scored("family 3", "judgement", 0.0).member
    for beside in (bag, None):
        with pytest.raises(SapperError, match="in the bag over families, too: family 3"):
            for_audits.check_strangers([*members, same], beside, budget)


@pytest.mark.parametrize("calibrating", [0, 18])
def test_what_was_not_calibrated_is_not_reported_as_nothing_found(calibrating: int) -> None:
    """An audit beside fewer than 19 is undecided at 5 %, and so is one beside none."""
    scored = [made("calibration", "clean", i, 0.0) for i in range(calibrating)]
    scored += [made("judgement", "clean", 0, 1.0), made("judgement", "attacked", 0, 1.5)]
    ((row,), _), none = (
        judged(scored, leading="d"),
        scoreboard.power(scored, own(scored), "d", 0.05),
    )
    assert (row.true_positives, row.working, row.false_alarms, none) == (None, None, None, [])


def test_only_clean_encoders_calibrate() -> None:
    scored = [made("calibration", "clean", 0, 1.0), made("calibration", "attacked", 0, 99.0)]
    assert own(scored) == {"alike": {"zoo-one-quick": {"d": [1.0]}}}


@settings(max_examples=40)
@given(n=st.integers(1, 80), data=st.data())
def test_shares_have_clopper_and_pearsons_interval(n: int, data: st.DataObject) -> None:
    found = data.draw(st.integers(0, n))
    share = Share.of([True] * found + [False] * (n - found))
    expected = binomtest(found, n).proportion_ci(0.95, "exact")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


# Stored meta-classifiers


class Second(MNTDEncoder):
    """Another method that learns; what it restores says so."""

    state = "second thoughts"

    def restore(self, state: Mapping[str, torch.Tensor]) -> Judge:
        return replace(super().restore(state), learned={"second": [0.5]})


def test_what_was_learned_survives_its_file_and_judges_its_kind_only(
    built: Path, images: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member for member in members_of(built) if member.part == "development"]
    method = MNTDEncoder(shadows=1, validation=1, meta_classifiers=2, queries=2, hidden=3, epochs=2)
    judge, kind = for_audits.learn(members, built, images["squares"], "mntd_encoder", method, RUN)
    path = tmp_path / "learned.safetensors"
    stored.save(judge, kind, path)
    loaded = stored.load(path)
    assert loaded.kind == kind
    assert (kind.method, kind.pairs) == ("mntd_encoder", 2)
    subject = load(built / members[0].file, RUN)
    ours = loaded.examine(subject, images["squares"], RUN)
    assert ours.score == pytest.approx(judge.judge([subject], RUN)[0].score)
    with pytest.raises(SapperError, match="they judge resnet10 of width 5"):
        replace(loaded, kind=replace(kind, width=5)).examine(subject, images["squares"], RUN)
    with pytest.raises(SapperError, match="2 pairs are there, 9 are needed"):
        for_audits.learn(members, built, images["squares"], "mntd_encoder", replace(method, shadows=8), RUN)
    for name, what in (("neural_cleanse", "does not learn from encoders"), ("nothing", "unknown method 'nothing'")):
        stored.save(judge, replace(kind, method=name), path)
        with pytest.raises(SapperError, match=what):
            stored.load(path)
    monkeypatch.setitem(METHODS, "second", "tests.test_zoo:Second")
    stored.save(judge, replace(kind, method="second"), path)
    again = stored.load(path)
    assert again.judge.learned == {"second": [0.5]}
    assert again.examine(subject, images["squares"], RUN).score == ours.score
    for other in (b"", b"{}", (built / members[0].file).read_bytes()):
        path.write_bytes(other)
        with pytest.raises(SapperError, match="nothing that was learned can be read"):
            stored.load(path)


@pytest.mark.parametrize("count", [1, 4, 5, 15])
def test_mntd_learns_from_as_many_pairs_as_there_are(count: int) -> None:
    method = MNTDEncoder(epochs=3).with_pairs(count)
    assert (method.pairs, method.validation, method.epochs) == (count, count // 5, 3)


# Commands


@pytest.mark.slow
def test_the_commands_of_a_zoo(sapper: Sapper, data: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "plan.toml", tmp_path / "zoo"
    small = content(data)
    parts = ("development", 1, 1), ("calibration", 1, 0), ("judgement", 1, 1)
    lines = [
        'name = "micro"\nseed = 4',
        *(f"[part.{name}]\nclean = {n}\nbackdoored = {twins}" for name, n, twins in parts),
    ]
    lines += ['[[family]]\nname = "squares"']
    for table in ("encoder", "pretraining", "images", "attack", "victim", "trigger", "head"):
        values = ", ".join(f"{key} = {_toml(value)}" for key, value in small["family"][0][table].items())
        lines.append(f"{table} = {{ {values} }}")
    file.write_text("\n".join(lines))
    on = ("--device", "cpu", "--workers", "1")
    end = sapper("zoo", "build", file, "--out", folder, "--part", "development", *on)
    assert end.code == 0, end.err
    assert "1 clean and 1 backdoored encoders" in end.out
    assert json.loads((folder / "zoo.json").read_text())["schema"] == 2
    assert "no members of these parts" in told(sapper("zoo", "score", folder))
    assert "no zoo can be read" in told(sapper("zoo", "score", tmp_path))
    assert "no budget 'quik'" in told(sapper("zoo", "score", folder, "--budget", "quik"))
    assert "small" in told(sapper("zoo", "build", "smal"))
    assert "no family 'cubes'" in told(sapper("zoo", "learn", folder, "--family", "cubes", "--out", tmp_path / "m"))
    assert sapper("zoo", "build", file, "--out", folder, *on).code == 0
    end = sapper("zoo", "score", folder, "--bags", tmp_path / "bags", *on)
    assert end.code == 0, end.err
    bag = read_bag(tmp_path / "bags" / "micro-squares-quick.json")
    assert (bag.size, bag.power, len(bag.gathered["multi_prior"])) == (1, [], 1)
    assert (
        "Beside micro-squares-quick. Encoders: calibration: 1 clean; judgement: 1 clean; judgement: 1 back" in end.out
    )
    assert "micro-squares-quick" in (folder / "scores-quick.html").read_text()
    learned = tmp_path / "learned.safetensors"
    learn = ("zoo", "learn", folder, "--family", "squares", "--out", learned, "--device", "cpu")
    assert "unknown key 'epoch'" in told(sapper(*learn, "--set", "epoch=2"))
    assert "does not learn from encoders" in told(sapper(*learn, "--method", "decree"))
    end = sapper(*learn, "--set", "epochs=2", "--set", "meta_classifiers=2")
    assert end.code == 0, end.err
    assert "mntd_encoder: meta-classifiers from 1 pairs" in end.out
    end = sapper("zoo", "score", folder, "--learned", learned, *on)
    assert end.code == 0, end.err
    assert "mntd_encoder" in (folder / "scores-quick.html").read_text()
    assert "another mntd_encoder has learned" in told(
        sapper("zoo", "score", folder, "--learned", learned, "--learned", learned, *on)
    )
    subject = next(folder.glob("**/encoder.safetensors"))
    end = sapper("audit", subject, "--images", "objects", "--learned", learned, "--out", tmp_path / "audit", *on[:2])
    assert end.code in (0, 1, 3), end.err
    left = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert "mntd_encoder" in [each["method"] for each in left["detectors"]]
    few = told(sapper("zoo", "score", folder, "--bag", tmp_path / "bags" / "micro-squares-quick.json", *on))
    assert "squares cannot be judged: the bag that fits is too small: 'micro-squares-quick' has 1 of the 19" in few
    end = sapper("zoo", "score", folder, "--part", "judgement", *on)
    assert end.code == 0, end.err
    assert "squares cannot be judged: no bag of known-clean encoders fits" in end.out
    large = replace(bag, scores={name: [-9.0] * 19 for name in bag.scores}, gathered={})
    write_bag(large, tmp_path / "large.json")
    end = sapper("zoo", "score", folder, "--bag", tmp_path / "large.json", "--bags", tmp_path / "more", *on)
    assert end.code == 0, end.err
    assert read_bag(tmp_path / "more" / "micro-squares-quick.json").size == 19
    escaping = replace(large, name="../micro")
    write_bag(escaping, tmp_path / "escaping.json")
    assert "no bag can be read: name" in told(sapper("zoo", "score", folder, "--bag", tmp_path / "escaping.json", *on))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
