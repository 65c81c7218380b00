"""A fleet of MNTD's shadow encoders: a process for each core with one thread each, against one with all threads.

Pairs of a ResNet-10 of width 16 and its twin, on 512 images for 12 and 8 epochs: long enough for starting the
processes, which is part of it, not to decide.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.textbook import noise
from benchmarks.timing import Row, paired
from sapper import process
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.defenses.judge.mntd_encoder import MNTDEncoder
from sapper.engine.executors import Workers, execute
from sapper.engine.stage import Stage
from sapper.engine.store import Store
from sapper.experiment.fleets import Fleet
from sapper.pretraining.simclr import SimCLR
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.scenario.named import Named
from sapper.scenario.sections import EncoderSection

PAIRS, IMAGES = 4, 512


def run(dtype: torch.dtype) -> Row:
    """Both in ``dtype``, each time with another seed and an empty store."""
    images = ImageSet(images=noise(IMAGES), name="noise")
    draw, seeds = MNTDEncoder().draw, iter(range(10**6))

    def fleet() -> Fleet:
        return Fleet(
            spec=EncoderSection(architecture="resnet10", width=16),
            pretraining=Named(name="simclr", parameters=SimCLR(epochs=12, batch=64, view_size=24)),
            attack=Named(
                name="badencoder", parameters=BadEncoder(epochs=8, batch=16, reference_views=4, optimizer="adam")
            ),
            images=images,
            references=images,
            run=Run(seed=next(seeds), dtype=dtype),
        )

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            stages = [stage for pair in fleet().pairs(PAIRS, draw) for stage in pair]
            execute(stages, Store(Path(folder)), executor=Workers(torch.get_num_threads(), process.settle))

    def textbook() -> None:
        with tempfile.TemporaryDirectory() as folder:
            stages = [on_all_threads(stage) for pair in fleet().pairs(PAIRS, draw) for stage in pair]
            execute(stages, Store(Path(folder)))

    return paired(ours, textbook, images=PAIRS, rounds=2, unit="pairs/s")


def on_all_threads(stage: Stage) -> Stage:
    """The same stage and all that it needs, each on all threads."""
    return replace(stage, threads=torch.get_num_threads(), inputs=tuple(map(on_all_threads, stage.inputs)))
