"""Attacks by what the attacker holds (``contracts.py``); one method, one file.

They exist so that defenses can be measured. What they make is marked as backdoored.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # here mypy checks that each keeps its contract
    from sapper.attacks.contracts import Implant, Poison, TargetedAttack, TrainingAttack
    from sapper.attacks.implant.badencoder import BadEncoder
    from sapper.attacks.implant.drupe import DRUPE
    from sapper.attacks.implant.inactive import Inactive
    from sapper.attacks.implant.lba import LBA
    from sapper.attacks.implant.transtroj import TransTroj
    from sapper.attacks.poison.badnets import BadNets
    from sapper.attacks.poison.blend import Blended
    from sapper.attacks.poison.carlini_terzis import CarliniTerzis
    from sapper.attacks.poison.corruptencoder import CorruptEncoder
    from sapper.attacks.poison.ctrl import CTRL
    from sapper.attacks.poison.ssl_backdoor import SSLBackdoor
    from sapper.attacks.targeted.feature_collision import FeatureCollision
    from sapper.attacks.targeted.model_reuse import ModelReuse
    from sapper.attacks.training.blind import Blind
    from sapper.attacks.training.trojannn import TrojanNN

    _implants: list[type[Implant]] = [BadEncoder, LBA, DRUPE, Inactive, TransTroj]
    _poisons: list[type[Poison]] = [BadNets, Blended, CarliniTerzis, CorruptEncoder, CTRL, SSLBackdoor]
    _trainings: list[type[TrainingAttack]] = [Blind, TrojanNN]
    _targeted: list[type[TargetedAttack]] = [FeatureCollision, ModelReuse]

METHODS = {
    "badencoder": "sapper.attacks.implant.badencoder:BadEncoder",
    "badnets": "sapper.attacks.poison.badnets:BadNets",
    "blend": "sapper.attacks.poison.blend:Blended",
    "blind": "sapper.attacks.training.blind:Blind",
    "feature_collision": "sapper.attacks.targeted.feature_collision:FeatureCollision",
    "model_reuse": "sapper.attacks.targeted.model_reuse:ModelReuse",
    "trojannn": "sapper.attacks.training.trojannn:TrojanNN",
    "lba": "sapper.attacks.implant.lba:LBA",
    "drupe": "sapper.attacks.implant.drupe:DRUPE",
    "inactive": "sapper.attacks.implant.inactive:Inactive",
    "transtroj": "sapper.attacks.implant.transtroj:TransTroj",
    "ssl_backdoor": "sapper.attacks.poison.ssl_backdoor:SSLBackdoor",
    "ctrl": "sapper.attacks.poison.ctrl:CTRL",
    "carlini_terzis": "sapper.attacks.poison.carlini_terzis:CarliniTerzis",
    "corruptencoder": "sapper.attacks.poison.corruptencoder:CorruptEncoder",
}
