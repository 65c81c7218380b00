"""Pre-training methods: ``(encoder, samples, run) → Trained`` (``contracts.py``), one method, one file."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # here mypy checks that each keeps the contract
    from sapper.pretraining.byol import BYOL
    from sapper.pretraining.clip import CLIP
    from sapper.pretraining.contracts import Pretraining
    from sapper.pretraining.moco import MoCo
    from sapper.pretraining.simclr import SimCLR
    from sapper.pretraining.simsiam import SimSiam
    from sapper.pretraining.supervised import Supervised

    _kept: list[type[Pretraining]] = [CLIP, SimCLR, MoCo, BYOL, SimSiam, Supervised]

METHODS = {
    "clip": "sapper.pretraining.clip:CLIP",
    "simclr": "sapper.pretraining.simclr:SimCLR",
    "moco": "sapper.pretraining.moco:MoCo",
    "byol": "sapper.pretraining.byol:BYOL",
    "simsiam": "sapper.pretraining.simsiam:SimSiam",
    "supervised": "sapper.pretraining.supervised:Supervised",
}
