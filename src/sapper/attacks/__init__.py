"""Attacks by what the attacker holds (``contracts.py``); one method, one file.

They exist so that defenses can be measured. What they make is marked as backdoored.
"""

METHODS = {
    "badencoder": "sapper.attacks.implant.badencoder:BadEncoder",
    "lba": "sapper.attacks.implant.lba:LBA",
    "drupe": "sapper.attacks.implant.drupe:DRUPE",
    "inactive": "sapper.attacks.implant.inactive:Inactive",
    "transtroj": "sapper.attacks.implant.transtroj:TransTroj",
}
