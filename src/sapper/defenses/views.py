"""Classifiers that see one part of an image at a time, or one draw of noise on it, and how they learn to.

A classifier that never saw such views says little of them. So there are three ways to come by one: as the victim built
it; with a new head, trained on views through the classifier's encoder as it is; and with the encoder fine-tuned on
views, too,

    minimize  mean_x CE( h(f(one random view of x)), y )        over head h, or over encoder f and head h

The new head is of the victim's kind. Where the victim fits none, because it fine-tunes the encoder or names the classes
by captions, it is a linear one.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.defender import Defender, Logits
from sapper.defenses.masking import column_windows
from sapper.downstream import Classifier, Linear, extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Change, at_once, to_float
from sapper.training import Step, Terms, check_finite, train, warm_cosine

View = Callable[[Tensor, torch.Generator], Tensor]
"""One random view of each of the float images (N, 3, H, W): others of the same shape."""


def column_bands(height: int, width: int, size: int) -> Tensor:
    """What bands of ``size`` columns show, bool (W, H, W); they wrap around the edge."""
    return column_windows(width, size).view(width, 1, width).expand(width, height, width)


def blocks(height: int, width: int, size: int) -> Tensor:
    """What square blocks of ``size`` pixels a side show, bool (H·W, H, W); they wrap around both edges."""
    down, across = column_windows(height, size), column_windows(width, size)
    return (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)


def random_part(seen: Tensor, blank: Tensor) -> View:
    """Each image through one of the masks ``seen``, bool (V, H, W); around it is ``blank``, float (3,)."""

    def view(images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(seen), (len(images),), generator=generator)
        shown = seen[chosen].to(images.device).unsqueeze(1)
        return torch.where(shown, images, blank.to(images).view(3, 1, 1))

    return view


def drawn(view: View, generator: torch.Generator) -> Change:
    """A new view at every call, with randomness from the generator."""
    return lambda images: view(images, generator)


@torch.no_grad()
def confidences(
    logits: Logits, seen: Tensor, blank: Tensor, images: Tensor, run: Run, label: str, change: Change | None = None
) -> Tensor:
    """Softmax confidences in every part, float (N, V, K), of uint8 ``images`` (N, 3, H, W), after ``change`` if given.

    ``seen`` bool (V, H, W); around a part is ``blank``, float (3,).
    """
    shown, fill = seen.to(run.device).unsqueeze(1), blank.to(run.device).view(3, 1, 1)
    parts = []
    with run.progress.bar(label, len(images)) as bar:
        together = at_once(images, run.device)
        for chunk in images.split(max(1, together // len(seen))):
            pixels = to_float(chunk.to(run.device))
            changed = (pixels if change is None else change(pixels)).unsqueeze(1)
            told = []
            for some in shown.split(max(1, together // len(chunk))):
                views = torch.where(some, changed, fill)
                with run.autocast():
                    answers = logits(views.flatten(0, 1))
                told.append(answers.float().softmax(1).view(len(chunk), len(some), -1))
            parts.append(torch.cat(told, 1))
            bar.advance(len(chunk))
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class ThroughViews(Checked):
    """What methods share whose classifier answers by views.

    ``training``: the classifier ``as-is``; with a new ``head``, trained on ``views`` random views of every training
    image; or with such a head and then the ``encoder`` and the head fine-tuned on views, for ``epochs``, with Adam and
    a rate that falls to zero.
    """

    training: Literal["as-is", "head", "encoder"] = "as-is"
    views: PositiveInt = 8
    epochs: PositiveInt = 20
    batch: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3

    def learned(self, classifier: Classifier, defender: Defender, view: View, run: Run, name: str) -> Classifier:
        """The classifier as it is, or trained on views; the owner's encoder stays as it is. ``name``: for errors."""
        if self.training != "as-is":
            classifier = self._with_head(classifier.encoder, defender, view, run)
        if self.training == "encoder":
            classifier = self._fine_tuned(classifier, defender, view, run, name)
        return classifier

    def _with_head(self, encoder: Encoder, defender: Defender, view: View, run: Run) -> Classifier:
        """The classifier's encoder as it is, with a head that has seen views."""
        head = defender.head if defender.head.kind == "fitted" else Linear()
        samples, generator = defender.train, run.child("bands").generator()
        labels = samples.targets().repeat(self.views)
        features = [extract(encoder, samples, run, drawn(view, generator)) for _ in range(self.views)]
        fitted = head.fit(torch.cat(features), labels, defender.classes, run.child("head"))
        return Classifier(encoder, fitted).eval()

    def _fine_tuned(self, classifier: Classifier, defender: Defender, view: View, run: Run, name: str) -> Classifier:
        """A copy of the classifier, all of it trained on random views."""
        if not any(True for _ in classifier.head.parameters()):
            what, remedy = "a head without weights knows the encoder as it was", "make an mlp or linear head primary"
            raise SapperError(what, where=f"{name}.training", remedy=remedy)
        tuned = deepcopy(classifier).requires_grad_(True).train()
        images, labels = defender.train.to(run.device), defender.train.targets().to(run.device)
        dice = run.child("tuning")
        with dice.seeded():
            generator = dice.child("order").generator()

            def terms(step: Step) -> Terms:
                views = view(images.batch(step.rows), generator)
                with run.autocast():
                    answers = tuned(views)
                return {"cross-entropy": F.cross_entropy(answers.float(), labels[step.rows.to(run.device)])}

            train(
                tuned,
                terms,
                torch.optim.Adam(tuned.parameters(), lr=self.learning_rate, fused=True),
                lambda step: self.learning_rate * warm_cosine(step.done, 0.0),
                count=len(images),
                batch=self.batch,
                epochs=self.epochs,
                run=run,
                label=f"training on views ({name})",
                order=lambda _epoch: generator,
            )
        check_finite(tuned, name)
        return tuned.eval().requires_grad_(False)
