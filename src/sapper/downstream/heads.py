"""Heads: what a user of an encoder trains on its features. Frozen dataclasses of parameters.

``kind`` says how: ``fitted`` on the features of a frozen encoder, or ``tuned`` together with the encoder
(``tuning.py``). Of a fitted one ``fit(features, labels, classes, run)`` returns a module from normalized features
(N, D) to logits (N, K).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.downstream.classifier import Classifier
from sapper.encoders import Encoder
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step, Terms, train, warm_cosine


class Head(Protocol):
    """Parameters of a head that is fitted to features.

    ``seeded``: whether another seed gives another head. ``layers``: how many linear layers it has that are trained.
    """

    kind: ClassVar[Literal["fitted"]]
    seeded: ClassVar[bool]

    @property
    def layers(self) -> int: ...

    def fit(self, features: Tensor, labels: Tensor, classes: int, run: Run) -> nn.Module:
        """Train on normalized ``features`` float (N, D) and ``labels`` int64 (N,); the result is in ``eval`` mode."""
        ...


class TunedHead(Protocol):
    """Parameters of a head that is trained together with its encoder."""

    kind: ClassVar[Literal["tuned"]]
    seeded: ClassVar[bool]

    @property
    def layers(self) -> int: ...

    def tune(self, encoder: Encoder, train: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Classifier:
        """Train a copy of ``encoder`` and a head on labeled samples; the result is in ``eval`` mode."""
        ...


class Stepwise(ABC):
    """A head that is trained on a loss, batch by batch. Its parts, for who has a hand in the loss."""

    @property
    @abstractmethod
    def epochs(self) -> int: ...

    @property
    @abstractmethod
    def batch(self) -> int: ...

    @abstractmethod
    def module(self, features: Tensor, classes: int) -> nn.Module:
        """The untrained head for ``features`` (N, D) of the training samples; draws from torch's global generator."""

    @abstractmethod
    def mode(self, classifier: Classifier) -> None:
        """Put a classifier into its training mode, and let those of its parameters have gradients that are trained."""

    def view(self, images: Any, _generator: torch.Generator) -> Any:
        """A batch as it is trained on: as it is, or augmented."""
        return images

    @abstractmethod
    def optimizer(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """For the parameters that are trained."""

    @abstractmethod
    def rate(self, step: Step) -> float:
        """The learning rate of a step."""


class Standardize(nn.Module):
    """Features (N, D) less the mean of those it was made from, over one deviation common to all D.

    One for all: a feature that hardly ever changes would otherwise be blown up, and with it the slightest change of
    it under a trigger. The geometry of the encoder stays as it is.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor):
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", features.var(0, correction=0).mean().sqrt().clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


@dataclass(frozen=True, kw_only=True)
class MLP(Checked, Stepwise):
    """The paper's head: D – 512 – ReLU – dropout – 256 – ReLU – K, cross-entropy, Adam.

    Defaults from ``training_downstream_classifier.py``; unlike there, rows are shuffled in every epoch, so that the
    order of a data set never changes a result. ``standardize`` centers the features and scales them to
    deviation 1 first; the functions that can be learned stay the same, but far fewer epochs are needed. ``schedule``:
    with ``cosine`` the learning rate falls to zero, so that the result depends less on which batches came last.
    """

    epochs: PositiveInt = 500
    batch: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-4
    hidden: tuple[PositiveInt, PositiveInt] = (512, 256)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    standardize: bool = False
    schedule: Literal["constant", "cosine"] = "constant"

    kind: ClassVar[Literal["fitted"]] = "fitted"
    version: ClassVar[int] = 3
    seeded: ClassVar[bool] = True
    source: ClassVar[str] = "Jia, Liu, Gong, IEEE S&P 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}
    layers: ClassVar[int] = 3

    def fit(self, features: Tensor, labels: Tensor, classes: int, run: Run) -> nn.Module:
        """Train for ``epochs``; the last epoch counts, none is chosen by its test accuracy."""
        labels = labels.to(features.device)
        with run.seeded():
            head = self.module(features, classes)
            generator = run.child("order").generator()

            def terms(step: Step) -> Terms:
                rows = step.rows.to(features.device)
                return {"cross-entropy": F.cross_entropy(head(features[rows]), labels[rows])}

            train(
                head,
                terms,
                self.optimizer(head.parameters()),
                self.rate,
                count=len(features),
                batch=self.batch,
                epochs=self.epochs,
                run=run,
                label="head (MLP)",
                order=lambda _epoch: generator,
                drop_last=False,
            )
        return head.eval()

    def module(self, features: Tensor, classes: int) -> nn.Module:
        first, second = self.hidden
        return nn.Sequential(
            Standardize(features) if self.standardize else nn.Identity(),
            nn.Linear(features.shape[1], first),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, classes),
        ).to(features.device)

    def mode(self, classifier: Classifier) -> None:
        classifier.encoder.eval().requires_grad_(False)
        classifier.head.train()

    def optimizer(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=self.learning_rate, fused=True)

    def rate(self, step: Step) -> float:
        constant = self.schedule == "constant"
        return self.learning_rate * (1.0 if constant else warm_cosine(step.epoch / self.epochs, 0.0))


@dataclass(frozen=True, kw_only=True)
class Linear(Checked):
    """A linear probe: multinomial logistic regression on standardized features, with an L2 penalty, by L-BFGS.

    Minimizes  mean cross-entropy + ``penalty``/2 · ‖W‖²  over all rows at once; convex, so no schedule matters.
    """

    penalty: NonNegativeFloat = 1e-4
    iterations: PositiveInt = 300

    kind: ClassVar[Literal["fitted"]] = "fitted"
    version: ClassVar[int] = 2
    seeded: ClassVar[bool] = False
    source: ClassVar[str] = "the usual linear evaluation of self-supervised encoders"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    layers: ClassVar[int] = 1

    def fit(self, features: Tensor, labels: Tensor, classes: int, run: Run) -> nn.Module:
        """The optimum, to L-BFGS's tolerance; no randomness is used."""
        labels = labels.to(features.device)
        standardize = Standardize(features)
        with run.seeded():
            linear = nn.Linear(features.shape[1], classes, device=features.device)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        inputs = standardize(features)
        solver = torch.optim.LBFGS(linear.parameters(), max_iter=self.iterations, line_search_fn="strong_wolfe")

        with run.progress.bar("head (linear)", self.iterations) as bar:

            def closure() -> Tensor:
                solver.zero_grad()
                loss = F.cross_entropy(linear(inputs), labels) + self.penalty / 2 * linear.weight.square().sum()
                loss.backward()
                bar.advance()  # once for each evaluation; an iteration seldom needs more than one
                return loss

            solver.step(closure)
        return nn.Sequential(standardize, linear).eval()


@dataclass(frozen=True, kw_only=True)
class KNN(Checked):
    """The weighted k-nearest-neighbor classifier that SimCLR's monitor uses; nothing is trained.

    The ``neighbors`` most similar rows vote with weight exp(similarity / ``temperature``); logits are the logarithms of
    the shares of votes, at least 1e-6. Defaults from the authors' ``pretraining_encoder.py``: 200 and 0.5.
    """

    neighbors: PositiveInt = 200
    temperature: PositiveFloat = 0.5

    kind: ClassVar[Literal["fitted"]] = "fitted"
    version: ClassVar[int] = 2
    seeded: ClassVar[bool] = False
    source: ClassVar[str] = "Wu et al., CVPR 2018; BadEncoder's monitor"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    layers: ClassVar[int] = 0

    def fit(self, features: Tensor, labels: Tensor, classes: int, run: Run) -> nn.Module:
        """Keep the rows and their labels."""
        neighbors = min(self.neighbors, len(features))
        return Neighbors(features, labels.to(features.device), classes, neighbors, self.temperature)


class Neighbors(nn.Module):
    """Rows (N, D) of a ``bank`` with their ``labels`` int64 (N,), of which the nearest vote; see ``KNN``."""

    bank: Tensor
    labels: Tensor

    def __init__(self, bank: Tensor, labels: Tensor, classes: int, neighbors: int, temperature: float):
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("labels", labels)
        self.classes, self.neighbors, self.temperature = classes, neighbors, temperature

    def forward(self, features: Tensor) -> Tensor:
        similarity, rows = (features @ self.bank.T).topk(self.neighbors, dim=1)
        votes = torch.zeros(len(features), self.classes, device=features.device)
        votes.scatter_add_(1, self.labels[rows], (similarity / self.temperature).exp())
        return (votes / votes.sum(1, keepdim=True)).clamp_min(1e-6).log()
