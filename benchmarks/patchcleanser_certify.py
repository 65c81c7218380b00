"""PatchCleanser's certificates, by place, too, with 16 masks and a ResNet-18 of width 8: against the published loop.

The textbook takes one pair of masks after another on batches of 16 images, as the authors' script does, and then looks
at each image, place and mask. Labels are the defense's own answers, so that ours leaves next to no pair out.
"""

import torch
from torch import Tensor, nn

from benchmarks.textbook import noise
from benchmarks.timing import Row, paired
from sapper.defenses.certify.patchcleanser import PatchCleanser
from sapper.encoders import build
from sapper.running import Run
from sapper.samples import to_float
from sapper.triggers.covers import covering

CLASSES, PATCH, MASKS, IMAGES, BATCH = 10, 10, 4, 32, 16


def run(dtype: torch.dtype) -> Row:
    """Both in ``dtype``: the masked images are the same."""
    surroundings = Run(seed=0, dtype=dtype)
    encoder = build(surroundings, width=8).eval().requires_grad_(False)
    classifier = nn.Sequential(encoder, nn.Linear(encoder.feature_size, CLASSES).requires_grad_(False))
    images, blank = noise(IMAGES), encoder.mean.flatten()
    guarded = PatchCleanser(patch=PATCH, masks=MASKS).guard(classifier, blank)
    labels, masks = guarded.predict(images, surroundings), covering(images, PATCH, MASKS)

    def ours() -> None:
        guarded.certify(images, labels, [PATCH], surroundings)

    def textbook() -> None:
        for batch, wanted in zip(images.split(BATCH), labels.split(BATCH)):
            as_published(classifier, to_float(batch), wanted, masks, blank, surroundings)

    return paired(ours, textbook, images=IMAGES, rounds=3)


@torch.no_grad()
def as_published(
    classifier: nn.Module, images: Tensor, labels: Tensor, masks: Tensor, blank: Tensor, run: Run
) -> list[list[bool]]:
    """For every image and every place of a patch whether it is certified there."""
    tables = torch.zeros(len(images), len(masks), len(masks), dtype=torch.int64)
    for i, one in enumerate(masks):
        for j in range(i, len(masks)):
            with run.autocast():
                answers = classifier(torch.where(one | masks[j], blank.view(3, 1, 1), images)).argmax(1)
            tables[:, i, j] = tables[:, j, i] = answers
    side = images.shape[-1] - PATCH + 1
    places = [(row, column) for row in range(side) for column in range(side)]
    over = [[m for m, mask in enumerate(masks) if mask[r : r + PATCH, c : c + PATCH].all()] for r, c in places]
    certified = []
    for table, label in zip(tables.tolist(), labels.tolist()):
        kept = [all(answer == label for answer in row) for row in table]
        certified.append([any(kept[mask] for mask in each) for each in over])
    return certified
