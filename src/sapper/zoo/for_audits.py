"""What audits take from a zoo: bags of its clean encoders, and detectors that learned from its pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sapper import encoders
from sapper.audits.calibration import BOUND, Bag, Key, fitting
from sapper.audits.families import Family, FamilyBag, parameters_of
from sapper.audits.stored import Kind
from sapper.defenses.budgets import Budget
from sapper.defenses.contracts import EncoderJudge, EncoderLearner
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.zoo.examining import CALIBRATION, DEVELOPMENT, JUDGEMENT, Scored
from sapper.zoo.making import Member
from sapper.zoo.scoreboard import Known, bag_name, calibrating, power


def bags(
    scored: Sequence[Scored],
    folder: Path,
    images: dict[str, ImageSet],
    budget: Budget,
    zoo: str,
    run: Run,
    environment: dict[str, str],
) -> list[Bag]:
    """A bag of each family's calibration part."""
    bags = []
    for family, ordinary in images.items():
        part = calibrating(scored, family)
        if not part:
            continue
        about = [each.member.about["pretraining"] for each in part]
        spans = {key: _span([each[key] for each in about]) for key in ("epochs", "images")}
        method, dataset = ("/".join(sorted({each[key] for each in about})) for key in ("method", "dataset"))
        bags.append(
            Bag(
                name=bag_name(zoo, family, budget.name),
                key=Key.of(encoders.load(folder / part[0].member.file, run), ordinary, budget),
                pretraining=f"{method}, {spans['epochs']} epochs of {spans['images']} images of {dataset}",
                images=f"{ordinary.name} {ordinary.split}",
                scores={name: [each.scores[name] for each in part] for name in budget.detectors},
                gathered={name: [each.gathered[name] for each in part] for name in budget.detectors},
                origins=sorted({_origin(each.member) for each in part}),
                made={"zoo": zoo, "part": CALIBRATION} | environment,
            )
        )
    return bags


def of_strangers(budget: Budget) -> Budget:
    """A budget's detector for encoders that no bag fits, alone. Raises ``SapperError`` where it has none."""
    if budget.stranger is None:
        what, remedy = "it has no detector for encoders that no bag fits", "name another budget"
        raise SapperError(what, where=f"--budget {budget.name}", remedy=remedy)
    return replace(
        budget, name=f"{budget.name}-strangers", detectors={budget.stranger: budget.strangers[budget.stranger]}
    )


def check_strangers(members: Sequence[Member], bag: FamilyBag | None, budget: Budget) -> None:
    """Raises ``SapperError`` where a bag over families was made otherwise, or with families that are to be judged."""
    if bag is not None:
        same = (budget.leading, parameters_of(budget.make()[budget.leading]))
        if (bag.detector, bag.parameters) != same:
            what = f"it was not made with {budget.leading} as the budget has it"
            raise SapperError(what, where=f"--among: {bag.name}", remedy="make it anew: --families")
    calibrate = {member.family for member in members if member.part == CALIBRATION and not member.attacked}
    known = calibrate if bag is None else {family.name for family in bag.families}
    judged = {member.family for member in members if member.part == JUDGEMENT}
    if both := sorted(known & judged):
        what = f"these families are to be judged and are in the bag over families, too: {', '.join(both)}"
        remedy = "give each family to one part alone, as zoos/families.toml does"
        raise SapperError(what, where="--strangers", remedy=remedy)


def check_enough(images: Mapping[str, ImageSet], bag: FamilyBag) -> None:
    """Raises ``SapperError`` for a family with fewer images than a bag over families was made with."""
    for family, shown in images.items():
        if len(shown) < bag.images:
            what = f"{bag.name} was made with {bag.images} images of each family, and {family} has {len(shown)}"
            raise SapperError(what, where="--among", remedy="give the family more images in the plan")


