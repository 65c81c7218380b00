"""An epoch of MNTD's meta-classifiers with tuned queries on 20 shadow heads of a frozen ResNet-18 of width 16.

Ours takes five meta-classifiers side by side, with all shadows in memory. The textbook trains one after another, and
reads a shadow's weights from disk in every step, as the authors' ``utils_meta.py`` does.
"""

import tempfile
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.textbook import head
from benchmarks.timing import Row, paired
from sapper.defenses import meta
from sapper.encoders import build
from sapper.running import Run

METAS, SHADOWS, CLASSES, QUERIES, HIDDEN = 5, 20, 10, 10, 20


def run(dtype: torch.dtype) -> Row:
    """Both in float32, as the method is."""
    del dtype
    surroundings = Run(seed=0)
    encoder = build(surroundings, width=16).eval().requires_grad_(False)
    heads = [head(encoder.feature_size, CLASSES).requires_grad_(False) for _ in range(SHADOWS)]
    fleet = meta.Fleet(list(heads), torch.arange(SHADOWS) % 2 == 1)
    runs = [surroundings.child(f"meta-classifier {i}") for i in range(METAS)]
    settings = meta.Training(epochs=1, learning_rate=1e-3, tune_queries=True, one_class=False)
    mean, deviation = torch.full((3, 32, 32), 0.5), torch.full((3, 1, 1), 0.25)

    def trunk(images: Tensor) -> Tensor:
        return F.normalize(encoder(images), dim=1)

    def ours() -> None:
        metas = meta.MetaClassifiers.draw(runs, QUERIES, mean, deviation, CLASSES, HIDDEN)
        meta.train(metas, trunk, fleet, None, settings, runs)

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.safetensors") for i in range(SHADOWS)]
        for shadow, file in zip(heads, files):
            safetensors.torch.save_file(shadow.state_dict(), file)

        def textbook() -> None:
            for _ in range(METAS):
                _one_alone(trunk, files, fleet.backdoored, encoder.feature_size)

        return paired(ours, textbook, images=METAS * SHADOWS, rounds=3, unit="steps/s")


def _one_alone(trunk: meta.Model, files: list[Path], backdoored: Tensor, features: int) -> None:
    queries = nn.Parameter(0.5 + 0.25 * torch.randn(QUERIES, 3, 32, 32))
    net = nn.Sequential(nn.Linear(QUERIES * CLASSES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    optimizer, shadow = torch.optim.Adam([queries, *net.parameters()]), head(features, CLASSES)
    for i in torch.randperm(len(files)).tolist():
        shadow.load_state_dict(safetensors.torch.load_file(files[i]))
        score = net(shadow(trunk(queries)).flatten()).squeeze()
        loss = F.binary_cross_entropy_with_logits(score, backdoored[i].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
