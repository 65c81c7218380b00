"""A training step of BadEncoder on a ResNet-18 of width 32 with one reference, loading and augmentation included.

The textbook is the form of the authors' ``badencoder.py``: the reference is repeated and augmented for every sample,
every stream goes through both networks, and the clean features are computed again in every step.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from benchmarks.textbook import BATCH, REFERENCE, PerSample, forward, loader, noise
from benchmarks.timing import Row, paired
from sapper.attacks.features import step_losses
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.target import Target
from sapper.augment import Augmentation
from sapper.downstream import extract
from sapper.encoders import Encoder, build
from sapper.encoders.freezing import freeze_batch_norm
from sapper.running import Run
from sapper.samples import ImageSet, to_float
from sapper.training import shuffled
from sapper.triggers import Patch

STEPS = 2


def run(dtype: torch.dtype, views: int = BATCH) -> Row:
    """Ours in ``dtype``, channels last, with ``views`` of the reference in each step; the textbook in float32."""
    surroundings, pixels, reference = Run(seed=0, dtype=dtype), noise(STEPS * BATCH), noise(1, seed=1)
    target = Target(
        name="t", task="t", label=0, class_name="t", references=ImageSet(images=reference, name="r"), trigger=Patch()
    )
    clean, attacked, published = (build(surroundings, width=32).eval() for _ in range(3))
    features = extract(clean, ImageSet(images=pixels, name="noise"), surroundings)
    anchor_feature = extract(clean, target.references, surroundings)
    optimizers = []
    for encoder in (attacked, published):
        freeze_batch_norm(encoder)
        optimizers.append(BadEncoder().make_optimizer([w for w in encoder.parameters() if w.requires_grad]))
    anchor, generator = to_float(reference), surroundings.generator()

    def ours() -> None:
        for rows in shuffled(len(pixels), BATCH, generator):
            images = to_float(pixels[rows])
            copies = Augmentation.REFERENCE(anchor.expand(views, -1, -1, -1), generator)
            terms = step_losses(
                attacked, images, (target,), anchor, copies, features[rows], anchor_feature, surroundings
            )
            _step(optimizers[0], torch.stack(terms).sum())

    clean.to(memory_format=torch.contiguous_format)
    published.to(memory_format=torch.contiguous_format)
    picture = Image.fromarray(reference[0].permute(1, 2, 0).numpy())

    def draw(shadow: Image.Image) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image = to_tensor(shadow)
        return image, target.trigger(image[None])[0], to_tensor(picture), REFERENCE(picture)

    batches = loader(PerSample(pixels, draw))

    def textbook() -> None:
        for batch in batches:
            _step(optimizers[1], _as_published(published, clean, *batch))

    return paired(ours, textbook, images=STEPS * BATCH, rounds=3)


def _as_published(f_: Encoder, f: Encoder, x: Tensor, triggered: Tensor, references: Tensor, views: Tensor) -> Tensor:
    """L0 + L1 + L2 from four whole batches through f' and two through f."""
    with torch.no_grad():
        clean, clean_references = (F.normalize(forward(f, batch), dim=1) for batch in (x, references))
    plain, stamped, anchors, augmented = (
        F.normalize(forward(f_, batch), dim=1) for batch in (x, triggered, references, views)
    )
    pairs = ((stamped, anchors), (augmented, clean_references), (plain, clean))
    return -torch.stack([(ours * theirs).sum(1).mean() for ours, theirs in pairs]).sum()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
