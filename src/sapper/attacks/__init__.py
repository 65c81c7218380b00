"""Attacks by what the attacker holds (``contracts.py``); one method, one file.

They exist so that defenses can be measured. What they make is marked as backdoored.
"""

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
