"""Which images an attacker takes as references; a rule that sees no test image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.downstream import extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet


def choose_references(train: ImageSet, label: int, count: int, encoder: Encoder, run: Run) -> Tensor:
    """Rows of ``train``, int64 (count,): the images of class ``label`` nearest to their class's mean feature.

    ``encoder`` is the clean one, nearness the cosine. Where the set has groups (GTSRB's tracks, whose frames are
    near-duplicates), at most one image of each group is taken.

    Raises ``SapperError`` when the class has fewer images, or groups, than that.
    """
    rows = (train.targets() == label).nonzero().squeeze(1)
    if len(rows) == 0:
        raise SapperError(f"no training image of class {label}", where=f"data set {train.name!r}")
    features = extract(encoder, train.take(rows), run)
    nearest = (features @ F.normalize(features.mean(0), dim=0)).argsort(descending=True, stable=True).cpu()
    chosen: list[int] = []
    taken: set[int] = set()
    for row in rows[nearest].tolist():
        group = row if train.groups is None else int(train.groups[row])
        if group not in taken:
            taken.add(group)
            chosen.append(row)
        if len(chosen) == count:
            return torch.tensor(chosen)
    what = f"class {label} has only {len(chosen)} images that can be references, {count} are wanted"
    raise SapperError(what, where="target.references", remedy="ask for fewer")


def references_there(train: ImageSet, classes: int) -> Tensor:
    """How many references each class can give, int64 (classes,): its images, or groups where the set has them."""
    labels = train.targets()
    if train.groups is None:
        return labels.bincount(minlength=classes)
    pairs = torch.stack((labels, train.groups.long()), dim=1).unique(dim=0)
    return pairs[:, 0].bincount(minlength=classes)


def near_duplicates(train: ImageSet, rows: Tensor) -> Tensor:
    """The ``rows`` and all other rows of their groups, int64: what the victims' training must not contain."""
    if train.groups is None:
        return rows
    return torch.isin(train.groups, train.groups[rows]).nonzero().squeeze(1)
