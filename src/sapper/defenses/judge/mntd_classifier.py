"""MNTD on classifiers: a meta-classifier that has seen many clean and many backdoored ones judges another.

Threat model: the defender holds a little clean data of the task (2 % of it) and may ask the classifier; the attacker's
trigger is unknown. The defender trains shadow classifiers on that data, half of them clean, half of them with the
random backdoors of jumbo learning (``jumbo``), and meta-classifiers with tuned queries on the shadows (``meta``).

Shadows are heads on the very encoder that is in doubt (``shadows_of = "heads"``): its owner has it, keeps it frozen,
and builds heads anyway. Clean features are computed once; a shadow's added images go through the encoder with its
trigger. They are the paper's MLP, standardized, whatever the owner's heads are. Or shadows are whole networks of
MNTD's own architecture, trained from scratch (``"cnn"``).

A verdict's score is the mean of the meta-classifiers' scores, its threshold 0, where a meta-classifier thinks both
equally likely; all single scores are in the evidence. The share of the training images that the defender takes is drawn
without replacement; the victim's classifiers may have been trained on them, too.

Source: Xu et al., "Detecting AI Trojans Using Meta Neural Analysis", IEEE S&P 2021: 2,048 + 256 shadows of a kind, Adam
with rate 1e-3, batches of 100, 100 epochs; 200 shadows of a kind and 50 meta-classifiers in Jia, Liu, Gong,
"BadEncoder", IEEE S&P 2022. The shadows kept apart for choosing an epoch are in MNTD's proportion.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.defenses import meta
from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.defender import Defender
from sapper.defenses.measures import OfVerdicts, detection, scorers
from sapper.downstream import MLP, Classifier, extract
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run, Silent
from sapper.samples import ImageSet, to_float
from sapper.training import Step, Terms, train
from sapper.triggers import jumbo
from sapper.verdicts import Verdict


@dataclass(frozen=True, kw_only=True)
class MNTDClassifier(Checked, ClassifierJudge):
    """Meta-classifiers trained on clean and jumbo-backdoored shadow classifiers (Xu et al., IEEE S&P 2021).

    ``shadows`` of either kind for training and ``validation`` for choosing the epoch, on ``share`` of the defender's
    images, for ``shadow_epochs``. ``meta_classifiers`` with ``queries`` each and ``hidden`` units, trained for
    ``epochs``; ``tune_queries`` off leaves the queries as they were drawn. ``one_class`` learns from clean shadows
    alone.
    """

    shadows: PositiveInt = 200
    validation: NonNegativeInt = 25
    share: Annotated[float, Field(gt=0, le=1)] = 0.02
    shadows_of: Literal["heads", "cnn"] = "heads"
    shadow_epochs: PositiveInt = 100
    shadow_batch: PositiveInt = 100
    shadow_learning_rate: PositiveFloat = 1e-3
    meta_classifiers: PositiveInt = 50
    queries: PositiveInt = 10
    hidden: PositiveInt = 20
    epochs: PositiveInt = 10
    learning_rate: PositiveFloat = 1e-3
    tune_queries: bool = True
    one_class: bool = False

    kind: ClassVar[Literal["judge"]] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("score"), *scorers(learned_by_kind=True))
    version: ClassVar[int] = 30 + MLP.version  # shadows are its heads
    source: ClassVar[str] = "Xu et al., IEEE S&P 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "badencoder": {},
        "mntd": {"shadows": 2048, "validation": 256, "shadows_of": "cnn", "meta_classifiers": 5},
    }

    def check(self, images: int, classes: int) -> None:
        """Raises ``SapperError`` when the share of the defender's images is smaller than the number of classes."""
        if round(self.share * images) < classes:
            what = f"{100 * self.share:g} % of {images} images are {round(self.share * images)}, for {classes} classes"
            raise SapperError(what, where="share", remedy="take a larger share, or give the defender more images")

    def judge(self, classifiers: Sequence[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        """A verdict for each.

        Evidence: ``scores``, one of each meta-classifier; the number of ``shadows``; ``learned``, see ``meta.Learned``.
        """
        started = time.perf_counter()
        defender.check(classifiers, run)
        sample = self._sample(defender, run)
        shadows, validation = self.fleets(defender, sample, run.child("shadows"))
        runs = [run.child(f"meta-classifier {i}") for i in range(self.meta_classifiers)]
        mean, deviation = meta.look(sample)
        metas = meta.MetaClassifiers.draw(runs, self.queries, mean, deviation, defender.classes, self.hidden)
        settings = meta.Training(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            tune_queries=self.tune_queries,
            one_class=self.one_class,
        )
        trunk, _ = self._parts(Classifier(defender.encoder, nn.Identity()), run)
        learned = meta.train(metas, trunk, shadows, validation, settings, runs)
        scores = [self._ask(metas, classifier, run) for classifier in classifiers]
        return [
            Verdict(
                score=float(each.mean()),
                threshold=0.0,
                flagged=bool(each.mean() > 0),
                evidence={"scores": each.tolist(), "shadows": len(shadows.models), "learned": learned},
                seconds=(time.perf_counter() - started) / len(classifiers),
            )
            for each in scores
        ]

    def _ask(self, metas: meta.MetaClassifiers, classifier: Classifier, run: Run) -> Tensor:
        """A classifier's scores, float (M,) on the CPU: on the encoder that it stands on, whatever became of that."""
        trunk, own = self._parts(classifier, run)
        return meta.ask(metas, trunk, [own], one_class=self.one_class)[0].cpu()

    def _parts(self, classifier: Classifier, run: Run) -> tuple[meta.Model, meta.Model]:
        """What a classifier may have in common with others, and what is its own; none of it with dropout."""
        classifier.eval()
        if self.shadows_of == "cnn":
            return nn.Identity(), classifier

        def trunk(images: Tensor) -> Tensor:
            with run.autocast():
                features = classifier.encoder(images)
            return F.normalize(features.float(), dim=1)

        return trunk, classifier.head

    def fleets(self, defender: Defender, sample: ImageSet, run: Run) -> tuple[meta.Fleet, meta.Fleet | None]:
        """Shadows to learn from, and others to choose the epoch by. Each has its own seed, whatever their number."""
        silent = replace(run, progress=Silent())
        features = extract(defender.encoder, sample, silent) if self.shadows_of == "heads" else None
        kinds, apart = ([False], 0) if self.one_class else ([False, True], self.validation)
        made: dict[bool, list[nn.Module]] = {kind: [] for kind in kinds}
        with run.progress.bar("shadow classifiers (MNTD)", len(kinds) * (self.shadows + apart)) as bar:
            for kind, some in made.items():
                for i in range(self.shadows + apart):
                    child = silent.child(f"{'backdoored' if kind else 'clean'} {i}")
                    dice = child.child("attack").generator()
                    attack = jumbo.draw(sample.size, defender.classes, dice) if kind else None
                    some.append(self._shadow(defender, sample, features, attack, child).requires_grad_(False))
                    bar.advance()
        shadows = meta.Fleet.of({kind: some[: self.shadows] for kind, some in made.items()})
        return shadows, meta.Fleet.of({kind: some[self.shadows :] for kind, some in made.items()}) if apart else None

    def _sample(self, defender: Defender, run: Run) -> ImageSet:
        """The share of the defender's images that shadows are trained on."""
        self.check(len(defender.train), defender.classes)
        return defender.train.sample(round(self.share * len(defender.train)), run.child("share").generator())

    def _shadow(
        self, defender: Defender, train: ImageSet, features: Tensor | None, attack: jumbo.Jumbo | None, run: Run
    ) -> nn.Module:
        labels = train.targets()
        rows = torch.empty(0, dtype=torch.int64)
        if attack is not None:
            count = max(1, round(attack.rate * len(train)))
            rows = torch.randperm(len(train), generator=run.child("poison").generator())[:count]
            labels = torch.cat((labels, torch.full((count,), attack.target)))
        if features is None:
            pixels = to_float(train.images)
            inputs = pixels if attack is None else torch.cat((pixels, attack(pixels[rows])))
            return self._network(inputs.to(run.device), labels.to(run.device), defender.classes, run)
        if attack is not None:
            features = torch.cat((features, extract(defender.encoder, train.take(rows), run, attack)))
        head = MLP(
            epochs=self.shadow_epochs,
            batch=self.shadow_batch,
            learning_rate=self.shadow_learning_rate,
            standardize=True,
        )
        return head.fit(features, labels, defender.classes, run)

    def _network(self, inputs: Tensor, labels: Tensor, classes: int, run: Run) -> nn.Module:
        """MNTD's network for CIFAR-10, trained from scratch."""
        with run.seeded():
            net = network(classes, (inputs.shape[2], inputs.shape[3])).to(run.device)
            order = run.child("order").generator()

            def terms(step: Step) -> Terms:
                rows = step.rows.to(run.device)
                with run.autocast():
                    answers = net(inputs[rows])
                return {"cross-entropy": F.cross_entropy(answers.float(), labels[rows])}

            train(
                net,
                terms,
                torch.optim.Adam(net.parameters(), lr=self.shadow_learning_rate, fused=True),
                lambda _step: self.shadow_learning_rate,
                count=len(inputs),
                batch=self.shadow_batch,
                epochs=self.shadow_epochs,
                run=run,
                label="shadow classifier (MNTD)",
                order=lambda _epoch: order,
                drop_last=False,
            )
        return net.eval()


def network(classes: int, size: tuple[int, int]) -> nn.Sequential:
    """Four convolutions and three linear layers; 1.18 million parameters for 10 classes and 32×32 pixels."""
    flat = 64 * (size[0] // 4) * (size[1] // 4)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(flat, 256), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, classes)),
    )
