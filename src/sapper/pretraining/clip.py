"""CLIP: an encoder of images learns from captions, together with an encoder of texts.

Both towers end in a joint space. In a batch of B pairs, with features normalized to length 1, Iᵢ of images and Tⱼ of
texts, and a learned scale s,

    L = ½ · ( CE( s·I·Tᵀ, P ) + CE( s·T·Iᵀ, P ) )

    minimize  L        over both towers and log s, with 1 ≤ s ≤ 100 after each step

so that each image finds its caption among B, and each caption its image. In the textbook form P is the identity. With
``soft_targets``, Pᵢⱼ is the same for all j whose caption is equal to the i-th and 0 elsewhere: where few sentences
describe many images, equal captions would else be called wrong answers to one another. L then cannot fall below the
entropy of P.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, and
open_clip (``loss.py``, ``model.py``, ``params.py``): s starts at 1/0.07; AdamW, no decay on parameters of one dimension
and on s; warm-up, then half a cosine; crops keep 90 % of the area or more, and nothing else is changed, since a
mirrored image may belie its caption. The preset ``paper`` has what open_clip's README says for a ResNet-50 on
Conceptual Captions (there with a warm-up of 10,000 steps, and byte pairs as tokens). Our defaults are for small data: a
higher learning rate, a warm-up of a tenth of all steps, and a text tower for a few hundred words.

The image tower is the ``Encoder``: its features are those of the joint space, as those of CLIP's ``visual`` are, which
BadEncoder attacks. The text tower stays with it in one file, so that it can classify without training
(``downstream/zero_shot.py``).
"""

from dataclasses import dataclass
from math import log
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.augment import Augmentation
from sapper.encoders import Encoder, Trained
from sapper.encoders.text import LARGEST_SCALE, Kind, TextCard, TextTower
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.pretraining.contracts import Need
from sapper.running import Run
from sapper.samples import PairSet, Samples
from sapper.training import Checkpoint, Step, Terms, part_done, train, warm_cosine, weighted


@dataclass(frozen=True, kw_only=True)
class CLIP(Checked):
    """Contrastive pre-training with captions (Radford et al., ICML 2021).

    ``learning_rate`` is the peak, reached after the ``warmup`` share of all steps. ``embedding``: features of the joint
    space. ``text``: the text tower, a ``transformer`` of ``text_layers`` or a ``bag`` of words, of ``text_width``.
    ``soft_targets``: equal captions are equally right. ``crop_scale``: the smallest share of the image's area that a
    crop keeps. ``view_size``: height and width of a crop in pixels, 0 for the images' own. ``flip``: how often it is
    mirrored.
    """

    epochs: PositiveInt = 30
    batch: Annotated[int, Field(ge=2)] = 128
    learning_rate: PositiveFloat = 2e-3
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: NonNegativeFloat = 0.1
    embedding: Annotated[int, Field(ge=1, le=4096)] = 128
    text: Kind = "transformer"
    text_width: Annotated[int, Field(ge=4, le=4096, multiple_of=4)] = 64
    text_layers: Annotated[int, Field(ge=1, le=64)] = 2
    soft_targets: bool = True
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.9
    view_size: Annotated[int, Field(ge=0, le=4096)] = 0
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"captions"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Radford et al., ICML 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            **{"epochs": 30, "batch": 1024, "learning_rate": 1e-3, "weight_decay": 0.1, "embedding": 1024},
            **{"text_width": 512, "text_layers": 12, "soft_targets": False},
        }
    }

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on pairs of images and texts; with ``checkpoint``, resumably.

        It is given a projection and a text tower; one that has them already is trained on. Curves: ``contrast``;
        ``matched``, the share of a batch's images whose nearest caption is right; ``temperature``, 1/s. Raises
        ``SapperError`` for images without captions.
        """
        if not isinstance(samples, PairSet):
            what, remedy = "CLIP needs captions, and these are images alone", "name a data set with captions"
            raise SapperError(what, where=f"data set {samples.name!r}", remedy=remedy)
        pairs = samples
        tower = self.give_text(encoder, pairs, run)
        known = pairs.texts.written_in(tower.card.vocabulary)
        known.check(tower.card.input)
        images, texts, captions = pairs.images.to(run.device), known.to(run.device), pairs.caption_ids
        augmentation = Augmentation(
            crop=(self.crop_scale, 1.0), size=self.view_size, flip=self.flip, jitter_p=0, grayscale=0
        )

        def terms(step: Step) -> Terms:
            views = augmentation(images.batch(step.rows), step.generator)
            with run.autocast():
                seen, said = encoder(views), tower(texts.batch(step.rows))
            cosines = F.normalize(seen.float(), dim=1) @ F.normalize(said.float(), dim=1).T
            same = equal(captions[step.rows]).to(run.device)
            right = same if self.soft_targets else torch.eye(len(same), device=run.device)
            matched = same.gather(1, cosines.argmax(1, keepdim=True)).mean()
            scale = tower.scale
            return {"contrast": contrast(scale * cosines, right), "matched": matched, "temperature": 1 / scale}

        def clamp(_step: Step) -> None:
            with torch.no_grad():
                tower.logit_scale.clamp_(0, log(LARGEST_SCALE))

        curves = train(
            encoder,
            terms,
            torch.optim.AdamW(decayed(encoder, self.weight_decay), fused=True),
            lambda step: self.learning_rate * warm_cosine(part_done(step.index, step.total), self.warmup),
            count=len(pairs),
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label="pre-training (CLIP)",
            checkpoint=checkpoint,
            combine=weighted({"contrast": 1.0}),
            after_step=clamp,
        )
        return Trained(encoder.eval(), curves)

    def give_text(self, encoder: Encoder, pairs: PairSet, run: Run) -> TextTower:
        """The encoder's text tower, or a fresh one with all words of the captions, and then a fresh projection, too."""
        if encoder.text is not None:
            return encoder.text
        card = TextCard(
            vocabulary=pairs.texts.vocabulary,
            length=pairs.texts.ids.shape[1],
            features=self.embedding,
            kind=self.text,
            width=self.text_width,
            layers=self.text_layers,
        )
        with run.child("text tower").seeded():
            tower = TextTower(card)
        encoder.join(tower)
        with run.child("projection").seeded():
            encoder.project(self.embedding)
        return tower


def equal(captions: Tensor) -> Tensor:
    """float32 (B, B): 1 where two captions are equal, from their numbers int64 (B,)."""
    return (captions[:, None] == captions[None]).float()


def contrast(logits: Tensor, right: Tensor) -> Tensor:
    """L for s·I·Tᵀ, float (B, B), where ``right``, float (B, B) and symmetric, is 1 for right answers. A scalar."""
    right = right / right.sum(1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def decayed(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters for AdamW: those of two dimensions or more with weight decay, others without."""
    weights = [value for value in model.parameters() if value.requires_grad]
    some, others = [w for w in weights if w.ndim >= 2], [w for w in weights if w.ndim < 2]
    return [{"params": some, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
