"""ABS, Beatrix and SCAn tell classifiers with BadNets' backdoor from clean ones."""

from collections.abc import Callable

import pytest
import torch

from sapper.defenses.judge.abs import ABS
from sapper.defenses.judge.beatrix import Beatrix
from sapper.defenses.judge.scan import SCAn
from sapper.downstream import Classifier
from sapper.metrics import auc
from sapper.running import Run
from sapper.verdicts import Verdict
from tests.planted import TRIGGER, as_they_come, gratings, trained, training_set

pytestmark = pytest.mark.slow

Judge = Callable[[Classifier, int | None, int], Verdict]


def by_abs(classifier: Classifier, _label: int | None, seed: int) -> Verdict:
    method = ABS(images=20, held_out=80, candidates=5, steps=150, learning_rate=0.3, size=0.1)
    return method.examine(classifier, gratings(400, 7), Run(seed=seed))


def by_beatrix(classifier: Classifier, _label: int | None, seed: int) -> Verdict:
    return Beatrix().examine(classifier, gratings(400, 7), as_they_come(gratings), Run(seed=seed))


def by_scan(classifier: Classifier, label: int | None, seed: int) -> Verdict:
    return SCAn().examine(classifier, gratings(400, 7), training_set(gratings, label), Run(seed=seed))


@pytest.mark.parametrize("judge", [by_abs, by_beatrix, by_scan])
def test_backdoored_classifiers_score_above_clean_ones(judge: Judge) -> None:
    scores: dict[bool, list[float]] = {False: [], True: []}
    test, named = gratings(200, 3).batch(), 0
    for seed in range(3):
        for label in (None, seed):
            classifier = trained(gratings, 2 * seed + (label is not None), label)
            if label is not None:
                assert float((classifier(TRIGGER(test)).argmax(1) == label).float().mean()) > 0.9
            verdict = judge(classifier, label, seed)
            assert verdict.score is not None
            scores[label is not None].append(verdict.score)
            named += label is not None and verdict.evidence["suspect"] == label
    print(f"\n{judge.__name__}: backdoored {scores[True]}, clean {scores[False]}; right class named: {named}")
    assert auc(torch.tensor(scores[True]), torch.tensor(scores[False])) >= 0.9
    assert named >= 2