def families_of(
    scored: Sequence[Scored],
    images: Mapping[str, ImageSet],
    budget: Budget,
    zoo: str,
    environment: dict[str, str],
) -> FamilyBag | None:
    """A bag over the families of the calibration part, with the leading detector; none where there is none.

    ``images``: those of each family, with which its encoders were scored.
    """
    families = []
    for name in dict.fromkeys(each.member.family for each in scored):
        if part := calibrating(scored, name):
            about = part[0].member.about
            network = f"{about['encoder']['architecture']}, {about['encoder']['input_size']} pixels"
            scores = [each.scores[budget.leading] for each in part]
            families.append(Family(name=name, about=f"{network}, {_origin(part[0].member)}", scores=scores))
    if not families:
        return None
    return FamilyBag(
        name=f"{zoo}-{budget.name}",
        detector=budget.leading,
        parameters=parameters_of(budget.make()[budget.leading]),
        images=max(len(images[family.name]) for family in families),
        families=families,
        made={"zoo": zoo, "part": CALIBRATION} | environment,
    )


def among_families(scored: Sequence[Scored], bag: FamilyBag) -> Known:
    """What every encoder is judged beside: the largest score of each family, whatever the encoder looks like.

    With these as clean scores, the p-value of an encoder beside them is that among families.
    """
    largest = [family.largest for family in bag.families]
    return {each.looks: {bag.name: {bag.detector: largest}} for each in scored}


def unfit(
    members: Sequence[Member],
    folder: Path,
    images: dict[str, ImageSet],
    bags: Sequence[Bag],
    budget: Budget,
    run: Run,
) -> dict[str, str]:
    """The families for which an audit would find no fitting bag, and why."""
    reasons = {}
    for family, ordinary in images.items():
        first = next(member for member in members if member.family == family)
        match = fitting(Key.of(encoders.load(folder / first.file, run), ordinary, budget), bags, BOUND)
        if not match.bags:
            reasons[family] = match.reason
    return reasons


def measured(bags: Sequence[Bag], scored: Sequence[Scored], known: Known, budget: Budget) -> list[Bag]:
    """The bags that encoders were judged beside, with the power on those that came about as the bag's did.

    What was measured earlier, on triggers of other kinds, stays where it was measured beside the same bags. A bag that
    does not say how its encoders came about is left out.
    """
    judged = []
    for bag in bags:
        beside = [each for each in scored if bag.name in known.get(each.looks, {})]
        alike = [each for each in beside if _origin(each.member) in bag.origins]
        if alike:
            others = [name for name in known[alike[0].looks] if name != bag.name]
            earlier = bag.power if set(bag.power_beside) == set(others) else []
            new = power(alike, known, budget.leading, BOUND)
            merged = {each.trigger: each for each in [*earlier, *new]}
            judged.append(replace(bag, power=list(merged.values()), power_beside=others))
    return judged


def _origin(member: Member) -> str:
    """By which method on what data a member was trained."""
    about = member.about["pretraining"]
    return f"{about['method']} on {about['dataset']}"


def learn(
    members: Sequence[Member], folder: Path, images: ImageSet, name: str, method: EncoderLearner, run: Run
) -> tuple[EncoderJudge, Kind]:
    """What a detector, the method of that name, learns from a family's development part.

    ``images``: the family's ordinary ones. Raises ``SapperError`` when there are too few pairs.
    """
    named = {member.name: member for member in members}
    twins = [(named[member.parent], member) for member in members if member.attacked and member.parent in named]
    pairs = [tuple(encoders.load(folder / each.file, run) for each in pair) for pair in twins]
    if len(pairs) < method.pairs:
        what, remedy = f"{len(pairs)} pairs are there, {method.pairs} are needed", "build the development part first"
        raise SapperError(what, where=str(folder), remedy=remedy)
    judge = method.fit([(a, b) for a, b in pairs[: method.pairs]], images, run)
    card = pairs[0][0].card
    kind = Kind(
        method=name,
        architecture=card.network,
        width=card.width,
        feature_size=pairs[0][0].feature_size,
        input_size=card.input_size,
        pairs=method.pairs,
        source=f"{members[0].family}, {DEVELOPMENT}",
    )
    return judge, kind


def _span(values: list[int]) -> str:
    return f"{min(values)}…{max(values)}" if min(values) < max(values) else f"{values[0]}"
